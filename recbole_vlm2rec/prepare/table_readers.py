"""Tables of any common kind as rows of cells: CSV and its kin, JSON lines, Parquet, RecBole's atomic files.

May import lines, and pyarrow when a Parquet file is read.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import Path
from typing import Any

from recbole_vlm2rec.prepare.lines import LONGEST, BadLines, open_with_progress, text_lines

Row = tuple[int, list[Any]]
_ATOMIC = (".inter", ".item", ".user")
_JSON = (".jsonl", ".ndjson", ".json")
_PARQUET = (".parquet", ".pq")
_SEPARATORS = "\t;,|"
BEGINNING = 1000
"""JSON lines looked at to learn which fields there are."""


@dataclass(frozen=True)
class Table:
    """`columns`, and `rows` to be gone through once: (line number, a cell for each column: text, number, date, list or None).

    `late`: fields of JSON lines that first stand after the lines looked at, and are no columns; filled as rows are read.
    """

    file: Path
    columns: list[str]
    rows: Iterator[Row]
    late: list[str] = field(default_factory=list)


def open_table(file: Path, bad: BadLines, encoding: str | None = None) -> Table:
    """Opens a table by its name's ending (`.gz` aside), or by its first bytes where that says nothing.

    `bad` takes the rows that cannot be read, and is closed at the end of the rows. Raises ValueError for a file that is missing,
    empty, not of its kind, or in an unknown encoding.
    """
    if not file.is_file():
        raise ValueError(f"{file} does not exist or is no file")
    ending = (file.with_suffix("") if file.suffix == ".gz" else file).suffix.lower()
    with open(file, "rb") as stream:
        start = stream.read(4)
    if ending in _PARQUET or start == b"PAR1":
        return _parquet(file, bad)
    if start == b"PK\x03\x04":
        raise ValueError(f"{file} is an archive or a workbook; save its table as CSV (UTF-8)")
    if ending in _JSON or start[:1] == b"{":
        return _json_lines(file, bad, encoding)
    return _separated(file, bad, encoding, quoted=ending not in _ATOMIC)


def _separated(file: Path, bad: BadLines, encoding: str | None, quoted: bool) -> Table:
    rows = _separated_rows(file, bad, encoding, quoted)
    header = next(rows, None)
    if header is None:
        raise ValueError(f"{file} is empty: its first line must name the columns")
    columns = [str(name).strip() for name in header[1]]
    if len(columns) < 2:
        raise ValueError(f"{file}, line 1: one column only, {columns[0]!r}; columns are separated by tab, semicolon, comma or |")
    if all(name.replace(".", "").replace("-", "").isdigit() for name in columns):
        raise ValueError(f"{file}, line 1: {', '.join(columns)} are no names; the first line must name the columns")
    return Table(file, columns, rows)


def _separated_rows(file: Path, bad: BadLines, encoding: str | None, quoted: bool) -> Iterator[Row]:
    """The header as it is, then rows with as many cells; a quoted cell may go over several lines."""
    with open_with_progress(file) as stream:
        text = _decoded(stream, file, encoding)
        head = _head(text, file)
        separator = max(_SEPARATORS, key=head[-1].count) if quoted else "\t"
        # Strict: a quote that is never closed would otherwise make one cell of the rest of the file, in silence.
        quoting = csv.QUOTE_MINIMAL if quoted else csv.QUOTE_NONE
        reader = csv.reader(chain(head, text), delimiter=separator, quoting=quoting, strict=True)
        width, line = 0, 1
        while True:
            try:
                cells = _next(reader)
            except (EOFError, zlib.error, gzip.BadGzipFile, UnicodeError) as error:
                raise _damaged(file, line, error) from error
            except csv.Error as error:
                if not width:
                    raise ValueError(f"{file}, line {line}: the names of the columns cannot be read: {error}") from error
                bad.add(line, str(error), reader.line_num - line + 1)
                line = reader.line_num + 1
                continue
            if cells is None:
                break
            number, line = line, reader.line_num + 1
            if not cells:
                continue
            undecoded = any("\udc80" <= letter <= "\udcff" for cell in cells if not cell.isascii() for letter in cell)
            if not width:
                width = len(cells)
                if undecoded:  # skipped like another line, it would make the first row the header
                    raise ValueError(f"{file}, line {number}: not {encoding or 'UTF-8'}: give --encoding=…")
            elif len(cells) != width:
                bad.add(number, f"{len(cells)} cells where the header has {width}", line - number)
                continue
            if undecoded:
                bad.add(number, f"not {encoding or 'UTF-8'}: give --encoding=…", line - number)
                continue
            yield number, cells
        bad.close(line - 1)


def _next(reader: Iterator[list[str]]) -> list[str] | None:
    """The next row. The limit on cells is the whole process's: raised for this one row, it is never left so."""
    before = csv.field_size_limit(LONGEST)
    try:
        return next(reader, None)
    finally:
        csv.field_size_limit(before)


