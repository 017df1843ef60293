"""Export folders: one embedding of every item of a data set, written once and verified whenever they are read.

Imports numpy and safetensors only.

    item_ids.txt             one token a line; line n belongs to row n
    embeddings.safetensors   fused and, where they exist apart, text and image; float32 [n, d]
    manifest.json            what the writer states (data set, model, ...) and under `content` format, sizes and hashes
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import struct
from array import array
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load

ITEM_IDS, TENSORS, MANIFEST = "item_ids.txt", "embeddings.safetensors", "manifest.json"
KINDS = ("text", "image", "fused")
FORMAT = 1
BLOCK = 4096  # rows written at once
AGAIN = "export again (recbole-vlm2rec export --checkpoint=RUN --out=FOLDER)"


class EmbeddingsError(ValueError):
    """An export is missing, damaged, or not what is asked for; the message says which and what to do."""


@dataclass(frozen=True)
class ItemEmbeddings:
    """Row n of `text`, `image` and `fused` (float32 [n, d]) belongs to `item_ids[n]`.

    `text` and `image` are None where the encoder reads one modality only, or both in one prompt.
    """

    item_ids: list[str]
    text: np.ndarray | None
    image: np.ndarray | None
    fused: np.ndarray
    manifest: dict
    folder: Path

    def require(self, dataset: str, catalog: str | None = None) -> None:
        """Raises EmbeddingsError unless it was made from this data set and, where both state one, from this catalogue (hash)."""
        if (made_from := self.manifest.get("dataset")) != dataset:
            raise EmbeddingsError(
                f"{self.folder} holds the items of data set {made_from!r}, but {dataset!r} is asked for: "
                f"export that one (recbole-vlm2rec export --checkpoint=RUN --dataset={dataset} --out=FOLDER)"
            )

        if catalog is not None and self.manifest.get("catalog", catalog) != catalog:
            raise EmbeddingsError(
                f"{self.folder} was made from other titles or pictures than those of {dataset!r} as it is now, "
                f"though the name is the same; {AGAIN}"
            )

    def rows(self, item_ids: Iterable[str]) -> ItemEmbeddings:
        """The rows of these items, in this order. Raises EmbeddingsError naming the first items that are missing."""
        wanted = [str(item) for item in item_ids]
        place = {item: row for row, item in enumerate(self.item_ids)}
        if missing := [item for item in wanted if item not in place]:
            raise EmbeddingsError(
                f"{self.folder / ITEM_IDS}: {len(missing)} of {len(wanted)} items are missing, the first are "
                f"{', '.join(map(repr, missing[:5]))}; has the data set grown since? Then {AGAIN}"
            )
        index = [place[item] for item in wanted]
        picked = {kind: None if (table := getattr(self, kind)) is None else table[index] for kind in KINDS}
        return replace(self, item_ids=wanted, **picked)


def write(
    folder: str | Path,
    item_ids: Iterable[str],
    text: np.ndarray | None = None,
    image: np.ndarray | None = None,
    *,
    fused: np.ndarray,
    manifest: Mapping,
) -> None:
    """Writes an export; `text`, `image`, `fused` are [n, d], `manifest` is JSON of the writer's own.

    A table may be anything that has a `shape` and gives slices of rows: no more than 4096 rows are held at once, and of the
    items eight bytes each. It is written beside its place and moved there, so that nobody meets half an export. An export that
    stands there is replaced. Raises EmbeddingsError for content that `read` would refuse, and where `check_place` does.
    """
    folder = Path(folder).resolve()  # a draft has its place beside the folder itself, not beside a link to it
    tables = {kind: table for kind, table in zip(KINDS, (text, image, fused), strict=True) if table is not None}
    check_place(folder)
    # The process id keeps two exports to one place from writing into each other's draft.
    draft, old = (folder.with_name(f"{folder.name}.{os.getpid()}.{what}") for what in ("draft", "old"))
    for remains in (draft, old):  # of a process of this number that was killed
        shutil.rmtree(remains, ignore_errors=True)
    draft.mkdir(parents=True)
    try:
        items = _Items(folder, lambda: _lines(draft / ITEM_IDS))
        lines = (f"{item}\n".encode() for item in items.checked(map(str, item_ids)))
        sha256 = {ITEM_IDS: _write_hashed(draft / ITEM_IDS, lines)}
        items.check_unique()
        _check_shapes(folder, items.count, {kind: ("float32", list(table.shape)) for kind, table in tables.items()})
        sha256[TENSORS] = _write_hashed(draft / TENSORS, _safetensors(tables, items))
        content = {"format": FORMAT, "items": items.count, "dimension": tables["fused"].shape[1], "sha256": sha256}
        (draft / MANIFEST).write_text(json.dumps({**manifest, "content": content}, indent=2) + "\n", encoding="utf-8")
        if folder.exists():
            os.replace(folder, old)
        os.replace(draft, folder)
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        if old.exists():
            os.replace(old, folder)
        raise
    shutil.rmtree(old, ignore_errors=True)


def find(folder: str | Path, manifest: Mapping) -> bool:
    """Whether a whole export with this manifest of the writer's stands in `folder`; its files are read, but not held."""
    folder = Path(folder)
    try:
        stated = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        content = stated.pop("content")
        same = stated == json.loads(json.dumps(manifest)) and content["format"] == FORMAT
        return same and all(_sha256(folder / name) == sha256 for name, sha256 in content["sha256"].items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def _sha256(file: Path) -> str:
    digest = hashlib.sha256()
    with open(file, "rb") as stream:
        while part := stream.read(1 << 20):
            digest.update(part)
    return digest.hexdigest()


def check_place(folder: str | Path) -> None:
    """Raises EmbeddingsError unless an export may be written there: nothing, an empty folder, or an export stands there."""
    folder = Path(folder)
    if not folder.exists():
        return
    foreign = sorted({file.name for file in folder.iterdir()} - {ITEM_IDS, TENSORS, MANIFEST}) if folder.is_dir() else ["a file"]
    if foreign:
        raise EmbeddingsError(
            f"{folder} exists and is no export ({', '.join(foreign[:3])}): it is left as it is; choose another folder"
        )


def read(folder: str | Path) -> ItemEmbeddings:
    """The export in `folder`.

    Raises EmbeddingsError when a file is missing or was changed since it was written, and for shapes that do not agree,
    values that are not finite, and items that are empty or stand there twice.
    """
    folder = Path(folder)
    contents = {name: _bytes(folder / name) for name in (MANIFEST, ITEM_IDS, TENSORS)}
    try:
        manifest = json.loads(contents[MANIFEST])
        hashes, version = manifest["content"]["sha256"], manifest["content"]["format"]
        stated = {name: hashes[name] for name in (ITEM_IDS, TENSORS)}
    except (ValueError, KeyError, TypeError) as error:
        what = f"{type(error).__name__}: {error}"
        raise EmbeddingsError(f"{folder / MANIFEST} is no manifest of an export ({what}); {AGAIN}") from error
    if version != FORMAT:
        raise EmbeddingsError(f"{folder / MANIFEST}: format {version}, but this version of the project reads {FORMAT}; {AGAIN}")
    for name, sha256 in stated.items():
        if hashlib.sha256(contents[name]).hexdigest() != sha256:
            raise EmbeddingsError(f"{folder / name} is not the file that {MANIFEST} describes (SHA-256 differs); {AGAIN}")
    try:
        tables = load(contents[TENSORS])
        # Not splitlines(): a token may hold characters that it takes for line ends.
        item_ids = contents[ITEM_IDS].decode().split("\n")[:-1]
    except (SafetensorError, UnicodeDecodeError) as error:
        raise EmbeddingsError(f"{folder} cannot be read ({error}); {AGAIN}") from error
    items = _Items(folder, lambda: item_ids)
    deque(items.checked(item_ids), maxlen=0)
    items.check_unique()
    _check_shapes(folder, items.count, {kind: (str(table.dtype), list(table.shape)) for kind, table in tables.items()})
    for kind, table in tables.items():
        deque(items.finite(kind, [table]), maxlen=0)
    return ItemEmbeddings(item_ids, tables.get("text"), tables.get("image"), tables["fused"], manifest, folder)


def _bytes(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise EmbeddingsError(
            f"{file} cannot be read ({error.strerror}): {file.parent} is no complete export; {AGAIN}"
        ) from error


def _write_hashed(file: Path, parts: Iterable[bytes]) -> str:
    """Writes the parts one after another; returns their SHA-256."""
    digest = hashlib.sha256()
    with open(file, "wb") as stream:
        for part in parts:
            stream.write(part)
            digest.update(part)
    return digest.hexdigest()


def _lines(file: Path) -> Iterator[str]:
    """Not universal newlines, not splitlines(): a token may hold characters that these take for line ends."""
    with open(file, encoding="utf-8", newline="\n") as stream:
        for line in stream:
            yield line.removesuffix("\n")


def _safetensors(tables: Mapping[str, np.ndarray], items: _Items) -> Iterator[bytes]:
    """The bytes that `safetensors.numpy.save` makes of the tables as float32, some rows at a time."""
    header, start = {}, 0
    for kind in sorted(tables):
        rows, width = tables[kind].shape
        end = start + 4 * rows * width
        header[kind] = {"dtype": "F32", "shape": [rows, width], "data_offsets": [start, end]}
        start = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    yield struct.pack("<Q", len(text)) + text
    for kind in sorted(tables):
        blocks = (tables[kind][row : row + BLOCK] for row in range(0, len(tables[kind]), BLOCK))
        for block in items.finite(kind, (np.ascontiguousarray(block, dtype="<f4") for block in blocks)):
            yield block.tobytes()


class _Items:
    """What holds for every export, on its way out as on its way in, told as it passes.

    `again` gives the tokens once more, for a message. Of each item eight bytes are held.
    """

    def __init__(self, folder: Path, again: Callable[[], Iterable[str]]):
        self.folder, self.again, self.count = folder, again, 0
        self._met = array("q")

    def checked(self, item_ids: Iterable[str]) -> Iterator[str]:
        """The same tokens. Raises EmbeddingsError for an empty one and one with a line break."""
        for item in item_ids:
            self.count += 1
            if not item or "\n" in item or "\r" in item:
                raise self._error(self.count, f"item {item!r} is empty or holds a line break")
            self._met.append(hash(item))
            yield item

    def check_unique(self) -> None:
        """Raises EmbeddingsError unless each token passed once, and at least one did."""
        if not self.count:
            raise EmbeddingsError(f"{self.folder / ITEM_IDS}: no items")
        hashes = np.frombuffer(self._met, dtype=np.int64)
        hashes.sort()  # in place: these are all that is held of the items
        suspects = set(hashes[1:][hashes[1:] == hashes[:-1]].tolist())
        lines: dict[str, int] = {}
        for line, item in enumerate(self.again() if suspects else (), start=1):
            if hash(item) in suspects and lines.setdefault(item, line) != line:
                raise self._error(line, f"item {item!r} stands on line {lines[item]} already; every item has one row")

    def finite(self, kind: str, blocks: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        """The same rows. Raises EmbeddingsError after the last one if some hold NaN or infinite values."""
        bad, rows = [], 0
        for block in blocks:
            bad += (rows + np.flatnonzero(~np.isfinite(block).all(axis=1))).tolist()
            rows += len(block)
            yield block
        if bad:
            first = next(islice(self.again(), bad[0], None))
            where = f"{self.folder / TENSORS}, {kind}"
            raise EmbeddingsError(f"{where}: {len(bad)} rows hold NaN or infinite values, the first is item {first!r}")

    def _error(self, line: int, what: str) -> EmbeddingsError:
        return EmbeddingsError(f"{self.folder / ITEM_IDS}, line {line}: {what}")


def _check_shapes(folder: Path, count: int, tables: Mapping[str, tuple[str, list[int]]]) -> None:
    """Raises EmbeddingsError unless the tables (type and shape by name) are those of an export of `count` items."""
    if "fused" not in tables or set(tables) - set(KINDS):
        names = ", ".join(sorted(tables)) or "nothing"
        raise EmbeddingsError(f"{folder / TENSORS} holds {names}: fused is needed, text and image may stand")
    for kind, (dtype, shape) in tables.items():
        where = f"{folder / TENSORS}, {kind}"
        if dtype != "float32" or len(shape) != 2 or shape[1] != tables["fused"][1][-1]:
            raise EmbeddingsError(f"{where}: {dtype} {shape}, where float32 [items, d] is due, d the same for all")
        if shape[0] != count:
            raise EmbeddingsError(f"{where}: {shape[0]} rows for {count} items")
