"""One's own tables to a data set: every format, paths and URLs, dates, a RecBole data set that gets pictures."""

import gzip
import json

import pyarrow
import pyarrow.parquet
import pytest
from PIL import Image

from recbole_vlm2rec.data.catalog import Catalog
from recbole_vlm2rec.prepare.settings import Settings
from recbole_vlm2rec.prepare.table import prepare_table

USERS, ITEMS = [f"u{number}" for number in range(4)], [f"i{number}" for number in range(3)]
ROWS = [(user, item, 1_577_836_800 + 60 * place) for user in USERS for place, item in enumerate(ITEMS)]


@pytest.fixture
def settings(tmp_path):
    return Settings(min_interactions=2, picture_cache=tmp_path / "cache")


@pytest.fixture
def shop(tmp_path):
    """items.csv and pictures beside it; interactions.csv."""
    folder = tmp_path / "shop"
    (folder / "pics").mkdir(parents=True)
    for number, item in enumerate(ITEMS):
        Image.new("RGB", (20, 20), (90 * number, 0, 0)).save(folder / "pics" / f"{item}.png")
    lines = ["sku,name,image,colour", *(f'{item},"thing, {item}",pics\\{item}.png,red' for item in ITEMS)]
    (folder / "items.csv").write_text("\n".join(lines))
    (folder / "interactions.csv").write_text("\n".join(["user_id,item_id,timestamp", *(",".join(map(str, row)) for row in ROWS)]))
    return folder


def check(folder, name="mine"):
    catalog = Catalog.read(folder / name, name)
    catalog.verify_images()
    assert [catalog.title(item) for item in ITEMS] == [f"thing, {item}" for item in ITEMS]
    assert [round(Image.open(catalog.image(item)).getpixel((5, 5))[0], -1) for item in ITEMS] == [0, 90, 180]
    lines = [line.split("\t") for line in (folder / name / f"{name}.inter").read_text().splitlines()[1:]]
    assert [(user, item, int(time)) for user, item, time, *_ in lines] == ROWS


def test_csv(shop, settings, tmp_path):
    report = prepare_table(shop / "interactions.csv", shop / "items.csv", "mine", tmp_path / "out", settings)
    check(tmp_path / "out")
    assert report["notes"] == [
        "interactions.csv: user = user_id, item = item_id, time = timestamp; times are seconds",
        "items.csv: item = sku, title = name, picture = image; not taken over: colour",
    ]


@pytest.mark.parametrize("kind", ["tsv", "jsonl", "jsonl.gz", "parquet", "csv, dates", "utf-16"])
def test_other_kinds_give_the_same(kind, shop, settings, tmp_path):
    file = shop / f"table.{kind.partition(',')[0].replace('utf-16', 'csv')}"
    clock = {row: f"2020-01-01 00:0{(row[2] - 1_577_836_800) // 60}:00" for row in ROWS}
    if kind == "parquet":
        columns = {"user": [row[0] for row in ROWS], "item": [row[1] for row in ROWS], "time": [row[2] * 1000 for row in ROWS]}
        pyarrow.parquet.write_table(pyarrow.table(columns), file)
    elif "json" in kind:
        content = "\n".join(json.dumps(dict(zip(("user", "item", "time"), row))) for row in ROWS).encode()
        file.write_bytes(gzip.compress(content) if kind.endswith("gz") else content)
    else:
        mark = "\t" if kind == "tsv" else ","
        rows = [(*row[:2], clock[row] if "dates" in kind else row[2]) for row in ROWS]
        text = "\n".join([mark.join(("user", "item", "time")), *(mark.join(map(str, row)) for row in rows)])
        file.write_bytes(text.encode("utf-16" if kind == "utf-16" else "utf-8"))
    prepare_table(file, shop / "items.csv", "mine", tmp_path / "out", settings)
    check(tmp_path / "out")


