"""Reference scores for a generated shop: an oracle that knows the tastes, and a reader that infers them from the history.

May import numpy and, from this package, products and data.candidates only. Both rank all items by the generator's own
utility, appeal + sum of tastes (see minishop.py); a reader of one modality leaves out what that modality does not state.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from recbole_vlm2rec.data.candidates import Histories, draw_candidates
from recbole_vlm2rec.metrics import positive_ranks, summary
from recbole_vlm2rec.prepare.products import ATTRIBUTES, IMAGE_ATTRIBUTES, TITLE_ATTRIBUTES, Product

READERS = ("oracle", "map")
MODALITIES = {"both": tuple(ATTRIBUTES), "text": TITLE_ATTRIBUTES, "image": IMAGE_ATTRIBUTES}
"""Modality -> the attributes that its reader sees; what title and picture share is seen by both."""
TARGETS = {"valid": -2, "test": -1}
"""Phase -> place of its target in a user's sequence; the history is everything before it."""
HISTORY_LENGTH = 10

_STEPS, _TOLERANCE = 1000, 1e-4


@dataclass(frozen=True)
class Shop:
    """A shop with its truth.

    `products` [I]; `appeal` [I]: an item's utility to everybody; `tastes` [U, W]: a user's utility of every word, in the order
    of `words()`; `spread` [W]: the standard deviation they were drawn with; `sequences`: every user's item indices, oldest
    first; `timestamps`: the same shape, seconds.
    """

    users: tuple[str, ...]
    items: tuple[str, ...]
    products: tuple[Product, ...]
    appeal: np.ndarray
    tastes: np.ndarray
    spread: np.ndarray
    sequences: tuple[tuple[int, ...], ...]
    timestamps: tuple[tuple[int, ...], ...]


def words() -> list[tuple[str, str]]:
    """All (attribute, word) pairs: the W columns of tastes and features."""
    return [(attribute, word) for attribute, choices in ATTRIBUTES.items() for word in choices]


def features(products: tuple[Product, ...]) -> np.ndarray:
    """[I, W]: 1 where the product has the word, else 0."""
    return np.array([[float(product[attribute] == word) for attribute, word in words()] for product in products])


def visible(attributes: tuple[str, ...]) -> np.ndarray:
    """[W] bool: the columns that belong to these attributes."""
    return np.array([attribute in attributes for attribute, _ in words()])


def read(folder: Path) -> Shop:
    """The shop that `minishop.generate` wrote to `folder` (`<name>.json` for the truth, `<name>.inter` for the histories)."""
    folder = Path(folder)
    truth_file = folder / f"{folder.name}.json"
    if not truth_file.is_file():
        raise FileNotFoundError(f"{truth_file} is missing: the readers need the truth that a generated shop carries")
    truth = json.loads(truth_file.read_text(encoding="utf-8"))
    if truth["words"] != {attribute: list(choices) for attribute, choices in ATTRIBUTES.items()}:
        raise ValueError(f"{truth_file} lists other attribute words than this version renders: generate the shop anew")
    items = tuple(truth["products"])
    users = tuple(truth["tastes"])
    index = {item: place for place, item in enumerate(items)}
    visits: dict[str, list[tuple[int, int]]] = {user: [] for user in users}
    rows = (folder / f"{folder.name}.inter").read_text(encoding="utf-8").splitlines()[1:]
    for user, item, timestamp in (row.split("\t") for row in rows):
        visits[user].append((int(timestamp), index[item]))
    ordered = [sorted(visits[user]) for user in users]
    return Shop(
        users=users,
        items=items,
        products=tuple(Product(tuple(truth["products"][item])) for item in items),
        appeal=np.array([truth["appeal"][item] for item in items]),
        tastes=np.array([truth["tastes"][user] for user in users]),
        spread=np.array([truth["spread"][attribute] for attribute, _ in words()]),
        sequences=tuple(tuple(item for _, item in visit) for visit in ordered),
        timestamps=tuple(tuple(timestamp for timestamp, _ in visit) for visit in ordered),
    )


def scores(folder: Path, reader: str, modality: str, phase: str) -> tuple[tuple[str, ...], tuple[str, ...], np.ndarray]:
    """(user tokens [U], item tokens [I], scores [U, I]) of one reader; rank any candidates with them.

    reader: `oracle` or `map`; modality: `both`, `text` or `image`; phase: `valid` (its history leaves out the validation and
    the test item) or `test` (leaves out the test item only). A history is cut to the last 10 items, as for every model.
    """
    shop = read(folder)
    return shop.users, shop.items, score_matrix(shop, reader, modality, phase)


