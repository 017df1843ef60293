"""RecBole's atomic files, written so that RecBole and `data.catalog` read back what was meant.

May import interactions, numpy and the standard library.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from recbole_vlm2rec.prepare.interactions import Interactions


def write(
    folder: Path, name: str, interactions: Interactions, items: Iterable[Sequence[str]], extra_columns: Sequence[str] = ()
) -> None:
    """`<name>.inter` and `<name>.item` in `folder`.

    Args:
        interactions: rows in time order; written user after user (by first appearance), in that order.
        items: (token, title, image_path, *further cells) each, clean (`text`).
        extra_columns: names with types of the further cells.
    Raises OSError where the folder cannot be written, and RuntimeError if a file does not read back as it was meant.
    """
    rows = list(inter_lines(interactions))
    _write(folder / f"{name}.inter", rows)
    header = ["item_id:token", "title:token_seq", "image_path:token", *extra_columns]
    _write(folder / f"{name}.item", ["\t".join(header), *("\t".join(item) for item in items)])


def inter_lines(interactions: Interactions) -> Iterable[str]:
    """Header and lines of `.inter`."""
    rated = interactions.ratings is not None
    yield "user_id:token\titem_id:token\ttimestamp:float" + "\trating:float" * rated
    _, first, codes = np.unique(interactions.users, return_index=True, return_inverse=True)
    order = np.argsort(first[codes], kind="stable")
    users, items = interactions.user_tokens, interactions.item_tokens
    columns = [interactions.users[order].tolist(), interactions.items[order].tolist(), interactions.times[order].tolist()]
    if not rated:
        for user, item, time in zip(*columns):
            yield f"{users[user]}\t{items[item]}\t{_number(time)}"
        return
    for user, item, time, rating in zip(*columns, interactions.ratings[order].tolist()):
        yield f"{users[user]}\t{items[item]}\t{_number(time)}\t{'' if rating != rating else _number(rating)}"


def _number(value: float) -> str:
    """The shortest text that reads back as the same number."""
    return str(int(value)) if value.is_integer() and abs(value) < 2**53 else repr(value)


def _write(file: Path, lines: list[str]) -> None:
    content = "\n".join(lines) + "\n"
    with open(file, "w", encoding="utf-8", newline="\n") as stream:
        stream.write(content)
    # A disk that lies is found here, and so is a line end inside a cell.
    with open(file, encoding="utf-8", newline="") as stream:
        written = stream.read()
    width = lines[0].count("\t")
    if written != content or any(line.count("\t") != width for line in lines) or content.count("\n") != len(lines):
        raise RuntimeError(f"{file} does not read back as it was written")
