"""Rows of a result table compared: mean and deviation over seeds, best and second best, improvement, paired tests.

Imports numpy and analysis.significance (scipy). Pure functions; a row is a model under the name that a table gives it.

Two tests of the best row against each other row, both on the seeds that the two rows have in common:
over seeds, where a pair is one seed's two scores (what the paper tests; five pairs show large differences only), and
over users, where a pair is one user's metric under both rows, averaged over the seeds.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from recbole_vlm2rec.analysis.significance import holm, paired

# Means nearer than this are equal: the order of summation alone moves the last digits.
_EQUAL = 1e-12


class ComparisonError(ValueError):
    """These runs cannot be set side by side; the message says which, and why."""


@dataclass(frozen=True)
class Gains:
    """One run's metric of each user. users: tokens [U], distinct and ascending; values: float64 [U]."""

    users: np.ndarray
    values: np.ndarray

    @property
    def score(self) -> float:
        """The mean over users."""
        return float(self.values.mean())


@dataclass(frozen=True)
class Improvement:
    """percent: 100 * (ours / baseline - 1) of the best row of ours and the best of the others."""

    percent: float
    ours: str
    baseline: str


@dataclass(frozen=True)
class Comparison:
    """The best row against another on one data set and metric.

    seeds: those both rows have. by_seed, by_user: what `significance.paired` returns (best - other), and `p_holm`. by_user is
    None where no seed is common (or there is one user alone). by_seed is None also where only one seed is common, or where all
    show the same difference other than 0: rows that no seed changes have no deviation to test against.
    """

    dataset: str
    metric: str
    best: str
    other: str
    seeds: tuple[int, ...]
    by_seed: dict[str, float] | None
    by_user: dict[str, float] | None


BySeed = Mapping[int, Gains]


def mean_and_deviation(scores: Sequence[float]) -> tuple[float, float | None]:
    """Mean and sample standard deviation (divided by n - 1) of the scores of n seeds; no deviation for n = 1."""
    scores = np.asarray(scores, dtype=np.float64)
    return float(scores.mean()), float(scores.std(ddof=1)) if len(scores) > 1 else None


def mean_score(row: BySeed) -> float:
    """Mean over the seeds of a row of the mean over users."""
    return mean_and_deviation([gains.score for gains in row.values()])[0]


def places(means: Mapping[str, float]) -> dict[str, int]:
    """1 for the best row and those equal to it, 2 for the second best value's; other rows are left out."""
    found: dict[str, int] = {}
    place, last = 0, np.inf
    for row, mean in sorted(means.items(), key=lambda entry: -entry[1]):
        if last - mean > _EQUAL:
            place, last = place + 1, mean
        if place <= 2:
            found[row] = place
    return found


def improvement(means: Mapping[str, float], ours: Collection[str]) -> Improvement | None:
    """The best row of ours beside the best other row; None without rows of either kind, or where the other scores 0."""
    mine = {row: mean for row, mean in means.items() if row in ours}
    others = {row: mean for row, mean in means.items() if row not in ours}
    if not mine or not others:
        return None
    best, baseline = max(mine, key=mine.__getitem__), max(others, key=others.__getitem__)
    if not others[baseline]:
        return None
    return Improvement(100 * (mine[best] / others[baseline] - 1), best, baseline)


def compare(tables: Mapping[tuple[str, str], Mapping[str, BySeed]]) -> list[Comparison]:
    """The best row against each other row, by (data set, metric); p-values corrected by Holm over all comparisons returned.

    The best row has the highest mean over its seeds (the first of equal ones). The tests over seeds are one family for the
    correction, those over users another; where a test is not available it does not count. Raises ComparisonError where runs
    of one data set have different users.
    """
    found = []
    for (dataset, metric), rows in tables.items():
        require_same_users(dataset, rows)
        means = {row: mean_score(by_seed) for row, by_seed in rows.items()}
        best = next(row for row, place in places(means).items() if place == 1)
        for other in rows:
            if other != best:
                common = tuple(sorted(set(rows[best]) & set(rows[other])))
                pair = [[rows[row][seed] for seed in common] for row in (best, other)]
                found.append(Comparison(dataset, metric, best, other, common, _over_seeds(*pair), _over_users(*pair)))
    for test in ("by_seed", "by_user"):
        available = [getattr(entry, test) for entry in found if getattr(entry, test)]
        for outcome, p in zip(available, holm([outcome["p"] for outcome in available]), strict=True):
            outcome["p_holm"] = float(p)
    return found


def _over_seeds(one: Sequence[Gains], other: Sequence[Gains]) -> dict[str, float] | None:
    scores = np.array([[gains.score for gains in row] for row in (one, other)])
    if len(one) < 2:
        return None
    differences = scores[0] - scores[1]
    if np.ptp(differences) <= _EQUAL and abs(differences.mean()) > _EQUAL:
        return None
    return paired(*scores)


def _over_users(one: Sequence[Gains], other: Sequence[Gains]) -> dict[str, float] | None:
    if not one or len(one[0].users) < 2:
        return None
    return paired(*(np.mean([gains.values for gains in row], axis=0) for row in (one, other)))


def require_same_users(dataset: str, rows: Mapping[str, BySeed]) -> None:
    """Raises ComparisonError, naming two runs, unless all runs of a data set have the same users."""
    runs = [(row, seed, gains) for row, by_seed in rows.items() for seed, gains in by_seed.items()]
    row, seed, first = runs[0]
    for other_row, other_seed, gains in runs[1:]:
        if not np.array_equal(gains.users, first.users):
            only = np.setxor1d(gains.users, first.users)
            raise ComparisonError(
                f"{dataset}: {row} with seed {seed} and {other_row} with seed {other_seed} were tested on different users "
                f"({len(first.users)} and {len(gains.users)}; {str(only[0])!r} is in one only): the data differ, run one again"
            )
