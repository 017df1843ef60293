"""The catalogue: it reads `.item` literally, and says file, line and item of whatever breaks the contract."""

import re
from pathlib import Path

import pytest
from PIL import Image

from recbole_vlm2rec.data.atomic_files import Problem
from recbole_vlm2rec.data.catalog import Catalog, CatalogError, Entry, read_entries

HEADER = "item_id:token\ttitle:token_seq\timage_path:token"


@pytest.fixture
def shop(tmp_path):
    """shop(*lines, header=..., raw=...) -> the folder of a data set `shop` with pictures images/a.png, b.png and c.jpg."""
    folder = tmp_path / "shop"
    (folder / "images").mkdir(parents=True)
    for name, colour in (("a.png", "red"), ("b.png", "green"), ("c.jpg", "blue")):
        Image.new("RGB", (8, 6), colour).save(folder / "images" / name)

    def write(*lines, header=HEADER, raw=None):
        content = ("\n".join([header, *lines]) + "\n").encode() if raw is None else raw
        (folder / "shop.item").write_bytes(content)
        return folder

    return write


def read(folder):
    return Catalog.read(folder, "shop")


def refused(folder, message):
    """The reading fails, and its message begins with the file."""
    with pytest.raises(CatalogError, match=message) as caught:
        read(folder)
    assert str(caught.value).startswith(str(folder / "shop.item"))


def test_titles_and_pictures_by_token(shop):
    folder = shop("b 1\tGreen mug\timages/b.png", "a\tRed shirt\timages/a.png")
    catalog = read(folder)
    assert catalog.item_ids == ["b 1", "a"]
    assert [catalog.title(item) for item in catalog.item_ids] == ["Green mug", "Red shirt"]
    assert catalog.image("a") == folder / "images" / "a.png"
    assert len(catalog) == 2 and "b 1" in catalog and "b" not in catalog


@pytest.mark.parametrize(
    "title",
    [
        "NA",
        "null",
        "nan",
        "None",
        '"quoted',
        'a "b" c',
        "1.0",
        "007",
        "1e5",
        " padded ",
        "#1, best",
        "Ünïcode\u2028日本",
        "a\x85b\x0bc",
        "a\rb",
    ],
)
def test_a_title_survives_as_it_is(shop, title):
    catalog = read(shop(f"a\t{title}\timages/a.png", "b\tthe next item\timages/b.png"))
    assert [catalog.title(item) for item in catalog.item_ids] == [title, "the next item"]


@pytest.mark.parametrize("token", ["NA", "1.0", "007", '"', "null"])
def test_a_token_survives_as_it_is(shop, token):
    assert read(shop(f"{token}\tthing\timages/a.png")).item_ids == [token]


def test_columns_stand_in_any_order_beside_others(shop):
    folder = shop(
        "images/a.png\t9.99\ta\tRed shirt\tx y",
        header="image_path:token\tprice:float\titem_id:token\ttitle:token_seq\tgenre:token_seq",
    )
    assert read(folder).title("a") == "Red shirt"


@pytest.mark.parametrize("bom", [b"", b"\xef\xbb\xbf"], ids=["plain", "bom"])
@pytest.mark.parametrize("end", ["\n", "\r\n"], ids=["lf", "crlf"])
@pytest.mark.parametrize("last", [True, False], ids=["closed", "open"])
def test_byte_order_mark_and_line_ends(shop, bom, end, last):
    text = end.join([HEADER, "a\tRed shirt\timages/a.png", "b\tGreen mug\timages/b.png"]) + (end if last else "")
    catalog = read(shop(raw=bom + text.encode()))
    assert catalog.item_ids == ["a", "b"]
    assert catalog.image("b").name == "b.png"


def test_a_missing_file(tmp_path):
    with pytest.raises(CatalogError, match=r"shop\.item does not exist"):
        Catalog.read(tmp_path, "shop")


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ("item_id:token\ttitle:token_seq", "line 1: no column image_path; it has item_id, title"),
        ("item_id:token\tname:token_seq\timage:token", "line 1: no column title, image_path; it has item_id, name, image"),
        ("item_id,title,image_path", "line 1: no column item_id, title, image_path"),
    ],
)
def test_a_missing_column(shop, header, message):
    refused(shop("a\tRed shirt\timages/a.png", header=header), message)


def test_an_empty_file(shop):
    refused(shop(raw=b""), "line 1: no column item_id, title, image_path")


