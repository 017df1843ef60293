"""From a reader's source to a data set in its place, and nothing else in any other case."""

import errno
import json
import os
from dataclasses import replace

import pytest
from filelock import FileLock
from PIL import Image

from recbole_vlm2rec.data.catalog import Catalog
from recbole_vlm2rec.prepare import atomic, build
from recbole_vlm2rec.prepare.build import Item, Source, describe
from recbole_vlm2rec.prepare.interactions import InteractionsBuilder
from recbole_vlm2rec.prepare.settings import Settings


@pytest.fixture
def shop(tmp_path):
    """u0 … u5 buy i0 … i4 in this order; before that u0 buys four items that lack something; `rare` buys i4 alone."""
    for number in range(5):
        Image.new("RGB", (20, 20), (40 * number, 0, 0)).save(tmp_path / f"{number}.png")
    (tmp_path / "broken.png").write_bytes(b"<html>")
    builder = InteractionsBuilder()
    for place, bad in enumerate(["no metadata", "no title", "no picture", "broken"]):
        builder.add("u0", bad, place)
    for user in range(6):
        for item in range(5):
            builder.add(f"u{user}", f"i{item}", 10 + item, 4.0)
    builder.add("rare", "i4", 99)
    items = {f"i{number}": Item(f"thing &amp; {number}", tmp_path / f"{number}.png", ("red\tish",)) for number in range(5)}
    items |= {"no title": Item(' "', tmp_path / "4.png", ("",)), "no picture": Item("a", None, ("",))}
    items["broken"] = Item("b", tmp_path / "broken.png", ("",))
    return Source(builder.build(), items, [{"file": "x", "bytes": 1, "sha256": "0"}], [], ("colour:token",))


@pytest.fixture
def settings(tmp_path):
    return Settings(picture_cache=tmp_path / "cache", last=4, min_interactions=4, max_failed_pictures=0.2)


def make(shop, settings, out, **more):
    return build.build(shop, "shop", out, settings, {"command": "test"}, **more)


def test_every_step_and_the_files(shop, settings, tmp_path):
    report = make(shop, settings, tmp_path / "out", paper={"users": 8, "items": 4, "interactions": 25})
    # Counted by hand: 4 + 6 * 5 + 1 rows; the flawed items go one by one; of each user's five the last four stay, i1 … i4; the
    # 4-core takes `rare` with its one row.
    assert [(s["step"], s["users"], s["items"], s["interactions"]) for s in report["steps"]] == [
        ("read", 7, 9, 35), ("by time", 7, 9, 35), ("metadata", 7, 8, 34), ("title", 7, 7, 33), ("picture named", 7, 6, 32),
        ("picture good", 7, 5, 31), ("last 4", 7, 4, 25), ("4-core", 6, 4, 24),
    ]  # fmt: skip
    assert report["steps"][-1]["dropped"] == {"users": 1, "items": 0, "interactions": 1}
    assert report["statistics"] == {"users": 6, "items": 4, "interactions": 24, "density": 1.0, "mean_length": 4.0}
    assert report["paper"]["users"] == {"count": 8, "percent": -25.0} and report["paper"]["interactions"]["percent"] == -4.0
    folder = tmp_path / "out" / "shop"
    assert sorted(path.name for path in folder.iterdir()) == [
        "images", "images_failed.tsv", "prepare.json", "shop.inter", "shop.item",
    ]  # fmt: skip
    assert json.loads((folder / "prepare.json").read_text()) == report
    lines = (folder / "shop.inter").read_text().splitlines()
    assert lines[:3] == ["user_id:token\titem_id:token\ttimestamp:float\trating:float", "u0\ti1\t11\t4", "u0\ti2\t12\t4"]
    catalog = Catalog.read(folder, "shop")
    catalog.check_items(["i1", "i2", "i3", "i4"])
    catalog.verify_images()
    assert catalog.title("i1") == "thing & 1" and "i0" not in catalog
    assert (folder / "shop.item").read_text().splitlines()[1].split("\t")[3] == "red ish"
    failed = (folder / "images_failed.tsv").read_text().splitlines()
    assert failed[1:] == [f"broken\t{tmp_path / 'broken.png'}\tHTML or XML, not a picture"]
    assert not [path for path in (tmp_path / "out").iterdir() if path.name.endswith((".partial", ".old"))]


