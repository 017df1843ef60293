"""`prepare check`: all that a run would trip over, with counts, places and remedies; what it passes, runs."""

import io
import re
import shutil
import traceback
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

import recbole_vlm2rec
from recbole_vlm2rec import cli
from recbole_vlm2rec.data.dataset import create_dataset
from recbole_vlm2rec.prepare import check as module
from recbole_vlm2rec.prepare.check import SCOPE, Finding, check, describe
from recbole_vlm2rec.quick_start import make_config
from recbole_vlm2rec.vlm.backbone import Backbone, load_pretrained

PACKAGE = Path(recbole_vlm2rec.__file__).parent
USERS, ITEMS, EACH = 12, 120, 10


def png(colour, size=(8, 8), mode="RGB") -> bytes:
    out = io.BytesIO()
    Image.new(mode, size, colour).save(out, "PNG")
    return out.getvalue()


def jpeg(seed: int, size=(64, 48)) -> bytes:
    out = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(out, "JPEG")
    return out.getvalue()


@pytest.fixture(scope="session")
def healthy(tmp_path_factory) -> Path:
    """A data set folder `shop` in which nothing is to be found: 12 users with 10 items each, 120 items bought once each."""
    folder = tmp_path_factory.mktemp("healthy") / "shop"
    (folder / "images").mkdir(parents=True)
    rows, items = [], []
    for item in range(ITEMS):
        (folder / "images" / f"{item}.png").write_bytes(png((item, 255 - item, 7)))
        items.append(f"i{item}\tthing number {item}\timages/{item}.png")
        rows.append(f"u{item % USERS}\ti{item}\t{1_500_000_000 + item}")
    (folder / "shop.inter").write_text("\n".join(["user_id:token\titem_id:token\ttimestamp:float", *rows]) + "\n")
    (folder / "shop.item").write_text("\n".join(["item_id:token\ttitle:token_seq\timage_path:token", *items]) + "\n")
    return folder


@pytest.fixture
def shop(healthy, tmp_path) -> Path:
    """A copy of `healthy` to damage."""
    return Path(shutil.copytree(healthy, tmp_path / "data" / "shop"))


def edit(file: Path, line: int, text: str | bytes | None, count: int = 1) -> None:
    """Replaces `count` lines from the one with this number on; None removes them."""
    lines = file.read_bytes().split(b"\n")
    lines[line - 1 : line - 1 + count] = [] if text is None else [text.encode() if isinstance(text, str) else text]
    file.write_bytes(b"\n".join(lines))


def inter(line, text, count=1):
    return lambda folder: edit(folder / "shop.inter", line, text, count)


def item(line, text, count=1):
    return lambda folder: edit(folder / "shop.item", line, text, count)


def picture(data: bytes):
    """The picture of the item on line 5."""
    return lambda folder: (folder / "images" / "3.png").write_bytes(data)


def fewer_items(folder: Path) -> None:
    """Every user has bought 10 of 20 items: 10 are left to rank among."""
    lines = (folder / "shop.inter").read_text().splitlines()
    rows = [line.split("\t") for line in lines[1:]]
    rows = [f"{user}\ti{(place // 12 * 2 + place % 2)}\t{time}" for place, (user, _, time) in enumerate(rows)]
    (folder / "shop.inter").write_text("\n".join([lines[0], *rows]) + "\n")


def short_histories(folder: Path) -> None:
    """40 users with three interactions each."""
    lines = (folder / "shop.inter").read_text().splitlines()
    rows = [f"u{place // 3}\t" + line.split("\t", 1)[1] for place, line in enumerate(lines[1:])]
    (folder / "shop.inter").write_text("\n".join([lines[0], *rows]) + "\n")


def damaged_candidates(folder: Path) -> None:
    create(folder)
    (file,) = (folder / "candidates").glob("*.npz")
    file.write_bytes(file.read_bytes()[:-100])


def candidates_of_other_data(folder: Path) -> None:
    create(folder)
    edit(folder / "shop.inter", 2, None)


