"""What was written is what our catalogue, pandas as RecBole calls it, and RecBole itself read back."""

import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recbole_vlm2rec.data.catalog import Catalog
from recbole_vlm2rec.prepare import atomic
from recbole_vlm2rec.prepare.interactions import InteractionsBuilder
from recbole_vlm2rec.prepare.text import clean_title, token_problem

NASTY = st.text(st.one_of(st.sampled_from("\"'\t\n\r\\,;&#\u2028\u200d🎬שמ \x00Né"), st.characters()), max_size=12)
TITLES = NASTY.map(lambda title: clean_title(title) or "NA")
LETTERS = st.one_of(st.sampled_from("'/.,;&#NAé\\\u200d🎬שמ\""), st.characters(exclude_categories=("Cc", "Cs", "Zs", "Zl", "Zp")))
TOKENS = st.text(LETTERS, min_size=1, max_size=12).filter(lambda token: token_problem(token) is None)
# Eighths are exact in binary: what differs in the last digit would be pandas' own reading of decimals.
TIMES = st.one_of(st.integers(0, 2**40).map(float), st.integers(-(2**40), 2**40).map(lambda eighths: eighths / 8))


def read_as_recbole_does(file, types):
    """`recbole.data.dataset.Dataset._load_feat`: these arguments, the columns' types from the header."""
    header = file.read_text(encoding="utf-8").split("\n")[0].split("\t")
    dtype = {column: types.get(column.split(":")[1], str) for column in header}
    return pd.read_csv(file, delimiter="\t", dtype=dtype, encoding="utf-8", engine="python")


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(TOKENS, TITLES, TITLES), min_size=1, max_size=6, unique_by=lambda item: item[0]), st.data())
def test_reading_gives_what_was_meant(items, data):
    tokens = [item[0] for item in items]
    rows = data.draw(st.lists(st.tuples(TOKENS, st.sampled_from(tokens), TIMES), min_size=1, max_size=12))
    builder = InteractionsBuilder()
    for user, item, time in rows:
        builder.add(user, item, time)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        (folder / "p.jpg").write_bytes(b"x")
        atomic.write(
            folder, "shop", builder.build(), [(t, title, "p.jpg", extra) for t, title, extra in items], ["brand:token_seq"]
        )
        catalog = Catalog.read(folder, "shop")
        assert [(token, catalog.title(token)) for token in catalog.item_ids] == [item[:2] for item in items]
        table = read_as_recbole_does(folder / "shop.inter", {"float": np.float64})
        first = list(dict.fromkeys(user for user, _, _ in rows))
        meant = sorted(rows, key=lambda row: first.index(row[0]))  # stable: a user's rows keep their order
        assert list(table.itertuples(index=False, name=None)) == meant


def test_ratings_and_numbers(tmp_path):
    builder = InteractionsBuilder()
    builder.add("b", "x", 1400000000, 5.0)
    builder.add("a", "y", 0.5)
    builder.add("b", "y", 1e300, 3.5)
    atomic.write(tmp_path, "s", builder.build(), [("x", "X", "p"), ("y", "Y", "q")])
    assert (tmp_path / "s.inter").read_text() == (
        "user_id:token\titem_id:token\ttimestamp:float\trating:float\nb\tx\t1400000000\t5\nb\ty\t1e+300\t3.5\na\ty\t0.5\t\n"
    )
    assert (tmp_path / "s.item").read_text() == "item_id:token\ttitle:token_seq\timage_path:token\nx\tX\tp\ny\tY\tq\n"


def test_a_cell_that_breaks_a_line_is_never_published(tmp_path):
    builder = InteractionsBuilder()
    builder.add("a", "x", 1)
    with pytest.raises(RuntimeError, match="s.item does not read back"):
        atomic.write(tmp_path, "s", builder.build(), [("x", "two\tcells", "p")])


def test_recbole_reads_it(tmp_path):
    from recbole_vlm2rec.config import Config
    from recbole_vlm2rec.quick_start import prepare

    builder = InteractionsBuilder()
    users, items = [f"u{n}/../x" for n in range(12)], ["a/b", "con", "x" * 300, "naïve", "日本", "-1", "1e5", "'quoted'"]
    for place, user in enumerate(users):
        for step in range(6):
            builder.add(user, items[(place + step) % len(items)], 1_400_000_000 + step)
    folder = tmp_path / "shop"
    folder.mkdir()
    (folder / "p.jpg").write_bytes(b"x")
    titles = ["NA", "null", "nan", "it's", "a,b;c", "👩\u200d👧", "שלום", "x" * 10_000]
    atomic.write(folder, "shop", builder.build(), list(zip(items, titles, ["p.jpg"] * len(items))))
    chosen = {"data_path": str(tmp_path), "checkpoint_dir": str(tmp_path / "saved"), "eval_negatives": "full", "use_gpu": False}
    dataset, *_ = prepare(Config("SASRec", "shop", config_dict=chosen))
    assert set(dataset.field2id_token["user_id"][1:]) == set(users) and set(dataset.field2id_token["item_id"][1:]) == set(items)
    assert len(dataset.inter_feat) == 12 * 5  # of each user's six interactions, all but the first are targets
