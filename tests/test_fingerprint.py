"""What counts as the same experiment: settings and data do, where it runs and what it shows do not."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from recbole_vlm2rec import embeddings
from recbole_vlm2rec.fingerprint import fingerprint
from recbole_vlm2rec.quick_start import make_config, run


@pytest.fixture
def shop(shop_folder, tmp_path) -> Path:
    """A copy of the shop, to be changed."""
    return Path(shutil.copytree(shop_folder, tmp_path / "copy"))


@pytest.fixture
def identity(shop_folder):
    """Fingerprint of a model's run on the shop with these settings."""
    common = {"data_path": str(shop_folder), "use_gpu": False}

    def identity(model, **changes):
        backbone = {"backbone": "tiny"} if model in ("VLM2Rec", "LLMSFT") else {}
        return fingerprint(make_config(model, "shop", None, {**common, **backbone, **changes}).as_dict())

    return identity


@pytest.mark.parametrize("model", ["SASRec", "VLM2Rec"])
def test_where_and_how_it_runs_does_not_count(identity, model, shop, tmp_path):
    expected = identity(model)
    elsewhere = {"checkpoint_dir": str(tmp_path), "result_file": str(tmp_path / "r.json"), "resume": str(tmp_path)}
    machine = {"worker": 2, "eval_batch_size": 7, "feature_cache": None}
    shown = {"show_progress": False, "state": "ERROR", "row": "mine", "topk": [5, 20], "metrics": ["MRR", "NDCG"]}
    for changes in ({"data_path": str(shop)}, elsewhere, machine, shown):
        assert identity(model, **changes) == expected, changes


def test_the_device_does_not_count(toy):
    here = make_config("BPR", "toy", None, toy).as_dict()  # a Config with another gpu_id would hide this process's GPUs
    assert fingerprint({**here, "device": "cuda:1", "use_gpu": True, "gpu_id": "1"}) == fingerprint(here)


@pytest.mark.parametrize("model, change", [
    ("SASRec", {"hidden_size": 32}), ("VLM2Rec", {"tau_crtr": 0.5}), ("VLM2Rec", {"modalities": "text", "objective": "sft"}),
])  # fmt: skip
def test_settings_count(identity, model, change):
    changes = [{}, {"seed": 1}, {"learning_rate": 0.5}, {"epochs": 4}, {"eval_negatives": 50}, {"candidate_seed": 1}]
    changes += [{"train_users": 20}, change]
    assert len({identity(model, **settings) for settings in changes}) == len(changes)


def test_the_model_counts(identity):
    assert len({identity(model) for model in ("SASRec", "GRU4Rec", "BPR")}) == 3


def test_interactions_and_titles_count_for_every_model(identity, shop):
    for name in ("shop.inter", "shop.item"):
        before = {model: identity(model, data_path=str(shop)) for model in ("SASRec", "VLM2Rec")}
        file = shop / "shop" / name
        lines = file.read_text(encoding="utf-8").splitlines()
        cells = lines[5].split("\t")
        cells[lines[0].split("\t").index({"shop.inter": "timestamp:float", "shop.item": "title:token_seq"}[name])] += "1"
        lines[5] = "\t".join(cells)
        file.write_text("\n".join(lines) + "\n", encoding="utf-8")
        for model, old in before.items():
            assert identity(model, data_path=str(shop)) != old, (model, name)


def test_a_picture_counts_for_models_that_look_at_it(identity, shop, shop_folder):
    picture = sorted((shop / "shop" / "images").iterdir())[3]
    with Image.open(picture) as image:
        pixels = image.convert("RGB")
    red, *rest = pixels.getpixel((0, 0))
    pixels.putpixel((0, 0), (red ^ 1, *rest))
    pixels.save(picture)
    same = {model: identity(model, data_path=str(shop)) == identity(model) for model in ("VLM2Rec", "LLMSFT", "SASRec")}
    assert same == {"VLM2Rec": False, "LLMSFT": True, "SASRec": True}


def test_of_an_export_the_content_counts(identity, tmp_path):
    def export(name: str, seed: int) -> str:
        vectors = np.random.default_rng(seed).normal(size=(5, 8)).astype(np.float32)
        embeddings.write(tmp_path / name, [f"p{i}" for i in range(5)], fused=vectors, manifest={"dataset": "shop"})
        return str(tmp_path / name)

    one, same, other = export("one", 1), export("same", 1), export("other", 2)
    assert identity("VLM2RecSASRec", item_embeddings=one) == identity("VLM2RecSASRec", item_embeddings=same)
    assert identity("VLM2RecSASRec", item_embeddings=one) != identity("VLM2RecSASRec", item_embeddings=other)


@pytest.mark.parametrize("model", ["Pop", "BERT4Rec", "VLMVanilla"])
def test_a_run_keeps_the_fingerprint_of_its_command(model, toy, shop_folder):
    """BERT4Rec's data set writes into the Config."""
    settings = {**toy, "data_path": str(shop_folder)}
    settings |= {"backbone": "tiny", "MAX_ITEM_LIST_LENGTH": 2} if model == "VLMVanilla" else {}
    expected = fingerprint(make_config(model, "shop", None, settings).as_dict())
    result = run(model, "shop", config_dict=settings)
    started = json.loads((Path(result["checkpoint"]).parent / "started.json").read_text())
    assert result["fingerprint"] == started["fingerprint"] == expected


def test_a_key_that_the_model_does_not_read_does_not_count(identity):
    assert identity("SASRec", objective="sft") == identity("SASRec")


def test_every_atomic_file_counts(identity, shop):
    before = identity("SASRec", data_path=str(shop))
    (shop / "shop" / "shop.json").write_text("{}")  # not RecBole's
    assert identity("SASRec", data_path=str(shop)) == before
    (shop / "shop" / "shop.kg").write_text("head_id:token\trelation_id:token\ttail_id:token\n")
    assert identity("SASRec", data_path=str(shop)) != before


def test_a_local_encoder_counts_by_its_files(identity, tmp_path):
    folder = tmp_path / "encoder"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(b"weights")
    settings = {"item_encoder": str(folder), "pooling": "mean"}
    before = identity("ItemLevel", **settings)
    moved = shutil.copytree(folder, tmp_path / "moved")
    assert identity("ItemLevel", **{**settings, "item_encoder": str(moved)}) == before
    (folder / "config.json").write_text("{ }")
    assert identity("ItemLevel", **settings) != before
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(b"other weights")
    assert identity("ItemLevel", **settings) != before
    assert identity("ItemLevel", item_encoder="hub/a") != identity("ItemLevel", item_encoder="hub/b")
