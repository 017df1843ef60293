"""VLM2Rec for RecBole: a vision-language model that recommends from titles and pictures, under one protocol for every model.

Imports nothing but the standard library: the public names below are loaded when they are first used (PEP 562).
"""

import importlib

__version__ = "0.1.0"

_HOME = {
    "run": "quick_start",
    "get_model": "quick_start",
    "get_trainer": "quick_start",
    "create_dataset": "quick_start",
    "Config": "config",
    "VLMEncoder": "vlm.encoder",
    "Catalog": "data.catalog",
    "Recommender": "recommend",
}
__all__ = sorted(_HOME)


def __getattr__(name: str):
    if name not in _HOME:
        raise AttributeError(f"module 'recbole_vlm2rec' has no attribute {name!r}; it exports {', '.join(__all__)}")
    return getattr(importlib.import_module(f"recbole_vlm2rec.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
