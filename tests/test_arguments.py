"""The command line: types, and clear errors for what is not --key=value."""

import pytest

from recbole_vlm2rec.arguments import parse_overrides, split_config_files


def test_values_are_yaml():
    argv = ["--seed=3", "--learning_rate=1e-5", "--topk=[5, 10]", "--use_gpu=False", "--eval_args={order: TO}"]
    assert parse_overrides(argv) == {
        "seed": 3, "learning_rate": 1e-5, "topk": [5, 10], "use_gpu": False, "eval_args": {"order": "TO"},
    }  # fmt: skip


@pytest.mark.parametrize(("text", "value"), [("1e-5", 1e-5), (".5e3", 500.0), ("2E+1", 20.0), ("12", 12), ("e5", "e5")])
def test_numbers_with_exponents(text, value):
    parsed = parse_overrides([f"--x={text}"])["x"]
    assert parsed == value and type(parsed) is type(value)


def test_null_and_none_and_an_equals_sign_in_the_value():
    assert parse_overrides(["--clip_grad_norm=None", "--transform=null", "--note=a=b"]) == {
        "clip_grad_norm": None, "transform": None, "note": "a=b",
    }  # fmt: skip


def test_names_and_paths_stay_text():
    assert parse_overrides(["--dataset=010", "--gpu_id=", "--result_file=~", "--model=null"]) == {
        "dataset": "010", "gpu_id": "", "result_file": "~", "model": "null",
    }  # fmt: skip


def test_code_is_not_run():
    assert parse_overrides(["--x=__import__('os').getcwd()"]) == {"x": "__import__('os').getcwd()"}


def test_python_tags_are_refused():
    with pytest.raises(ValueError, match="--x=!!python/object/apply:os.getcwd .*: the value is not YAML"):
        parse_overrides(["--x=!!python/object/apply:os.getcwd []"])


@pytest.mark.parametrize(
    ("argv", "advice"),
    [
        (["--seed", "3"], r"'--seed' is not of the form --key=value; write --seed=value"),
        (["seed=3"], r"'seed=3' is not of the form --key=value; write --seed=3"),
        (["-seed=3"], r"write --seed=3"),
        (["train"], r"'train' is not of the form"),
        (["--=3"], r"is not the name of a key"),
        (["--seed=3", "--seed=3"], r"--seed is given twice"),
        (["--topk=[5, 10"], r"--topk=\[5, 10: the value is not YAML"),
    ],
)
def test_what_is_not_key_value_is_an_error(argv, advice):
    with pytest.raises(ValueError, match=advice):
        parse_overrides(argv)


def test_config_files_as_recbole_takes_them():
    assert split_config_files(parse_overrides(["--config_files=a.yaml b.yaml"])["config_files"]) == ["a.yaml", "b.yaml"]
    assert split_config_files(None) == []
