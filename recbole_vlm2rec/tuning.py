"""Tuning: RecBole's HyperTuning over runs of ours. Validation metrics alone decide.

On top of sweep, which finds the runs that have finished before: the same command goes on where an interrupted one stopped.
Imports hyperopt (the extra `tune`) through RecBole, and report.plots.
"""

from __future__ import annotations

import importlib.util
import json
import math
import os
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import yaml

from recbole_vlm2rec import compat

compat.apply()

from recbole.trainer import HyperTuning

from recbole_vlm2rec.arguments import parse_value
from recbole_vlm2rec.config import check_keys
from recbole_vlm2rec.quick_start import make_config
from recbole_vlm2rec.rows import Row, props_folder
from recbole_vlm2rec.sweep import Planned, RunMaker, listed

OWN_KEYS = ("tune", "tune_algo", "max_evals")
ALGORITHMS = ("exhaustive", "random", "bayes", "each")
RANGES = ("uniform", "quniform", "loguniform")
TUNING, RUNS = "tuning.json", "tuning/runs"


class TuningError(ValueError):
    """A search space or its choice cannot be; the message names the file and line, and what to do."""


@dataclass(frozen=True)
class Tuned:
    """What a search found. folder: where its files are. trials: one a run, in the order they were tried."""

    folder: Path
    best: dict[str, Any]
    trials: list[dict[str, Any]]


def tune(settings: dict[str, Any], config_file_list: Sequence[str] = ()) -> Tuned:
    """Searches the space of a `.hyper` file for the keys with the best `valid_metric`.

    Args:
        settings: keys of a run (`model` may be a row such as `VLM2RecSASRec@VLM2Rec`), and three more: `tune`, the file
            (RecBole's lines `key choice [values]`, `key uniform low,high`, …); `tune_algo`, `exhaustive`, `random`, `bayes`, or
            `each`: every key over its values while the others keep their defaults (figure 5); `max_evals`, runs of random and
            bayes at most (default 20).
    Writes into `<checkpoint_dir>/tuning/<row>-<dataset>-seed<seed>-<algorithm>/` (the file's name before the algorithm, where it
    is not the model's): RecBole's `hyper.result` and plot `hyper.html`, `tuning.json`, `tuning.md`, `sensitivity.html`, and
    `best.yaml`, which `row_settings` takes; its runs lie in `tuning/runs/`. A failing trial is the worst. Raises TuningError.
    """
    settings = dict(settings)
    file, algorithm, most = (settings.pop(key, None) for key in OWN_KEYS)
    algorithm = algorithm or "exhaustive"
    if algorithm not in ALGORITHMS:
        raise TuningError(f"tune_algo is {algorithm!r}: choose one of {', '.join(ALGORITHMS)}")
    if importlib.util.find_spec("hyperopt") is None:
        raise TuningError('tuning needs hyperopt: pip install "recbole-vlm2rec[tune]"')
    name, dataset = settings.pop("model", None), settings.pop("dataset", None)
    config = make_config(name and Row.parse(name).model, dataset, list(config_file_list), settings)
    row = Row.parse(name or config["model"])
    file = _space_file(file, row.model)
    space = read_space(file)
    if unknown := [key for key in space if key not in config.final_config_dict]:
        raise TuningError(f"{file}: {row.model} does not read {', '.join(unknown)}")
    plan = Planned(row, config["dataset"], settings.pop("seed", config["seed"]))
    maker = RunMaker(Path(config["checkpoint_dir"]), settings, config_file_list, {}, [row], RUNS)
    trials: list[dict[str, Any]] = []
    failed: list[Exception] = []

    def objective(params: dict[str, Any], _files) -> dict[str, Any]:
        params = {key: _as_default(value, config[key]) for key, value in params.items()}
        bigger = config["valid_metric_bigger"]
        try:
            run = maker.make(plan, **params)
        except Exception as error:  # it is worth no less to know than a bad score
            print(f"failed: {error}", flush=True)
            failed.append(error)
            valid, score = {}, -math.inf if bigger else math.inf
        else:
            valid = run.result["valid"]
            score = valid[config["valid_metric"].lower()]
            trials.append({"params": params, "valid": valid, "folder": str(run.folder)})
        return {
            "model": str(row),
            "best_valid_score": score,
            "valid_score_bigger": bigger,
            "best_valid_result": valid,
            "test_result": {},  # nothing may be chosen by test metrics
        }

    stem = "" if file.stem == row.model else f"-{file.stem}"
    folder = maker.root / "tuning" / f"{row}-{plan.dataset}-seed{plan.seed}{stem}-{algorithm}"
    folder.mkdir(parents=True, exist_ok=True)
    defaults = {key: config[key] for key in space}
    search = _search(objective, space, algorithm, int(most or 20), defaults, folder / "hyper.html")
    with _seeded(plan.seed):
        search.run()
    if not trials:
        raise TuningError(f"all {len(failed)} trials failed, the last with: {failed[-1]}")
    search.export_result(folder / "hyper.result")
    # RecBole's keys come as its sampler gives them.
    best = {key: _as_default(value, config[key]) for key, value in search.best_params.items()}
    about = {"row": str(row), "dataset": plan.dataset, "seed": plan.seed, "metric": config["valid_metric"].lower()}
    _write(folder, {**about, "defaults": defaults, "best": best, "trials": trials})
    return Tuned(folder, best, trials)


