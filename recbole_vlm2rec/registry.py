"""Finds models and trainers by name: ours first, then RecBole's.

May import recbole; imports a model's module only when that model is asked for.
"""

from __future__ import annotations

import importlib
import importlib.util
import re
from pathlib import Path

from recbole_vlm2rec import compat

compat.apply()

import recbole.utils  # noqa: E402  (after the patches)
from recbole.utils import ModelType  # noqa: E402

from recbole_vlm2rec.nearest import did_you_mean  # noqa: E402

PACKAGE = "recbole_vlm2rec"
RECBOLE = Path(recbole.__file__).parent
RECBOLE_ROOMS = ("general_recommender", "sequential_recommender", "context_aware_recommender", "knowledge_aware_recommender")


def get_model(name: str) -> type:
    """The model class `name`: `recbole_vlm2rec.model.<name in lower case>`, else RecBole's.

    Raises ValueError that names the nearest model and lists all, when there is none.
    """
    for module in [f"{PACKAGE}.model", *(f"recbole.model.{room}" for room in RECBOLE_ROOMS)]:
        path = f"{module}.{name.lower()}"
        if name.isidentifier() and importlib.util.find_spec(path):
            found = getattr(importlib.import_module(path), name, None)
            if found is not None:
                return found
    ours, theirs = model_names()
    raise ValueError(
        f"there is no model {name!r}{did_you_mean(name, ours + theirs)}.\n"
        f"Models of this project: {', '.join(ours) or 'none'}.\nModels of RecBole: {', '.join(theirs)}."
    )


def model_names() -> tuple[list[str], list[str]]:
    """Names of our models and of RecBole's, sorted, found by reading the sources."""
    ours = _classes(Path(__file__).parent / "model")
    theirs = [name for room in RECBOLE_ROOMS for name in _classes(RECBOLE / "model" / room)]
    return sorted(ours), sorted(theirs)


def _classes(folder: Path) -> list[str]:
    """The class of each module that bears the module's name, whatever the case: RecBole's rule for models."""
    found = []
    for file in folder.glob("*.py"):
        names = re.findall(r"^class (\w+)\(", file.read_text(encoding="utf-8"), re.MULTILINE)
        found += [name for name in names if name.lower() == file.stem]
    return found


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
