"""The cold start table over finished runs: a row a model, a column a bucket of target frequencies.

Imports numpy and the standard library, through analysis.cold_start, data.candidates and report.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from recbole_vlm2rec.analysis.cold_start import BOUNDS, Bucket, by_frequency, target_frequencies
from recbole_vlm2rec.analysis.comparison import require_same_users
from recbole_vlm2rec.data.candidates import Histories
from recbole_vlm2rec.report.runs import FinishedRun, RunError, find_runs
from recbole_vlm2rec.report.selection import names_of, read_gains, select
from recbole_vlm2rec.report.table_text import MARKDOWN, Markdown, title


@dataclass(frozen=True)
class ColdStartRow:
    """One model on one data set; metrics averaged over its seeds by user. `overall`: the means over all users."""

    dataset: str
    row: str
    seeds: tuple[int, ...]
    buckets: list[Bucket]
    overall: dict[str, float]


def cold_start(
    runs: Sequence[FinishedRun], metrics: Sequence[str], data_path: Path | None = None, bounds: Sequence[int] = BOUNDS
) -> list[ColdStartRow]:
    """The buckets of each data set and row. `data_path`: folder of data sets, by default where the runs found theirs.

    Raises ComparisonError and RunError as `result_table` does, RunError where the data are not those that were run on, and
    ValueError for bounds that are none.
    """
    metrics = names_of(metrics)
    found = []
    for dataset, rows in select(runs).items():
        any_run = next(iter(next(iter(rows.values())).values()))
        histories = read_histories(any_run, data_folder(any_run, data_path))
        gains = {row: {seed: read_gains(run, metrics) for seed, run in by_seed.items()} for row, by_seed in rows.items()}
        for metric in metrics:
            require_same_users(dataset, {row: {seed: of[metric] for seed, of in seeds.items()} for row, seeds in gains.items()})
        for row, by_seed in rows.items():
            for run in by_seed.values():
                _require_same_data(run, histories)
            users = next(iter(gains[row].values()))[metrics[0]].users
            values = {metric: np.mean([of[metric].values for of in gains[row].values()], axis=0) for metric in metrics}
            try:
                frequencies = target_frequencies(histories, users)
            except ValueError as error:
                raise RunError(f"{any_run.folder}: {error}: the data set has changed since; run it again") from error
            overall = {metric: float(of.mean()) for metric, of in values.items()}
            found.append(ColdStartRow(dataset, row, tuple(by_seed), by_frequency(frequencies, values, bounds), overall))
    return found


def as_text(rows: Sequence[ColdStartRow], style: Markdown = MARKDOWN) -> str:
    """A table for each data set and metric: a line of users, then a line for each row."""
    groups = []
    for dataset in dict.fromkeys(row.dataset for row in rows):
        there = [row for row in rows if row.dataset == dataset]
        counts = [bucket.users for bucket in there[0].buckets]
        for metric in there[0].overall:
            lines = [["users", "", *map(str, counts), str(sum(counts))]]
            for row in there:
                means = [*(bucket.metrics[metric] for bucket in row.buckets), row.overall[metric]]
                figures = ["–" if mean is None else f"{mean:.4f}" for mean in means]
                lines.append([style.escape(row.row), str(len(row.seeds)), *figures])
            groups.append((f"{style.escape(dataset)}: {title(metric)} by training interactions of the target", lines, None))
    head = ["", "seeds", *(bucket.name for bucket in rows[0].buckets), "all"]
    return style.grid(head, groups) + "\n"


def print_cold_start(options) -> None:
    """`recbole-vlm2rec cold-start RUNS… [--metrics=…] [--buckets=…] [--data_path=…] [--json=FILE]`."""
    rows = cold_start(find_runs(options.runs), options.metrics.split(","), options.data_path, parse_bounds(options.buckets))
    print(as_text(rows), end="")
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps([asdict(row) for row in rows], indent=2) + "\n", encoding="utf-8")


def parse_bounds(text: str) -> list[int]:
    """`0,1,3`; what is no number becomes -1, which `bucket_names` refuses."""
    return [int(bound) if bound.strip().isdecimal() else -1 for bound in text.split(",")]


def data_folder(run: FinishedRun, data_path: Path | None) -> Path:
    """Of the run's data set: in `data_path`, by default where the run found it."""
    return data_path / run.dataset if data_path else Path(run.result["config"]["data_path"])


def read_histories(run: FinishedRun, folder: Path) -> Histories:
    """The interactions in the data set's folder. Raises RunError where they are not there, or not those of the run."""
    if not (folder / f"{folder.name}.inter").is_file():
        raise RunError(
            f"there is no data set of {run.folder} in {folder}: give the folder of data sets with --data_path=FOLDER "
            f"(it holds {run.dataset}/{run.dataset}.inter)"
        )
    histories = Histories.read(folder, folder.name)
    _require_same_data(run, histories)
    return histories


def _require_same_data(run: FinishedRun, histories: Histories) -> None:
    """By the hash that the run kept; an older one has it in its candidate file's name alone (data.candidates)."""
    file = (run.result.get("candidates") or {}).get("file")
    known = run.result.get("histories") or (file and Path(file).stem.rsplit("-", 1)[-1])
    if known and not histories.sha256.startswith(known):
        raise RunError(
            f"{run.folder} was run on other interactions than {run.dataset}.inter now holds (or on some of them, by RecBole's "
            "filters): the targets' frequencies are not known; run it again, or give the data of then with --data_path"
        )
