"""The command `recbole-vlm2rec` and run_recbole_vlm2rec.py: reads arguments, calls one room, turns expected errors into one line.

Imports a room only when its command is called: `--help` takes no torch and no recbole.
"""

from __future__ import annotations

import argparse
import re
import sys
import textwrap
import traceback
from collections.abc import Sequence
from pathlib import Path

from recbole_vlm2rec.prepare.commands import add_commands
from recbole_vlm2rec.rows import our_models

_OPTION = re.compile(r"^--([A-Za-z][\w-]*)")

RUN_HELP = """\
usage: run_recbole_vlm2rec.py [--model=NAME] [--dataset=NAME] [--config_files="A.yaml B.yaml"] [--key=value …]

Trains, validates and tests one model on one data set inside RecBole; without arguments, VLM2Rec on minishop.

  --model=NAME       {models}; or any model of
                     RecBole: SASRec, GRU4Rec, BERT4Rec, BPR, LightGCN, …
  --dataset=NAME     a folder of --data_path (default atomic_data/) with NAME.inter, NAME.item and pictures
  --key=value        any key of RecBole or of props/*.yaml, where each is explained; values are YAML. Often used:
     --backbone=…       tiny, a local folder, or a hub name such as Qwen/Qwen2.5-VL-3B-Instruct
     --objective=…      wpcl+crtr (VLM2Rec), sft, none (the pretrained model), crtr, sft+crtr, wpcl
     --fusion=…         external, internal           --modalities=…      text+image, text, image
     --seed=…           weights, shuffling, negatives  --eval_negatives=…  100, another number, or full
     --epochs=…  --train_batch_size=…  --learning_rate=…  --resume=RUN_FOLDER  --result_file=PATH
     --item_embeddings=FOLDER   the export that VLM2RecSASRec and VLM2RecGRU4Rec start from

A comparison: what is missing is run, then the table is written (docs/comparisons.md):
  --model=SASRec,VLMSFT,VLM2Rec,VLM2RecSASRec@VLM2Rec --dataset=X,Y --seeds=1,2,3,4,5
     MODEL@ROW          a task 2 model on the export of that row's run
     VLM2Rec@DATASET    trained on another data set, used unchanged
     --train_users=128,256   few-shot: a row each    --row_settings=FILE  keys of single rows    --table=PATH  where to write

Tuning, by validation alone (docs/comparisons.md; pip install "recbole-vlm2rec[tune]"):
  --model=ROW --tune=props/tuning/VLM2Rec.hyper --tune_algo=exhaustive|random|bayes|each [--max_evals=20]

Every run gets a folder in --checkpoint_dir (default saved/): checkpoint, result.json, ranks.npz, run.log, tensorboard/.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; returns the exit status (0 done, 1 a check that failed, 2 wrong input, 130 interrupted)."""
    argv = list(sys.argv[1:] if argv is None else argv)
    try:
        if argv[:1] == ["run"]:
            return _run(argv[1:])
        # `--dry-run` and `--dry_run` are one flag; values stay as they are.
        options = _parser().parse_args([_OPTION.sub(lambda name: "--" + name[1].replace("-", "_"), word) for word in argv])
        return options.command(options) or 0
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        return 130
    except (ValueError, OSError, RuntimeError) as error:
        # What this project raises on purpose is meant for the user; anything else keeps its traceback.
        raised_in = Path(traceback.extract_tb(error.__traceback__)[-1].filename)
        if Path(__file__).parent not in raised_in.parents:
            raise
        print(f"error: {error}", file=sys.stderr)
        return 2


