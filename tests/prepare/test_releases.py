"""A line of each release becomes a review or an item; what cannot be read is named, and nothing is executed."""

import pytest

from recbole_vlm2rec.prepare.build import Item
from recbole_vlm2rec.prepare.releases import PAPER, RELEASES, LineError, item, parse, review

REVIEW_2014 = (
    b'{"reviewerID": "A1YJEY40YUW4SE", "asin": "7806397051", "reviewerName": "Andrea", "helpful": [3, 4], "reviewText": "ok", '
    b'"overall": 1.0, "summary": "no", "unixReviewTime": 1391040000, "reviewTime": "01 30, 2014"}'
)
META_2014 = (
    b"{'asin': '0205616461', 'description': \"it's\", 'title': 'Bio-Active &amp; Tea \\u00e9', 'imUrl': "
    b"'http://ecx.images-amazon.com/images/I/51z.jpg', 'related': {'also_bought': ['B01']}, 'salesRank': {'Beauty': 461765}, "
    b"'categories': [['Beauty']]}"
)
REVIEW_2018 = (
    b'{"overall": 5.0, "verified": true, "reviewTime": "09 1, 2016", "reviewerID": "A3CI", "asin": "B00006L9LC", '
    b'"unixReviewTime": 1472688000}'
)
REVIEW_2023 = (
    b'{"rating": 4.0, "title": "Nice", "text": "x", "images": [], "asin": "B00YQ6X8EO", "parent_asin": "B00YQ", '
    b'"user_id": "AGKH", "timestamp": 1588687728923, "helpful_vote": 0, "verified_purchase": true}'
)


@pytest.mark.parametrize("release, line, expected", [
    ("2014", REVIEW_2014, ("A1YJEY40YUW4SE", "7806397051", 1391040000.0, 1.0)),
    ("2018", REVIEW_2018, ("A3CI", "B00006L9LC", 1472688000.0, 5.0)),
    ("2023", REVIEW_2023, ("AGKH", "B00YQ", 1588687728.923, 4.0)),
])  # fmt: skip
def test_reviews(release, line, expected):
    assert review(RELEASES[release], parse(line)) == expected


@pytest.mark.parametrize("release, line, expected", [
    ("2014", META_2014, ("0205616461", "Bio-Active &amp; Tea é", "http://ecx.images-amazon.com/images/I/51z.jpg")),
    ("2014", b'{"asin": "X", "title": "in JSON"}', ("X", "in JSON", None)),
    ("2014", b"{'asin': 'X', 'title': None, 'imUrl': 'http://g/x-site/icons/no-img-sm._CB1275522461_.gif'}", ("X", "", None)),
    ("2018", b'{"asin": "X", "title": "t", "imageURL": ["u1", "u2"], "imageURLHighRes": ["h1", "h2"]}', ("X", "t", "h1")),
    ("2018", b'{"asin": "X", "title": "t", "imageURL": ["u1"], "imageURLHighRes": []}', ("X", "t", "u1")),
    ("2018", b'{"asin": "X", "title": "var aPageStart = 1", "image": ["i"]}', ("X", "", "i")),
    ("2018", b'{"asin": "X", "title": ["t"], "imUrl": "m"}', ("X", "", "m")),
    ("2023", b'{"parent_asin": "X", "title": "t", "images": [{"thumb": "t0", "large": "l0", "variant": "PT01"}, '
             b'{"thumb": "t1", "large": "l1", "hi_res": null, "variant": "MAIN"}]}', ("X", "t", "l1")),
    ("2023", b'{"parent_asin": "X", "title": "t", "images": [{"thumb": "t0", "large": null, "hi_res": "h0"}]}', ("X", "t", "h0")),
    ("2023", b'{"parent_asin": "X", "title": "t", "images": ["odd", {}]}', ("X", "t", None)),
])  # fmt: skip
def test_items(release, line, expected):
    token, title, picture = expected
    assert item(RELEASES[release], parse(line)) == (token, Item(title, picture))


@pytest.mark.parametrize("line, reason", [
    (b'{"asin": "\xff"}', "not UTF-8"), (b"[1, 2]", "no object"), (b'"text"', "no object"), (b"12", "no object"),
    (b'{"asin": ', "neither JSON nor"), (b"{'asin': __import__('os').system('touch /tmp/x')}", "neither JSON nor"),
    (b"{'a': open('/etc/passwd')}", "neither JSON nor"), (b"{'a': " + b"[" * 5000 + b"]" * 5000 + b"}", "neither JSON nor"),
    (b'{"a": ' + b"[" * 200_000 + b"}", "neither JSON nor"), (b"{'a': 9**9**9}", "neither JSON nor"),
    (b"{'a': " + b"1+" * 300_000 + b"1}", "literal of at most 100000 characters"),
    (b"{'a': [" + b"1," * 50_000 + b"]}", "literal of at most 100000 characters"),
    (b'{"a": ' + b"1," * 50_000, r"literal of at most 100000 characters \(Expecting"),
    (b"{'a': {[]: 1}}", "neither"), (b"\x00", "neither JSON nor"),
])  # fmt: skip
def test_lines_that_cannot_be_read(line, reason):
    with pytest.raises(LineError, match=reason):
        parse(line)


@pytest.mark.parametrize("change, reason", [
    ({"reviewerID": None}, "no reviewerID"), ({"reviewerID": 12}, "no reviewerID"), ({"asin": ""}, "no asin"),
    ({"unixReviewTime": "1391040000"}, "no number as unixReviewTime"), ({"unixReviewTime": None}, "no number"),
    ({"unixReviewTime": True}, "no number"), ({"unixReviewTime": float("nan")}, "no number"),
    ({"unixReviewTime": float("inf")}, "no number"), ({"unixReviewTime": 10**400}, "no number as unixReviewTime"),
])  # fmt: skip
def test_reviews_that_lack_something(change, reason):
    with pytest.raises(LineError, match=reason):
        review(RELEASES["2014"], {**parse(REVIEW_2014), **change})


@pytest.mark.parametrize("rating", ["good", None, True, float("nan"), float("inf"), 10**400])
def test_a_missing_rating_is_no_fault(rating):
    assert review(RELEASES["2014"], {**parse(REVIEW_2014), "overall": rating})[3] is None


def test_milliseconds_are_divided_and_not_multiplied():
    # 1588687000001 * 0.001 is 1588687000.0010002 or the like for every seventh time: the nearest float64 is asked for.
    for time in range(1588687000000, 1588687001000):
        assert str(review(RELEASES["2023"], {**parse(REVIEW_2023), "timestamp": time})[2]).ljust(14, "0") == (
            f"{time // 1000}.{time % 1000:03d}"
        )


def test_a_long_line_of_json_is_read():
    assert parse(b'{"asin": "B0", "description": "' + b"x" * 300_000 + b'"}')["asin"] == "B0"


def test_the_papers_rows_belong_to_the_four_categories():
    assert set(PAPER) == set(RELEASES["2014"].categories.values())
