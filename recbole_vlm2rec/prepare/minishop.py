"""Generates a shop in RecBole's atomic files: rendered products with titles, and purchases by users whose tastes are known.

May import numpy, pillow and this room only. Model: a user's taste for every attribute word ~ N(0, spread^2), drawn once; utility
of an item = its appeal + the sum of the tastes for its words; next item ~ softmax(utility) over those not yet bought.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from recbole_vlm2rec.prepare.minishop_readers import Shop, features, reference_scores, visible, words
from recbole_vlm2rec.prepare.products import (
    ATTRIBUTES,
    IMAGE_ATTRIBUTES,
    TITLE_ATTRIBUTES,
    Product,
    held_out,
    random_product,
    render,
    title,
)

GROUPS: dict[str, tuple[str, ...]] = {
    "title": tuple(name for name in TITLE_ATTRIBUTES if name not in IMAGE_ATTRIBUTES),
    "image": tuple(name for name in IMAGE_ATTRIBUTES if name not in TITLE_ATTRIBUTES),
    "shared": tuple(name for name in TITLE_ATTRIBUTES if name in IMAGE_ATTRIBUTES),
}
"""Where an attribute can be read: in the title only, in the picture only, in both."""

PRESETS: dict[str, dict[str, float]] = {
    "balanced": {"title": 0.35, "image": 0.35, "shared": 0.30},
    "text-heavy": {"title": 0.60, "image": 0.10, "shared": 0.30},
    "image-heavy": {"title": 0.10, "image": 0.60, "shared": 0.30},
}
"""Share of the tastes' variance that each group of attributes is drawn to carry; nothing else differs between presets."""

DEFAULT_SEED = 2026
PICTURE_SIZE = 56
SHORTEST, LONGEST = 5, 12
"""Purchases of a user: uniform between these two."""

TASTE_VARIANCE = 10.0
"""Expected variance of the summed tastes over uniformly drawn products."""

APPEAL_SPREAD = 0.3
"""Standard deviation of the appeal, the part of popularity that no attribute explains."""

# Share of its group's variance that each attribute carries.
_WITHIN_GROUP = {"style": 0.4, "material": 0.4, "occasion": 0.2, "colour": 0.4, "pattern": 0.4, "scene": 0.2, "category": 1.0}
_START, _DAY = 1_400_000_000, 86_400


def generate(
    out: Path, name: str = "minishop", seed: int = DEFAULT_SEED, preset: str = "balanced", users: int = 900, items: int = 240
) -> dict:
    """Write a shop to `<out>/<name>/`: `<name>.inter`, `<name>.item`, `images/*.png` and `<name>.json`; return its summary.

    The json holds the summary (seed, preset, sizes, shares of the preference variance, scores of the readers) and the truth
    that `minishop_readers` needs. The same arguments give the same files; one seed gives the same products in every preset.
    Raises ValueError for arguments that cannot make a shop, FileExistsError if the folder holds anything already.
    """
    if preset not in PRESETS:
        raise ValueError(f"unknown preset {preset!r}; choose one of {', '.join(PRESETS)}")
    if name in ("", "..") or Path(name).name != name:
        raise ValueError(f"{name!r} cannot name a data set: it has to be a plain folder name")
    if not 120 <= items <= 400:
        raise ValueError(f"items must be 120 to 400 (100 negatives a user; distinct titles and pictures), got {items}")
    folder = Path(out) / name
    if folder.exists() and any(folder.iterdir()):
        raise FileExistsError(f"{folder} is not empty: remove it or choose another name or place")

    shop = _draw_shop(seed, preset, users, items)
    summary = {
        "name": name,
        "seed": seed,
        "preset": preset,
        "users": users,
        "items": items,
        "interactions": sum(len(sequence) for sequence in shop.sequences),
        "shares": preference_shares(shop),
        "scores": reference_scores(shop),
    }
    (folder / "images").mkdir(parents=True, exist_ok=True)
    _write_items(folder, shop, seed)
    _write_interactions(folder, shop)
    _write_truth(folder, shop, summary)
    return summary


def preference_shares(shop: Shop) -> dict[str, float]:
    """Share of each group of attributes, and of the appeal, in the preference variance that a shop came to have.

    A part's variance is that of its utility over the shop's items, mean over users; the parts' covariances are left out.
    """
    stated = features(shop.products)
    parts = {
        group: float((shop.tastes[:, seen] @ stated[:, seen].T).var(axis=1).mean())
        for group, seen in ((group, visible(attributes)) for group, attributes in GROUPS.items())
    }
    parts["appeal"] = float(shop.appeal.var())
    return {part: round(variance / sum(parts.values()), 4) for part, variance in parts.items()}


def _stream(seed: int, purpose: int) -> np.random.Generator:
    """A generator of its own for every purpose, so that a change to one leaves the others' draws alone."""
    return np.random.default_rng([seed, purpose])


