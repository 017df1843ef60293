"""The comparison with the plain loop measures two sides that give the same vectors."""

import json

import pytest

from recbole_vlm2rec.benchmark import inputs, peers
from recbole_vlm2rec.benchmark.sentences import available


@pytest.fixture
def small(monkeypatch):
    shape = {
        "text": {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
                 "intermediate_size": 96, "vocab_size": 1024, "mrope_section": [2, 3, 3]},
        "vision": {"depth": 2, "hidden_size": 32, "intermediate_size": 64, "num_heads": 2, "fullatt_block_indexes": [1]},
    }  # fmt: skip
    monkeypatch.setitem(inputs.CONFIGURATIONS, "mid", shape)


def test_both_sides_give_the_same_vectors_and_the_figures_belong_together(small, tmp_path, capsys):
    figures = peers.compare("mid", users=8, items=10, steps=2, json_file=tmp_path / "figures.json")
    assert json.loads((tmp_path / "figures.json").read_text()) == figures
    assert figures["largest_relative_difference"] < 1e-5
    assert len(figures["seconds"]["train, plain"]) == len(figures["seconds"]["embed, kept"]) == 2
    for name, rate in figures["per_second"].items():
        seconds = sum(figures["seconds"][name]) / 2
        assert rate * seconds == pytest.approx({"embed": 5, "evaluate": 8, "train": 8}[name.split(",")[0]])
    assert ("embed, sentences" in figures["seconds"]) == available()
    assert 0 < figures["mfu"] < 1 and 0 < sum(figures["train_profile"].values()) <= 1
    printed = capsys.readouterr().out
    assert f"| {figures['ratio']['train']:.1f} |" in printed and "plain loop" in printed


def test_lengths_are_drawn_as_beautys(tmp_path):
    shop = inputs.make_shop(tmp_path, users=3000, items=12)
    lengths = [len(items) for items in shop.users]
    total = sum(inputs.BEAUTY_LENGTHS.values())
    for length, users in inputs.BEAUTY_LENGTHS.items():
        assert lengths.count(length) / 3000 == pytest.approx(users / total, abs=0.03)
    assert all(8 <= len(title.split()) <= 24 for title in shop.titles)


def test_the_shapes_have_the_sizes_they_are_named_by():
    import torch

    with torch.device("meta"):
        for name, low, high in (("mid", 45e6, 60e6), ("qwen2.5-vl-3b", 3.7e9, 3.8e9)):
            model, _, _ = inputs.random_model(name, torch.bfloat16, "meta")
            assert low < sum(weight.numel() for weight in model.parameters()) < high
