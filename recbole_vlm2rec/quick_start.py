"""Runs one model on one data set: configuration, data, training, validation, test, result.json.

On top of every room; imported by cli alone. `get_model`, `get_trainer` and `create_dataset` find ours first, then RecBole's.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import platform
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout

from recbole_vlm2rec import __version__
from recbole_vlm2rec.arguments import split_config_files
from recbole_vlm2rec.config import Config, check_dataset
from recbole_vlm2rec.data.dataset import create_dataset
from recbole_vlm2rec.fingerprint import fingerprint
from recbole_vlm2rec.measure import Meter
from recbole_vlm2rec.registry import get_model, get_trainer
from recbole_vlm2rec.report.runs import RANKS, RESULT, STARTED, TOP_ITEMS

__all__ = ["Config", "create_dataset", "get_model", "get_trainer", "prepare", "run"]

LIBRARIES = ("recbole", "torch", "transformers", "peft", "numpy", "scipy", "pandas", "safetensors")


def run(
    model: str | type | None = None,
    dataset: str | None = None,
    config_file_list: list[str] | None = None,
    config_dict: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Trains, validates and tests a model; returns the content of the `result.json` that it writes into the run's folder.

    Args:
        model: name of a model of ours or RecBole's, or a class. Default: the key `model`, else VLM2Rec.
        dataset: name of a folder in `data_path`. Default: the key `dataset`, else minishop.
        config_file_list: yaml files, later ones win. config_dict: settings, which win over files.
    Raises ValueError or FileNotFoundError with what is wrong before anything is written.
    """
    meter = Meter()
    with meter("load"):
        config = make_config(model, dataset, config_file_list, config_dict)
        with _logging(config) as log:
            return _run(config, meter, log)


def make_config(
    model: str | type | None = None,
    dataset: str | None = None,
    config_file_list: list[str] | None = None,
    config_dict: dict[str, Any] | None = None,
) -> Config:
    """The Config of a run; arguments as in `run`. `config_files` in config_dict adds files, as RecBole's command line does."""
    settings = dict(config_dict or {})
    files = [*(config_file_list or []), *split_config_files(settings.pop("config_files", None))]
    if settings.get("checkpoint"):
        settings = _unchanged(settings)
    config = Config(model, dataset, files, settings)
    folder = Path(config["data_path"])
    check_dataset(folder.parent, folder.name)
    return config


def _unchanged(settings: dict[str, Any]) -> dict[str, Any]:
    """The settings with those of the encoder in `checkpoint`, which is used as it is. Raises ValueError where they differ."""
    from recbole_vlm2rec.vlm.checkpoint import read_description

    description = read_description(settings["checkpoint"])
    encoder = dict(description["encoder"])
    if "kind" in encoder:
        raise ValueError(
            f"{settings['checkpoint']} is a run of {description['model']}, whose encoder is pretrained and never trained: leave "
            f"--checkpoint out and run --model={description['model']}"
        )
    lora = encoder.pop("lora") or {}
    fixed = {**encoder, **{f"lora_{name}": value for name, value in lora.items()}, "objective": "none"}
    for key in fixed.keys() & settings.keys():
        if settings[key] != fixed[key]:
            raise ValueError(
                f"{key} is {settings[key]!r}, but the checkpoint {settings['checkpoint']} is used as it is, with {fixed[key]!r}: "
                f"leave --{key} out"
            )
    return {**settings, **fixed}


def prepare(config: Config) -> tuple[Any, Any, Any, Any]:
    """(data set, train, valid and test loaders) of a configuration, seeded as a run seeds them."""
    from recbole.data import data_preparation
    from recbole.utils import init_seed

    init_seed(config["seed"], config["reproducibility"])
    dataset = create_dataset(config)
    return dataset, *data_preparation(config, dataset)


