"""Finished runs on disk, as quick_start writes them, with ranks that a test brings."""

import json

import numpy as np
import pytest

from recbole_vlm2rec.report.runs import read_run


@pytest.fixture
def finished(tmp_path):
    """finished("BPR", seed, ranks, …) writes a run of that model and reads it back; users are a, b, c, … unless given."""

    def write(model, seed, ranks, *, dataset="shop", users=None, sha256=None, test=None, row=None, folder=None, **config):
        place = tmp_path / "saved" / (folder or f"{model}-{dataset}-seed{seed}-20260101-000000")
        place.mkdir(parents=True)
        config = {"model": model, "seed": seed, "eval_negatives": 100, "checkpoint_dir": str(place), **config}
        candidates = {"file": "shop-100.npz", "sha256": sha256 or f"{dataset}-{seed}"}
        result = {
            "model": model,
            "dataset": dataset,
            "seed": seed,
            "test": test or {},
            "candidates": candidates,
            "config": config,
        }
        (place / "result.json").write_text(json.dumps(result | ({"row": row} if row else {})))
        users = np.array(users or [chr(ord("a") + user) for user in range(len(ranks))])
        np.savez_compressed(place / "ranks.npz", test_users=users, test_ranks=np.array(ranks))
        return read_run(place)

    return write
