"""A trained VLM2Rec put together again: the checkpoint's encoder over the titles and pictures of a data set.

Imports torch, data.catalog, vlm and embeddings; no recbole. Export and recommendation both start here.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

import torch

from recbole_vlm2rec.data.catalog import Catalog
from recbole_vlm2rec.embeddings import EmbeddingsError, ItemEmbeddings
from recbole_vlm2rec.vlm.backbone import native_bfloat16
from recbole_vlm2rec.vlm.checkpoint import ADAPTER, checkpoint_folder, load_encoder, read_description
from recbole_vlm2rec.vlm.fusion import ItemEncoder
from recbole_vlm2rec.vlm.prompts import IMAGE_INSTRUCTION, INTERLEAVED_INSTRUCTION, TEXT_INSTRUCTION

# What decides on an item's vector besides its title and picture; the arithmetic (dtype) only rounds it.
_ORIGIN = ("encoder", "revision", "adapter_sha256", "prompts")


@dataclass(frozen=True)
class Trained:
    """folder: the checkpoint's own. items: encodes item numbers, which are places in `catalog.item_ids`."""

    folder: Path
    description: dict
    dataset: str
    catalog: Catalog
    items: ItemEncoder
    dtype: torch.dtype

    @property
    def run_folder(self) -> Path:
        return self.folder.resolve().parent

    def keep_pictures(self, feature_cache: str | Path | None = None, show_progress: bool = False) -> None:
        """Visual tokens of the whole catalogue, from `feature_cache` or into it; default `features/` beside the run folder."""
        if "image" in self.items.modalities:
            folder = feature_cache or self.run_folder.parent / "features"
            self.items.encoder.keep_pictures(self.items.pictures, folder, show_progress)

    def manifest(self) -> dict:
        """What an export of the catalogue's vectors says of itself."""
        settings, adapter = self.description["encoder"], self.folder / ADAPTER
        external = settings["fusion"] == "external"
        return {
            "dataset": self.dataset,
            "catalog": self.catalog.hash,
            "model": self.description["model"],
            "checkpoint": self.run_folder.name,
            "trained_on": self.description["dataset"],
            "encoder": settings,
            # Of the hub; None for a local folder.
            "revision": getattr(self.items.encoder.backbone.model.config, "_commit_hash", None),
            "adapter_sha256": hashlib.sha256(adapter.read_bytes()).hexdigest() if adapter.is_file() else None,
            "prompts": [TEXT_INSTRUCTION, IMAGE_INSTRUCTION] if external else [INTERLEAVED_INSTRUCTION],
            "dtype": str(self.dtype).removeprefix("torch."),
        }

    def own(self, export: ItemEmbeddings) -> ItemEmbeddings:
        """The rows of the catalogue's items, in its order.

        Raises EmbeddingsError unless the export was made by this checkpoint, from this data set as it is now.
        """
        mine = self.manifest()
        export.require(self.dataset)
        for key in _ORIGIN:
            if export.manifest.get(key) != mine[key]:
                raise EmbeddingsError(
                    f"{export.folder} was not made by the checkpoint {self.folder} ({key} differs): vectors of two models cannot "
                    f"be compared; recbole-vlm2rec export --checkpoint={self.folder} --dataset={self.dataset} --out=FOLDER"
                )
        rows = export.rows(self.catalog.item_ids)
        export.require(self.dataset, mine["catalog"])  # after the items: which are missing says more
        return rows


def load_trained(
    checkpoint: str | Path, dataset: str | None = None, data_path: str | Path | None = None, device: str | None = None
) -> Trained:
    """The encoder of a run folder or its `checkpoint/`, and the items of `dataset` (default: the one it was trained on).

    `data_path` is the folder that holds the data set's folder, default as in training; `device` defaults to the GPU where there
    is one. Raises CheckpointError, CatalogError or BackboneError with what is wrong and where.
    """
    description = read_description(checkpoint)
    settings, name = description["encoder"], dataset or description["dataset"]
    # RecBole's data_path already ends with the data set's own folder.
    folder = (Path(data_path) if data_path else Path(description["data_path"]).parent) / name
    catalog = Catalog.read(folder, name, pictures=settings["modalities"] != "text")
    device = device or (f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if torch.cuda.is_available() else "cpu")
    dtype = torch.bfloat16 if native_bfloat16(device) else torch.float32
    encoder = load_encoder(checkpoint, device, dtype)
    if dtype == torch.float32:  # rounded to bfloat16, the sum would lose the smallest of what was learnt
        encoder.backbone.merge_lora()
    titles = [catalog.title(item) for item in catalog.item_ids]
    pictures = [catalog.image(item) for item in catalog.item_ids]
    items = ItemEncoder(encoder, titles, pictures, settings["fusion"], settings["modalities"])
    return Trained(checkpoint_folder(checkpoint), description, name, catalog, items, dtype)
