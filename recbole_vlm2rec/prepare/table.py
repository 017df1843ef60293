"""Anyone's own tables of interactions and items to a data set; titles and pictures for a RecBole data set that has none.

May import the rest of this room.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

from recbole_vlm2rec.prepare import columns as cells
from recbole_vlm2rec.prepare.build import Item, Source, build
from recbole_vlm2rec.prepare.columns import CellError, Moments
from recbole_vlm2rec.prepare.interactions import Interactions, InteractionsBuilder
from recbole_vlm2rec.prepare.lines import BadLines, file_facts
from recbole_vlm2rec.prepare.settings import Settings
from recbole_vlm2rec.prepare.table_readers import BEGINNING, open_table
from recbole_vlm2rec.prepare.text import token_problem

_WEB = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:(//)?")  # two letters at least before the colon: C:\ is a drive
_OWN = ("item_id", "title", "image_path")


@dataclass
class _Reading:
    """How one file was understood. `taken`: (meaning, column); `times`: the kind of its times."""

    file: Path
    columns: list[str]
    bad: BadLines
    taken: list[tuple[str, str]] = field(default_factory=list)
    times: str = ""
    remarks: list[str] = field(default_factory=list)
    late: list[str] = field(default_factory=list)

    def take(self, places: Mapping[str, int]) -> None:
        self.taken += [(meaning, self.columns[place]) for meaning, place in places.items()]


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
        columns: which column is the user, item, time, rating, title, picture; the others are guessed from their names. The
            item's counts in each file that has it.
        pictures: folder that picture paths are relative to; default the folder of the file that names them.
        encoding: of text files; default UTF-8, or UTF-16 with its mark.
        dry_run: report what would be kept; fetch and write nothing.
    Raises ValueError for tables that cannot be understood, saying which flag helps, and what `build` raises.
    """
    settings, columns = settings or Settings(), dict(columns or {})
    extra: dict[str, tuple[str, ...]] = {}
    extra_columns: tuple[str, ...] = ()
    readings: list[_Reading] = []
    if from_recbole is not None:
        if interactions is not None:
            raise ValueError("--interactions and --from_recbole both say where interactions come from; give one of them")
        interactions = _atomic_file(Path(from_recbole), ".inter")
        own_items = interactions.with_suffix(".item")
        if own_items.is_file():
            extra_columns, extra, reading = _read_further(own_items, columns, settings)
            readings.append(reading)
        items = items or own_items
    if interactions is None or items is None:
        raise ValueError("--interactions=FILE and --items=FILE are needed, or --from_recbole=FOLDER")
    interactions, items = Path(interactions), Path(items)
    for_interactions, for_items = _choices(columns, interactions, items, encoding)
    rows, reading = _read_interactions(interactions, for_interactions, encoding, settings)
    readings.append(reading)
    found, reading = _read_items(items, for_items, encoding, settings, Path(pictures or items.parent))
    readings.append(reading)
    blank = ("",) * len(extra_columns)
    found = {token: Item(item.title, item.picture, extra.get(token, blank)) for token, item in found.items()}
    files = [file_facts(file) for file in dict.fromkeys(reading.file for reading in readings)]
    skipped = [reading.bad.report() for reading in readings]
    source = Source(rows, found, files, skipped, extra_columns, notes=_notes(readings))
    recipe = {
        "command": "table",
        "interactions": interactions.name,
        "items": items.name,
        "columns": columns,
        "encoding": encoding,
        "from_recbole": from_recbole is not None,
        **({"pictures": str(pictures)} if pictures is not None else {}),
    }
    return build(source, name, Path(out), settings, recipe, dry_run=dry_run)


def _choices(
    columns: Mapping[str, str], interactions: Path, items: Path, encoding: str | None
) -> tuple[Mapping[str, str], Mapping[str, str]]:
    """The columns chosen for each of the files. One item column is chosen for both: where only one file has it, the other's is
    guessed."""
    if "item" not in columns or interactions == items:
        return columns, columns
    has = []
    for file in (interactions, items):
        table = open_table(file, BadLines(file, 1.0), encoding)
        with closing(table.rows):
            has.append(cells.named(columns["item"], table.columns) is not None)
    others = {meaning: name for meaning, name in columns.items() if meaning != "item"}
    return tuple(others if any(has) and not there else columns for there in has)


def _read_interactions(
    file: Path, chosen: Mapping[str, str], encoding: str | None, settings: Settings
) -> tuple[Interactions, _Reading]:
    bad = BadLines(file, settings.max_bad_lines)
    table = open_table(file, bad, encoding)
    reading = _Reading(file, table.columns, bad, late=table.late)
    places = cells.find(table.columns, {"user": True, "item": True, "time": True, "rating": False}, chosen, file)
    reading.take(places)
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
    times, reading.times = moments.seconds(file)
    return builder.build(times), reading