@pytest.mark.parametrize(("line", "cells"), [("b\tGreen mug", 2), ("b\tGreen\tmug\timages/b.png", 4), ("", 1)])
def test_a_ragged_line(shop, line, cells):
    refused(
        shop("a\tRed shirt\timages/a.png", line, "c\tBlue bag\timages/c.jpg"),
        f"line 3: {cells} cells where the header has 3 columns",
    )


def test_a_duplicate_item(shop):
    refused(
        shop("a\tRed shirt\timages/a.png", "b\tGreen mug\timages/b.png", "a\tOther\timages/c.jpg"),
        "line 4, item 'a': it stands on line 2 already",
    )


def test_an_empty_item(shop):
    refused(shop("\tRed shirt\timages/a.png"), "line 2: empty item_id")


@pytest.mark.parametrize("title", ["", "   "])
def test_an_empty_title(shop, title):
    refused(shop("a\tRed shirt\timages/a.png", f"b\t{title}\timages/b.png"), "line 3, item 'b': empty title")


@pytest.mark.parametrize("picture", ["images/none.png", "images"])
def test_a_missing_picture(shop, picture):
    refused(
        shop("a\tRed shirt\timages/a.png", f"b\tGreen mug\t{picture}"), rf"line 3, item 'b': picture .*{picture} does not exist"
    )


@pytest.mark.parametrize(
    "picture", ["../secret.png", "images/../../secret.png", "", "x\0y", "images/link.png", "images/circle", "a" * 5000]
)
def test_an_image_path_that_leaves_the_folder(shop, tmp_path, picture):
    """Also where the file exists, is reached by a symbolic link, or cannot be a name at all."""
    Image.new("RGB", (4, 4)).save(tmp_path / "secret.png")
    folder = shop("a\tRed shirt\timages/a.png", f"b\tGreen mug\t{picture}")
    (folder / "images" / "link.png").symlink_to(tmp_path / "secret.png")
    (folder / "images" / "circle").symlink_to(folder / "images" / "circle")
    refused(folder, r"line 3, item 'b': image_path .* must name a file inside")


def test_an_absolute_image_path(shop, tmp_path):
    Image.new("RGB", (4, 4)).save(tmp_path / "secret.png")
    refused(shop(f"a\tRed shirt\t{tmp_path / 'secret.png'}"), "line 2, item 'a': image_path .* must name a file inside")


def test_the_data_folder_itself_may_be_a_link(shop, tmp_path):
    (tmp_path / "elsewhere").symlink_to(shop("a\tRed shirt\timages/a.png"))
    assert Catalog.read(tmp_path / "elsewhere", "shop").title("a") == "Red shirt"


@pytest.mark.parametrize("encoding", ["latin-1", "utf-16"])
def test_another_encoding(shop, encoding):
    lines = [HEADER, "a\tRed shirt\timages/a.png", "b\tCafé mug\timages/b.png"]
    refused(shop(raw="\n".join(lines).encode(encoding)), f"line {3 if encoding == 'latin-1' else 1}: not UTF-8; convert the file")


def test_another_encoding_far_into_the_file(shop):
    lines = [f"{number}\tthing\timages/a.png" for number in range(2000)] + ["b\tCafé mug\timages/b.png"]
    refused(shop(raw="\n".join([HEADER, *lines]).encode("latin-1")), "line 2002: not UTF-8")


@pytest.mark.parametrize("content", [b"", b"<html>404</html>", b"\x89PNG\r\n\x1a\n\0\0"], ids=["empty", "html", "cut"])
def test_an_unreadable_picture(shop, content):
    folder = shop("a\tRed shirt\timages/a.png", "b\tGreen mug\timages/b.png")
    read(folder).verify_images()
    (folder / "images" / "b.png").write_bytes(content)
    with pytest.raises(
        CatalogError, match=rf"^{re.escape(str(folder))}.shop\.item, line 3, item 'b': picture .*b\.png cannot be read"
    ):
        read(folder).verify_images()


def test_a_damaged_picture(shop):
    folder = shop("a\tRed shirt\timages/a.png")
    picture = folder / "images" / "a.png"
    data = bytearray(picture.read_bytes())
    data[-20] ^= 0xFF
    picture.write_bytes(data)
    with pytest.raises(CatalogError, match="line 2, item 'a': picture .*a.png cannot be read"):
        read(folder).verify_images()


