"""Activations are recomputed in as many layers as memory asks for; gradients do not depend on it."""

import math

import pytest
import torch
from torch import nn

from recbole_vlm2rec.vlm import memory
from recbole_vlm2rec.vlm.backbone import Lora
from recbole_vlm2rec.vlm.encoder import VLMEncoder
from recbole_vlm2rec.vlm.memory import free_bytes, recomputed_layers, saved_bytes


@pytest.mark.parametrize(
    ("budget", "expected"),
    # 100 tokens, 4 layers of 10 bytes kept or 2 recomputed: 4,000 bytes with none recomputed, 800 fewer with each.
    [(4000, 0), (3999, 1), (3200, 1), (3199, 2), (800, 4), (799, 4), (0, 4), (math.inf, 0)],
)
def test_as_few_layers_as_fit(budget, expected):
    assert recomputed_layers(100, 4, layer_bytes=10, input_bytes=2, budget=budget) == expected


def test_layers_that_save_nothing_are_all_recomputed_when_it_does_not_fit():
    assert recomputed_layers(100, 4, layer_bytes=2, input_bytes=2, budget=100) == 4


def test_saved_bytes_are_those_of_the_graph_without_weights():
    layer = nn.Linear(8, 4, bias=False)
    rows = torch.randn(3, 8)
    assert saved_bytes(lambda: layer(rows)) == 3 * 8 * 4
    assert saved_bytes(lambda: layer(rows).sigmoid().square()) == 3 * 8 * 4 + 3 * 4 * 4, "square keeps sigmoid's own output"


def test_free_memory_is_what_the_tightest_limit_leaves(monkeypatch, tmp_path):
    (tmp_path / "max").write_text("1000\n")
    (tmp_path / "used").write_text("400\n")
    monkeypatch.setattr(memory, "_CONTAINER", ((str(tmp_path / "max"), str(tmp_path / "used")),))
    assert free_bytes(torch.device("cpu")) == 600
    (tmp_path / "max").write_text("max\n")
    assert free_bytes(torch.device("cpu")) > 1e6


def test_scarce_memory_recomputes_layers_with_the_same_gradients_and_random_numbers(random_vlm, pictures, monkeypatch, caplog):
    results, free = [], {}
    monkeypatch.setattr(memory, "free_bytes", lambda device: free["bytes"])
    for case in ("never", "plenty", "some", "none"):
        torch.manual_seed(1)
        encoder = VLMEncoder.from_pretrained(str(random_vlm), lora=Lora(dropout=0.2)).train()
        layers = encoder.backbone.model.get_decoder().layers
        if case != "never":
            encoder.backbone.checkpoint_activations(as_needed=True)
            free["bytes"] = math.inf
            encoder.backbone.expect(1)  # measures
            whole = 300 * len(layers) * encoder.backbone._budget.layer_bytes
            free["bytes"] = {"plenty": math.inf, "some": 0.8 * whole, "none": 0}[case]
        torch.manual_seed(2)
        with caplog.at_level("INFO"):
            encoder.encode_images([pictures[:3], pictures[3:]])[:, 0].sum().backward()
        recomputed = sum(layer.gradient_checkpointing for layer in layers)
        assert recomputed == {"never": 0, "plenty": 0, "none": len(layers)}.get(case, recomputed)
        results.append([p.grad for p in encoder.parameters() if p.grad is not None])
    assert "layers compute their activations again" in caplog.text
    for other in results[1:]:
        for one, two in zip(results[0], other, strict=True):
            torch.testing.assert_close(one, two)


def test_the_estimate_is_what_is_kept(random_vlm):
    """Against a count of a longer forward; the layers' share of it, without what comes before and after them."""
    encoder = VLMEncoder.from_pretrained(str(random_vlm), lora=Lora(dropout=0.0)).train()
    backbone = encoder.backbone
    backbone.checkpoint_activations(as_needed=True)
    backbone.expect(1)
    for layer in backbone._budget.layers:
        layer.gradient_checkpointing = False
    ids = torch.zeros(1, 400, dtype=torch.long)
    kept = saved_bytes(lambda: backbone.hidden_states(ids, torch.ones_like(ids), []))
    estimated = 400 * len(backbone._budget.layers) * backbone._budget.layer_bytes
    assert estimated == pytest.approx(kept, rel=0.1)
