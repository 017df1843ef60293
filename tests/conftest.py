"""Data that several tests share: small generated data sets in a temporary folder, and real data where there are some."""

import os
from pathlib import Path

import numpy as np
import pytest

from recbole_vlm2rec.prepare.minishop import generate


def write_atomic(folder: Path, name: str, rows, items=None) -> Path:
    """Writes <folder>/<name>/<name>.inter from (user, item, time) rows and, given tokens, <name>.item; returns the folder."""
    place = folder / name
    place.mkdir(parents=True)
    lines = ["user_id:token\titem_id:token\ttimestamp:float", *("\t".join(map(str, row)) for row in rows)]
    (place / f"{name}.inter").write_text("\n".join(lines) + "\n", encoding="utf-8")
    if items is not None:
        lines = ["item_id:token\ttitle:token_seq", *(f"{item}\tthing number {item}" for item in items)]
        (place / f"{name}.item").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


@pytest.fixture
def atomic():
    """`write_atomic`, for tests that bring rows of their own."""
    return write_atomic


@pytest.fixture(scope="session")
def toy_folder(tmp_path_factory) -> Path:
    """A data_path with the data set `toy`: users of 1, 2, 3 and 4 interactions among 40, 60 items and tied timestamps, and one
    item more in .item than anybody bought."""
    rng = np.random.default_rng(5)
    items = [f"i{item}" for item in range(60)]
    rows = []
    for user in range(40):
        length = user + 1 if user < 4 else int(rng.integers(5, 14))
        for place, item in enumerate(rng.choice(60, size=length, replace=False)):
            rows.append((f"u{user}", items[item], 1_500_000_000 + 7 * user + place // 3))
    return write_atomic(tmp_path_factory.mktemp("atomic"), "toy", rows, [*items, "never_bought"])


@pytest.fixture(scope="session")
def toy(toy_folder, tmp_path_factory) -> dict:
    """config_dict for a quick run on `toy`: one epoch, 20 negatives, no progress bars, all output in a temporary folder."""
    return {
        "data_path": str(toy_folder),
        "checkpoint_dir": str(tmp_path_factory.mktemp("saved")),
        "epochs": 1,
        "eval_negatives": 20,
        "train_batch_size": 64,
        "eval_batch_size": 7,
        "show_progress": False,
        "use_gpu": False,
    }


@pytest.fixture(scope="session")
def shop_folder(tmp_path_factory) -> Path:
    """A data_path with the data set `shop`: 100 users, 120 items, titles and pictures."""
    folder = tmp_path_factory.mktemp("shops")
    generate(folder, "shop", seed=11, users=100, items=120)
    return folder


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real data sets that RECBOLE_VLM2REC_REAL_DATA names; skips without it."""
    folder = os.environ.get("RECBOLE_VLM2REC_REAL_DATA")
    if not folder or not Path(folder).is_dir():
        pytest.skip("RECBOLE_VLM2REC_REAL_DATA names no folder of real data sets")
    return Path(folder)
