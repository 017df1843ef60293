"""Layers of configuration, strict keys, and the errors that name what is nearest."""

import pickle

import pytest
from recbole.utils import ModelType

from recbole_vlm2rec import config as config_module
from recbole_vlm2rec.config import Config, check_dataset, known_keys
from recbole_vlm2rec.quick_start import make_config
from recbole_vlm2rec.registry import get_model


def test_the_protocol_beats_recboles_defaults():
    config = Config("SASRec", "toy")
    assert config["MAX_ITEM_LIST_LENGTH"] == 10 and config["seed"] == 2026
    assert config["eval_args"] == {
        "split": {"LS": "valid_and_test"}, "order": "TO", "group_by": "user", "mode": {"valid": "full", "test": "full"},
    }  # fmt: skip
    assert config["metrics"] == ["Hit", "NDCG"] and config["topk"] == [10, 20] and config["valid_metric"] == "NDCG@20"
    assert config["load_col"] == {"inter": ["user_id", "item_id", "timestamp"]}
    # RecBole's own remain.
    assert config["n_layers"] == 2 and config["repeatable"] is True and config["epochs"] == 300


def test_later_layers_win(tmp_path):
    first, second = tmp_path / "a.yaml", tmp_path / "b.yaml"
    first.write_text("seed: 1\nhidden_size: 32\nlearning_rate: 1e-5\n")
    second.write_text("seed: 2\n")
    config = make_config("SASRec", "toy", None, {"config_files": f"{first} {second}", "data_path": str(_data(tmp_path))})
    assert (config["seed"], config["hidden_size"], config["learning_rate"]) == (2, 32, 1e-5)
    config = make_config("SASRec", "toy", [str(first)], {"seed": 3, "data_path": str(_data(tmp_path))})
    assert (config["seed"], config["hidden_size"]) == (3, 32)


def _data(folder):
    (folder / "toy").mkdir(exist_ok=True)
    (folder / "toy" / "toy.inter").touch()
    return folder


def test_model_yaml_follows_the_base_classes(tmp_path, monkeypatch):
    """Ours: base before derived, RecBole's yaml of the base too; then the data set's, then the backbone's, then the user's."""

    class Ours(get_model("SASRec")):
        __module__ = "recbole_vlm2rec.model.ours"

    props = tmp_path / "props"
    files = {
        "overall.yaml": (config_module.props_folder() / "overall.yaml").read_text() + "\ninner_size: 1\n",
        "model/SASRec.yaml": "inner_size: 2\nhidden_size: 2\n",
        "model/Ours.yaml": "hidden_size: 3\nlearning_rate: 3\nbackbone: big\n",
        "dataset/shop.yaml": "learning_rate: 4\nbackbone: small\nattn_dropout_prob: 0.4\n",
        "backbone/small.yaml": "attn_dropout_prob: 0.5\ntrain_batch_size: 5\n",
    }
    for name, text in files.items():
        (props / name).parent.mkdir(parents=True, exist_ok=True)
        (props / name).write_text(text)
    monkeypatch.setattr(config_module, "props_folder", lambda: props)
    known_keys.cache_clear()
    try:
        config = Config(Ours, "shop", config_dict={"train_batch_size": 6})
        assert (config["n_heads"], config["inner_size"], config["hidden_size"], config["learning_rate"]) == (2, 2, 3, 4)
        assert (config["backbone"], config["attn_dropout_prob"], config["train_batch_size"]) == ("small", 0.5, 6)
        # The user's backbone has no file, and so no settings; a model without a backbone is not touched by one.
        assert Config(Ours, "shop", config_dict={"backbone": "big"})["attn_dropout_prob"] == 0.4
        plain = Config("SASRec", "shop")
        assert (plain["train_batch_size"], plain["learning_rate"], plain["backbone"]) == (2048, 4, None)
    finally:
        known_keys.cache_clear()


def test_cross_entropy_takes_no_negatives_and_bpr_does():
    assert Config("SASRec", "toy")["train_neg_sample_args"]["distribution"] == "none"
    assert Config("SASRec", "toy", config_dict={"loss_type": "BPR"})["train_neg_sample_args"]["distribution"] == "uniform"
    assert Config("BPR", "toy")["train_neg_sample_args"]["distribution"] == "uniform"
    context = Config("FM", "toy")
    assert context["MODEL_TYPE"] == ModelType.CONTEXT and context["train_neg_sample_args"]["distribution"] == "uniform"


