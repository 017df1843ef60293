"""The preparation's benchmark runs and says what it measured."""

import json

from recbole_vlm2rec.benchmark import preparation


def test_figures_and_table(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(preparation, "REPEATS", 1)
    figures = preparation.benchmark(json_file=tmp_path / "figures.json", plain_pictures=20)
    assert json.loads((tmp_path / "figures.json").read_text()) == figures
    assert figures["data"]["users"] == 3000 and figures["data"]["pictures"] == figures["data"]["items"] == 1500
    assert figures["ratio_to_plain_loop"] > 0 and min(figures["pictures_per_second"].values()) > 0
    printed = capsys.readouterr().out
    assert f"ratio {figures['ratio_to_plain_loop']:.1f}" in printed and "plain requests loop" in printed
