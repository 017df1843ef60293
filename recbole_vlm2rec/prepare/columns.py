"""What a table's columns mean: guessed from their names, and their cells as tokens, texts and moments.

May import the standard library only.
"""

from __future__ import annotations

import math
import re
from array import array
from collections.abc import Mapping, Sequence
from datetime import date, datetime, timezone
from email.utils import parsedate_to_datetime
from statistics import median

NAMES = {
    "user": "user_id user uid userid reviewer_id reviewer customer_id customer client_id visitor_id member_id account_id",
    "item": "item_id item iid itemid asin sku product_id product article_id movie_id book_id track_id business_id goods_id",
    "time": "timestamp time datetime date unix_review_time unix_timestamp created_at event_time ts t_dat order_date",
    "rating": "rating overall stars score",
    "title": "title name product_name item_name product_title item_title prod_name movie_title",
    "picture": "image_path image image_url im_url img img_url picture picture_url picture_path photo photo_url thumbnail poster",
}
"""Names by which a column is recognised, whatever their case and punctuation; a type as in `user_id:token` is cut off."""

_UNITS = (("nanoseconds", 1e16, 1e-9), ("microseconds", 1e13, 1e-6), ("milliseconds", 1e10, 1e-3))
_NUMERIC_DATE = re.compile(r"(\d{1,4})([/.-])(\d{1,2})\2(\d{1,4})(?:[T ,]+(\d{1,2}:\d{2}(?::\d{2}(?:\.\d+)?)?))?")
_ISO = re.compile(r"(\d{4}-\d{2}-\d{2})(?:[T ](\d{1,2}:\d{2}(?::\d{2})?)([.,]\d+)?)? ?(Z|z|UTC|[+-]\d{2}(?::?\d{2})?)?")
_HALF_DAY = re.compile(r"(.*[^\d:])(\d{1,2})((?::\d{2}){1,2}(?:\.\d+)?) ?([AaPp])\.?[Mm]\.?")
_FORMS = ("%b %d, %Y", "%B %d, %Y", "%d %b %Y", "%d %B %Y", "%m %d, %Y", "%d-%b-%Y")


class CellError(ValueError):
    """A cell that cannot be read; the text is the reason."""


def plain(name: str) -> str:
    """`User ID:token` -> `userid`."""
    return re.sub(r"[^a-z0-9]", "", name.partition(":")[0].lower())


def find(there: Sequence[str], wanted: Mapping[str, bool], chosen: Mapping[str, str], where: object) -> dict[str, int]:
    """Places of the columns with a meaning.

    Args:
        there: the table's columns.
        wanted: meaning -> whether it must be there.
        chosen: meaning -> column, from the user.
        where: the file, for messages.
    Raises ValueError for a column that is missing, doubled or ambiguous, listing what there is and naming the flag.
    """
    if doubled := [name for place, name in enumerate(there) if name and name in there[:place]]:
        raise ValueError(f"{where}: column {doubled[0]!r} stands twice; rename one")
    found: dict[str, int] = {}
    listing = ", ".join(there)
    for meaning, needed in wanted.items():
        flag = f"--{meaning}_column"
        if meaning in chosen:
            place = named(chosen[meaning], there)
            if place is None:
                raise ValueError(f"{where}: there is no column {chosen[meaning]!r} ({flag}); there are {listing}")
            found[meaning] = place
            continue
        known = {plain(name) for name in NAMES[meaning].split()}
        places = [place for place, name in enumerate(there) if plain(name) in known]
        if len(places) > 1:
            raise ValueError(
                f"{where}: {' and '.join(repr(there[place]) for place in places)} may each be the {meaning}; say which with "
                f"{flag}=…"
            )
        if places:
            found[meaning] = places[0]
        elif needed:
            # A number among the names: the first line is most likely a row.
            headless = any(name.replace(".", "", 1).isdigit() for name in there)
            hint = "; if these are cells of the first row, put a line of column names before it" if headless else ""
            raise ValueError(f"{where}: no column looks like the {meaning}; there are {listing}. Name one with {flag}=…{hint}")
    return found


def named(name: str, there: Sequence[str]) -> int | None:
    """The place of the column of this name, which may leave out a RecBole type (`title` for `title:token_seq`)."""
    if name in there:
        return there.index(name)
    return next((place for place, column in enumerate(there) if column.partition(":")[0] == name), None)


def is_empty(value: object) -> bool:
    return value is None or value == "" or (isinstance(value, float) and math.isnan(value))


def token(value: object) -> str:
    """A user or item; whole numbers lose their `.0`. Raises CellError where there is none."""
    if is_empty(value):
        raise CellError("is empty")
    if isinstance(value, list):
        raise CellError("is a list")
    return text(value).strip()


def text(value: object) -> str:
    """A title; of a list its parts, one after the other. Raises CellError for an object or bytes that are no text."""
    if isinstance(value, (list, tuple)):
        return " ".join(text(part) for part in value)
    if isinstance(value, (dict, bytes)):
        raise CellError("is an object with fields of its own" if isinstance(value, dict) else "is bytes that are no UTF-8 text")
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return "" if is_empty(value) else str(value)


def first_text(value: object) -> str:
    """A picture; of a list its first part."""
    if isinstance(value, (list, tuple)):
        return first_text(value[0]) if value else ""
    return text(value).strip()


