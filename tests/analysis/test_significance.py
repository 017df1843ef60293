"""The paired test against hand-worked numbers and scipy, Holm's correction against hand-worked numbers."""

import math

import numpy as np
import pytest
from scipy import stats

from recbole_vlm2rec.analysis.significance import holm, paired


def test_paired_by_hand():
    """Differences 1, 2, 3: mean 2, standard deviation 1, standard error 1 / sqrt(3), t = 2 sqrt(3).

    With 2 degrees of freedom the t distribution has a closed form: p = 1 - t / sqrt(2 + t^2) = 1 - sqrt(12 / 14).
    """
    found = paired([2, 4, 6], [1, 2, 3])
    assert found["mean"] == pytest.approx(2)
    assert found["standard_error"] == pytest.approx(1 / math.sqrt(3))
    assert found["t"] == pytest.approx(2 * math.sqrt(3))
    assert found["p"] == pytest.approx(1 - math.sqrt(12 / 14))
    assert found["n"] == 3


def test_pairing_finds_what_two_samples_hide():
    """Users differ widely, the model gains a little with each: clear when paired, invisible otherwise."""
    rng = np.random.default_rng(0)
    users = rng.random(200)
    one, other = users + 0.01 + 0.001 * rng.normal(size=200), users
    assert paired(one, other)["p"] < 1e-6
    assert stats.ttest_ind(one, other).pvalue > 0.5


def test_the_other_way_round():
    rng = np.random.default_rng(1)
    one, other = rng.random((2, 30))
    there, back = paired(one, other), paired(other, one)
    assert (there["mean"], there["t"]) == pytest.approx((-back["mean"], -back["t"]))
    assert there["p"] == pytest.approx(back["p"])
    assert there["t"] == pytest.approx(there["mean"] / there["standard_error"])


def test_a_model_does_not_differ_from_itself():
    assert paired(np.array([0.5, 0.0, 1.0]), np.array([0.5, 0.0, 1.0])) == {
        "mean": 0,
        "standard_error": 0,
        "t": 0,
        "p": 1,
        "n": 3,
    }


@pytest.mark.parametrize(
    ("one", "other", "message"),
    [
        ([1, 2], [1, 2, 3], "cannot be paired"),
        ([1], [2], "cannot be paired"),
        ([[1, 2]], [[2, 3]], "cannot be paired"),
        ([1, 2, math.nan], [1, 2, 3], "pair 2 holds a value that is not finite"),
    ],
)
def test_what_cannot_be_paired(one, other, message):
    with pytest.raises(ValueError, match=message):
        paired(one, other)


def test_holm_by_hand():
    """Sorted 0.01, 0.02, 0.03, 0.6 times 4, 3, 2, 1: 0.04, 0.06, 0.06, 0.6; the third is held up by the second."""
    assert holm([0.03, 0.01, 0.6, 0.02]).tolist() == pytest.approx([0.06, 0.04, 0.6, 0.06])


def test_holm_never_lowers_a_p_value_below_a_smaller_one_nor_above_one():
    # 0.2 * 3 = 0.6; 0.25 * 2 = 0.5 is held up to 0.6; 0.9 stays. Then 0.5 * 2 = 1.0 and 0.8 is held up to 1.
    assert holm([0.2, 0.25, 0.9]).tolist() == pytest.approx([0.6, 0.6, 0.9])
    assert holm([0.8, 0.7]).tolist() == [1.0, 1.0]
    assert holm([0.04]).tolist() == [0.04]
    assert holm([]).tolist() == []


@pytest.mark.parametrize("wrong", [[0.5, 1.2], [-0.1], [math.nan]])
def test_holm_refuses_what_is_no_p_value(wrong):
    with pytest.raises(ValueError, match="p-values lie in"):
        holm(wrong)
