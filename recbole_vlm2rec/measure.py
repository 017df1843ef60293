"""Seconds and peak memory of a run, by phase.

May import the standard library and torch (only when it is loaded already, for the GPU's counters).
"""

from __future__ import annotations

import contextlib
import re
import resource
import sys
import time
from collections.abc import Iterator
from pathlib import Path

MIB = 2**20


class Meter:
    """`with meter("train"): ...` adds up wall-clock seconds and takes the peak of memory; phases may nest.

    A nested phase counts for itself, not for the one around it (validation runs inside training). `seconds[phase]`;
    `peak_memory_mib[phase]` is the process's resident high-water mark, and `peak_memory_mib[phase + "_gpu"]` the allocated
    GPU memory's. Where the kernel does not let a process reset its mark, a phase shows the peak of all phases so far.
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.peak_memory_mib: dict[str, float] = {}
        self._open: list[str] = []
        self._since = 0.0

    @contextlib.contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        self._account()
        self._open.append(phase)
        try:
            yield
        finally:
            self._account()
            self._open.pop()

    def _account(self) -> None:
        """Credits what passed since the last change of phase to the innermost open phase."""
        now = time.perf_counter()
        if self._open:
            phase = self._open[-1]
            self.seconds[phase] = self.seconds.get(phase, 0.0) + now - self._since
            self._raise(phase, _resident_peak())
            if _cuda() is not None:
                self._raise(f"{phase}_gpu", _cuda().max_memory_allocated() / MIB)
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")
        if _cuda() is not None:
            _cuda().reset_peak_memory_stats()
        self._since = now

    def _raise(self, key: str, mib: float) -> None:
        self.peak_memory_mib[key] = round(max(mib, self.peak_memory_mib.get(key, 0.0)), 1)


def _resident_peak() -> float:
    """The process's resident high-water mark in MiB."""
    with contextlib.suppress(OSError):
        found = re.search(r"^VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
        if found:
            return int(found[1]) * 1024 / MIB
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / MIB if sys.platform == "darwin" else peak * 1024 / MIB


def _cuda():
    """torch.cuda once this process uses a GPU, else None."""
    torch = sys.modules.get("torch")
    return torch.cuda if torch is not None and torch.cuda.is_available() and torch.cuda.is_initialized() else None
