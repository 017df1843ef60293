"""Seconds and memory go to the innermost phase."""

import numpy as np
import pytest

from recbole_vlm2rec import measure
from recbole_vlm2rec.measure import Meter


def test_seconds_of_nested_phases_are_counted_once(monkeypatch):
    clock = iter([0.0, 1.0, 4.0, 9.0, 16.0, 25.0])
    monkeypatch.setattr(measure.time, "perf_counter", lambda: next(clock))
    meter = Meter()
    with meter("train"):  # 0 to 9, less 1 to 4
        with meter("valid"):
            pass
    with meter("train"):  # 16 to 25
        pass
    assert meter.seconds == {"train": 1 + 5 + 9, "valid": 3}


def test_a_phase_counts_when_it_fails(monkeypatch):
    clock = iter([0.0, 2.0])
    monkeypatch.setattr(measure.time, "perf_counter", lambda: next(clock))
    meter = Meter()
    with pytest.raises(KeyboardInterrupt), meter("train"):
        raise KeyboardInterrupt
    assert meter.seconds == {"train": 2.0}


def test_peak_memory_belongs_to_the_phase_that_took_it():
    meter = Meter()
    with meter("before"):
        pass
    with meter("large"):
        block = np.ones(40 * 2**20)  # 320 MiB, touched
        del block
    peaks = meter.peak_memory_mib
    assert peaks["before"] > 10 and 300 < peaks["large"] - peaks["before"] < 400
