"""The command line: help without heavy imports, mistakes as one line with status 2, bugs with their traceback."""

import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest
from PIL import Image

from recbole_vlm2rec import cli
from recbole_vlm2rec.prepare.settings import Settings

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


@pytest.mark.parametrize("source", ["amazon", "table", "check", "minishop", "benchmark"])
def test_help_of_a_preparation_loads_nothing_heavy(source):
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); from recbole_vlm2rec.cli import main\n"
        "try: main(['prepare', sys.argv[2], '--help'])\n"
        "except SystemExit as end: assert end.code == 0\n"
        "assert not {'torch', 'recbole', 'numpy', 'PIL', 'aiohttp', 'pyarrow'} & set(sys.modules)"
    )
    outcome = subprocess.run([sys.executable, "-c", code, str(ROOT), source], capture_output=True, text=True, check=False)
    assert outcome.returncode == 0, outcome.stderr
    for flag in {"amazon": ("--category", "--base_url"), "table": ("--from_recbole", "--time_column", "--dry_run")}.get(
        source, ()
    ):
        assert flag in outcome.stdout
    if source in ("amazon", "table"):
        for setting in fields(Settings):
            assert f"--{setting.name}" in outcome.stdout


@pytest.fixture
def tables(tmp_path):
    """Five users who each bought the same three items, as CSV files with pictures."""
    for item in range(3):
        Image.new("RGB", (30, 30), (80 * item, 0, 0)).save(tmp_path / f"{item}.png")
    (tmp_path / "orders.csv").write_text(
        "user,item,time\n" + "".join(f"u{user},{item},{item}\n" for user in range(5) for item in range(3))
    )
    (tmp_path / "products.csv").write_text(
        "item,title,image\n" + "".join(f"{item},thing {item},{item}.png\n" for item in range(3))
    )
    places = [f"--out={tmp_path / 'out'}", f"--picture_cache={tmp_path / 'cache'}", "--name=mine", "--min-interactions=3"]
    return ["prepare", "table", f"--interactions={tmp_path / 'orders.csv'}", f"--items={tmp_path / 'products.csv'}", *places]


def test_prepare_table_dry_and_in_earnest(tables, tmp_path, capsys):
    assert cli.main([*tables, "--dry-run"]) == 0
    assert "products.csv: item = item, title = title, picture = image" in capsys.readouterr().out
    assert not (tmp_path / "out").exists()
    assert cli.main(tables) == 0
    assert ["3-core", "5", "3", "15"] in [line.split() for line in capsys.readouterr().out.splitlines()]
    assert (tmp_path / "out" / "mine" / "mine.inter").is_file()


def test_prepare_check_says_by_its_status_whether_a_run_would_stop(tables, tmp_path, capsys):
    assert cli.main(["prepare", "check", "--dataset=minishop", f"--data_path={ROOT / 'atomic_data'}"]) == 0
    assert "900 users" in capsys.readouterr().out
    assert cli.main(tables) == 0
    next((tmp_path / "out" / "mine" / "images").iterdir()).unlink()
    capsys.readouterr()
    assert cli.main(["prepare", "check", "--dataset=mine", f"--data_path={tmp_path / 'out'}"]) == 1
    assert "picture" in capsys.readouterr().out


@pytest.mark.parametrize("flag, words", [
    ("--user_column=who", "there is no column 'who' (--user_column); there are user, item, time"),
    ("--last=-1", "last must be at least 0, got -1"),
    ("--repeats=all", "repeats must be keep, first or last, got 'all'"),
    ("--name=a/b", "'a/b' cannot be the name of a data set"),
    ("--items=none.csv", "none.csv does not exist"),
])  # fmt: skip
def test_mistakes_in_a_preparation_are_one_line(flag, words, tables, tmp_path, capsys):
    assert cli.main([*tables, flag]) == 2
    error = capsys.readouterr().err
    assert words in error and "Traceback" not in error
    assert not (tmp_path / "out" / "mine").exists()
