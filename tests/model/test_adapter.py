"""The item table of task 2: a linear layer over exported rows, scaled by one number."""

import pytest
import torch

from recbole_vlm2rec.model.adapter import AdaptedItemEmbedding

# Row 0 is the padding item. The items' norms are 5 and 1: mean of squares 13, scale sqrt(13).
TABLE = torch.tensor([[0.0, 0.0], [3.0, 4.0], [0.0, -1.0]])


def build(freeze=True):
    layer = AdaptedItemEmbedding(TABLE, size=3, initializer_range=0.02, freeze=freeze)
    with torch.no_grad():
        layer.adapter.weight.copy_(torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]]) * 13**0.5)
        layer.adapter.bias.copy_(torch.tensor([0.0, 0.0, 10.0]))
    return layer


def test_rows_go_through_the_linear_layer():
    """The weights above undo the scale: (x, y) becomes (x, y, x + y + 10)."""
    expected = torch.tensor([[0.0, 0.0, 10.0], [3.0, 4.0, 17.0], [0.0, -1.0, 9.0]])
    torch.testing.assert_close(build().weight, expected)
    ids = torch.tensor([[2, 1, 0], [1, 1, 2]])
    torch.testing.assert_close(build()(ids), expected[ids])


def test_the_scale_of_the_export_does_not_matter():
    small, large = (AdaptedItemEmbedding(factor * TABLE, 3, 0.02, freeze=True) for factor in (0.01, 50))
    torch.testing.assert_close(small.table.weight, large.table.weight)


def test_it_starts_with_the_range_asked_for():
    torch.manual_seed(0)
    layer = AdaptedItemEmbedding(torch.randn(10, 100), 100, initializer_range=0.5, freeze=True)
    assert layer.adapter.weight.std().item() == pytest.approx(0.5, rel=0.05)  # of 10,000 draws
    assert layer.adapter.bias.tolist() == [0] * 100


@pytest.mark.parametrize("freeze", [True, False])
def test_the_table_learns_only_when_it_is_not_frozen_and_no_history_moves_the_padding(freeze):
    layer = build(freeze)
    layer(torch.tensor([0, 1])).sum().backward()
    assert layer.adapter.weight.grad.abs().max() > 0
    if freeze:
        assert layer.table.weight.grad is None
    else:
        assert layer.table.weight.grad.abs().amax(dim=1).gt(0).tolist() == [False, True, False]
