"""Comparisons: every row on every data set with every seed. What is missing is run, then the table is written.

On top of quick_start; imported by cli alone. A run that has finished before is found by its fingerprint, one that was interrupted
goes on, and what a row needs (the run behind an export, the export itself, a run on another data set) is made first.
"""

from __future__ import annotations

import re
import time
import traceback
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from recbole_vlm2rec.config import check_dataset, check_keys, read_yaml
from recbole_vlm2rec.embeddings import MANIFEST
from recbole_vlm2rec.export import export
from recbole_vlm2rec.fingerprint import fingerprint
from recbole_vlm2rec.quick_start import make_config, run, started
from recbole_vlm2rec.registry import get_model
from recbole_vlm2rec.report.runs import RESULT, STARTED, FinishedRun, RunError, read_run
from recbole_vlm2rec.report.tables import ResultTable, result_table
from recbole_vlm2rec.rows import Row

# What the command takes beside the keys of a run. `train_users` and `backbone` are keys; several of them are several rows.
OWN_KEYS = ("seeds", "row_settings", "table")
# Of one run: where it goes on and where a copy of its result goes; and what a comparison sets itself.
_SINGLE = ("row", "resume", "result_file")
_OWN = ("model", "dataset", "seed", "row", "checkpoint_dir")


class SweepError(RuntimeError):
    """Some runs of a comparison failed; the message lists them. All others are finished and kept."""


@dataclass(frozen=True)
class Planned:
    """One run of a comparison."""

    row: Row
    dataset: str
    seed: int
    train_users: int | None = None
    backbone: str | None = None

    @property
    def name(self) -> str:
        """The row's name in tables."""
        users = "" if self.train_users is None else f" ({self.train_users} users)"
        return str(self.row) + users + ("" if self.backbone is None else f" on {Path(self.backbone).name}")

    def __str__(self) -> str:
        return f"{self.name} on {self.dataset}, seed {self.seed}"


def is_sweep(settings: dict[str, Any]) -> bool:
    """Whether a command line names several runs, or a row that is more than a model."""
    several = any(len(listed(settings.get(key))) > 1 for key in ("model", "dataset", "train_users", "backbone"))
    return several or any(key in settings for key in OWN_KEYS) or "@" in str(settings.get("model"))


def sweep(settings: dict[str, Any], config_file_list: Sequence[str] = ()) -> ResultTable:
    """Runs what is missing, then writes and prints the table over exactly these runs.

    Args:
        settings: keys of a run. `model`, `dataset`, `train_users` (few-shot) and `backbone` (for the rows that have one) may list
            several (`A,B,C`, or a list), and three more: `seeds` (default: that of `seed`), `row_settings` (`{row or model: {key:
            value}}` or a yaml file of that; they win in these rows alone) and `table` (where to write, without suffix; default
            `<checkpoint_dir>/table`).
        config_file_list: yaml files for all runs.
    Raises ValueError for what cannot be planned, before anything runs; SweepError at the end where runs failed.
    """
    settings = dict(settings)
    seeds, file, place = (settings.pop(key, None) for key in OWN_KEYS)
    if given := [key for key in _SINGLE if settings.get(key)]:
        raise ValueError(f"{given[0]} is for a single run: leave --{given[0]} out of a comparison")
    rows = [Row.parse(name) for name in listed(settings.pop("model", None))]
    datasets = listed(settings.pop("dataset", None))
    users = _numbers("train_users", settings.pop("train_users", None)) or [None]
    backbones = [None]
    if len(listed(settings.get("backbone"))) > 1:
        backbones = listed(settings.pop("backbone"))
        if len({Path(backbone).name for backbone in backbones}) < len(backbones):
            raise ValueError(f"backbones {', '.join(backbones)}: rows are told apart by the last part of their names")
    # What is not listed comes from the configuration files, or is the default.
    common = make_config(rows[0].model if rows else None, datasets[0] if datasets else None, list(config_file_list), settings)
    rows, datasets = rows or [Row(common["model"])], datasets or [common["dataset"]]
    seeds = _numbers("seeds", seeds) or [common["seed"]]
    row_settings = file if isinstance(file, dict) else read_yaml(str(file)) if file is not None else {}
    maker = RunMaker(Path(common["checkpoint_dir"]), settings, config_file_list, row_settings, rows)
    for dataset in (*datasets, *(row.origin for row in rows if row.origin)):
        check_dataset(Path(common["data_path"]).parent, dataset)
    planned = [
        Planned(row, dataset, seed, count, backbone)
        for dataset in datasets
        for row in rows
        for backbone in (backbones if getattr(get_model(row.embedder), "reads_checkpoints", False) else [None])
        for count in users
        for seed in seeds
    ]
    planned = list(dict.fromkeys(planned))
    finished, failed = [], {}
    for plan, outcome in maker.make_all(planned):
        if isinstance(outcome, FinishedRun):
            finished.append(outcome)
        else:
            failed[plan] = outcome
    if failed:
        lines = "\n".join(f"  {plan}: {_said(error)}" for plan, error in failed.items())
        failure = SweepError(
            f"{len(failed)} of {len(planned)} runs failed; all others are kept, the same command goes on:\n{lines}"
        )
        if not finished:
            raise failure
        print(failure)
    names, cut_offs = common["metrics"], common["topk"]
    metrics = [
        f"{name}@{k}"
        for name in (names if isinstance(names, list) else [names])
        for k in (cut_offs if isinstance(cut_offs, list) else [cut_offs])
    ]
    table = result_table(finished, metrics, tested=[common["valid_metric"]])
    place = Path(place) if place else maker.root / "table"
    place.parent.mkdir(parents=True, exist_ok=True)
    for suffix, text in ((".md", table.markdown()), (".csv", table.csv()), (".tex", table.latex())):
        place.with_name(place.name + suffix).write_text(text, encoding="utf-8")
    print(f"\n{table.markdown()}\nwritten: {place}.md, {place.name}.csv, {place.name}.tex")
    if failed:
        raise failure
    return table


