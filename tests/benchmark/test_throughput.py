"""The benchmark measures what it names; how fast is for people to read."""

import json

import pytest

from recbole_vlm2rec.benchmark.throughput import benchmark
from recbole_vlm2rec.prepare.minishop import generate


def test_figures_belong_together(tmp_path, capsys):
    generate(tmp_path, "shop", seed=11, users=100, items=120)
    result = benchmark("shop", tmp_path, users=20, json_file=tmp_path / "out" / "figures.json")
    assert json.loads((tmp_path / "out" / "figures.json").read_text()) == result
    assert (result["users"], result["items"]) == (20, 120)
    seconds, rates = result["seconds"], result["per_second"]
    assert rates["users trained"] * seconds["train one epoch"] == pytest.approx(20)
    assert rates["histories evaluated"] * seconds["evaluate users"] == pytest.approx(40)
    assert rates["items, pictures kept"] * seconds["embed items, pictures kept"] == pytest.approx(120)
    assert set(result["peak_memory_mib"]) == set(seconds) and min(seconds.values()) > 0
    assert result["machine"]["cores"] >= 1 and result["machine"]["device"]
    printed = capsys.readouterr().out
    assert "| train one epoch |" in printed and "users/s" in printed
