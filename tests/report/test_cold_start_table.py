"""The cold start table: frequencies from the data that a run was on, seeds averaged by user, mistakes named."""

import numpy as np
import pytest

from recbole_vlm2rec.data.candidates import Histories
from recbole_vlm2rec.report.cold_start_table import as_text, cold_start
from recbole_vlm2rec.report.runs import RunError

BOUGHT = {"a": "ABCX", "b": "ABCY", "c": "XABCX"}
"""Targets X (in training once, of c), Y (never) and X again."""


@pytest.fixture
def shop(atomic, tmp_path):
    """data_path with the data set `shop`, and the settings by which a run says that it was on it."""
    rows = [(user, item, time) for user, items in BOUGHT.items() for time, item in enumerate(items)]
    return atomic(tmp_path / "data", "shop", rows)


@pytest.fixture
def run_on(shop, finished):
    def write(model, seed, ranks, **settings):
        run = finished(model, seed, ranks, data_path=str(shop / "shop"), **settings)
        digest = Histories.read(shop / "shop", "shop").sha256[:8]
        run.result["candidates"]["file"] = f"candidates/shop-100-seed{seed}-{digest}.npz"
        return run

    return write


def test_by_hand(run_on):
    runs = [
        run_on("BPR", 1, [1, 1, 50]),
        run_on("BPR", 2, [50, 1, 50], users=["a", "c", "b"]),
        run_on("SASRec", 1, [50, 1, 1]),
    ]
    bpr, sasrec = cold_start(runs, ["hit@10"], bounds=(0, 1, 2))
    # BPR by user, over both seeds: a (1 + 0) / 2, b (1 + 0) / 2, c (0 + 1) / 2.
    assert (bpr.row, bpr.seeds) == ("BPR", (1, 2))
    assert [(bucket.name, bucket.users, bucket.metrics["hit@10"]) for bucket in bpr.buckets] == [
        ("0", 1, 0.5),
        ("1", 2, 0.5),
        ("2+", 0, None),
    ]
    assert [bucket.metrics["hit@10"] for bucket in sasrec.buckets] == [1.0, 0.5, None]
    assert sasrec.overall == pytest.approx({"hit@10": 2 / 3})
    assert as_text([bpr, sasrec]).splitlines() == [
        "### shop: Hit@10 by training interactions of the target",
        "",
        "|  | seeds | 0 | 1 | 2+ | all |",
        "|---|---:|---:|---:|---:|---:|",
        "| users |  | 1 | 2 | 0 | 3 |",
        "| BPR | 2 | 0.5000 | 0.5000 | – | 0.5000 |",
        "| SASRec | 1 | 1.0000 | 0.5000 | – | 0.6667 |",
    ]


def test_data_that_changed_since_are_refused(run_on, shop):
    run = run_on("BPR", 1, [1, 1, 1], folder="old")
    with open(shop / "shop" / "shop.inter", "a", encoding="utf-8") as file:
        file.write("a\tZ\t9\n")
    with pytest.raises(RunError, match="old was run on other interactions than shop.inter now holds"):
        cold_start([run], ["hit@10"])


def test_a_full_ranking_is_held_to_the_users(run_on):
    run = run_on("BPR", 1, [1, 1, 1], users=["a", "b", "z"], eval_negatives="full")
    run.result["candidates"] = None
    with pytest.raises(RunError, match="the data set has changed since"):
        cold_start([run], ["hit@10"])
    run = run_on("SASRec", 1, [1, 50, 1], eval_negatives="full")
    run.result["candidates"] = None
    (row,) = cold_start([run], ["hit@10"])
    assert [bucket.users for bucket in row.buckets] == [1, 2, 0, 0, 0]
    assert np.isclose(row.overall["hit@10"], 2 / 3)


def test_data_elsewhere_are_asked_for_and_found(finished, run_on, shop):
    run = run_on("BPR", 1, [1, 1, 1])
    run.result["config"]["data_path"] = "gone/shop"
    with pytest.raises(RunError, match="--data_path=FOLDER"):
        cold_start([run], ["hit@10"])
    (row,) = cold_start([run], ["hit@10"], data_path=shop)
    assert row.overall == {"hit@10": 1.0}


def test_data_that_changed_after_a_full_ranking_are_refused_too(shop, finished):
    run = finished("BPR", 1, [1, 1, 1], data_path=str(shop / "shop"), eval_negatives="full")
    run.result.update(candidates=None, histories=Histories.read(shop / "shop", "shop").sha256)
    assert len(cold_start([run], ["hit@10"])) == 1
    file = shop / "shop" / "shop.inter"
    file.write_text("\n".join(file.read_text().splitlines()[:-1]) + "\n")
    with pytest.raises(RunError, match="other interactions"):
        cold_start([run], ["hit@10"])
