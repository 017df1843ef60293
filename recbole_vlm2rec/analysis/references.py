"""References that every model is set beside: popularity, Markov chains, chance, and on a generated shop what could be reached.

Imports numpy, metrics, data.candidates and prepare.minishop_readers.
The scorers know training sequences and histories only, as lists of item numbers below `n_items`; scores are float64 [U, n_items].
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from recbole_vlm2rec.data.candidates import SHORTEST, Histories, draw_candidates
from recbole_vlm2rec.metrics import positive_ranks
from recbole_vlm2rec.prepare import minishop_readers

Sequences = Sequence[Sequence[int] | np.ndarray]


def random(histories: Sequences, n_items: int, seed: int) -> np.ndarray:
    """Chance: independent uniform scores."""
    return np.random.default_rng(seed).random((len(histories), n_items))


def popularity(sequences: Sequences, histories: Sequences, n_items: int) -> np.ndarray:
    """Number of interactions of each item in `sequences`, the same for every user."""
    return np.tile(_counts(sequences, n_items), (len(histories), 1))


def item_markov(sequences: Sequences, histories: Sequences, n_items: int, prior: float = 1.0) -> np.ndarray:
    """Probability of each item right after the history's last: (n(last -> i) + prior * share(i)) / (n(last -> any) + prior).

    `share` is an item's share of all interactions: the estimate is popularity after an unknown item or an empty history, and
    `prior` says how many observed transitions popularity is worth.
    """
    share = _share(_counts(sequences, n_items))
    source, follower = _transitions(sequences)
    order = np.argsort(source, kind="stable")
    source, follower = source[order], follower[order]
    lasts = _last_items(histories)
    scores = np.empty((len(histories), n_items))
    for last in np.unique(lasts):
        first, end = np.searchsorted(source, [last, last + 1])
        followers = np.bincount(follower[first:end], minlength=n_items)
        scores[lasts == last] = _estimate(followers, share, prior)
    return scores


def category_markov(
    sequences: Sequences, histories: Sequences, n_items: int, categories: Sequence | np.ndarray, prior: float = 1.0
) -> np.ndarray:
    """Probability of each item's category after the last item's, times the item's popularity within its category.

    `categories` [n_items] holds a label of each item. Both factors are estimates with a prior as in `item_markov`: the
    categories' shares of all interactions, and equal chances within a category.
    """
    names, category = np.unique(np.asarray(categories), return_inverse=True)
    if len(category) != n_items:
        raise ValueError(f"{len(category)} categories for {n_items} items: every item needs one")
    counts = _counts(sequences, n_items)
    size, total = np.bincount(category), np.bincount(category, weights=counts)
    within = (counts + prior / size[category]) / (total[category] + prior)
    share = _share(total)
    source, follower = _transitions(sequences)
    moves = np.zeros((len(names), len(names)))
    np.add.at(moves, (category[source], category[follower]), 1)
    # The last row is for empty histories, whose last item is -1.
    following = np.stack([_estimate(row, share, prior) for row in (*moves, np.zeros(len(names)))])
    lasts = _last_items(histories)
    return following[np.where(lasts < 0, -1, category[lasts])][:, category] * within


def ranks(folder: str | Path, name: str, seed: int, negatives: int = 100) -> dict[str, np.ndarray]:
    """Ranks [U] of the test items by every reference, among the candidates that each model is given with `candidate_seed: seed`.

    Users are in the order of the candidates. The scorers learn from what models train on (without validation and test items);
    histories end before the test item. Where `<name>.json` holds the truth of a generated shop, `category Markov`, the MAP reader
    and the oracle are ranked too (see prepare.minishop_readers); they know the generator and are no competitors but bounds.
    """
    folder = Path(folder)
    histories = Histories.read(folder, name)
    drawn = draw_candidates(histories, "test", negatives, seed)
    n_items = len(histories.item_tokens)
    training = []
    for user in range(1, len(histories.user_tokens)):
        items = histories.of(user)
        training.append(items[: len(items) - sum(len(items) >= shortest for shortest in SHORTEST.values())])
    asked = [histories.of(user)[:-1] for user in drawn.user_ids]

    def ranked(given: np.ndarray) -> np.ndarray:
        return positive_ranks(np.take_along_axis(given, drawn.items.astype(np.int64), axis=1), drawn.position)

    # One score matrix at a time: on a large data set each takes gigabytes.
    found = {
        "random": ranked(random(asked, n_items, seed)),
        "popularity": ranked(popularity(training, asked, n_items)),
        "item Markov": ranked(item_markov(training, asked, n_items)),
    }
    if (folder / f"{name}.json").is_file():
        shop = minishop_readers.read(folder)
        item_at, user_at = ({token: place for place, token in enumerate(tokens)} for tokens in (shop.items, shop.users))
        # Entry 0 of the item ids is padding and never a candidate: any product does.
        products = [0, *(item_at[token] for token in histories.item_tokens[1:].tolist())]
        users = [user_at[token] for token in drawn.users.tolist()]
        categories = ["", *(shop.products[place]["category"] for place in products[1:])]
        found["category Markov"] = ranked(category_markov(training, asked, n_items, categories))
        for title, reader in (("MAP reader", "map"), ("oracle", "oracle")):
            for modality in minishop_readers.MODALITIES:
                given = minishop_readers.score_matrix(shop, reader, modality, "test")
                found[f"{title}, {modality}"] = ranked(given[np.ix_(users, products)])
    return found


def _counts(sequences: Sequences, n_items: int) -> np.ndarray:
    if not any(len(items) for items in sequences):
        raise ValueError("there are no training interactions to count")
    return np.bincount(np.concatenate(sequences).astype(np.int64), minlength=n_items).astype(np.float64)


def _share(counts: np.ndarray) -> np.ndarray:
    return counts / counts.sum()


def _estimate(counts: np.ndarray, share: np.ndarray, prior: float) -> np.ndarray:
    """Probabilities from counts, the expectation under a Dirichlet prior of total weight `prior`."""
    return (counts + prior * share) / (counts.sum() + prior)


def _transitions(sequences: Sequences) -> tuple[np.ndarray, np.ndarray]:
    """Every item that is followed by another, and that other; two int64 [T]."""
    kept = [np.asarray(items, dtype=np.int64) for items in sequences]
    return np.concatenate([items[:-1] for items in kept]), np.concatenate([items[1:] for items in kept])


def _last_items(histories: Sequences) -> np.ndarray:
    """Last item of each history, -1 where there is none; int64 [U]."""
    return np.array([items[-1] if len(items) else -1 for items in histories], dtype=np.int64)
