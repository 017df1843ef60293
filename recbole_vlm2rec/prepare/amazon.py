"""A category of the Amazon reviews, from its raw files (downloaded where they are missing) to a data set.

May import the rest of this room. Files are streamed: memory grows with interactions and reviewed items, not with the files.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from recbole_vlm2rec.prepare import interactions as filters
from recbole_vlm2rec.prepare.build import Item, Source, Steps, build
from recbole_vlm2rec.prepare.fetch import download_all
from recbole_vlm2rec.prepare.interactions import Interactions, InteractionsBuilder
from recbole_vlm2rec.prepare.lines import BadLines, file_facts, text_lines
from recbole_vlm2rec.prepare.releases import PAPER, RELEASES, LineError, Release, item, parse, review
from recbole_vlm2rec.prepare.settings import Settings
from recbole_vlm2rec.prepare.text import clean_title, token_problem

# `{'asin': '…'` at the start of a line is the item, whatever `asin` may stand further on; most items of a metadata file have
# no review, and their lines need not be parsed.
_FIRST_KEY = re.compile(rb"""\{['"](?:parent_)?asin['"]: ['"]([A-Za-z0-9]+)['"]""")


def prepare_amazon(
    category: str,
    raw: str | Path,
    out: str | Path,
    settings: Settings | None = None,
    release: str = "2014",
    name: str | None = None,
    base_url: str | None = None,
) -> dict:
    """Makes `<out>/<name>` and returns the report that is its `prepare.json` (see `build`).

    Args:
        category: Beauty, Toys, Clothing, Sports, or a category as the release names it.
        raw: folder of the raw files; what is missing there is downloaded.
        release: 2014 (the paper's), 2018 or 2023.
        name: of the data set; default the category, with the release unless that is 2014.
        base_url: folder on the web that holds the raw files; default the release's own places.
    Raises ValueError for unreadable files and for filters that leave nothing, OSError for what cannot be fetched or written.
    """
    settings = settings or Settings()
    if release not in RELEASES:
        raise ValueError(f"release is {release!r}: choose one of {', '.join(RELEASES)}")
    form = RELEASES[release]
    short = {known.lower(): known for known in form.categories}.get(category.lower())
    full = form.categories[short] if short else category
    if not re.fullmatch(r"\w+", full):
        raise ValueError(
            f"category is {category!r}: choose {', '.join(form.categories)} or a name of the release, such as Office_Products"
        )
    reviews, metadata = _raw_files(form, full, Path(raw), settings, base_url)
    interactions, steps, bad_reviews = _read_reviews(reviews, form, settings)
    wanted = {interactions.item_tokens[code] for code in np.unique(interactions.items).tolist()}
    items, doubles, bad_items = _read_items(metadata, form, settings, wanted)
    source = Source(
        interactions,
        items,
        [file_facts(reviews), file_facts(metadata)],
        [bad_reviews.report(), bad_items.report()],
        steps=steps,
        notes=(f"{doubles} items stand more than once in {metadata.name}; the first with title and picture counts",)
        * bool(doubles),
    )
    name = name or (short or category) + ("" if release == "2014" else f"-{release}")
    recipe = {"command": "amazon", "release": release, "category": full}
    return build(source, name, Path(out), settings, recipe, PAPER.get(full) if release == "2014" else None)


def _raw_files(form: Release, category: str, raw: Path, settings: Settings, base_url: str | None) -> list[Path]:
    """Reviews and metadata: as they lie in the folder, compressed or not, else downloaded."""
    urls = [url.format(category=category) for url in (form.reviews, form.metadata)]
    if base_url:
        urls = [f"{base_url.rstrip('/')}/{url.rpartition('/')[2]}" for url in urls]
    files = [raw / url.rpartition("/")[2] for url in urls]
    files = [file.with_suffix("") if file.with_suffix("").is_file() and not file.is_file() else file for file in files]
    missing = {file: url for file, url in zip(files, urls) if not file.is_file()}
    if missing:
        download_all(missing, settings)
    return files


def _read_reviews(file: Path, form: Release, settings: Settings) -> tuple[Interactions, list[dict], BadLines]:
    bad = BadLines(file, settings.max_bad_lines)
    builder = InteractionsBuilder()
    good: dict[str, bool] = {}
    for number, line in text_lines(file, bad):
        try:
            user, token, time, rating = review(form, parse(line))
            for kind, word in (("user", user), ("item", token)):
                if word not in good:
                    if problem := token_problem(word):
                        raise LineError(f"{kind} {word[:40]!r} {problem}")
                    good[word] = True
        except LineError as error:
            bad.add(number, str(error))
            continue
        builder.add(user, token, time, rating)
    if not len(builder):
        raise ValueError(f"{file} holds no review")
    steps = Steps(builder.build())
    if not form.core and settings.min_interactions > 1:
        # The other releases' files are 5-cores to begin with.
        steps.then(f"{settings.min_interactions}-core first", filters.k_core(steps.interactions, settings.min_interactions))
    return steps.interactions, steps.steps, bad


def _read_items(file: Path, form: Release, settings: Settings, wanted: set[str]) -> tuple[dict[str, Item], int, BadLines]:
    """Reviewed items, how many of them stand more than once, and the bad lines."""
    bad = BadLines(file, settings.max_bad_lines)
    items: dict[str, Item] = {}
    doubles: set[str] = set()
    for number, line in text_lines(file, bad):
        start = _FIRST_KEY.match(line)
        if start and start[1].decode() not in wanted:
            bad.pass_over()
            continue
        try:
            token, found = item(form, parse(line))
        except LineError as error:
            bad.add(number, str(error))
            continue
        if token not in wanted:
            bad.pass_over()
            continue
        if token in items:
            doubles.add(token)
            if _complete(items[token]) or not _complete(found):
                continue
        items[token] = found
    return items, len(doubles), bad


def _complete(found: Item) -> bool:
    return bool(found.picture and clean_title(found.title))