def score_matrix(shop: Shop, reader: str, modality: str, phase: str) -> np.ndarray:
    """[U, I] scores of one reader of a shop in memory; see `scores`."""
    for what, value, choices in (("reader", reader, READERS), ("modality", modality, MODALITIES), ("phase", phase, TARGETS)):
        if value not in choices:
            raise ValueError(f"unknown {what} {value!r}; choose one of {', '.join(choices)}")
    seen = visible(MODALITIES[modality])
    stated = features(shop.products)[:, seen]
    if reader == "oracle":
        tastes = shop.tastes[:, seen]
    else:
        histories = [sequence[: TARGETS[phase]][-HISTORY_LENGTH:] for sequence in shop.sequences]
        tastes = infer_tastes(stated, shop.spread[seen], shop.appeal, histories)
    return tastes @ stated.T + shop.appeal


def reference_scores(shop: Shop, negatives: int = 100, seed: int = 2026) -> dict[str, dict[str, dict[str, dict[str, float]]]]:
    """Hit and NDCG at 10 and 20 of every reader: {reader: {modality: {phase: {metric: mean over users}}}}.

    The candidates are those that every model is given with `eval_negatives: <negatives>` and `candidate_seed: <seed>`.
    """
    rows = [
        (user, shop.items[item], timestamp)
        for user, sequence, timestamps in zip(shop.users, shop.sequences, shop.timestamps)
        for item, timestamp in zip(sequence, timestamps)
    ]
    histories = Histories.from_rows(*zip(*rows))
    user_at, item_at = ({token: place for place, token in enumerate(tokens)} for tokens in (shop.users, shop.items))
    # Entry 0 of the item ids is padding and never a candidate.
    item_of_id = np.array([0] + [item_at[token] for token in histories.item_tokens[1:].tolist()])
    table: dict = {reader: {modality: {} for modality in MODALITIES} for reader in READERS}
    for phase in TARGETS:
        drawn = draw_candidates(histories, phase, negatives, seed)
        user_of_row = np.array([user_at[token] for token in drawn.users.tolist()])[:, None]
        for reader in READERS:
            for modality in MODALITIES:
                given = score_matrix(shop, reader, modality, phase)[user_of_row, item_of_id[drawn.items]]
                means = summary(positive_ranks(given, drawn.position), ["Hit", "NDCG"], [10, 20])
                table[reader][modality][phase] = {name: round(mean, 4) for name, mean in means.items()}
    return table


def infer_tastes(stated: np.ndarray, spread: np.ndarray, appeal: np.ndarray, histories: list[tuple[int, ...]]) -> np.ndarray:
    """[U, W] tastes of highest posterior density (MAP) given each user's history.

    stated [I, W], spread [W], appeal [I]. Prior: taste ~ N(0, spread^2). Likelihood: the generator's, every purchase
    ~ softmax(utility) over the items not bought before it; attributes that are not stated count as no preference.
    The negative log posterior is strictly convex; Nesterov's accelerated gradient descends it for all users at once.
    """
    scaled = stated * spread
    bought, when = _purchases(histories, len(stated))
    steps = bought.shape[1]
    made = bought >= 0
    rows = np.nonzero(made)[0]
    targets = (when < steps) @ scaled
    # Rows of `scaled` are not negative and at most R long, so no two are further apart than sqrt(2) R, and the variance of a
    # purchase's features along any line is at most R^2 / 2: this bounds the curvature of a history's likelihood.
    bound = 1.0 + steps * 0.5 * (scaled**2).sum(axis=1).max()
    taste = ahead = np.zeros((len(histories), stated.shape[1]))
    momentum = 1.0
    for _ in range(_STEPS):
        utility = ahead @ scaled.T + appeal
        odds = np.exp(utility - utility.max(axis=1, keepdims=True))
        taken = np.zeros(bought.shape)
        taken[made] = odds[rows, bought[made]]
        left = odds.sum(axis=1, keepdims=True) - (np.cumsum(taken, axis=1) - taken)
        # An item bought at step t was on offer in the steps 0..t, any other item in all of them.
        on_offer = np.cumsum(made / left, axis=1)
        expected = odds * np.take_along_axis(on_offer, np.minimum(when, steps - 1), axis=1)
        step = ahead + (targets - expected @ scaled - ahead) / bound
        following = (1 + np.sqrt(1 + 4 * momentum**2)) / 2
        ahead = step + (momentum - 1) / following * (step - taste)
        change = np.abs(step - taste).max()
        taste, momentum = step, following
        if change < _TOLERANCE:
            return taste * spread
    raise RuntimeError(f"the tastes did not settle in {_STEPS} steps (last change {change:.1e})")


def _purchases(histories: list[tuple[int, ...]], items: int) -> tuple[np.ndarray, np.ndarray]:
    """bought [U, T]: item of every step, -1 after the last; when [U, I]: step in which an item was bought, T if never."""
    steps = max(len(history) for history in histories)
    bought = np.full((len(histories), steps), -1)
    when = np.full((len(histories), items), steps)
    for row, history in enumerate(histories):
        bought[row, : len(history)] = history
        when[row, list(history)] = np.arange(len(history))
    return bought, when