def _run(config: Config, meter: Meter, log: _Log) -> dict[str, Any]:
    """Called with the phase `load` open."""
    from recbole.utils import init_seed

    logger = logging.getLogger()
    if config["resume"] and "resume" not in config.internal_config_dict:
        raise ValueError(f"{config['model']} cannot be resumed: only VLM2Rec keeps what that takes")
    if config["resume"] and not (Path(config["resume"]) / "last").is_dir():
        raise ValueError(f"{config['resume']}: there is nothing to resume, it holds no last/ (written after every validation)")
    logger.info(f"{config['model']} on {config['dataset']}, seed {config['seed']}, {config['device']}")
    if config.unread_keys:
        logger.warning(f"{config['model']} does not read {', '.join(config.unread_keys)}: given, but without effect")
    given = config.as_dict()  # before data and model write into it
    dataset, train_data, valid_data, test_data = prepare(config)
    init_seed(config["seed"], config["reproducibility"])
    network = config.model_class(config, train_data._dataset).to(config["device"])
    # Only now: what cannot be built leaves no folder behind.
    identity = fingerprint(given)
    folder = Path(config["resume"]) if config["resume"] else _run_folder(config)
    with _alone(folder):
        (folder / STARTED).write_text(started(given, identity), encoding="utf-8")
        return _run_in(folder, config, meter, log, identity, dataset, network, (train_data, valid_data, test_data))


def _run_in(folder: Path, config: Config, meter: Meter, log: _Log, identity: str, dataset, network, loaders) -> dict[str, Any]:
    """Training, validation and test, in a folder that no other process is at work in."""
    logger = logging.getLogger()
    train_data, valid_data, test_data = loaders
    config["checkpoint_dir"] = str(folder)
    log.also_into(folder)
    logger.info(dataset)
    logger.info(f"{config}", extra={"file_only": True})
    logger.info(network, extra={"file_only": True})
    logger.info(f"{_protocol(dataset, config)}. Run folder: {folder}")
    trainer = get_trainer(config.model_class)(config, network)
    trainer.meter = meter

    show = config["show_progress"]
    trainer.fit(train_data, valid_data, saved=True, show_progress=show)
    with meter("test"):
        test = trainer.evaluate(test_data, load_best_model=True, show_progress=show)
    if trainer.best_epoch is None:
        # Nothing was trained, or never validated: the metrics are those of the weights that were tested.
        with meter("valid"):
            trainer.evaluate(valid_data, load_best_model=False, show_progress=show)
    trainer.tensorboard.close()

    candidates = dataset.candidates
    ranks = {f"{phase}_users": candidates[phase].users for phase in candidates}
    ranks |= {f"{name}_ranks": values for name, values in trainer.ranks.items()}
    result = {
        "model": config["model"],
        "row": config["row"] or config["model"],
        "dataset": config["dataset"],
        "seed": config["seed"],
        "fingerprint": identity,
        "valid": trainer.results["valid"],
        "test": dict(test),
        "best_epoch": trainer.best_epoch,
        "epochs": trainer.epochs_run,
        "seconds": {},
        "peak_memory_mib": {},
        "epochs_timed": trainer.epochs_run - trainer.start_epoch,  # a resumed run's seconds are of these alone
        "users": {phase: len(candidates[phase].users) for phase in candidates},
        "histories": dataset.histories.sha256,
        "candidates": dataset.candidate_file,
        "checkpoint": trainer.saved_model_file,
        "command": sys.argv,
        "versions": _versions(),
        "config": config.as_dict(),
        **trainer.diagnostics(),
    }
    if trainer.top_items:
        tops = {"items": dataset.field2id_token[dataset.iid_field].astype(str), **trainer.top_items}
        _save_arrays(folder / TOP_ITEMS, tops)
    return _finish(result, ranks, folder, config, meter)


def _save_arrays(file: Path, arrays: dict[str, np.ndarray]) -> None:
    with _replacing(file) as temporary, open(temporary, "wb") as stream:
        np.savez_compressed(stream, **arrays)


def _finish(result: dict[str, Any], ranks: dict[str, np.ndarray], folder: Path, config: Config, meter: Meter) -> dict[str, Any]:
    """Writes ranks.npz, then result.json (its presence says that the run is complete), and prints the table."""
    result["seconds"] = {phase: round(seconds, 3) for phase, seconds in meter.seconds.items()}
    result["peak_memory_mib"] = dict(meter.peak_memory_mib)
    _save_arrays(folder / RANKS, ranks)
    with _replacing(folder / RESULT) as temporary:
        temporary.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    if config["result_file"]:
        target = Path(config["result_file"])
        target.parent.mkdir(parents=True, exist_ok=True)
        with _replacing(target) as temporary:
            shutil.copyfile(folder / RESULT, temporary)
    print(table(result))
    print(f"result.json: {folder / RESULT}")
    return result


