"""Gradient alignment against vectors worked out by hand and against backward passes one by one."""

import math

import pytest
import torch
from torch import nn

from recbole_vlm2rec import objectives
from recbole_vlm2rec.analysis.gradients import alignment, cosine, dropout_off


def test_cosine_by_hand():
    """(1, 2, 2) and (2, 0, 1), cut into a vector and a matrix: 4 / (3 sqrt 5)."""
    one = [torch.tensor([1.0]), torch.tensor([[2.0, 2.0]])]
    other = [torch.tensor([2.0]), torch.tensor([[0.0, 1.0]])]
    assert cosine(one, other) == pytest.approx(4 / (3 * math.sqrt(5)))
    assert cosine(one, [-3 * part for part in one]) == pytest.approx(-1)
    assert cosine(one, [torch.zeros_like(part) for part in one]) == 0


def test_each_gradient_is_that_of_its_own_loss():
    torch.manual_seed(0)
    shared, words, unused = (nn.Parameter(torch.randn(4, 4)) for _ in range(3))
    inputs = torch.randn(4, 6, 4)  # histories and targets, as text and as pictures
    ids = torch.tensor([1, 2, 3, 1, 4, 5])

    def vectors(text, image):
        text, image = text @ words @ shared, image @ shared
        return [text + image, text, image]

    queries, targets = vectors(inputs[0], inputs[1]), vectors(inputs[2], inputs[3])
    found = alignment(queries, targets, [shared, words, unused], 0.3, item_ids=ids)
    assert all(parameter.grad is None for parameter in (shared, words, unused))

    flat = []
    for kind in range(3):
        z, e = vectors(inputs[0], inputs[1])[kind], vectors(inputs[2], inputs[3])[kind]
        objectives.info_nce(z, e, 0.3, item_ids=ids).backward()
        flat.append(torch.cat([torch.zeros(16) if p.grad is None else p.grad.flatten() for p in (shared, words)]))
        shared.grad = words.grad = None
    assert found["text"] == pytest.approx(torch.cosine_similarity(flat[0], flat[1], dim=0).item(), abs=1e-5)
    assert found["image"] == pytest.approx(torch.cosine_similarity(flat[0], flat[2], dim=0).item(), abs=1e-5)
    assert found["text"] != pytest.approx(found["image"], abs=0.01)


def test_dropout_off_leaves_no_trace():
    layer = nn.Sequential(nn.Dropout(0.5), nn.Linear(3, 3))
    recomputing = nn.Sequential(layer, nn.Dropout(0.5).eval())
    recomputing.gradient_checkpointing = True
    state = torch.get_rng_state()
    with dropout_off(recomputing):
        assert recomputing.training and not layer.training and not layer[0].training
        torch.rand(3)
    assert torch.equal(torch.get_rng_state(), state)
    assert [part.training for part in recomputing.modules()] == [True, True, True, True, False]
