"""Raw files of each release, read and filtered; damaged ones survived or refused."""

import gzip
import io
import json

import pytest
from PIL import Image

from recbole_vlm2rec.prepare import amazon, gallery
from recbole_vlm2rec.prepare.amazon import prepare_amazon
from recbole_vlm2rec.prepare.settings import Settings


class Web:
    """Answers every URL with one picture."""

    def __init__(self, settings):
        pass

    async def __aenter__(self):
        return self

    async def __aexit__(self, *_):
        pass

    async def get(self, url):
        out = io.BytesIO()
        Image.new("RGB", (20, 20), (len(url) % 256, 0, 0)).save(out, "JPEG")
        return out.getvalue()


@pytest.fixture
def prepared(tmp_path, monkeypatch):
    """Prepares category Beauty from lines of reviews and metadata."""
    original = gallery.collect
    monkeypatch.setattr("recbole_vlm2rec.prepare.build.collect", lambda pictures, chosen: original(pictures, chosen, Web))

    def run(reviews, metadata, names=("reviews_Beauty_5.json.gz", "meta_Beauty.json.gz"), compress=gzip.compress, **chosen):
        raw = tmp_path / "raw"
        raw.mkdir(exist_ok=True)
        for name, lines in zip(names, (reviews, metadata)):
            (raw / name).write_bytes(compress(b"\n".join(lines) + b"\n"))
        more = {key: chosen.pop(key) for key in ("release", "name", "category") if key in chosen}
        settings = Settings(**{"min_interactions": 2, "picture_cache": tmp_path / "cache", **chosen})
        return prepare_amazon(more.pop("category", "Beauty"), raw, tmp_path / "out", settings, **more)

    return run


def reviews_2014(users=4, items=3):
    return [
        json.dumps({"reviewerID": f"U{user}", "asin": f"B{item}", "overall": 5.0, "unixReviewTime": 1000 * user + item}).encode()
        for item in range(items)
        for user in range(users)
    ]


def items_2014(items=3, **changes):
    lines = {f"B{item}": {"asin": f"B{item}", "title": f"thing {item}", "imUrl": f"http://h/{item}.jpg"} for item in range(items)}
    return [repr({**line, **changes.get(token, {})}).encode() for token, line in lines.items()]


def counts(report):
    return tuple(report["statistics"][kind] for kind in ("users", "items", "interactions"))


def test_2014(prepared, tmp_path):
    report = prepared(reviews_2014(), items_2014())
    assert counts(report) == (4, 3, 12) and report["paper"]["users"]["count"] == 19757
    assert [file["file"] for file in report["files"]] == ["reviews_Beauty_5.json.gz", "meta_Beauty.json.gz"]
    # Lines of a user stand in time order though the file is grouped by item.
    lines = (tmp_path / "out" / "Beauty" / "Beauty.inter").read_text().splitlines()
    assert lines[1:4] == ["U0\tB0\t0\t5", "U0\tB1\t1\t5", "U0\tB2\t2\t5"]


def test_2018_and_2023(prepared, tmp_path):
    reviews = [json.dumps({"reviewerID": f"U{user}", "asin": f"B{item}", "unixReviewTime": item, "overall": 1.0}).encode()
               for user in range(3) for item in range(2)]  # fmt: skip
    items = [
        json.dumps({"asin": f"B{item}", "title": "t", "imageURLHighRes": [f"http://h/{item}"]}).encode() for item in range(2)
    ]
    report = prepared(reviews, items, ("All_Beauty_5.json.gz", "meta_All_Beauty.json.gz"), release="2018")
    assert counts(report) == (3, 2, 6) and report["name"] == "Beauty-2018" and report["paper"] is None
    rated = {"rating": 1.0}
    reviews = [json.dumps({"user_id": f"U{user}", "parent_asin": f"B{item}", "timestamp": 1000 * item + 500, **rated}).encode()
               for user in range(3) for item in range(2)]  # fmt: skip
    reviews.append(b'{"user_id": "once", "parent_asin": "B0", "timestamp": 1}')
    items = [json.dumps({"parent_asin": f"B{item}", "title": "t", "images": [{"large": f"http://h/{item}"}]}).encode()
             for item in range(2)]  # fmt: skip
    names = ("Toys_and_Games.jsonl.gz", "meta_Toys_and_Games.jsonl.gz")
    report = prepared(reviews, items, names, release="2023", category="toys")
    assert counts(report) == (3, 2, 6) and report["name"] == "Toys-2023"
    assert [step["step"] for step in report["steps"][:2]] == ["read", "2-core first"]
    assert "U0\tB0\t0.5\t1" in (tmp_path / "out" / "Toys-2023" / "Toys-2023.inter").read_text().splitlines()


def test_unpacked_files_do_too(prepared):
    report = prepared(reviews_2014(), items_2014(), ("reviews_Beauty_5.json", "meta_Beauty.json"), compress=bytes)
    assert counts(report) == (4, 3, 12)


def test_bad_lines_in_the_middle_are_counted_named_and_skipped(prepared):
    reviews = reviews_2014()
    reviews[5:5] = [b"\xff\xfe", b"{broken", b'{"reviewerID": "a b", "asin": "B0", "unixReviewTime": 1}']
    items = [items_2014()[0], b"{'asin': 'B1', 'title': __import__('os')}", *items_2014()[1:]]
    report = prepared(reviews, items, max_bad_lines=0.3)
    assert counts(report) == (4, 3, 12)
    skipped = {entry["file"]: entry for entry in report["skipped"]}
    assert skipped["reviews_Beauty_5.json.gz"]["count"] == 3
    assert skipped["reviews_Beauty_5.json.gz"]["first"] == [
        [6, "not UTF-8"],
        [7, "neither JSON nor a Python literal (Expecting property name enclosed in double quotes)"],
        [8, "user 'a b' holds white space or control characters"],
    ]
    assert skipped["meta_Beauty.json.gz"]["first"] == [[2, "neither JSON nor a Python literal"]]


