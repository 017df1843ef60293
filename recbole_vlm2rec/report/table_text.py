"""A ResultTable as text: what it says once, in Markdown, LaTeX or HTML.

Imports the standard library only. CSV carries the figures alone and needs nothing from here.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from recbole_vlm2rec.analysis.comparison import Comparison
    from recbole_vlm2rec.report.tables import Block, Cell, Line, ResultTable

_TITLES = {"hit": "Hit", "ndcg": "NDCG", "mrr": "MRR", "map": "MAP", "recall": "Recall", "precision": "Precision"}
_LATEX = {character: "\\" + character for character in "&%$#_{}"} | {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "±": r"$\pm$",
}


# Heading, rows, last row; the cells are escaped already.
Group = tuple[str | None, Sequence[Sequence[str]], Sequence[str] | None]


def title(metric: str) -> str:
    """`ndcg@20` as tables write it: NDCG@20."""
    name, at, k = metric.lower().partition("@")
    return _TITLES.get(name, name) + at + k


class Markdown:
    """GitHub's tables; one a data set under a heading."""

    def escape(self, text: str) -> str:
        return re.sub(r"([\\|*_<>\[\]`])", r"\\\1", " ".join(text.split()))

    def best(self, text: str) -> str:
        return f"**{text}**"

    def second(self, text: str) -> str:
        return f"<u>{text}</u>"

    def paragraph(self, text: str) -> str:
        return self.escape(text)

    def grid(self, head: Sequence[str], groups: Sequence[Group], left: int = 1) -> str:
        """The rows of each group under `head`; the first `left` columns are text, the others figures."""
        parts = []
        for heading, rows, last in groups:
            lines = [f"### {heading}", ""] if heading else []
            lines += [self._row(head), "|" + "---|" * left + "---:|" * (len(head) - left)]
            parts.append("\n".join([*lines, *(self._row(row) for row in (*rows, *([last] if last else [])))]))
        return "\n\n".join(parts)

    def _row(self, cells: Sequence[str]) -> str:
        return f"| {' | '.join(cells)} |"

    def render(self, table: ResultTable) -> str:
        return "\n\n".join(_parts(table, self)) + "\n"


class Latex(Markdown):
    """One tabular for all data sets, with the rules of booktabs."""

    def escape(self, text: str) -> str:
        return "".join(_LATEX.get(character, character) for character in " ".join(text.split()))

    def best(self, text: str) -> str:
        return rf"\textbf{{{text}}}"

    def second(self, text: str) -> str:
        return rf"\underline{{{text}}}"

    def paragraph(self, text: str) -> str:
        return rf"\noindent {self.escape(text)}"

    def grid(self, head: Sequence[str], groups: Sequence[Group], left: int = 1) -> str:
        lines = [rf"\begin{{tabular}}{{{'l' * left + 'r' * (len(head) - left)}}}", r"\toprule", self._row(head)]
        for heading, rows, last in groups:
            lines.append(r"\midrule")
            if heading:
                lines += [rf"\multicolumn{{{len(head)}}}{{l}}{{\textit{{{heading}}}}} \\", r"\addlinespace[2pt]"]
            lines += [self._row(row) for row in rows]
            if last:
                lines += [rf"\cmidrule{{1-{len(head)}}}", self._row(last)]
        return "\n".join([*lines, r"\bottomrule", r"\end{tabular}"])

    def _row(self, cells: Sequence[str]) -> str:
        return " & ".join(cells) + r" \\"

    def render(self, table: ResultTable) -> str:
        return "% \\usepackage{booktabs}\n" + super().render(table)


class Html(Markdown):
    """Elements for the report page: rows are headed by their first cell, wide tables scroll by themselves."""

    def escape(self, text: str) -> str:
        return html.escape(" ".join(text.split()))

    def best(self, text: str) -> str:
        return f"<strong>{text}</strong>"

    def paragraph(self, text: str) -> str:
        return f"<p>{self.escape(text)}</p>"

    def grid(self, head: Sequence[str], groups: Sequence[Group], left: int = 1) -> str:
        columns = "".join(f'<th scope="col">{cell}</th>' for cell in head)
        tables = []
        for heading, rows, last in groups:
            caption = f"<caption>{heading}</caption>" if heading else ""
            body = "".join(self._row(row) for row in (*rows, *([last] if last else [])))
            label = f' aria-label="{heading}"' if heading else ' aria-label="table"'
            tables.append(
                f'<div class="wide" tabindex="0" role="region"{label}><table class="left{left}">{caption}'
                f"<thead><tr>{columns}</tr></thead><tbody>{body}</tbody></table></div>"
            )
        return "\n".join(tables)

    def _row(self, cells: Sequence[str]) -> str:
        first, *others = cells
        return f'<tr><th scope="row">{first}</th>' + "".join(f"<td>{cell}</td>" for cell in others) + "</tr>"