def other_item_columns(folder: Path) -> None:
    lines = [line.split("\t") for line in (folder / "shop.item").read_text().splitlines()]
    lines = [
        "\ufeff" + "\t".join([picture, "price:float" * (not n) or "1", item, title])
        for n, (item, title, picture) in enumerate(lines)
    ]
    (folder / "shop.item").write_bytes("\r\n".join([lines[0], *(line[1:] for line in lines[1:])]).encode())


ABSENT = "items of shop.inter that are not in shop.item"

# (damage, what is found): each stops a run.
FATAL = {
    "no inter": (lambda folder: (folder / "shop.inter").unlink(), "shop.inter: missing file"),
    "no item": (lambda folder: (folder / "shop.item").unlink(), "shop.item: missing file"),
    "no picture": (lambda folder: (folder / "images" / "3.png").unlink(), "shop.item: missing picture"),
    "no pictures": (lambda folder: shutil.rmtree(folder / "images"), "shop.item: missing picture"),
    "inter of other columns": (inter(1, "user_id:token\titem_id:token\trating:float"), "shop.inter: missing column"),
    "inter without types": (inter(1, "user_id\titem_id\ttimestamp"), "shop.inter: column without type"),
    "times as tokens": (inter(1, "user_id:token\titem_id:token\ttimestamp:token"), "shop.inter: wrong type of column"),
    "byte-order mark": (inter(1, "\ufeffuser_id:token\titem_id:token\ttimestamp:float"), "shop.inter: byte-order mark"),
    "no interactions": (inter(2, None, ITEMS), "shop.inter: no interactions"),
    "a date": (inter(9, "u7\ti7\t2014-07-23"), "shop.inter: timestamp is not a number"),
    "no time": (inter(9, "u7\ti7\t"), "shop.inter: no timestamp"),
    "user NA": (inter(9, "NA\ti7\t1500000007"), "shop.inter: no user_id"),
    "item null": (inter(9, "u7\tnull\t1500000007"), "shop.inter: no item_id"),
    "quote": (inter(9, 'u7\t"i7\t1500000007'), "shop.inter: double quote at the start of a cell"),
    "quoted": (inter(9, 'u7\t"i7"\t1500000007'), "shop.inter: double quote at the start of a cell"),
    "ragged, more": (inter(2, "u0\ti0\t1500000000\t5"), "shop.inter: wrong number of cells"),
    "ragged, fewer": (inter(9, "u7\ti7"), "shop.inter: wrong number of cells"),
    "carriage return": (inter(9, "u7\ti\r7\t1500000007"), "shop.inter: carriage return or null character"),
    "inter of another encoding": (inter(9, b"u7\ti\xe9\t1500000007"), "shop.inter: not UTF-8"),
    "item that is not there": (inter(9, "u7\tx\t1500000007"), ABSENT),
    "items without lines": (item(2, None, 100), ABSENT),
    "no items at all": (item(2, None, ITEMS), ABSENT),
    "no image_path": (item(1, "item_id:token\ttitle:token_seq\tpicture:token"), "shop.item: missing column"),
    "empty item file": (lambda folder: (folder / "shop.item").write_bytes(b""), "shop.item: missing column"),
    "empty title": (item(5, "i3\t \timages/3.png"), "shop.item: empty title"),
    "item twice": (item(5, "i3\tone\timages/3.png\ni3\tother\timages/3.png"), "shop.item: item twice"),
    "item without token": (item(5, "\tthing\timages/3.png"), "shop.item: empty item_id", ABSENT),
    "ragged item": (item(5, "i3\tthing images/3.png"), "shop.item: wrong number of cells", ABSENT),
    "item of another encoding": (item(5, b"i3\tcaf\xe9\timages/3.png"), "shop.item: not UTF-8", ABSENT),
    "picture elsewhere": (item(5, "i3\tthing\t../../secret.png"), "shop.item: image_path outside the folder"),
    "picture of zero bytes": (picture(b""), "shop.item: unreadable picture"),
    "picture that is HTML": (picture(b"<html>404</html>"), "shop.item: unreadable picture"),
    "truncated JPEG": (picture(jpeg(1)[:-900]), "shop.item: unreadable picture"),
    "truncated PNG": (picture(png("red", (64, 64))[:-20]), "shop.item: unreadable picture"),
    "picture too narrow": (picture(png("red", (900, 4))), "shop.item: unreadable picture"),
    "decompression bomb": (picture(png(0, (20_000, 20_000), "1")), "shop.item: unreadable picture"),
    "nobody to evaluate": (short_histories, "users with fewer than 4 interactions"),
    "too few items": (fewer_items, "users with fewer than 100 items they never touched"),
    "damaged candidates": (damaged_candidates, "stored candidates"),
}

