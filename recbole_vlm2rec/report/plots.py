"""Plotly figures of what runs wrote: pure functions from runs and dictionaries to figures.

Imports plotly (the extra `report`), numpy and report's readers. Background and text colours are the page's; series have Okabe and
Ito's, and line styles where two series of a row must be told apart.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from recbole_vlm2rec.analysis.comparison import mean_and_deviation
from recbole_vlm2rec.report.cold_start_table import ColdStartRow
from recbole_vlm2rec.report.diagnostics import ASKING, asked_metric
from recbole_vlm2rec.report.runs import FinishedRun
from recbole_vlm2rec.report.selection import read_gains
from recbole_vlm2rec.report.table_text import title

# Okabe and Ito's eight, told apart with any colour vision; text, image and fused keep theirs everywhere.
PALETTE = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#F0E442", "#999999")
SIDES = {"fused": PALETTE[2], "text": PALETTE[0], "image": PALETTE[1]}
DASHES = {"text": "solid", "image": "dash"}
BySeed = Mapping[str, Mapping[int, FinishedRun]]
"""The runs of one data set by row and seed."""


class PlotError(RuntimeError):
    """Plots cannot be drawn here; the message says what to install."""


def _go():
    if importlib.util.find_spec("plotly") is None:
        raise PlotError('plots need plotly: pip install "recbole-vlm2rec[report]"')
    import plotly.graph_objects

    return plotly.graph_objects


def write_html(figure, file: str | Path) -> None:
    """One page that needs no network."""
    Path(file).write_text(figure.to_html(include_plotlyjs=True, full_html=True), encoding="utf-8")


def tuning_process(model: str, scores: Sequence[float], params: Sequence[str]):
    """RecBole's plot of a search: the validation score of each trial, its keys as hover text."""
    go = _go()
    trials = [str(number) for number in range(1, len(scores) + 1)]
    trace = go.Scatter(x=trials, y=list(scores), text=list(params), mode="lines+markers", name=f"{model} tuning process")
    return go.Figure(trace, _layout("Tuning", "trial", "validation score", showlegend=True))


def result_bars(rows: BySeed, metric: str = "ndcg@20"):
    """Test metric of each row, mean over seeds with the sample standard deviation where there are two or more."""
    go = _go()
    scores = [[read_gains(run, [metric])[metric].score for run in by_seed.values()] for by_seed in rows.values()]
    means, spread = zip(*map(mean_and_deviation, scores), strict=True)
    bar = go.Bar(
        x=list(rows),
        y=means,
        name=title(metric),
        marker_color=PALETTE[0],
        error_y={"type": "data", "array": spread, "visible": True},
    )
    return go.Figure(bar, _layout(None, None, title(metric)))


def learning_curves(rows: BySeed, metric: str = "ndcg@20"):
    """Validation metric of each epoch, means over the seeds that came so far; None where no run was validated."""
    go, traces = _go(), []
    for number, (row, by_seed) in enumerate(rows.items()):
        epochs: dict[int, list[float]] = {}
        for run in by_seed.values():
            for entry in run.result.get("training") or []:
                if metric in entry.get("valid", {}):
                    epochs.setdefault(entry["epoch"] + 1, []).append(entry["valid"][metric])
        if epochs:
            means = [float(np.mean(epochs[epoch])) for epoch in sorted(epochs)]
            traces.append(go.Scatter(x=sorted(epochs), y=means, mode="lines+markers", name=row, **_line(number)))
    return go.Figure(traces, _layout(None, "epoch", f"validation {title(metric)}")) if traces else None


def dropout_bars(rows: BySeed, metric: str = "ndcg@20"):
    """Figure 1a: the metric when history, titles alone or pictures alone ask; None where no run measured it."""
    go = _go()
    found = {row: runs for row, by_seed in rows.items() if (runs := _with(by_seed, "modality_dropout"))}
    traces = [
        go.Bar(
            x=list(found),
            y=[float(np.mean([asked_metric(run, asked, metric) for run in runs])) for runs in found.values()],
            name=f"{asked}: {name}",
            marker_color=SIDES[side],
        )
        for (asked, name), side in zip(ASKING.items(), SIDES, strict=True)
    ]
    return go.Figure(traces, _layout(None, None, title(metric), barmode="group")) if found else None


