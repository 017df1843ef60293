"""RecBole's Config with two hooks (finds our models, layers our props) and strict keys.

May import recbole.config, arguments, metrics and registry. Order, later wins: RecBole's defaults, props/overall.yaml,
props/model/<Class>.yaml along the model's base classes, props/dataset/<name>.yaml, props/backbone/<name>.yaml, config
files, config_dict (which carries the command line).
"""

from __future__ import annotations

import os
import re
from enum import Enum
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from recbole_vlm2rec import compat

compat.apply()

from recbole.config import Config as RecBoleConfig
from recbole.utils import ModelType, argument_list

from recbole_vlm2rec.arguments import Loader
from recbole_vlm2rec.metrics import METRICS
from recbole_vlm2rec.nearest import did_you_mean
from recbole_vlm2rec.registry import PACKAGE, RECBOLE, get_model
from recbole_vlm2rec.rows import props_folder

# Read by RecBole's source, but in none of its yaml files or lists.
_UNLISTED = frozenset(
    {
        *("model", "dataset", "config_files", "encoding", "reg_weight", "contrast", "eta", "feature_num", "has_residual", "norm"),
        *("sim", "use_filter", "cin"),
    }
)
# RecBole's pickled data sets and loaders: it reloads them without noticing that the files of the data set have changed.
_CACHES = ("save_dataset", "dataset_save_path", "save_dataloaders", "dataloaders_save_path")
PREPARED = {name: f"recbole-vlm2rec prepare amazon --category={name}" for name in ("Beauty", "Toys", "Clothing", "Sports")}
PREPARED["minishop"] = "recbole-vlm2rec prepare minishop"

# RecBole's Config overwrites the variable; what the user's shell said is kept here, before the first Config.
_VISIBLE_DEVICES = os.environ.get("CUDA_VISIBLE_DEVICES")


class Config(RecBoleConfig):
    """RecBole's Config. Unknown keys, models and data sets are errors that name the nearest known one; see the module.

    `unread_keys`: keys given by the user that belong to other models than this one.
    """

    def compatibility_settings(self) -> None:
        """RecBole restores removed NumPy names by names that NumPy 2 removed too; `compat.apply` has done what is needed."""

    def _build_yaml_loader(self) -> type:
        return Loader

    def _load_config_files(self, file_list) -> dict[str, Any]:
        settings: dict[str, Any] = {}
        for file in file_list or []:
            content = read_yaml(file)
            check_keys(content, f"config file {file}")
            settings.update(content)
        return settings

    def _load_variable_config_dict(self, config_dict) -> dict[str, Any]:
        """RecBole would `eval` every string here."""
        check_keys(config_dict or {}, "the command line or config_dict")
        return dict(config_dict or {})

    def _load_cmd_line(self) -> dict[str, Any]:
        """RecBole would read and `eval` sys.argv, pytest's flags and all; ours comes parsed, in config_dict."""
        return {}

    def _get_model_and_dataset(self, model, dataset):
        model = model or self.external_config_dict.get("model") or "VLM2Rec"
        dataset = dataset or self.external_config_dict.get("dataset") or "minishop"
        model_class = get_model(model) if isinstance(model, str) else model
        return model_class.__name__, model_class, dataset

    def _load_internal_config_dict(self, model, model_class, dataset) -> None:
        super()._load_internal_config_dict(model, model_class, dataset)
        settings = self.internal_config_dict
        if model_class.type == ModelType.CONTEXT:
            # RecBole scores labels with these models; here they rank, so they need negatives to learn from.
            settings["train_neg_sample_args"] = read_yaml(RECBOLE / "properties" / "overall.yaml")["train_neg_sample_args"]
        ours, lineage = props_folder(), [cls.__name__ for cls in reversed(model_class.__mro__)]
        if model_class.__module__.startswith(PACKAGE):
            for name in lineage:
                settings.update(_optional(RECBOLE / "properties" / "model" / f"{name}.yaml"))
        settings.update(read_yaml(ours / "overall.yaml"))
        for name in lineage:
            settings.update(_optional(ours / "model" / f"{name}.yaml"))
        settings.pop("extends", None)  # of a row: what `registry.get_model` has read
        dataset_settings = _optional(ours / "dataset" / f"{dataset}.yaml")
        if not settings.get("backbone"):
            # A data set's backbone concerns the models that have one.
            dataset_settings.pop("backbone", None)
        settings.update(dataset_settings)
        backbone = settings.get("backbone") and {**settings, **self.external_config_dict}["backbone"]
        if backbone and Path(backbone).name == backbone:
            settings.update(_optional(ours / "backbone" / f"{backbone}.yaml"))
        self._adapt(settings, {**settings, **self.external_config_dict})

    def _adapt(self, settings: dict[str, Any], merged: dict[str, Any]) -> None:
        """Defaults that follow from other settings, which RecBole leaves to its users, and the checks of ours."""
        if merged["MODEL_TYPE"] == ModelType.SEQUENTIAL and merged.get("loss_type") == "CE":
            settings["train_neg_sample_args"] = None
        if _VISIBLE_DEVICES is not None:
            settings["gpu_id"] = _VISIBLE_DEVICES
        if not merged["use_gpu"]:
            # RecBole ignores use_gpu; only an empty gpu_id keeps it off the GPU.
            self.external_config_dict["gpu_id"] = ""
        _check_protocol(merged)
        listed = {*settings, *_UNLISTED, *(key for names in self.parameters.values() for key in names)}
        self.unread_keys = sorted(set(self.external_config_dict) - listed)

    def as_dict(self) -> dict[str, Any]:
        """The configuration in JSON's types, keys sorted; without `unread_keys`, which have no effect."""
        read = self.final_config_dict.keys() - set(self.unread_keys)
        return {key: _plain(self.final_config_dict[key]) for key in sorted(read)}


