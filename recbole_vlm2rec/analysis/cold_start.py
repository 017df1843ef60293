"""Cold start (figure 3 of the paper): test metrics by how often the target stands in the training data.

Imports numpy and data.candidates. Pure functions; ids are those of `Histories`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from recbole_vlm2rec.data.candidates import PHASES, Histories

BOUNDS = (0, 1, 3, 6, 11)
"""Least training frequency of each bucket: 0, 1-2, 3-5, 6-10, 11+."""


@dataclass(frozen=True)
class Bucket:
    """Users whose target has this training frequency, and their means; None where there is no such user."""

    name: str
    users: int
    metrics: dict[str, float | None]


def training_counts(histories: Histories) -> np.ndarray:
    """Training interactions of each item id; int64 [I + 1], entry 0 is padding.

    Everything but the validation and test targets: of a user with four items or more all but the last two, of one with three
    (who has no validation target) all but the last, of a shorter one all.
    """
    size = len(histories.item_tokens)
    counts = np.bincount(histories.items, minlength=size)
    for phase in PHASES:
        counts -= np.bincount(histories.targets(phase)[1], minlength=size)
    return counts


def target_frequencies(histories: Histories, users: np.ndarray) -> np.ndarray:
    """Training interactions of the test target of each user; `users` are tokens [U], the result is int64 [U].

    Raises ValueError unless `users` are exactly those that have a test target.
    """
    ids, targets = histories.targets("test")
    tokens = histories.user_tokens[ids]
    order = np.argsort(tokens)
    place = np.searchsorted(tokens, users, sorter=order).clip(max=len(tokens) - 1)
    place = order[place]
    if len(users) != len(tokens) or (tokens[place] != users).any() or len(np.unique(place)) != len(place):
        raise ValueError(f"the {len(users)} users given are not the {len(tokens)} users that have a test target")
    return training_counts(histories)[targets[place]]


def bucket_names(bounds: Sequence[int] = BOUNDS) -> list[str]:
    """`(0, 1, 3)` -> `["0", "1-2", "3+"]`. Raises ValueError for bounds that leave a frequency out, or name one twice."""
    if not bounds or bounds[0] != 0 or any(one >= other for one, other in zip(bounds, bounds[1:])):
        raise ValueError(f"buckets start at {list(bounds)}: the first must start at 0 and each further one higher")
    ends = [f"{low}" if high == low + 1 else f"{low}-{high - 1}" for low, high in zip(bounds, bounds[1:])]
    return [*ends, f"{bounds[-1]}+"]


def by_frequency(frequencies: np.ndarray, metrics: Mapping[str, np.ndarray], bounds: Sequence[int] = BOUNDS) -> list[Bucket]:
    """Users and mean metrics of each bucket, every user in one of them.

    Args:
        frequencies: [U] of `target_frequencies`. metrics: [U] each, in the same order of users.
        bounds: least frequency of each bucket, ascending from 0.
    """
    names = bucket_names(bounds)
    bucket = np.searchsorted(bounds, frequencies, side="right") - 1
    found = []
    for place, name in enumerate(names):
        inside = bucket == place
        means = {metric: float(values[inside].mean()) if inside.any() else None for metric, values in metrics.items()}
        found.append(Bucket(name, int(inside.sum()), means))
    return found