# (damage, what is noted) of data sets that run all the same.
HARMLESS = {
    "nothing": (lambda folder: None, None),
    "tied times": (inter(14, "u0\ti12\t1500000000"), "users with interactions at one moment"),
    "repeated item": (inter(14, "u0\ti0\t1500000012"), "interactions of a user with an item once more"),
    "short user": (inter(14, "new\ti12\t1500000012"), "users with fewer than 4 interactions"),
    "item nobody bought": (inter(14, None), "items without interactions"),
    "same titles": (item(5, "i3\tthing number 2\timages/3.png"), "items that share a title"),
    "same picture file": (item(5, "i3\tthing number 3\timages/2.png"), "items that share a picture, byte for byte"),
    "placeholder": (picture(png((2, 253, 7))), "items that share a picture, byte for byte"),
    "HTML entity": (item(5, "i3\tsoap &amp; oil\timages/3.png"), "titles that are not clean"),
    "quoted title": (item(5, 'i3\t"soap\timages/3.png'), "titles that are not clean"),
    "title NA": (item(5, "i3\tNA\timages/3.png"), None),
    "blank line": (inter(9, "u7\ti7\t1500000007\n"), None),
    "odd tokens": (inter(9, "../../etc/passwd 7\ti7\t1.5e9"), "users with fewer than 4 interactions"),
    "carriage returns": (
        lambda folder: (folder / "shop.inter").write_bytes((folder / "shop.inter").read_bytes().replace(b"\n", b"\r\n")),
        None,
    ),
    "other item columns": (other_item_columns, None),
    "one pixel": (picture(png("red", (1, 1))), None),
    "16-bit": (picture(png(40_000, (30, 30), "I;16")), None),
    "palette": (picture(png(3, (30, 30), "P")), None),
    "JPEG named png": (picture(jpeg(2)), None),
    "wide picture": (picture(png("red", (800, 4))), None),
    "candidates of other data": (candidates_of_other_data, "items without interactions"),
}


def create(folder: Path):
    settings = {"data_path": str(folder.parent), "checkpoint_dir": str(folder.parent / "saved"), "use_gpu": False}
    return create_dataset(make_config("SASRec", folder.name, None, settings))


@pytest.fixture(scope="module")
def backbone():
    return Backbone(*load_pretrained("tiny", torch.float32), max_visual_tokens=4)


def run_stops(folder: Path, backbone) -> str | None:
    """What stops a run before it trains: the data set, its catalogue, and the pictures as the backbone reads them."""
    try:
        dataset = create(folder)
        assert [len(part) > 0 for part in dataset.build()] == [True] * 3
        catalog = dataset.catalog
        backbone.picture_inputs([catalog.image(token) for token in dataset.histories.item_tokens[1:].tolist()])
    except (ValueError, OSError, RuntimeError) as error:
        raised_in = Path(traceback.extract_tb(error.__traceback__)[-1].filename)
        assert PACKAGE in raised_in.parents, "an error of ours, not a traceback from a library"
        return str(error)
    return None


def kinds(findings: list[Finding], fatal: bool) -> list[str]:
    return [finding.kind for finding in findings if finding.kind != SCOPE and finding.fatal == fatal]


