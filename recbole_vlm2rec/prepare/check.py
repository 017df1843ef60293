"""Everything in a data set that a run would trip over, in one report: the same rules as those of the readers, all lines.

May import data.atomic_files, data.candidates, data.catalog, the rest of prepare, numpy, pillow, tqdm and the standard library.
"""

from __future__ import annotations

import hashlib
import io
import os
import re
from array import array
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError
from tqdm import tqdm

from recbole_vlm2rec.data import candidates
from recbole_vlm2rec.data.atomic_files import Problem, read_interactions
from recbole_vlm2rec.data.catalog import UNREADABLE, Entry, picture_problem, read_entries
from recbole_vlm2rec.prepare.pictures import LARGEST_RATIO
from recbole_vlm2rec.prepare.text import clean_title

EXAMPLES = 3
NEGATIVES = 100
"""`eval_negatives` of props/overall.yaml: a run with another number may want more or fewer items."""

SCOPE = "looked at"

_STORED = re.compile(r"-(?P<count>\d+)-seed(?P<seed>\d+)-(?P<data>[0-9a-f]{8})\.npz")


@dataclass(frozen=True)
class Finding:
    """All problems of one kind in one file.

    message: what to do. examples: at most EXAMPLES, each with file and line where it has them. fatal: a run would stop.
    The first finding of a report is of kind SCOPE: what was looked at, and how much of it (count: 0).
    """

    kind: str
    message: str
    count: int
    examples: tuple[str, ...]
    fatal: bool


class _Report:
    """Findings by kind, in the order of the first of each."""

    def __init__(self) -> None:
        self._found: dict[str, Finding] = {}

    def add(self, kind: str, message: str, examples: Iterable[str], count: int = 1, fatal: bool = False) -> None:
        """Counts `count` more of a kind (none: nothing is noted); the first examples are kept."""
        if not count:
            return
        before = self._found.get(kind, Finding(kind, message, 0, (), fatal))
        missing = EXAMPLES - len(before.examples)
        examples = (*before.examples, *islice(examples, missing))
        self._found[kind] = replace(before, count=before.count + count, examples=examples)

    def add_problem(self, problem: Problem) -> None:
        self.add(f"{problem.file.name}: {problem.kind}", problem.remedy, [problem.statement], fatal=True)

    def findings(self) -> list[Finding]:
        """Fatal ones first."""
        return sorted(self._found.values(), key=lambda finding: not finding.fatal)


@dataclass
class _Rows:
    """The readable lines of `.inter`: codes [n] in order of first appearance in the file, times [n], line numbers [n]."""

    user_tokens: list[str]
    item_tokens: list[str]
    users: np.ndarray
    items: np.ndarray
    times: np.ndarray
    lines: np.ndarray


def check(folder: Path, name: str) -> list[Finding]:
    """Looks at `<folder>/<name>.inter`, `.item`, every picture and the stored candidates; nothing is written.

    Returns what was looked at, then the fatal findings, then the notes. Fatal is what stops a run of VLM2Rec under the default
    settings. Every picture is decoded, on all cores.
    """
    folder = Path(folder)
    inter, item = folder / f"{name}.inter", folder / f"{name}.item"
    report = _Report()
    if not folder.is_dir():
        there = sorted(path.name for path in folder.parent.glob("*") if (path / f"{path.name}.inter").is_file())
        message = f"data sets in {folder.parent}: {', '.join(there) or 'none'}; another folder: --data_path=FOLDER"
        report.add("no such data set", message, [str(folder)], fatal=True)
        return [Finding(SCOPE, f"{folder}, which is not there", 0, (), False), *report.findings()]
    rows = _read_rows(inter, report)
    entries, known = _read_items(folder, name, report)
    pictures = _check_pictures(item, entries, report)
    _check_titles(item, entries, report)
    if len(rows.users):
        _check_users(inter, rows, report)
        _check_order(inter, rows, report)
        _check_candidates(folder, name, rows, report)
        if known is not None:
            _check_items(inter, item, rows, entries, known, report)
    looked = (
        f"{folder}: {len(rows.user_tokens):,} users, {len(rows.item_tokens):,} items and {len(rows.users):,} interactions in "
        f"{inter.name}, {len(entries):,} items in {item.name}, {pictures:,} pictures"
    )
    return [Finding(SCOPE, looked, 0, (), False), *report.findings()]


def describe(findings: Sequence[Finding]) -> str:
    """What was looked at; each kind with its count, what to do and examples; the verdict."""
    text = []
    for finding in findings:
        if finding.kind == SCOPE:
            text.append(f"{SCOPE} {finding.message}")
            continue
        text.append(f"{'error' if finding.fatal else 'note'}: {finding.kind}: {finding.count:,}\n  {finding.message}")
        text += [f"  - {example}" for example in finding.examples]
        if finding.count > len(finding.examples) > 0:
            text[-1] += " …"
    fatal = sum(finding.fatal for finding in findings)
    text.append(
        f"{fatal} kind{'s' * (fatal > 1)} of error: a run would stop" if fatal else "no errors: a run can use this data set"
    )
    return "\n".join(text)


