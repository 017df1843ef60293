"""The measures of finished runs as tables: hand-worked means and deviations, and what is left out."""

import json
import math

import numpy as np
import pytest

from recbole_vlm2rec import cli
from recbole_vlm2rec.report.diagnostics import GEOMETRY, MARGINS, sections
from recbole_vlm2rec.report.runs import read_run
from recbole_vlm2rec.report.table_text import HTML


@pytest.fixture
def told(finished):
    """told("VLMSFT", seed, {"t2f": ranks}, key=value, …): a finished run with these ranks, whose result.json says this too."""

    def write(model, seed, ranks=None, **more):
        run = finished(model, seed, [1, 3])
        if ranks:
            more["modality_dropout"] = {asked: {} for asked in ranks}
            sides = {f"test_{asked}_ranks": values for asked, values in ranks.items()}
            np.savez_compressed(run.folder / "ranks.npz", **run.ranks, **sides)
        content = {**run.result, "epochs": 0, "seconds": {}, **more}
        (run.folder / "result.json").write_text(json.dumps(content))
        return read_run(run.folder)

    return write


def body(text):
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("| ")][1:]


RANKS = {"f2f": [1, 1], "t2f": [1, 3], "v2f": [3, 3]}


def test_modality_dropout_is_the_mean_over_seeds_with_its_deviation(told):
    runs = [told("VLMSFT", 1, RANKS), told("VLMSFT", 2, {**RANKS, "f2f": [1, 9], "v2f": [1, 1]})]
    # Hit@1: f2f 1 and 0.5, t2f 0.5 and 0.5, v2f 0 and 1; two values a and b deviate by |a - b| / sqrt(2).
    ((heading, text),) = sections(runs, metric="hit@1")
    assert heading == "Modality dropout (figure 1a)" and "Test Hit@1" in text
    assert body(text) == [["VLMSFT", "", "2", "0.7500 ± 0.3536", "0.5000 ± 0.0000", "0.5000 ± 0.7071"]]
    # Any metric, whatever the run itself reported: 1 / 1 and 1 / 9, and so on.
    ((_, text),) = sections(runs[1:], metric="mrr@10")
    assert body(text)[0][3:] == ["0.5556", "0.6667", "1.0000"]
    with pytest.raises(ValueError, match="'foo' is no metric"):
        list(sections(runs, metric="foo"))


def test_geometry_has_a_line_for_each_side_and_none_for_models_without(told):
    geometry = {
        side: {name: place + 10 * number for number, name in enumerate(GEOMETRY)} for place, side in enumerate(("fused", "text"))
    }
    ((heading, text),) = sections([told("VLM2Rec", 1, geometry=geometry), told("BPR", 1)])
    assert heading == "Geometry (table 1)"
    assert body(text) == [
        ["VLM2Rec", "fused", "1", *(f"{10 * number:.4f}" for number in range(6))],
        ["VLM2Rec", "text", "1", *(f"{1 + 10 * number:.4f}" for number in range(6))],
    ]


def test_margins_are_the_last_epochs(told):
    epochs = [{name: 0.0 for name in MARGINS}, {name: number / 4 for number, name in enumerate(MARGINS)}]
    found = dict(sections([told("VLM2Rec", 1, training=epochs)]))
    assert body(found["Margins and penalty"]) == [["VLM2Rec", "", "1", *(f"{number / 4:.4f}" for number in range(len(MARGINS)))]]
    # A model of RecBole's has epochs, but no margins.
    assert list(sections([told("SASRec", 1, training=[{"epoch": 0, "loss": 1.0}])])) == []


def test_gradient_alignment_begin_second_half_and_end(told):
    steps = [{"step": step, "epoch": 0, "text": text, "image": 1 - text} for step, text in enumerate((0.5, 0.1, 0.6, 0.8))]
    found = dict(sections([told("VLMSFT", 1, gradient_alignment=steps)]))
    assert body(found["Gradient alignment (figure 1b)"]) == [
        ["VLMSFT", "text", "1", "0.5000", "0.7000", "0.8000"],
        ["VLMSFT", "image", "1", "0.5000", "0.3000", "0.2000"],
    ]


def test_cost_is_minutes_an_epoch_and_seconds_to_embed(told):
    # Of three epochs the first two were another process's, which was interrupted.
    run = told("VLMSFT", 1, epochs=3, epochs_timed=1, seconds={"train": 30.0, "valid": 1e6}, embedding_seconds=2.5)
    found = dict(sections([run, told("BPR", 1, epochs=3, seconds={"train": 9.0})]))
    assert body(found["Cost (table 7)"]) == [["VLMSFT", "", "1", "0.7500", "0.5000", "2.5000"]]
    # Ranks 1 and 3: (1 + 1 / 2) / 2.
    assert math.isclose((1 + 1 / math.log2(4)) / 2, 0.75)


def test_names_are_escaped_on_a_page(told):
    ((_, text),) = sections([told("A<b>", 1, RANKS)], HTML)
    assert "A&lt;b&gt;" in text and "<b>" not in text


def test_the_command_prints_or_writes_and_refuses_runs_that_measured_nothing(told, tmp_path, capsys):
    run = told("VLMSFT", 1, RANKS)
    assert cli.main(["diagnostics", str(run.folder)]) == 0
    printed = capsys.readouterr().out
    assert cli.main(["diagnostics", str(run.folder), f"--out={tmp_path / 'd' / 'text.md'}"]) == 0
    assert (tmp_path / "d" / "text.md").read_text() == printed and "## Modality dropout" in printed
    other = told("BPR", 1)
    assert cli.main(["diagnostics", str(other.folder)]) == 2
    assert "none of these runs has measured its modalities" in capsys.readouterr().err
