"""Comparisons: what is missing is run and nothing else, failures stay with their row, rows get what they rest on."""

import csv
import json
import shutil
from pathlib import Path
from statistics import mean

import numpy as np
import pytest
from safetensors.numpy import load_file

from recbole_vlm2rec import cli, quick_start
from recbole_vlm2rec import sweep as module
from recbole_vlm2rec.prepare.minishop import generate
from recbole_vlm2rec.registry import get_model, get_trainer
from recbole_vlm2rec.report.runs import read_run
from recbole_vlm2rec.sweep import SweepError, is_sweep, sweep


@pytest.fixture
def ran(monkeypatch):
    """(model, data set, seed) of each run that a comparison starts, in order."""
    started = []

    def run(model, dataset, files, settings):
        started.append((model, dataset, settings["seed"]))
        return quick_start.run(model, dataset, files, settings)

    monkeypatch.setattr(module, "run", run)
    return started


def results(root) -> dict[tuple, dict]:
    """Finished runs by row, data set and seed."""
    found = [json.loads(file.read_text(encoding="utf-8")) for file in Path(root).glob("*/result.json")]
    by_name = {(result["row"], result["dataset"], result["seed"]): result for result in found}
    assert len(by_name) == len(found)
    return by_name


def lines(place) -> list[dict]:
    with open(f"{place}.csv", newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("settings, several", [
    ({}, False), ({"model": "BPR", "dataset": "toy"}, False), ({"model": "BPR", "train_users": 128}, False),
    ({"model": "BPR,SASRec"}, True), ({"model": ["BPR", "SASRec"]}, True), ({"dataset": "Beauty,Toys"}, True),
    ({"train_users": "128,256"}, True), ({"train_users": [128, 256]}, True), ({"seeds": 1}, True), ({"seeds": "1,2"}, True),
    ({"table": "t"}, True), ({"row_settings": "f.yaml"}, True), ({"model": "VLM2Rec@Toys"}, True),
])  # fmt: skip
def test_which_commands_are_comparisons(settings, several):
    assert is_sweep(settings) is several


@pytest.fixture(scope="module")
def compared(toy, tmp_path_factory):
    """The settings of a finished comparison of two rows over two seeds, and its folder."""
    root = tmp_path_factory.mktemp("compared")
    settings = {**toy, "model": "BPR,SASRec", "dataset": "toy", "seeds": "1,2", "checkpoint_dir": str(root)}
    sweep(settings)
    return settings, root


def test_every_row_is_run_with_every_seed_and_tabled(compared):
    _, root = compared
    found = results(root)
    assert set(found) == {(row, "toy", seed) for row in ("BPR", "SASRec") for seed in (1, 2)}
    written = {(line["row"], line["metric"]): line for line in lines(root / "table")}
    assert set(written) == {(row, metric) for row in ("BPR", "SASRec") for metric in found["BPR", "toy", 1]["test"]}
    for (row, metric), line in written.items():
        expected = mean(found[row, "toy", seed]["test"][metric] for seed in (1, 2))
        assert float(line["mean"]) == pytest.approx(expected, abs=1e-12)
        assert (line["dataset"], line["seeds"]) == ("toy", "1 2")
    for suffix in ("md", "tex"):
        text = (root / f"table.{suffix}").read_text(encoding="utf-8")
        assert "BPR" in text and "SASRec" in text


def test_the_same_again_runs_nothing(compared, ran, tmp_path, capsys):
    settings, root = compared
    place = tmp_path / "deep" / "again"
    sweep({**settings, "table": str(place)})
    assert ran == [] and lines(place) == lines(root / "table")
    assert capsys.readouterr().out.count("finished before") == 4


def test_what_is_missing_is_run_and_no_more(compared, ran, tmp_path):
    """In a copy of the folder, too: what a run is does not depend on where it lies."""
    settings, root = compared
    copy = shutil.copytree(root, tmp_path / "copy")
    sweep({**settings, "seeds": [3, 1, 2], "checkpoint_dir": str(copy)})
    assert ran == [("BPR", "toy", 3), ("SASRec", "toy", 3)]
    assert {line["seeds"] for line in lines(copy / "table")} == {"1 2 3"}
    ran.clear()
    sweep({**settings, "model": "SASRec", "seeds": 3, "checkpoint_dir": str(copy), "learning_rate": 0.01})
    assert ran == [("SASRec", "toy", 3)]


def test_a_damaged_run_is_made_anew(compared, ran, tmp_path, capsys):
    settings, root = compared
    copy = shutil.copytree(root, tmp_path / "copy")
    (file,) = copy.glob("BPR-toy-seed1-*/result.json")
    file.write_text("{", encoding="utf-8")
    sweep({**settings, "checkpoint_dir": str(copy)})
    assert ran == [("BPR", "toy", 1)] and f"not reused: {file}" in capsys.readouterr().out


def test_a_failing_row_leaves_the_others(toy, ran, tmp_path):
    """One by RecBole's own check, one by whatever torch raises."""
    settings = {**toy, "model": "SASRec,BPR,Pop", "dataset": "toy", "checkpoint_dir": str(tmp_path)}
    broken = {"SASRec": {"n_heads": 3}, "BPR": {"embedding_size": "wide"}}
    with pytest.raises(SweepError, match="2 of 3 runs failed") as failure:
        sweep({**settings, "row_settings": broken})
    text = str(failure.value)
    assert "SASRec on toy, seed 2026: " in text and "BPR on toy, seed 2026: " in text and "Pop on" not in text
    assert {line["row"] for line in lines(tmp_path / "table")} == {"Pop"}
    ran.clear()
    sweep({**settings, "seeds": 2026})
    assert [model for model, *_ in ran] == ["SASRec", "BPR"]
    assert {line["row"] for line in lines(tmp_path / "table")} == {"SASRec", "BPR", "Pop"}


def test_settings_of_a_row_hold_in_this_row_alone(toy, tmp_path):
    file = tmp_path / "rows.yaml"
    file.write_text("BPR: {embedding_size: 8}\n", encoding="utf-8")
    common = {**toy, "dataset": "toy", "checkpoint_dir": str(tmp_path), "embedding_size": 16}
    sweep({**common, "model": "BPR,GRU4Rec", "row_settings": str(file)})
    sizes = {row: result["config"]["embedding_size"] for (row, *_), result in results(tmp_path).items()}
    assert sizes == {"BPR": 8, "GRU4Rec": 16}


def test_few_shot_rows(toy, tmp_path, ran):
    sweep({**toy, "model": "BPR", "dataset": "toy", "train_users": "5,10", "checkpoint_dir": str(tmp_path)})
    counts = {row: result["config"]["train_users"] for (row, *_), result in results(tmp_path).items()}
    assert counts == {"BPR (5 users)": 5, "BPR (10 users)": 10} and len(ran) == 2
    assert {line["row"] for line in lines(tmp_path / "table")} == set(counts)


@pytest.mark.parametrize("change, words", [
    ({"row_settings": {"BRP": {"embedding_size": 8}}}, "row_settings: there is no model 'BRP'; did you mean 'BPR'"),
    ({"row_settings": {"BPR": 8}}, "row_settings: BPR holds 8"),
    ({"model": "BPR,VLM2RecSASRec"}, "VLM2RecSASRec@VLM2Rec say"),
    ({"model": "BPR,VLM2RecSASRec@"}, "write MODEL, or MODEL@SOURCE"),
    ({"model": "BPR,Pop@Toys"}, "Pop has no use for @Toys"),
    ({"model": "BPR,SASRek"}, "did you mean 'SASRec'"),
    ({"model": "BPR,VLM2RecSASRec@VLMSTF"}, "did you mean 'VLMSFT'"),
    ({"dataset": "tpy,toy"}, "did you mean 'toy'"),
    ({"dataset": "toy,tpy"}, "did you mean 'toy'"),
    ({"model": "BPR,VLM2Rec@tpy"}, "did you mean 'toy'"),
    ({"model": "BPR,VLM2RecSASRec@Pop"}, "Pop has no item vectors to export"),
    ({"row_settings": {"BPR": {"embeding_size": 8}}}, "row_settings of BPR; did you mean 'embedding_size'"),
    ({"row_settings": {"BPR": {"seed": 8}}}, "BPR names seed, which a comparison sets itself"),
    ({"row": "mine"}, "row is for a single run"), ({"resume": "saved/x"}, "resume is for a single run"),
    ({"seed": "1,2"}, r"seed is '1,2'; give one whole number \(several: --seeds=1,2,3\)"),
    ({"backbone": "a/final,b/final"}, "told apart by the last part"),
    ({"seeds": "1,two"}, "seeds: 'two' is no whole number"),
    ({"train_users": [True, 5]}, "train_users: True is no whole number"),
])  # fmt: skip
def test_what_cannot_be_is_refused_before_anything_runs(toy, tmp_path, ran, change, words):
    settings = {**toy, "model": "BPR,Pop", "dataset": "toy", "checkpoint_dir": str(tmp_path / "saved")}
    with pytest.raises((ValueError, FileNotFoundError), match=words):
        sweep({**settings, **change})
    assert ran == [] and not (tmp_path / "saved").exists()


def test_model_and_data_set_may_stand_in_a_configuration_file(toy, tmp_path):
    (tmp_path / "c.yaml").write_text("model: BPR\ndataset: toy\nembedding_size: 8\n")
    sweep({**toy, "seeds": 5, "checkpoint_dir": str(tmp_path / "saved"), "config_files": str(tmp_path / "c.yaml")})
    ((row, result),) = results(tmp_path / "saved").items()
    assert row == ("BPR", "toy", 5) and result["config"]["embedding_size"] == 8


def test_columns_and_tests_are_by_the_metrics_of_the_runs(toy, tmp_path, ran):
    settings = {**toy, "model": "BPR,Pop", "dataset": "toy", "checkpoint_dir": str(tmp_path)}
    table = sweep({**settings, "metrics": ["MRR"], "topk": [3], "valid_metric": "MRR@3"})
    assert table.metrics == ("mrr@3",) and table.tested == ("mrr@3",)


def test_a_run_that_another_process_is_at_is_left_alone(toy, tmp_path, monkeypatch):
    """As when a second shell is given the same command: it must not write into the first one's folder."""
    whole = quick_start._run_in

    def twice(folder, *arguments):
        with pytest.raises(ValueError, match="is being run by another process"), quick_start._alone(folder):
            pass
        return whole(folder, *arguments)

    monkeypatch.setattr(quick_start, "_run_in", twice)
    result = quick_start.run("BPR", "toy", config_dict={**toy, "checkpoint_dir": str(tmp_path)})
    with quick_start._alone(Path(result["checkpoint"]).parent):
        pass  # the lock went with the run


def test_what_failed_once_is_not_tried_again_for_each_row_that_rests_on_it(toy, tmp_path, monkeypatch):
    tried = []

    def failing(model, *rest):
        tried.append(model)
        raise ValueError("no memory")

    monkeypatch.setattr(module, "run", failing)
    rows = "VLM2RecSASRec@VLMVanilla,VLM2RecGRU4Rec@VLMVanilla"
    with pytest.raises(SweepError, match="2 of 2 runs failed"):
        sweep({**toy, "model": rows, "dataset": "toy", "backbone": "tiny", "modalities": "text", "checkpoint_dir": str(tmp_path)})
    assert tried == ["VLMVanilla"]


# With the vision-language model


@pytest.fixture(scope="module")
def shops(tmp_path_factory) -> Path:
    """A data_path with the data sets `shop` and `other`."""
    folder = tmp_path_factory.mktemp("shops")
    for name, seed in (("shop", 11), ("other", 13)):
        generate(folder, name, seed=seed, users=100, items=120)
    return folder


@pytest.fixture
def settings(shops, tmp_path):
    return {
        "data_path": str(shops),
        "dataset": "shop",
        "checkpoint_dir": str(tmp_path / "saved"),
        "show_progress": False,
        "use_gpu": False,
        "eval_negatives": 20,
        "MAX_ITEM_LIST_LENGTH": 2,
        "backbone": "tiny",
        "epochs": 1,
        "train_batch_size": 20,
        "learning_rate": 2e-3,
    }


def test_a_task_2_row_gets_its_embedder_and_its_export(settings, ran):
    row, root = "VLM2RecSASRec@VLMVanilla", Path(settings["checkpoint_dir"])
    sweep({**settings, "model": row, "seeds": 7})
    assert ran == [("VLMVanilla", "shop", 7), ("VLM2RecSASRec", "shop", 7)]
    (embedder,) = root.glob("VLMVanilla-*")
    assert results(root)[row, "shop", 7]["config"]["item_embeddings"] == str(embedder / "export")
    assert json.loads((embedder / "export" / "manifest.json").read_text())["model"] == "VLMVanilla"
    assert {line["row"] for line in lines(root / "table")} == {row}
    ran.clear()
    sweep({**settings, "model": f"VLMVanilla,{row}", "seeds": 7})
    assert ran == [] and {line["row"] for line in lines(root / "table")} == {"VLMVanilla", row}


def test_an_interrupted_run_goes_on(settings, ran, monkeypatch):
    """Begun alone, hence without a row's name."""
    trainer = get_trainer(get_model("LLMSFT"))
    train_epoch = trainer._train_epoch

    def stop_in_the_second(self, train_data, epoch_idx, *rest, **named):
        if epoch_idx == 1:
            raise KeyboardInterrupt
        return train_epoch(self, train_data, epoch_idx, *rest, **named)

    chosen = {**settings, "epochs": 2, "model": "LLMSFT"}
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(trainer, "_train_epoch", stop_in_the_second)
        quick_start.run(config_dict=chosen)
    (begun,) = Path(settings["checkpoint_dir"]).glob("LLMSFT-*")
    before = json.loads((begun / "last" / "checkpoint.json").read_text())["progress"]["history"]
    assert len(before) == 1 and not (begun / "result.json").exists()

    sweep({**chosen, "seeds": 2026})
    assert ran == [("LLMSFT", "shop", 2026)]
    assert list(Path(settings["checkpoint_dir"]).glob("LLMSFT-*")) == [begun]
    training = read_run(begun).result["training"]
    assert [entry["epoch"] for entry in training] == [0, 1] and training[0] == before[0]
    ran.clear()
    sweep({**chosen, "seeds": 2026})
    assert ran == []


def test_across_data_sets_the_encoder_is_used_unchanged(settings, ran, tmp_path):
    root = Path(settings["checkpoint_dir"])
    settings |= {"row_settings": {"VLM2Rec": {"lora_rank": 4}}}
    sweep({**settings, "model": "VLM2Rec,VLM2Rec@shop"})
    sweep({**settings, "model": "VLM2Rec@shop", "dataset": "other"})
    assert [(model, dataset) for model, dataset, _ in ran] == [("VLM2Rec", "shop")] * 2 + [("VLM2Rec", "other")]
    found = results(root)
    source, here, there = (
        found[key] for key in (("VLM2Rec", "shop", 2026), *(("VLM2Rec@shop", d, 2026) for d in ("shop", "other")))
    )
    assert source["epochs"] == 1 and here["epochs"] == there["epochs"] == 0
    assert here["test"] == source["test"] and here["modality_dropout"] == source["modality_dropout"]
    assert here["fingerprint"] != source["fingerprint"]
    first, second, third = (load_file(Path(run["checkpoint"]) / "adapter_model.safetensors") for run in (source, here, there))
    for name, weight in first.items():
        assert np.array_equal(weight, second[name]) and np.array_equal(weight, third[name])
    assert {line["dataset"] for line in lines(root / "table")} == {"other"}

    folder = Path(source["checkpoint"]).parent
    for key, value in (("objective", "sft"), ("fusion", "internal"), ("lora_rank", 8), ("modalities", "text")):
        wrong = {**settings, "checkpoint": str(folder), key: value}
        wrong.pop("row_settings")
        with pytest.raises(ValueError, match=f"{key} is '?{value}'?, but the checkpoint .* is used as it is.*leave --{key} out"):
            quick_start.make_config("VLM2Rec", "other", None, wrong)


def test_of_another_data_set_the_pretrained_model_is_still_the_pretrained_model(settings, ran):
    """Nothing was trained there: it is one run by two names."""
    sweep({**settings, "model": "VLMVanilla,VLMVanilla@other"})
    assert [(model, dataset) for model, dataset, _ in ran] == [("VLMVanilla", "shop"), ("VLMVanilla", "other")]
    means = {(line["row"], line["metric"]): line["mean"] for line in lines(Path(settings["checkpoint_dir"]) / "table")}
    assert means["VLMVanilla", "ndcg@20"] == means["VLMVanilla@other", "ndcg@20"] and len(means) == 8


# From the command line


@pytest.fixture
def command(toy_folder, tmp_path, monkeypatch):
    """Runs the command in a folder of its own, where its runs go to saved/; returns the exit status."""
    monkeypatch.chdir(tmp_path)
    common = [f"--data_path={toy_folder}", "--dataset=toy", "--eval_negatives=20", "--show_progress=False", "--use_gpu=False"]
    return lambda *arguments: cli.main(["run", *arguments, "--epochs=1", *common])


def test_the_command(command, tmp_path, capsys):
    assert command("--model=BPR,Pop", "--seeds=1,2", "--table=tables/first") == 0
    assert set(results(tmp_path / "saved")) == {(row, "toy", seed) for row in ("BPR", "Pop") for seed in (1, 2)}
    printed = capsys.readouterr().out
    assert "[4/4] Pop on toy, seed 2" in printed and (tmp_path / "tables" / "first.md").read_text(encoding="utf-8") in printed


def test_the_command_says_what_failed(command, tmp_path, capsys):
    assert command("--model=SASRec,Pop", "--row_settings={SASRec: {n_heads: 3}}") == 2
    error = capsys.readouterr().err
    assert "error: 1 of 2 runs failed" in error and "SASRec on toy, seed 2026" in error and "Traceback" not in error
    assert {row for row, *_ in results(tmp_path / "saved")} == {"Pop"}


def test_the_command_refuses_with_status_2(command, tmp_path, capsys):
    assert command("--model=BPR,Pop", "--row_settings={BRP: {embedding_size: 8}}") == 2
    error = capsys.readouterr().err
    assert error.startswith("error: row_settings: there is no model 'BRP'; did you mean 'BPR'?")
    assert not (tmp_path / "saved").exists()


def test_several_backbones_are_rows_of_the_models_that_have_one(toy, tmp_path, monkeypatch):
    planned = []

    def note(self, plans):
        planned.extend(plans)
        return iter(())

    monkeypatch.setattr("recbole_vlm2rec.sweep.RunMaker.make_all", note)
    models = "BPR,VLMSFT,VLM2RecSASRec@VLMSFT"
    sweep({**toy, "model": models, "dataset": "toy", "backbone": "tiny,models/other", "checkpoint_dir": str(tmp_path)})
    names = ["BPR", "VLMSFT on tiny", "VLMSFT on other", "VLM2RecSASRec@VLMSFT on tiny", "VLM2RecSASRec@VLMSFT on other"]
    assert [plan.name for plan in planned] == names
    assert [plan.backbone for plan in planned] == [None, "tiny", "models/other"] + ["tiny", "models/other"]
