"""RecBole's atomic files line by line, literally, and what is wrong with them: what reads a file and what checks it agree.

May import the standard library only. Readers raise the first `Problem`, `prepare check` lists them all.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

# Words that pandas, and so RecBole, reads as a missing value.
MISSING_WORDS = frozenset(
    ["", "#N/A", "#N/A N/A", "#NA", "-1.#IND", "-1.#QNAN", "-NaN", "-nan", "1.#IND", "1.#QNAN", "<NA>", "N/A", "NA", "NULL"]
    + ["NaN", "None", "n/a", "nan", "null"]
)

INTERACTION_FIELDS = ("user_id", "item_id", "timestamp")
_TYPES = ("token", "float", "token_seq", "float_seq")
_FIELD_TYPES = ("token", "token", "float")


@dataclass(frozen=True)
class Problem:
    """One breach of the data contract.

    kind: what it is called when it is counted. what: the same, with particulars. remedy: what to do; the same for a kind.
    line: from 1, None for the file as a whole. item: its token where the line has one.
    """

    kind: str
    file: Path
    line: int | None
    what: str
    remedy: str
    item: str | None = None

    @property
    def where(self) -> str:
        """`FILE, line N, item 'X'`, as far as each is known."""
        line = "" if self.line is None else f", line {self.line}"
        return f"{self.file}{line}" + ("" if self.item is None else f", item {self.item!r}")

    @property
    def statement(self) -> str:
        """Where, and what is wrong."""
        return f"{self.where}{'' if self.line is None else ':'} {self.what}"

    def __str__(self) -> str:
        return f"{self.statement}; {self.remedy}"


class Interaction(NamedTuple):
    """A line of `.inter`. time: finite."""

    line: int
    user: str
    item: str
    time: float


def read_lines(file: Path, encoding: str = "utf-8") -> Iterator[tuple[int, str] | Problem]:
    """(line number, text) with no line end, neither `\\n` nor `\\r\\n`; a Problem for a missing file or undecodable line.

    Lines end at `\\n` alone: a title may hold other characters that Python takes for line ends.
    """
    try:
        stream = open(file, "rb")
    except FileNotFoundError:
        yield Problem("missing file", file, None, "does not exist", "users, items, titles and pictures are read from such files")
        return
    except OSError as error:
        yield Problem("unreadable file", file, None, f"cannot be read ({error.strerror})", "give it back its rights or its disk")
        return
    with stream:
        for number, raw in enumerate(stream, start=1):
            try:
                yield number, raw.removesuffix(b"\n").removesuffix(b"\r").decode(encoding)
            except UnicodeDecodeError:
                kind = f"not {encoding.upper()}"
                yield Problem(kind, file, number, kind, f"convert the file (iconv -f ITS_ENCODING -t {encoding})")


def read_interactions(
    file: Path, fields: Sequence[str] = INTERACTION_FIELDS, separator: str = "\t", encoding: str = "utf-8"
) -> Iterator[Interaction | Problem]:
    """The lines of an `.inter` file, and a Problem for each that RecBole's reader could not take, or would take otherwise.

    `fields` names the columns of user, item and time. What comes as an Interaction, pandas' Python engine reads as the same
    user, item and time; it leaves out lines of white space, and so does this. After a Problem with the header nothing follows.
    """
    lines = read_lines(file, encoding)
    header = next(lines, (1, ""))
    problem = header if isinstance(header, Problem) else _header_problem(file, header[1], fields, separator)
    if problem:
        yield problem
        return
    names = [column.split(":")[0] for column in header[1].split(separator)]
    places = user, item, time = [names.index(field) for field in fields]
    empty = True
    for line in lines:
        if isinstance(line, Problem):
            empty = False
            yield line
            continue
        number, text = line
        cells = text.split(separator)
        if len(cells) == 1 and not text.strip():
            continue
        empty = False
        found = _shape_problem(text, cells, len(names), places, separator) or _cell_problem([cells[p] for p in places], fields)
        yield (
            Problem(*found[:1], file, number, *found[1:])
            if found
            else Interaction(number, cells[user], cells[item], float(cells[time]))
        )
    if empty:
        yield Problem("no interactions", file, None, "has no interactions", "add lines of users, items and times")


def _header_problem(file: Path, text: str, fields: Sequence[str], separator: str) -> Problem | None:
    def problem(kind: str, what: str, remedy: str) -> Problem:
        return Problem(kind, file, 1, what, remedy)

    if text.startswith("\ufeff"):
        return problem("byte-order mark", "begins with a byte-order mark", "save the file as UTF-8 without one")
    columns = text.split(separator)
    if found := _shape_problem(text, columns, len(columns), range(len(columns)), separator):
        return problem(*found)
    names = [column.split(":")[0] for column in columns]
    expected = separator.join(f"{field}:{kind}" for field, kind in zip(fields, _FIELD_TYPES))
    if missing := [field for field in fields if field not in names]:
        what = f"no column {', '.join(missing)}; it has {', '.join(names)}"
        return problem("missing column", what, f"the first line names them: {expected!r}")
    if twice := [field for field in fields if names.count(field) > 1]:
        return problem("repeated column", f"column {twice[0]} stands there twice", "keep one of them")
    if untyped := [column for column in columns if column.count(":") != 1 or column.split(":")[1] not in _TYPES]:
        remedy = f"write NAME:TYPE with a type of {', '.join(_TYPES)}"
        return problem("column without type", f"column {untyped[0]!r} has no type of RecBole's", remedy)
    for field, kind in zip(fields, _FIELD_TYPES):
        if f"{field}:{kind}" not in columns:
            return problem("wrong type of column", f"column {columns[names.index(field)]} must be {field}:{kind}", "rename it")
    return None


def _shape_problem(text: str, cells: list[str], width: int, places: Sequence[int], separator: str) -> tuple[str, str, str] | None:
    """(kind, what, remedy) where pandas' reader would not find the same cells in the line as a split at the separator."""
    if "\r" in text or "\0" in text:
        kind = "carriage return or null character"
        return kind, f"a {kind} inside the line", "remove it; lines end with a line feed"
    if '"' in text and not _same_with_quotes(text, cells, places, separator):
        remedy = "remove the quote: RecBole would read on to the next one, over cells and lines"
        return "double quote at the start of a cell", "a cell begins with a double quote", remedy
    if len(cells) != width:
        what = f"{len(cells)} cells where the header has {width} columns"
        return "wrong number of cells", what, "make it one cell a column, with the header's separator between them"
    limit = csv.field_size_limit()
    if len(text) > limit and max(map(len, cells)) > limit:
        return "cell too long", f"a cell of more than {limit} characters", "shorten it"
    return None


def _same_with_quotes(text: str, cells: list[str], places: Sequence[int], separator: str) -> bool:
    try:
        quoted = next(csv.reader([text], delimiter=separator, strict=True))
    except csv.Error:
        return False
    return len(quoted) == len(cells) and all(quoted[place] == cells[place] for place in places if place < len(cells))


def _cell_problem(cells: Sequence[str], fields: Sequence[str]) -> tuple[str, str, str] | None:
    for cell, field in zip(cells, fields):
        if cell in MISSING_WORDS:
            remedy = "an empty cell, or a word that pandas takes for one (NA, null, None, nan …): rename it or remove the line"
            return f"no {field}", f"no {field}", remedy
    try:
        finite = math.isfinite(float(cells[-1]))
    except ValueError:
        finite = False
    if finite:
        return None
    remedy = "write times as numbers, such as seconds since 1970 (`recbole-vlm2rec prepare table` converts dates)"
    return f"{fields[-1]} is not a number", f"{fields[-1]} {cells[-1][:40]!r} is not a number", remedy
