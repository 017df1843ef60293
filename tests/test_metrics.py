"""Ranks and metrics against numbers worked out by hand, and against ranx."""

import math

import numpy as np
import pytest

from recbole_vlm2rec.metrics import full_ranks, hit, mrr, ndcg, per_user, positive_ranks, precision, summary


def test_ranks_by_hand():
    scores = np.array([[0.1, 0.9, 0.5], [0.1, 0.9, 0.5], [0.1, 0.9, 0.5]])
    assert positive_ranks(scores, np.array([0, 1, 2])).tolist() == [3, 1, 2]


def test_ties_are_broken_by_list_order():
    # Behind the two that tie before it and the one that is better; the tie after it does not count.
    assert positive_ranks(np.array([[5.0, 5.0, 5.0, 7.0, 5.0]]), np.array([2])).tolist() == [4]


def test_a_collapsed_model_gets_its_place_in_the_list():
    assert positive_ranks(np.zeros((4, 4)), np.arange(4)).tolist() == [1, 2, 3, 4]
    assert positive_ranks(np.full((2, 3), -np.inf), np.array([0, 2])).tolist() == [1, 3]


def test_nan_raises_and_names_the_row():
    with pytest.raises(ValueError, match="1 of 2 rows hold NaN scores, the first is row 1"):
        positive_ranks(np.array([[1.0, 2.0], [np.nan, 2.0]]), np.array([0, 0]))


def test_full_ranks_by_hand():
    # Column 0 is padding; item 4 was touched. Candidates of row 0: 1 (tied), 2 (target), 3 (better), 5 (tied).
    scores = np.array([[9.0, 1.0, 1.0, 2.0, 8.0, 1.0]])
    excluded = np.array([[True, False, True, False, True, False]])
    expected = {0.0: 2, 0.34: 3, 0.99: 4}
    for tie, rank in expected.items():
        assert full_ranks(scores, np.array([2]), excluded, np.array([tie])).tolist() == [rank]


def test_full_ranks_ignore_nan_of_what_is_no_candidate_only():
    scores = np.array([[np.nan, 1.0, 2.0]])
    assert full_ranks(scores, np.array([1]), np.array([[True, False, False]]), np.array([0.0])).tolist() == [2]
    with pytest.raises(ValueError, match="row 0"):
        full_ranks(scores, np.array([0]), np.array([[True, False, False]]), np.array([0.0]))


def test_metrics_by_hand():
    ranks = np.array([1, 3, 11])
    assert hit(ranks, 10).tolist() == [1, 1, 0]
    assert ndcg(ranks, 10).tolist() == pytest.approx([1, 0.5, 0])
    assert mrr(ranks, 10).tolist() == pytest.approx([1, 1 / 3, 0])
    assert precision(ranks, 10).tolist() == pytest.approx([0.1, 0.1, 0])
    assert ndcg(ranks, 20)[2] == pytest.approx(1 / math.log2(12))
    assert summary(ranks, ["Hit", "NDCG"], [10]) == pytest.approx({"hit@10": 2 / 3, "ndcg@10": 0.5})


def test_a_metric_by_its_name():
    assert per_user(np.array([1, 3, 11]), "NDCG@10").tolist() == pytest.approx([1, 0.5, 0])
    assert per_user(np.array([1, 3, 11]), "hit@3").tolist() == [1, 1, 0]
    for name in ("ndgc@10", "ndcg", "ndcg@", "ndcg@0", "ndcg@-1", "@10", "ndcg@1.5"):
        with pytest.raises(ValueError, match="is no metric; write NAME@K, K from 1 on, with one of hit, "):
            per_user(np.array([1]), name)


def test_chance_level():
    """Hit@10 of a model without any opinion is 10 / 101, whatever the positive is."""
    position = np.random.default_rng(0).integers(101, size=200_000)
    expected = 10 / 101
    measured = hit(positive_ranks(np.zeros((200_000, 101), dtype=np.float32), position), 10).mean()
    # Four standard errors of a binomial.
    assert abs(measured - expected) < 4 * math.sqrt(expected * (1 - expected) / 200_000)


@pytest.mark.slow
def test_same_as_ranx():
    """ranx compiles its metrics at the first call."""
    ranx = pytest.importorskip("ranx")
    rng = np.random.default_rng(1)
    scores, position = rng.normal(size=(50, 101)), rng.integers(101, size=50)
    qrels = ranx.Qrels({f"u{row}": {f"c{place}": 1} for row, place in enumerate(position)})
    run = ranx.Run({f"u{row}": {f"c{place}": score for place, score in enumerate(values)} for row, values in enumerate(scores)})
    names = {"hit@10": "hit_rate@10", "hit@20": "hit_rate@20", "ndcg@10": "ndcg@10", "ndcg@20": "ndcg@20", "mrr@10": "mrr@10"}
    theirs = ranx.evaluate(qrels, run, list(names.values()))
    ours = summary(positive_ranks(scores, position), ["Hit", "NDCG", "MRR"], [10, 20])
    for name, theirs_name in names.items():
        assert ours[name] == pytest.approx(theirs[theirs_name], abs=1e-12)
