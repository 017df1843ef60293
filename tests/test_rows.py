"""Rows of the paper's tables: each is VLM2Rec's code with the settings that its name promises, and nothing else changed."""

import pytest

from recbole_vlm2rec.model.vlm2rec import VLM2Rec
from recbole_vlm2rec.quick_start import make_config, run
from recbole_vlm2rec.registry import get_model, get_trainer, model_names
from recbole_vlm2rec.rows import Row, rows, starts_from_export

# The variants and ablations of METHOD section 4.
PROMISED = {
    "VLMVanilla": {"objective": "none"},
    "VLMVanillaInternal": {"objective": "none", "fusion": "internal"},
    "VLMSFT": {"objective": "sft"},
    "VLMSFTInternal": {"objective": "sft", "fusion": "internal"},
    "LLMVanilla": {"objective": "none", "modalities": "text"},
    "LLMSFT": {"objective": "sft", "modalities": "text"},
    "VLM2RecWithoutWPCL": {"objective": "crtr"},
    "VLM2RecWithoutStopGradient": {"stop_gradient": False},
    "VLM2RecWithoutPenalty": {"objective": "sft+crtr"},
    "VLM2RecWithoutCRTR": {"objective": "wpcl"},
}


ITEM_LEVEL = {"BERT", "BERTCLS", "CLIP"}  # what they promise: tests/model/test_itemlevel.py


def test_these_are_the_rows():
    assert rows() == dict.fromkeys(PROMISED, "VLM2Rec") | dict.fromkeys(ITEM_LEVEL, "ItemLevel")
    assert {*PROMISED, *ITEM_LEVEL} < set(model_names()[0])


@pytest.mark.parametrize("name", PROMISED)
def test_a_row_is_the_code_of_vlm2rec_under_its_own_name(name):
    row = get_model(name)
    assert row.__name__ == name and issubclass(row, VLM2Rec) and row is get_model(name)
    assert not {key for key in vars(row) if not key.startswith("__")}
    assert get_trainer(row) is get_trainer(VLM2Rec)


@pytest.mark.parametrize("name", PROMISED)
def test_a_row_changes_what_its_name_says_and_nothing_else(name, toy):
    settings = {**toy, "backbone": "tiny"}
    base, row = (make_config(model, "toy", None, settings).as_dict() for model in ("VLM2Rec", name))
    assert row.keys() == base.keys()
    assert {key: row[key] for key in row if row[key] != base[key]} == {"model": name, **PROMISED[name]}


def test_given_settings_win_over_a_row(toy):
    assert make_config("VLMSFT", "toy", None, {**toy, "fusion": "internal"})["fusion"] == "internal"


def test_a_run_of_a_row_is_that_of_vlm2rec_with_its_settings(toy, shop_folder):
    settings = {**toy, "data_path": str(shop_folder), "backbone": "tiny", "MAX_ITEM_LIST_LENGTH": 3, "learning_rate": 2e-3}
    row = run("VLMSFT", "shop", config_dict=settings)
    same = run("VLM2Rec", "shop", config_dict={**settings, "objective": "sft"})
    assert (row["model"], row["row"], same["row"]) == ("VLMSFT", "VLMSFT", "VLM2Rec")
    assert row["test"] == same["test"] and row["fingerprint"] != same["fingerprint"]
    assert row["training"][0]["loss"] == pytest.approx(same["training"][0]["loss"], rel=1e-5)


def test_extends_is_no_setting(toy, tmp_path):
    with pytest.raises(ValueError, match="unknown key 'extends'"):
        make_config("VLMSFT", "toy", None, {**toy, "extends": "SASRec"})
    (tmp_path / "mine.yaml").write_text("extends: SASRec\n", encoding="utf-8")
    with pytest.raises(ValueError, match="unknown key 'extends' in config file .*mine.yaml"):
        make_config("VLMSFT", "toy", [str(tmp_path / "mine.yaml")], toy)


def test_a_misspelt_row_is_told_its_name():
    with pytest.raises(ValueError, match="did you mean 'VLMSFTInternal'"):
        get_model("VLMSFTIntrenal")


@pytest.mark.parametrize("text, row, from_export, embedder", [
    ("VLM2Rec", Row("VLM2Rec"), False, "VLM2Rec"),
    (" SASRec ", Row("SASRec"), False, "SASRec"),
    ("VLMSFT@Toys", Row("VLMSFT", "Toys"), False, "VLMSFT"),
    ("VLM2RecSASRec", Row("VLM2RecSASRec"), True, "VLM2RecSASRec"),
    ("VLM2RecSASRec@VLMSFT", Row("VLM2RecSASRec", "VLMSFT"), True, "VLMSFT"),
    ("VLM2RecGRU4Rec@VLM2Rec@Toys", Row("VLM2RecGRU4Rec", "VLM2Rec@Toys"), True, "VLM2Rec"),
])  # fmt: skip
def test_names_of_rows(text, row, from_export, embedder):
    assert Row.parse(text) == row and str(row) == text.strip()
    assert row.starts_from_export is from_export and row.embedder == embedder


@pytest.mark.parametrize("text", ["", "  ", "@Toys", "VLM2Rec@", "@"])
def test_half_a_row_is_refused(text):
    with pytest.raises(ValueError, match="write MODEL, or MODEL@SOURCE"):
        Row.parse(text)


def test_only_task_2_starts_from_an_export():
    assert {name for name in model_names()[0] if starts_from_export(name)} == {"VLM2RecSASRec", "VLM2RecGRU4Rec"}
    assert not starts_from_export("SASRec") and not starts_from_export("SASRecF")