def _run(argv: Sequence[str]) -> int:
    if any(argument in ("-h", "--help") for argument in argv):
        print(RUN_HELP.format(models=textwrap.fill(", ".join(our_models()), 100, subsequent_indent=" " * 21)))
        return 0
    from recbole_vlm2rec.arguments import parse_overrides

    overrides = parse_overrides(argv)
    from recbole_vlm2rec.quick_start import run
    from recbole_vlm2rec.sweep import is_sweep, sweep

    if "tune" in overrides:
        from recbole_vlm2rec.tuning import tune_all

        tune_all(overrides)
    elif is_sweep(overrides):
        sweep(overrides)
    else:
        run(config_dict=overrides)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="recbole-vlm2rec", description="VLM2Rec for RecBole.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    commands.add_parser("run", help="train and evaluate a model (run --help)")

    add_commands(commands.add_parser("prepare", help="make a data set").add_subparsers(required=True, metavar="SOURCE"))

    export = commands.add_parser("export", help="write the item embeddings of a trained VLM2Rec")
    export.add_argument("--checkpoint", required=True, help="run folder of a VLM2Rec run, or its checkpoint/")
    export.add_argument("--out", required=True, help="export folder to write; must not exist yet, or be an export")
    export.add_argument("--dataset", help="embed this data set's items (default: the one trained on)")
    export.add_argument("--data_path", help="folder of data sets (default: as in training)")
    export.add_argument("--device", help="torch device (default: the GPU where there is one)")
    export.add_argument(
        "--feature_cache", help="folder of visual tokens (default: features/ beside the run folder; none: not kept)"
    )
    export.set_defaults(command=_export)

    analyse = commands.add_parser("analyse", help="how far the modalities of a VLM2Rec run have collapsed")
    analyse.add_argument("--checkpoint", required=True, help="run folder of a VLM2Rec run, or its checkpoint/")
    analyse.add_argument("--dataset", help="measure on this data set (default: the one trained on)")
    analyse.add_argument("--data_path", help="folder of data sets (default: as in training)")
    analyse.add_argument("--device", help="torch device (default: the GPU where there is one)")
    analyse.add_argument("--feature_cache", help="folder of visual tokens (default: features/ beside the run folder)")
    analyse.add_argument("--json", type=Path, help="write the figures there too")
    analyse.set_defaults(command=_analyse)

    recommend = commands.add_parser("recommend", help="rank all items for a history with a trained VLM2Rec")
    recommend.add_argument("--checkpoint", required=True, help="run folder of a VLM2Rec run, or its checkpoint/")
    asked = recommend.add_mutually_exclusive_group(required=True)
    asked.add_argument("--history", metavar="ID,ID,…", help="item ids, oldest first")
    asked.add_argument("--user", metavar="TOKEN", help="a user of the data set, with all items of theirs")
    recommend.add_argument("--new_items", metavar="FILE", help="a .item file of further items, to be ranked with the rest")
    recommend.add_argument("--top", type=int, default=10, help="items to recommend (default: 10)")
    recommend.add_argument("--dataset", help="recommend this data set's items (default: the one trained on)")
    recommend.add_argument("--data_path", help="folder of data sets (default: as in training)")
    recommend.add_argument("--export", metavar="FOLDER", help="the items' vectors (default: kept in items/ of the run folder)")
    recommend.add_argument("--device", help="torch device (default: the GPU where there is one)")
    recommend.add_argument(
        "--index",
        choices=("exact", "hnsw", "ivf"),
        help="search through FAISS; the recall of hnsw and ivf is measured (default: exact beyond 100,000 items, else none)",
    )
    recommend.add_argument("--json", type=Path, metavar="FILE", help="write it there too")
    recommend.set_defaults(command=_recommend)

    benchmark = commands.add_parser("benchmark", help="measure training, embedding and evaluation speed and peak memory")
    benchmark.add_argument("--dataset", default="minishop")
    benchmark.add_argument("--data_path", default="atomic_data")
    benchmark.add_argument("--backbone", default="tiny")
    benchmark.add_argument("--users", type=int, help="users to train and evaluate on (default: all)")
    benchmark.add_argument("--max_visual_tokens", type=int, help="default: 4 on a data set, 64 with --configuration")
    benchmark.add_argument("--batch_size", type=int, default=32)
    benchmark.add_argument("--device", default="cpu")
    benchmark.add_argument(
        "--configuration",
        choices=("mid", "qwen2.5-vl-3b"),
        help="instead of a data set: random weights of this shape, Beauty's lengths, beside the plain transformers + PEFT loop",
    )
    benchmark.add_argument(
        "--export_items", help="instead of these: peak memory of exports of so many items each (10000,1000000)"
    )
    benchmark.add_argument("--json", type=Path, help="write the figures there too")
    benchmark.set_defaults(command=_benchmark)

    table = commands.add_parser("table", help="the result table over finished runs, with tests of significance")
    table.add_argument("runs", nargs="+", metavar="RUNS", help="folders of runs, or folders that hold some")
    table.add_argument("--metrics", default="hit@10,hit@20,ndcg@10,ndcg@20", help="columns (default: %(default)s)")
    table.add_argument("--tested", default="ndcg@20", help="metrics by which the best row is tested (default: %(default)s)")
    table.add_argument("--ours", help="names of our rows, with commas (default: those that begin with VLM2Rec)")
    table.add_argument("--format", choices=("markdown", "csv", "latex"), default="markdown")
    table.add_argument("--out", type=Path, metavar="FILE", help="write it there instead of printing it")
    table.set_defaults(command=_table)

    cold = commands.add_parser("cold-start", help="finished runs by how often the target stands in the training data")
    cold.add_argument("runs", nargs="+", metavar="RUNS", help="folders of runs, or folders that hold some")
    cold.add_argument("--metrics", default="hit@20,ndcg@20", help="a table each (default: %(default)s)")
    cold.add_argument("--buckets", default="0,1,3,6,11", help="least frequency of each bucket, from 0 on (default: %(default)s)")
    cold.add_argument("--data_path", type=Path, help="folder of data sets (default: as in the runs)")
    cold.add_argument("--json", type=Path, metavar="FILE", help="write the figures there too")
    cold.set_defaults(command=_cold_start)

    measured = "modality dropout, geometry, margins, gradient alignment and cost of finished runs"
    told = commands.add_parser("diagnostics", help=measured)
    told.add_argument("runs", nargs="+", metavar="RUNS", help="folders of runs, or folders that hold some")
    told.add_argument("--metric", default="ndcg@20", help="of modality dropout and cost (default: %(default)s)")
    told.add_argument("--out", type=Path, metavar="FILE", help="write it there instead of printing it")
    told.set_defaults(command=_diagnostics)

    report = commands.add_parser("report", help="one page over finished runs: tables, plots, and an explorer of single users")
    report.add_argument("--runs", default="saved", metavar="FOLDER,…", help="folders of runs (default: %(default)s)")
    report.add_argument("--out", type=Path, default=Path("report.html"), metavar="FILE", help="(default: %(default)s)")
    report.add_argument("--data_path", help="folder of data sets (default: as in the runs)")
    report.add_argument("--metric", default="ndcg@20", help="what the plots show (default: %(default)s)")
    report.add_argument("--buckets", default="0,1,3,6,11", help="least frequencies of cold start (default: %(default)s)")
    report.add_argument("--users", type=int, default=40, help="users in the explorer, a data set each (default: %(default)s)")
    report.set_defaults(command=_report)

    study = commands.add_parser("study", help="the modality collapse study on generated shops (about an hour on two cores)")
    study.add_argument(
        "--out",
        type=Path,
        metavar="FOLDER",
        default=Path("runs/study"),
        help="folder of shops, runs and the report; finished runs are kept",
    )
    study.add_argument("--presets", default="balanced,text-heavy")
    study.add_argument("--data_seeds", default="1,2,3")
    study.add_argument("--seeds", default="2026,2027")
    study.add_argument("--jobs", type=int, default=2, help="runs at a time, one thread each")
    study.set_defaults(command=_study)
    return parser


