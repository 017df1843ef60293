"""Plotly figures of what runs wrote: pure functions from dictionaries to figures.

Imports plotly (the extra `report`) and the standard library. Colours come from the page; figures bear none but Okabe and Ito's.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path

# Okabe and Ito's eight, told apart with any colour vision; text, image and fused keep theirs everywhere.
PALETTE = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#F0E442", "#999999")
SIDES = {"fused": ("both", PALETTE[2]), "text": ("text alone", PALETTE[0]), "image": ("picture alone", PALETTE[1])}


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


def sensitivity(tuning: Mapping):
    """Figure 5: for each tuned key the best validation score at each value, the other keys free; every trial is a dot.

    `tuning`: the content of a `tuning.json`.
    """
    go = _go()
    from plotly.subplots import make_subplots

    keys, metric = list(tuning["best"]), tuning["metric"]
    figure = make_subplots(1, len(keys), shared_yaxes=True, horizontal_spacing=0.04, subplot_titles=keys)
    for column, key in enumerate(keys, start=1):
        tried = sorted(
            ((trial["params"][key], trial["valid"][metric]) for trial in tuning["trials"]), key=lambda pair: _order(pair[0])
        )
        best: dict[str, float] = {}
        for value, score in tried:
            best[str(value)] = max(score, best.get(str(value), score))
        dots = {"x": [str(value) for value, _ in tried], "y": [score for _, score in tried]}
        line = {"x": list(best), "y": list(best.values())}
        look = {"showlegend": column == 1}
        figure.add_trace(go.Scatter(**line, mode="lines", name="best", line_color=PALETTE[0], **look), 1, column)
        figure.add_trace(go.Scatter(**dots, mode="markers", name="runs", marker_color=PALETTE[1], **look), 1, column)
        figure.update_xaxes(type="category", categoryorder="array", categoryarray=line["x"], row=1, col=column)
    figure.update_layout(_layout(f"{tuning['row']} on {tuning['dataset']}, seed {tuning['seed']}", None, None, showlegend=True))
    figure.update_yaxes(title_text=f"validation {metric}", row=1, col=1)
    return figure


def _order(value) -> tuple:
    """Numbers by size, all else by name."""
    return (0, value, "") if isinstance(value, (int, float)) else (1, 0, str(value))


def _layout(title: str | None, x: str | None, y: str | None, **more) -> dict:
    axes = {"xaxis_title": x, "yaxis_title": y} if x or y else {}
    margin = {"l": 60, "r": 20, "t": 50 if title else 20, "b": 50}
    return {"title": title, "template": "plotly_white", "margin": margin, **axes, **more}
