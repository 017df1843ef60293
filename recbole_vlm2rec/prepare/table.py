"""Anyone's own tables of interactions and items to a data set; titles and pictures for a RecBole data set that has none.

May import the rest of this room.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from recbole_vlm2rec.prepare import columns as cells
from recbole_vlm2rec.prepare.build import Item, Source, build
from recbole_vlm2rec.prepare.columns import CellError, Moments
from recbole_vlm2rec.prepare.interactions import Interactions, InteractionsBuilder
from recbole_vlm2rec.prepare.lines import BadLines, file_facts
from recbole_vlm2rec.prepare.settings import Settings
from recbole_vlm2rec.prepare.table_readers import open_table
from recbole_vlm2rec.prepare.text import token_problem

_WEB = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:(//)?")  # two letters at least before the colon: C:\ is a drive
_OWN = ("item_id", "title", "image_path")


def prepare_table(
    interactions: str | Path | None,
    items: str | Path | None,
    name: str,
    out: str | Path,
    settings: Settings | None = None,
    from_recbole: str | Path | None = None,
    columns: Mapping[str, str] | None = None,
    pictures: str | Path | None = None,
    encoding: str | None = None,
    dry_run: bool = False,
) -> dict:
    """Makes `<out>/<name>` and returns the report that is its `prepare.json` (see `build`).

    Args:
        interactions, items: CSV (comma, semicolon, tab or | between), JSON lines, Parquet, the first two also as .gz; they may
            be one file.
        from_recbole: folder of a RecBole data set instead of `interactions`; further columns of its `.item` are kept. Without
            `items` its own title and picture columns are taken.
        columns: which column is the user, item, time, rating, title, picture; the others are guessed from their names.
        pictures: folder that picture paths are relative to; default the folder of the file that names them.
        encoding: of text files; default UTF-8, or UTF-16 with its mark.
        dry_run: report what would be kept; fetch and write nothing.
    Raises ValueError for tables that cannot be understood, saying which flag helps, and what `build` raises.
    """
    settings, columns = settings or Settings(), dict(columns or {})
    extra: dict[str, tuple[str, ...]] = {}
    extra_columns: tuple[str, ...] = ()
    notes: list[str] = []
    files: dict[Path, dict] = {}
    skipped: list[dict] = []
    if from_recbole is not None:
        if interactions is not None:
            raise ValueError("--interactions and --from_recbole both say where interactions come from; give one of them")
        interactions = _atomic_file(Path(from_recbole), ".inter")
        own_items = interactions.with_suffix(".item")
        if own_items.is_file():
            extra_columns, extra, bad = _read_further(own_items, settings)
            files[own_items] = file_facts(own_items)
            skipped.append(bad.report())
        items = items or own_items
    if interactions is None or items is None:
        raise ValueError("--interactions=FILE and --items=FILE are needed, or --from_recbole=FOLDER")
    interactions, items = Path(interactions), Path(items)
    rows, bad_rows = _read_interactions(interactions, columns, encoding, settings, notes)
    found, bad_items = _read_items(items, columns, encoding, settings, Path(pictures or items.parent), notes)
    blank = ("",) * len(extra_columns)
    found = {token: Item(item.title, item.picture, extra.get(token, blank)) for token, item in found.items()}
    for file, bad in ((interactions, bad_rows), (items, bad_items)):
        files.setdefault(file, file_facts(file))
        skipped.append(bad.report())
    source = Source(rows, found, list(files.values()), skipped, extra_columns, notes=tuple(notes))
    recipe = {
        "command": "table",
        "interactions": interactions.name,
        "items": items.name,
        "columns": columns,
        "encoding": encoding,
        "from_recbole": from_recbole is not None,
    }
    return build(source, name, Path(out), settings, recipe, dry_run=dry_run)


def _read_interactions(
    file: Path, chosen: Mapping[str, str], encoding: str | None, settings: Settings, notes: list[str]
) -> tuple[Interactions, BadLines]:
    bad = BadLines(file, settings.max_bad_lines)
    table = open_table(file, bad, encoding)
    places = cells.find(table.columns, {"user": True, "item": True, "time": True, "rating": False}, chosen, file)
    moments, builder = Moments(), InteractionsBuilder()
    rating = places.get("rating")
    for number, row in table.rows:
        try:
            user, item = (_token(kind, row[places[kind]]) for kind in ("user", "item"))
            rated = None if rating is None else cells.number(row[rating])
            moments.add(row[places["time"]])
        except CellError as error:
            bad.add(number, str(error))
            continue
        builder.add(user, item, 0.0, rated)
    bad.close(bad.lines)  # again: cells were judged after the last line was read
    if not len(builder):
        raise ValueError(f"{file} holds no interaction")
    times, kind = moments.seconds(file)
    notes.append(f"{file.name}: {_meanings(table.columns, places)}; times are {kind}")
    return builder.build(times), bad


def _read_items(
    file: Path, chosen: Mapping[str, str], encoding: str | None, settings: Settings, folder: Path, notes: list[str]
) -> tuple[dict[str, Item], BadLines]:
    bad = BadLines(file, settings.max_bad_lines)
    table = open_table(file, bad, encoding)
    places = cells.find(table.columns, {"item": True, "title": True, "picture": True}, chosen, file)
    found: dict[str, Item] = {}
    doubles: set[str] = set()
    for number, row in table.rows:
        try:
            token = _token("item", row[places["item"]])
        except CellError as error:
            bad.add(number, str(error))
            continue
        item = Item(cells.text(row[places["title"]]), _picture(cells.first_text(row[places["picture"]]), folder))
        if found.setdefault(token, item) != item:
            doubles.add(token)
    bad.close(bad.lines)
    notes.append(f"{file.name}: {_meanings(table.columns, places)}")
    if doubles:
        notes.append(f"{file.name}: {len(doubles)} items stand more than once and differ; the first counts")
    return found, bad


def _read_further(file: Path, settings: Settings) -> tuple[tuple[str, ...], dict[str, tuple[str, ...]], BadLines]:
    """Columns of a RecBole `.item` besides token, title and picture: their names with types, and their cells by item."""
    bad = BadLines(file, settings.max_bad_lines)
    table = open_table(file, bad)
    places = cells.find(table.columns, {"item": True}, {}, file)
    further = [place for place, name in enumerate(table.columns) if name.partition(":")[0] not in _OWN]
    rows = {row[places["item"]]: tuple(row[place] for place in further) for _, row in table.rows}
    return tuple(table.columns[place] for place in further), rows, bad


def _token(kind: str, value: object) -> str:
    try:
        token = cells.token(value)
    except CellError as error:
        raise CellError(f"{kind} {error}") from error
    if problem := token_problem(token):
        raise CellError(f"{kind} {token[:40]!r} {problem}")
    return token


def _picture(said: str, folder: Path) -> str | Path | None:
    """A URL as it is (one that is not http fails with its reason later), else a path; either slash parts folders."""
    if not said or _WEB.match(said):
        return said or None
    return folder / said.replace("\\", "/")


def _atomic_file(folder: Path, ending: str) -> Path:
    files = sorted(folder.glob(f"*{ending}"))
    if len(files) != 1:
        raise ValueError(f"{folder}: one {ending} file is expected there, found {len(files)}")
    return files[0]


def _meanings(there: list[str], places: Mapping[str, int]) -> str:
    """Which column was taken for what, and which for nothing."""
    taken = ", ".join(f"{meaning} = {there[place]}" for meaning, place in places.items())
    left = ", ".join(name for place, name in enumerate(there) if place not in places.values())
    return taken + (f"; not taken over: {left}" if left else "")