def _export(options: argparse.Namespace) -> None:
    from recbole_vlm2rec.embeddings import MANIFEST
    from recbole_vlm2rec.export import export

    folder = export(
        options.checkpoint,
        options.out,
        options.dataset,
        options.data_path,
        options.device,
        feature_cache=options.feature_cache,
    )
    done = (folder / MANIFEST).is_file()
    print(f"export: {folder}" if done else f"this process's share of {folder} is done; the last one to finish writes it")


def _analyse(options: argparse.Namespace) -> None:
    from recbole_vlm2rec.analysis.collapse import analyse

    analyse(
        options.checkpoint,
        options.dataset,
        options.data_path,
        options.device,
        options.feature_cache,
        options.json,
    )


def _recommend(options: argparse.Namespace) -> None:
    from recbole_vlm2rec.recommend import print_recommendations

    settings = {name: value for name, value in vars(options).items() if name not in ("command", "json", "history")}
    history = None if options.history is None else [item.strip() for item in options.history.split(",") if item.strip()]
    print_recommendations(history=history, json_file=options.json, **settings)


def _benchmark(options: argparse.Namespace) -> None:
    if options.export_items:
        from recbole_vlm2rec.benchmark.catalogue import measure_exports

        measure_exports([int(count) for count in options.export_items.split(",")], options.backbone, options.json)
        return
    if options.configuration:
        from recbole_vlm2rec.benchmark.peers import compare

        compare(options.configuration, options.device, visual_tokens=options.max_visual_tokens or 64, json_file=options.json)
        return
    from recbole_vlm2rec.benchmark.throughput import benchmark

    apart = ("command", "json", "configuration", "export_items")
    settings = {name: value for name, value in vars(options).items() if name not in apart and value is not None}
    benchmark(**settings, json_file=options.json)


def _table(options: argparse.Namespace) -> None:
    from recbole_vlm2rec.report.tables import print_table

    print_table(options)


def _cold_start(options: argparse.Namespace) -> None:
    from recbole_vlm2rec.report.cold_start_table import print_cold_start

    print_cold_start(options)


def _diagnostics(options: argparse.Namespace) -> None:
    from recbole_vlm2rec.report.diagnostics import print_diagnostics

    print_diagnostics(options)


def _report(options: argparse.Namespace) -> None:
    from recbole_vlm2rec.report.page import print_report

    print_report(options)


def _study(options: argparse.Namespace) -> None:
    from recbole_vlm2rec.study import study

    data_seeds, seeds = ([int(seed) for seed in text.split(",")] for text in (options.data_seeds, options.seeds))
    study(options.out, options.presets.split(","), data_seeds, seeds, options.jobs)
