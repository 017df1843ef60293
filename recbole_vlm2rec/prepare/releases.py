"""What differs between the releases of the Amazon reviews: places, names, and how a line becomes a review or an item.

May import the standard library and build (for Item). Formats: jmcauley.ucsd.edu/data/amazon (2014), cseweb.ucsd.edu/~jmcauley/
datasets/amazon_v2 (2018), amazon-reviews-2023.github.io (2023).
"""

from __future__ import annotations

import ast
import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from recbole_vlm2rec.prepare.build import Item

# Pictures that say there is none.
_NO_PICTURE = re.compile(r"no-img|no_image|no-image|transparent-pixel", re.IGNORECASE)

# Characters of the longest Python literal that is parsed. A syntax tree takes up to half a kilobyte a character, and in Python
# 3.10 a chain such as `1+1+1+…` of more than 200,000 characters overflows the stack, which ends the process without a message.
_LONGEST_LITERAL = 100_000


@dataclass(frozen=True)
class Release:
    """`reviews`, `metadata`: URLs with `{category}`. `categories`: by the short names that the paper uses.

    `user`, `item`, `time`, `rating`: fields of a review; `ticks` of its time are a second. `metadata_item`: field of an item.
    `core`: whether the reviews are the 5-core already.
    """

    reviews: str
    metadata: str
    categories: Mapping[str, str]
    user: str
    item: str
    time: str
    rating: str
    ticks: int
    metadata_item: str
    core: bool
    picture: Callable[[Mapping[str, Any]], object]


def _first(value: object) -> object:
    return value[0] if isinstance(value, list) and value else value


def _picture_2018(line: Mapping[str, Any]) -> object:
    for key in ("imageURLHighRes", "imageURL", "image", "imUrl"):
        if picture := _first(line.get(key)):
            return picture
    return None


def _picture_2023(line: Mapping[str, Any]) -> object:
    images = line.get("images")
    images = [image for image in images if isinstance(image, dict)] if isinstance(images, list) else []
    for image in sorted(images, key=lambda image: image.get("variant") != "MAIN"):  # the others in the file's order
        for size in ("large", "hi_res", "thumb"):
            if image.get(size):
                return image[size]
    return None


# Not https: its handshake is reported to be reset now and then, while http answers.
_SNAP = "http://snap.stanford.edu/data/amazon/productGraph/categoryFiles"
_UCSD = "https://mcauleylab.ucsd.edu/public_datasets/data"
_SHARED = {"Toys": "Toys_and_Games", "Clothing": "Clothing_Shoes_and_Jewelry", "Sports": "Sports_and_Outdoors"}
RELEASES = {
    "2014": Release(
        f"{_SNAP}/reviews_{{category}}_5.json.gz", f"{_SNAP}/meta_{{category}}.json.gz", {"Beauty": "Beauty", **_SHARED},
        "reviewerID", "asin", "unixReviewTime", "overall", 1, "asin", True, lambda line: line.get("imUrl"),
    ),
    "2018": Release(
        f"{_UCSD}/amazon_v2/categoryFilesSmall/{{category}}_5.json.gz", f"{_UCSD}/amazon_v2/metaFiles2/meta_{{category}}.json.gz",
        {"Beauty": "All_Beauty", **_SHARED},
        "reviewerID", "asin", "unixReviewTime", "overall", 1, "asin", True, _picture_2018,
    ),
    "2023": Release(
        f"{_UCSD}/amazon_2023/raw/review_categories/{{category}}.jsonl.gz",
        f"{_UCSD}/amazon_2023/raw/meta_categories/meta_{{category}}.jsonl.gz",
        {"Beauty": "Beauty_and_Personal_Care", **_SHARED},
        "user_id", "parent_asin", "timestamp", "rating", 1000, "parent_asin", False, _picture_2023,
    ),
}  # fmt: skip

PAPER = {
    "Toys_and_Games": {"users": 15921, "items": 8383, "interactions": 108336},
    "Beauty": {"users": 19757, "items": 9311, "interactions": 137300},
    "Clothing_Shoes_and_Jewelry": {"users": 30757, "items": 17087, "interactions": 196614},
    "Sports_and_Outdoors": {"users": 32127, "items": 14820, "interactions": 222591},
}
"""Table 3 of the paper, for the release of 2014."""


class LineError(ValueError):
    """A line that cannot be read; the text is the reason."""


def parse(line: bytes) -> dict[str, Any]:
    """One object: JSON, or a Python literal as in the metadata of 2014 (read by ast.literal_eval; nothing is executed)."""
    try:
        text = line.decode("utf-8")
    except UnicodeDecodeError as error:
        raise LineError("not UTF-8") from error
    if text.startswith("{'"):
        value = _literal(text)
    else:
        try:
            value = json.loads(text)
        except json.JSONDecodeError as error:
            value = _literal(text, f" ({error.msg})")
        except _UNREADABLE as error:
            raise LineError("neither JSON nor a Python literal") from error
    if not isinstance(value, dict):
        raise LineError("no object with fields")
    return value


def _literal(text: str, otherwise: str = "") -> object:
    if len(text) > _LONGEST_LITERAL:
        raise LineError(f"neither JSON nor a Python literal of at most {_LONGEST_LITERAL} characters{otherwise}")
    try:
        return ast.literal_eval(text)
    except _UNREADABLE as error:
        raise LineError(f"neither JSON nor a Python literal{otherwise}") from error


# What the parsers answer to text that is none, that is nested too deeply, or that wants to be executed.
_UNREADABLE = (ValueError, SyntaxError, TypeError, RecursionError, MemoryError)


def review(release: Release, line: Mapping[str, Any]) -> tuple[str, str, float, float | None]:
    """(user, item, seconds, rating or None). Raises LineError naming the field that is missing or of another kind."""
    user, item = _text(line, release.user), _text(line, release.item)
    time = _number(line.get(release.time))
    if time is None:
        raise LineError(f"no number as {release.time}")
    return user, item, time / release.ticks, _number(line.get(release.rating))


def item(release: Release, line: Mapping[str, Any]) -> tuple[str, Item]:
    """(item token, title and picture); a title or picture that is no text, and a stand-in for one, counts as none."""
    title, picture = line.get("title"), release.picture(line)
    title = title if isinstance(title, str) and "var aPageStart" not in title else ""  # 2018: a page's script as title
    picture = picture.strip() if isinstance(picture, str) and not _NO_PICTURE.search(picture) else ""
    return _text(line, release.metadata_item), Item(title, picture or None)


def _text(line: Mapping[str, Any], field: str) -> str:
    value = line.get(field)
    if not isinstance(value, str) or not value:
        raise LineError(f"no {field}")
    return value


def _number(value: object) -> float | None:
    """None for what is no number, or none that float64 can hold."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None