class RunMaker:
    """Finds the finished run of a plan, or makes it.

    Args:
        root: holds the run folders. settings, files: of all runs. row_settings: by row, or by model. rows: those that will be
            asked for.
        apart: a folder in `root` for new runs, which are to stand in no table; None puts them into `root`.
    Raises ValueError for rows and row settings that cannot be.
    """

    def __init__(
        self,
        root: Path,
        settings: dict[str, Any],
        files: Sequence[str],
        row_settings: dict[str, dict],
        rows: Iterable[Row],
        apart: str | None = None,
    ):
        self.root, self.files, self.row_settings = root, list(files), row_settings
        self.settings = {**settings, "checkpoint_dir": str(root / (apart or ""))}
        for row in rows:
            self._check(row)
            if row.starts_from_export and row.source is None and not settings.get("item_embeddings"):
                raise ValueError(f"row {row}: name what its item embeddings come from, {row}@VLM2Rec say")
        for name, keys in row_settings.items():
            try:  # it need not be asked for: one file may serve several comparisons
                self._check(Row.parse(name))
            except ValueError as error:
                raise ValueError(f"row_settings: {error}") from error
            if not isinstance(keys, dict):
                raise ValueError(f"row_settings: {name} holds {keys!r}, where `key: value` lines are due")
            check_keys(keys, f"row_settings of {name}")
            if own := [key for key in _OWN if key in keys]:
                raise ValueError(f"row_settings: {name} names {own[0]}, which a comparison sets itself")
        self._failed: dict[str, Exception] = {}
        self._finished = {
            found.result["fingerprint"]: found for found in self._runs(RESULT, read_run) if "fingerprint" in found.result
        }
        # What was measured at every validation has to be the same too, if a run shall go on.
        self._begun = {
            (folder / STARTED).read_text(encoding="utf-8"): folder
            for folder in self._runs(STARTED, Path)
            if (folder / "last").is_dir() and not (folder / RESULT).is_file()
        }

    def make_all(self, planned: Sequence[Planned]) -> Iterator[tuple[Planned, FinishedRun | Exception]]:
        """Each plan with its run, or with what went wrong; progress goes to the terminal."""
        began, ran = time.monotonic(), 0
        for number, plan in enumerate(planned, start=1):
            ahead = f"[{number}/{len(planned)}]"
            before = self._known(plan)
            if before is not None:
                print(f"{ahead} {plan}: finished before, {before.folder}", flush=True)
                yield plan, before
                continue
            spent = time.monotonic() - began
            left = f", about {_duration(spent / ran * (len(planned) - number + 1))} left" if ran else ""
            print(f"{ahead} {plan} ({_duration(spent)} so far{left})", flush=True)
            try:
                outcome = self.make(plan)
            except Exception as error:  # whatever it is, the other rows are worth having
                if not isinstance(error, (ValueError, OSError, RuntimeError)):
                    traceback.print_exc()
                print(f"{ahead} {plan} failed: {_said(error)}", flush=True)
                outcome = error
            ran += 1
            yield plan, outcome

    def make(self, plan: Planned, **keys: Any) -> FinishedRun:
        """The finished run, made now unless there is one; `keys` win over the settings, in this run alone."""
        settings = {**self._settings(plan), **keys}
        config = make_config(plan.row.model, plan.dataset, self.files, settings).as_dict()
        identity = fingerprint(config)
        if identity in self._failed:
            raise self._failed[identity]
        if identity not in self._finished:
            if folder := self._begun.get(started(config, identity)):
                settings["resume"] = str(folder)
            try:
                result = run(plan.row.model, plan.dataset, self.files, settings)
            except Exception as error:
                self._failed[identity] = error  # it would fail for the next row that rests on it too
                raise
            folder = Path(settings.get("resume") or Path(result["checkpoint"]).parent)
            self._finished[identity] = read_run(folder)
        return _named(plan, self._finished[identity])

    def _known(self, plan: Planned) -> FinishedRun | None:
        """The finished run, if nothing at all needs to be made for it."""
        try:
            settings = self._settings(plan, make=False)
            if settings is None:
                return None
            config = make_config(plan.row.model, plan.dataset, self.files, settings).as_dict()
            found = self._finished.get(fingerprint(config))
        except (ValueError, OSError, RuntimeError):
            return None  # `make` will say why
        return found and _named(plan, found)

    def _settings(self, plan: Planned, make: bool = True) -> dict[str, Any] | None:
        """The run's settings; what they rest on is made first, or without `make` must be there, else None."""
        row = plan.row
        mine = {**self.row_settings.get(row.model, {}), **self.row_settings.get(str(row), {})}
        settings = {**self.settings, **mine, "seed": plan.seed, "row": plan.name}
        if plan.train_users is not None:
            settings["train_users"] = plan.train_users
        if plan.backbone is not None and not row.starts_from_export:
            settings["backbone"] = plan.backbone
        if row.source is None:
            return settings
        if row.starts_from_export:
            behind = replace(plan, row=Row.parse(row.source))
        else:
            behind = replace(plan, row=Row(row.model), dataset=row.source)
        source = self.make(behind) if make else self._known(behind)
        if source is None:
            return None
        if not row.starts_from_export:
            return {**settings, "checkpoint": str(source.folder)}
        out = source.folder / "export"
        if make:
            device = "cpu" if source.result["config"]["device"] == "cpu" else None
            cache = source.result["config"].get("feature_cache")
            export(
                source.folder,
                out,
                plan.dataset,
                self.settings.get("data_path"),
                device,
                self.settings.get("show_progress", True),
                feature_cache={None: "none", "auto": None}.get(cache, cache),
            )
        elif not (out / MANIFEST).is_file():
            return None
        return {**settings, "item_embeddings": str(out)}

    def _check(self, row: Row) -> None:
        model = get_model(row.model)
        if row.source is None:
            return
        if row.starts_from_export:
            source = Row.parse(row.source)
            if not hasattr(get_model(source.model), "item_vectors"):
                raise ValueError(
                    f"row {row}: {source.model} has no item vectors to export; VLM2Rec, its variants and ItemLevel do"
                )
            self._check(source)
        elif not getattr(model, "reads_checkpoints", False):
            raise ValueError(f"row {row}: {row.model} has no use for @{row.source}; VLM2Rec, its variants and task 2 models do")

    def _runs(self, file: str, read) -> Iterator[Any]:
        searched = self.settings["checkpoint_dir"]
        for found in sorted({*self.root.glob(f"*/{file}"), *Path(searched).glob(f"*/{file}")}):
            try:
                yield read(found.parent)
            except RunError as error:
                print(f"not reused: {error}")


def _named(plan: Planned, found: FinishedRun) -> FinishedRun:
    """By another name it is the same run."""
    return replace(found, result={**found.result, "row": plan.name})


def listed(value: Any) -> list:
    """`"A,B"`, `["A", "B"]`, `3` or None as a list."""
    if value is None:
        return []
    if isinstance(value, str):
        return [part.strip() for part in value.split(",") if part.strip()]
    return list(value) if isinstance(value, (list, tuple)) else [value]


def _said(error: Exception) -> str:
    """One that is no message of ours, such as KeyError: 'x', does not say what it is."""
    return str(error) if isinstance(error, (ValueError, OSError, RuntimeError)) else repr(error)


def _numbers(key: str, value: Any) -> list[int]:
    """`_listed` whole numbers. Raises ValueError for anything else."""
    for entry in listed(value):
        if isinstance(entry, bool) or not re.fullmatch(r"\d+", str(entry)):
            raise ValueError(f"{key}: {entry!r} is no whole number; write --{key}=1,2,3")
    return [int(entry) for entry in listed(value)]


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    return (
        f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{minutes} min {seconds} s" if minutes else f"{seconds} s"
    )
