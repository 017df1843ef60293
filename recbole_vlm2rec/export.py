"""Embeds every item of a catalogue with a trained (or untouched) encoder and writes the export folder.

Imports torch, data.catalog, vlm and embeddings; no recbole.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch
from tqdm import tqdm

from recbole_vlm2rec import embeddings
from recbole_vlm2rec.data.catalog import Catalog
from recbole_vlm2rec.vlm.backbone import native_bfloat16
from recbole_vlm2rec.vlm.checkpoint import ADAPTER, checkpoint_folder, load_encoder, read_description
from recbole_vlm2rec.vlm.fusion import ItemEncoder, Vectors
from recbole_vlm2rec.vlm.prompts import IMAGE_INSTRUCTION, INTERLEAVED_INSTRUCTION, TEXT_INSTRUCTION

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
    Returns the folder. Raises CheckpointError, CatalogError, BackboneError or EmbeddingsError with what is wrong and where.
    """
    embeddings.check_place(out)  # now, not after the work
    description = read_description(checkpoint)
    name = dataset or description["dataset"]
    folder = Path(data_path) / name if data_path else _trained_folder(description, name)
    catalog = Catalog.read(folder, name)
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    dtype = torch.bfloat16 if native_bfloat16(device) else torch.float32
    encoder = load_encoder(checkpoint, device, dtype)
    settings = description["encoder"]
    titles = [catalog.title(item) for item in catalog.item_ids]
    pictures = [catalog.image(item) for item in catalog.item_ids]
    items = ItemEncoder(encoder, titles, pictures, settings["fusion"], settings["modalities"])
    if "image" in settings["modalities"]:
        beside = checkpoint_folder(checkpoint).resolve().parent.parent / "features"
        encoder.keep_pictures(pictures, feature_cache or beside, show_progress)

    parts = []
    with torch.no_grad(), tqdm(total=len(catalog), desc="Embed items", unit="item", disable=not show_progress) as progress:
        for start in range(0, len(catalog), ITEM_BATCH):
            batch = [[item] for item in range(start, min(start + ITEM_BATCH, len(catalog)))]
            parts.append(Vectors.of(lambda vectors: vectors.cpu(), items.encode(batch)))
            progress.update(len(batch))
    vectors = Vectors.of(lambda *kinds: torch.cat(kinds).numpy(), *parts)
    adapter = checkpoint_folder(checkpoint) / ADAPTER
    manifest = {
        "dataset": name,
        "catalog": catalog.hash,
        "model": description["model"],
        "checkpoint": checkpoint_folder(checkpoint).resolve().parent.name,
        "trained_on": description["dataset"],
        "encoder": settings,
        "revision": getattr(encoder.backbone.model.config, "_commit_hash", None),  # of the hub; None for a local folder
        "adapter_sha256": hashlib.sha256(adapter.read_bytes()).hexdigest() if adapter.is_file() else None,
        "prompts": [TEXT_INSTRUCTION, IMAGE_INSTRUCTION] if settings["fusion"] == "external" else [INTERLEAVED_INSTRUCTION],
        "dtype": str(dtype).removeprefix("torch."),
    }
    embeddings.write(
        Path(out), list(catalog.item_ids), text=vectors.text, image=vectors.image, fused=vectors.fused, manifest=manifest
    )
    return Path(out)


def _trained_folder(description: dict, name: str) -> Path:
    # RecBole's data_path already ends with the data set's own folder.
    return Path(description["data_path"]).parent / name