def number(value: object) -> float | None:
    """A rating; None for an empty cell. Raises CellError for anything else that is no number."""
    if is_empty(value):
        return None
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError) as error:
        raise CellError(f"{str(value)[:40]!r} is no number") from error


class Moments:
    """A time column, all of one kind: numbers, or dates of one form. `seconds` gives unix seconds, or the numbers as they are."""

    def __init__(self) -> None:
        self._values = array("d")
        self._days: list[tuple[int, int, int, str]] = []  # (first, second, year, clock) of dates whose order is not known yet
        self._kind = ""
        self._example = ""

    def add(self, value: object) -> None:
        """Raises CellError for a cell that is no moment, or one of another kind than those before."""
        if is_empty(value):
            raise CellError("no time")
        kind, moment = self._read(value)
        if self._kind and kind != self._kind:
            raise CellError(f"time {value!r} is of another form than {self._example!r} before")
        self._kind, self._example = kind, self._example or str(value)
        if kind == "day or month first":
            self._days.append(moment)
        else:
            self._values.append(moment)

    def seconds(self, where: object) -> tuple[array, str]:
        """All values and how they were read. Raises ValueError where days and months cannot be told apart."""
        if self._kind == "day or month first":
            return self._ordered_days(where)
        if self._kind == "numbers" and len(self._values):
            size = median(map(abs, self._values))
            for unit, least, second in _UNITS:
                if size >= least:
                    return array("d", (value * second for value in self._values)), unit
            return self._values, "seconds" if size >= 1e8 else "numbers that only order"
        return self._values, self._kind

    def _ordered_days(self, where: object) -> tuple[array, str]:
        day_first = any(first > 12 for first, *_ in self._days)
        month_first = any(second > 12 for _, second, *_ in self._days)
        if day_first == month_first:
            why = "some fit the one and some the other" if day_first else "none of them tells which"
            raise ValueError(
                f"{where}: dates such as {self._example!r} can be read with the day or with the month first, and {why}; write "
                f"them as 2020-12-31"
            )
        values = array("d")
        for first, second, year, clock in self._days:
            day, month = (first, second) if day_first else (second, first)
            values.append(_moment(f"{year:04d}-{month:02d}-{day:02d}", clock))
        return values, "dates, day first" if day_first else "dates, month first"

    def _read(self, value: object) -> tuple[str, object]:
        if isinstance(value, datetime):
            return "dates", _unix(value)
        if isinstance(value, date):
            return "dates", _unix(datetime(value.year, value.month, value.day))
        if isinstance(value, bool):
            raise CellError(f"time {value!r} is no moment")
        try:
            moment = float(value)
        except OverflowError as error:
            raise CellError(f"time {str(value)[:40]} is no moment") from error
        except (TypeError, ValueError):
            return self._read_date(str(value).strip())
        if not math.isfinite(moment):
            raise CellError(f"time {value!r} is no moment")
        return "numbers", moment

    def _read_date(self, said: str) -> tuple[str, object]:
        if half := _HALF_DAY.fullmatch(said):
            before, hour, rest, side = half.groups()
            if not 1 <= int(hour) <= 12:
                raise CellError(f"time {said!r} is no moment")
            said = f"{before}{int(hour) % 12 + 12 * (side in 'Pp'):02d}{rest}"
        if parts := _NUMERIC_DATE.fullmatch(said):
            first, mark, second, third, clock = parts.groups()
            if len(first) < 3 and len(third) == 4:
                if mark == ".":  # a dotted date has the day first
                    return "dates", _moment(f"{third}-{int(second):02d}-{int(first):02d}", clock)
                if not (1 <= int(first) <= 31 and 1 <= int(second) <= 31):
                    raise CellError(f"time {said!r} is no moment")
                return "day or month first", (int(first), int(second), int(third), clock or "")
            if len(first) == 4:
                return "dates", _moment(f"{first}-{int(second):02d}-{int(third):02d}", clock)
        if _ISO.fullmatch(said):
            return "dates", _moment(said)
        for form in _FORMS:
            try:
                return "dates", _unix(datetime.strptime(said, form))
            except ValueError:
                pass
        try:
            moment = parsedate_to_datetime(said)
        except (TypeError, ValueError, IndexError) as error:
            raise CellError(f"time {said!r} is neither a number nor a date") from error
        if moment.tzinfo is None and said[-1:].isalpha():  # the parser passes over a zone or word that it does not know
            raise CellError(f"time {said!r} ends in a word that is no known time zone")
        return "dates", _unix(moment)


def _moment(day: str, clock: str | None = None) -> float:
    """Of a date as ISO 8601 writes it. Not `fromisoformat` alone, which before Python 3.11 knows but few of its forms."""
    said = f"{day} {clock}" if clock else day
    try:
        day, clock, fraction, zone = _ISO.fullmatch(said).groups()
        zone = "+00:00" if zone in (None, "Z", "z", "UTC") else f"{zone[:3]}:{zone[3:].lstrip(':') or '00'}"
        hours, _, rest = (clock or "00:00").partition(":")
        return _unix(datetime.fromisoformat(f"{day}T{hours:0>2}:{rest}{zone}")) + float((fraction or "0").replace(",", "."))
    except (AttributeError, ValueError) as error:
        raise CellError(f"time {said!r} is no moment") from error


def _unix(moment: datetime) -> float:
    """A moment without a time zone is taken as UTC."""
    return (moment if moment.tzinfo else moment.replace(tzinfo=timezone.utc)).timestamp()
