"""The report: one page over finished runs that needs no network, with tables, plots and an explorer of single users.

Imports jinja2 and plotly (the extra `report`), and the rest of this room.
"""

from __future__ import annotations

import importlib.util
import json
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from recbole_vlm2rec import __version__
from recbole_vlm2rec.analysis.cold_start import BOUNDS
from recbole_vlm2rec.report import plots
from recbole_vlm2rec.report.cold_start_table import cold_start, data_folder, parse_bounds, read_histories
from recbole_vlm2rec.report.diagnostics import sections
from recbole_vlm2rec.report.explorer import explorer_data
from recbole_vlm2rec.report.runs import FinishedRun, RunError, find_runs
from recbole_vlm2rec.report.selection import Selection, select
from recbole_vlm2rec.report.table_text import HTML, title
from recbole_vlm2rec.report.tables import METRICS, result_table

ROWS_SHOWN = ("SASRec", "VLMVanilla", "VLMSFT", "VLM2Rec")  # in the explorer, at first, where they are there
FOLDER = Path(__file__).parent


def report(
    places: Sequence[str | Path],
    out: str | Path,
    data_path: str | Path | None = None,
    metric: str = "ndcg@20",
    metrics: Sequence[str] = METRICS,
    users: int = 40,
    buckets: Sequence[int] = BOUNDS,
) -> Path:
    """Writes the page over all finished runs in and below `places` to the file `out`, and returns it.

    Args:
        data_path: folder of data sets, default where the runs found theirs. Where the interactions are gone or have changed, cold
            start and explorer are left out and the page says so.
        metric: what plots show. metrics: columns of the result tables. users: to choose from in the explorer, a data set each.
        buckets: least training frequency of each bucket of cold start.
    Raises RunError and ComparisonError as the tables do, and PlotError without plotly and jinja2.
    """
    if users < 0:
        raise ValueError(f"users is {users}: give how many the explorer shall offer, 0 for none")
    if importlib.util.find_spec("jinja2") is None or importlib.util.find_spec("plotly") is None:
        raise plots.PlotError('the report needs plotly and jinja2: pip install "recbole-vlm2rec[report]"')
    import jinja2
    from plotly.offline import get_plotlyjs

    metric, runs = metric.strip().lower(), find_runs(places)
    selection, notes = select(runs), []
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(FOLDER), autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True
    )
    explorer = _explorer(selection, data_path, users, notes)
    page = environment.get_template("page.html.j2").render(
        datasets=list(selection),
        count=len(runs),
        version=__version__,
        written=time.strftime("%Y-%m-%d %H:%M"),
        table=result_table(runs, metrics).html(),
        sections=list(sections(runs, HTML, metric)),
        figures=[
            {**figure, "id": f"figure-{number}"}
            for number, figure in enumerate([*_figures(selection, metric, data_path, buckets, notes), *_searches(places)])
        ],
        notes=list(dict.fromkeys(notes)),
        explorer=_script(explorer),
        explored=bool(explorer),
        shown=_script(ROWS_SHOWN),
        plotly=get_plotlyjs(),
    )
    out = Path(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(page, encoding="utf-8")
    return out


def _figures(
    selection: Selection, metric: str, data_path: str | Path | None, bounds: Sequence[int], notes: list[str]
) -> Iterator[dict]:
    """{"heading", "caption", "data", "table"} of every figure that there is something to draw for."""
    kinds: list[tuple[str, str, Callable]] = [
        ("Test results", f"Test {title(metric)}, mean and deviation over seeds.", lambda rows: plots.result_bars(rows, metric)),
        ("Learning curves", f"Validation {title(metric)} after each epoch.", lambda rows: plots.learning_curves(rows, metric)),
        (
            "Modality dropout",
            "What is left when titles alone, or pictures alone, ask.",
            lambda rows: plots.dropout_bars(rows, metric),
        ),
        ("Gradient alignment", "Which modality the training steps follow.", plots.alignment_curves),
        ("Separability", "How far negatives lie, compared with the target; 1 is collapse.", plots.geometry_bars),
    ]
    for heading, caption, draw in kinds:
        for dataset, rows in selection.items():
            if figure := draw(rows):
                yield _figure(f"{heading}: {dataset}", caption, figure)
    for dataset, rows in selection.items():
        runs = [run for by_seed in rows.values() for run in by_seed.values()]
        try:
            buckets = cold_start(runs, [metric], data_path and Path(data_path), bounds)
        except RunError as error:
            notes.append(f"No cold start for {dataset}: {error}")
        else:
            caption = f"{title(metric)} by training interactions of the target."
            yield _figure(f"Cold start: {dataset}", caption, plots.cold_start_lines(buckets, metric))


def _searches(places: Sequence[str | Path]) -> Iterator[dict]:
    for place in places:
        for file in sorted(Path(place).rglob("tuning.json")):
            tuning = json.loads(file.read_text(encoding="utf-8"))
            figure = plots.sensitivity(tuning)
            caption = "Validation metric by tuned key: every run a dot, the best at each value a line."
            yield _figure(f"Sensitivity: {file.parent.name}", caption, figure)


def _figure(heading: str, caption: str, figure) -> dict:
    data = json.loads(figure.to_json())
    data["layout"].pop("title", None)
    data["layout"].pop("template", None)
    return {"heading": heading, "caption": caption, "data": _script(data), "table": _as_table(figure)}


def _as_table(figure) -> str:
    """The series of a figure for those who cannot see it: a line each, a column each place on its axis."""
    series = [trace for trace in figure.data if trace.type != "scatter" or "lines" in trace.mode]  # dots alone are many
    columns = list(dict.fromkeys(str(x) for trace in series for x in trace.x))
    rows = []
    for trace in series:
        at = {str(x): y for x, y in zip(trace.x, trace.y, strict=True)}
        cells = ["–" if at.get(column) is None else f"{at[column]:.4f}" for column in columns]
        rows.append([HTML.escape(trace.name or ""), *cells])
    return HTML.grid(["", *map(HTML.escape, columns)], [(None, rows, None)])


def _explorer(selection: Selection, data_path: str | Path | None, users: int, notes: list[str]) -> dict[str, dict]:
    found: dict[str, dict] = {}
    for dataset, rows in selection.items() if users else ():
        run: FinishedRun = next(iter(next(iter(rows.values())).values()))
        folder = data_folder(run, data_path and Path(data_path))
        try:
            data = explorer_data(rows, read_histories(run, folder), folder, users)
        except RunError as error:
            notes.append(f"No explorer for {dataset}: {error}")
            continue
        if data is None:
            notes.append(f"No explorer for {dataset}: its runs are older than the lists of best items; run them again.")
        else:
            found[dataset] = data
    return found


def _script(content) -> str:
    """JSON that may stand inside <script>."""
    return json.dumps(content, separators=(",", ":")).replace("<", "\\u003c")


def print_report(options) -> None:
    """`recbole-vlm2rec report --runs=FOLDER,… --out=FILE [--data_path=…] [--metric=…] [--users=…] [--buckets=…]`."""
    buckets = parse_bounds(options.buckets)
    file = report(options.runs.split(","), options.out, options.data_path, options.metric, METRICS, options.users, buckets)
    print(f"written: {file} ({file.stat().st_size / 2**20:.1f} MiB, one file, no network needed)")
