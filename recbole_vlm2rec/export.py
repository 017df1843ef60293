"""Embeds every item of a catalogue with a trained (or untouched) encoder and writes the export folder.

Imports torch, filelock, safetensors, trained, vlm and embeddings; no recbole. Vectors are kept batch by batch in
`<out>.parts` until all are there, so that a killed export goes on, and several processes (torchrun) share the work.
"""

from __future__ import annotations

import json
import os
import shutil
from logging import getLogger
from pathlib import Path

import torch
from filelock import FileLock
from safetensors.torch import load_file, save_file
from tqdm import tqdm

from recbole_vlm2rec import embeddings
from recbole_vlm2rec.embeddings import EmbeddingsError, ItemEmbeddings
from recbole_vlm2rec.trained import Trained, load_trained
from recbole_vlm2rec.vlm.fusion import ItemEncoder

ITEM_BATCH = 256


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
        feature_cache: folder of visual tokens (`vlm.features`); default `features/` beside the run folder, as in training.
    Killed or interrupted, the same call goes on. Under torchrun each process takes its share, and the last one to finish
    writes the folder. Returns the folder. Raises CheckpointError, CatalogError, BackboneError or EmbeddingsError with what is
    wrong and where.
    """
    embeddings.check_place(out)  # now, not after the work
    return export_items(load_trained(checkpoint, dataset, data_path, device), out, show_progress, feature_cache)


def export_items(trained: Trained, out: str | Path, show_progress: bool = True, feature_cache: str | Path | None = None) -> Path:
    """`export` of a checkpoint that is loaded already."""
    trained.keep_pictures(feature_cache, show_progress)
    parts = _Parts(Path(out), trained.manifest(), len(trained.catalog))
    parts.embed(trained.items, show_progress)
    parts.finish(list(trained.catalog.item_ids))
    return Path(out)


def kept_items(trained: Trained, show_progress: bool = True) -> ItemEmbeddings:
    """The catalogue's vectors from the export `items/` in the run folder, where they are put when they are first asked for.

    For a data set that the checkpoint was not trained on it is `items-<data set>/`. One that is damaged, or was made from other
    items or by another checkpoint, is replaced, with a line that says why. Raises EmbeddingsError where it cannot be written.
    """
    name = "items" if trained.dataset == trained.description["dataset"] else f"items-{trained.dataset}"
    folder = trained.run_folder / name
    kept, _ = _usable(trained, folder)
    if kept is not None:
        return kept
    embeddings.check_place(folder)
    try:
        with FileLock(folder.with_name(f".{name}.one-at-a-time")):  # who had to wait here finds the work done
            kept, reason = _usable(trained, folder)
            if kept is None:
                if folder.exists():
                    getLogger(__name__).warning(f"the items are embedded again: {reason}")
                kept = trained.own(embeddings.read(export_items(trained, folder, show_progress)))
    except OSError as error:
        raise EmbeddingsError(
            f"the items' vectors cannot be kept in {folder} ({error}): write them elsewhere (recbole-vlm2rec export "
            f"--checkpoint={trained.folder} --dataset={trained.dataset} --out=FOLDER) and name that folder with --export"
        ) from error
    return kept


def _usable(trained: Trained, folder: Path) -> tuple[ItemEmbeddings | None, str]:
    """The export that may be taken as it stands; else None, and why not."""
    try:
        return trained.own(embeddings.read(folder)), ""
    except EmbeddingsError as error:
        return None, str(error)


class _Parts:
    """The vectors of each batch of items, in a file of their own until the export is written.

    A batch's vectors depend on the batch alone, so who made them, and when, changes nothing. `about` is what the export will
    say of itself: parts of another one are removed. Each of WORLD_SIZE processes (torchrun sets it and RANK) takes every so
    many-th batch; the one that finds all batches there writes the export.
    """

    def __init__(self, out: Path, about: dict, count: int):
        self.out, self.about, self.count = out, about, count
        self.folder = out.with_name(out.name + ".parts")
        self.rank, self.world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
        self.folder.mkdir(parents=True, exist_ok=True)
        with self._lock():
            stated = self.folder / "about.json"
            text = json.dumps({**about, "batch": ITEM_BATCH}, indent=2, sort_keys=True)
            if not stated.is_file() or stated.read_text(encoding="utf-8") != text:
                for old in self.folder.glob("*.safetensors"):
                    old.unlink()
                stated.write_text(text, encoding="utf-8")

    def _lock(self) -> FileLock:
        return FileLock(self.out.with_name(f".{self.out.name}.lock"))

    def _file(self, start: int) -> Path:
        return self.folder / f"{start:09d}.safetensors"

    @torch.no_grad()
    def embed(self, items: ItemEncoder, show_progress: bool) -> None:
        """This process's batches that are not there yet."""
        mine = list(range(0, self.count, ITEM_BATCH))[self.rank :: self.world]
        left = [start for start in mine if not self._file(start).is_file()]
        with tqdm(total=self.count, desc="Embed items", unit="item", disable=not show_progress) as progress:
            progress.update(self.count - sum(self._size(start) for start in left))
            for start in left:
                vectors = items.encode([[item] for item in range(start, start + self._size(start))])
                tables = {kind: table.cpu().clone() for kind, table in vars(vectors).items() if table is not None}
                draft = self.folder / f".{start}.{os.getpid()}.draft"
                save_file(tables, draft)
                os.replace(draft, self._file(start))
                progress.update(self._size(start))

    def _size(self, start: int) -> int:
        return min(ITEM_BATCH, self.count - start)

    def finish(self, item_ids: list[str]) -> None:
        """Writes the export if every batch is there, and removes the parts; else the process that ends last will."""
        files = [self._file(start) for start in range(0, self.count, ITEM_BATCH)]
        with self._lock():
            if not all(file.is_file() for file in files):
                return
            parts = [load_file(file) for file in files]
            tables = {kind: torch.cat([part[kind] for part in parts]).numpy() for kind in parts[0]}
            embeddings.write(self.out, item_ids, manifest=self.about, **tables)
            shutil.rmtree(self.folder)
