"""How fast raw files become a data set, and pictures come in, beside the plain loop that one would write.

May import benchmark.amazon_shop, prepare, and requests (for the plain loop). Everything comes from a server on this machine, in a
process of its own, that shares its cores.
"""

from __future__ import annotations

import io
import json
import os
import platform
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from PIL import Image
from tqdm import tqdm

from recbole_vlm2rec.benchmark.amazon_shop import server, write_raw
from recbole_vlm2rec.prepare.amazon import prepare_amazon
from recbole_vlm2rec.prepare.gallery import collect
from recbole_vlm2rec.prepare.settings import Settings

REPEATS = 3
UNREVIEWED = 247_000
"""Items that stand in the metadata only: meta_Beauty.json.gz of 2014 has 259,204 items, 12,101 of them in the 5-core."""


def benchmark(sequences: Path | None = None, json_file: Path | None = None, plain_pictures: int = 600) -> dict:
    """Measures on raw files made from `sequences` (an `.inter` file; default: generated); prints a table, returns the figures.

    Filtering and writing are timed with all pictures in the cache already, pictures with an empty cache, the plain loop on
    `plain_pictures` of the same pictures, alternating with ours; medians of three.
    """
    try:
        import requests
    except ImportError as error:
        raise ValueError('the plain loop beside ours needs requests: pip install "recbole-vlm2rec[benchmark]"') from error
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        (folder / "web").mkdir()
        with server(folder / "web") as url:
            unreviewed = UNREVIEWED if sequences else 2_000
            shop = write_raw(folder / "web", url, sequences, flawed=10, unreviewed=unreviewed, users=3_000, items=1_500)
            settings = Settings(picture_cache=folder / "cache", allow_private=True, overwrite=True)
            report = prepare_amazon("Beauty", folder / "web", folder / "out", settings)  # the cache is full from here on

            def whole() -> None:
                prepare_amazon("Beauty", folder / "web", folder / "out", settings)

            seconds = {"filter and write": _median(whole, before=lambda: shutil.rmtree(folder / "out"))}
            pictures = {item: f"{url}/images/I/{item}.jpg" for item in sorted({item for _, item in shop.rows})}
            sample = dict(list(pictures.items())[:plain_pictures])
            ours, plain, few = [], [], []
            for repeat in range(REPEATS):
                for times, wanted in ((ours, pictures), (few, sample)):
                    times.append(_timed(partial(collect, wanted, _fresh(settings, folder))))
                place_of_plain = folder / f"plain{repeat}"
                plain.append(_timed(partial(_plain_loop, requests, sample, place_of_plain, settings.longest_side)))
    rates = {
        "pictures, ours": len(pictures) / statistics.median(ours),
        "pictures, ours, sample": len(sample) / statistics.median(few),
        "pictures, plain loop, sample": len(sample) / statistics.median(plain),
    }
    figures = {
        "machine": {"processor": _processor(), "cores": os.cpu_count(), "python": platform.python_version()},
        "data": {**report["steps"][0], "metadata_lines": unreviewed + report["steps"][0]["items"], "pictures": len(pictures)},
        "seconds": seconds,
        "pictures_per_second": rates,
        "ratio_to_plain_loop": statistics.median(slow / fast for slow, fast in zip(plain, few)),
    }
    print(_table(figures))
    if json_file:
        json_file.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    return figures


def _plain_loop(requests, pictures: dict[str, str], folder: Path, longest_side: int) -> None:
    """As one would write it: one after the other, in one session."""
    folder.mkdir()
    with requests.Session() as session:
        for item, url in tqdm(pictures.items(), desc="Plain loop", unit="picture", leave=False):
            response = session.get(url, timeout=30)
            response.raise_for_status()
            picture = Image.open(io.BytesIO(response.content)).convert("RGB")
            picture.thumbnail((longest_side, longest_side))
            picture.save(folder / f"{item}.jpg", quality=90)


def _fresh(settings: Settings, folder: Path) -> Settings:
    """The settings with an empty cache."""
    return Settings(picture_cache=Path(tempfile.mkdtemp(dir=folder)), allow_private=settings.allow_private)


def _timed(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def _median(work: Callable[[], object], before: Callable[[], object]) -> float:
    times = []
    for _ in range(REPEATS):
        before()
        times.append(_timed(work))
    return statistics.median(times)


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor()


def _table(figures: dict) -> str:
    data, rates = figures["data"], figures["pictures_per_second"]
    return "\n".join([
        f"{data['users']:,} users, {data['items']:,} items, {data['interactions']:,} interactions, {data['metadata_lines']:,} "
        f"lines of metadata: read, filtered, written in {figures['seconds']['filter and write']:.1f} s (pictures in the cache)",
        f"{data['pictures']:,} pictures from a server on this machine: {rates['pictures, ours']:.0f} a second",
        f"a sample of them: {rates['pictures, ours, sample']:.0f} a second; plain requests loop "
        f"{rates['pictures, plain loop, sample']:.0f} a second; ratio {figures['ratio_to_plain_loop']:.1f}",
        f"{figures['machine']['processor']}, {figures['machine']['cores']} cores; medians of {REPEATS}",
    ])  # fmt: skip
