"""Training frequencies by hand, and buckets that sum to the whole."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recbole_vlm2rec.analysis.cold_start import BOUNDS, bucket_names, by_frequency, target_frequencies, training_counts
from recbole_vlm2rec.data.candidates import Histories
from recbole_vlm2rec.metrics import hit, ndcg

BOUGHT = {"u5": "ABCDE", "u4": "ABDE", "u3": "BAC", "u2": "CD", "u1": "E"}
"""Withheld: of u5 and u4 the last two, of u3 (no validation target) the last. Left to train on: A, B, C; A, B; B, A; C, D; E."""


@pytest.fixture
def histories():
    rows = [(user, item, time) for user, items in BOUGHT.items() for time, item in enumerate(items)]
    return Histories.from_rows(*zip(*rows))


def test_training_counts_by_hand(histories):
    counts = dict(zip(histories.item_tokens.tolist(), training_counts(histories).tolist()))
    assert counts == {"[PAD]": 0, "A": 3, "B": 3, "C": 2, "D": 1, "E": 1}


def test_target_frequencies_follow_the_users_given(histories):
    assert target_frequencies(histories, np.array(["u3", "u5", "u4"])).tolist() == [2, 1, 1]
    assert target_frequencies(histories, np.array(["u5", "u4", "u3"])).tolist() == [1, 1, 2]


@pytest.mark.parametrize("users", [["u5", "u4"], ["u5", "u4", "u2"], ["u5", "u4", "u9"], ["u5", "u4", "u4"]])
def test_other_users_are_refused(histories, users):
    with pytest.raises(ValueError, match="are not the 3 users that have a test target"):
        target_frequencies(histories, np.array(users))


def test_names():
    assert bucket_names() == ["0", "1-2", "3-5", "6-10", "11+"]
    assert bucket_names((0, 1, 2, 10)) == ["0", "1", "2-9", "10+"]
    assert bucket_names((0,)) == ["0+"]
    for bounds in ((), (1, 2), (0, 3, 3), (0, 5, 2)):
        with pytest.raises(ValueError, match="the first must start at 0"):
            bucket_names(bounds)


def test_buckets_by_hand():
    found = by_frequency(np.array([0, 2, 1, 11, 500, 5]), {"hit@10": np.array([1.0, 1, 0, 0, 1, 1])})
    assert [(bucket.name, bucket.users, bucket.metrics["hit@10"]) for bucket in found] == [
        ("0", 1, 1.0),
        ("1-2", 2, 0.5),
        ("3-5", 1, 1.0),
        ("6-10", 0, None),
        ("11+", 2, 0.5),
    ]


@given(
    users=st.lists(st.tuples(st.integers(0, 30), st.integers(1, 101)), min_size=1, max_size=60),
    inner=st.sets(st.integers(1, 25), max_size=5),
)
def test_buckets_sum_to_the_whole(users, inner):
    frequencies, ranks = np.array(users).T
    metrics = {"hit@20": hit(ranks, 20), "ndcg@20": ndcg(ranks, 20)}
    for bounds in (BOUNDS, (0, *sorted(inner))):
        buckets = by_frequency(frequencies, metrics, bounds)
        assert sum(bucket.users for bucket in buckets) == len(users)
        for name, values in metrics.items():
            whole = sum(bucket.users * (bucket.metrics[name] or 0.0) for bucket in buckets) / len(users)
            assert whole == pytest.approx(values.mean())