def test_the_report_as_a_table(shop, settings, tmp_path):
    text = describe(make(shop, settings, tmp_path / "out", paper={"users": 8, "items": 4, "interactions": 25}))
    rows = [line.split() for line in text.splitlines()]
    assert ["4-core", "6", "4", "24"] in rows and ["paper", "(table", "3)", "8", "4", "25"] in rows
    assert ["difference", "-25.00%", "+0.00%", "-4.00%"] in rows
    assert "pictures that failed: 1 (images_failed.tsv): HTML or XML, not a picture (1)" in text


def test_a_dry_run_fetches_and_writes_nothing(shop, settings, tmp_path):
    before = sorted(tmp_path.rglob("*"))
    report = make(shop, settings, tmp_path / "out", dry_run=True)
    assert sorted(tmp_path.rglob("*")) == before
    # Pictures are not opened: `broken` counts as good, and is u0's oldest item but beyond the last four.
    assert report["steps"][-1]["interactions"] == 24 and report["steps"][5]["items"] == 6


def test_a_picture_that_failed_is_tried_again(shop, settings, tmp_path):
    assert make(shop, replace(settings, last=0), tmp_path)["images_failed"] == {"HTML or XML, not a picture": 1}
    first = (tmp_path / "shop" / "prepare.json").read_bytes()
    assert "already" not in make(shop, replace(settings, last=0), tmp_path)
    assert (tmp_path / "shop" / "prepare.json").read_bytes() == first
    Image.new("RGB", (20, 20), "teal").save(tmp_path / "broken.png")
    assert make(shop, replace(settings, last=0), tmp_path)["images_failed"] == {}


def test_the_same_again_changes_nothing(shop, settings, tmp_path):
    Image.new("RGB", (20, 20), "teal").save(tmp_path / "broken.png")
    make(shop, settings, tmp_path)
    seen = {path: path.stat().st_mtime_ns for path in (tmp_path / "shop").rglob("*")}
    assert make(shop, settings, tmp_path)["already"]
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "shop").rglob("*")} == seen


def test_something_else_is_replaced_only_when_asked(shop, settings, tmp_path):
    make(shop, settings, tmp_path)
    other = replace(settings, last=3, min_interactions=3)
    with pytest.raises(ValueError, match="was prepared with other settings; give --overwrite"):
        make(shop, other, tmp_path)
    assert make(shop, replace(other, overwrite=True), tmp_path)["statistics"]["interactions"] == 18
    assert len((tmp_path / "shop" / "shop.inter").read_text().splitlines()) == 19


def test_a_folder_of_another_origin_is_never_replaced(shop, settings, tmp_path):
    (tmp_path / "shop").mkdir()
    (tmp_path / "shop" / "mine.txt").write_text("dear")
    for overwrite in (False, True):
        with pytest.raises(ValueError, match="not prepared by this command .*left alone"):
            make(shop, replace(settings, overwrite=overwrite), tmp_path)
    assert (tmp_path / "shop" / "mine.txt").read_text() == "dear"


def test_two_at_once_are_refused(shop, settings, tmp_path):
    with FileLock(tmp_path / ".shop.lock"), pytest.raises(ValueError, match="another preparation of .*shop is at work"):
        make(shop, settings, tmp_path)


@pytest.mark.parametrize("name", ["", "..", "a/b", "a\\b"])
def test_names_that_leave_the_folder(shop, settings, tmp_path, name):
    with pytest.raises(ValueError, match="cannot be the name of a data set"):
        build.build(shop, name, tmp_path, settings, {})


def test_nothing_left_says_which_step_took_it(shop, settings, tmp_path):
    with pytest.raises(ValueError, match=r"no interaction is left after '9-core'; '9-core' took most: 25 of 35"):
        make(shop, replace(settings, min_interactions=9), tmp_path / "out")
    assert not (tmp_path / "out" / "shop").exists() and not (tmp_path / "out" / ".shop.partial").exists()


def test_a_full_disk_leaves_no_half_data_set(shop, settings, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(atomic, "_write", full)
    with pytest.raises(OSError, match="shop cannot be made: No space left on device"):
        make(shop, settings, tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir() if path.name != ".shop.lock"] == []
    assert len(list((tmp_path / "cache").rglob("*.jpg"))) == 5


def test_a_place_that_cannot_be_written(shop, settings, tmp_path):
    (tmp_path / "out").write_text("a file")
    with pytest.raises(OSError, match="cannot be made"):
        make(shop, settings, tmp_path / "out")
