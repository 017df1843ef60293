"""Titles and tokens: what RecBole's reader would lose is cleaned or named, everything else stays."""

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pandas._libs.parsers import STR_NA_VALUES

from recbole_vlm2rec.data.atomic_files import MISSING_WORDS
from recbole_vlm2rec.prepare.text import clean_title, token_problem


@pytest.mark.parametrize("raw, clean", [
    ("  two\twords\n and\r\nmore ", "two words and more"),
    ("Soap &amp; Water &#39;n&quot; &lt;b&gt;", "Soap & Water 'n\" <b>"),
    ("bell\x07, null\x00, next\x85line", "bell , null , next line"),
    ("one\u2028two\u2029three\u00a0four", "one two three four"),
    ('"quoted', "quoted"),
    ('" ""twice" over', 'twice" over'),
    ("&quot;entity", "entity"),
    ("half \ud83d of a pair", "half of a pair"),
    ("👩\u200d👩\u200d👧 שלום مرحبا", "👩\u200d👩\u200d👧 שלום مرحبا"),
    ("NA", "NA"), ("null", "null"),
    ("x" * 10_000, "x" * 10_000),
    ("\t \n", ""), ('"', ""), ("", ""),
])  # fmt: skip
def test_titles(raw, clean):
    assert clean_title(raw) == clean


@given(st.text())
def test_a_clean_title_is_one_line_that_utf8_and_the_reader_keep(text):
    title = clean_title(text)
    assert title.encode("utf-8").decode("utf-8") == title
    assert title.split() == title.split(" ") or title == ""
    assert not title.startswith('"') and not any(unicodedata.category(letter) in ("Cc", "Cs", "Zl", "Zp") for letter in title)


@pytest.mark.parametrize("token", ["B00X", "../../etc/passwd", "a/b", "con", "x" * 300, "naïve", "-", 'in"side', "null2"])
def test_tokens_that_may_stand(token):
    assert token_problem(token) is None


@pytest.mark.parametrize("token, words", [
    ("", "is empty"), ("a b", "white space"), ("a\tb", "white space"), ("a\x00", "control characters"), ("\ud83d", "control"),
    ('"a', "double quote"), ("NA", "missing value"), ("null", "missing value"), ("None", "missing value"),
])  # fmt: skip
def test_tokens_that_may_not(token, words):
    assert words in token_problem(token)


def test_the_missing_words_are_those_of_pandas():
    assert MISSING_WORDS == set(STR_NA_VALUES)