def _read_items(
    file: Path, chosen: Mapping[str, str], encoding: str | None, settings: Settings, folder: Path
) -> tuple[dict[str, Item], _Reading]:
    bad = BadLines(file, settings.max_bad_lines)
    table = open_table(file, bad, encoding)
    reading = _Reading(file, table.columns, bad, late=table.late)
    places = cells.find(table.columns, {"item": True, "title": True, "picture": True}, chosen, file)
    reading.take(places)
    found: dict[str, Item] = {}
    doubles: set[str] = set()
    for number, row in table.rows:
        try:
            token = _token("item", row[places["item"]])
            title = _named("title", cells.text, row[places["title"]])
            picture = _picture(_named("picture", cells.first_text, row[places["picture"]]), folder)
        except CellError as error:
            bad.add(number, str(error))
            continue
        item = Item(title, picture)
        if found.setdefault(token, item) != item:
            doubles.add(token)
    bad.close(bad.lines)
    if not found:
        raise ValueError(f"{file} holds no item")
    if doubles:
        reading.remarks.append(f"{len(doubles)} items stand more than once and differ; the first counts")
    return found, reading


def _read_further(
    file: Path, chosen: Mapping[str, str], settings: Settings
) -> tuple[tuple[str, ...], dict[str, tuple[str, ...]], _Reading]:
    """Columns of a RecBole `.item` besides token, title and picture: their names with types, and their cells by item."""
    bad = BadLines(file, settings.max_bad_lines)
    table = open_table(file, bad)
    reading = _Reading(file, table.columns, bad)
    if cells.named(chosen.get("item", ""), table.columns) is None:
        chosen = {}
    places = cells.find(table.columns, {"item": True}, chosen, file)
    reading.take(places)
    further = [place for place, name in enumerate(table.columns) if name.partition(":")[0] not in _OWN]
    reading.taken += [("kept", table.columns[place]) for place in further]
    found: dict[str, tuple[str, ...]] = {}
    doubles: set[str] = set()
    for _, row in table.rows:
        further_cells = tuple(row[place] for place in further)
        if found.setdefault(row[places["item"]], further_cells) != further_cells:
            doubles.add(row[places["item"]])
    if doubles:
        reading.remarks.append(f"further columns of {len(doubles)} items stand more than once and differ; the first count")
    return tuple(table.columns[place] for place in further), found, reading


def _named(kind: str, read: Callable[[object], str], value: object) -> str:
    """`read(value)`; its CellError says which cell."""
    try:
        return read(value)
    except CellError as error:
        raise CellError(f"{kind} {error}") from error


def _token(kind: str, value: object) -> str:
    token = _named(kind, cells.token, value)
    if problem := token_problem(token):
        raise CellError(f"{kind} {token[:40]!r} {problem}")
    return token


def _picture(said: str, folder: Path) -> str | Path | None:
    """A URL as it is (one that is not http fails with its reason later), else a path; either slash parts folders."""
    if said.startswith("//"):  # as pages write it, with the page's own scheme
        return f"https:{said}"
    if not said or _WEB.match(said):
        return said or None
    return folder / said.replace("\\", "/")


def _atomic_file(folder: Path, ending: str) -> Path:
    files = sorted(folder.glob(f"*{ending}"))
    if len(files) != 1:
        raise ValueError(f"{folder}: one {ending} file is expected there, found {len(files)}")
    return files[0]


def _notes(readings: list[_Reading]) -> tuple[str, ...]:
    """By file (one may have been read twice): which column was taken for what, which for nothing, and remarks."""
    notes = []
    for file in dict.fromkeys(reading.file for reading in readings):
        of_file = [reading for reading in readings if reading.file == file]
        taken: dict[str, list[str]] = {}
        for reading in of_file:
            for meaning, column in reading.taken:
                taken.setdefault(meaning, []).append(column)
        said = ", ".join(f"{meaning} = {', '.join(dict.fromkeys(columns))}" for meaning, columns in taken.items())
        used = {column for columns in taken.values() for column in columns}
        if left := [name for name in of_file[0].columns if name and name not in used]:
            said += f"; not taken over: {', '.join(left)}"
        if late := dict.fromkeys(name for reading in of_file for name in reading.late):
            said += f"; not taken over, for the first {BEGINNING} lines are without: {', '.join(late)}"
        said += "".join(f"; times are {reading.times}" for reading in of_file if reading.times)
        notes += [f"{file.name}: {what}" for what in (said, *(remark for reading in of_file for remark in reading.remarks))]
    return tuple(notes)
