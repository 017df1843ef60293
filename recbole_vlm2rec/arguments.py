"""Parses the command line once, safely: `--key=value` with YAML values, never `eval`.

May import yaml and the standard library only.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import yaml

# Names and paths: `--dataset=010` is not the number 8, and `--gpu_id=` (empty) forces the CPU.
TEXT_KEYS = frozenset(
    {
        *("model", "dataset", "config_files", "data_path", "checkpoint_dir", "result_file", "gpu_id"),
        *("item_embeddings", "backbone", "resume", "checkpoint", "row", "tune", "table"),
    }
)


class Loader(yaml.SafeLoader):
    """YAML's safe loader that reads 1e-5 as a number, which YAML 1.1 does not and every paper's learning rate needs."""


Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(?:[0-9][0-9_]*\.?[0-9_]*|\.[0-9_]+)(?:[eE][-+]?[0-9]+)$"),
    list("-+0123456789."),
)


def parse_value(text: str) -> Any:
    """The value of one argument or tuning string. `None`, as RecBole's users write it, is null. Raises yaml.YAMLError."""
    return None if text.strip() == "None" else yaml.load(text, Loader=Loader)


def parse_overrides(argv: Sequence[str]) -> dict[str, Any]:
    """`["--seed=1", "--topk=[10,20]"]` -> `{"seed": 1, "topk": [10, 20]}`.

    `config_files` stays RecBole's blank-separated text (see `split_config_files`). Raises ValueError for anything but
    `--key=value`, for a repeated key, and for a value that is not YAML.
    """
    overrides: dict[str, Any] = {}
    for argument in argv:
        key, equals, text = argument.partition("=")
        name = key.removeprefix("--")
        if not key.startswith("--") or not equals:
            advice = f"--{name.lstrip('-') or 'key'}={text or 'value'}"
            raise ValueError(f"argument {argument!r} is not of the form --key=value; write {advice} (no blank around =)")
        if not re.fullmatch(r"[A-Za-z_][\w-]*", name):
            raise ValueError(f"argument {argument!r}: {name!r} is not the name of a key")
        if name in overrides:
            raise ValueError(f"--{name} is given twice; keep one of them")
        try:
            overrides[name] = text if name in TEXT_KEYS else parse_value(text)
        except yaml.YAMLError as error:
            reason = f"the value is not YAML ({error.__class__.__name__}); quote it or fix it"
            raise ValueError(f"--{name}={text}: {reason}") from error
    return overrides


def split_config_files(value: str | Sequence[str] | None) -> list[str]:
    """RecBole's `--config_files="a.yaml b.yaml"` -> `["a.yaml", "b.yaml"]`; a list passes."""
    if value is None:
        return []
    return value.split() if isinstance(value, str) else list(value)
