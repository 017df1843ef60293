"""Lines of `.inter`: what is taken is what RecBole's own reader takes; everything else is named with file, line and remedy."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from recbole_vlm2rec.data.atomic_files import Interaction, Problem, read_interactions

HEADER = "user_id:token\titem_id:token\ttimestamp:float"


@pytest.fixture
def inter(tmp_path):
    """inter(content) -> the file shop.inter with this content."""
    file = tmp_path / "shop.inter"

    def write(content: str | bytes):
        file.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8"))
        return file

    return write


def problems(file, **options) -> list[Problem]:
    return [row for row in read_interactions(file, **options) if isinstance(row, Problem)]


def only_problem(file, **options) -> str:
    (problem,) = problems(file, **options)
    assert problem.remedy and str(problem).startswith(str(file)) and str(problem).endswith(problem.remedy)
    return problem.statement.removeprefix(str(file))


def as_recbole_reads(file) -> list[tuple]:
    """recbole.data.dataset.Dataset._load_feat, its call of pandas; nan where something is missing."""
    columns = HEADER.split("\t")
    kinds = {columns[0]: str, columns[1]: str, columns[2]: np.float64}
    frame = pd.read_csv(file, delimiter="\t", usecols=columns, dtype=kinds, encoding=None, engine="python")
    return list(frame[columns].itertuples(index=False, name=None))


def test_lines_by_hand(inter):
    rows = list(read_interactions(inter(f"{HEADER}\r\nu 1\ta/b\t1.5\r\n\n  \nú\t007\t-2e3")))
    assert rows == [Interaction(2, "u 1", "a/b", 1.5), Interaction(5, "ú", "007", -2000.0)]


def test_columns_in_any_order_beside_others(inter):
    rows = list(read_interactions(inter("rating:float\ttimestamp:float\titem_id:token\tuser_id:token\n\t3\ta\tu\n")))
    assert rows == [Interaction(2, "u", "a", 3.0)]


def test_other_names_separator_and_encoding(inter):
    file = inter("when:float,who:token,what:token\n3,u,é\n".encode("latin-1"))
    options = {"fields": ("who", "what", "when"), "separator": ",", "encoding": "latin-1"}
    assert list(read_interactions(file, **options)) == [Interaction(2, "u", "é", 3.0)]


ODD_CELLS = ["u", "a", "1", "2.5", "", " ", '"', '"a', 'a"', '"a"', '""', "NA", "null", "nAn", "inf", "\r", "a\rb", "\0", "x\0y"]
ODD_CELLS += ["1_0", "١", "1,5", "2020-01-01", "\x85", "\u2028", "\x1c", "\ufeff", "[PAD]", "#", "\\", "'", "1e400", "-0", "0x1"]
ODD_TIMES = ["1", "1_0", "١", " 1", "1e400", "-0", "0.1", "1e-400", "123456789012345678901", "\x851"]
LINES = st.lists(st.sampled_from(ODD_CELLS), min_size=0, max_size=4).map("\t".join) | st.tuples(
    st.sampled_from(ODD_CELLS), st.sampled_from(ODD_CELLS), st.sampled_from(ODD_TIMES)
).map("\t".join)


@settings(max_examples=400, deadline=None)
@given(st.lists(LINES | st.just("u\ta\t1"), max_size=4), st.sampled_from(["\n", "\r\n"]), st.booleans())
@example(["u\ta\t1\t2", "v\ta\t3"], "\n", True)  # pandas would take the first column for an index
@example(['u\t"a\t1', 'u\tb"\t2'], "\n", True)  # and would read on, to the next quote, lines below
def test_what_is_taken_is_what_recbole_reads(tmp_path_factory, lines, end, closed):
    file = tmp_path_factory.mktemp("odd") / "shop.inter"
    file.write_bytes((end.join([HEADER, *lines]) + end * closed).encode())
    rows = list(read_interactions(file))
    assert rows
    if all(isinstance(row, Interaction) for row in rows):
        assert [row[1:] for row in rows] == as_recbole_reads(file)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("u\ta", "line 3: 2 cells where the header has 3 columns"),
        ("u\ta\t1\t2", "line 3: 4 cells where the header has 3 columns"),
        ('u\t"a\t1', "line 3: a cell begins with a double quote"),
        ('"u"\ta\t1', "line 3: a cell begins with a double quote"),
        ("u\ta\rb\t1", "line 3: a carriage return or null character inside the line"),
        ("u\ta\0\t1", "line 3: a carriage return or null character inside the line"),
        ("\ta\t1", "line 3: no user_id"),
        ("u\tNULL\t1", "line 3: no item_id"),
        ("u\ta\tn/a", "line 3: no timestamp"),
        ("u\ta\t2014-07-23", "line 3: timestamp '2014-07-23' is not a number"),
        ("u\ta\tnAn", "line 3: timestamp 'nAn' is not a number"),
        ("u\ta\tinf", "line 3: timestamp 'inf' is not a number"),
        ("u\ta\tTrue", "line 3: timestamp 'True' is not a number"),
        ("u" * 131_073 + "\ta\t1", "line 3: a cell of more than 131072 characters"),
    ],
)
def test_a_bad_line(inter, line, message):
    assert only_problem(inter(f"{HEADER}\nu\ta\t1\n{line}\nu\tb\t2\n")) == f", {message}"


def test_the_lines_around_a_bad_one_are_still_read(inter):
    rows = list(read_interactions(inter(f"{HEADER}\nu\ta\t1\nu\nu\tb\tx\nu\tc\t2\n".encode() + b"u\t\xff\t3\nv\td\t4")))
    assert [row.line for row in rows] == [2, 3, 4, 5, 6, 7]
    assert [row.kind for row in rows if isinstance(row, Problem)] == [
        "wrong number of cells",
        "timestamp is not a number",
        "not UTF-8",
    ]


@pytest.mark.parametrize("quoted", ['a "b" c', 'x"', '"whole"', '"a ""b"" c"'])
def test_quotes_that_change_nothing_may_stand(inter, quoted):
    """Inside a cell, or around a cell of a column that nobody reads."""
    rows = list(read_interactions(inter(f"{HEADER}\tnote:token\nu\ta\t1\t{quoted}\nv\tb\t2\tz\n")))
    assert rows == [Interaction(2, "u", "a", 1.0), Interaction(3, "v", "b", 2.0)]


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ("user_id:token\titem_id:token", ", line 1: no column timestamp; it has user_id, item_id"),
        ("user_id\titem_id\ttimestamp", ", line 1: column 'user_id' has no type of RecBole's"),
        (f"{HEADER}\trating", ", line 1: column 'rating' has no type of RecBole's"),
        (f"{HEADER}\trating:int", ", line 1: column 'rating:int' has no type of RecBole's"),
        (f"{HEADER}\t", ", line 1: column '' has no type of RecBole's"),
        (f"{HEADER}\titem_id:token", ", line 1: column item_id stands there twice"),
        (HEADER.replace("float", "token"), ", line 1: column timestamp:token must be timestamp:float"),
        (f"\ufeff{HEADER}", ", line 1: begins with a byte-order mark"),
        (f'"{HEADER}', ", line 1: a cell begins with a double quote"),
        (f"{HEADER}\ru", ", line 1: a carriage return or null character inside the line"),
        ("", ", line 1: no column user_id, item_id, timestamp; it has "),
    ],
)
def test_a_bad_header(inter, header, message):
    assert only_problem(inter(f"{header}\nu\ta\t1\n")) == message


@pytest.mark.parametrize("content", [HEADER, f"{HEADER}\n", f"{HEADER}\n\n  \n"])
def test_no_interactions(inter, content):
    assert only_problem(inter(content)) == " has no interactions"


def test_a_missing_file_and_a_folder_in_its_place(tmp_path):
    assert only_problem(tmp_path / "shop.inter") == " does not exist"
    assert only_problem(tmp_path) == " cannot be read (Is a directory)"
