"""Plots hold what the runs say: series, places, means."""

import json

import numpy as np
import pytest

from recbole_vlm2rec.analysis.cold_start import Bucket
from recbole_vlm2rec.report import plots
from recbole_vlm2rec.report.cold_start_table import ColdStartRow
from recbole_vlm2rec.report.runs import read_run


@pytest.fixture
def rows(finished):
    """rows({"VLMSFT": [{key: value}, …]}): runs by row and seed, one seed for each dictionary of what result.json says too."""

    def write(content):
        found = {}
        for row, results in content.items():
            for seed, more in enumerate(results):
                run = finished(row, seed, [1, 2])
                (run.folder / "result.json").write_text(json.dumps({**run.result, **more}))
                found.setdefault(row, {})[seed] = read_run(run.folder)
        return found

    return write


def series(figure):
    return {trace.name: (list(trace.x), list(trace.y)) for trace in figure.data}


def epochs(*values):
    return {"training": [{"epoch": number, "loss": 1.0, "valid": {"ndcg@20": value}} for number, value in enumerate(values)]}


def test_result_bars_show_the_mean_and_the_deviation_over_seeds(finished):
    # Hit@1 of ranks 1, 2 and of ranks 1, 1: 0.5 and 1, which deviate by 0.5 / sqrt(2).
    rows = {"BPR": {1: finished("BPR", 1, [1, 2]), 2: finished("BPR", 2, [1, 1])}, "Pop": {1: finished("Pop", 1, [1, 1])}}
    (bar,) = plots.result_bars(rows, "hit@1").data
    assert list(bar.x) == ["BPR", "Pop"] and list(bar.y) == [0.75, 1.0]
    assert bar.error_y.array[0] == pytest.approx(0.5 / 2**0.5) and bar.error_y.array[1] is None


def test_learning_curves_are_means_over_the_seeds_that_came_so_far(rows):
    figure = plots.learning_curves(rows({"SASRec": [epochs(0.1, 0.3), epochs(0.3)], "Pop": [{}]}))
    assert series(figure) == {"SASRec": ([1, 2], pytest.approx([0.2, 0.3]))}
    assert plots.learning_curves(rows({"BPR": [{"training": [{"epoch": 0, "loss": 1.0}]}]})) is None


def test_dropout_bars_stand_side_by_side_for_each_row_that_has_them(rows):
    found = rows({"VLMSFT": [{"modality_dropout": {"f2f": {}}}] * 2, "SASRec": [{}]})
    for seed, run in found["VLMSFT"].items():
        sides = {"test_f2f_ranks": [1, 1], "test_t2f_ranks": [1, 2], "test_v2f_ranks": [2, 1 + seed]}
        np.savez_compressed(run.folder / "ranks.npz", test_users=["a", "b"], test_ranks=[1, 1], **sides)
    figure = plots.dropout_bars(found, "hit@1")
    assert figure.layout.barmode == "group"
    assert series(figure) == {
        "f2f: history": (["VLMSFT"], [1.0]),
        "t2f: titles alone": (["VLMSFT"], [0.5]),
        "v2f: pictures alone": (["VLMSFT"], [0.25]),
    }
    assert plots.dropout_bars({}) is None


def test_alignment_curves_average_the_steps_that_all_seeds_have(rows):
    def steps(*values):
        return {"gradient_alignment": [{"step": 10 * n, "epoch": 0, "text": v, "image": -v} for n, v in enumerate(values)]}

    figure = plots.alignment_curves(rows({"VLMSFT": [steps(0.2, 0.4, 0.9), steps(0.4, 0.6)]}))
    assert series(figure) == {
        "VLMSFT, text": ([0, 10], pytest.approx([0.3, 0.5])),
        "VLMSFT, image": ([0, 10], pytest.approx([-0.3, -0.5])),
    }
    dashes = {trace.name: trace.line.dash for trace in figure.data}
    assert dashes["VLMSFT, text"] != dashes["VLMSFT, image"]


def test_geometry_bars_leave_a_gap_where_a_side_was_not_measured(rows):
    both = {"geometry": {side: {"separability": value} for side, value in (("fused", 1.2), ("text", 1.4), ("image", 1.0))}}
    figure = plots.geometry_bars(rows({"VLM2Rec": [both], "LLMSFT": [{"geometry": {"fused": {"separability": 1.5}}}]}))
    assert series(figure)["fused"] == (["VLM2Rec", "LLMSFT"], [1.2, 1.5])
    assert series(figure)["image"] == (["VLM2Rec", "LLMSFT"], [1.0, None])


def test_cold_start_lines_name_how_many_users_stand_behind_a_point():
    buckets = [Bucket("0", 3, {"ndcg@20": 0.1}), Bucket("1+", 0, {"ndcg@20": None})]
    figure = plots.cold_start_lines([ColdStartRow("shop", "BPR", (1,), buckets, {"ndcg@20": 0.1})])
    assert series(figure) == {"BPR": (["0 (3 users)", "1+ (0 users)"], [0.1, None])}


def test_sensitivity_shows_every_run_and_the_best_at_each_value_in_numeric_order():
    trials = [((0.5, 2), 0.1), ((10.0, 2), 0.4), ((0.5, 3), 0.3)]
    tuning = {
        **{"row": "VLM2Rec", "dataset": "shop", "seed": 1, "metric": "ndcg@20", "best": {"tau": 10.0, "size": 2}},
        "trials": [{"params": {"tau": tau, "size": size}, "valid": {"ndcg@20": score}} for (tau, size), score in trials],
    }
    figure = plots.sensitivity(tuning)
    lines = [(list(trace.x), list(trace.y)) for trace in figure.data if trace.mode == "lines"]
    dots = [sorted(zip(trace.x, trace.y)) for trace in figure.data if trace.mode == "markers"]
    assert lines == [(["0.5", "10.0"], [0.3, 0.4]), (["2", "3"], [0.4, 0.3])]
    assert dots == [[("0.5", 0.1), ("0.5", 0.3), ("10.0", 0.4)], [("2", 0.1), ("2", 0.4), ("3", 0.3)]]
    assert [figure.layout.xaxis.title.text, figure.layout.xaxis2.title.text] == ["tau", "size"]


def test_without_plotly_the_message_says_what_to_install(monkeypatch):
    monkeypatch.setattr(plots.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(plots.PlotError, match=r"recbole-vlm2rec\[report\]"):
        plots.learning_curves({})
