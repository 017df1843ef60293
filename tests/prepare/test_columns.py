"""Columns by their names, and cells as tokens and moments."""

from datetime import date, datetime, timedelta, timezone

import pytest

from recbole_vlm2rec.prepare.columns import CellError, Moments, find, first_text, number, text, token

WANTED = {"user": True, "item": True, "time": True, "rating": False}


@pytest.mark.parametrize("names, places", [
    (["user_id:token", "item_id:token", "timestamp:float"], {"user": 0, "item": 1, "time": 2}),
    (["Date", "SKU", "Customer ID", "stars"], {"user": 2, "item": 1, "time": 0, "rating": 3}),
    (["reviewerID", "asin", "overall", "unixReviewTime"], {"user": 0, "item": 1, "rating": 2, "time": 3}),
])  # fmt: skip
def test_names_are_guessed(names, places):
    assert find(names, WANTED, {}, "f") == places


def test_a_choice_wins_over_a_guess():
    assert find(["user_id", "item", "time", "who"], WANTED, {"user": "who"}, "f")["user"] == 3


@pytest.mark.parametrize("names, chosen, words", [
    (["a", "item", "time"], {}, "f: no column looks like the user; there are a, item, time. Name one with --user_column=…"),
    (["user", "asin", "sku", "time"], {}, "'asin' and 'sku' may each be the item; say which with --item_column=…"),
    (["user", "item", "time"], {"time": "when"}, r"there is no column 'when' \(--time_column\); there are user, item, time"),
    (["user", "item", "time", "user"], {}, "column 'user' stands twice"),
    (["u0", "i0", "1577836800"], {}, "looks like the user.*if these are cells of the first row, put a line of column names"),
])  # fmt: skip
def test_what_cannot_be_guessed_names_the_flag(names, chosen, words):
    with pytest.raises(ValueError, match=words):
        find(names, WANTED, chosen, "f")


def test_a_choice_may_leave_out_the_type_and_columns_without_a_name_may_stand_often():
    assert find(["user_id:token", "item", "time", "film:token_seq"], {"title": True}, {"title": "film"}, "f") == {"title": 3}
    assert find(["user", "item", "time", "", ""], WANTED, {}, "f") == {"user": 0, "item": 1, "time": 2}


@pytest.mark.parametrize(
    "value, expected", [(12, "12"), (12.0, "12"), (" a ", "a"), ("12.0", "12.0"), (1.5, "1.5"), (10**20, "1" + "0" * 20)]
)
def test_tokens(value, expected):
    assert token(value) == expected


@pytest.mark.parametrize("value", [None, "", float("nan"), ["a"], {}, b"\xff"])
def test_no_tokens(value):
    with pytest.raises(CellError):
        token(value)


def test_texts():
    assert (text(["a", None, "b"]), text(None), first_text([["x", "y"]]), first_text([]), first_text(" u ")) == (
        "a  b",
        "",
        "x",
        "",
        "u",
    )
    assert (number("4.5"), number(None), number("")) == (4.5, None, None)
    with pytest.raises(CellError, match="'good' is no number"):
        number("good")
    with pytest.raises(CellError, match="is no number"):
        number(10**400)
    assert text(1984.0) == "1984"  # whole numbers beside an empty cell come as floats
    for value, why in (({"url": "a"}, "is an object"), ([b"\xff"], "is bytes")):
        with pytest.raises(CellError, match=why):
            first_text(value)


def read(*values):
    moments = Moments()
    for value in values:
        moments.add(value)
    seconds, kind = moments.seconds("f")
    return list(seconds), kind


DAY = 1577836800.0  # 2020-01-01 00:00 UTC


@pytest.mark.parametrize("values, seconds, kind", [
    ((1577836800, "1577836801.5"), [DAY, DAY + 1.5], "seconds"),
    (("1577836800000",), [DAY], "milliseconds"), ((1577836800000000,), [DAY], "microseconds"),
    ((int(DAY * 1e9),), [DAY], "nanoseconds"),
    ((1, 2, 3), [1, 2, 3], "numbers that only order"),
    (("2020-01-01", "2020-01-01T01:00:00", "2020-01-01 00:00:01.5", "2020-01-01T00:00:00Z"),
     [DAY, DAY + 3600, DAY + 1.5, DAY], "dates"),
    (("2020-01-01T00:00:00+01:00",), [DAY - 3600], "dates"),
    (("2020/1/1", "2020/01/02 03:04"), [DAY, DAY + 86400 + 3 * 3600 + 4 * 60], "dates"),
    (("01.01.2020", "13.2.2020"), [DAY, DAY + 43 * 86400], "dates"),
    (("1/1/2020", "1/13/2020"), [DAY, DAY + 12 * 86400], "dates, month first"),
    (("1/1/2020", "13/1/2020 1:00:00"), [DAY, DAY + 12 * 86400 + 3600], "dates, day first"),
    (("Jan 1, 2020", "01 02, 2020", "3 January 2020"), [DAY, DAY + 86400, DAY + 2 * 86400], "dates"),
    (("Wed, 01 Jan 2020 00:00:00 GMT",), [DAY], "dates"),
    (("2020-01-01 00:00:00+00", "2020-01-01T00:00:00-0530", "2020-01-01T00:00:00,5"), [DAY, DAY + 19800, DAY + 0.5], "dates"),
    (("Jan 1, 2020 10:00 PM", "1 Jan 2020 12:05 am", "2020-01-01 1:05:06 p.m."),
     [DAY + 22 * 3600, DAY + 300, DAY + 13 * 3600 + 306], "dates"),
    (("1/1/2020 12:00 PM", "1/13/2020 12:00:30 AM"), [DAY + 12 * 3600, DAY + 12 * 86400 + 30], "dates, month first"),
    ((date(2020, 1, 1), datetime(2020, 1, 1, 1), datetime(2020, 1, 1, tzinfo=timezone(timedelta(hours=1)))),
     [DAY, DAY + 3600, DAY - 3600], "dates"),
])  # fmt: skip
def test_moments(values, seconds, kind):
    assert read(*values) == (pytest.approx(seconds, abs=1e-6), kind)


@pytest.mark.parametrize(
    "value",
    [
        "",
        None,
        "soon",
        10**400,
        "9" * 400,
        "2020-13-01",
        "32/1/2020",
        "nan",
        float("inf"),
        True,
        "1.13.2020",
        "2020-01-01 25:00",
        "1 Jan 2020 10:00 CET",
        "1/13/2020 13:05 PM",
        "2020-01-01 13:05 AM",
    ],
)
def test_no_moments(value):
    with pytest.raises(CellError):
        Moments().add(value)


def test_one_column_one_form():
    moments = Moments()
    moments.add(1577836800)
    with pytest.raises(CellError, match="'2020-01-01' is of another form than '1577836800' before"):
        moments.add("2020-01-01")


@pytest.mark.parametrize(
    "values, why", [(("3/4/2020", "5/6/2020"), "none of them tells"), (("13/1/2020", "1/13/2020"), "some fit the one")]
)
def test_days_that_may_be_months(values, why):
    with pytest.raises(ValueError, match=f"f: dates such as {values[0]!r} can be read .*{why}.*2020-12-31"):
        read(*values)
