"""Names of our models: classes in `model/`, and rows of the paper's tables, each a yaml that extends one.

Imports the standard library only, so that `--help` can list them.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
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


@dataclass(frozen=True)
class Row:
    """A row of a result table: `MODEL`, or `MODEL@SOURCE`.

    SOURCE of a model that starts from an export (task 2) is the row whose run is exported: `VLM2RecSASRec@VLMSFT`. Of VLM2Rec
    and its variants it is the data set they were trained on, to be used unchanged here (cross-domain): `VLM2Rec@Toys`.
    """

    model: str
    source: str | None = None

    @classmethod
    def parse(cls, name: str) -> Row:
        """Raises ValueError for an empty part."""
        model, *source = name.strip().split("@", 1)
        if not model or source == [""]:
            raise ValueError(f"row {name!r}: write MODEL, or MODEL@SOURCE such as VLM2RecSASRec@VLMSFT")
        return cls(model, *source)

    def __str__(self) -> str:
        return self.model if self.source is None else f"{self.model}@{self.source}"

    @property
    def starts_from_export(self) -> bool:
        return starts_from_export(self.model)

    @property
    def origin(self) -> str | None:
        """The data set on which the row's embedder was trained, where that is not the one it is used on."""
        if self.starts_from_export:
            return Row.parse(self.source).origin if self.source else None
        return self.source

    @property
    def embedder(self) -> str:
        """The model that the row stands for: itself, or the one whose export it starts from."""
        if self.starts_from_export and self.source:
            return Row.parse(self.source).embedder
        return self.model


def starts_from_export(model: str) -> bool:
    """Whether the model has a key `item_embeddings` (task 2)."""
    file = props_folder() / "model" / f"{model}.yaml"
    return file.is_file() and bool(re.search(r"^item_embeddings:", file.read_text(encoding="utf-8"), re.MULTILINE))
