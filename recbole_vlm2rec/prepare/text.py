"""Titles and tokens as RecBole's reader and ours can keep them.

May import the standard library and data.atomic_files (for the words that RecBole reads as missing).
"""

from __future__ import annotations

import html
import re

from recbole_vlm2rec.data.atomic_files import MISSING_WORDS

# Control characters, line and paragraph separators, halves of surrogate pairs (which UTF-8 cannot hold).
_UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
_INSIDE_TOKEN = re.compile("[\\s\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
_SPACE = re.compile(r"\s+")


def clean_title(text: str) -> str:
    """One line of readable text; "" where nothing is left.

    HTML entities are replaced, control characters and line ends become blanks, runs of white space one blank. Leading double
    quotes go: RecBole's reader would take what follows, line after line, for one quoted cell. Everything else stays, at any
    length: emoji, joiners, right-to-left text, `NA`, `null`.
    """
    text = _SPACE.sub(" ", _UNPRINTABLE.sub(" ", html.unescape(text)))
    return text.lstrip(' "').rstrip()


def token_problem(token: str) -> str | None:
    """Why a user or item token cannot stand in a RecBole file, or None.

    Anything else may stand, slashes and dots too: tokens are data and never become file names.
    """
    if not token:
        return "is empty"
    if _INSIDE_TOKEN.search(token):
        return "holds white space or control characters"
    if token.startswith('"'):
        return "begins with a double quote"
    if token in MISSING_WORDS:
        return "is a word that RecBole reads as a missing value"
    return None
