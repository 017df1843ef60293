"""Names of our models: classes in `model/`, and rows of the paper's tables, each a yaml that extends one.

Imports the standard library only, so that `--help` can list them.
"""

from __future__ import annotations

import re
from pathlib import Path

PACKAGE_FOLDER = Path(__file__).parent


def props_folder() -> Path:
    """Where our yaml files lie: in the installed package, or at the root of a checkout."""
    installed = PACKAGE_FOLDER / "props"
    return installed if (installed / "overall.yaml").is_file() else PACKAGE_FOLDER.parent / "props"


def rows() -> dict[str, str]:
    """Name of each row -> name of the model that it extends: `props/model/<row>.yaml` with a line `extends: <model>`."""
    found = {}
    for file in sorted((props_folder() / "model").glob("*.yaml")):
        if extends := re.search(r"^extends:\s*(\w+)", file.read_text(encoding="utf-8"), re.MULTILINE):
            found[file.stem] = extends[1]
    return found


def class_names(folder: Path) -> list[str]:
    """The class of each module in `folder` that bears the module's name, whatever the case: RecBole's rule for models."""
    found = []
    for file in sorted(folder.glob("*.py")):
        names = re.findall(r"^class (\w+)\(", file.read_text(encoding="utf-8"), re.MULTILINE)
        found += [name for name in names if name.lower() == file.stem]
    return found


def our_models() -> list[str]:
    """All names that `--model` takes for models of ours, sorted."""
    return sorted([*class_names(PACKAGE_FOLDER / "model"), *rows()])