MARKDOWN, LATEX, HTML = Markdown(), Latex(), Html()


def _parts(table: ResultTable, style: Markdown) -> Iterator[str]:
    head = ["", "seeds", *(title(metric) for metric in table.metrics)]
    yield style.grid(head, [(_heading(block, style), *_rows(block, style)) for block in table.blocks])
    for note in _notes(table):
        yield style.paragraph(note)
    if table.comparisons:
        yield style.paragraph(_about_tests(table))
        head = ["data set", "metric", "best", "against", "difference", "p over seeds", "seeds", "p over users", "users"]
        rows = [[style.escape(text) for text in _comparison(entry)] for entry in table.comparisons]
        yield style.grid(head, [(None, rows, None)], left=4)


def _heading(block: Block, style: Markdown) -> str:
    among = "all items" if block.negatives == "full" else f"{block.negatives} items"
    return style.escape(f"{block.dataset}: {block.users} users, each target among {among} that its user never touched")


def _rows(block: Block, style: Markdown) -> tuple[list[list[str]], list[str] | None]:
    rows = [
        [style.escape(line.row), str(len(line.seeds)), *(_cell(cell, style) for cell in line.cells.values())]
        for line in block.lines
    ]
    if not any(block.improvements.values()):
        return rows, None
    percents = [f"{change.percent:+.1f} %" if change else "–" for change in block.improvements.values()]
    return rows, ["improvement", "", *(style.escape(text) for text in percents)]


def _cell(cell: Cell, style: Markdown) -> str:
    mean = f"{cell.mean:.4f}"
    mean = {1: style.best, 2: style.second}.get(cell.place, str)(mean)
    return mean if cell.deviation is None else f"{mean} {style.escape('±')} {cell.deviation:.4f}"


def _notes(table: ResultTable) -> Iterator[str]:
    lines: list[Line] = [line for block in table.blocks for line in block.lines]
    marks = "The best mean of a column is bold, the second best underlined; equal ones alike."
    if any(len(line.seeds) > 1 for line in lines):
        marks = "Means over seeds ± sample standard deviation, where there are two seeds or more. " + marks
    yield marks
    if any(any(block.improvements.values()) for block in table.blocks):
        ours = ", ".join(dict.fromkeys(line.row for line in lines if line.ours))
        yield f"Improvement: the best of ours ({ours}) over the best of the other rows."
    for block in table.blocks:
        if len({line.seeds for line in block.lines}) > 1:
            seeds = "; ".join(f"{line.row} {', '.join(map(str, line.seeds))}" for line in block.lines)
            yield f"The rows of {block.dataset} have different seeds, so their means are not over the same draws: {seeds}."


def _about_tests(table: ResultTable) -> str:
    seeds, users = (sum(getattr(entry, test) is not None for entry in table.comparisons) for test in ("by_seed", "by_user"))
    tested = ", ".join(title(metric) for metric in table.tested)
    text = (
        f"Tests: the best row against each other row by {tested}, on the seeds that both rows have; two-sided paired t-tests, "
        "p after Holm's correction. "
    )
    if seeds:
        text += f"Over seeds: a pair is one seed's two scores; corrected for {seeds} comparison{'s' * (seeds > 1)}. "
    if seeds < len(table.comparisons):
        text += "–: not available (fewer than two common seeds, or a difference that no seed changes). "
    if users:
        text += (
            "Over users: a pair is one user's metric under both rows, averaged over the seeds; "
            f"corrected for {users} comparison{'s' * (users > 1)}. "
        )
    return text + "The best row is the best by these same figures, which favours it."


def _comparison(entry: Comparison) -> list[str]:
    outcome = entry.by_user or entry.by_seed
    cells = [entry.dataset, title(entry.metric), entry.best, entry.other, f"{outcome['mean']:+.4f}" if outcome else "–"]
    for test, count in ((entry.by_seed, len(entry.seeds)), (entry.by_user, entry.by_user["n"] if entry.by_user else 0)):
        cells += [f"{test['p_holm']:.2g}" if test else "–", str(count)]
    return cells
