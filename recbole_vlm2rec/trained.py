"""A trained VLM2Rec put together again: the checkpoint's encoder, and the data set whose items it shall read.

Imports torch, vlm and embeddings; no recbole. Export, analysis and recommendation start here.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch

from recbole_vlm2rec.embeddings import EmbeddingsError, ItemEmbeddings
from recbole_vlm2rec.vlm.backbone import native_bfloat16
from recbole_vlm2rec.vlm.checkpoint import ADAPTER, checkpoint_folder, items_of, load_encoder, read_description
from recbole_vlm2rec.vlm.encoder import VLMEncoder
from recbole_vlm2rec.vlm.fusion import ItemEncoder
from recbole_vlm2rec.vlm.pooled import POOLED, PooledEncoder
from recbole_vlm2rec.vlm.prompts import IMAGE_INSTRUCTION, INTERLEAVED_INSTRUCTION, TEXT_INSTRUCTION

# What decides on an item's vector besides its title and picture; the arithmetic (dtype) only rounds it.
_ORIGIN = ("encoder", "revision", "adapter_sha256", "prompts")


@dataclass(frozen=True)
class Trained:
    """A checkpoint and a data set. The encoder is built when it is first asked for.

    folder: the checkpoint's own. item_file: `.item` of the data set. device, dtype: where and in what it computes.
    """

    folder: Path
    description: dict
    dataset: str
    item_file: Path
    device: str
    dtype: torch.dtype

    @property
    def run_folder(self) -> Path:
        return self.folder.resolve().parent

    @property
    def settings(self) -> dict:
        """How the encoder is built."""
        return self.description["encoder"]

    @property
    def reads_pictures(self) -> bool:
        return "image" in self.settings["modalities"]

    @cached_property
    def encoder(self) -> VLMEncoder | PooledEncoder:
        encoder = load_encoder(self.folder, self.device, self.dtype)
        if (
            encoder.peft is not None and self.dtype == torch.float32
        ):  # rounded to bfloat16, the sum would lose the smallest of what was learnt
            encoder.backbone.merge_lora()
        return encoder

    def items(self, titles: Sequence[str], pictures: Sequence[Path | None]) -> ItemEncoder:
        """The encoder over these items; their numbers are their places."""
        return items_of(self.encoder, self.settings, titles, pictures)

    def open_store(self, feature_cache: str | Path | None = None) -> None:
        """Visual tokens are read from `feature_cache` and kept there; default `features/` beside the run folder; `none`: not."""
        if self.reads_pictures and feature_cache != "none":
            self.encoder.open_store(feature_cache or self.run_folder.parent / "features")

    def manifest(self, catalog: str) -> dict:
        """What an export of the items of a catalogue with this hash says of itself."""
        adapter = self.folder / ADAPTER
        return {
            "dataset": self.dataset,
            "catalog": catalog,
            "model": self.description["model"],
            "checkpoint": self.run_folder.name,
            "trained_on": self.description["dataset"],
            "encoder": self.settings,
            # Of the hub; None for a local folder.
            "revision": getattr(self.encoder.model.config, "_commit_hash", None),
            "adapter_sha256": hashlib.sha256(adapter.read_bytes()).hexdigest() if adapter.is_file() else None,
            "prompts": self._prompts,
            "dtype": str(self.dtype).removeprefix("torch."),
        }

    @property
    def _prompts(self) -> list[str]:
        if self.settings.get("kind") == POOLED:
            return []
        return [TEXT_INSTRUCTION, IMAGE_INSTRUCTION] if self.settings["fusion"] == "external" else [INTERLEAVED_INSTRUCTION]

    def own(self, export: ItemEmbeddings, item_ids: Sequence[str], catalog: str) -> ItemEmbeddings:
        """The export's rows of these items, which are the data set's, in their order.

        Raises EmbeddingsError unless the export was made by this checkpoint, from this data set as it is now.
        """
        mine = self.manifest(catalog)
        export.require(self.dataset)
        for key in _ORIGIN:
            if export.manifest.get(key) != mine[key]:
                raise EmbeddingsError(
                    f"{export.folder} was not made by the checkpoint {self.folder} ({key} differs): vectors of two models cannot "
                    f"be compared; recbole-vlm2rec export --checkpoint={self.folder} --dataset={self.dataset} --out=FOLDER"
                )
        rows = export.rows(item_ids)
        export.require(self.dataset, catalog)  # after the items: which are missing says more
        return rows


def open_trained(
    checkpoint: str | Path, dataset: str | None = None, data_path: str | Path | None = None, device: str | None = None
) -> Trained:
    """A run folder or its `checkpoint/`, and `dataset` (default: the one it was trained on).

    `data_path` is the folder that holds the data set's folder, default as in training; `device` defaults to the GPU where there
    is one, which computes in bfloat16 where it has it; all else is float32. Raises CheckpointError where there is none.
    """
    description = read_description(checkpoint)
    name = dataset or description["dataset"]
    # RecBole's data_path already ends with the data set's own folder.
    folder = (Path(data_path) if data_path else Path(description["data_path"]).parent) / name
    device = device or (f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if torch.cuda.is_available() else "cpu")
    dtype = torch.bfloat16 if native_bfloat16(device) else torch.float32
    return Trained(checkpoint_folder(checkpoint), description, name, folder / f"{name}.item", device, dtype)
