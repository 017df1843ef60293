"""The study's plan, its paired differences from runs written by hand, and its tables."""

import json

import numpy as np
import pytest

from recbole_vlm2rec import study
from recbole_vlm2rec.study import Run


def test_the_plan():
    runs = study.planned(["balanced", "text-heavy"], [1, 2, 3], [2026, 2027])
    everywhere = [run for run in runs if run.variant in study.EVERYWHERE]
    assert len(everywhere) == 2 * 3 * (1 + 2 + 2)
    others = [run for run in runs if run.variant not in study.EVERYWHERE]
    assert {(run.shop, run.seed) for run in others} == {("text-heavy-1", 2026)}
    assert {run.variant for run in others} == set(study.VARIANTS) - set(study.EVERYWHERE)
    assert len({run.name for run in runs}) == len(runs)


@pytest.fixture
def finished(tmp_path, monkeypatch):
    """Two shops of two users, one seed: SFT ranks 1 and 3, VLM2Rec 1 and 1, vanilla never within 20."""
    given = {"vanilla": [21, 50], "SFT": [1, 3], "VLM2Rec": [1, 1]}
    runs = [Run("balanced", data_seed, variant, 5) for data_seed in (1, 2) for variant in given]
    for run in runs:
        folder = tmp_path / "runs" / run.name
        folder.mkdir(parents=True)
        ranks = np.array(given[run.variant])
        np.savez(folder / "ranks.npz", test_ranks=ranks, test_t2f_ranks=ranks, test_v2f_ranks=np.array([21, 21]))
        training = [{name: 1.0 for name in study.EXPLANATIONS}] if run.variant != "vanilla" else []
        result = {
            "checkpoint": str(folder / "checkpoint"),
            "training": training,
            "geometry": {"text": {"separability": 1.5}, "image": {"separability": 1.25}},
            "versions": {"torch": "x"},
        }
        (tmp_path / "results").mkdir(exist_ok=True)
        (tmp_path / "results" / f"{run.name}.json").write_text(json.dumps(result))
    monkeypatch.setattr(study.references, "ranks", lambda folder, name, seed: {"popularity": np.array([1, 21])})
    return tmp_path, runs


def test_scores_and_differences_from_ranks(finished):
    report = study.summarise(*finished)
    # N@20 is 1 / log2(1 + rank): rank 1 gives 1, rank 3 gives 1/2, beyond 20 nothing.
    by_variant = {row["variant"]: row["ndcg@20"]["f2f"] for row in report["rows"] if row["shop"] == "balanced-1"}
    assert by_variant == pytest.approx({"vanilla": 0.0, "SFT": 0.75, "VLM2Rec": 1.0})
    assert report["references"]["balanced-2"] == {"popularity": 0.5}
    difference = next(d for d in report["differences"] if (d["one"], d["other"], d["asking"]) == ("VLM2Rec", "SFT", "f2f"))
    # Users' differences 0, 1/2, 0, 1/2: mean 1/4, variance 1/12, standard error sqrt(1/12 / 4).
    assert difference["mean"] == pytest.approx(0.25) and difference["by_shop"] == pytest.approx([0.25, 0.25])
    assert difference["standard_error"] == pytest.approx((1 / 48) ** 0.5)
    assert difference["p"] <= difference["p_holm"] <= 1
    same = next(d for d in report["differences"] if (d["one"], d["asking"]) == ("VLM2Rec", "v2f"))
    assert same["mean"] == 0 and same["p_holm"] == 1


def test_the_tables_hold_what_was_found(finished):
    text = study.as_markdown(study.summarise(*finished))
    assert "| balanced | *popularity* | 2 | 0.5000 |" in text
    assert "| balanced | SFT | 2 x 1 | 0.7500 | 0.7500 | 0.0000 | 1.500 | 1.250 |" in text
    assert "| balanced | VLM2Rec - SFT | f2f | +0.2500 | 0.1443 | +0.2500, +0.2500 |" in text
