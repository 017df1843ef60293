"""What the page's explorer shows: users with their histories, the true next item, and each model's best items.

Imports numpy, pillow, data.catalog, data.candidates and report.runs.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from recbole_vlm2rec.data.candidates import Histories
from recbole_vlm2rec.data.catalog import UNREADABLE, Catalog, CatalogError
from recbole_vlm2rec.report.runs import FinishedRun

THUMBNAIL = 112  # pixels
HISTORY = 10  # items, the latest
SIDES = {"": "test", "t2f": "test_t2f", "v2f": "test_v2f"}


def explorer_data(rows: Mapping[str, Mapping[int, FinishedRun]], histories: Histories, folder: Path, users: int) -> dict | None:
    """One data set for the explorer, in JSON's types; None where no run kept its best items.

    Args:
        rows: runs by row and seed; the lowest seed that all rows with best items have in common is shown, else each row's lowest.
        folder: of the data set; without `.item` there, items have their tokens for titles and no pictures.
        users: how many to choose from, drawn with a fixed seed.
    `items` are those that any of these users meets. `models[i].lists[side][u]` are places in `items`, best first, and
    `models[i].ranks[side][u]` the rank of the true item among the candidates; side is "" (all that the model reads), t2f or v2f.
    """
    kept = {row: by_seed for row, by_seed in rows.items() if any(run.top_items for run in by_seed.values())}
    if not kept:
        return None
    common = set.intersection(*(set(by_seed) for by_seed in kept.values()))
    runs = {row: by_seed[min(common or by_seed)] for row, by_seed in kept.items()}
    tokens = next(iter(runs.values())).ranks["test_users"]
    chosen = np.sort(np.random.default_rng(0).permutation(len(tokens))[:users])
    ids = {token: number for number, token in enumerate(histories.user_tokens.tolist())}
    places: dict[str, int] = {}

    def place(token: str) -> int:
        return places.setdefault(token, len(places))

    people = []
    for user in chosen:
        *history, target = [place(str(token)) for token in histories.item_tokens[histories.of(ids[str(tokens[user])])]]
        shown = history[-HISTORY:]
        people.append({"user": str(tokens[user]), "history": shown, "earlier": len(history) - len(shown), "target": target})
    models = []
    for row, run in runs.items():
        order = {str(token): number for number, token in enumerate(run.ranks["test_users"])}
        mine = [order[str(tokens[user])] for user in chosen]
        sides = [side for side, name in SIDES.items() if name in run.top_items]
        tops = {side: run.top_items[SIDES[side]][mine] for side in sides}
        lists = {side: [[place(str(token)) for token in best if token] for best in top] for side, top in tops.items()}
        ranks = {side: run.ranks[f"{SIDES[side]}_ranks"][mine].tolist() for side in sides}
        models.append({"row": row, "seed": run.seed, "lists": lists, "ranks": ranks})
    negatives = next(iter(runs.values())).result["config"]["eval_negatives"]
    return {"users": people, "items": _items(folder, list(places)), "models": models, "negatives": negatives}


def _items(folder: Path, tokens: list[str]) -> list[dict]:
    """{"title", "image"} of each: the picture as a small data URL, "" where there is none."""
    try:
        catalog = Catalog.read(folder, folder.name)
    except (CatalogError, OSError):
        catalog = ()
    known = {token: (catalog.title(token), thumbnail(catalog.image(token))) for token in tokens if token in catalog}
    return [dict(zip(("title", "image"), known.get(token, (token, "")), strict=True)) for token in tokens]


def thumbnail(picture: Path) -> str:
    """The picture within 112 x 112 pixels as a WebP data URL; "" for one that cannot be read."""
    try:
        with Image.open(picture) as image:
            small = ImageOps.exif_transpose(image).convert("RGB")
            small.thumbnail((THUMBNAIL, THUMBNAIL))
            stream = io.BytesIO()
            small.save(stream, "WEBP", quality=72)
    except UNREADABLE:
        return ""
    return "data:image/webp;base64," + base64.b64encode(stream.getvalue()).decode()
