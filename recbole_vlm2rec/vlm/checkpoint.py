"""Checkpoint folders: a standard PEFT adapter, our scalars, and what is needed to build the same encoder again.

Imports torch, peft, safetensors and the encoders only. The backbone's own weights are never written; no pickle is read.

    adapter_config.json, adapter_model.safetensors   what `PeftModel.from_pretrained(AutoModel…, folder)` opens
    penalty.safetensors                              alpha and beta of eq. 9
    checkpoint.json                                  encoder settings, data set, epoch, score, full configuration
    training_state.safetensors                       only in `last/`: optimizer and random state, to go on from here
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from peft import set_peft_model_state_dict
from safetensors.torch import load_file, save_file
from torch import Tensor

from recbole_vlm2rec.vlm.backbone import Lora
from recbole_vlm2rec.vlm.encoder import VLMEncoder
from recbole_vlm2rec.vlm.fusion import ItemEncoder
from recbole_vlm2rec.vlm.pooled import POOLED, PooledEncoder, PooledItemEncoder

DESCRIPTION, ADAPTER, PENALTY, STATE = (
    "checkpoint.json", "adapter_model.safetensors", "penalty.safetensors", "training_state.safetensors"
)  # fmt: skip


class CheckpointError(ValueError):
    """A checkpoint folder is missing, incomplete, or does not fit; the message says which and what to do."""


def save_checkpoint(
    folder: Path,
    encoder: VLMEncoder | PooledEncoder,
    penalty: Mapping[str, Tensor],
    description: Mapping,
    state: Mapping[str, Tensor] | None = None,
) -> None:
    """Writes the folder beside its place and moves it there, so that a reader never meets half a checkpoint."""
    draft = folder.with_name(folder.name + ".draft")
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(parents=True)
    if encoder.peft is not None:
        encoder.peft.save_pretrained(str(draft), save_embedding_layers=False)  # "auto" would ask the hub each time
    save_file({name: value.detach().cpu().clone() for name, value in penalty.items()}, draft / PENALTY)
    (draft / DESCRIPTION).write_text(json.dumps(dict(description), indent=2), encoding="utf-8")
    if state is not None:
        save_file({name: value.detach().cpu().contiguous() for name, value in state.items()}, draft / STATE)
    old = folder.with_name(folder.name + ".old")
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        os.replace(folder, old)
    os.replace(draft, folder)
    shutil.rmtree(old, ignore_errors=True)


def read_description(folder: Path) -> dict:
    """The content of checkpoint.json; `folder` may be the checkpoint itself or the run folder that holds `checkpoint/`."""
    folder = checkpoint_folder(folder)
    return json.loads((folder / DESCRIPTION).read_text(encoding="utf-8"))


def checkpoint_folder(folder: Path) -> Path:
    """The checkpoint folder itself, given that or the run folder around it. Raises CheckpointError where there is none."""
    for candidate in (Path(folder), Path(folder) / "checkpoint"):
        if (candidate / DESCRIPTION).is_file():
            return candidate
    raise CheckpointError(f"{folder} is no checkpoint: neither it nor its checkpoint/ holds a {DESCRIPTION}")


def load_adapter(folder: Path, encoder: VLMEncoder | PooledEncoder) -> None:
    """Puts the folder's LoRA weights into the encoder. Raises CheckpointError if they do not fit it exactly."""
    peft = encoder.peft
    path = checkpoint_folder(folder) / ADAPTER
    if peft is None:
        if path.exists():
            raise CheckpointError(f"{path} holds LoRA weights, but the encoder was built without LoRA")
        return
    if not path.exists():
        raise CheckpointError(f"{path} is missing: the checkpoint is incomplete")
    try:
        report = set_peft_model_state_dict(peft, load_file(path, device=str(encoder.backbone.device)))
        problems = [name for name in report.missing_keys if "lora_" in name] + list(report.unexpected_keys)
    except RuntimeError as error:  # torch's word for weights of another shape
        problems = str(error).strip().splitlines()[1:]
    if problems:
        raise CheckpointError(
            f"{path} does not fit the encoder ({problems[0].strip()}; {len(problems)} such weights): "
            f"was it trained on another backbone or with other LoRA settings?"
        )


def load_penalty(folder: Path) -> dict[str, Tensor]:
    """alpha and beta."""
    return load_file(checkpoint_folder(folder) / PENALTY)


def load_encoder(
    folder: Path, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
) -> VLMEncoder | PooledEncoder:
    """The encoder that the checkpoint describes, with its adapter in place and evaluation mode set."""
    settings = read_description(folder)["encoder"]
    if settings.get("kind") == POOLED:
        return PooledEncoder.from_pretrained(
            settings["item_encoder"],
            settings["pooling"],
            max_title_tokens=settings["max_title_tokens"],
            dtype=dtype,
            device=device,
        ).eval()
    lora = Lora(**{**settings["lora"], "targets": tuple(settings["lora"]["targets"])}) if settings["lora"] else None
    encoder = VLMEncoder.from_pretrained(
        settings["backbone"],
        max_visual_tokens=settings["max_visual_tokens"],
        max_title_tokens=settings["max_title_tokens"],
        lora=lora,
        dtype=dtype,
        device=device,
    )
    load_adapter(folder, encoder)
    return encoder.eval()


def items_of(
    encoder: VLMEncoder | PooledEncoder, settings: Mapping, titles: Sequence[str], pictures: Sequence[Path | None]
) -> ItemEncoder:
    """The encoder over these items, by the settings that `load_encoder` has built it from."""
    kind = PooledItemEncoder if isinstance(encoder, PooledEncoder) else ItemEncoder
    return kind(encoder, titles, pictures, settings["fusion"], settings["modalities"])
