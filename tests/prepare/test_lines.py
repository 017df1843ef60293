"""Lines of plain and compressed files: bad ones counted and named, damage said with the line reached."""

import gzip
import hashlib

import pytest

from recbole_vlm2rec.prepare import lines
from recbole_vlm2rec.prepare.lines import BadLines, file_facts, text_lines


def read(file, share=0.01):
    bad = BadLines(file, share)
    return list(text_lines(file, bad)), bad


@pytest.mark.parametrize("compress", [gzip.compress, bytes])
def test_lines_are_numbered_and_empty_ones_left_out(tmp_path, compress):
    file = tmp_path / "data.json.gz"  # told apart by content, not by name
    file.write_bytes(compress(b"one\r\n\n  two\nthree"))
    found, bad = read(file)
    assert found == [(1, b"one"), (3, b"  two"), (4, b"three")]
    assert bad.report() == {"file": "data.json.gz", "lines": 4, "count": 0, "first": []}


def test_a_cut_file_names_the_line_reached(tmp_path):
    file = tmp_path / "cut.gz"
    whole = gzip.compress(b"".join(b"%d %s\n" % (number, hashlib.sha256(b"%d" % number).digest().hex().encode())
                                   for number in range(20_000)))  # fmt: skip
    file.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"cut.gz: the compressed file is damaged after line \d{4,5} .*remove it"):
        read(file)


def test_a_damaged_stream_is_said(tmp_path):
    file = tmp_path / "damaged.gz"
    whole = bytearray(gzip.compress(b"line\n" * 100_000))
    whole[len(whole) // 2] ^= 0xFF
    file.write_bytes(bytes(whole))
    with pytest.raises(ValueError, match="damaged.gz: the compressed file is damaged after line"):
        read(file)


def test_a_missing_file_is_said(tmp_path):
    with pytest.raises(ValueError, match="none.gz cannot be opened: No such file"):
        read(tmp_path / "none.gz")


def test_a_line_too_long_is_a_bad_line_and_does_not_fill_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(lines, "LONGEST", 100)
    file = tmp_path / "long"
    file.write_bytes(b"short\n" + b"x" * 1000 + b"\nafter\n" + b"y" * 100 + b"\n")
    bad = BadLines(file, 0.5)
    assert [number for number, _ in text_lines(file, bad)] == [1, 3]
    assert bad.report()["first"] == [[2, "more than 100 bytes"], [4, "more than 100 bytes"]]


def test_bad_lines_up_to_the_share_are_reported_and_beyond_it_an_error(tmp_path):
    file = tmp_path / "data"
    for count, share in ((2, 0.02), (0, 0.0)):
        bad = BadLines(file, share)
        for line in range(count):
            bad.add(line + 1, "no asin")
        bad.close(100)
        assert bad.report()["count"] == count
    bad = BadLines(file, 0.02)
    for _ in range(90):
        bad.pass_over()  # of ten lines that are needed, one is bad
    bad.add(1, "no asin")
    with pytest.raises(ValueError, match="1 of 10 lines"):
        bad.close(100)
    bad = BadLines(file, 0.02)
    for line in range(7):
        bad.add(line + 10, f"reason {line}")
    with pytest.raises(ValueError) as error:
        bad.close(100)
    assert "7 of 100 lines cannot be read, more than --max_bad_lines=0.02 allows" in str(error.value)
    assert (
        "line 10: reason 0" in str(error.value) and "line 14: reason 4" in str(error.value) and "line 15" not in str(error.value)
    )


def test_file_facts(tmp_path):
    (tmp_path / "x").write_bytes(b"abc")
    # SHA-256 of "abc": FIPS 180-2, appendix B.1.
    assert file_facts(tmp_path / "x") == {
        "file": "x", "bytes": 3, "sha256": "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad",
    }  # fmt: skip
