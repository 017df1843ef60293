"""Rows of pretrained item-level encoders: a whole run, its checkpoint, export and task 2, and what is refused."""

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from recbole_vlm2rec import embeddings
from recbole_vlm2rec.analysis.collapse import analyse
from recbole_vlm2rec.config import Config
from recbole_vlm2rec.data.catalog import Catalog
from recbole_vlm2rec.export import export
from recbole_vlm2rec.quick_start import prepare, run
from recbole_vlm2rec.recommend import Recommender
from recbole_vlm2rec.registry import get_model
from recbole_vlm2rec.vlm.backbone import BackboneError
from recbole_vlm2rec.vlm.checkpoint import load_encoder, read_description
from recbole_vlm2rec.vlm.pooled import PooledEncoder


def build(name, settings):
    config = Config(name, "shop", config_dict={key: value for key, value in settings.items() if key != "dataset"})
    dataset, train, valid, _ = prepare(config)
    return get_model(name)(config, train._dataset), dataset, valid


@pytest.mark.parametrize(("name", "pooling"), [("BERT", "mean"), ("BERTCLS", "cls")])
def test_scores_are_cosines_of_mean_histories_with_items(settings, shop_folder, tiny_bert, name, pooling):
    model, dataset, valid = build(name, {**settings["ItemLevel"], "item_encoder": str(tiny_bert)})
    catalog = Catalog.read(shop_folder / "shop", "shop")
    titles = [catalog.title(token) for token in dataset.id2token("item_id", range(1, dataset.item_num))]
    vectors = F.pad(PooledEncoder.from_pretrained(str(tiny_bert), pooling).encode_text(titles), (0, 0, 1, 0))
    rows = valid.transform(valid._dataset, valid._dataset[torch.arange(5)])
    model.eval()
    histories = model.histories(rows)
    assert max(map(len, histories)) == 3
    means = torch.stack([vectors[history].mean(0) for history in histories])
    expected = F.cosine_similarity(means[:, None], vectors[None, 1:], dim=-1)
    torch.testing.assert_close(model.full_sort_predict(rows)[:, 1:], expected, atol=1e-5, rtol=1e-5)


@pytest.fixture(scope="module")
def clip_run(shop_folder, tiny_clip, tmp_path_factory):
    """result.json of a run of the row CLIP."""
    return run(
        "CLIP",
        "shop",
        config_dict={
            "item_encoder": str(tiny_clip),
            "data_path": str(shop_folder),
            "checkpoint_dir": str(tmp_path_factory.mktemp("saved")),
            "show_progress": False,
            "use_gpu": False,
            "MAX_ITEM_LIST_LENGTH": 3,
        },
    )


@pytest.fixture(scope="module")
def clip_folder(clip_run) -> Path:
    return Path(clip_run["checkpoint"]).parent


def test_a_run_measures_what_a_run_of_two_modalities_measures(clip_run):
    assert clip_run["model"] == "CLIP" and clip_run["epochs"] == 0 and clip_run["config"]["backbone"] is None
    assert clip_run["modality_dropout"].keys() == {"t2f", "v2f", "f2f"}
    assert clip_run["modality_dropout"]["t2f"] != clip_run["modality_dropout"]["v2f"]
    assert clip_run["geometry"].keys() == {"fused", "text", "image"}
    assert clip_run["users"]["test"] == 100 and 0 <= clip_run["test"]["ndcg@20"] <= 1


def test_the_checkpoint_says_how_the_encoder_is_built_and_holds_no_weights(clip_folder, tiny_clip):
    assert read_description(clip_folder)["encoder"] == {
        "kind": "pooled",
        "item_encoder": str(tiny_clip),
        "pooling": "projected",
        "max_title_tokens": None,
        "fusion": "external",
        "modalities": "text+image",
        "lora": None,
    }
    assert {file.name for file in (clip_folder / "checkpoint").iterdir()} == {"checkpoint.json", "penalty.safetensors"}
    again = load_encoder(clip_folder)
    torch.testing.assert_close(
        again.encode_text(["red mug"]), PooledEncoder.from_pretrained(str(tiny_clip), "projected").encode_text(["red mug"])
    )


def test_a_run_is_exported_and_sasrec_starts_from_it(clip_folder, shop_folder, tiny_clip, settings, tmp_path):
    out = export(clip_folder, tmp_path / "export", device="cpu", show_progress=False)
    exported = embeddings.read(out)
    catalog = Catalog.read(shop_folder / "shop", "shop")
    encoder = PooledEncoder.from_pretrained(str(tiny_clip), "projected")
    text = encoder.encode_text([*map(catalog.title, exported.item_ids)])
    image = encoder.encode_images([*map(catalog.image, exported.item_ids)])
    for kind, expected in {"text": text, "image": image, "fused": text + image}.items():
        torch.testing.assert_close(torch.from_numpy(getattr(exported, kind)[:]), expected, atol=1e-5, rtol=1e-5)
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["model"] == "CLIP" and manifest["prompts"] == []
    result = run("VLM2RecSASRec", config_dict={**settings["VLM2RecSASRec"], "item_embeddings": str(out), "epochs": 1})
    assert result["epochs"] == 1 and 0 <= result["test"]["ndcg@20"] <= 1


def test_a_run_recommends_and_is_analysed(clip_folder, clip_run):
    recommender = Recommender.load(clip_folder, device="cpu")
    user = recommender.users[0]
    found = recommender.recommend(recommender.history_of(user), top=5)
    assert len(found) == 5 and found[0].score >= found[4].score
    measured = analyse(clip_folder, device="cpu", show_progress=False)
    assert measured["modality_dropout"]["f2f"] == pytest.approx(clip_run["modality_dropout"]["f2f"])
    assert measured["geometry"]["text"] == pytest.approx(clip_run["geometry"]["text"], rel=1e-4)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"item_encoder": None}, ValueError, "item_encoder is not set"),
        ({"objective": "sft"}, ValueError, "objective is sft: an item-level encoder is used as it is"),
        ({"pooling": "max"}, ValueError, "pooling is 'max'"),
        ({"modalities": "text+image"}, ValueError, "needs pooling projected"),
        ({"pooling": "projected"}, BackboneError, "no space that titles and pictures share"),
        ({"fusion": "internal"}, ValueError, "fusion is internal"),
    ],
)
def test_refusals_leave_no_folder(settings, changes, error, message):
    with pytest.raises(error, match=message):
        run("ItemLevel", config_dict={**settings["ItemLevel"], **changes})
    assert not Path(settings["ItemLevel"]["checkpoint_dir"]).exists()


def test_neither_reads_the_others_checkpoint(settings, clip_folder):
    with pytest.raises(ValueError, match="is a run of CLIP, whose encoder is pretrained and never trained"):
        run("VLM2Rec", config_dict={**settings["VLM2Rec"], "checkpoint": str(clip_folder)})
    trained = run("VLMVanilla", config_dict={**settings["VLM2Rec"], "objective": "none"})
    with pytest.raises(ValueError, match="checkpoint is .*: an item-level encoder is used as it is"):
        run("ItemLevel", config_dict={**settings["ItemLevel"], "checkpoint": trained["checkpoint"]})
