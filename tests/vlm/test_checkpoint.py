"""Checkpoint folders: PEFT opens them, the same encoder comes back, and what does not fit is refused."""

import json

import pytest
import torch
from peft import PeftModel
from transformers import AutoModel

from recbole_vlm2rec.vlm.backbone import Lora
from recbole_vlm2rec.vlm.checkpoint import (
    CheckpointError,
    checkpoint_folder,
    load_adapter,
    load_encoder,
    load_penalty,
    save_checkpoint,
)
from recbole_vlm2rec.vlm.encoder import VLMEncoder

LORA = {"rank": 4, "alpha": 8, "dropout": 0.2, "targets": ("q_proj", "down_proj")}
PENALTY = {"alpha": torch.tensor(0.75), "beta": torch.tensor(0.5)}


def build(random_vlm, **changes):
    encoder = VLMEncoder.from_pretrained(str(random_vlm), max_visual_tokens=4, lora=Lora(**{**LORA, **changes})).eval()
    return encoder


@pytest.fixture
def trained(random_vlm, tmp_path):
    encoder = build(random_vlm)
    torch.manual_seed(4)
    for parameter in encoder.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.1)
    settings = {"backbone": str(random_vlm), "max_visual_tokens": 4, "max_title_tokens": None, "lora": LORA}
    folder = tmp_path / "run" / "checkpoint"
    save_checkpoint(folder, encoder, PENALTY, {"encoder": settings})
    return encoder, folder


@torch.no_grad()
def test_the_same_encoder_comes_back(trained):
    encoder, folder = trained
    again = load_encoder(folder.parent)  # the run folder does as well
    expected, found = encoder.encode_text([["red mug"]]), again.encode_text([["red mug"]])
    torch.testing.assert_close(found, expected)
    assert load_penalty(folder) == PENALTY


@torch.no_grad()
def test_peft_opens_the_folder(trained, random_vlm):
    encoder, folder = trained
    base = AutoModel.from_pretrained(random_vlm, dtype=torch.float32)
    plain = PeftModel.from_pretrained(base, folder).eval()
    ids = torch.tensor([encoder.backbone.tokenize("red mug")])
    expected = encoder.backbone.hidden_states(ids, torch.ones_like(ids), [])
    torch.testing.assert_close(plain(input_ids=ids).last_hidden_state, expected)


def test_no_backbone_weight_is_written(trained):
    encoder, folder = trained
    assert {path.name for path in folder.iterdir()} >= {"adapter_config.json", "adapter_model.safetensors", "checkpoint.json"}
    adapter = sum(p.numel() for p in encoder.parameters() if p.requires_grad)
    assert sum(path.stat().st_size for path in folder.glob("*.safetensors")) < 4 * adapter + 20_000


def test_saving_again_replaces_the_folder(trained):
    encoder, folder = trained
    save_checkpoint(folder, encoder, {"alpha": torch.tensor(9.0)}, json.loads((folder / "checkpoint.json").read_text()))
    assert load_penalty(folder) == {"alpha": torch.tensor(9.0)}
    assert [path.name for path in folder.parent.iterdir()] == ["checkpoint"]


def test_what_does_not_fit_is_refused(trained, random_vlm, tmp_path):
    _, folder = trained
    with pytest.raises(CheckpointError, match="is no checkpoint"):
        checkpoint_folder(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match="does not fit the encoder"):
        load_adapter(folder, build(random_vlm, targets=("q_proj", "k_proj", "down_proj")))
    with pytest.raises(CheckpointError, match="does not fit the encoder"):
        load_adapter(folder, build(random_vlm, rank=8))
    with pytest.raises(CheckpointError, match="built without LoRA"):
        load_adapter(folder, VLMEncoder.from_pretrained(str(random_vlm)))
    (folder / "adapter_model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="incomplete"):
        load_adapter(folder, build(random_vlm))
