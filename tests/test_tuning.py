"""Tuning through RecBole's HyperTuning: what is tried, what is written, and that a second call runs nothing."""

import json

import pytest
import yaml

from recbole_vlm2rec import cli, tuning
from recbole_vlm2rec.tuning import TuningError, read_space, tune

SPACE = "# a comment with several words\nlearning_rate choice [0.001, 0.01]\nembedding_size choice [64, 16, 8]\n"


@pytest.fixture
def settings(toy, tmp_path):
    (tmp_path / "BPR.hyper").write_text(SPACE)
    mine = {"model": "BPR", "dataset": "toy", "checkpoint_dir": str(tmp_path / "saved"), "tune": str(tmp_path / "BPR.hyper")}
    return {**toy, **mine}


def tried(found):
    return sorted((trial["params"]["learning_rate"], trial["params"]["embedding_size"]) for trial in found.trials)


def test_exhaustive_tries_every_combination_once_and_keeps_the_best_in_validation(settings, tmp_path):
    found = tune(settings)
    assert tried(found) == [(rate, size) for rate in (0.001, 0.01) for size in (8, 16, 64)]
    best = max(found.trials, key=lambda trial: trial["valid"]["ndcg@20"])
    assert found.best == best["params"]
    assert yaml.safe_load((found.folder / "best.yaml").read_text()) == {"BPR": found.best}
    written = json.loads((found.folder / "tuning.json").read_text())
    assert written["trials"] == found.trials and written["best"] == found.best
    table = (found.folder / "tuning.md").read_text().splitlines()
    assert len(table) == 2 + 6 and [("**" in line) for line in table[2:]] == [
        each["params"] == found.best for each in found.trials
    ]
    # RecBole's own file, without a test metric to be tempted by.
    text = (found.folder / "hyper.result").read_text()
    assert text.count("Valid result:") == 6 and text.count("hit@10") == 6
    for name in ("hyper.html", "sensitivity.html"):
        page = (found.folder / name).read_text()
        assert "Plotly.newPlot" in page and 'src="http' not in page


def test_the_same_command_runs_nothing_again(settings, monkeypatch):
    first = tune(settings)
    monkeypatch.setattr("recbole_vlm2rec.sweep.run", None)  # would raise TypeError when called
    second = tune(settings)
    assert second.best == first.best and tried(second) == tried(first)


def test_an_interrupted_search_goes_on(settings, monkeypatch):
    from recbole_vlm2rec import sweep

    runs = []

    def interrupted(*arguments):
        if len(runs) == 2:
            raise KeyboardInterrupt
        runs.append(1)
        return run(*arguments)

    run = sweep.run
    monkeypatch.setattr(sweep, "run", interrupted)
    with pytest.raises(KeyboardInterrupt):
        tune(settings)
    counted = []
    monkeypatch.setattr(sweep, "run", lambda *arguments: counted.append(1) or run(*arguments))
    assert len(tune(settings).trials) == 6 and len(counted) == 4


def test_each_key_alone_starts_from_the_defaults(settings):
    found = tune({**settings, "tune_algo": "each"})
    assert [tuple(trial["params"].values()) for trial in found.trials] == [(64, 0.001), (64, 0.01), (16, 0.001), (8, 0.001)]


def test_random_and_bayes_take_ranges_and_stop_after_max_evals(settings, tmp_path):
    (tmp_path / "range.hyper").write_text("learning_rate loguniform -7,-4\n")
    for algorithm in ("random", "bayes"):
        found = tune({**settings, "tune": str(tmp_path / "range.hyper"), "tune_algo": algorithm, "max_evals": 2})
        rates = [trial["params"]["learning_rate"] for trial in found.trials]
        assert len(set(rates)) == 2 and all(2.718**-7.01 < rate < 2.719**-3.99 for rate in rates)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("learning_rat choice [1]", r"line 2.*did you mean 'learning_rate'"),
        ("learning_rate list [1]", "line 2: 'list' is no type"),
        ("learning_rate choice 0.1", "choice takes a list"),
        ("learning_rate uniform 1,2,3", "uniform and loguniform low,high"),
        ("learning_rate choice [1, ", "line 2: .* is not a list"),
    ],
)
def test_a_bad_line_is_named(tmp_path, line, message):
    file = tmp_path / "bad.hyper"
    file.write_text(f"# comment\n{line}\n")
    with pytest.raises(ValueError, match=message):
        read_space(file)


