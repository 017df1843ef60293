"""From what a reader found to a data set in its place: filters, pictures, files, and a report of every step.

May import the rest of this room, filelock and pillow (for its version). The order is METHOD's: by time, repeats, items without
title or picture, last n, core. Everything is written beside its place and renamed at the end, so that `<out>/<name>` is absent,
old or whole; nothing in it depends on when or how often the command ran.
"""

from __future__ import annotations

import json
import os
import shutil
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import PIL
from filelock import FileLock, Timeout

from recbole_vlm2rec import __version__
from recbole_vlm2rec.prepare import atomic
from recbole_vlm2rec.prepare import interactions as filters
from recbole_vlm2rec.prepare.gallery import Gallery, collect, place, write_failed
from recbole_vlm2rec.prepare.interactions import Interactions
from recbole_vlm2rec.prepare.settings import Settings
from recbole_vlm2rec.prepare.text import clean_title

REPORT, FAILED = "prepare.json", "images_failed.tsv"
_DECIDING = ("last", "min_interactions", "repeats", "longest_side", "min_side", "max_pixels", "max_bytes")


@dataclass(frozen=True)
class Item:
    """`title` as it was found; `picture`: a URL, a Path, or None; `extra`: cells of `Source.extra_columns`."""

    title: str
    picture: str | Path | None
    extra: tuple[str, ...] = ()


@dataclass(frozen=True)
class Source:
    """What a reader found.

    `files`: name, bytes and SHA-256 of each. `skipped`: bad lines by file. `extra_columns`: RecBole names with types.
    `steps`: what the reader did to the interactions already, and `notes` to say to the user.
    """

    interactions: Interactions
    items: Mapping[str, Item]
    files: list[dict]
    skipped: list[dict]
    extra_columns: tuple[str, ...] = ()
    steps: list[dict] = field(default_factory=list)
    notes: tuple[str, ...] = ()


class Steps:
    """The interactions as they are filtered, and what each step took."""

    def __init__(self, interactions: Interactions, steps: list[dict] | None = None):
        self.interactions, self.steps = interactions, list(steps or [])
        if not self.steps:
            self.steps.append({"step": "read", **interactions.counts()})

    def then(self, step: str, interactions: Interactions) -> None:
        before, after = self.interactions.counts(), interactions.counts()
        dropped = {kind: before[kind] - after[kind] for kind in before}
        self.interactions = interactions
        self.steps.append({"step": step, **after, "dropped": dropped})
        if not len(interactions):
            worst = max(self.steps[1:], key=lambda step: step["dropped"]["interactions"])
            raise ValueError(
                f"no interaction is left after {step!r}; {worst['step']!r} took most: {worst['dropped']['interactions']} of "
                f"{self.steps[0]['interactions']}. Look at the input, or set the filters otherwise"
            )

    def items_where(self, step: str, good: Mapping[str, object] | set[str]) -> None:
        """Keeps the interactions with these items."""
        tokens = self.interactions.item_tokens
        mask = np.fromiter((token in good for token in tokens), bool, len(tokens))
        self.then(step, filters.keep_items(self.interactions, mask))


def build(
    source: Source,
    name: str,
    out: Path,
    settings: Settings,
    recipe: dict,
    paper: dict[str, int] | None = None,
    dry_run: bool = False,
) -> dict:
    """Makes `<out>/<name>` and returns its report, which is also its `prepare.json`.

    Args:
        recipe: what was asked for, besides settings and files; a data set of the same recipe, settings and files, none of
            whose pictures failed, is left alone.
        paper: users, items and interactions to compare with.
        dry_run: nothing is fetched and nothing written; pictures count as good, local ones where the file exists.
    Raises ValueError when nothing is left, when too many pictures fail, when another data set stands there (unless
    `settings.overwrite`) or another preparation is at work, and OSError naming the place that cannot be written.
    """
    if not name or name in (".", "..") or "/" in name or "\\" in name:
        raise ValueError(f"{name!r} cannot be the name of a data set: it becomes a folder in {out}")
    made_from = {"recipe": recipe, "settings": {key: getattr(settings, key) for key in _DECIDING}, "files": source.files}
    if dry_run:
        return _assemble(source, name, settings, made_from, paper, None)
    target, staging = out / name, out / f".{name}.partial"
    try:
        out.mkdir(parents=True, exist_ok=True)
        with FileLock(out / f".{name}.lock").acquire(timeout=0):
            if target.exists() and (report := _standing(target, made_from, settings)) is not None:
                return {**report, "already": True}
            shutil.rmtree(staging, ignore_errors=True)
            try:
                staging.mkdir()
                report = _assemble(source, name, settings, made_from, paper, staging)
                _publish(staging, target)
            finally:
                shutil.rmtree(staging, ignore_errors=True)
    except Timeout as error:
        raise ValueError(f"another preparation of {target} is at work; wait for it") from error
    except OSError as error:
        raise OSError(error.errno, f"{target} cannot be made: {error.strerror or error}") from error
    return report


def _standing(target: Path, made_from: dict, settings: Settings) -> dict | None:
    """The report of the data set that stands there if it is the same, None if it may be replaced."""
    try:
        report = json.loads((target / REPORT).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{target} exists and was not prepared by this command (it has no {REPORT}); it is left alone. Give another --name, "
            f"or move it away"
        ) from error
    # Files of the same making may always take the place of those that stand there; where a picture failed they are made again,
    # for it may come this time.
    same = {key: report.get(key) for key in made_from} == json.loads(json.dumps(made_from))
    whole = all((target / f"{target.name}.{kind}").is_file() for kind in ("inter", "item"))
    if same and whole:
        return None if report["images_failed"] else report
    if not settings.overwrite:
        changed = ", ".join(key for key in made_from if report.get(key) != json.loads(json.dumps(made_from[key])))
        raise ValueError(
            f"{target} was prepared with other {changed or 'contents'}; give --overwrite to replace it, or another --name"
        )
    return None


