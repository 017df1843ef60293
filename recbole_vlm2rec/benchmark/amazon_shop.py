"""A stand-in for the place where the Amazon files of 2014 lie: raw files in their exact form, and a server for them and pictures.

May import numpy, pillow, aiohttp and the standard library. For the preparation's benchmark and tests; the sequences may be real,
titles and pictures are generated.
"""

from __future__ import annotations

import asyncio
import gzip
import io
import json
import random
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from aiohttp import web
from PIL import Image

FLAWS = ("no title", "no imUrl", "no picture at imUrl", "no metadata")
"""What an item that will be dropped lacks, in turn."""

_WORDS = "hair cream lotion soft skin nail polish lip balm brush set pack organic vitamin natural daily care repair oil".split()
_SECONDS_A_DAY = 86_400


@dataclass(frozen=True)
class Shop:
    """What was written: the sequences as [user, item] lists in time order, and the flaw of each item that has one."""

    rows: list[tuple[str, str]]
    flaws: dict[str, str]


def write_raw(
    folder: Path,
    base_url: str,
    sequences: Path | None = None,
    flawed: int = 0,
    unreviewed: int = 0,
    users: int = 300,
    items: int = 60,
    seed: int = 0,
) -> Shop:
    """Writes reviews_Beauty_5.json.gz and meta_Beauty.json.gz.

    Args:
        base_url: of the server whose pictures `imUrl` names.
        sequences: an `.inter` file (user_id, item_id, timestamp) whose sequences are taken; default `users` random ones over
            `items` items.
        flawed: so many items, drawn at random, lack something (`FLAWS` in turn).
        unreviewed: so many further items stand in the metadata only, as most do in the real files.
    """
    draw = random.Random(seed)
    rows = _read(sequences) if sequences else _random_rows(draw, users, items)
    tokens = sorted({item for _, item in rows})
    flaws = {token: FLAWS[place % len(FLAWS)] for place, token in enumerate(draw.sample(tokens, flawed))}
    folder.mkdir(parents=True, exist_ok=True)
    _write_reviews(folder / "reviews_Beauty_5.json.gz", rows, draw)
    with gzip.open(folder / "meta_Beauty.json.gz", "wt", encoding="utf-8", compresslevel=1, newline="\n") as file:
        for token in sorted([*tokens, *(f"B9{number:08d}" for number in range(unreviewed))]):
            if flaws.get(token) != "no metadata":
                file.write(f"{_metadata(token, flaws.get(token), base_url, draw)!r}\n")
    return Shop(rows, flaws)


def _read(file: Path) -> list[tuple[str, str]]:
    lines = file.read_text(encoding="utf-8").splitlines()
    places = [[column.split(":")[0] for column in lines[0].split("\t")].index(name) for name in ("user_id", "item_id")]
    return [(cells[places[0]], cells[places[1]]) for cells in (line.split("\t") for line in lines[1:])]


def _random_rows(draw: random.Random, users: int, items: int) -> list[tuple[str, str]]:
    tokens = [f"B{number:09d}" for number in range(items)]
    weights = [1 / (1 + place) ** 0.5 for place in range(items)]
    lengths = [draw.choice([3, 5, 6, 7, 8, 12, 20]) for _ in range(users)]
    return [(f"A{user:012d}", token) for user, length in enumerate(lengths) for token in draw.choices(tokens, weights, k=length)]


def _write_reviews(file: Path, rows: list[tuple[str, str]], draw: random.Random) -> None:
    """Grouped by item, as the real file is; each user's days rise by one from a random one."""
    days: dict[str, int] = {}
    reviews = []
    for user, item in rows:
        days[user] = days.get(user, draw.randrange(12_000, 16_000)) + 1
        reviews.append((item, user, days[user] * _SECONDS_A_DAY))
    reviews.sort(key=lambda review: review[0])
    with gzip.open(file, "wt", encoding="utf-8", compresslevel=1, newline="\n") as stream:
        for item, user, seconds in reviews:
            stream.write(json.dumps({
                "reviewerID": user, "asin": item, "reviewerName": "A. Customer", "helpful": [draw.randrange(4), 4],
                "reviewText": " ".join(draw.choices(_WORDS, k=90)), "overall": float(draw.randrange(1, 6)),
                "summary": " ".join(draw.choices(_WORDS, k=4)), "unixReviewTime": seconds, "reviewTime": "01 30, 2014",
            }) + "\n")  # fmt: skip


def _metadata(token: str, flaw: str | None, base_url: str, draw: random.Random) -> dict:
    """One item; `repr` of it is a line of the real file."""
    place = "gone" if flaw == "no picture at imUrl" else "images/I"
    item = {
        "asin": token,
        "description": " ".join(draw.choices(_WORDS, k=60)) + ' "it\'s" 100% <b>pure</b>',
        "title": f"{' '.join(draw.choices(_WORDS, k=6)).title()} &amp; More, {draw.randrange(1, 99)} oz",
        "price": draw.randrange(100, 9900) / 100,
        "imUrl": f"{base_url}/{place}/{token}.jpg",
        "related": {"also_bought": [f"B{draw.randrange(10**9):09d}" for _ in range(30)], "buy_after_viewing": ["7806397051"]},
        "salesRank": {"Beauty": draw.randrange(700_000)},
        "categories": [["Beauty", "Skin Care", "Face"]],
    }
    if flaw == "no title":
        del item["title"]
    if flaw == "no imUrl":
        del item["imUrl"]
    return item


class Pictures:
    """A JPEG for any name: a few are drawn, and each answer carries the name, so that no two are equal."""

    def __init__(self, distinct: int = 64, side: int = 300):
        rng = np.random.default_rng(0)
        self._drawn = []
        for _ in range(distinct):
            coarse = Image.fromarray(rng.integers(0, 256, (12, 12, 3), dtype=np.uint8))
            picture = coarse.resize((side, side), Image.Resampling.BICUBIC)
            noise = np.clip(np.asarray(picture, np.int16) + rng.integers(-12, 12, (side, side, 1)), 0, 255)
            out = io.BytesIO()
            Image.fromarray(noise.astype(np.uint8)).save(out, "JPEG", quality=85)
            self._drawn.append(out.getvalue())

    def __call__(self, name: str) -> bytes:
        drawn = self._drawn[sum(name.encode()) % len(self._drawn)]
        comment = name.encode()[:1000]
        return drawn[:2] + b"\xff\xfe" + (len(comment) + 2).to_bytes(2, "big") + comment + drawn[2:]


def _app(folder: Path, delay: float) -> web.Application:
    pictures = Pictures()

    async def picture(request: web.Request) -> web.Response:
        await asyncio.sleep(delay)
        return web.Response(body=pictures(request.match_info["name"]), content_type="image/jpeg")

    app = web.Application()
    app.router.add_get("/images/I/{name}", picture)
    app.router.add_static("/", folder)
    return app


@contextmanager
def server(folder: Path, delay: float = 0.0) -> Iterator[str]:
    """The URL of a server, in a process of its own, for the files in `folder` and any `/images/I/<name>`."""
    command = [sys.executable, "-m", "recbole_vlm2rec.benchmark.amazon_shop", str(folder), str(delay)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        yield f"http://127.0.0.1:{int(process.stdout.readline())}"
    finally:
        process.kill()
        process.wait()


async def _serve(folder: Path, delay: float) -> None:
    runner = web.AppRunner(_app(folder, delay), access_log=None)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    print(site._server.sockets[0].getsockname()[1], flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(_serve(Path(sys.argv[1]), float(sys.argv[2])))
