"""Finished runs, found by their result.json and read without torch or recbole.

Imports numpy and the standard library only. Tables, plots and the page read runs through this alone.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

RESULT, RANKS, TOP_ITEMS, STARTED = "result.json", "ranks.npz", "top_items.npz", "started.json"
# Where a run reads and writes, on what, and what it shows: two runs that differ in these alone are one experiment.
# The candidates are compared by their hash, so data_path is no more than a place; metrics are computed from the ranks.
RUN_TIME = frozenset(
    {
        *("data_path", "checkpoint_dir", "result_file", "feature_cache", "resume"),
        *("device", "use_gpu", "gpu_id", "worker", "local_rank", "eval_batch_size"),
        *("state", "show_progress", "log_wandb", "wandb_project", "metric_decimal_place", "loss_decimal_place"),
        *("metrics", "topk", "row"),
    }
)


class RunError(ValueError):
    """There is no finished run where one is expected, or it is damaged; the message names the file."""


@dataclass(frozen=True)
class FinishedRun:
    """One run's folder and the content of its result.json."""

    folder: Path
    result: dict

    @property
    def row(self) -> str:
        """The name under which tables and plots show it: the model, and for task 2 the embedder behind it."""
        return self.result.get("row", self.result["model"])

    @property
    def dataset(self) -> str:
        return self.result["dataset"]

    @property
    def seed(self) -> int:
        return self.result["seed"]

    @cached_property
    def ranks(self) -> dict[str, np.ndarray]:
        """`<phase>_users` (tokens) and `<phase>_ranks` (1 is best), and what else ranks.npz holds."""
        return self._arrays(RANKS)

    @cached_property
    def top_items(self) -> dict[str, np.ndarray]:
        """`test`, for VLM2Rec `test_t2f` and so on too: tokens [U, 10] of the best items, "" where there are fewer; may be {}."""
        if not (self.folder / TOP_ITEMS).is_file():
            return {}
        arrays = self._arrays(TOP_ITEMS)
        tokens = np.where(np.arange(len(arrays["items"])) == 0, "", arrays.pop("items"))
        return {name: tokens[ids] for name, ids in arrays.items()}

    def _arrays(self, name: str) -> dict[str, np.ndarray]:
        file = self.folder / name
        try:
            with np.load(file, allow_pickle=False) as arrays:
                return {name: arrays[name] for name in arrays.files}
        except (OSError, ValueError, KeyError) as error:
            raise RunError(f"{file} cannot be read ({error}); run it again") from error


def read_run(folder: str | Path) -> FinishedRun:
    """The finished run in `folder`. Raises RunError where there is none."""
    file = Path(folder) / RESULT
    try:
        return FinishedRun(Path(folder), json.loads(file.read_text(encoding="utf-8")))
    except FileNotFoundError as error:
        raise RunError(f"{folder} is no finished run: it holds no {RESULT}") from error
    except (OSError, ValueError) as error:
        raise RunError(f"{file} cannot be read ({error})") from error


def find_runs(places: Iterable[str | Path]) -> list[FinishedRun]:
    """All finished runs in and below these folders, in the order of their paths, none twice; but for the trials of searches,
    which lie in folders named tuning.

    Raises RunError for a place that does not exist, or if there is no finished run in any.
    """
    found: dict[Path, FinishedRun] = {}
    places = [Path(place) for place in places]
    for place in places:
        if not place.is_dir():
            raise RunError(f"{place} is no folder: give the folders of runs (--checkpoint_dir of the runs, saved/ by default)")
        for file in sorted(place.rglob(RESULT)):
            copied = not any((file.parent / name).is_file() for name in (RANKS, STARTED))  # by --result_file
            if copied or "tuning" in file.relative_to(place).parts:
                continue
            found.setdefault(file.parent.resolve(), read_run(file.parent))
    if not found:
        raise RunError(f"no finished run (a folder with {RESULT}) in {', '.join(map(str, places))}")
    return list(found.values())
