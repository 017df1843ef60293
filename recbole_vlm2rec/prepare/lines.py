"""Large text files line by line: compressed or not, damaged or not, in bounded memory.

May import the standard library and tqdm only.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from tqdm import tqdm

LONGEST = 10_000_000
"""Bytes of the longest line that is read; a longer one is a bad line."""

_NAMED = 5


class BadLines:
    """Lines that could not be read: counted, the first ones named, too many an error."""

    def __init__(self, file: Path, max_share: float):
        self.file, self.max_share = file, max_share
        self.count = self.passed = 0
        self.first: list[tuple[int, str]] = []
        self.lines = 0

    def add(self, line: int, reason: str, lines: int = 1) -> None:
        """Counts a bad line, or a bad row that begins there and goes over several."""
        self.count += lines
        if len(self.first) < _NAMED:
            self.first.append((line, reason))

    def pass_over(self) -> None:
        """Counts a line that nobody needs to be able to read: it is not among those that the share is of."""
        self.passed += 1

    def close(self, total: int) -> None:
        """Call with the number of all lines. Raises ValueError when more than `max_share` of those needed were bad."""
        self.lines = total
        total -= self.passed
        if self.count > self.max_share * total:
            named = "; ".join(f"line {line}: {reason}" for line, reason in self.first)
            raise ValueError(
                f"{self.file}: {self.count} of {total} lines cannot be read, more than --max_bad_lines={self.max_share:g} "
                f"allows. {named}"
            )

    def report(self) -> dict:
        """For prepare.json."""
        return {"file": self.file.name, "lines": self.lines, "count": self.count, "first": [list(pair) for pair in self.first]}


def text_lines(file: Path, bad: BadLines) -> Iterator[tuple[int, bytes]]:
    """(line number from 1, bytes without line end) of a plain or gzip file, told apart by content; empty lines are left out.

    A line of more than 10 MB is a bad line. `bad.close` is called at the end. Raises ValueError for a file that is missing,
    or whose compressed stream is cut or damaged, with the line reached.
    """
    number = 0
    with open_with_progress(file) as stream:
        try:
            while line := stream.readline(LONGEST + 1):
                number += 1
                if len(line) > LONGEST:
                    bad.add(number, f"more than {LONGEST} bytes")
                    while not line.endswith(b"\n") and (line := stream.readline(LONGEST + 1)):
                        pass
                    continue
                if line := line.rstrip(b"\r\n"):
                    yield number, line
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise ValueError(
                f"{file}: the compressed file is damaged after line {number} ({error}); remove it, and the same command fetches "
                f"it again if it was downloaded; else put a whole copy there"
            ) from error
    bad.close(number)


@contextmanager
def open_with_progress(file: Path) -> Iterator[io.BufferedReader]:
    """The (uncompressed) bytes of a plain or gzip file, with a progress bar over the bytes read from disk."""
    try:
        raw = open(file, "rb")
    except OSError as error:
        raise ValueError(f"{file} cannot be opened: {error.strerror}") from error
    size = file.stat().st_size
    bar = tqdm(total=size, desc=f"Read {file.name}", unit="B", unit_scale=True, leave=False, mininterval=0.5)
    with raw, bar:
        compressed = raw.read(2) == b"\x1f\x8b"
        raw.seek(0)
        watched = _Watched(raw, bar)
        yield io.BufferedReader(gzip.GzipFile(fileobj=watched) if compressed else watched, buffer_size=1 << 16)


class _Watched(io.RawIOBase):
    """A file whose reading moves a progress bar."""

    def __init__(self, raw: BinaryIO, bar: tqdm):
        self._raw, self._bar = raw, bar

    def readable(self) -> bool:
        return True

    def readinto(self, buffer) -> int:
        count = self._raw.readinto(buffer)
        self._bar.update(count)
        return count


def file_facts(file: Path) -> dict:
    """Name, size and SHA-256, for prepare.json."""
    digest = hashlib.sha256()
    with open(file, "rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return {"file": file.name, "bytes": file.stat().st_size, "sha256": digest.hexdigest()}
