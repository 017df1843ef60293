"""Geometry against numbers worked out by hand: on the unit circle d^2 is 0, 2 and 4 at 0, 90 and 180 degrees."""

import math

import pytest
import torch

from recbole_vlm2rec.analysis.geometry import geometry, uniformity

# Row 0 is padding: it would change every number below if it were read.
ITEMS = torch.tensor([[9.0, 9.0], [3.0, 0.0], [0.0, 2.0], [-1.0, 0.0]], dtype=torch.float64)
QUERIES = torch.tensor([[2.0, 0.0], [0.0, 5.0]], dtype=torch.float64)


def measured(targets=(1, 2), negatives=((2, 3), (1, 3)), queries=QUERIES, items=ITEMS):
    return geometry(queries, items, torch.tensor(targets), torch.tensor(negatives))


def test_by_hand():
    """Query 0 points to item 1, query 1 to item 2; lengths do not matter.

    A_pos with targets 1 and 1: (0 + 2) / 2 = 1. A_neg: query 0 to items 2, 3: 2, 4; query 1 to items 1, 3: 2, 2: mean 2.5.
    """
    found = measured(targets=(1, 1))
    assert found["alignment_positive"] == pytest.approx(1.0)
    assert found["alignment_negative"] == pytest.approx(2.5)
    assert found["separability"] == pytest.approx(2.5)


def test_uniformity_by_hand():
    """Cross: squared distances of query 0 are 0, 2, 4 and of query 1 are 2, 0, 2.

    Within the queries the only distance is 2; within the items they are 2 (1-2), 4 (1-3), 2 (2-3), each counted both ways.
    """
    found = measured()
    cross = (2 * math.exp(0) + 3 * math.exp(-4) + math.exp(-8)) / 6
    assert found["uniformity_cross"] == pytest.approx(math.log(cross))
    assert found["uniformity_queries"] == pytest.approx(-4)
    assert found["uniformity_items"] == pytest.approx(math.log((2 * math.exp(-4) + math.exp(-8)) / 3))


def test_perfect_separation_and_inversion():
    assert measured()["separability"] > 1e9
    assert measured(targets=(3, 3), negatives=((1,), (1,)))["separability"] == pytest.approx((0 + 2) / (4 + 2))


def test_a_collapsed_space():
    """All vectors alike, in float32: no distance at all and no separation, rather than rounding errors divided by each other."""
    found = measured(queries=torch.full((2, 7), 0.1), items=torch.full((4, 7), 0.3))
    assert found["alignment_negative"] == pytest.approx(0, abs=1e-12)
    assert found["separability"] < 1
    for reading in ("cross", "queries", "items"):
        assert found[f"uniformity_{reading}"] == pytest.approx(0, abs=1e-5)


def test_uniformity_in_chunks_is_the_sum_over_all_pairs():
    """More rows than one chunk holds: compared with torch's own pairwise distances."""
    generator = torch.Generator().manual_seed(0)
    first, second = (torch.randn(rows, 3, generator=generator, dtype=torch.float64) for rows in (1100, 40))
    one, other = (vectors / vectors.norm(dim=1, keepdim=True) for vectors in (first, second))
    assert uniformity(first) == pytest.approx(torch.pdist(one).square().mul(-2).exp().mean().log().item(), rel=1e-9)
    assert uniformity(first, second) == pytest.approx(
        torch.cdist(one, other).square().mul(-2).exp().mean().log().item(), rel=1e-9
    )


def test_alignment_over_more_queries_than_one_chunk():
    """130 queries along e1, all but the last with the negative opposite (4), the last with its own direction (0)."""
    negatives = [[2]] * 129 + [[1]]
    items = torch.tensor([[0.0, 0.0], [1.0, 0.0], [-1.0, 0.0]])
    found = geometry(torch.tensor([[1.0, 0.0]]).repeat(130, 1), items, torch.ones(130), torch.tensor(negatives))
    assert found["alignment_negative"] == pytest.approx(4 * 129 / 130)


def test_random_directions_are_as_uniform_as_can_be():
    """In many dimensions d^2 is about 2 everywhere: U = -4, A_pos = A_neg = 2, S = 1."""
    generator = torch.Generator().manual_seed(1)
    queries, items = (torch.randn(rows, 4096, generator=generator) for rows in (50, 61))
    targets, negatives = torch.arange(1, 51), torch.randint(1, 61, (50, 20), generator=generator)
    found = geometry(queries, items, targets, negatives)
    assert found["separability"] == pytest.approx(1, abs=0.02)
    assert found["uniformity_cross"] == pytest.approx(-4, abs=0.02)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"targets": (0, 1)}, "targets must be item ids from 1 to 3"),
        ({"negatives": ((1, 4), (1, 2))}, "negatives must be item ids from 1 to 3"),
        ({"negatives": ((), ())}, "negatives must be item ids"),
        ({"targets": (1, 2, 3)}, r"2 queries with targets \[3\]"),
        ({"negatives": ((1, 2),)}, r"negatives \[1, 2\]"),
        ({"queries": torch.tensor([[1.0, 0.0], [0.0, 0.0]])}, "1 of 2 queries are zero or not finite .* row 1"),
        ({"items": torch.tensor([[0.0, 0], [1, 0], [math.nan, 0], [1, 1]])}, "1 of 3 items are zero or not finite .* row 1"),
    ],
)
def test_what_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        measured(**change)


def test_one_vector_has_no_pair():
    with pytest.raises(ValueError, match="make no pair"):
        uniformity(torch.ones(1, 2))