def test_one_file_for_both_numbers_as_tokens_and_named_columns(shop, settings, tmp_path):
    lines = [
        {"who": float(user[1:]), "what": int(item[1:]), "when": time, "label": item, "pic": str(shop / "pics" / f"{item}.png")}
        for user, item, time in ROWS
    ]
    file = tmp_path / "all.jsonl"
    file.write_text("\n".join(map(json.dumps, lines)))
    columns = {"user": "who", "item": "what", "time": "when", "title": "label", "picture": "pic"}
    report = prepare_table(file, file, "mine", tmp_path / "out", settings, columns=columns)
    assert len(report["files"]) == 1 and report["statistics"]["interactions"] == 12
    assert (tmp_path / "out" / "mine" / "mine.inter").read_text().splitlines()[1] == "0\t0\t1577836800"
    assert report["notes"] == ["all.jsonl: user = who, item = what, time = when, title = label, picture = pic; times are seconds"]


def test_an_item_column_that_only_one_file_has(shop, settings, tmp_path):
    text = (shop / "items.csv").read_text().replace("colour", "asin")
    (shop / "items.csv").write_text(text)
    files = shop / "interactions.csv", shop / "items.csv", "mine", tmp_path / "out", settings
    with pytest.raises(ValueError, match="items.csv: 'sku' and 'asin' may each be the item; say which with --item_column=…"):
        prepare_table(*files)
    with pytest.raises(ValueError, match="interactions.csv: there is no column 'ean'"):
        prepare_table(*files, columns={"item": "ean"})
    prepare_table(*files, columns={"item": "sku"})
    check(tmp_path / "out")


def test_another_folder_of_pictures_is_another_data_set(shop, settings, tmp_path):
    (tmp_path / "other" / "pics").mkdir(parents=True)
    for item in ITEMS:
        Image.new("RGB", (20, 20), (0, 0, 200)).save(tmp_path / "other" / "pics" / f"{item}.png")
    files = shop / "interactions.csv", shop / "items.csv", "mine", tmp_path / "out", settings
    prepare_table(*files, pictures=shop)
    assert prepare_table(*files, pictures=shop)["already"]
    with pytest.raises(ValueError, match="was prepared with other recipe; give --overwrite"):
        prepare_table(*files, pictures=tmp_path / "other")


def test_a_title_or_picture_that_is_no_text(shop, settings, tmp_path):
    lines = [{"item": item, "title": "thing", "image": {"path": "a", "bytes": None}} for item in ITEMS]
    (tmp_path / "items.jsonl").write_text("\n".join(map(json.dumps, lines)))
    with pytest.raises(ValueError, match="3 of 3 lines cannot be read.*line 1: picture is an object with fields of its own"):
        prepare_table(shop / "interactions.csv", tmp_path / "items.jsonl", "mine", tmp_path / "out", settings)


def test_items_without_rows(shop, settings, tmp_path):
    (shop / "items.csv").write_text("sku,name,image\n")
    with pytest.raises(ValueError, match="items.csv holds no item"):
        prepare_table(shop / "interactions.csv", shop / "items.csv", "mine", tmp_path / "out", settings)


def test_pictures_from_another_folder_and_schemes_that_are_refused(shop, settings, tmp_path):
    lines = ["sku,name,image", *(f"{item},thing,{item}.png" for item in ITEMS[:2]), "i2,thing,file:///etc/passwd"]
    (tmp_path / "items.csv").write_text("\n".join(lines))
    report = prepare_table(
        shop / "interactions.csv", tmp_path / "items.csv", "mine", tmp_path / "out", Settings(
            min_interactions=2, picture_cache=tmp_path / "cache", max_failed_pictures=0.5), pictures=shop / "pics",
    )  # fmt: skip
    assert report["images_failed"] == {"file: is not http or https": 1} and report["statistics"]["items"] == 2


def test_a_dry_run_reports_and_writes_nothing(shop, settings, tmp_path):
    before = sorted(tmp_path.rglob("*"))
    (shop / "pics" / "i1.png").unlink()
    report = prepare_table(shop / "interactions.csv", shop / "items.csv", "mine", tmp_path / "out", settings, dry_run=True)
    assert report["statistics"]["items"] == 2 and report["images_failed"] == {"no such file": 1}
    assert len(sorted(tmp_path.rglob("*"))) == len(before) - 1