def check_dataset(data_path: str | Path, name: str) -> None:
    """Raises FileNotFoundError, naming what there is and how to get it, unless `<data_path>/<name>/<name>.inter` exists."""
    root = Path(data_path)
    if (root / name / f"{name}.inter").is_file() and Path(name).name == name:
        return
    there = sorted(folder.name for folder in root.glob("*") if (folder / f"{folder.name}.inter").is_file())
    message = f"there is no data set {name!r}: {root / name / name}.inter is missing{did_you_mean(name, [*there, *PREPARED])}"
    message += f"\nData sets in {root}: {', '.join(there) or 'none'}."
    if name in PREPARED:
        message += f"\nTo make it: {PREPARED[name]}"
    else:
        message += "\nAnother folder: --data_path=FOLDER, which holds one folder for each data set."
    raise FileNotFoundError(message)


def check_keys(settings: dict[str, Any], where: str) -> None:
    """Raises ValueError for the first key that neither RecBole nor this project knows, and names the nearest."""
    for key in settings:
        if key not in known_keys():
            raise ValueError(f"unknown key {key!r} in {where}{did_you_mean(str(key), known_keys())}")


@cache
def known_keys() -> frozenset[str]:
    """Every key of RecBole's property files and argument lists, and of our props."""
    lists = (argument_list.general_arguments, argument_list.training_arguments, argument_list.evaluation_arguments)
    keys = {*_UNLISTED, *argument_list.dataset_arguments, *(key for names in lists for key in names)}
    for folder in (RECBOLE / "properties", props_folder()):
        for file in folder.rglob("*.yaml"):
            # Found by pattern: parsing a hundred files would take longer than the rest of the start.
            if file.name not in ("url.yaml", "kg_url.yaml"):
                keys |= set(re.findall(r"^([A-Za-z_][\w-]*)\s*:", file.read_text(encoding="utf-8"), re.MULTILINE))
    return frozenset(keys - {"extends"})


def read_yaml(file: str | Path) -> dict[str, Any]:
    """A yaml file that holds a mapping or nothing. Raises FileNotFoundError or ValueError naming the file."""
    path = Path(file)
    if not path.is_file():
        raise FileNotFoundError(f"config file {path} does not exist")
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), Loader=Loader)
    except yaml.YAMLError as error:
        raise ValueError(f"config file {path} is not YAML: {error}") from error
    if not isinstance(content or {}, dict):
        raise ValueError(f"config file {path} must hold `key: value` lines, not a {type(content).__name__}")
    return content or {}


def _optional(file: Path) -> dict[str, Any]:
    return read_yaml(file) if file.is_file() else {}


def _check_protocol(settings: dict[str, Any]) -> None:
    """Raises ValueError for settings under which models could not be compared, or with values we do not know."""
    if isinstance(settings["seed"], bool) or not isinstance(settings["seed"], int):
        raise ValueError(f"seed is {settings['seed']!r}; give one whole number (several: --seeds=1,2,3)")
    negatives = settings["eval_negatives"]
    if negatives != "full" and (isinstance(negatives, bool) or not isinstance(negatives, int) or negatives < 1):
        raise ValueError(f"eval_negatives is {negatives!r}; give a number of negatives (100) or full")
    if settings["train_examples"] not in ("last", "all"):
        raise ValueError(f"train_examples is {settings['train_examples']!r}; give last (one example a user) or all (prefixes)")
    expected = {"split": {"LS": "valid_and_test"}, "order": "TO", "mode": "full"}
    for key, value in expected.items():
        if settings["eval_args"].get(key) != value:
            raise ValueError(
                f"eval_args.{key} is {settings['eval_args'].get(key)!r}; the protocol is leave-one-out in time order "
                f"({key}: {value}), the same for every model. The number of negatives is set by eval_negatives"
            )
    if settings["benchmark_filename"] is not None:
        raise ValueError("benchmark_filename brings splits of its own; the protocol is leave-one-out on <name>.inter")
    for key in _CACHES:
        if settings.get(key):
            raise ValueError(f"{key} is refused: RecBole reloads such a file without noticing that the data have changed")
    metrics = [settings["metrics"]] if isinstance(settings["metrics"], str) else settings["metrics"]
    for name in metrics:
        if name.lower() not in METRICS:
            raise ValueError(f"metric {name!r} is not one of {', '.join(METRICS)}{did_you_mean(name, METRICS)}")
    topk = settings["topk"] if isinstance(settings["topk"], list) else [settings["topk"]]
    offered = [f"{name}@{k}" for name in metrics for k in topk]
    if settings["valid_metric"].lower() not in [name.lower() for name in offered]:
        raise ValueError(f"valid_metric is {settings['valid_metric']}, but metrics and topk give only {', '.join(offered)}")


def _plain(value: Any) -> Any:
    """Enums by name, devices and paths as text; containers alike."""
    if isinstance(value, dict):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [_plain(entry) for entry in value]
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    return value.name if isinstance(value, Enum) else str(value)