def alignment_curves(rows: BySeed):
    """Figure 1b: cosine of the text-only and the image-only gradient with the fused one over training; None without any."""
    go, traces = _go(), []
    for number, (row, by_seed) in enumerate(rows.items()):
        measured = [run.result["gradient_alignment"] for run in _with(by_seed, "gradient_alignment")]
        for side in DASHES if measured else ():
            steps = sorted(set.intersection(*({entry["step"] for entry in entries} for entries in measured)))
            values = [float(np.mean([entry[side] for of in measured for entry in of if entry["step"] == step])) for step in steps]
            look = {"line_color": PALETTE[number % len(PALETTE)], "line_dash": DASHES[side]}
            traces.append(go.Scatter(x=steps, y=values, mode="lines+markers", name=f"{row}, {side}", **look))
    return go.Figure(traces, _layout(None, "training step", "cosine with the fused gradient")) if traces else None


def geometry_bars(rows: BySeed):
    """Table 1's S = A_neg / A_pos of fused, text and image vectors; None where no run measured it."""
    go = _go()
    found = {row: runs for row, by_seed in rows.items() if (runs := _with(by_seed, "geometry"))}
    traces = []
    for side, colour in SIDES.items():
        measured = [[run.result["geometry"] for run in runs] for runs in found.values()]
        values = [[sides[side]["separability"] for sides in of_row if side in sides] for of_row in measured]
        means = [float(np.mean(of_row)) if of_row else None for of_row in values]
        traces.append(go.Bar(x=list(found), y=means, name=side, marker_color=colour))
    return go.Figure(traces, _layout(None, None, "S = A_neg / A_pos", barmode="group")) if found else None


def cold_start_lines(rows: Sequence[ColdStartRow], metric: str = "ndcg@20"):
    """Figure 3: the metric by how often the target stands in the training data, of one data set's rows."""
    go = _go()
    traces = []
    for number, row in enumerate(rows):
        names = [f"{bucket.name} ({bucket.users} users)" for bucket in row.buckets]
        values = [bucket.metrics[metric] for bucket in row.buckets]
        traces.append(go.Scatter(x=names, y=values, mode="lines+markers", name=row.row, **_line(number)))
    return go.Figure(traces, _layout(None, "training interactions of the target", title(metric)))


def sensitivity(tuning: Mapping):
    """Figure 5: for each tuned key the best validation score at each value, the other keys free; every trial is a dot.

    `tuning`: the content of a `tuning.json`.
    """
    go = _go()
    from plotly.subplots import make_subplots

    keys, metric = list(tuning["best"]), tuning["metric"]
    figure = make_subplots(1, len(keys), shared_yaxes=True, horizontal_spacing=0.04)
    for column, key in enumerate(keys, start=1):
        tried = sorted(
            ((trial["params"][key], trial["valid"][metric]) for trial in tuning["trials"]), key=lambda pair: _order(pair[0])
        )
        best: dict[str, float] = {}
        for value, score in tried:
            best[str(value)] = max(score, best.get(str(value), score))
        dots = {"x": [str(value) for value, _ in tried], "y": [score for _, score in tried]}
        line = {"x": list(best), "y": list(best.values())}
        best_of, runs = {"mode": "lines", "line_color": PALETTE[0]}, {"mode": "markers", "marker_color": PALETTE[1]}
        figure.add_trace(go.Scatter(**line, **best_of, name=f"best, {key}", showlegend=False), 1, column)
        figure.add_trace(go.Scatter(**dots, **runs, name=f"runs, {key}", showlegend=False), 1, column)
        figure.update_xaxes(type="category", categoryorder="array", categoryarray=line["x"], title_text=key, row=1, col=column)
    figure.update_layout(_layout(f"{tuning['row']} on {tuning['dataset']}, seed {tuning['seed']}", None, None))
    figure.update_yaxes(title_text=f"validation {metric}", row=1, col=1)
    return figure


def _line(number: int) -> dict:
    """The look of a plot's n-th row; beyond eight, colours come again with another stroke."""
    return {"line_color": PALETTE[number % len(PALETTE)], "line_dash": ("solid", "dot", "dash")[number // len(PALETTE) % 3]}


def _with(by_seed: Mapping[int, FinishedRun], key: str) -> list[FinishedRun]:
    """The runs whose result holds something under this key."""
    return [run for run in by_seed.values() if run.result.get(key)]


def _order(value) -> tuple:
    """Numbers by size, all else by name."""
    return (0, value, "") if isinstance(value, (int, float)) else (1, 0, str(value))


def _layout(title: str | None, x: str | None, y: str | None, **more) -> dict:
    axes = {"xaxis_title": x, "yaxis_title": y} if x or y else {}
    margin = {"l": 60, "r": 20, "t": 50 if title else 20, "b": 50}
    return {"title": title, "template": "plotly_white", "margin": margin, **axes, **more}
