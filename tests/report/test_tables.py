"""The result table: hand-worked figures in all three formats, escapes, and a real run's own metrics."""

import csv
import io
import re
import subprocess
import sys

import pytest

from recbole_vlm2rec import cli
from recbole_vlm2rec.analysis.comparison import ComparisonError
from recbole_vlm2rec.report.runs import find_runs
from recbole_vlm2rec.report.table_text import LATEX, MARKDOWN, title
from recbole_vlm2rec.report.tables import result_table

FAR = 50


@pytest.fixture
def runs(finished):
    """Hit@10 of VLM2Rec 0.75 and 1.0 (mean 0.875, deviation 0.25 / sqrt 2), BPR 0.25 and 0.5 (mean 0.375), SASRec 0.5."""
    return [
        finished("VLM2Rec", 1, [1, 1, 1, FAR]),
        finished("VLM2Rec", 2, [1, 1, 1, 1]),
        finished("BPR", 1, [1, FAR, FAR, FAR]),
        finished("BPR", 2, [1, 1, FAR, FAR]),
        finished("SASRec", 2, [1, 1, FAR, FAR]),
    ]


def test_markdown_by_hand(runs):
    text = result_table(runs, ["hit@10"], tested=["hit@10"]).markdown()
    lines = text.splitlines()
    assert "### shop: 4 users, each target among 100 items that its user never touched" in lines
    table = [line for line in lines if line.startswith("|")]
    assert table[:6] == [
        "|  | seeds | Hit@10 |",
        "|---|---:|---:|",
        "| BPR | 2 | 0.3750 ± 0.1768 |",
        "| SASRec | 1 | <u>0.5000</u> |",
        "| VLM2Rec | 2 | **0.8750** ± 0.1768 |",
        "| improvement |  | +75.0 % |",
    ]
    assert "best of ours (VLM2Rec)" in text
    assert "different seeds" in text and "BPR 1, 2; SASRec 2; VLM2Rec 1, 2" in text


def test_the_tests_are_said_with_what_they_corrected_for(runs):
    """Against BPR both seeds differ by 0.5, which leaves a test over seeds no deviation; SASRec has one seed."""
    table = result_table(runs, ["hit@10"], tested=["hit@10"])
    assert [(entry.best, entry.other, entry.seeds) for entry in table.comparisons] == [
        ("VLM2Rec", "BPR", (1, 2)),
        ("VLM2Rec", "SASRec", (2,)),
    ]
    assert all(entry.by_seed is None for entry in table.comparisons)
    text = table.markdown()
    assert "Over users" in text and "corrected for 2 comparisons" in text
    assert "Over seeds" not in text and "–: not available" in text
    assert "| shop | Hit@10 | VLM2Rec | SASRec | +0.5000 | – | 1 |" in text


def test_tests_over_seeds_are_counted_apart(runs, finished):
    runs += [finished("SASRec", 1, [1, FAR, 1, 1]), finished("LightGCN", 1, [1, 1, 1, 1])]
    table = result_table(runs, tested=["hit@10", "ndcg@20"])
    # LightGCN is the best: it has one seed, so there are three comparisons a metric, all over users alone.
    assert {entry.best for entry in table.comparisons} == {"LightGCN"}
    assert "corrected for 6 comparisons" in table.markdown()
    table = result_table(runs[:-1], tested=["hit@10", "ndcg@20"])
    # Best VLM2Rec: against SASRec 0.75 - 0.75 and 1 - 0.5 in Hit@10, against BPR twice 0.5; NDCG@20 has the same hits.
    text = table.markdown()
    assert "Over seeds: a pair is one seed's two scores; corrected for 2 comparisons." in text
    assert "averaged over the seeds; corrected for 4 comparisons." in text


@pytest.mark.parametrize("ours", [["BPR"], lambda row: row == "BPR"])
def test_ours_may_be_named_or_asked_for(runs, ours):
    change = result_table(runs, ["hit@10"], ours=ours).blocks[0].improvements["hit@10"]
    assert (change.ours, change.baseline) == ("BPR", "VLM2Rec")
    assert change.percent == pytest.approx(100 * (0.375 / 0.875 - 1))


