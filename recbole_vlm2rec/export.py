"""Embeds every item of a catalogue with a trained (or untouched) encoder and writes the export folder.

Imports numpy, torch, filelock, safetensors, data.catalog, trained and embeddings; no recbole. Vectors are kept batch by batch in
`<out>.parts` until all are there, so that a killed export goes on, and several processes (torchrun) share the work. The catalogue
is read as it is needed and the export written as it comes: memory does not grow with the number of items.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator
from itertools import islice
from logging import getLogger
from pathlib import Path

import numpy as np
import torch
from filelock import FileLock
from safetensors.torch import load_file, save_file
from tqdm import tqdm

from recbole_vlm2rec import embeddings
from recbole_vlm2rec.data.catalog import Catalog, Entry, catalog_hash, entries
from recbole_vlm2rec.embeddings import EmbeddingsError, ItemEmbeddings
from recbole_vlm2rec.trained import Trained, open_trained

ITEM_BATCH = 256
WINDOW = 32  # batches whose pictures are looked at together


def export(
    checkpoint: str | Path,
    out: str | Path,
    dataset: str | None = None,
    data_path: str | Path | None = None,
    device: str | None = None,
    show_progress: bool = True,
    feature_cache: str | Path | None = None,
) -> Path:
    """Writes the export folder `out` for the items of `dataset` (default: the one the checkpoint was trained on).

    Args:
        checkpoint: a run folder or its `checkpoint/`.
        data_path: folder that holds the data set's folder; default as in training.
        device: torch device; default the GPU where there is one.
        feature_cache: folder of visual tokens (`vlm.features`); default `features/` beside the run folder, as in training;
            `none` keeps none.
    Killed or interrupted, the same call goes on. Under torchrun each process takes its share, and the last one to finish
    writes the folder. Returns the folder. Raises CheckpointError, CatalogError, BackboneError or EmbeddingsError with what is
    wrong and where.
    """
    embeddings.check_place(out)  # now, not after the work
    return export_items(open_trained(checkpoint, dataset, data_path, device), out, show_progress, feature_cache)


def export_items(trained: Trained, out: str | Path, show_progress: bool = True, feature_cache: str | Path | None = None) -> Path:
    """`export` of a checkpoint that is open already."""
    shop = _Shop(trained.item_file, trained.reads_pictures, show_progress)
    manifest = trained.manifest(shop.hash)
    if embeddings.find(out, manifest):  # of this command, ended before, or of a process that shares the work and was faster
        return Path(out)
    trained.open_store(feature_cache)
    parts = _Parts(Path(out), manifest, shop.count)
    with tqdm(total=shop.count, desc="Embed items", unit="item", disable=not show_progress) as progress:
        for start, some in shop.windows():
            parts.embed(trained, start, some, progress)
    parts.finish(entry.item for entry in shop.entries())
    return Path(out)


def kept_items(trained: Trained, catalog: Catalog, show_progress: bool = True) -> ItemEmbeddings:
    """The catalogue's vectors from the export `items/` in the run folder, where they are put when they are first asked for.

    For a data set that the checkpoint was not trained on it is `items-<data set>/`. One that is damaged, or was made from other
    items or by another checkpoint, is replaced, with a line that says why. Raises EmbeddingsError where it cannot be written.
    """
    name = "items" if trained.dataset == trained.description["dataset"] else f"items-{trained.dataset}"
    folder = trained.run_folder / name
    kept, _ = _usable(trained, folder, catalog)
    if kept is not None:
        return kept
    embeddings.check_place(folder)
    try:
        with FileLock(folder.with_name(f".{name}.one-at-a-time")):  # who had to wait here finds the work done
            kept, reason = _usable(trained, folder, catalog)
            if kept is None:
                if folder.exists():
                    getLogger(__name__).warning(f"the items are embedded again: {reason}")
                written = embeddings.read(export_items(trained, folder, show_progress))
                kept = trained.own(written, catalog.item_ids, catalog.hash)
    except OSError as error:
        raise EmbeddingsError(
            f"the items' vectors cannot be kept in {folder} ({error}): write them elsewhere (recbole-vlm2rec export "
            f"--checkpoint={trained.folder} --dataset={trained.dataset} --out=FOLDER) and name that folder with --export"
        ) from error
    return kept


def _usable(trained: Trained, folder: Path, catalog: Catalog) -> tuple[ItemEmbeddings | None, str]:
    """The export that may be taken as it stands; else None, and why not."""
    try:
        return trained.own(embeddings.read(folder), catalog.item_ids, catalog.hash), ""
    except EmbeddingsError as error:
        return None, str(error)


class _Shop:
    """The catalogue, read anew whenever it is gone through: at no time are all of its items held.

    `count` and `hash` (`data.catalog.catalog_hash`) are found in a first pass, which raises CatalogError.
    """

    def __init__(self, file: Path, pictures: bool, show_progress: bool):
        self.file, self.pictures, self.count = file, pictures, 0
        seen = tqdm(self.entries(), desc="Read the catalogue", unit="item", disable=not show_progress, leave=False)
        self.hash = catalog_hash(self._counted(seen))

    def entries(self) -> Iterator[Entry]:
        return entries(self.file, self.pictures)

    def _counted(self, found: Iterable[Entry]) -> Iterator[tuple]:
        for entry in found:
            self.count += 1
            yield entry[:3]

    def windows(self) -> Iterator[tuple[int, list[Entry]]]:
        """(place of the first, items): as many as are looked at together."""
        found, start = self.entries(), 0
        while window := list(islice(found, WINDOW * ITEM_BATCH)):
            yield start, window
            start += len(window)


class _Parts:
    """The vectors of each batch of items, in a file of their own until the export is written.

    A batch's vectors depend on the batch alone, so who made them, and when, changes nothing. `about` is what the export will
    say of itself; another one's parts are another folder. Each of WORLD_SIZE processes (torchrun sets it and RANK) takes every
    so many-th batch; the one that finds all batches there writes the export.
    """

    def __init__(self, out: Path, about: dict, count: int):
        self.out, self.about, self.count = out, about, count
        recipe = json.dumps({**about, "batch": ITEM_BATCH}, sort_keys=True)
        self.folder = out.with_name(out.name + ".parts") / hashlib.sha256(recipe.encode()).hexdigest()[:16]
        self.rank, self.world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))

    def _file(self, start: int) -> Path:
        return self.folder / f"{start:09d}.safetensors"

    @torch.no_grad()
    def embed(self, trained: Trained, first: int, window: list[Entry], progress: tqdm) -> None:
        """This process's batches of the window that are not there yet; `first` is the place of its first item."""
        starts = range(0, len(window), ITEM_BATCH)
        left = [start for start in starts if not self._file(first + start).is_file()]
        progress.update(len(window) - sum(len(window[start : start + ITEM_BATCH]) for start in left))
        if left and (store := trained.encoder.store) is not None:
            # All processes share this, and only then part: a picture may stand in the batches of several.
            store.compute(dict.fromkeys(entry.image for start in left for entry in window[start : start + ITEM_BATCH]))
        for start in left:
            if (first + start) // ITEM_BATCH % self.world != self.rank:
                continue
            batch = window[start : start + ITEM_BATCH]
            items = trained.items([entry.title for entry in batch], [entry.image for entry in batch])
            vectors = items.encode([[place] for place in range(len(batch))])
            tables = {kind: table.cpu().clone() for kind, table in vars(vectors).items() if table is not None}
            self.folder.mkdir(parents=True, exist_ok=True)  # a faster process may have finished, and removed it
            draft = self.folder / f".{first + start}.{os.getpid()}.draft"
            save_file(tables, draft)
            os.replace(draft, self._file(first + start))
            progress.update(len(batch))

    def finish(self, item_ids: Iterable[str]) -> None:
        """Writes the export if every batch is there, and removes the parts; else the process that ends last will."""
        files = [self._file(start) for start in range(0, self.count, ITEM_BATCH)]
        with FileLock(self.out.with_name(f".{self.out.name}.lock")):
            if all(file.is_file() for file in files):
                kinds = load_file(files[0])
                tables = {kind: _Table(files, kind, self.count, kinds[kind].shape[1]) for kind in kinds}
                embeddings.write(self.out, item_ids, manifest=self.about, **tables)
            elif not embeddings.find(self.out, self.about):
                return
            # Else a faster process has written it meanwhile.
            shutil.rmtree(self.folder, ignore_errors=True)
            with contextlib.suppress(OSError):  # parts of another export that was not finished stay
                self.folder.parent.rmdir()


class _Table:
    """One kind of vectors out of all parts, [count, d] in slices of rows."""

    def __init__(self, files: list[Path], kind: str, count: int, width: int):
        self.files, self.kind, self.shape = files, kind, (count, width)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: slice) -> np.ndarray:
        start, end, _ = rows.indices(len(self))
        first, last = start // ITEM_BATCH, -(-end // ITEM_BATCH)
        parts = [load_file(file)[self.kind].numpy() for file in self.files[first:last]]
        return np.concatenate(parts)[start - first * ITEM_BATCH : end - first * ITEM_BATCH]
