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
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

ITEM_IDS, TENSORS, MANIFEST = "item_ids.txt", "embeddings.safetensors", "manifest.json"
KINDS = ("text", "image", "fused")
FORMAT = 1
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
    item_ids: Sequence[str],
    text: np.ndarray | None = None,
    image: np.ndarray | None = None,
    *,
    fused: np.ndarray,
    manifest: Mapping,
) -> None:
    """Writes an export; `text`, `image`, `fused` are [n, d], `manifest` is JSON of the writer's own.

    It is written beside its place and moved there, so that nobody meets half an export. An export that stands there is replaced.
    Raises EmbeddingsError for content that `read` would refuse, and where `check_place` does.
    """
    folder = Path(folder).resolve()  # a draft has its place beside the folder itself, not beside a link to it
    item_ids = [str(item) for item in item_ids]
    tables = {kind: table for kind, table in zip(KINDS, (text, image, fused), strict=True) if table is not None}
    tables = {kind: np.ascontiguousarray(table, dtype=np.float32) for kind, table in tables.items()}
    _check(folder, item_ids, tables)
    check_place(folder)
    contents = {ITEM_IDS: "".join(f"{item}\n" for item in item_ids).encode(), TENSORS: save(tables)}
    content = {
        "format": FORMAT,
        "items": len(item_ids),
        "dimension": tables["fused"].shape[1],
        "sha256": {name: hashlib.sha256(data).hexdigest() for name, data in contents.items()},
    }
    contents[MANIFEST] = (json.dumps({**manifest, "content": content}, indent=2) + "\n").encode()
    # The process id keeps two exports to one place from writing into each other's draft.
    draft, old = (folder.with_name(f"{folder.name}.{os.getpid()}.{what}") for what in ("draft", "old"))
    for remains in (draft, old):  # of a process of this number that was killed
        shutil.rmtree(remains, ignore_errors=True)
    draft.mkdir(parents=True)
    try:
        for name, data in contents.items():
            (draft / name).write_bytes(data)
        if folder.exists():
            os.replace(folder, old)
        os.replace(draft, folder)
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        if old.exists():
            os.replace(old, folder)
        raise
    shutil.rmtree(old, ignore_errors=True)


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
    _check(folder, item_ids, tables)
    return ItemEmbeddings(item_ids, tables.get("text"), tables.get("image"), tables["fused"], manifest, folder)


def _bytes(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise EmbeddingsError(
            f"{file} cannot be read ({error.strerror}): {file.parent} is no complete export; {AGAIN}"
        ) from error


def _check(folder: Path, item_ids: list[str], tables: Mapping[str, np.ndarray]) -> None:
    """What holds for every export, on its way out as on its way in."""
    if not item_ids:
        raise EmbeddingsError(f"{folder / ITEM_IDS}: no items")
    seen: dict[str, int] = {}
    for row, item in enumerate(item_ids):
        where = f"{folder / ITEM_IDS}, line {row + 1}"
        if not item or "\n" in item or "\r" in item:
            raise EmbeddingsError(f"{where}: item {item!r} is empty or holds a line break")
        if item in seen:
            raise EmbeddingsError(f"{where}: item {item!r} stands on line {seen[item] + 1} already; every item has one row")
        seen[item] = row
    if "fused" not in tables or set(tables) - set(KINDS):
        names = ", ".join(sorted(tables)) or "nothing"
        raise EmbeddingsError(f"{folder / TENSORS} holds {names}: fused is needed, text and image may stand")
    for kind, table in tables.items():
        where = f"{folder / TENSORS}, {kind}"
        if table.dtype != np.float32 or table.ndim != 2 or table.shape[1] != tables["fused"].shape[-1]:
            shape = f"{table.dtype} {list(table.shape)}"
            raise EmbeddingsError(f"{where}: {shape}, where float32 [items, d] is due, d the same for all")
        if len(table) != len(item_ids):
            raise EmbeddingsError(f"{where}: {len(table)} rows for {len(item_ids)} items")
        if len(bad := np.flatnonzero(~np.isfinite(table).all(axis=1))):
            raise EmbeddingsError(f"{where}: {len(bad)} rows hold NaN or infinite values, the first is item {item_ids[bad[0]]!r}")
