"""Gradient alignment inside a run: what is measured, and that measuring leaves the training as it was."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from recbole_vlm2rec import objectives
from recbole_vlm2rec.quick_start import make_config, prepare, run
from recbole_vlm2rec.registry import get_model, get_trainer


@pytest.fixture
def chosen(settings):
    """Five batches an epoch, dropout as in the paper."""
    return {**settings["VLM2Rec"], "lora_dropout": 0.2}


@pytest.mark.parametrize("how", [{}, {"gradcache_size": 7}, {"gradient_checkpointing": True}])
def test_training_is_bit_identical(chosen, how):
    common = {**chosen, **how, "epochs": 1}
    plain, measured = run("VLM2Rec", config_dict=common), run("VLM2Rec", config_dict={**common, "gradient_alignment_every": 2})
    assert "gradient_alignment" not in plain
    assert [(entry["step"], entry["epoch"]) for entry in measured["gradient_alignment"]] == [(0, 0), (2, 0), (4, 0)]
    assert all(-1 <= entry[side] <= 1 for entry in measured["gradient_alignment"] for side in ("text", "image"))

    folders = [Path(result["checkpoint"]) for result in (plain, measured)]
    one, other = (load_file(folder / "adapter_model.safetensors") for folder in folders)
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
    one, other = (load_file(folder / "penalty.safetensors") for folder in folders)
    assert all(torch.equal(one[name], other[name]) for name in one)
    with np.load(folders[0].parent / "ranks.npz") as one, np.load(folders[1].parent / "ranks.npz") as other:
        assert set(one) == set(other) and all((one[name] == other[name]).all() for name in one)
    assert [entry["loss"] for entry in plain["training"]] == [entry["loss"] for entry in measured["training"]]


def test_the_value_is_that_of_three_backward_passes(chosen):
    config = make_config("VLM2Rec", "shop", None, chosen)
    _, train, _, _ = prepare(config)
    model = get_model("VLM2Rec")(config, train._dataset)
    weights = [weight for name, weight in model.named_parameters() if "lora_" in name]
    torch.manual_seed(0)
    for weight in weights:
        torch.nn.init.normal_(weight, std=0.02)
    batch = next(iter(train))
    model.train()
    found = model.gradient_alignment(batch)
    assert model.training and all(weight.grad is None for weight in weights)

    model.eval()
    targets, users = batch[model.POS_ITEM_ID], batch[model.USER_ID]
    gradients = {}
    for kind in ("fused", "text", "image"):
        z, e = (model.items.encode(rows) for rows in (model.histories(batch), [[item] for item in targets.tolist()]))
        objectives.info_nce(getattr(z, kind), getattr(e, kind), 0.1, targets, users).backward()
        gradients[kind] = torch.cat([weight.grad.flatten() for weight in weights])
        model.zero_grad()
    for side in ("text", "image"):
        expected = torch.cosine_similarity(gradients["fused"], gradients[side], dim=0).item()
        assert found[side] == pytest.approx(expected, abs=1e-4) and abs(expected) < 0.99


def test_resumed_runs_keep_what_was_measured(chosen, monkeypatch):
    chosen = {**chosen, "gradient_alignment_every": 5}
    whole = run("VLM2Rec", config_dict=chosen)
    assert [(entry["step"], entry["epoch"]) for entry in whole["gradient_alignment"]] == [(0, 0), (5, 1)]
    trainer = get_trainer(get_model("VLM2Rec"))
    train_epoch = trainer._train_epoch

    def stop_in_the_second(self, train_data, epoch_idx, *rest, **named):
        if epoch_idx == 1:
            raise KeyboardInterrupt
        return train_epoch(self, train_data, epoch_idx, *rest, **named)

    monkeypatch.setattr(trainer, "_train_epoch", stop_in_the_second)
    with pytest.raises(KeyboardInterrupt):
        run("VLM2Rec", config_dict=chosen)
    monkeypatch.undo()
    interrupted = max(Path(chosen["checkpoint_dir"]).glob("VLM2Rec-*"), key=lambda folder: folder.stat().st_mtime_ns)
    resumed = run("VLM2Rec", config_dict={**chosen, "resume": str(interrupted)})
    assert [entry["step"] for entry in resumed["gradient_alignment"]] == [0, 5]
    for entry, again in zip(whole["gradient_alignment"], resumed["gradient_alignment"], strict=True):
        assert again == pytest.approx(entry, abs=1e-5)  # not bit for bit: pictures are computed in other batches
    assert json.loads((interrupted / "result.json").read_text())["gradient_alignment"] == resumed["gradient_alignment"]


@pytest.mark.parametrize("changes, words", [
    ({"gradient_alignment_every": 0}, "give a number of batches, or null"),
    ({"gradient_alignment_every": 5, "modalities": "text", "objective": "sft"}, "needs fusion: external and modalities: text"),
])  # fmt: skip
def test_what_has_no_meaning_is_refused(chosen, changes, words):
    with pytest.raises(ValueError, match=words):
        run("VLM2Rec", config_dict={**chosen, **changes})
