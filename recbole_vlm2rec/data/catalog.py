"""The items of a data set: token, title and picture, read from `<name>.item` as the data contract says.

Imports numpy, pillow and data.atomic_files only: no quoting, no guessing of missing values, the same everywhere.
"""

from __future__ import annotations

import hashlib
import struct
from array import array
from collections.abc import Iterable, Iterator
from functools import cached_property, lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from recbole_vlm2rec.data.atomic_files import Interaction, Problem, read_interactions, read_lines

COLUMNS = ("item_id", "title", "image_path")
# Pillow's decoders answer damaged files with any of these.
UNREADABLE = (
    *(OSError, ValueError, SyntaxError, Image.DecompressionBombError, EOFError, LookupError, ArithmeticError, MemoryError),
    *(TypeError, struct.error, RuntimeError, AttributeError),
)


class CatalogError(ValueError):
    """`.item` or a picture breaks the contract; the message names file, line and item, and what to do."""


class Entry(NamedTuple):
    """A line of `.item` that keeps the contract. image: None where pictures were not asked for. line: from 1."""

    item: str
    title: str
    image: Path | None
    line: int


def read_entries(file: Path, pictures: bool = True) -> Iterator[Entry | Problem]:
    """The lines of a `.item` file: an Entry for each that keeps the contract, Problems for each that does not.

    Whether a picture can be read is not looked at; without `pictures` there need not even be a column of them. After a Problem
    with the header nothing follows. An item's second line comes as an Entry too, and at the end as a Problem: what is held of
    an item until then is eight bytes.
    """
    folder = file.parent
    lines = read_lines(file)
    header = next(lines, (1, ""))
    if isinstance(header, Problem):
        yield header
        return
    names = [column.split(":")[0] for column in header[1].removeprefix("\ufeff").split("\t")]
    needed = COLUMNS if pictures else COLUMNS[:2]
    if missing := [column for column in needed if column not in names]:
        what = f"no column {', '.join(missing)}; it has {', '.join(names)}"
        remedy = (
            "a title and a picture are needed (item_id:token, title:token_seq, image_path:token, with tabs between), with "
            "--modalities=text a title alone"
        )
        yield Problem("missing column", file, 1, what, remedy)
        return
    places = [names.index(column) for column in needed]
    root = folder.resolve()
    met = array("q")  # a hash of each item
    for line in lines:
        if isinstance(line, Problem):
            yield line
            continue
        number, text = line
        cells = text.split("\t")
        if len(cells) != len(names):
            what = f"{len(cells)} cells where the header has {len(names)} columns"
            yield Problem("wrong number of cells", file, number, what, "make it one cell a column, with tabs between them")
            continue
        item, title, *picture = (cells[place] for place in places)
        if not item:
            yield Problem("empty item_id", file, number, "empty item_id", "give the item its token or remove the line")
            continue
        met.append(hash(item))
        sound = True
        if not title.strip():
            sound = False
            remedy = "give it one or drop the item and its interactions"
            yield Problem("empty title", file, number, "empty title", remedy, item)
        if pictures and (found := _path_problem(root, folder, picture[0])):
            sound = False
            yield Problem(*found[:1], file, number, *found[1:], item)
        if sound:
            yield Entry(item, title, folder / picture[0] if pictures else None, number)
    yield from _second_lines(file, met, len(names), places[0])


def _second_lines(file: Path, met: array, columns: int, place: int) -> Iterator[Problem]:
    """A Problem for each further line of an item that has one already; `met` are the hashes of all items."""
    hashes = np.frombuffer(met, dtype=np.int64)
    hashes.sort()  # in place: these are all that is held of the items
    suspects = set(hashes[1:][hashes[1:] == hashes[:-1]].tolist())
    if not suspects:
        return
    numbers: dict[str, int] = {}
    for number, text in (line for line in read_lines(file) if not isinstance(line, Problem)):
        cells = text.split("\t")
        if number == 1 or len(cells) != columns or hash(cells[place]) not in suspects:
            continue
        if (item := cells[place]) in numbers:
            what = f"it stands on line {numbers[item]} already"
            yield Problem("item twice", file, number, what, "keep one of them", item)
        numbers.setdefault(item, number)


def entries(file: Path, pictures: bool = True) -> Iterator[Entry]:
    """`read_entries` of a file that keeps the contract. Raises CatalogError for the first Problem, at the latest at the end."""
    for entry in read_entries(file, pictures):
        if isinstance(entry, Problem):
            raise CatalogError(str(entry))
        yield entry


