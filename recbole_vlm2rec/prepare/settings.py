"""What every preparation of real data shares: which interactions stay, how pictures are fetched and kept.

May import the standard library only. Each field is a flag of `recbole-vlm2rec prepare amazon` and `prepare table`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import Field, dataclass, field, fields
from pathlib import Path
from typing import Any

REPEATS = ("keep", "first", "last")


def _setting(default: Any, meaning: str, check: Callable[[Any], bool] = lambda value: True, must: str = "") -> Any:
    return field(default=default, metadata={"meaning": meaning, "check": check, "must": must})


def _count(default: int, meaning: str, least: int = 0) -> Any:
    return _setting(default, meaning, lambda value: value >= least, f"at least {least}")


def _share(default: float, meaning: str) -> Any:
    return _setting(default, meaning, lambda value: 0 <= value <= 1, "between 0 and 1")


def _seconds(default: float, meaning: str, zero: bool = False) -> Any:
    return _setting(default, meaning, lambda value: value >= 0 if zero else value > 0, "above 0" if not zero else "at least 0")


@dataclass(frozen=True)
class Settings:
    """Defaults follow the paper where it speaks (last, min_interactions). Raises ValueError for a value out of its range."""

    last: int = _count(10, "each user's latest interactions that are kept, before the core filter; 0 keeps all")
    min_interactions: int = _count(5, "users and items with fewer interactions go, until none is left (k-core); 1 keeps all", 1)
    repeats: str = _setting(
        "keep",
        "a user's further interactions with one item: keep, or only the first or last",
        REPEATS.__contains__,
        "keep, first or last",
    )
    max_bad_lines: float = _share(
        0.01, "share of unreadable lines in a file that is skipped (and reported) before it is an error"
    )
    max_failed_pictures: float = _share(0.25, "share of pictures that may fail (and be reported) before it is an error")
    longest_side: int = _count(448, "pictures are reduced to this many pixels on the longer side, never enlarged", 28)
    min_side: int = _count(8, "pictures with a side below this many pixels are placeholders and fail", 1)
    max_pixels: int = _count(64_000_000, "pictures with more pixels are not decoded and fail", 1)
    max_bytes: int = _count(20_000_000, "picture files beyond this many bytes are not read on and fail", 1)
    picture_cache: Path = _setting(Path("raw_data/pictures"), "folder of pictures fetched so far, shared by all data sets")
    concurrency: int = _count(64, "requests under way at a time", 1)
    per_host: int = _count(16, "requests under way at a time to one host", 1)
    pause: float = _seconds(0.0, "least seconds between the starts of two requests to one host", zero=True)
    retries: int = _count(4, "further tries after a failure that may pass (time-out, lost connection, 429, 5xx)")
    timeout: float = _seconds(30.0, "seconds without an answer or a further byte after which a try has failed")
    max_wait: float = _seconds(120.0, "longest wait in seconds that a server's Retry-After is granted", zero=True)
    allow_private: bool = _setting(False, "let URLs lead to private, local and link-local addresses")
    overwrite: bool = _setting(False, "replace a data set of this name that was prepared otherwise")

    def __post_init__(self) -> None:
        for setting in fields(self):
            value = getattr(self, setting.name)
            if not setting.metadata["check"](value):
                raise ValueError(f"{setting.name} must be {setting.metadata['must']}, got {value!r}")


def describe(setting: Field) -> str:
    """`meaning (default …)` of one field, for `--help`."""
    return f"{setting.metadata['meaning']} (default {setting.default})"
