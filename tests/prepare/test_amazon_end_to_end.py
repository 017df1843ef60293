"""One command against a server with raw files in the form of 2014, and what may happen to it on the way."""

import ast
import gzip
import hashlib
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from recbole_vlm2rec import cli
from recbole_vlm2rec.benchmark.amazon_shop import server, write_raw
from recbole_vlm2rec.prepare import interactions as filters
from recbole_vlm2rec.prepare.releases import PAPER

ROOT = Path(__file__).parents[2]


def command(url, folder, *more):
    """Arguments of `prepare amazon` that put everything into `folder`."""
    places = [f"--raw={folder / 'raw'}", f"--out={folder / 'out'}", f"--picture_cache={folder / 'cache'}"]
    return ["prepare", "amazon", "--category=Beauty", f"--base_url={url}", "--allow-private", *places, *more]


def recomputed(raw, failing):
    """users, items, interactions by pandas from the raw files; METHOD section 1, written out for one shop at a time."""
    with gzip.open(raw / "meta_Beauty.json.gz", "rt") as file:
        items = pd.DataFrame([ast.literal_eval(line) for line in file])
    good = items[items["title"].notna() & items["imUrl"].notna() & ~items["asin"].isin(failing)]["asin"]
    frame = pd.read_json(raw / "reviews_Beauty_5.json.gz", lines=True, dtype={"asin": str}, convert_dates=False)
    frame = frame.sort_values("unixReviewTime", kind="stable")
    frame = frame[frame["asin"].isin(good)].groupby("reviewerID").tail(10)
    while True:
        sizes = frame.groupby("reviewerID")["asin"].transform("size"), frame.groupby("asin")["asin"].transform("size")
        keep = (sizes[0] >= 5) & (sizes[1] >= 5)
        if keep.all():
            return frame
        frame = frame[keep]