def _head(text: io.TextIOWrapper, file: Path) -> list[str]:
    """The lines up to the first that is not empty, without a byte-order mark."""
    lines: list[str] = []
    try:
        while line := text.readline():
            lines.append(line if lines else line.removeprefix("\ufeff"))
            if lines[-1].strip():
                break
    except (EOFError, zlib.error, gzip.BadGzipFile, UnicodeError) as error:
        raise _damaged(file, len(lines) + 1, error) from error
    return lines or [""]


def _damaged(file: Path, line: int, error: Exception) -> ValueError:
    if isinstance(error, UnicodeError):
        return ValueError(f"{file}: not in its encoding from line {line} on, or cut short ({error}): give --encoding=…")
    return ValueError(f"{file}: the compressed file is damaged after line {line - 1} ({error}); put a whole copy there")


def _decoded(stream: io.BufferedReader, file: Path, encoding: str | None) -> io.TextIOWrapper:
    """Text whose undecodable bytes come out as lone surrogates, which no encoding gives otherwise."""
    try:
        start = stream.peek(4)[:4]
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise _damaged(file, 1, error) from error
    if encoding is None:
        encoding = "utf-16" if start[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    try:
        return io.TextIOWrapper(stream, encoding=encoding, errors="surrogateescape", newline="")
    except LookupError as error:
        raise ValueError(f"encoding {encoding!r} is not known; utf-8, utf-16, latin-1, cp1252, gb18030 … are") from error


def _json_lines(file: Path, bad: BadLines, encoding: str | None) -> Table:
    objects = _json_objects(file, bad, encoding)
    beginning = list(islice(objects, BEGINNING))
    if not beginning:
        raise ValueError(f"{file} holds no JSON object; one is expected on each line")
    columns = list(dict.fromkeys(name for _, line in beginning for name in line))
    known, late = set(columns), []

    def rows() -> Iterator[Row]:
        for number, line in chain(beginning, objects):
            if not known.issuperset(line):
                new = [name for name in line if name not in known]
                late.extend(new)
                known.update(new)
            yield number, [line.get(name) for name in columns]

    return Table(file, columns, rows(), late)


def _json_objects(file: Path, bad: BadLines, encoding: str | None) -> Iterator[tuple[int, dict]]:
    try:
        one_byte = len("\n\n".encode(encoding or "utf-8")) - len("\n".encode(encoding or "utf-8")) == 1
    except LookupError as error:
        raise ValueError(f"encoding {encoding!r} is not known; utf-8, latin-1, cp1252, gb18030 … are") from error
    for number, line in text_lines(file, bad):
        if not one_byte or line.startswith((b"\xff\xfe", b"\xfe\xff")):
            raise ValueError(f"{file}: JSON lines are not read from UTF-16 or UTF-32; write them as UTF-8 (iconv -t utf-8)")
        if number == 1 and line.lstrip(b"\xef\xbb\xbf \t").startswith(b"["):
            raise ValueError(f"{file} is one JSON array; write one object a line (jq -c '.[]')")
        try:
            parsed = json.loads(line.decode(encoding or "utf-8-sig"))
        except UnicodeDecodeError:
            bad.add(number, f"not {encoding or 'UTF-8'}: give --encoding=…")
        except (ValueError, RecursionError):
            bad.add(number, "not JSON")
        else:
            if isinstance(parsed, dict):
                yield number, parsed
            else:
                bad.add(number, "no JSON object")


def _parquet(file: Path, bad: BadLines) -> Table:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise ValueError(f'{file}: Parquet needs pyarrow: pip install "recbole-vlm2rec[parquet]" ({error})') from error
    try:
        opened = pyarrow.parquet.ParquetFile(file)
    except (OSError, pyarrow.ArrowException) as error:
        raise ValueError(f"{file} is no whole Parquet file: {error}") from error

    def rows() -> Iterator[Row]:
        number = 0
        batches = opened.iter_batches(batch_size=65_536)
        while True:
            try:
                batch = next(batches, None)
                columns = [] if batch is None else [_values(column) for column in batch.columns]
            except (OSError, ValueError, OverflowError, pyarrow.ArrowException) as error:
                raise ValueError(f"{file}: the Parquet file cannot be read after row {number}: {error}") from error
            if batch is None:
                break
            for cells in zip(*columns):
                number += 1
                yield number, list(cells)
        bad.close(number)

    return Table(file, opened.schema_arrow.names, rows())


def _values(column: Any) -> list[Any]:
    """Python values; nanoseconds, which Python's dates do not have, are cut to microseconds. Bytes that are UTF-8 are text:
    many writers leave out the mark that says so."""
    import pyarrow

    if pyarrow.types.is_timestamp(column.type):
        column = column.cast(pyarrow.timestamp("us", column.type.tz), safe=False)
    values = column.to_pylist()
    return [_as_text(value) for value in values] if any(isinstance(value, bytes) for value in values) else values


def _as_text(value: Any) -> Any:
    try:
        return value.decode() if isinstance(value, bytes) else value
    except UnicodeDecodeError:
        return value