@pytest.mark.parametrize("defect", FATAL)
def test_what_check_refuses_stops_a_run(shop, backbone, defect):
    damage, *expected = FATAL[defect]
    damage(shop)
    before = sorted(shop.rglob("*"))
    findings = check(shop, "shop")
    assert kinds(findings, fatal=True) == expected
    assert sorted(shop.rglob("*")) == before, "check writes nothing"
    assert run_stops(shop, backbone)
    for finding in findings[1 : 1 + len(expected)]:
        assert finding.count > 0 and finding.message and 1 <= len(finding.examples) <= 3
        assert all(str(shop) in example for example in finding.examples)


@pytest.mark.parametrize("defect", HARMLESS)
def test_what_check_passes_runs(shop, backbone, defect):
    damage, kind = HARMLESS[defect]
    damage(shop)
    findings = check(shop, "shop")
    assert kinds(findings, fatal=True) == []
    noted = kinds(findings, fatal=False)
    assert kind in noted if kind else noted == []
    assert run_stops(shop, backbone) is None


def test_the_number_of_negatives_is_that_of_a_run():
    props = yaml.safe_load((PACKAGE.parent / "props" / "overall.yaml").read_text(encoding="utf-8"))
    assert module.NEGATIVES == props["eval_negatives"]


def test_a_healthy_data_set(shop):
    scope = Finding(
        SCOPE,
        f"{shop}: 12 users, 120 items and 120 interactions in shop.inter, 120 items in shop.item, 120 pictures",
        0,
        (),
        False,
    )
    assert check(shop, "shop") == [scope]
    assert describe([scope]) == f"looked at {scope.message}\nno errors: a run can use this data set"


def test_every_line_is_looked_at(shop):
    """All kinds at once, each with its count and its first three places."""
    for line in (3, 4, 5, 6, 7):
        edit(shop / "shop.item", line, f"i{line - 2}\t\timages/{line - 2}.png")
    edit(shop / "shop.item", 8, "i6\tthing number 6\timages/none.png")
    edit(shop / "shop.inter", 20, "u6\ti18\tlast week")
    edit(shop / "shop.inter", 30, "u4\tx\t1500000028")
    edit(shop / "shop.inter", 42, "u4\tx\t1500000040")
    (shop / "images" / "7.png").write_bytes(b"none")
    findings = check(shop, "shop")
    assert [(finding.kind, finding.count) for finding in findings if finding.fatal] == [
        ("shop.inter: timestamp is not a number", 1),
        ("shop.item: empty title", 5),
        ("shop.item: missing picture", 1),
        ("shop.item: unreadable picture", 1),
        ("items of shop.inter that are not in shop.item", 1),
    ]
    by_kind = {finding.kind: finding for finding in findings}
    item_file, inter_file = shop / "shop.item", shop / "shop.inter"
    assert by_kind["shop.item: empty title"].examples == tuple(
        f"{item_file}, line {line}, item 'i{line - 2}': empty title" for line in (3, 4, 5)
    )
    assert by_kind["items of shop.inter that are not in shop.item"].examples == (f"{inter_file}, line 30: item 'x'",)
    text = describe(findings)
    assert "error: shop.item: empty title: 5\n  give it one or drop the item and its interactions\n  - " in text
    assert "line 5, item 'i3': empty title …\n" in text
    assert text.endswith("5 kinds of error: a run would stop")


def test_the_reason_of_an_unreadable_picture(shop):
    file, target = shop / "shop.item", shop / "images" / "3.png"
    for data, reason in (
        (b"<html>", "empty, or not a picture of a known format"),
        (png("red", (900, 4)), "one side is more than 200 times the other"),
        (jpeg(1)[:-900], r"image file is truncated \(\d+ bytes not processed\)"),
    ):
        target.write_bytes(data)
        (example,) = check(shop, "shop")[1].examples
        assert re.fullmatch(rf"{file}, line 5, item 'i3': picture {target} cannot be read \({reason}\)", example)