def _publish(staging: Path, target: Path) -> None:
    old = target.with_name(f".{target.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if target.exists():
        os.replace(target, old)
    os.replace(staging, target)
    shutil.rmtree(old, ignore_errors=True)


def _assemble(
    source: Source, name: str, settings: Settings, made_from: dict, paper: dict[str, int] | None, folder: Path | None
) -> dict:
    """Filters, and writes into `folder` unless it is None (a dry run)."""
    steps = Steps(source.interactions, source.steps)
    steps.then("by time", filters.by_time(steps.interactions))
    if settings.repeats != "keep":
        steps.then(f"repeats: {settings.repeats}", filters.drop_repeats(steps.interactions, settings.repeats))
    steps.items_where("metadata", source.items)
    titles = {token: title for token, item in source.items.items() if (title := clean_title(item.title))}
    steps.items_where("title", titles)
    pictures = {token: item.picture for token, item in source.items.items() if item.picture}
    steps.items_where("picture named", pictures)
    used = steps.interactions.item_tokens
    occurring = np.unique(steps.interactions.items).tolist()
    wanted = {used[code]: pictures[used[code]] for code in occurring}
    gallery = _look(wanted) if folder is None else collect(wanted, settings)
    steps.items_where("picture good", gallery.files)
    if settings.last:
        steps.then(f"last {settings.last}", filters.last(steps.interactions, settings.last))
    if settings.min_interactions > 1:
        steps.then(f"{settings.min_interactions}-core", filters.k_core(steps.interactions, settings.min_interactions))
    kept = steps.interactions
    report = {
        "name": name,
        **made_from,
        "skipped": source.skipped,
        "notes": list(source.notes),
        "steps": steps.steps,
        "images_failed": dict(Counter(gallery.failed.values()).most_common()),
        "statistics": _statistics(kept.counts()),
        "paper": paper
        and {kind: {"count": count, "percent": _percent(kept.counts()[kind], count)} for kind, count in paper.items()},
        "versions": {"recbole_vlm2rec": __version__, "pillow": PIL.__version__},
    }
    if folder is not None:
        tokens = [used[code] for code in np.unique(kept.items).tolist()]
        paths = place({token: gallery.files[token] for token in tokens}, folder)
        extras = {token: [clean_title(cell) for cell in source.items[token].extra] for token in tokens}
        items = [(token, titles[token], paths[token], *extras[token]) for token in tokens]
        atomic.write(folder, name, kept, items, source.extra_columns)
        write_failed(folder / FAILED, gallery.failed, wanted)
        (folder / REPORT).write_text(json.dumps(report, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return report


def _look(wanted: Mapping[str, str | Path]) -> Gallery:
    """A dry run's pictures: URLs are taken on trust, files must be there."""
    failed = {}
    for token, picture in wanted.items():
        if isinstance(picture, Path):
            if not picture.is_file():
                failed[token] = "no such file"
        elif not picture.lower().startswith(("http://", "https://")):
            failed[token] = "not http or https"
    return Gallery({token: Path() for token in wanted if token not in failed}, failed)


def _statistics(counts: dict[str, int]) -> dict[str, float]:
    users, items, interactions = counts["users"], counts["items"], counts["interactions"]
    return {
        **counts,
        "density": interactions / (users * items),
        "mean_length": interactions / users,
    }


def _percent(count: int, paper: int) -> float:
    return round(100 * (count - paper) / paper, 3)


def describe(report: dict) -> str:
    """What the command line prints of a report."""
    lines = [f"{'':<18}{'users':>10}{'items':>10}{'interactions':>14}"]
    for step in report["steps"]:
        lines.append(f"{step['step']:<18}{step['users']:>10,}{step['items']:>10,}{step['interactions']:>14,}")
    if report["paper"]:
        paper = report["paper"]
        lines.append(f"{'paper (table 3)':<18}" + "".join(
            f"{paper[kind]['count']:>{width},}" for kind, width in (("users", 10), ("items", 10), ("interactions", 14))
        ))  # fmt: skip
        lines.append(f"{'difference':<18}" + "".join(
            f"{paper[kind]['percent']:>+{width - 1}.2f}%" for kind, width in (("users", 10), ("items", 10), ("interactions", 14))
        ))  # fmt: skip
    statistics = report["statistics"]
    lines.append(f"density {statistics['density']:.4%}, {statistics['mean_length']:.2f} interactions a user")
    for bad in report["skipped"]:
        if bad["count"]:
            line, reason = bad["first"][0]
            lines.append(f"{bad['file']}: {bad['count']} of {bad['lines']} lines skipped, the first is line {line}: {reason}")
    lines += report["notes"]
    if failed := report["images_failed"]:
        reasons = ", ".join(f"{reason} ({count})" for reason, count in list(failed.items())[:5])
        lines.append(f"pictures that failed: {sum(failed.values())} ({FAILED}): {reasons}")
    if report.get("already"):
        lines.append("It stands there already, made in the same way from the same files: nothing had to be done.")
    return "\n".join(lines)
