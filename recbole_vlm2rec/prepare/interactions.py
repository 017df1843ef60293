"""Interactions as columns, and the filters of METHOD section 1 as pure functions over them.

May import numpy only. Rows keep their order in the file until `by_time`; nothing here reads or writes files.
"""

from __future__ import annotations

from array import array
from dataclasses import dataclass, replace

import numpy as np


@dataclass(frozen=True)
class Interactions:
    """n interactions.

    `users`, `items`: [n] int32 codes into `user_tokens`, `item_tokens` (by order of first appearance). `times`: [n] float64,
    any number that orders. `ratings`: [n] float64, nan where there is none, or None.
    """

    users: np.ndarray
    items: np.ndarray
    times: np.ndarray
    ratings: np.ndarray | None
    user_tokens: list[str]
    item_tokens: list[str]

    def __len__(self) -> int:
        return len(self.users)

    def take(self, rows: np.ndarray) -> Interactions:
        """The rows of a mask or of indices, in that order; tokens and their codes stay."""
        ratings = None if self.ratings is None else self.ratings[rows]
        return replace(self, users=self.users[rows], items=self.items[rows], times=self.times[rows], ratings=ratings)

    def counts(self) -> dict[str, int]:
        """How many users and items occur, in how many interactions."""
        return {"users": len(np.unique(self.users)), "items": len(np.unique(self.items)), "interactions": len(self)}


class InteractionsBuilder:
    """Collects interactions one by one: 20 bytes a row (28 with ratings), and each token once."""

    def __init__(self) -> None:
        self._users, self._items, self._times, self._ratings = array("i"), array("i"), array("d"), array("d")
        self._user_codes: dict[str, int] = {}
        self._item_codes: dict[str, int] = {}
        self._rated = False

    def __len__(self) -> int:
        return len(self._users)

    def add(self, user: str, item: str, time: float, rating: float | None = None) -> None:
        self._users.append(self._user_codes.setdefault(user, len(self._user_codes)))
        self._items.append(self._item_codes.setdefault(item, len(self._item_codes)))
        self._times.append(time)
        self._rated |= rating is not None
        self._ratings.append(float("nan") if rating is None else rating)

    def build(self, times: array | None = None) -> Interactions:
        """`times` [n] instead of those added, where they are known only now."""
        return Interactions(
            np.array(self._users, np.int32),
            np.array(self._items, np.int32),
            np.array(self._times if times is None else times, np.float64),
            np.array(self._ratings, np.float64) if self._rated else None,
            list(self._user_codes),
            list(self._item_codes),
        )


def by_time(x: Interactions) -> Interactions:
    """Oldest first; the file's order breaks ties."""
    return x.take(np.argsort(x.times, kind="stable"))


def keep_items(x: Interactions, mask: np.ndarray) -> Interactions:
    """Interactions with an item whose code is set in `mask` [number of item codes]."""
    return x.take(mask[x.items])


def drop_repeats(x: Interactions, which: str) -> Interactions:
    """Of a user's interactions with one item all (`keep`), the `first` or the `last` in row order."""
    if which == "keep":
        return x
    pairs = x.users.astype(np.int64) * max(len(x.item_tokens), 1) + x.items
    if which == "last":
        rows = len(pairs) - 1 - np.unique(pairs[::-1], return_index=True)[1]
    else:
        rows = np.unique(pairs, return_index=True)[1]
    return x.take(np.sort(rows))


def last(x: Interactions, n: int) -> Interactions:
    """Each user's last `n` rows; 0 keeps all."""
    if not n or not len(x):
        return x
    order = np.argsort(x.users, kind="stable")
    users = x.users[order]
    ends = np.searchsorted(users, users, side="right")
    return x.take(np.sort(order[ends - np.arange(len(users)) <= n]))


def k_core(x: Interactions, k: int) -> Interactions:
    """The largest part in which every user and every item has at least `k` interactions."""
    users = np.bincount(x.users, minlength=len(x.user_tokens))
    items = np.bincount(x.items, minlength=len(x.item_tokens))
    kept = np.ones(len(x), bool)
    while True:
        falling = kept & ((users[x.users] < k) | (items[x.items] < k))
        if not falling.any():
            return x.take(kept)
        users -= np.bincount(x.users[falling], minlength=len(users))
        items -= np.bincount(x.items[falling], minlength=len(items))
        kept &= ~falling
