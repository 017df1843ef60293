"""Whole runs on a small data set: RecBole's models under one protocol, what a run leaves behind, and what it refuses."""

import json
import pickle
import re
from pathlib import Path

import numpy as np
import pytest

from recbole_vlm2rec import quick_start
from recbole_vlm2rec.metrics import summary
from recbole_vlm2rec.quick_start import run

MODELS = ["Pop", "ItemKNN", "BPR", "LightGCN", "NGCF", "GRU4Rec", "BERT4Rec", "SASRec", "SASRecF", "FM"]


@pytest.fixture(scope="module")
def sasrec(toy, tmp_path_factory):
    copy = tmp_path_factory.mktemp("copy") / "deep" / "result.json"
    return run("SASRec", "toy", config_dict={**toy, "epochs": 2, "result_file": str(copy)})


@pytest.mark.parametrize("model", MODELS)
def test_recboles_models_run_under_the_same_candidates(toy, sasrec, model):
    result = run(model, "toy", config_dict=toy)
    assert result["candidates"] == sasrec["candidates"]
    assert result["users"] == {"valid": 37, "test": 38}
    for phase in ("valid", "test"):
        assert 0 <= result[phase]["ndcg@10"] <= result[phase]["ndcg@20"] <= result[phase]["hit@20"] <= 1


def test_result_json_and_its_copy(sasrec):
    folder = Path(sasrec["checkpoint"]).parent
    stored = json.loads((folder / "result.json").read_text())
    assert stored == json.loads(json.dumps(sasrec))
    assert Path(sasrec["config"]["result_file"]).read_text() == (folder / "result.json").read_text()
    assert (stored["model"], stored["dataset"], stored["seed"], stored["epochs"]) == ("SASRec", "toy", 2026, 2)
    assert stored["best_epoch"] in (0, 1)
    assert set(stored["seconds"]) == {"load", "train", "valid", "test"} and min(stored["seconds"].values()) > 0
    assert set(stored["peak_memory_mib"]) >= {"load", "train", "valid", "test"} and min(stored["peak_memory_mib"].values()) > 50
    assert stored["config"]["hidden_size"] == 64 and stored["versions"]["recbole"] == "1.2.1"
    assert re.fullmatch(r"SASRec-toy-seed2026-\d{8}-\d{6}(-\d+)?", folder.name)
    assert {"result.json", "ranks.npz", "run.log", "tensorboard"} <= {path.name for path in folder.iterdir()}
    assert not [path for path in folder.iterdir() if path.name.startswith(".")]


def test_ranks_give_the_metrics_at_full_precision(sasrec):
    folder = Path(sasrec["checkpoint"]).parent
    with np.load(folder / "ranks.npz") as ranks:
        for phase in ("valid", "test"):
            assert summary(ranks[f"{phase}_ranks"], ["Hit", "NDCG"], [10, 20]) == sasrec[phase]
            assert len(ranks[f"{phase}_users"]) == sasrec["users"][phase]
        assert set(ranks["valid_users"]) <= set(ranks["test_users"])


def test_same_seed_same_result_and_another_seed_another(toy, sasrec):
    again = run("SASRec", "toy", config_dict={**toy, "epochs": 2})
    assert again["valid"] == sasrec["valid"] and again["test"] == sasrec["test"]
    assert again["checkpoint"] != sasrec["checkpoint"]
    other = run("SASRec", "toy", config_dict={**toy, "epochs": 2, "seed": 1, "candidate_seed": 2026})
    assert other["candidates"] == sasrec["candidates"] and other["test"] != sasrec["test"]


