"""The command line: help without heavy imports, mistakes as one line with status 2, bugs with their traceback."""

import subprocess
import sys
from pathlib import Path

import pytest

from recbole_vlm2rec import cli

ROOT = Path(__file__).parent.parent


def test_help_names_our_models_and_loads_nothing_heavy():
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); from recbole_vlm2rec.cli import main\n"
        "assert main(['run', '--help']) == 0; assert not {'torch', 'recbole', 'numpy'} & set(sys.modules)"
    )
    outcome = subprocess.run([sys.executable, "-c", code, str(ROOT)], capture_output=True, text=True, check=False)
    assert outcome.returncode == 0, outcome.stderr
    for name in ("VLM2Rec,", "VLM2RecSASRec", "VLM2RecGRU4Rec", "--backbone", "--item_embeddings"):
        assert name in outcome.stdout


def test_the_script_at_the_root_is_the_same_command(tmp_path):
    outcome = subprocess.run(
        [sys.executable, str(ROOT / "run_recbole_vlm2rec.py"), "--help"],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
    )
    assert outcome.returncode == 0 and "usage: run_recbole_vlm2rec.py" in outcome.stdout


@pytest.mark.parametrize("arguments, words", [
    (["--model=SASRek"], "did you mean 'SASRec'"),
    (["--learning_rat=0.1"], "did you mean 'learning_rate'"),
    (["--dataset=Beauty"], "recbole-vlm2rec prepare amazon --category=Beauty"),
    (["--epochs", "3"], "not of the form --key=value"),
    (["--model=VLM2RecSASRec", "--dataset=minishop"], "--item_embeddings=FOLDER"),
])  # fmt: skip
def test_mistakes_are_one_line_and_leave_nothing(arguments, words, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    here = (
        []
        if arguments[0].startswith("--epochs")
        else [f"--data_path={ROOT / 'atomic_data'}", f"--checkpoint_dir={tmp_path / 'saved'}"]
    )
    assert cli.main(["run", *arguments, *here]) == 2
    error = capsys.readouterr().err
    assert words in error and "Traceback" not in error
    assert not list(tmp_path.glob("saved/*/result.json")) and not list(tmp_path.glob("saved/VLM2Rec*"))


def test_a_bug_keeps_its_traceback(monkeypatch):
    from recbole_vlm2rec import quick_start

    monkeypatch.setattr(quick_start, "run", lambda config_dict: [].index(config_dict))  # a ValueError nobody meant for users
    with pytest.raises(ValueError, match="is not in list"):
        cli.main(["run"])


def test_an_interrupt_is_not_an_error_message(monkeypatch, capsys):
    from recbole_vlm2rec import quick_start

    def interrupted(config_dict):
        raise KeyboardInterrupt

    monkeypatch.setattr(quick_start, "run", interrupted)
    assert cli.main(["run"]) == 130
    assert "interrupted" in capsys.readouterr().err


def test_prepare_minishop_prints_shares_and_readers(tmp_path, capsys):
    assert cli.main(["prepare", "minishop", f"--out={tmp_path}", "--name=other", "--seed=4", "--preset=text-heavy"]) == 0
    printed = capsys.readouterr().out
    assert (tmp_path / "other" / "other.inter").is_file()
    for words in ("900 users, 240 items", "title", "image", "oracle", "map"):
        assert words in printed
    assert cli.main(["prepare", "minishop", f"--out={tmp_path}", "--name=other"]) == 2
    assert "not empty" in capsys.readouterr().err