def _read_rows(inter: Path, report: _Report) -> _Rows:
    user_codes: dict[str, int] = {}
    item_codes: dict[str, int] = {}
    users, items, times, lines = array("q"), array("q"), array("d"), array("q")
    for row in read_interactions(inter):
        if isinstance(row, Problem):
            report.add_problem(row)
            continue
        users.append(user_codes.setdefault(row.user, len(user_codes)))
        items.append(item_codes.setdefault(row.item, len(item_codes)))
        times.append(row.time)
        lines.append(row.line)
    return _Rows(list(user_codes), list(item_codes), *(np.array(column) for column in (users, items, times, lines)))


def _read_items(folder: Path, name: str, report: _Report) -> tuple[list[Entry], set[str] | None]:
    """The sound lines of `.item`, and the items of all lines, None where there are no columns to find them in."""
    entries, known = [], set()
    for entry in read_entries(folder / f"{name}.item"):
        if isinstance(entry, Entry):
            if entry.item not in known:  # a second line comes as a Problem too
                entries.append(entry)
            known.add(entry.item)
            continue
        report.add_problem(entry)
        if entry.line in (None, 1):
            return entries, None
        if entry.item is not None:
            known.add(entry.item)
    return entries, known


def _check_pictures(file: Path, entries: Sequence[Entry], report: _Report) -> int:
    """Decodes every picture; returns how many files there are."""
    first = {entry.image: entry for entry in reversed(entries)}
    same: dict[bytes, list[Path]] = {}
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        looks = tqdm(pool.map(_look_at, first), total=len(first), desc="Pictures", leave=False, disable=None)
        for (path, entry), (digest, error) in zip(first.items(), looks):
            same.setdefault(digest, []).append(path)
            if error:
                report.add_problem(picture_problem(file, entry, error))
    owners: dict[Path, list[Entry]] = {}
    for entry in entries:
        owners.setdefault(entry.image, []).append(entry)
    groups = [
        sorted((entry for path in paths for entry in owners[path]), key=lambda entry: entry.line) for paths in same.values()
    ]
    groups = sorted((group for group in groups if len(group) > 1), key=len, reverse=True)
    message = "a placeholder says nothing about its items; drop them, or find their pictures"
    examples = (f"{_where(file, group[0])}: {group[0].image.name}, as {_some(group[1:])}" for group in groups)
    report.add("items that share a picture, byte for byte", message, examples, sum(map(len, groups)))
    return len(owners)


def _look_at(path: Path) -> tuple[bytes, str]:
    """SHA-256 of the file, and why a run could not use the picture ("" where it can): read as Catalog and the encoder do."""
    data = b""
    try:
        data = path.read_bytes()
        with Image.open(io.BytesIO(data)) as image:
            image.verify()
        with Image.open(io.BytesIO(data)) as image:
            if max(image.size) > LARGEST_RATIO * min(image.size):
                error = f"one side is more than {LARGEST_RATIO} times the other"
            else:
                # JPEG at an eighth of its size: all bytes are still read, so a truncated file is found, in far less time.
                image.draft(None, (1, 1))
                ImageOps.exif_transpose(image).convert("RGB")
                error = ""
    except UnidentifiedImageError:
        error = "empty, or not a picture of a known format"
    except UNREADABLE as problem:
        error = str(problem) or type(problem).__name__
    return hashlib.sha256(data).digest(), error


def _check_titles(file: Path, entries: Sequence[Entry], report: _Report) -> None:
    by_title: dict[str, list[Entry]] = {}
    for entry in entries:
        by_title.setdefault(entry.title, []).append(entry)
    groups = sorted((group for group in by_title.values() if len(group) > 1), key=len, reverse=True)
    examples = (f"{_where(file, group[0])}: {group[0].title[:60]!r}, as {_some(group[1:])}" for group in groups)
    message = "by their text alone they cannot be told apart"
    report.add("items that share a title", message, examples, sum(map(len, groups)))
    unclean = [entry for entry in entries if clean_title(entry.title) != entry.title]
    examples = (f"{_where(file, entry)}: {entry.title[:60]!r}" for entry in unclean)
    message = "HTML entities, control characters, leading double quotes or superfluous blanks, which `prepare table` removes; "
    message += "VLM2Rec takes titles as they are, RecBole's own models that read .item may lose lines to a leading double quote"
    report.add("titles that are not clean", message, examples, len(unclean))


