"""Tables of every kind give the same rows; what is broken is counted by lines or refused."""

import csv
import gzip
import json
import sys
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


@pytest.mark.parametrize("kept", [12, 0.5, 0.99])
def test_a_cut_gzip_table_is_one_clear_error(tmp_path, kept):
    rows = "".join(f"u{number},{number * 7919 % 99_991}\n" for number in range(20_000))
    whole = gzip.compress(f"user,item\n{rows}".encode())
    (tmp_path / "t.csv.gz").write_bytes(whole[: kept if kept > 1 else int(kept * len(whole))])
    with pytest.raises(ValueError, match=r"t\.csv\.gz: the compressed file is damaged after line \d+ .*put a whole copy there"):
        read(tmp_path / "t.csv.gz", share=1.0)


def test_a_gzip_table_with_other_bytes_inside(tmp_path):
    whole = bytearray(gzip.compress(b"user,item\n" + b"".join(b"u%d,%d\n" % (n, n * 7919 % 99_991) for n in range(20_000))))
    whole[len(whole) // 2 : len(whole) // 2 + 50] = bytes(50)
    (tmp_path / "t.csv.gz").write_bytes(whole)
    with pytest.raises(ValueError, match="the compressed file is damaged"):
        read(tmp_path / "t.csv.gz", share=1.0)


def test_a_cut_utf_16_table_and_utf_16_json_lines(tmp_path):
    (tmp_path / "t.csv").write_bytes("item,title\na,b\n".encode("utf-16")[:-1])
    with pytest.raises(ValueError, match="or cut short .*: give --encoding"):
        read(tmp_path / "t.csv", share=1.0)
    (tmp_path / "t.jsonl").write_bytes('{"item": 1}\n'.encode("utf-16"))
    for encoding in (None, "utf-16"):
        with pytest.raises(ValueError, match="write them as UTF-8"):
            read(tmp_path / "t.jsonl", share=1.0, encoding=encoding)


def test_a_header_that_cannot_be_decoded_is_no_line_to_skip(tmp_path):
    (tmp_path / "t.csv").write_bytes("usuário,item\nu,i\n".encode("latin-1"))
    with pytest.raises(ValueError, match="t.csv, line 1: not UTF-8: give --encoding=…"):
        read(tmp_path / "t.csv", share=1.0)
    (tmp_path / "t.csv").write_bytes(b'"user"x,item\nu,i\n')
    with pytest.raises(ValueError, match="t.csv, line 1: the names of the columns cannot be read"):
        read(tmp_path / "t.csv", share=1.0)


def test_empty_lines_and_a_mark_before_the_header(tmp_path):
    (tmp_path / "t.csv").write_bytes(b"\r\n\r\nitem;title\r\na;b\r\n")
    assert read(tmp_path / "t.csv")[:2] == (["item", "title"], [(4, ["a", "b"])])
    (tmp_path / "t.csv").write_bytes(b"\xef\xbb\xbfitem,title\na,b\n")
    assert read(tmp_path / "t.csv", encoding="utf-8")[0] == ["item", "title"]


def test_fields_that_come_late_are_named(tmp_path):
    lines = [{"item": n} for n in range(1000)] + [{"item": 1000, "rating": 5, "shop": 1}, {"item": 1001, "rating": 4}]
    (tmp_path / "t.jsonl").write_text("\n".join(map(json.dumps, lines)))
    table = open_table(tmp_path / "t.jsonl", BadLines(tmp_path / "t.jsonl", 0.0))
    assert [row for _, row in table.rows] == [[n] for n in range(1002)] and table.late == ["rating", "shop"]


def test_bytes_in_parquet_are_text_where_they_are_utf_8(tmp_path):
    pyarrow.parquet.write_table(pyarrow.table({"a": ["é".encode(), b"\xff", None], "b": [1, 2, 3]}), tmp_path / "t.parquet")
    assert [row for _, row in read(tmp_path / "t.parquet")[1]] == [["é", 1], [b"\xff", 2], [None, 3]]


def test_a_parquet_file_damaged_inside(tmp_path):
    pyarrow.parquet.write_table(
        pyarrow.table({"a": [f"user{n}" for n in range(50_000)], "b": [0] * 50_000}), tmp_path / "t.parquet"
    )
    content = bytearray((tmp_path / "t.parquet").read_bytes())
    content[2000:6000] = b"\xff" * 4000
    (tmp_path / "t.parquet").write_bytes(content)
    with pytest.raises(ValueError, match="t.parquet: the Parquet file cannot be read after row 0"):
        read(tmp_path / "t.parquet", share=1.0)


def test_parquet_without_pyarrow_names_the_extra(tmp_path, monkeypatch):
    pyarrow.parquet.write_table(pyarrow.table({"a": [1]}), tmp_path / "t.parquet")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ValueError, match=r'pip install "recbole-vlm2rec\[parquet\]"'):
        read(tmp_path / "t.parquet")


def test_a_workbook(tmp_path):
    (tmp_path / "t.xlsx").write_bytes(b"PK\x03\x04 and more")
    with pytest.raises(ValueError, match="t.xlsx is an archive or a workbook; save its table as CSV"):
        read(tmp_path / "t.xlsx")


def test_a_missing_file(tmp_path):
    with pytest.raises(ValueError, match="none.csv does not exist"):
        read(tmp_path / "none.csv")


def test_a_title_of_a_million_letters(tmp_path):
    (tmp_path / "t.csv").write_text("item,title\na," + "x" * 1_000_000 + "\n")
    assert len(read(tmp_path / "t.csv")[1][0][1][1]) == 1_000_000
    open_tables = [open_table(tmp_path / "t.csv", BadLines(tmp_path / "t.csv", 0.0)) for _ in range(2)]
    assert csv.field_size_limit() == 131_072  # the whole process's, also while tables are open
    assert [len(next(table.rows)[1][1]) for table in open_tables] == [1_000_000] * 2