def test_ours_must_be_there_and_without_ours_there_is_no_improvement(runs):
    with pytest.raises(ValueError, match="no row 'VLM2Rek' .*BPR, SASRec, VLM2Rec"):
        result_table(runs, ours=["VLM2Rek"])
    baselines = result_table(runs[2:])
    assert baselines.blocks[0].improvements["ndcg@20"] is None
    assert "mprovement" not in baselines.markdown() + baselines.latex()


def test_csv_has_a_line_for_each_figure_at_full_precision(runs):
    rows = list(csv.DictReader(io.StringIO(result_table(runs, ["mrr@100", "hit@10"]).csv())))
    assert len(rows) == 3 * 2
    (row,) = [row for row in rows if (row["row"], row["metric"]) == ("BPR", "mrr@100")]
    means = [(1 + 3 / FAR) / 4, (2 + 2 / FAR) / 4]
    assert float(row["mean"]) == pytest.approx(sum(means) / 2, rel=1e-15)
    assert float(row["deviation"]) == pytest.approx(abs(means[0] - means[1]) / 2**0.5, rel=1e-14)
    assert (row["dataset"], row["n_seeds"], row["seeds"]) == ("shop", "2", "1 2")
    assert [row["deviation"] for row in rows if row["row"] == "SASRec"] == ["", ""]


def test_latex_by_hand_and_every_line_has_all_columns(runs):
    text = result_table(runs, ["hit@10", "ndcg@20"], tested=["hit@10"]).latex()
    assert r"VLM2Rec & 2 & \textbf{0.8750} $\pm$ 0.1768 & " in text
    assert r"SASRec & 1 & \underline{0.5000} & \underline{0.5000} \\" in text
    assert r"improvement &  & +75.0 \% & +75.0 \% \\" in text
    tabulars = re.findall(r"\\begin\{tabular\}\{(\w+)\}(.*?)\\end\{tabular\}", text, re.DOTALL)
    assert [len(columns) for columns, _ in tabulars] == [4, 9]
    for columns, body in tabulars:
        lines = [line for line in body.splitlines() if line.endswith(r"\\") and "multicolumn" not in line]
        assert lines and all(line.count(" & ") == len(columns) - 1 for line in lines)
        assert all(rule in body for rule in (r"\toprule", r"\midrule", r"\bottomrule"))


def test_special_characters_are_escaped(finished):
    runs = [finished("VLM2Rec", 1, [1, 2], dataset="a_b&c", row="50% #1 ~{x^2}$\\|"), finished("BPR", 1, [3, 4], dataset="a_b&c")]
    latex = result_table(runs, ours=[]).latex()
    assert r"\textit{a\_b\&c: 2 users" in latex
    assert r"50\% \#1 \textasciitilde{}\{x\textasciicircum{}2\}\$\textbackslash{}\textbar{} & 1" in latex
    markdown = result_table(runs, ours=[]).markdown()
    assert "### a\\_b&c" in markdown and "| 50% #1 ~{x^2}$\\\\\\| | 1 |" in markdown
    assert MARKDOWN.escape("<u>*[x]*</u>") == r"\<u\>\*\[x\]\*\</u\>"
    assert LATEX.escape("<\n>") == r"\textless{} \textgreater{}"


def test_titles():
    assert [title(metric) for metric in ("hit@10", "ndcg@20", "map@5")] == ["Hit@10", "NDCG@20", "MAP@5"]


def test_a_block_for_each_data_set(finished):
    runs = [finished(model, 1, [1, 2, 3], dataset=dataset) for dataset in ("x", "y") for model in ("BPR", "SASRec")]
    table = result_table(runs)
    assert [block.dataset for block in table.blocks] == ["x", "y"]
    # Equal rows: both are the best, neither is second, and nothing differs.
    assert {line.cells["ndcg@20"].place for block in table.blocks for line in block.lines} == {1}
    assert [entry.by_user["p_holm"] for entry in table.comparisons] == [1.0, 1.0]
    assert table.latex().count(r"\multicolumn{6}{l}") == 2


