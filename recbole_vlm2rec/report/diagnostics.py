"""What finished runs tell of the modalities and of cost, as tables: figures 1a and 1b, tables 1 and 7 of the paper, eq. 6 to 9.

Imports numpy and the standard library, through report.runs, selection and table_text. Every figure stands in a result.json.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from recbole_vlm2rec.analysis.comparison import mean_and_deviation
from recbole_vlm2rec.metrics import per_user
from recbole_vlm2rec.report.runs import FinishedRun, RunError, find_runs
from recbole_vlm2rec.report.selection import Selection, select
from recbole_vlm2rec.report.table_text import MARKDOWN, Markdown, title

ASKING = {"f2f": "history", "t2f": "titles alone", "v2f": "pictures alone"}
GEOMETRY = {
    **{"alignment_positive": "A_pos", "alignment_negative": "A_neg", "separability": "S"},
    **{"uniformity_cross": "U cross", "uniformity_queries": "U queries", "uniformity_items": "U items"},
}
MARGINS = {
    **{"alpha": "alpha", "beta": "beta", "margin_text": "margin, text", "margin_image": "margin, image", "gap": "gap", "w": "w"},
    **{"share_weak_image": "weaker side is the image", "kl": "KL (CRTR)"},
}


@dataclass(frozen=True)
class Measure:
    """One table: its heading, what is to be known to read it, the columns' names, and a run's lines of figures.

    lines: of a run, {name of the line (empty: the row's only one): figures by column}; None where the run has none.
    """

    heading: str
    note: str
    columns: Sequence[str]
    lines: Callable[[FinishedRun], dict[str, Sequence[float]] | None]


def asked_metric(run: FinishedRun, asked: str | None, metric: str) -> float:
    """A test metric from the run's ranks; of f2f, t2f or v2f (`asked`), or of the test. Raises ValueError for what is none."""
    return float(per_user(run.ranks[f"test_{asked}_ranks" if asked else "test_ranks"], metric).mean())


def _dropout(metric: str) -> Measure:
    def lines(run: FinishedRun):
        if not run.result.get("modality_dropout"):
            return None
        return {"": [asked_metric(run, asked, metric) for asked in ASKING]}

    note = f"Test {title(metric)} when the fused history, its titles alone or its pictures alone ask; items are always fused."
    return Measure("Modality dropout (figure 1a)", note, [f"{short}: {name}" for short, name in ASKING.items()], lines)


def _geometry() -> Measure:
    def lines(run: FinishedRun):
        found = run.result.get("geometry")
        return found and {side: [values[name] for name in GEOMETRY] for side, values in found.items()}

    note = (
        "On unit vectors: mean squared distance of a history to target and to negatives, S = A_neg / A_pos (1 is collapse); "
        "U = log mean exp(-2 d²) over pairs of a history and an item, of two histories, of two items."
    )
    return Measure("Geometry (table 1)", note, list(GEOMETRY.values()), lines)


def _margins() -> Measure:
    def lines(run: FinishedRun):
        last = (run.result.get("training") or [{}])[-1]
        return {"": [last[name] for name in MARGINS]} if "margin_text" in last else None

    note = "Means over the training batches of the last epoch (eq. 6 to 9); the last but one is a share of the users."
    return Measure("Margins and penalty", note, list(MARGINS.values()), lines)


def _alignment() -> Measure:
    def lines(run: FinishedRun):
        found = run.result.get("gradient_alignment")
        if not found:
            return None
        late = found[len(found) // 2 :]
        return {
            side: [found[0][side], float(np.mean([entry[side] for entry in late])), found[-1][side]] for side in ("text", "image")
        }

    note = "Cosine of the LoRA gradient of text alone, and of pictures alone, with the fused one, on sampled training steps."
    columns = ["first step", "mean of the second half", "last sampled step"]
    return Measure("Gradient alignment (figure 1b)", note, columns, lines)


def _cost(metric: str) -> Measure:
    def lines(run: FinishedRun):
        seconds, embedding = run.result["seconds"].get("train"), run.result.get("embedding_seconds")
        epochs = run.result.get("epochs_timed", run.result["epochs"])
        if not epochs or embedding is None:
            return None
        return {"": [asked_metric(run, None, metric), seconds / epochs / 60, embedding]}

    note = "Training without validation; embedding all items, with the pictures' visual tokens kept. On the runs' machine."
    return Measure("Cost (table 7)", note, [title(metric), "minutes an epoch", "seconds to embed all items"], lines)


def measures(metric: str = "ndcg@20") -> list[Measure]:
    """All tables, in the order of the paper's analysis."""
    return [_dropout(metric), _geometry(), _margins(), _alignment(), _cost(metric)]


def sections(runs: Sequence[FinishedRun], style: Markdown = MARKDOWN, metric: str = "ndcg@20") -> Iterator[tuple[str, str]]:
    """(heading, text in this style) of each table for which there are figures: means over seeds ± sample deviation.

    Raises ComparisonError where runs cannot stand in one table.
    """
    selection = select(runs)
    for measure in measures(metric):
        groups = [(style.escape(dataset), list(_rows(rows, measure, style)), None) for dataset, rows in selection.items()]
        groups = [group for group in groups if group[1]]
        if groups:
            head = ["", "of", "seeds", *measure.columns]
            yield measure.heading, "\n\n".join([style.paragraph(measure.note), style.grid(head, groups, left=2)])


def _rows(rows: Selection, measure: Measure, style: Markdown) -> Iterator[list[str]]:
    for row, by_seed in rows.items():
        found = [lines for run in by_seed.values() if (lines := measure.lines(run))]
        for name in found[0] if found else ():
            figures = np.array([lines[name] for lines in found], dtype=float)
            cells = [_cell(column, style) for column in figures.T]
            yield [style.escape(row), style.escape(name), str(len(found)), *cells]


def _cell(values: np.ndarray, style: Markdown) -> str:
    mean, deviation = mean_and_deviation(values)
    return f"{mean:.4f}" if deviation is None else f"{mean:.4f} {style.escape('±')} {deviation:.4f}"


def print_diagnostics(options) -> None:
    """`recbole-vlm2rec diagnostics RUNS… [--metric=…] [--out=FILE]`."""
    from recbole_vlm2rec.report.tables import write_or_print

    found = list(sections(find_runs(options.runs), metric=options.metric.strip().lower()))
    if not found:
        raise RunError("none of these runs has measured its modalities: only VLM2Rec and its variants do")
    write_or_print("\n\n".join(f"## {heading}\n\n{text}" for heading, text in found) + "\n", options.out)