@pytest.mark.parametrize(
    ("key", "nearest"),
    [("hiden_size", "hidden_size"), ("learning-rate", "learning_rate"), ("eval_negative", "eval_negatives"), ("TOPK", "topk")],
)
def test_unknown_keys_name_the_nearest(key, nearest, tmp_path):
    with pytest.raises(ValueError, match=f"unknown key '{key}' in the command line or config_dict; did you mean '{nearest}'"):
        Config("SASRec", "toy", config_dict={key: 1})
    file = tmp_path / "mine.yaml"
    file.write_text(f"{key}: 1\n")
    with pytest.raises(ValueError, match=f"unknown key '{key}' in config file .*mine.yaml; did you mean '{nearest}'"):
        Config("SASRec", "toy", config_file_list=[str(file)])


def test_keys_of_other_models_are_known_and_told():
    config = Config("BPR", "toy", config_dict={"n_heads": 4, "embedding_size": 8})
    assert config.unread_keys == ["n_heads"]


@pytest.mark.parametrize(
    ("content", "message"),
    [("- a\n", "must hold `key: value` lines, not a list"), ("a: [1\n", "is not YAML"), (None, "does not exist")],
)
def test_bad_config_files(tmp_path, content, message):
    file = tmp_path / "bad.yaml"
    if content:
        file.write_text(content)
    with pytest.raises((ValueError, FileNotFoundError), match=f"config file .*bad.yaml {message}"):
        Config("SASRec", "toy", config_file_list=[str(file)])


def test_unknown_model_lists_the_known():
    with pytest.raises(ValueError, match=r"(?s)no model 'sasrec'; did you mean 'SASRec'\?.*of RecBole: ADMMSLIM,.*SASRecF"):
        Config("sasrec", "toy")
    with pytest.raises(ValueError, match="no model '../x'"):
        Config("../x", "toy")


def test_unknown_data_set_lists_the_known_and_how_to_get_the_papers(toy_folder):
    with pytest.raises(FileNotFoundError, match=r"(?s)tpy.inter is missing; did you mean 'toy'\?.*Data sets in .*: toy\."):
        check_dataset(toy_folder, "tpy")
    with pytest.raises(FileNotFoundError, match="recbole-vlm2rec prepare amazon --category=Beauty"):
        check_dataset(toy_folder, "Beauty")
    with pytest.raises(FileNotFoundError, match="recbole-vlm2rec prepare minishop"):
        check_dataset(toy_folder, "minishop")
    with pytest.raises(FileNotFoundError, match="no data set '../atomic/toy'"):
        check_dataset(toy_folder, "../atomic/toy")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"eval_negatives": 0}, "eval_negatives is 0"),
        ({"eval_negatives": "all"}, "eval_negatives is 'all'"),
        ({"eval_negatives": True}, "eval_negatives is True"),
        ({"train_examples": "first"}, "train_examples is 'first'"),
        ({"eval_args": {"split": {"RS": [0.8, 0.1, 0.1]}, "order": "TO", "mode": "full"}}, "eval_args.split is"),
        ({"eval_args": {"split": {"LS": "valid_and_test"}, "order": "TO", "mode": "uni100"}}, "set by eval_negatives"),
        ({"metrics": ["Hit", "AUC"]}, "metric 'AUC' is not one of hit, recall"),
        ({"valid_metric": "MRR@10"}, "valid_metric is MRR@10, but metrics and topk give only Hit@10, Hit@20, NDCG@10, NDCG@20"),
        ({"save_dataloaders": True}, "save_dataloaders is refused"),
        ({"benchmark_filename": ["train", "valid", "test"]}, "benchmark_filename brings splits of its own"),
    ],
)
def test_values_that_break_the_protocol(settings, message):
    with pytest.raises(ValueError, match=message):
        Config("SASRec", "toy", config_dict=settings)


def test_strings_are_not_run_and_the_command_line_is_not_read(monkeypatch):
    monkeypatch.setattr("sys.argv", ["pytest", "--seed=99", "--hidden_size=7"])
    config = Config("SASRec", "toy", config_dict={"wandb_project": "1+1"})
    assert config["wandb_project"] == "1+1" and config["seed"] == 2026 and config["hidden_size"] == 64


def test_use_gpu_false_is_the_cpu():
    config = Config("SASRec", "toy", config_dict={"use_gpu": False})
    assert config["gpu_id"] == "" and config["device"].type == "cpu"


def test_a_config_is_plain_and_can_be_pickled():
    config = Config("SASRec", "toy")
    plain = config.as_dict()
    assert plain["device"] in ("cpu", "cuda") and plain["MODEL_TYPE"] == "SEQUENTIAL" and list(plain) == sorted(plain)
    assert pickle.loads(pickle.dumps(config)).as_dict() == plain
