"""Embeds every item of a catalogue with a trained (or untouched) encoder and writes the export folder.

Imports numpy, torch, filelock, safetensors, data.catalog, vlm and embeddings; no recbole. Vectors are kept batch by batch in
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
from pathlib import Path

import numpy as np
import torch
from filelock import FileLock
from safetensors.torch import load_file, save_file
from tqdm import tqdm

from recbole_vlm2rec import embeddings
from recbole_vlm2rec.data.catalog import Entry, catalog_hash, entries
from recbole_vlm2rec.vlm.backbone import native_bfloat16
from recbole_vlm2rec.vlm.checkpoint import ADAPTER, checkpoint_folder, load_encoder, read_description
from recbole_vlm2rec.vlm.encoder import VLMEncoder
from recbole_vlm2rec.vlm.fusion import ItemEncoder
from recbole_vlm2rec.vlm.prompts import IMAGE_INSTRUCTION, INTERLEAVED_INSTRUCTION, TEXT_INSTRUCTION

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
    description = read_description(checkpoint)
    name = dataset or description["dataset"]
    folder = Path(data_path) / name if data_path else _trained_folder(description, name)
    settings = description["encoder"]
    shop = _Shop(folder, name, "image" in settings["modalities"], show_progress)
    device = device or (f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if torch.cuda.is_available() else "cpu")
    dtype = torch.bfloat16 if native_bfloat16(device) else torch.float32
    encoder = load_encoder(checkpoint, device, dtype)
    if dtype == torch.float32:  # rounded to bfloat16, the sum would lose the smallest of what was learnt
        encoder.backbone.merge_lora()
    adapter = checkpoint_folder(checkpoint) / ADAPTER
    manifest = {
        "dataset": name,
        "catalog": shop.hash,
        "model": description["model"],
        "checkpoint": checkpoint_folder(checkpoint).resolve().parent.name,
        "trained_on": description["dataset"],
        "encoder": settings,
        "revision": getattr(encoder.backbone.model.config, "_commit_hash", None),  # of the hub; None for a local folder
        "adapter_sha256": hashlib.sha256(adapter.read_bytes()).hexdigest() if adapter.is_file() else None,
        "prompts": [TEXT_INSTRUCTION, IMAGE_INSTRUCTION] if settings["fusion"] == "external" else [INTERLEAVED_INSTRUCTION],
        "dtype": str(dtype).removeprefix("torch."),
    }
    if embeddings.find(out, manifest):  # of this command, ended before, or of a process that shares the work and was faster
        return Path(out)
    if shop.pictures and feature_cache != "none":
        beside = checkpoint_folder(checkpoint).resolve().parent.parent / "features"
        encoder.open_store(feature_cache or beside)
    parts = _Parts(Path(out), manifest, shop.count)
    with tqdm(total=shop.count, desc="Embed items", unit="item", disable=not show_progress) as progress:
        for start, some in shop.windows():
            parts.embed(encoder, start, some, progress)
    parts.finish(entry.item for entry in shop.entries())
    return Path(out)


class _Shop:
    """The catalogue, read anew whenever it is gone through: at no time are all of its items held.

    `count` and `hash` (`data.catalog.catalog_hash`) are found in a first pass, which raises CatalogError.
    """

    def __init__(self, folder: Path, name: str, pictures: bool, show_progress: bool):
        self.folder, self.name, self.pictures, self.count = folder, name, pictures, 0
        seen = tqdm(self.entries(), desc="Read the catalogue", unit="item", disable=not show_progress, leave=False)
        self.hash = catalog_hash(self._counted(seen))

    def entries(self) -> Iterator[Entry]:
        return entries(self.folder, self.name, self.pictures)

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
    def embed(self, encoder: VLMEncoder, first: int, window: list[Entry], progress: tqdm) -> None:
        """This process's batches of the window that are not there yet; `first` is the place of its first item."""
        starts = range(0, len(window), ITEM_BATCH)
        left = [start for start in starts if not self._file(first + start).is_file()]
        progress.update(len(window) - sum(len(window[start : start + ITEM_BATCH]) for start in left))
        if left and encoder.store is not None:
            # All processes share this, and only then part: a picture may stand in the batches of several.
            encoder.store.compute(dict.fromkeys(entry.image for start in left for entry in window[start : start + ITEM_BATCH]))
        settings = self.about["encoder"]
        for start in left:
            if (first + start) // ITEM_BATCH % self.world != self.rank:
                continue
            batch = window[start : start + ITEM_BATCH]
            titles, pictures = [entry.title for entry in batch], [entry.image for entry in batch]
            items = ItemEncoder(encoder, titles, pictures, settings["fusion"], settings["modalities"])
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


def _trained_folder(description: dict, name: str) -> Path:
    # RecBole's data_path already ends with the data set's own folder.
    return Path(description["data_path"]).parent / name