def test_notes_by_hand(shop):
    rows = ["a\ti0\t5", "a\ti1\t7", "a\ti2\t5", "b\ti3\t1", "a\ti1\t9", "a\ti2\t9", "b\ti4\t2", "a\ti1\t9"]
    header = (shop / "shop.inter").read_text().splitlines()[0]
    bulk = [f"z{place % 20}\ti{place}\t{100 + place}" for place in range(ITEMS)]
    (shop / "shop.inter").write_text("\n".join([header, *rows, *bulk]) + "\n")
    by_kind = {finding.kind: finding for finding in check(shop, "shop")}
    file = shop / "shop.inter"
    tied = by_kind["users with interactions at one moment"]
    assert tied.count == 1  # user a alone
    assert tied.examples == (
        f"{file}, line 4: user 'a', timestamp 5 as on line 2",
        f"{file}, line 7: user 'a', timestamp 9 as on line 6",
        f"{file}, line 9: user 'a', timestamp 9 as on line 7",
    )
    repeated = by_kind["interactions of a user with an item once more"]
    assert repeated.count == 3
    assert repeated.examples == (
        f"{file}, line 6: user 'a', item 'i1' as on line 3",
        f"{file}, line 7: user 'a', item 'i2' as on line 4",
        f"{file}, line 9: user 'a', item 'i1' as on line 6",
    )
    short = by_kind["users with fewer than 4 interactions"]
    assert (short.count, short.examples, short.fatal) == (1, (f"{file}, line 5: user 'b' has 2",), False)


def test_placeholders_are_grouped_with_the_largest_group_first(shop):
    for number in (3, 4, 50, 51, 52, 53, 54):
        (shop / "images" / f"{number}.png").write_bytes(png("white") if number > 4 else png("black"))
    (finding,) = check(shop, "shop")[1:]
    assert finding.count == 7
    assert finding.examples == (
        f"{shop / 'shop.item'}, line 52, item 'i50': 50.png, as 'i51', 'i52', 'i53' and 1 more",
        f"{shop / 'shop.item'}, line 5, item 'i3': 3.png, as 'i4'",
    )


def test_a_data_set_that_is_not_there(shop):
    scope, finding = check(shop.parent / "shpo", "shpo")
    assert (finding.kind, finding.fatal) == ("no such data set", True)
    assert finding.message == f"data sets in {shop.parent}: shop; another folder: --data_path=FOLDER"
    assert str(shop.parent / "shpo") in scope.message


def test_the_command_line(shop, capsys):
    arguments = ["prepare", "check", "--dataset=shop", f"--data-path={shop.parent}"]
    assert cli.main(arguments) == 0
    assert "12 users, 120 items and 120 interactions" in capsys.readouterr().out
    (shop / "shop.item").unlink()
    assert cli.main(arguments) == 1
    assert re.search(
        r"error: shop.item: missing file: 1\n.*\n  - .*shop.item does not exist\n1 kind of error", capsys.readouterr().out
    )


def test_the_bundled_shop():
    folder = PACKAGE.parent / "atomic_data" / "minishop"
    (scope,) = check(folder, "minishop")
    assert "900 users, 240 items and 7,664 interactions" in scope.message and scope.message.endswith("240 pictures")


def test_real_data(real_data):
    """Counts of SOURCE.md; ties counted with another method."""
    folder = real_data / "ml-posters-mini"
    scope, ties = check(folder, "ml-posters-mini")
    assert "1,971 users, 1,689 items and 32,189 interactions" in scope.message and scope.message.endswith("1,689 pictures")
    rows = [line.split("\t") for line in (folder / "ml-posters-mini.inter").read_text().splitlines()[1:]]
    times: dict[str, list[str]] = {}
    for user, _, _, time in rows:
        times.setdefault(user, []).append(time)
    assert ties.kind == "users with interactions at one moment"
    assert ties.count == sum(len(set(of_user)) < len(of_user) for of_user in times.values())
