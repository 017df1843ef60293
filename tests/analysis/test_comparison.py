"""Means, best and second best, improvement by hand; the paired tests against scipy on the seeds and users in common."""

import math

import numpy as np
import pytest
from scipy import stats

from recbole_vlm2rec.analysis.comparison import (
    ComparisonError,
    Gains,
    compare,
    improvement,
    mean_and_deviation,
    mean_score,
    places,
)

USERS = np.array([f"u{user:02}" for user in range(40)])


def row(rng, seeds, lift=0.0):
    return {seed: Gains(USERS, rng.random(len(USERS)) + lift) for seed in seeds}


def test_mean_and_sample_deviation_by_hand():
    """0.1, 0.2, 0.6: mean 0.3, squared distances 0.04 + 0.01 + 0.09 = 0.14, divided by 2."""
    assert mean_and_deviation([0.1, 0.2, 0.6]) == pytest.approx((0.3, math.sqrt(0.07)))
    assert mean_and_deviation([0.25]) == (0.25, None)


def test_a_rows_score_weighs_its_seeds_alike():
    gains = {1: Gains(USERS[:2], np.array([0.0, 1.0])), 2: Gains(USERS[:2], np.array([1.0, 1.0]))}
    assert mean_score(gains) == 0.75


def test_best_and_second_best():
    assert places({"a": 0.1, "b": 0.3, "c": 0.2, "d": 0.05}) == {"b": 1, "c": 2}
    assert places({"a": 0.3, "b": 0.1, "c": 0.3, "d": 0.1, "e": 0.0}) == {"a": 1, "c": 1, "b": 2, "d": 2}
    assert places({"a": 0.1 + 0.2, "b": 0.3, "c": 0.2}) == {"a": 1, "b": 1, "c": 2}  # 0.30000000000000004
    assert places({"alone": 0.0}) == {"alone": 1}


def test_improvement_by_hand():
    found = improvement({"x": 0.2, "mine": 0.3, "y": 0.24, "mine too": 0.27}, {"mine", "mine too"})
    assert (found.ours, found.baseline) == ("mine", "y")
    assert found.percent == pytest.approx(25)
    assert improvement({"x": 0.4, "mine": 0.3}, {"mine"}).percent == pytest.approx(-25)
    assert improvement({"mine": 0.3}, {"mine"}) is None
    assert improvement({"x": 0.3}, {"mine"}) is None
    assert improvement({"x": 0.0, "mine": 0.3}, {"mine"}) is None


def test_both_tests_are_scipys_and_holm_corrects_over_the_whole_table():
    rng = np.random.default_rng(3)
    tables = {
        (dataset, "ndcg@20"): {"A": row(rng, [1, 2, 3], 0.2), "B": row(rng, [1, 2, 3], 0.1), "C": row(rng, [1, 2, 3])}
        for dataset in ("x", "y")
    }
    found = compare(tables)
    assert [(entry.dataset, entry.best, entry.other) for entry in found] == [
        ("x", "A", "B"),
        ("x", "A", "C"),
        ("y", "A", "B"),
        ("y", "A", "C"),
    ]
    for entry in found:
        best, other = (tables[entry.dataset, "ndcg@20"][name] for name in (entry.best, entry.other))
        over_seeds = stats.ttest_rel(*([gains.values.mean() for gains in one.values()] for one in (best, other)))
        over_users = stats.ttest_rel(*(sum(gains.values for gains in one.values()) / 3 for one in (best, other)))
        assert (entry.by_seed["t"], entry.by_seed["p"]) == pytest.approx((over_seeds.statistic, over_seeds.pvalue))
        assert (entry.by_user["t"], entry.by_user["p"]) == pytest.approx((over_users.statistic, over_users.pvalue))
        assert (entry.by_seed["n"], entry.by_user["n"]) == (3, len(USERS))
        assert entry.by_seed["mean"] == pytest.approx(entry.by_user["mean"])
    for test in ("by_seed", "by_user"):
        # Step down by hand: four times the smallest, three times the next but no less than that, …
        ordered = sorted((getattr(entry, test) for entry in found), key=lambda outcome: outcome["p"])
        least = 0.0
        for factor, outcome in zip((4, 3, 2, 1), ordered, strict=True):
            least = max(least, min(1.0, factor * outcome["p"]))
            assert outcome["p_holm"] == pytest.approx(least)


def test_only_common_seeds_are_compared():
    rng = np.random.default_rng(4)
    rows = {"A": row(rng, [1, 2, 3], 0.5), "B": row(rng, [2, 3, 4])}
    (entry,) = compare({("x", "m"): rows})
    assert entry.seeds == (2, 3)
    differences = [rows["A"][seed].score - rows["B"][seed].score for seed in (2, 3)]
    assert entry.by_seed["mean"] == pytest.approx(sum(differences) / 2)
    by_user = [(rows["A"][2].values + rows["A"][3].values) / 2, (rows["B"][2].values + rows["B"][3].values) / 2]
    assert entry.by_user["p"] == pytest.approx(stats.ttest_rel(*by_user).pvalue)


def test_what_cannot_be_tested_is_not_available_and_not_corrected_for():
    rng = np.random.default_rng(5)
    rows = {"A": row(rng, [1, 2], 0.5), "one seed": row(rng, [1]), "none": row(rng, [9])}
    one, none = compare({("x", "m"): rows})
    assert one.seeds == (1,) and one.by_seed is None
    assert none.seeds == () and none.by_seed is None and none.by_user is None
    assert one.by_user["p_holm"] == one.by_user["p"] < 1


def test_a_difference_that_no_seed_changes_is_no_evidence_over_seeds():
    """Two models without training, on the same candidates: a t-test over seeds would divide by zero and say p = 0."""
    rng = np.random.default_rng(6)
    fixed = [Gains(USERS, rng.random(len(USERS)) + lift) for lift in (0.3, 0.0)]
    (entry,) = compare({("x", "m"): {name: dict.fromkeys((1, 2, 3), gains) for name, gains in zip("AB", fixed)}})
    assert entry.by_seed is None and entry.by_user["p"] < 0.05


def test_a_tie_for_the_best_is_compared_and_does_not_differ():
    gains = row(np.random.default_rng(7), [1, 2])
    (entry,) = compare({("x", "m"): {"A": gains, "B": dict(gains)}})
    assert (entry.best, entry.other) == ("A", "B")
    assert entry.by_seed["p_holm"] == entry.by_user["p_holm"] == 1


def test_other_users_are_refused():
    rng = np.random.default_rng(8)
    other = {1: Gains(np.array([*USERS[:-1], "v"]), rng.random(len(USERS)))}
    with pytest.raises(ComparisonError, match=r"x: A with seed 1 and B with seed 1 .*different users \(40 and 40; 'u39'"):
        compare({("x", "m"): {"A": row(rng, [1]), "B": other}})
