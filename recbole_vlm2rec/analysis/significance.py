"""Whether two models differ: paired comparison of per-user metrics, and correction for many comparisons. Imports numpy and scipy.

A small p says that the difference is unlikely to come from which users were drawn. It says nothing about other data sets or
training seeds: repeat those, and pair within each.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import stats


def paired(one: np.ndarray, other: np.ndarray) -> dict[str, float]:
    """Paired t-test of `one` - `other`, two arrays [n] in the same order of users (or of seeds).

    Returns `mean` and `standard_error` of the differences, `t`, two-sided `p`, and `n`. Where all differences are 0 there is
    nothing to explain: t is 0 and p is 1. Raises ValueError for arrays that cannot be paired.
    """
    one, other = np.asarray(one, dtype=np.float64), np.asarray(other, dtype=np.float64)
    if one.shape != other.shape or one.ndim != 1 or len(one) < 2:
        raise ValueError(f"arrays of shape {list(one.shape)} and {list(other.shape)} cannot be paired: both must be [n], n >= 2")
    difference = one - other
    if not np.isfinite(difference).all():
        raise ValueError(f"pair {np.flatnonzero(~np.isfinite(difference))[0]} holds a value that is not finite")
    if not difference.any():
        return {"mean": 0.0, "standard_error": 0.0, "t": 0.0, "p": 1.0, "n": len(one)}
    test = stats.ttest_rel(one, other)
    standard_error = difference.std(ddof=1) / np.sqrt(len(one))
    return {
        "mean": float(difference.mean()),
        "standard_error": float(standard_error),
        "t": float(test.statistic),
        "p": float(test.pvalue),
        "n": len(one),
    }


def holm(p_values: Sequence[float]) -> np.ndarray:
    """Holm's step-down corrected p-values, in the order given; float64 [n].

    The k-th smallest of n (from 0) is multiplied by n - k, is at least the corrected one before it, and at most 1. Calling those
    below 0.05 different keeps the chance of any false claim among all n below 0.05. Raises ValueError for what is no p-value.
    """
    p_values = np.asarray(p_values, dtype=np.float64)
    if p_values.ndim != 1 or not ((p_values >= 0) & (p_values <= 1)).all():
        raise ValueError(f"p-values lie in [0, 1], got {p_values.tolist()}")
    order = np.argsort(p_values, kind="stable")
    corrected = np.empty_like(p_values)
    corrected[order] = np.maximum.accumulate(p_values[order] * np.arange(len(p_values), 0, -1)).clip(max=1)
    return corrected
