"""Tables of every kind give the same rows; what is broken is counted by lines or refused."""

import gzip
import json
from datetime import datetime, timezone

import pyarrow
import pyarrow.parquet
import pytest

from recbole_vlm2rec.prepare.lines import BadLines
from recbole_vlm2rec.prepare.table_readers import open_table


def read(file, share=0.0, encoding=None):
    bad = BadLines(file, share)
    table = open_table(file, bad, encoding)
    return table.columns, list(table.rows), bad


ROWS = [["a", 'say "hi", you'], ["b", "two\nlines"], ["c", ""]]


@pytest.mark.parametrize("name, separator", [("t.csv", ","), ("t.tsv", "\t"), ("t.txt", ";"), ("t", "|")])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_separated_tables(tmp_path, name, separator, end, encoding):
    lines = [f"item{separator}title", f'a{separator}"say ""hi"", you"', f'b{separator}"two\nlines"', "", f"c{separator}"]
    (tmp_path / name).write_bytes((end.join(lines) + end).encode(encoding))
    columns, rows, bad = read(tmp_path / name)
    assert columns == ["item", "title"] and [row for _, row in rows] == ROWS
    assert [number for number, _ in rows] == [2, 3, 6] and bad.report()["lines"] == 6


def test_gzip_and_json_lines(tmp_path):
    objects = [{"item": "a", "n": 1}, {"item": "b", "extra": [1, 2]}]
    content = "\n".join(json.dumps(line) for line in objects).encode()
    (tmp_path / "t.jsonl").write_bytes(content)
    (tmp_path / "t.jsonl.gz").write_bytes(gzip.compress(content))
    for name in ("t.jsonl", "t.jsonl.gz"):
        columns, rows, _ = read(tmp_path / name)
        assert columns == ["item", "n", "extra"] and rows == [(1, ["a", 1, None]), (2, ["b", None, [1, 2]])]
    (tmp_path / "t.csv.gz").write_bytes(gzip.compress(b"item,n\na,1\n"))
    assert read(tmp_path / "t.csv.gz")[1] == [(2, ["a", "1"])]


def test_parquet(tmp_path):
    moment = datetime(2020, 1, 1, 12, tzinfo=timezone.utc)
    columns = {
        "item": pyarrow.array([1, None]), "when": pyarrow.array([moment, moment], pyarrow.timestamp("ns", "UTC")),
        "urls": pyarrow.array([["a", "b"], []]), "kind": pyarrow.array(["x", "y"]).dictionary_encode(),
    }  # fmt: skip
    pyarrow.parquet.write_table(pyarrow.table(columns), tmp_path / "t.parquet")
    names, rows, bad = read(tmp_path / "t.parquet")
    assert names == list(columns) and bad.report()["lines"] == 2
    assert rows == [(1, [1, moment, ["a", "b"], "x"]), (2, [None, moment, [], "y"])]


def test_atomic_files_know_no_quotes(tmp_path):
    (tmp_path / "s.item").write_text('item_id:token\ttitle:token_seq\na\t12" plate\nb\t"quoted\n')
    assert [row for _, row in read(tmp_path / "s.item")[1]] == [["a", '12" plate'], ["b", '"quoted']]


def test_bad_rows_are_counted_by_the_lines_they_take(tmp_path):
    (tmp_path / "t.csv").write_bytes(b'item,title\na,b\none\nc,d,e\nf,"never\nclosed\nx,y\nz,last\n')
    # Lines 3 and 4, and 5 to 8, over which the open quote goes.
    with pytest.raises(ValueError, match=r"6 of 8 lines cannot be read"):
        read(tmp_path / "t.csv", share=0.5)
    columns, rows, bad = read(tmp_path / "t.csv", share=1.0)
    assert [row for _, row in rows] == [["a", "b"]] and bad.count == 6
    assert bad.first == [
        (3, "1 cells where the header has 2"), (4, "3 cells where the header has 2"), (5, "unexpected end of data"),
    ]  # fmt: skip
    (tmp_path / "t.csv").write_bytes(b'item,title\na,"b" c\nd,e\n\xe9,latin\n')
    columns, rows, bad = read(tmp_path / "t.csv", share=1.0)
    assert [row for _, row in rows] == [["d", "e"]] and [line for line, _ in bad.first] == [2, 4]


def test_a_wrong_encoding_names_the_flag(tmp_path):
    (tmp_path / "t.csv").write_bytes("item,title\na,café\n".encode("latin-1"))
    with pytest.raises(ValueError, match="line 2: not UTF-8: give --encoding=…"):
        read(tmp_path / "t.csv")
    assert read(tmp_path / "t.csv", encoding="latin-1")[1] == [(2, ["a", "café"])]
    with pytest.raises(ValueError, match="encoding 'klingon' is not known"):
        read(tmp_path / "t.csv", encoding="klingon")
    (tmp_path / "t.jsonl").write_bytes('{"a": "café"}\n'.encode("latin-1") + b'{"a": 1}\n')
    with pytest.raises(ValueError, match="line 1: not UTF-8: give --encoding=…"):
        read(tmp_path / "t.jsonl")


@pytest.mark.parametrize("name, content, words", [
    ("t.csv", b"", "is empty"), ("t.csv", b"only\na\n", "one column only, 'only'"), ("t.csv", b"1,2\n3,4\n", "1, 2 are no names"),
    ("t.json", b'[{"a": 1}]\n', "one JSON array"), ("t.jsonl", b"", "holds no JSON object"),
    ("t.parquet", b"PAR1 and no more", "no whole Parquet file"),
])  # fmt: skip
def test_what_is_no_table(tmp_path, name, content, words):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=words):
        read(tmp_path / name)


def test_a_missing_file(tmp_path):
    with pytest.raises(ValueError, match="none.csv does not exist"):
        read(tmp_path / "none.csv")


def test_a_title_of_a_million_letters(tmp_path):
    (tmp_path / "t.csv").write_text("item,title\na," + "x" * 1_000_000 + "\n")
    assert len(read(tmp_path / "t.csv")[1][0][1][1]) == 1_000_000
    import csv

    assert csv.field_size_limit() == 131_072
