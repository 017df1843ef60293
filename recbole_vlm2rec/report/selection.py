"""Which finished runs stand in a table: one for each data set, row and seed, all of them comparable; and their metrics by user.

Imports numpy and the standard library, metrics, analysis.comparison and report.runs. Nothing is chosen in silence: what differs
is an error.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from itertools import groupby

import numpy as np

from recbole_vlm2rec.analysis.comparison import ComparisonError, Gains
from recbole_vlm2rec.metrics import per_user
from recbole_vlm2rec.report.runs import RUN_TIME, FinishedRun, RunError

# Training does not notice that it is measured (tests/model/test_gradient_alignment.py).
_NO_MATTER = RUN_TIME | {"gradient_alignment_every"}
# Every seed may start from the export, or the checkpoint, of its own seed.
_BY_SEED = frozenset({"seed", "item_embeddings", "checkpoint"})

_ABSENT = "not set"
# The metrics in a result.json come from the same ranks; only the order of the sum may differ.
_ROUNDING = 1e-9

Selection = dict[str, dict[str, dict[int, FinishedRun]]]


def select(runs: Sequence[FinishedRun]) -> Selection:
    """The run of each data set, row and seed; data sets and rows in order of first appearance, seeds ascending.

    Of several runs of one configuration the latest by folder name is taken. Raises ComparisonError, naming two folders, where
    they differ in configuration, where a row's seeds do, or where runs of a data set were ranked among different candidates.
    """
    selection: Selection = {dataset: {} for dataset in dict.fromkeys(run.dataset for run in runs)}
    for run in runs:
        selection[run.dataset].setdefault(run.row, {})
    for dataset, rows in selection.items():
        there = [run for run in runs if run.dataset == dataset]
        _require_same_candidates(there)
        for row in rows:
            of_row = sorted((run for run in there if run.row == row), key=lambda run: run.seed)
            for seed, same in groupby(of_row, key=lambda run: run.seed):
                rows[row][seed] = _latest(list(same))
            _require_same_configuration(list(rows[row].values()), _NO_MATTER | _BY_SEED, "remove the seeds of one of them")
    return selection


def names_of(metrics: Iterable[str]) -> tuple[str, ...]:
    """Names of metrics as results write them, none twice: `["NDCG@20", " ndcg@20"]` -> `("ndcg@20",)`."""
    return tuple(dict.fromkeys(metric.strip().lower() for metric in metrics))


def read_gains(run: FinishedRun, metrics: Iterable[str]) -> dict[str, Gains]:
    """Test metrics of each user of a run, from its ranks; `metrics` are names such as `ndcg@20`.

    Raises RunError where its files are damaged or contradict each other, ValueError for what is no metric.
    """
    if not {"test_users", "test_ranks"} <= set(run.ranks):
        raise RunError(f"{run.folder} holds no ranks of the test items; run it again")
    users, place = np.unique(run.ranks["test_users"], return_index=True)
    ranks = run.ranks["test_ranks"]
    if not len(users) == len(run.ranks["test_users"]) == len(ranks) > 0:
        raise RunError(f"{run.folder}: ranks.npz has {len(ranks)} test ranks for {len(users)} different users; run it again")
    found = {metric: Gains(users, per_user(ranks[place], metric)) for metric in metrics}
    for metric, gains in found.items():
        said = run.result.get("test", {}).get(metric)
        if said is not None and abs(said - gains.score) > _ROUNDING:
            raise RunError(f"{run.folder}: {metric} is {said} in result.json and {gains.score} by ranks.npz; run it again")
    return found


def _latest(runs: Sequence[FinishedRun]) -> FinishedRun:
    """The last by name; folder names end with the time of the run, and a number where two began in one second."""
    advice = "give the folders of one of them, or tables of their own"
    _require_same_configuration(runs, _NO_MATTER, advice)
    return max(runs, key=lambda run: [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", run.folder.name)])


def _require_same_configuration(runs: Sequence[FinishedRun], ignored: frozenset[str], advice: str) -> None:
    first = runs[0]
    for run in runs[1:]:
        one, other = (entry.result["config"] for entry in (first, run))
        differing = [
            f"{key} ({one.get(key, _ABSENT)} / {other.get(key, _ABSENT)})"
            for key in sorted({*one, *other} - ignored)
            if one.get(key, _ABSENT) != other.get(key, _ABSENT)
        ]
        if differing:
            seeds = f"seed {run.seed}" if run.seed == first.seed else f"seeds {first.seed} and {run.seed}"
            raise ComparisonError(
                f"{run.row} on {run.dataset}, {seeds}: {first.folder} and {run.folder} differ in {', '.join(differing)}; {advice}"
            )


def _require_same_candidates(runs: Sequence[FinishedRun]) -> None:
    """Within a data set as many negatives; within a seed the very same candidates (seeds have different ones by design)."""
    first = runs[0]
    by_seed: dict[int, FinishedRun] = {}
    for run in runs:
        counts = [entry.result["config"]["eval_negatives"] for entry in (first, run)]
        if counts[0] != counts[1]:
            raise ComparisonError(
                f"{run.dataset}: {first.folder} ranks among {counts[0]} negatives, {run.folder} among {counts[1]}: their numbers "
                "cannot be compared; run one of them again with the other's --eval_negatives, or leave it out"
            )
        beside = by_seed.setdefault(run.seed, run)
        if _candidates(beside) != _candidates(run):
            hashes = " and ".join(f"{_candidates(entry)[:8]}…" for entry in (beside, run))
            raise ComparisonError(
                f"{run.dataset}, seed {run.seed}: {beside.folder} and {run.folder} were ranked among different candidates "
                f"(sha256 {hashes}): their numbers cannot be compared; the same data and --candidate_seed give the same ones, "
                "so run one of them again or leave it out"
            )


def _candidates(run: FinishedRun) -> str:
    """The hash of a run's candidates; a full ranking has no file of them."""
    return (run.result.get("candidates") or {}).get("sha256", "full ranking")
