"""What makes two runs the same experiment: settings, data and code, as one hash.

Imports data.catalog and report.runs; no torch, no recbole.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from recbole_vlm2rec import __version__
from recbole_vlm2rec.data.catalog import Catalog
from recbole_vlm2rec.report.runs import RUN_TIME

# RecBole's atomic files.
ATOMIC = (".inter", ".item", ".user", ".kg", ".link", ".net")


def fingerprint(config: dict[str, Any]) -> str:
    """SHA-256 over every setting that can change a result, the data set's files, and this package's version.

    `config`: `Config.as_dict()` before data and model are built, which write into the Config (BERT4Rec's do).

    Where a run reads, writes and computes (`RUN_TIME`) does not count; nor does the folder of an export or checkpoint, only what
    it holds.
    """
    settings = {key: value for key, value in config.items() if key not in RUN_TIME}
    if export := settings.get("item_embeddings"):
        settings["item_embeddings"] = json.loads((Path(export) / "manifest.json").read_text(encoding="utf-8"))["content"]
    if source := settings.get("checkpoint"):
        # Its settings are the run's own; without LoRA weights there is nothing more.
        places = (Path(source) / folder / "adapter_model.safetensors" for folder in (".", "checkpoint"))
        settings["checkpoint"] = next(filter(None, map(_hash, places)), None)
    for key in ("backbone", "item_encoder"):
        if settings.get(key):
            settings[key] = _weights(settings[key])
    about = {"settings": settings, "data": _data(config), "version": __version__}
    return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()


def _data(config: dict[str, Any]) -> list:
    """Hashes of the data set's atomic files, and, where the model looks at pictures, of the catalogue with its pictures."""
    folder, name = Path(config["data_path"]), config["dataset"]
    files = sorted(file for file in folder.glob(f"{name}.*") if file.suffix in ATOMIC)
    hashes: list = [[file.name, _hash(file)] for file in files]
    if "image" in (config.get("modalities") or ""):
        hashes.append(Catalog.read(folder, name).hash)
    return hashes


def _weights(name: str) -> list:
    """Of a model in a local folder: its files, by name and size, and its configuration; a name on the hub says enough."""
    files = sorted(file for file in Path(name).glob("*") if file.suffix in (".safetensors", ".bin", ".json", ".txt", ".model"))
    return [name if not files else "", [[file.name, file.stat().st_size] for file in files], _hash(Path(name) / "config.json")]


def _hash(file: Path) -> str | None:
    return hashlib.sha256(file.read_bytes()).hexdigest() if file.is_file() else None