def catalog_hash(items: Iterable[tuple[str, str, Path | None]]) -> str:
    """SHA-256 over tokens, titles and the bytes of all pictures (where they were asked for), in order."""
    digest = hashlib.sha256()
    hash_of = lru_cache(maxsize=1 << 12)(lambda image: hashlib.sha256(image.read_bytes()).hexdigest())
    for item, title, image in items:
        digest.update(f"{item}\t{title}\t{hash_of(image) if image else ''}\n".encode())
    return digest.hexdigest()


class Catalog:
    """Items in the file's order.

    Args:
        folder: the data set's folder, which image paths are relative to.
        file: the `.item` file.
        entries: its lines, no item twice.
    """

    def __init__(self, folder: Path, file: Path, entries: Iterable[Entry]):
        self.folder, self.file = folder, file
        self._entries = {entry.item: entry for entry in entries}
        self.item_ids: list[str] = list(self._entries)

    @classmethod
    def read(cls, folder: str | Path, name: str, pictures: bool = True) -> Catalog:
        """Reads `<folder>/<name>.item`, the items of a data set; the rest as in `read_file`."""
        return cls.read_file(Path(folder) / f"{name}.item", pictures)

    @classmethod
    def read_file(cls, file: str | Path, pictures: bool = True) -> Catalog:
        """Reads one file: item_id:token, title:token_seq, image_path:token; further columns may stand.

        Image paths are relative to the file's folder. Without `pictures` image_path is not looked at, and need not be there: for
        models that read titles alone.
        Raises CatalogError for a missing file or column, a ragged line, an empty or duplicate item, an empty title, a picture
        that is missing or lies outside the folder. Whether pictures can be read is `verify_images`.
        """
        file = Path(file)
        return cls(file.parent, file, list(entries(file, pictures)))

    def __len__(self) -> int:
        return len(self.item_ids)

    def __contains__(self, item_id: str) -> bool:
        return item_id in self._entries

    def title(self, item_id: str) -> str:
        return self._entries[item_id].title

    def image(self, item_id: str) -> Path | None:
        return self._entries[item_id].image

    def line(self, item_id: str) -> int:
        """Where in the file the item stands, from 1."""
        return self._entries[item_id].line

    def check_items(self, item_ids: Iterable[str]) -> None:
        """Raises CatalogError unless each of these items (of `.inter`) stands in the catalogue."""
        absent = [item for item in item_ids if item not in self._entries]
        if absent:
            inter = self.file.with_suffix(".inter")
            raise CatalogError(
                f"{self.file}: {len(absent)} items of {inter.name} are missing, the first are {', '.join(map(repr, absent[:5]))}"
                f"{_first_line(inter, absent[0])}; add their lines, or drop their interactions"
            )

    def verify_images(self) -> None:
        """Looks into every picture's header, not at its pixels: well below a millisecond a picture.

        Raises CatalogError naming the item of the first picture that is none.
        """
        for entry in self._entries.values():
            if entry.image is None:
                continue
            try:
                with Image.open(entry.image) as picture:
                    picture.verify()
            except UNREADABLE as error:
                raise CatalogError(str(picture_problem(self.file, entry, error))) from error

    @cached_property
    def hash(self) -> str:
        """`catalog_hash` of the items."""
        return catalog_hash(entry[:3] for entry in self._entries.values())


def picture_problem(file: Path, entry: Entry, error: BaseException | str) -> Problem:
    """That the picture of a line of `file` is none, or is damaged."""
    what = f"picture {entry.image} cannot be read ({error})"
    return Problem("unreadable picture", file, entry.line, what, "replace it, or drop the item and its interactions", entry.item)


def _first_line(inter: Path, item: str) -> str:
    """Where `.inter` first names the item, for a message; empty where the file does not say."""
    rows = (row for row in read_interactions(inter) if isinstance(row, Interaction) and row.item == item)
    first = next(rows, None)
    return "" if first is None else f" ({item!r} first on line {first.line} of {inter.name})"


def _path_problem(root: Path, folder: Path, picture: str) -> tuple[str, str, str] | None:
    """(kind, what, remedy) unless the picture is a file inside the data folder."""
    path = folder / picture
    try:
        inside, exists = path.resolve().is_relative_to(root), path.is_file()
    except (OSError, ValueError, RuntimeError):  # a name too long, with a null byte, or links in a circle
        inside = exists = False
    if not picture or not inside:
        what = f"image_path {picture!r} must name a file inside {folder}"
        return "image_path outside the folder", what, "put the picture there, or drop the item and its interactions"
    if not exists:
        return "missing picture", f"picture {path} does not exist", "add it or drop the item and its interactions"
    return None