def table(result: dict[str, Any]) -> str:
    """The valid and test metrics of a result as aligned text."""
    names = list(result["test"])
    lines = [f"{result['model']} on {result['dataset']}, seed {result['seed']}"]
    lines.append(" " * 6 + "".join(f"{name:>10}" for name in names))
    for phase in ("valid", "test"):
        lines.append(f"{phase:<6}" + "".join(f"{result[phase][name]:>10.4f}" for name in names))
    return "\n".join(lines)


def _protocol(dataset, config: Config) -> str:
    users = {phase: len(lists.users) for phase, lists in dataset.candidates.items()}
    if dataset.candidate_file is None:
        among = "all untouched items"
    else:
        among = f"{config['eval_negatives']} untouched items each ({dataset.candidate_file['file']})"
    return f"Evaluation: {users['valid']} validation and {users['test']} test users, one target among {among}"


def started(config: dict[str, Any], identity: str) -> str:
    """What stands in a run's folder from its first moment: the fingerprint, and what its validations measure."""
    return json.dumps({"fingerprint": identity, "metrics": config["metrics"], "topk": config["topk"]}) + "\n"


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Raises ValueError where another process is at work in the folder; the lock of one that was killed is gone with it."""
    lock = FileLock(folder / ".running")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise ValueError(f"{folder} is being run by another process: wait until it has finished") from None
    try:
        yield
    finally:
        (folder / ".running").unlink(missing_ok=True)
        lock.release()


def _run_folder(config: Config) -> Path:
    """A new folder of this run alone; two runs of one second get two."""
    name = f"{config['model']}-{config['dataset']}-seed{config['seed']}-{time.strftime('%Y%m%d-%H%M%S')}"
    root = Path(config["checkpoint_dir"])
    root.mkdir(parents=True, exist_ok=True)
    number = 1
    while True:
        folder = root / (name if number == 1 else f"{name}-{number}")
        try:
            folder.mkdir()
            return folder
        except FileExistsError:
            number += 1


@contextlib.contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    """A temporary file beside `path` that takes its place at the end; on any error or interrupt it vanishes instead."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(handle)
    try:
        yield Path(name)
        os.chmod(name, 0o644)
        os.replace(name, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name)
        raise


def _versions() -> dict[str, str]:
    versions = {"python": platform.python_version(), "recbole_vlm2rec": __version__}
    for library in LIBRARIES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[library] = metadata.version(library)
    return versions


class _Log:
    """The root logger's handlers during a run: the terminal, and run.log once there is a folder."""

    def __init__(self, level: int):
        terminal = logging.StreamHandler()
        terminal.addFilter(lambda record: not getattr(record, "file_only", False))
        self.level, self.handlers = level, []
        self._add(terminal, "%(asctime)s  %(message)s", colours=sys.stderr.isatty())

    def also_into(self, folder: Path) -> None:
        file = logging.FileHandler(folder / "run.log", encoding="utf-8")
        file.run_folder = str(folder)
        self._add(file, "%(asctime)s %(levelname)s  %(message)s", colours=False)

    def _add(self, handler: logging.Handler, form: str, colours: bool) -> None:
        handler.setFormatter((logging.Formatter if colours else _Plain)(form, "%H:%M:%S"))
        self.handlers.append(handler)
        logging.getLogger().addHandler(handler)

    def close(self) -> None:
        for handler in self.handlers:
            logging.getLogger().removeHandler(handler)
            handler.close()


class _Plain(logging.Formatter):
    """Without RecBole's colour codes."""

    def format(self, record: logging.LogRecord) -> str:
        return re.sub(r"\x1b\[[0-9;]*m", "", super().format(record))


@contextlib.contextmanager
def _logging(config: Config) -> Iterator[_Log]:
    root = logging.getLogger()
    before = root.level
    log = _Log(getattr(logging, str(config["state"] or "INFO").upper(), logging.INFO))
    root.setLevel(log.level)
    try:
        yield log
    finally:
        log.close()
        root.setLevel(before)
