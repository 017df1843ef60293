"""The result table over finished runs: means over seeds, best and second best, improvement, tests; Markdown, CSV and LaTeX.

Imports numpy, scipy and the standard library, through analysis.comparison, report.runs, selection and table_text.
Every figure is computed from the ranks that a run wrote, and held to the metrics in its result.json.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from recbole_vlm2rec.analysis.comparison import (
    Comparison,
    Gains,
    Improvement,
    compare,
    improvement,
    mean_and_deviation,
    places,
)
from recbole_vlm2rec.report.runs import FinishedRun, find_runs
from recbole_vlm2rec.report.selection import names_of, read_gains, select
from recbole_vlm2rec.report.table_text import HTML, LATEX, MARKDOWN
from recbole_vlm2rec.rows import Row

METRICS = ("hit@10", "hit@20", "ndcg@10", "ndcg@20")
TESTED = ("ndcg@20",)


@dataclass(frozen=True)
class Cell:
    """Mean over seeds; sample standard deviation, None for one seed; place 1 (best) or 2, else None."""

    mean: float
    deviation: float | None
    place: int | None


@dataclass(frozen=True)
class Line:
    """A row of a block: the model's name, whether it is one of ours, its seeds (ascending), a cell by metric."""

    row: str
    ours: bool
    seeds: tuple[int, ...]
    cells: dict[str, Cell]


@dataclass(frozen=True)
class Block:
    """One data set. negatives: candidates beside each target, or `full`; baselines stand before ours."""

    dataset: str
    users: int
    negatives: int | str
    lines: list[Line]
    improvements: dict[str, Improvement | None]


@dataclass(frozen=True)
class ResultTable:
    """A block a data set, and the tests of each block's best row. `tested` are the metrics that were tested."""

    metrics: tuple[str, ...]
    tested: tuple[str, ...]
    blocks: list[Block]
    comparisons: list[Comparison]

    def markdown(self) -> str:
        """Best **bold**, second best <u>underlined</u>."""
        return MARKDOWN.render(self)

    def latex(self) -> str:
        """A tabular for booktabs, the notes as text, and a tabular of the tests."""
        return LATEX.render(self)

    def html(self) -> str:
        """Elements for a page; best in <strong>, second best in <u>."""
        return HTML.render(self)

    def csv(self) -> str:
        """A line for each data set, row and metric, at full precision; `deviation` is empty for one seed."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["dataset", "row", "metric", "mean", "deviation", "n_seeds", "seeds"])
        for block in self.blocks:
            for line in block.lines:
                seeds = [len(line.seeds), " ".join(map(str, line.seeds))]
                for metric, cell in line.cells.items():
                    writer.writerow([block.dataset, line.row, metric, cell.mean, cell.deviation, *seeds])
        return text.getvalue()


def result_table(
    runs: Sequence[FinishedRun],
    metrics: Sequence[str] = METRICS,
    ours: Callable[[str], bool] | Collection[str] | None = None,
    tested: Sequence[str] = TESTED,
) -> ResultTable:
    """The table of these runs' test metrics.

    Args:
        runs: of any data sets, models and seeds; `report.runs.find_runs` finds them.
        metrics: columns, `name@k` of `recbole_vlm2rec.metrics`; any k, since they are computed from the ranks.
        ours: names of our rows, or a function that says of a name whether it is; default: what stands on VLM2Rec or one of its
            ablations, `VLM2RecSASRec@VLM2Rec` but not `VLM2RecSASRec@VLMSFT`.
        tested: metrics by which each block's best row is tested against every other row.
    Raises ComparisonError where runs cannot be compared, RunError for damaged runs, ValueError for unknown metrics or rows.
    """
    metrics, tested = names_of(metrics), names_of(tested)
    selection = select(runs)
    is_ours = _predicate(ours, {row for rows in selection.values() for row in rows})
    columns: dict[tuple[str, str], Column] = {}
    for dataset, rows in selection.items():
        for row, by_seed in rows.items():
            for seed, run in by_seed.items():
                for metric, gains in read_gains(run, names_of((*metrics, *tested))).items():
                    columns.setdefault((dataset, metric), {}).setdefault(row, {})[seed] = gains
    # First: it refuses runs of different users.
    comparisons = compare({key: column for key, column in columns.items() if key[1] in tested})
    blocks = []
    for dataset, rows in selection.items():
        order = sorted(rows, key=is_ours)
        run = next(iter(rows[order[0]].values()))
        cells = {metric: _cells(columns[dataset, metric]) for metric in metrics}
        lines = [
            Line(row, is_ours(row), tuple(rows[row]), {metric: column[row] for metric, column in cells.items()}) for row in order
        ]
        mine = {line.row for line in lines if line.ours}
        improvements = {
            metric: improvement({row: cell.mean for row, cell in column.items()}, mine) for metric, column in cells.items()
        }
        blocks.append(Block(dataset, len(run.ranks["test_users"]), run.result["config"]["eval_negatives"], lines, improvements))
    return ResultTable(metrics, tested, blocks, comparisons)


Column = dict[str, dict[int, Gains]]


def _cells(column: Column) -> dict[str, Cell]:
    figures = {row: mean_and_deviation([gains.score for gains in by_seed.values()]) for row, by_seed in column.items()}
    place = places({row: mean for row, (mean, _) in figures.items()})
    return {row: Cell(*figure, place.get(row)) for row, figure in figures.items()}


def _predicate(ours: Callable[[str], bool] | Collection[str] | None, rows: Collection[str]) -> Callable[[str], bool]:
    if ours is None:
        return _on_vlm2rec
    if callable(ours):
        return ours
    if unknown := sorted(set(ours) - set(rows)):
        raise ValueError(f"there is no row {', '.join(map(repr, unknown))} to call ours; the rows are {', '.join(sorted(rows))}")
    return lambda row: row in ours


def _on_vlm2rec(row: str) -> bool:
    try:
        return Row.parse(row).embedder.startswith("VLM2Rec")
    except ValueError:  # a name of the user's own
        return False


def print_table(options) -> None:
    """`recbole-vlm2rec table RUNS… [--metrics=…] [--ours=…] [--tested=…] [--format=…] [--out=FILE]`."""
    ours = options.ours and options.ours.split(",")
    table = result_table(find_runs(options.runs), options.metrics.split(","), ours, options.tested.split(","))
    write_or_print({"markdown": table.markdown, "csv": table.csv, "latex": table.latex}[options.format](), options.out)


def write_or_print(text: str, out: Path | None) -> None:
    """Into the file `out`, whose folder is made, or onto the terminal."""
    if out is None:
        print(text, end="")
        return
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(text, encoding="utf-8")
    print(f"written: {out}")