def _as_default(value: Any, default: Any) -> Any:
    """quniform gives 512.0 where a key takes 512."""
    whole = isinstance(default, int) and not isinstance(default, bool) and isinstance(value, float) and value.is_integer()
    return int(value) if whole else value


def tune_all(settings: dict[str, Any]) -> list[Tuned]:
    """`tune` for each of the models and data sets of a command line (`A,B`)."""
    pairs = product(listed(settings.get("model")) or [None], listed(settings.get("dataset")) or [None])
    return [tune({**settings, "model": model, "dataset": dataset}) for model, dataset in pairs]


def read_space(file: Path) -> dict[str, tuple[str, list]]:
    """{key: (type, values, or the bounds that RecBole takes)} of a `.hyper` file; lines with # are comments.

    RecBole would `eval` the values; here they are YAML. Raises TuningError naming the line.
    """
    space: dict[str, tuple[str, list]] = {}
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), start=1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        where = f"{file}, line {number}"
        key, kind, text = (*line.split(maxsplit=2), "", "")[:3]
        check_keys({key: None}, where)
        if kind not in ("choice", *RANGES):
            raise TuningError(f"{where}: {kind!r} is no type; write `{key} choice [1, 2]` or one of {', '.join(RANGES)}")
        try:
            values = parse_value(text if kind == "choice" else f"[{text}]")
        except yaml.YAMLError as error:
            raise TuningError(f"{where}: {text!r} is not a list") from error
        due = {"quniform": 3}.get(kind, 2)
        numbers = isinstance(values, list) and all(isinstance(value, (int, float)) for value in values)
        if not isinstance(values, list) or not values or (kind != "choice" and not (numbers and len(values) == due)):
            raise TuningError(
                f"{where}: {text!r}: choice takes a list [a, b], uniform and loguniform low,high, quniform low,high,step"
            )
        space[key] = (kind, values)
    if not space:
        raise TuningError(f"{file} names no key to tune")
    return space


def _space_file(file: Any, model: str) -> Path:
    """The `.hyper` file itself, or `<model>.hyper` in a folder; `props/…` is found in an installed package too."""
    places = [Path(str(file))]
    if places[0].parts[:1] == ("props",):
        places.append(props_folder().joinpath(*places[0].parts[1:]))
    for place in places:
        found = place / f"{model}.hyper" if place.is_dir() else place
        if found.is_file():
            return found
    shipped = ", ".join(f"props/tuning/{found.name}" for found in sorted((props_folder() / "tuning").glob("*.hyper")))
    raise TuningError(f"--tune={file}: there is no such file, nor a folder with {model}.hyper. Shipped: {shipped}")


class _Search(HyperTuning):
    """RecBole's, without a browser."""

    def plot_hyper(self) -> None:
        from recbole_vlm2rec.report.plots import tuning_process, write_html

        write_html(tuning_process(self.model, self.score_list, self.params_list), self.display_file)