def test_items_that_the_catalogue_lacks(shop):
    catalog = read(shop("a\tRed shirt\timages/a.png", "b\tGreen mug\timages/b.png"))
    catalog.check_items(["b", "a"])
    with pytest.raises(
        CatalogError, match=r"shop\.item: 6 items of shop\.inter are missing, the first are 'x1', 'x2', 'x3', 'x4', 'x5'; add"
    ):
        catalog.check_items(["a", *(f"x{number}" for number in range(1, 7))])


def test_the_hash_changes_with_tokens_titles_order_and_pixels_only(shop):
    lines = ["a\tRed shirt\timages/a.png", "b\tGreen mug\timages/b.png"]
    first = read(shop(*lines)).hash
    assert read(shop(*lines)).hash == first
    (shop(*lines) / "images" / "copy.png").write_bytes((shop(*lines) / "images" / "a.png").read_bytes())
    assert read(shop("a\tRed shirt\timages/copy.png", lines[1])).hash == first
    changes = [["a\tRed skirt\timages/a.png", lines[1]], ["x\tRed shirt\timages/a.png", lines[1]], lines[::-1], lines[:1]]
    changes += [["a\tRed shirt\timages/b.png", lines[1]]]
    assert len({first, *(read(shop(*change)).hash for change in changes)}) == 6


def test_the_hash_changes_with_the_bytes_of_a_picture(shop):
    folder = shop("a\tRed shirt\timages/a.png", "b\tGreen mug\timages/b.png")
    first = read(folder).hash
    Image.new("RGB", (8, 6), "pink").save(folder / "images" / "b.png")
    assert read(folder).hash != first


def test_the_bundled_shop():
    folder = Path(__file__).parents[2] / "atomic_data" / "minishop"
    catalog = Catalog.read(folder, "minishop")
    assert len(catalog) == 240  # what its generator was asked for
    catalog.verify_images()
    interactions = (folder / "minishop.inter").read_text(encoding="utf-8").splitlines()
    column = interactions[0].split("\t").index("item_id:token")
    catalog.check_items({line.split("\t")[column] for line in interactions[1:]})


def test_an_absent_item_is_named_with_its_line_in_inter(shop):
    folder = shop("a\tRed shirt\timages/a.png")
    (folder / "shop.inter").write_text("user_id:token\titem_id:token\ttimestamp:float\nu\ta\t1\nu\tz\t2\nv\tz\t1\n")
    with pytest.raises(CatalogError, match="the first are 'z' \\('z' first on line 3 of shop.inter\\)"):
        read(folder).check_items(["a", "z"])


def test_all_problems_are_listed_and_the_first_is_raised(shop):
    """Reading and checking go through the same lines: nothing after a bad line is passed over. Second lines come last."""
    lines = [
        "a\tRed shirt\timages/a.png",
        "b\t \timages/none.png",
        "c\tBlue bag",
        "a\tOther\timages/b.png",
        "\tNo name\timages/b.png",
    ]
    folder = shop(*lines, "d\tGreen mug\timages/b.png", "e\tOutside\t../x.png")
    found = list(read_entries(folder / "shop.item"))
    problems = [entry for entry in found if isinstance(entry, Problem)]
    assert [(problem.line, problem.item, problem.kind) for problem in problems] == [
        (3, "b", "empty title"),
        (3, "b", "missing picture"),
        (4, None, "wrong number of cells"),
        (6, None, "empty item_id"),
        (8, "e", "image_path outside the folder"),
        (5, "a", "item twice"),
    ]
    assert [entry for entry in found if isinstance(entry, Entry)] == [
        Entry("a", "Red shirt", folder / "images" / "a.png", 2),
        Entry("a", "Other", folder / "images" / "b.png", 5),
        Entry("d", "Green mug", folder / "images" / "b.png", 7),
    ]
    with pytest.raises(CatalogError) as caught:
        read(folder)
    assert str(caught.value) == str(problems[0])


def test_a_line_in_another_encoding_does_not_hide_the_next(shop):
    folder = shop(raw=f"{HEADER}\na\tCafé\timages/a.png\n".encode("latin-1") + "b\tCafé\timages/b.png\n".encode())
    problem, entry = read_entries(folder / "shop.item")
    assert (problem.kind, problem.line) == ("not UTF-8", 2)
    assert (entry.item, entry.title) == ("b", "Café")