def test_the_best_weights_are_tested(toy, monkeypatch):
    """Validation of the best epoch is reproduced by the weights that the test used."""
    from recbole_vlm2rec import evaluation

    seen = {}
    original = evaluation.ProtocolMixin.evaluate

    def evaluate(self, eval_data, load_best_model=True, **kwargs):
        result = original(self, eval_data, load_best_model, **kwargs)
        if load_best_model:
            seen["valid"] = original(self, self.loader, False)
            self.ranks["valid"] = self._best[0]
            self.results["valid"] = self._best[1]
        else:
            self.loader = eval_data
        return result

    monkeypatch.setattr(evaluation.ProtocolMixin, "evaluate", evaluate)
    result = run("BPR", "toy", config_dict={**toy, "epochs": 5, "learning_rate": 0.05})
    assert dict(seen["valid"]) == result["valid"]


def test_without_training_the_initial_model_is_measured(toy):
    result = run("BPR", "toy", config_dict={**toy, "epochs": 0})
    assert result["best_epoch"] is None and result["epochs"] == 0 and set(result["valid"]) == set(result["test"])


def test_train_examples_last_trains_on_fewer_rows(toy):
    every, last = (run("SASRec", "toy", config_dict={**toy, "train_examples": kind}) for kind in ("all", "last"))
    assert every["candidates"] == last["candidates"] and every["test"] != last["test"]


def test_the_table_is_printed(toy, capsys):
    result = run("Pop", "toy", config_dict=toy)
    printed = capsys.readouterr().out
    assert re.search(r"valid +\d\.\d{4} +\d\.\d{4} +\d\.\d{4} +\d\.\d{4}\ntest ", printed)
    assert f"result.json: {Path(result['checkpoint']).parent / 'result.json'}" in printed


def test_folders_of_one_second_do_not_collide(toy, tmp_path, monkeypatch):
    monkeypatch.setattr(quick_start.time, "strftime", lambda _: "now")
    config = quick_start.make_config("Pop", "toy", None, {**toy, "checkpoint_dir": str(tmp_path)})
    names = [quick_start._run_folder(config).name for _ in range(3)]
    assert names == ["Pop-toy-seed2026-now", "Pop-toy-seed2026-now-2", "Pop-toy-seed2026-now-3"]


def test_an_interrupt_leaves_no_result(toy, tmp_path, monkeypatch):
    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(quick_start.os, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        with quick_start._replacing(tmp_path / "result.json") as temporary:
            temporary.write_text("{")
    assert not list(tmp_path.iterdir())


def test_an_interrupted_run_has_no_result(toy, tmp_path, monkeypatch):
    from recbole.trainer import Trainer

    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(Trainer, "_train_epoch", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run("BPR", "toy", config_dict={**toy, "checkpoint_dir": str(tmp_path)})
    (folder,) = tmp_path.iterdir()
    assert (folder / "run.log").is_file() and not (folder / "result.json").exists()


def test_recboles_saved_loaders_are_not_opened(toy, tmp_path):
    """RecBole would unpickle this file for its name alone."""
    (tmp_path / "toy-for-Pop-dataloader.pth").write_bytes(pickle.dumps("not loaders"))
    result = run("Pop", "toy", config_dict={**toy, "checkpoint_dir": str(tmp_path)})
    assert result["users"]["test"] == 38


def test_mistakes_are_told_before_anything_is_written(toy, tmp_path):
    settings = {**toy, "checkpoint_dir": str(tmp_path / "saved")}
    with pytest.raises(ValueError, match="did you mean 'learning_rate'"):
        run("SASRec", "toy", config_dict={**settings, "lerning_rate": 1})
    with pytest.raises(FileNotFoundError, match="did you mean 'toy'"):
        run("SASRec", "tpy", config_dict=settings)
    with pytest.raises(ValueError, match="too few negatives"):
        run("SASRec", "toy", config_dict={**settings, "eval_negatives": 59})
    assert not (tmp_path / "saved").exists()


def test_handlers_of_a_run_are_taken_off_again(toy):
    root = quick_start.logging.getLogger()
    before = list(root.handlers), root.level
    run("Pop", "toy", config_dict=toy)
    assert (list(root.handlers), root.level) == before