def test_what_cannot_be_tuned_is_refused_before_anything_runs(settings, tmp_path, monkeypatch):
    monkeypatch.setattr("recbole_vlm2rec.sweep.run", None)
    with pytest.raises(TuningError, match="choose one of exhaustive, random, bayes, each"):
        tune({**settings, "tune_algo": "grid"})
    with pytest.raises(TuningError, match=r"no such file.*props/tuning/VLM2Rec\.hyper"):
        tune({**settings, "tune": "nowhere"})
    (tmp_path / "other.hyper").write_text("tau_wpcl choice [0.1]\n")
    with pytest.raises(TuningError, match="BPR does not read tau_wpcl"):
        tune({**settings, "tune": str(tmp_path / "other.hyper")})
    (tmp_path / "away.hyper").write_text("learning_rate choice [0.5]\n")
    with pytest.raises(TuningError, match="starts from the defaults, but learning_rate is 0.001"):
        tune({**settings, "tune": str(tmp_path / "away.hyper"), "tune_algo": "each"})
    (tmp_path / "range.hyper").write_text("learning_rate uniform 0,1\n")
    with pytest.raises(TuningError, match="exhaustive needs lists of values"):
        tune({**settings, "tune": str(tmp_path / "range.hyper")})
    monkeypatch.setattr(tuning.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(TuningError, match=r"recbole-vlm2rec\[tune\]"):
        tune(settings)


@pytest.mark.parametrize("model", ["VLM2Rec", "VLMSFT", "SASRec", "GRU4Rec", "VLM2RecSASRec", "VLM2RecGRU4Rec"])
def test_shipped_spaces_name_keys_that_their_model_reads(model):
    from recbole_vlm2rec.config import Config

    file = tuning._space_file("props/tuning", model)
    keys = Config(model, "minishop").final_config_dict
    assert set(read_space(file)) <= set(keys)


def test_the_papers_grids_stand_in_the_shipped_space():
    space = read_space(tuning._space_file("props/tuning/VLM2Rec.hyper", "VLM2Rec"))
    assert space == {
        "tau_wpcl": ("choice", [0.05, 0.1, 0.5, 1.0]),
        "tau_crtr": ("choice", [0.001, 0.01, 0.1, 1.0]),
        "crtr_weight": ("choice", [0.1, 0.5, 1.0]),
    }


def test_several_models_are_tuned_from_one_command_line(settings, tmp_path, capsys):
    (tmp_path / "Random.hyper").write_text("epochs choice [1]\n")
    arguments = {**settings, "model": "BPR,Random", "tune": str(tmp_path)}
    assert cli.main(["run", *(f"--{key}={value}" for key, value in arguments.items())]) == 0
    said = capsys.readouterr().out
    assert "BPR on toy: 6 runs" in said and "Random on toy: 1 runs" in said


def test_a_trial_that_fails_is_the_worst_and_the_others_are_kept(settings, tmp_path, capsys):
    (tmp_path / "BPR.hyper").write_text("embedding_size choice [8, -1, 16]\n")
    found = tune(settings)
    assert sorted(trial["params"]["embedding_size"] for trial in found.trials) == [8, 16]
    assert found.best["embedding_size"] in (8, 16) and "failed: " in capsys.readouterr().out
    (tmp_path / "BPR.hyper").write_text("embedding_size choice [-1]\n")
    with pytest.raises(TuningError, match="all 1 trials failed"):
        tune(settings)


def test_whole_numbers_stay_whole(settings, tmp_path):
    (tmp_path / "size.hyper").write_text("embedding_size quniform 8,16,8\n")
    found = tune({**settings, "tune": str(tmp_path / "size.hyper"), "tune_algo": "random", "max_evals": 1})
    (trial,) = found.trials
    assert trial["params"]["embedding_size"] in (8, 16) and isinstance(trial["params"]["embedding_size"], int)
    assert found.folder.name == "BPR-toy-seed2026-size-random"