def _search(objective: Callable, space: dict, algorithm: str, most: int, defaults: dict[str, Any], plot: Path) -> HyperTuning:
    by_kind: dict[str, dict[str, list]] = {}
    for key, (kind, values) in space.items():
        by_kind.setdefault(kind, {})[key] = values
    if algorithm in ("exhaustive", "each") and (ranges := [key for key, (kind, _) in space.items() if kind != "choice"]):
        raise TuningError(f"{algorithm} needs lists of values: give {', '.join(ranges)} as choice, or search by random or bayes")
    if algorithm == "each":
        points = _one_at_a_time({key: values for key, (_, values) in space.items()}, defaults)
        algorithm, most = _tries(points), len(points)
    # RecBole would stop after 10 runs without a better one, exhaustive or not.
    return _Search(objective, params_dict=by_kind, algo=algorithm, max_evals=most, early_stop=10**6, display_file=str(plot))


def _one_at_a_time(values: dict[str, list], defaults: dict[str, Any]) -> list[dict[str, int]]:
    """Places in the lists: the defaults, then each key's other values with all others at their defaults."""
    for key, choices in values.items():
        if defaults[key] not in choices:
            raise TuningError(f"each starts from the defaults, but {key} is {defaults[key]} and the list has {choices}")
    start = {key: choices.index(defaults[key]) for key, choices in values.items()}
    others = [{**start, key: place} for key, choices in values.items() for place in range(len(choices)) if place != start[key]]
    return [start, *others]


def _tries(points: list[dict[str, int]]) -> Callable:
    """hyperopt's algorithm that tries these points in turn."""

    def suggest(new_ids, domain, trials, _seed):
        from hyperopt.base import miscs_update_idxs_vals

        (number,) = new_ids
        if number >= len(points):
            return []
        entry = {"tid": number, "cmd": domain.cmd, "workdir": domain.workdir}
        point = points[number]
        miscs_update_idxs_vals([entry], {key: [number] for key in point}, {key: [place] for key, place in point.items()})
        return trials.new_trial_docs([number], [None], [domain.new_result()], [entry])

    return suggest


@contextmanager
def _seeded(seed: int):
    """hyperopt draws by this seed: the same command tries the same keys again, and finds those runs finished."""
    before = os.environ.get("HYPEROPT_FMIN_SEED")
    os.environ["HYPEROPT_FMIN_SEED"] = str(seed)
    try:
        yield
    finally:
        os.environ.pop("HYPEROPT_FMIN_SEED")
        if before is not None:
            os.environ["HYPEROPT_FMIN_SEED"] = before


def _write(folder: Path, found: dict[str, Any]) -> None:
    """What `tune` says it writes, but for RecBole's own; `found` becomes tuning.json."""
    from recbole_vlm2rec.report.plots import sensitivity, write_html

    row, best = found["row"], found["best"]
    (folder / TUNING).write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    (folder / "best.yaml").write_text(yaml.safe_dump({row: best}), encoding="utf-8")
    write_html(sensitivity(found), folder / "sensitivity.html")
    (folder / "tuning.md").write_text(as_markdown(found), encoding="utf-8")
    chosen = ", ".join(f"{key} {value}" for key, value in best.items())
    print(f"{row} on {found['dataset']}: {len(found['trials'])} runs, best {found['metric']} in validation by {chosen}")
    print(f"{as_markdown(found)}written: {folder}")


def as_markdown(found: dict[str, Any]) -> str:
    """The trials of a tuning.json, in the order they were tried, the best in bold."""
    from recbole_vlm2rec.report.table_text import MARKDOWN, title

    keys, metric = list(found["best"]), found["metric"]
    rows = []
    for trial in found["trials"]:
        score = f"{trial['valid'][metric]:.4f}"
        cells = [MARKDOWN.escape(str(trial["params"][key])) for key in keys]
        rows.append([*cells, MARKDOWN.best(score) if trial["params"] == found["best"] else score])
    return MARKDOWN.grid([*map(MARKDOWN.escape, keys), f"validation {title(metric)}"], [(None, rows, None)], len(keys)) + "\n"