def test_titles_and_pictures_for_a_recbole_data_set(shop, settings, tmp_path):
    folder = tmp_path / "ml"
    folder.mkdir()
    lines = ["user_id:token\titem_id:token\trating:float\ttimestamp:float", *(f"{u}\t{i}\t4\t{t}" for u, i, t in ROWS)]
    (folder / "ml.inter").write_text("\n".join(lines) + "\n")
    (folder / "ml.item").write_text("item_id:token\tclass:token_seq\n" + "".join(f"{item}\tfun {item}\n" for item in ITEMS))
    report = prepare_table(None, shop / "items.csv", "mine", tmp_path / "out", settings, from_recbole=folder)
    check(tmp_path / "out")
    item = (tmp_path / "out" / "mine" / "mine.item").read_text().splitlines()
    assert item[0].split("\t")[3:] == ["class:token_seq"] and item[1].split("\t")[3] == "fun i0"
    assert {file["file"] for file in report["files"]} == {"ml.inter", "ml.item", "items.csv"}
    assert report["notes"][0] == "ml.item: item = item_id:token, kept = class:token_seq"
    with pytest.raises(ValueError, match="ml.item: no column looks like the title; there are item_id:token, class:token_seq"):
        prepare_table(None, None, "other", tmp_path / "out", settings, from_recbole=folder)
    with open(folder / "ml.item", "a") as file:
        file.write("i0\tanother\n")
    report = prepare_table(None, shop / "items.csv", "twice", tmp_path / "out", settings, from_recbole=folder)
    assert (tmp_path / "out" / "twice" / "twice.item").read_text().splitlines()[1].split("\t")[3] == "fun i0"
    assert "ml.item: further columns of 1 items stand more than once and differ; the first count" in report["notes"]


def test_bad_rows_are_counted_and_too_many_an_error(shop, settings, tmp_path):
    text = (shop / "interactions.csv").read_text()
    (shop / "interactions.csv").write_text(f"{text}\n,i0,1577836800\nu1,NA,1577836800\nu1,i0,soon\n")
    with pytest.raises(ValueError, match=r"3 of 16 lines cannot be read.*line 14: user is empty; line 15: item 'NA' is a word"):
        prepare_table(shop / "interactions.csv", shop / "items.csv", "mine", tmp_path / "out", settings)
    generous = Settings(min_interactions=2, picture_cache=tmp_path / "cache", max_bad_lines=0.2)
    report = prepare_table(shop / "interactions.csv", shop / "items.csv", "mine", tmp_path / "out", generous)
    assert report["skipped"][0]["count"] == 3 and report["statistics"]["interactions"] == 12


def test_an_item_that_stands_twice(shop, settings, tmp_path):
    with open(shop / "items.csv", "a") as file:
        file.write('\ni0,another name,pics/i1.png,blue\ni1,"thing, i1",pics\\i1.png,blue\n')
    report = prepare_table(shop / "interactions.csv", shop / "items.csv", "mine", tmp_path / "out", settings)
    check(tmp_path / "out")
    assert "items.csv: 1 items stand more than once and differ; the first counts" in report["notes"]


@pytest.mark.parametrize("given, words", [
    ({"interactions": None, "items": "x"}, "--interactions=FILE and --items=FILE are needed, or --from_recbole"),
    ({"interactions": "x", "items": None}, "are needed"),
    ({"interactions": "x", "items": "x", "from_recbole": "."}, "give one of them"),
    ({"interactions": None, "items": None, "from_recbole": "nowhere"}, "one .inter file is expected there, found 0"),
    ({"interactions": "nowhere.csv", "items": "x"}, "nowhere.csv does not exist"),
])  # fmt: skip
def test_what_is_not_enough(given, words, tmp_path):
    with pytest.raises(ValueError, match=words):
        prepare_table(name="mine", out=tmp_path, **given)