def _check_users(inter: Path, rows: _Rows, report: _Report) -> None:
    counts, first = np.bincount(rows.users), rows.lines[np.unique(rows.users, return_index=True)[1]]

    def named(users: np.ndarray, has: np.ndarray) -> Iterable[str]:
        return (f"{inter}, line {first[user]}: user {rows.user_tokens[user]!r} has {has[user]}" for user in users)

    to_valid, to_test = candidates.SHORTEST["valid"], candidates.SHORTEST["test"]
    short = np.flatnonzero(counts < to_valid)
    message = f"under {to_valid} a user is not asked in validation, under {to_test} not in the test either"
    if len(short) == len(counts):
        message += "; here none is left: a run needs longer histories, or other data"
    report.add(
        f"users with fewer than {to_valid} interactions", message, named(short, counts), len(short), len(short) == len(counts)
    )

    items = len(rows.item_tokens)
    touched = np.bincount(np.unique(rows.users * items + rows.items) // items)
    few = np.flatnonzero((counts >= to_test) & (items - touched < NEGATIVES))
    message = f"each target is ranked among so many ({items} items in all): set eval_negatives lower, or eval_negatives: full"
    kind = f"users with fewer than {NEGATIVES} items they never touched"
    report.add(kind, message, named(few, items - touched), len(few), fatal=True)


def _check_order(inter: Path, rows: _Rows, report: _Report) -> None:
    def example(row: int, earlier: int, what: str) -> str:
        user = rows.user_tokens[rows.users[row]]
        return f"{inter}, line {rows.lines[row]}: user {user!r}, {what} as on line {rows.lines[earlier]}"

    moments = np.unique(rows.times, return_inverse=True)[1].reshape(-1)
    tied, earlier = _again(rows.users, moments)
    examples = (example(*pair, f"timestamp {rows.times[pair[0]]:.15g}") for pair in zip(tied, earlier))
    message = "the order of the file decides which came first; where it means nothing, neither do these targets"
    users = len(np.unique(rows.users[tied]))
    report.add("users with interactions at one moment", message, examples, users)

    repeated, earlier = _again(rows.users, rows.items)
    examples = (example(*pair, f"item {rows.item_tokens[rows.items[pair[0]]]!r}") for pair in zip(repeated, earlier))
    message = "they are kept; rm_dup_inter: first (or last) in a run, or --repeats of `prepare table`, keeps one"
    report.add("interactions of a user with an item once more", message, examples, len(repeated))


def _again(users: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows whose (user, value) an earlier row has too, in file order, and the nearest such row: two int64 [m]."""
    key = users * (values.max() + 1) + values
    order = np.argsort(key, kind="stable")
    later = np.flatnonzero(key[order][1:] == key[order][:-1]) + 1
    by_row = np.argsort(order[later])
    return order[later][by_row], order[later - 1][by_row]


def _check_items(inter: Path, file: Path, rows: _Rows, entries: Sequence[Entry], known: set[str], report: _Report) -> None:
    first = rows.lines[np.unique(rows.items, return_index=True)[1]]
    absent = [code for code, item in enumerate(rows.item_tokens) if item not in known]
    examples = (f"{inter}, line {first[code]}: item {rows.item_tokens[code]!r}" for code in absent)
    message = f"add their lines to {file.name}, or drop their interactions"
    report.add(f"items of {inter.name} that are not in {file.name}", message, examples, len(absent), fatal=True)
    bought = set(rows.item_tokens)
    idle = [entry for entry in entries if entry.item not in bought]
    message = "no model is asked about them"
    report.add("items without interactions", message, (_where(file, entry) for entry in idle), len(idle))


def _check_candidates(folder: Path, name: str, rows: _Rows, report: _Report) -> None:
    """Candidates that an earlier run has stored are read again by the next."""
    stored = {file: _STORED.fullmatch(file.name.removeprefix(name)) for file in (folder / "candidates").glob("*.npz")}
    if not any(stored.values()):
        return
    users, items = (
        [tokens[code] for code in codes] for tokens, codes in ((rows.user_tokens, rows.users), (rows.item_tokens, rows.items))
    )
    histories = candidates.Histories.from_rows(users, items, rows.times)
    for file, match in sorted(stored.items()):
        if match and match["data"] == histories.sha256[:8]:
            try:
                candidates.read(file, histories, int(match["count"]), int(match["seed"]))
            except candidates.CandidateError as error:
                report.add(
                    "stored candidates",
                    "a run with this number and seed reads them: delete the file, the same are drawn anew",
                    [str(error)],
                    fatal=True,
                )


def _where(file: Path, entry: Entry) -> str:
    return f"{file}, line {entry.line}, item {entry.item!r}"


def _some(entries: Sequence[Entry]) -> str:
    """The first few items by name, and how many more."""
    more = len(entries) - EXAMPLES
    return ", ".join(repr(entry.item) for entry in entries[:EXAMPLES]) + (f" and {more:,} more" if more > 0 else "")