def content(folder):
    """Every file of a folder with its bytes."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    """(URL, folder that is served, what was written) of a small shop in which eight items lack something."""
    folder = tmp_path_factory.mktemp("web")
    with server(folder) as url:
        yield url, folder, write_raw(folder, url, flawed=8, unreviewed=50, users=400, items=70, seed=3)


@pytest.fixture(scope="module")
def undisturbed(shop, tmp_path_factory):
    """The folder in which the command ran once, from beginning to end."""
    folder = tmp_path_factory.mktemp("undisturbed")
    assert cli.main(command(shop[0], folder)) == 0
    return folder


def test_counts_are_those_that_pandas_finds(shop, undisturbed):
    _, web, written = shop
    failing = {token for token, flaw in written.flaws.items() if flaw == "no picture at imUrl"}
    expected = recomputed(web, failing)
    folder = undisturbed / "out" / "Beauty"
    found = pd.read_csv(folder / "Beauty.inter", sep="\t")
    assert len(found) == len(expected) and 500 < len(found) < len(written.rows)
    for user, rows in expected.groupby("reviewerID"):
        mine = found[found["user_id:token"] == user]
        assert mine["item_id:token"].tolist() == rows["asin"].tolist()
        assert mine["timestamp:float"].tolist() == rows["unixReviewTime"].tolist()
    report = json.loads((folder / "prepare.json").read_text())
    assert report["statistics"]["users"] == expected["reviewerID"].nunique()
    assert report["statistics"]["items"] == expected["asin"].nunique() == len(list((folder / "images").iterdir()))
    dropped = {step["step"]: step["dropped"]["items"] for step in report["steps"][1:]}
    assert [dropped[step] for step in ("metadata", "title", "picture named", "picture good")] == [2, 2, 2, 2]
    failed = (folder / "images_failed.tsv").read_text().splitlines()[1:]
    assert {line.split("\t")[0] for line in failed} == failing and all(line.endswith("\t404") for line in failed)


def test_what_the_user_sees(shop, tmp_path, capsys):
    assert cli.main(command(shop[0], tmp_path)) == 0
    output = capsys.readouterr()
    assert "difference" in output.out and "paper (table 3)" in output.out and "pictures that failed: 2" in output.out
    assert "picture/s" in output.err and "Download meta_Beauty.json.gz" in output.err
    assert cli.main(command(shop[0], tmp_path, "--last=8")) == 2
    assert "give --overwrite to replace it" in capsys.readouterr().err


def started(url, folder, *more):
    """The command as a process of its own, which hears Ctrl+C even where the tests themselves were started to ignore it (`&`)."""
    arguments = [sys.executable, "-m", "recbole_vlm2rec", *command(url, folder, *more)]
    before = signal.signal(signal.SIGINT, signal.SIG_DFL)  # a child inherits what is ignored
    try:
        return subprocess.Popen(arguments, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("moment", ["raw/*", "raw/meta*", "cache/*/*.jpg", "cache/0*/*.jpg", "out/.Beauty.partial/images/*"])
def test_killed_and_started_again_it_ends_as_if_nothing_had_happened(moment, shop, undisturbed, tmp_path):
    """Killed as soon as such a file is there: a raw one, the second, the first picture, a later one, one of the data set."""
    process = started(shop[0], tmp_path, "--pause=0.01")
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and process.poll() is None and not any(tmp_path.glob(moment)):
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    # Writing takes some milliseconds only: the last moment may have passed before the signal came.
    assert process.returncode == -9 or moment.startswith("out")
    assert process.returncode == 0 or not (tmp_path / "out" / "Beauty").exists()
    assert cli.main(command(shop[0], tmp_path)) == 0
    assert content(tmp_path / "out" / "Beauty") == content(undisturbed / "out" / "Beauty")
    assert sorted(path.name for path in (tmp_path / "out").iterdir() if not path.name.endswith(".lock")) == ["Beauty"]


def test_interrupted_it_says_so_and_goes_on(shop, undisturbed, tmp_path):
    process = started(shop[0], tmp_path, "--pause=0.5")
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and len(list((tmp_path / "cache").rglob("*.jpg"))) < 3:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 130 and "interrupted" in errors and "Traceback" not in errors
    kept = len(list((tmp_path / "cache").rglob("*.jpg")))
    assert 3 <= kept < 60 and not (tmp_path / "out" / "Beauty").exists()
    assert cli.main(command(shop[0], tmp_path)) == 0
    assert content(tmp_path / "out" / "Beauty") == content(undisturbed / "out" / "Beauty")


def test_two_at_once_give_one_data_set(shop, undisturbed, tmp_path):
    assert cli.main(command(shop[0], tmp_path, "--name=other")) == 0  # the raw files are there
    both = [started(shop[0], tmp_path, "--pause=0.005", "--concurrency=2") for _ in range(2)]
    errors = [process.communicate(timeout=60)[1] for process in both]
    codes = sorted(process.returncode for process in both)
    assert codes == [0, 2] or codes == [0, 0], errors
    assert codes == [0, 0] or any("another preparation" in error for error in errors)
    assert content(tmp_path / "out" / "Beauty") == content(undisturbed / "out" / "Beauty")


def test_models_run_on_it(undisturbed, tmp_path):
    from recbole_vlm2rec import run

    common = {
        "data_path": str(undisturbed / "out"), "checkpoint_dir": str(tmp_path), "eval_negatives": 20, "epochs": 1,
        "show_progress": False, "use_gpu": False, "dataset": "Beauty",
    }  # fmt: skip
    few = {"train_batch_size": 64, "MAX_ITEM_LIST_LENGTH": 2, "max_visual_tokens": 1, "backbone": "tiny"}
    for model, more in (("SASRec", {}), ("VLM2Rec", few)):
        result = run(model, config_dict={**common, **more})
        assert 0 < result["test"]["ndcg@20"] < 1


def sequences_of(real_data):
    return real_data / "amazon-2014-beauty-textid" / "amazon-2014-beauty-textid.inter"


@pytest.mark.slow
def test_the_real_sequences(real_data, tmp_path):
    """22,363 users of the 5-core of Beauty; ten of the 12,101 items, drawn with seed 0, lack something."""
    (tmp_path / "web").mkdir()
    with server(tmp_path / "web") as url:
        written = write_raw(tmp_path / "web", url, sequences_of(real_data), flawed=10, seed=0)
        assert cli.main(command(url, tmp_path)) == 0
    failing = {token for token, flaw in written.flaws.items() if flaw == "no picture at imUrl"}
    expected = recomputed(tmp_path / "web", failing)
    report = json.loads((tmp_path / "out" / "Beauty" / "prepare.json").read_text())
    assert report["steps"][0] == {"step": "read", "users": 22363, "items": 12101, "interactions": 198502}
    counts = report["statistics"]
    assert (counts["users"], counts["items"], counts["interactions"]) == (
        expected["reviewerID"].nunique(), expected["asin"].nunique(), len(expected),
    )  # fmt: skip
    # Which ten were drawn decides on the last tenth of a percent: the next test takes many draws.
    assert all(abs(row["percent"]) <= 0.2 for row in report["paper"].values()), report["paper"]


def test_the_papers_row_of_beauty_when_few_items_are_dropped(real_data):
    """The paper does not say which items lacked title or picture: ten drawn at random, twenty-one times."""
    builder = filters.InteractionsBuilder()
    for line in sequences_of(real_data).read_text().splitlines()[1:]:
        user, item, place = line.split("\t")
        builder.add(user, item, float(place))
    ordered = filters.by_time(builder.build())
    paper = np.array(list(PAPER["Beauty"].values()))
    percents = []
    for seed in range(21):
        good = np.ones(len(ordered.item_tokens), bool)
        good[np.random.default_rng(seed).choice(len(good), 10, replace=False)] = False
        kept = filters.k_core(filters.last(filters.keep_items(ordered, good), 10), 5)
        percents.append(100 * (np.array(list(kept.counts().values())) - paper) / paper)
    assert (np.abs(np.median(percents, axis=0)) <= 0.1).all(), np.median(percents, axis=0)
