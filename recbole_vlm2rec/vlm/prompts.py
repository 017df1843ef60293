"""The paper's prompts (section 2.2.1) as runs of text and pictures, before any tokenizer or model.

Imports nothing but the standard library.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from pathlib import Path

TEXT_INSTRUCTION = "Describe this item text sequence in one word,\n"
IMAGE_INSTRUCTION = "Describe this item image sequence in one word,\n"
INTERLEAVED_INSTRUCTION = "Describe this item sequence in one word,\n"


class Picture:
    """A place in a prompt that a picture fills: the path of a file, or an open PIL image (equal to itself only)."""

    __slots__ = ("source", "key")

    def __init__(self, source):
        self.source = source
        self.key: Hashable = source if isinstance(source, Path) else id(source)

    def __eq__(self, other) -> bool:
        return isinstance(other, Picture) and self.key == other.key

    def __hash__(self) -> int:
        return hash(self.key)


Prompt = tuple[str | Picture, ...]


def text_prompt(titles: Sequence[str]) -> Prompt:
    """`Describe this item text sequence in one word,` newline `0) <title>, 1) <title>, …`; titles oldest first."""
    return (TEXT_INSTRUCTION + ", ".join(f"{entry}) {title}" for entry, title in enumerate(titles)),)


def image_prompt(pictures: Sequence) -> Prompt:
    """`Describe this item image sequence in one word,` newline `0) <image>, 1) <image>, …`; pictures oldest first."""
    prompt: list[str | Picture] = []
    for entry, picture in enumerate(pictures):
        prompt += [f"{', ' if entry else IMAGE_INSTRUCTION}{entry}) ", Picture(picture)]
    return tuple(prompt)


def interleaved_prompt(items: Sequence[tuple]) -> Prompt:
    """`Describe this item sequence in one word,` newline `0) <title> <image>, 1) …`; items oldest first."""
    prompt: list[str | Picture] = []
    for entry, (title, picture) in enumerate(items):
        prompt += [f"{', ' if entry else INTERLEAVED_INSTRUCTION}{entry}) {title} ", Picture(picture)]
    return tuple(prompt)