def _draw_shop(seed: int, preset: str, users: int, items: int) -> Shop:
    products = _draw_products(_stream(seed, 0), items)
    rng = _stream(seed, 1)
    spread = _spread(PRESETS[preset])
    # Rounded before anything is drawn from them: what the json states is exactly the truth.
    appeal = np.round(rng.standard_normal(items) * APPEAL_SPREAD, 2)
    tastes = np.round(rng.standard_normal((users, len(spread))) * spread, 2)
    # Ordering by utility + Gumbel noise is drawing one by one without repeats from softmax(utility).
    order = np.argsort(-(tastes @ features(products).T + appeal + rng.gumbel(size=(users, items))), axis=1)
    lengths = rng.integers(SHORTEST, LONGEST + 1, size=users)
    sequences = tuple(tuple(int(item) for item in row[:length]) for row, length in zip(order, lengths))
    unsold = set(range(items)).difference(*sequences)
    if unsold:
        raise ValueError(f"{len(unsold)} of {items} items found no buyer among {users} users: ask for more users or fewer items")
    timestamps = _draw_timestamps(_stream(seed, 2), sequences)
    return Shop(_tokens("u", users), _tokens("p", items), products, appeal, tastes, spread, sequences, timestamps)


def _draw_timestamps(rng: np.random.Generator, sequences: tuple[tuple[int, ...], ...]) -> tuple[tuple[int, ...], ...]:
    """Purchases of one user are at least a day apart: RecBole keeps timestamps in 32 bits, exact to about two minutes."""
    days = [int(rng.integers(0, 365)) + np.cumsum(rng.integers(1, 31, size=len(sequence))) for sequence in sequences]
    return tuple(tuple(_START + int(day) * _DAY for day in user) for user in days)


def _draw_products(rng: np.random.Generator, items: int) -> tuple[Product, ...]:
    """Random products of the shops' share (`held_out`), of which no two have the same title or show the same attributes."""
    products: list[Product] = []
    known: set[tuple[str, ...]] = set()
    while len(products) < items:
        product = random_product(rng)
        faces = [(kind, *(product[name] for name in seen)) for kind, seen in (("t", TITLE_ATTRIBUTES), ("i", IMAGE_ATTRIBUTES))]
        if held_out(product) and known.isdisjoint(faces):
            known.update(faces)
            products.append(product)
    return tuple(products)


def _spread(shares: dict[str, float]) -> np.ndarray:
    """[W] standard deviation of the taste for every word.

    A taste for k equally frequent words varies over products by spread^2 (1 - 1/k) in expectation.
    """
    group_of = {name: group for group, names in GROUPS.items() for name in names}
    variance = {
        name: TASTE_VARIANCE * shares[group_of[name]] * _WITHIN_GROUP[name] / (1 - 1 / len(choices))
        for name, choices in ATTRIBUTES.items()
    }
    return np.array([round(variance[name] ** 0.5, 4) for name, _ in words()])


def _tokens(letter: str, count: int) -> tuple[str, ...]:
    return tuple(f"{letter}{number:0{len(str(count))}d}" for number in range(1, count + 1))


def _write_items(folder: Path, shop: Shop, seed: int) -> None:
    rng = _stream(seed, 3)
    rows = ["item_id:token\ttitle:token_seq\timage_path:token"]
    for item, product in zip(shop.items, shop.products):
        image_path = f"images/{item}.png"
        render(product, PICTURE_SIZE, rng).save(folder / image_path, optimize=True)
        rows.append(f"{item}\t{title(product)}\t{image_path}")
    _write_lines(folder / f"{folder.name}.item", rows)


def _write_interactions(folder: Path, shop: Shop) -> None:
    rows = ["user_id:token\titem_id:token\ttimestamp:float"]
    for user, sequence, timestamps in zip(shop.users, shop.sequences, shop.timestamps):
        rows += [f"{user}\t{shop.items[item]}\t{timestamp}" for item, timestamp in zip(sequence, timestamps)]
    _write_lines(folder / f"{folder.name}.inter", rows)


def _write_truth(folder: Path, shop: Shop, summary: dict) -> None:
    """The json, with one line for each product and each user: a readable file, and readable differences."""
    spread = {name: float(value) for (name, _), value in zip(words(), shop.spread)}
    short = {**summary, "words": ATTRIBUTES, "spread": spread}
    long = {
        "products": {item: product.values for item, product in zip(shop.items, shop.products)},
        "appeal": dict(zip(shop.items, shop.appeal.tolist())),
        "tastes": dict(zip(shop.users, shop.tastes.tolist())),
    }
    parts = [f"{json.dumps(key)}: {json.dumps(value)}" for key, value in short.items()]
    for key, table in long.items():
        lines = [f"{json.dumps(token)}: {json.dumps(value)}" for token, value in table.items()]
        parts.append(f"{json.dumps(key)}: {{\n" + ",\n".join(lines) + "\n}")
    _write_lines(folder / f"{folder.name}.json", ["{", ",\n".join(parts), "}"])


def _write_lines(path: Path, lines: list[str]) -> None:
    path.write_bytes(("\n".join(lines) + "\n").encode("utf-8"))
