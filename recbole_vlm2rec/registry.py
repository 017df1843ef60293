"""Finds models and trainers by name: ours first, then RecBole's.

May import recbole; imports a model's module only when that model is asked for.
"""

from __future__ import annotations

import importlib
import importlib.util
from functools import cache
from pathlib import Path

from recbole_vlm2rec import compat

compat.apply()

import recbole.utils
from recbole.utils import ModelType

from recbole_vlm2rec.nearest import did_you_mean
from recbole_vlm2rec.rows import class_names, our_models, rows

PACKAGE = "recbole_vlm2rec"
RECBOLE = Path(recbole.__file__).parent
RECBOLE_ROOMS = ("general_recommender", "sequential_recommender", "context_aware_recommender", "knowledge_aware_recommender")


def get_model(name: str) -> type:
    """The model class `name`: `recbole_vlm2rec.model.<name in lower case>`, a row (`rows`), else RecBole's.

    Raises ValueError that names the nearest model and lists all, when there is none.
    """
    if found := _find_class(f"{PACKAGE}.model", name):
        return found
    if name in rows():
        return _row_class(name)
    for room in RECBOLE_ROOMS:
        if found := _find_class(f"recbole.model.{room}", name):
            return found
    ours, theirs = model_names()
    raise ValueError(
        f"there is no model {name!r}{did_you_mean(name, ours + theirs)}.\n"
        f"Models of this project: {', '.join(ours) or 'none'}.\nModels of RecBole: {', '.join(theirs)}."
    )


def _find_class(module: str, name: str) -> type | None:
    path = f"{module}.{name.lower()}"
    with compat.anomaly_mode_kept():
        if not (name.isidentifier() and importlib.util.find_spec(path)):
            return None
        return getattr(importlib.import_module(path), name, None)


@cache
def _row_class(name: str) -> type:
    """The code of the model that the row extends, under the row's name, by which Config finds its yaml."""
    base = get_model(rows()[name])
    return type(name, (base,), {"__module__": base.__module__, "__doc__": base.__doc__})


def model_names() -> tuple[list[str], list[str]]:
    """Names of our models and of RecBole's, sorted, found by reading the sources."""
    theirs = [name for room in RECBOLE_ROOMS for name in class_names(RECBOLE / "model" / room)]
    return our_models(), sorted(theirs)


def get_trainer(model_class: type) -> type:
    """The trainer class for a model class, under our evaluation protocol.

    A model of ours may name one of `recbole_vlm2rec.trainer` in its class attribute `trainer`; all others get RecBole's,
    wrapped by `evaluation.trainer_class`. Raises ValueError for RecBole's decision trees, which do not rank items.
    """
    from recbole_vlm2rec.evaluation import trainer_class

    own = getattr(model_class, "trainer", None)
    if isinstance(own, str):
        return getattr(importlib.import_module(f"{PACKAGE}.trainer"), own)
    if model_class.type == ModelType.DECISIONTREE:
        raise ValueError(f"{model_class.__name__} predicts labels and ranks no items: it cannot run under this protocol")
    return trainer_class(recbole.utils.get_trainer(model_class.type, model_class.__name__))
