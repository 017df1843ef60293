"""The items of a data set: token, title and picture, read from `<name>.item` as the data contract says.

Imports pillow and the standard library only: no quoting, no guessing of missing values, the same reading everywhere.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from functools import cached_property
from pathlib import Path

from PIL import Image

COLUMNS = ("item_id", "title", "image_path")


class CatalogError(ValueError):
    """`.item` or a picture breaks the contract; the message names file, line and item, and what to do."""


class Catalog:
    """Items in the file's order.

    Args:
        folder: the data set's folder, which image paths are relative to.
        file: the `.item` file.
        titles, images, lines: by item token; a line is the number of the item's line in the file, from 1.
    """

    def __init__(self, folder: Path, file: Path, titles: dict[str, str], images: dict[str, Path], lines: dict[str, int]):
        self.folder, self.file = folder, file
        self._titles, self._images, self._lines = titles, images, lines
        self.item_ids: list[str] = list(titles)

    @classmethod
    def read(cls, folder: str | Path, name: str) -> Catalog:
        """Reads `<folder>/<name>.item`: item_id:token, title:token_seq, image_path:token; further columns may stand.

        Raises CatalogError for a missing file or column, a ragged line, an empty or duplicate item, an empty title, a picture
        that is missing or lies outside the folder. Whether pictures can be read is `verify_images`.
        """
        folder = Path(folder)
        file = folder / f"{name}.item"
        lines = _lines(file)
        header = next(lines, (1, ""))[1].split("\t")
        names = [column.split(":")[0] for column in header]
        if missing := [column for column in COLUMNS if column not in names]:
            raise CatalogError(
                f"{file}, line 1: no column {', '.join(missing)}; it has {', '.join(names)}. A title and a picture are needed"
            )
        places = [names.index(column) for column in COLUMNS]
        root = folder.resolve()
        titles: dict[str, str] = {}
        images: dict[str, Path] = {}
        numbers: dict[str, int] = {}
        for number, line in lines:
            cells = line.split("\t")
            if len(cells) != len(names):
                raise CatalogError(f"{file}, line {number}: {len(cells)} cells where the header has {len(names)} columns")
            item, title, picture = (cells[place] for place in places)
            where = f"{file}, line {number}, item {item!r}"
            if not item:
                raise CatalogError(f"{file}, line {number}: empty item_id")
            if item in titles:
                raise CatalogError(f"{where}: it stands on line {numbers[item]} already; keep one of them")
            if not title.strip():
                raise CatalogError(f"{where}: empty title; give it one or drop the item and its interactions")
            titles[item], images[item], numbers[item] = title, _inside(root, folder, picture, where), number
        return cls(folder, file, titles, images, numbers)

    def __len__(self) -> int:
        return len(self.item_ids)

    def __contains__(self, item_id: str) -> bool:
        return item_id in self._titles

    def title(self, item_id: str) -> str:
        return self._titles[item_id]

    def image(self, item_id: str) -> Path:
        return self._images[item_id]

    def check_items(self, item_ids: Iterable[str]) -> None:
        """Raises CatalogError unless each of these items (of `.inter`) stands in the catalogue."""
        absent = [item for item in item_ids if item not in self._titles]
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
        for item, path in self._images.items():
            try:
                with Image.open(path) as picture:
                    picture.verify()
            except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
                raise CatalogError(
                    f"{self.file}, line {self._lines[item]}, item {item!r}: picture {path} cannot be read ({error}); "
                    f"replace it, or drop the item and its interactions"
                ) from error

    @cached_property
    def hash(self) -> str:
        """SHA-256 over tokens, titles and the bytes of all pictures, in order."""
        digest = hashlib.sha256()
        for item in self.item_ids:
            picture = hashlib.sha256(self._images[item].read_bytes()).hexdigest()
            digest.update(f"{item}\t{self._titles[item]}\t{picture}\n".encode())
        return digest.hexdigest()


def _first_line(inter: Path, item: str) -> str:
    """Where `.inter` first names the item, for a message; empty where the file does not say."""
    if not inter.is_file():
        return ""
    lines = _lines(inter)
    names = [column.split(":")[0] for column in next(lines)[1].split("\t")]
    place = names.index("item_id") if "item_id" in names else None
    found = (number for number, line in lines if place is not None and line.split("\t")[place : place + 1] == [item])
    number = next(found, None)
    return "" if number is None else f" ({item!r} first on line {number} of {inter.name})"


def _lines(file: Path) -> Iterator[tuple[int, str]]:
    """(line number, text) of a UTF-8 file, with or without byte-order mark and carriage returns; a last empty line is none."""
    try:
        # Not read_text(): it would take a carriage return inside a title for a line end.
        content = file.read_bytes().decode("utf-8-sig")
    except FileNotFoundError as error:
        raise CatalogError(f"{file} does not exist: titles and pictures are read from it") from error
    except UnicodeDecodeError as error:
        line = file.read_bytes()[: error.start].count(b"\n") + 1
        raise CatalogError(f"{file}, line {line}: not UTF-8; convert the file (iconv -t utf-8)") from error
    # Not splitlines(): a title may hold characters that it takes for line ends.
    for number, line in enumerate(content.removesuffix("\n").split("\n"), start=1):
        yield number, line.removesuffix("\r")


def _inside(root: Path, folder: Path, picture: str, where: str) -> Path:
    """The picture's path, once it is a file inside the data folder."""
    path = folder / picture
    try:
        inside, exists = path.resolve().is_relative_to(root), path.is_file()
    except (OSError, ValueError, RuntimeError):  # a name too long, with a null byte, or links in a circle
        inside = exists = False
    if not picture or not inside:
        raise CatalogError(f"{where}: image_path {picture!r} must name a file inside {folder}")
    if not exists:
        raise CatalogError(f"{where}: picture {path} does not exist; add it or drop the item and its interactions")
    return path