def test_too_many_bad_lines_are_an_error(prepared):
    with pytest.raises(ValueError, match=r"3 of 15 lines cannot be read, more than --max_bad_lines=0.1 allows. line 13: no asin"):
        prepared([*reviews_2014(), *[b'{"reviewerID": "U", "unixReviewTime": 1}'] * 3], items_2014(), max_bad_lines=0.1)


def test_cut_files_are_refused(prepared):
    with pytest.raises(ValueError, match="reviews_Beauty_5.json.gz: the compressed file is damaged"):
        prepared(reviews_2014(), items_2014(), compress=lambda data: gzip.compress(data)[:-9])


def test_an_empty_file_is_refused(prepared):
    with pytest.raises(ValueError, match="reviews_Beauty_5.json.gz holds no review"):
        prepared([], items_2014())


def test_an_error_page_under_a_files_name_is_refused(prepared):
    page = [b"<html>", b"<body>Service unavailable</body>", b"</html>"]
    with pytest.raises(ValueError, match=r"reviews_Beauty_5.json.gz: 3 of 3 lines cannot be read.*line 1: neither JSON nor"):
        prepared(page, items_2014(), compress=bytes)


@pytest.mark.parametrize("metadata", [[], [b"{'asin': 'other', 'title': 't', 'imUrl': 'http://h/x.jpg'}"]])
def test_metadata_of_other_items_leaves_nothing(prepared, metadata):
    with pytest.raises(ValueError, match="no interaction is left after 'metadata'; 'metadata' took most: 12 of 12"):
        prepared(reviews_2014(), metadata)


def test_entities_in_titles_are_replaced(prepared, tmp_path):
    prepared(reviews_2014(), items_2014(B1={"title": "&quot;Tea&quot; &amp; &#233;clair\n"}))
    assert 'B1\tTea" & éclair\t' in (tmp_path / "out" / "Beauty" / "Beauty.item").read_text(encoding="utf-8")


def test_items_without_reviews_are_not_parsed(prepared, monkeypatch):
    parsed = []
    original = amazon.parse
    monkeypatch.setattr(amazon, "parse", lambda line: parsed.append(line) or original(line))
    others = [b"{'asin': 'X%d', 'title': 'never read', 'imUrl': __import__('os')}" % number for number in range(50)]
    # Where `asin` is not the first key, it may be something else's: such a line is parsed.
    later = [b"{'related': {'asin': 'X'}, 'asin': 'B2', 'title': 'thing 2', 'imUrl': 'http://h/2.jpg'}"]
    report = prepared(reviews_2014(), [*others, *items_2014()[:2], *later])
    assert counts(report) == (4, 3, 12) and len(parsed) == 12 + 3


def test_of_an_item_that_stands_twice_the_first_complete_line_counts(prepared, tmp_path):
    doubles = [b"{'asin': 'B1', 'title': 'no picture'}", *items_2014(), b"{'asin': 'B1', 'title': 'late', 'imUrl': 'http://h/x'}"]
    report = prepared(reviews_2014(), doubles)
    assert "B1\tthing 1\t" in (tmp_path / "out" / "Beauty" / "Beauty.item").read_text()
    assert report["notes"] == ["1 items stand more than once in meta_Beauty.json.gz; the first with title and picture counts"]


def test_items_that_lack_something_are_dropped_step_by_step(prepared):
    items = items_2014(5, B1={"title": "\t"}, B2={"imUrl": "http://g/icons/no-img-sm.gif"})[:4]
    report = prepared(reviews_2014(items=5), items)
    left = {step["step"]: step["items"] for step in report["steps"]}
    assert (left["read"], left["metadata"], left["title"], left["picture named"]) == (5, 4, 3, 2)


@pytest.mark.parametrize("category", ["../Beauty", "a b", ""])
def test_a_category_is_a_name(category, tmp_path):
    with pytest.raises(ValueError, match="choose Beauty, Toys, Clothing, Sports or a name of the release, such as Office"):
        prepare_amazon(category, tmp_path, tmp_path)


def test_an_unknown_release(tmp_path):
    with pytest.raises(ValueError, match="release is '2019': choose one of 2014, 2018, 2023"):
        prepare_amazon("Beauty", tmp_path, tmp_path, release="2019")


def test_missing_files_are_asked_for_where_they_lie(tmp_path, monkeypatch):
    asked = {}

    def refuse(urls, settings):
        asked.update(urls)
        raise OSError("no network")

    monkeypatch.setattr(amazon, "download_all", refuse)
    for base in (None, "http://mirror/x/"):
        with pytest.raises(OSError, match="no network"):
            prepare_amazon("Clothing", tmp_path / "raw", tmp_path, base_url=base)
        place = "http://mirror/x" if base else "http://snap.stanford.edu/data/amazon/productGraph/categoryFiles"
        assert asked[tmp_path / "raw" / "reviews_Clothing_Shoes_and_Jewelry_5.json.gz"] == (
            f"{place}/reviews_Clothing_Shoes_and_Jewelry_5.json.gz"
        )
