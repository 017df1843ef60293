"""The analysis of saved runs: against what the runs measured of themselves, and the penalty against numbers by hand."""

import json
import math
from pathlib import Path

import pytest
import torch

from recbole_vlm2rec import cli
from recbole_vlm2rec.analysis.collapse import analyse, penalty
from recbole_vlm2rec.prepare.minishop import generate
from recbole_vlm2rec.quick_start import run
from recbole_vlm2rec.vlm.fusion import Vectors


@pytest.fixture(scope="module")
def shops(tmp_path_factory):
    """A data_path with `shop` and, of another seed, `market`."""
    folder = tmp_path_factory.mktemp("shops")
    generate(folder, "shop", seed=11, users=100, items=120)
    generate(folder, "market", seed=12, users=130, items=120)
    return folder


@pytest.fixture
def train(shops, tmp_path):
    """train(**changes) -> the result of a short run of VLM2Rec."""

    def train(**changes):
        settings = {"backbone": "tiny", "epochs": 1, "train_batch_size": 20, "learning_rate": 2e-3, "MAX_ITEM_LIST_LENGTH": 3}
        places = {"data_path": str(shops), "checkpoint_dir": str(tmp_path / "saved"), "eval_negatives": 50}
        quiet = {"show_progress": False, "use_gpu": False, "dataset": "shop"}
        return run("VLM2Rec", config_dict={**settings, **places, **quiet, **changes})

    return train


def folder_of(result) -> Path:
    return Path(result["checkpoint"]).parent


@pytest.mark.parametrize("changes", [{}, {"eval_negatives": "full", "objective": "sft"}, {"objective": "none"}])
def test_the_figures_are_those_of_the_run(train, changes):
    result = train(**changes)
    found = analyse(folder_of(result), device="cpu", show_progress=False)
    for query in ("f2f", "t2f", "v2f"):
        assert found["modality_dropout"][query] == pytest.approx(result["modality_dropout"][query], abs=1e-12)
    for kind in ("fused", "text", "image"):
        assert found["geometry"][kind] == pytest.approx(result["geometry"][kind], rel=1e-5)
    assert found["candidates"] == result["candidates"] and found["users"] == result["users"]["test"]
    assert found["notes"] == []
    if result["training"]:
        for name in ("alpha", "beta"):
            assert found["penalty"][name] == pytest.approx(result["training"][0][name])


def test_another_data_set(train):
    """Untouched, the encoder of a run on `shop` is the one that a run on `market` tests."""
    source, target = train(objective="none"), train(objective="none", dataset="market")
    found = analyse(folder_of(source), dataset="market", device="cpu", show_progress=False)
    assert (found["trained_on"], found["dataset"]) == ("shop", "market")
    for query in ("f2f", "v2f"):
        assert found["modality_dropout"][query] == pytest.approx(target["modality_dropout"][query])
    assert found["geometry"]["image"] == pytest.approx(target["geometry"]["image"], rel=1e-5)


@pytest.mark.parametrize("changes, why", [
    ({"modalities": "text"}, "it reads text alone"), ({"modalities": "image"}, "it reads image alone"),
    ({"fusion": "internal"}, "one prompt holds both"),
])  # fmt: skip
def test_without_separate_vectors_the_rest_is_measured(train, changes, why):
    result = train(objective="sft", **changes)
    found = analyse(folder_of(result), device="cpu", show_progress=False)
    assert found["modality_dropout"] == {"f2f": pytest.approx(result["test"])}
    assert set(found["geometry"]) == {"fused"} and found["penalty"] is None
    assert len(found["notes"]) == 1 and why in found["notes"][0]


def test_the_command_prints_tables_and_writes_json(train, tmp_path, capsys):
    result = train()
    stated = json.loads((folder_of(result) / "result.json").read_text())
    stated["candidates"]["sha256"] = "of other interactions"
    (folder_of(result) / "result.json").write_text(json.dumps(stated))
    capsys.readouterr()
    arguments = ["analyse", f"--checkpoint={folder_of(result)}", "--device=cpu", f"--json={tmp_path / 'out' / 'found.json'}"]
    assert cli.main(arguments) == 0
    printed = capsys.readouterr().out
    found = json.loads((tmp_path / "out" / "found.json").read_text())
    for value in (result["modality_dropout"]["v2f"]["ndcg@20"], found["geometry"]["text"]["separability"], found["penalty"]["w"]):
        assert f"{value:.4f}" in printed
    assert "interactions of shop have changed since" in printed

    assert cli.main(["analyse", f"--checkpoint={tmp_path}"]) == 2
    assert "is no checkpoint" in capsys.readouterr().err


def test_penalty_by_hand():
    """Five users: each finds its title at cosine 1 and the others' at 0; all pictures are one. In batches of 2, however shuffled:
    M_T = 1, M_V = 0, D = 1, w = 1 + 0.5 ln(1 + e^2); the picture is the weaker side of all."""
    alike = torch.ones(5, 1) * torch.tensor([[0.6, 0.8, 0, 0, 0]])
    vectors = Vectors(torch.eye(5), alike, torch.eye(5) + alike)
    config = {"seed": 7, "train_batch_size": 2, "tau_wpcl": 0.1, "tau_crtr": 0.1, "centre_penalty": False}
    scalars = {"alpha": torch.tensor(2.0), "beta": torch.tensor(0.5)}
    found = penalty(vectors, vectors, torch.arange(5), torch.arange(5), scalars, config)
    weight = 1 + 0.5 * math.log(1 + math.exp(2))
    assert (found["alpha"], found["beta"]) == (2.0, 0.5)
    assert found["margin_text"] == pytest.approx(1) and found["margin_image"] == pytest.approx(0, abs=1e-6)
    assert found["gap"] == pytest.approx(1) and found["w"] == pytest.approx(weight, rel=1e-6)
    assert found["share_weak_image"] == pytest.approx(1)
    assert found["gradient_through_w"] == pytest.approx(0.1 / (1 + math.exp(-2)) / weight, rel=1e-6)


def test_users_count_alike_in_batches_of_unlike_size():
    """Five users in batches of 3 and 2: all find their titles (margin 1), two of them their pictures too, three do not (0)."""
    items = torch.eye(6)[:5]
    pictures = items.clone()
    pictures[:3] = torch.eye(6)[5]
    queries, targets = Vectors(items, pictures, items + pictures), Vectors(items, items, 2 * items)
    config = {"seed": 3, "train_batch_size": 2, "tau_wpcl": 0.1, "tau_crtr": 0.1, "centre_penalty": False}
    scalars = {"alpha": torch.tensor(1.0), "beta": torch.tensor(1.0)}
    found = penalty(queries, targets, torch.arange(5), torch.arange(5), scalars, config)
    assert found["margin_text"] == pytest.approx(1) and found["margin_image"] == pytest.approx(0.4)
    assert found["share_weak_image"] == pytest.approx(0.6) and found["gap"] == pytest.approx(0.6)