def test_one_run_makes_a_table_without_tests(finished):
    table = result_table([finished("BPR", 1, [1, 2])])
    assert table.comparisons == [] and "Tests" not in table.markdown()
    full = result_table([finished("SASRec", 1, [1, 2], dataset="other", eval_negatives="full")])
    assert "among all items" in full.markdown()


def test_mistakes(runs, finished):
    with pytest.raises(ValueError, match="'ndgc@20' is no metric; write NAME@K"):
        result_table(runs, ["ndgc@20"])
    runs.append(finished("GRU4Rec", 1, [1, 1, 1, 1], users=["a", "b", "c", "z"]))
    with pytest.raises(ComparisonError, match="GRU4Rec.*different users"):
        result_table(runs)


@pytest.mark.parametrize("command", ["table", "cold-start"])
def test_help_loads_nothing_heavy(command):
    code = (
        "import sys; from recbole_vlm2rec.cli import main\n"
        "try: main([sys.argv[1], '--help'])\n"
        "except SystemExit as end: assert end.code == 0\n"
        "assert not {'torch', 'recbole', 'numpy'} & set(sys.modules)"
    )
    outcome = subprocess.run([sys.executable, "-c", code, command], capture_output=True, text=True, check=False)
    assert outcome.returncode == 0, outcome.stderr
    assert "--metrics" in outcome.stdout


def test_the_table_of_real_runs_holds_their_own_metrics(toy, tmp_path, capsys):
    from recbole_vlm2rec import run

    results = [
        run(model=model, dataset="toy", config_dict={**toy, "checkpoint_dir": str(tmp_path), "seed": seed})
        for model, seed in (("BPR", 1), ("BPR", 2), ("Pop", 1), ("Pop", 2))
    ]
    table = result_table(find_runs([tmp_path]))
    cells = {line.row: line.cells for line in table.blocks[0].lines}
    for model, pair in (("BPR", results[:2]), ("Pop", results[2:])):
        for metric in ("hit@10", "hit@20", "ndcg@10", "ndcg@20"):
            assert cells[model][metric].mean == pytest.approx(sum(result["test"][metric] for result in pair) / 2, rel=1e-12)
    assert table.blocks[0].negatives == 20 and len(table.comparisons) == 1

    out = tmp_path / "tables" / "one.tex"
    capsys.readouterr()
    assert cli.main(["table", str(tmp_path), "--metrics=ndcg@20", "--format=latex", f"--out={out}"]) == 0
    assert str(out) in capsys.readouterr().out and r"\begin{tabular}{lrr}" in out.read_text()
    assert cli.main(["table", str(tmp_path), "--metrics=ndcg20"]) == 2
    assert "'ndcg20' is no metric" in capsys.readouterr().err
    data = ["--metrics=hit@20", "--buckets=0,2,4", f"--data_path={toy['data_path']}", f"--json={tmp_path / 'cold.json'}"]
    assert cli.main(["cold-start", str(tmp_path), *data]) == 0
    assert "|  | seeds | 0-1 | 2-3 | 4+ | all |" in capsys.readouterr().out
    assert (tmp_path / "cold.json").is_file()


def test_a_name_of_ones_own_with_an_at_sign_is_not_ours(finished):
    table = result_table([finished("BPR", 1, [1], row="a@"), finished("VLM2RecSASRec", 1, [1], row="VLM2RecSASRec@VLM2Rec")])
    assert {line.row: line.ours for line in table.blocks[0].lines} == {"a@": False, "VLM2RecSASRec@VLM2Rec": True}
    assert not result_table([finished("VLM2RecSASRec", 2, [1], row="VLM2RecSASRec@VLMSFT")]).blocks[0].lines[0].ours
