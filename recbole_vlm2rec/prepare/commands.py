"""`recbole-vlm2rec prepare …`: its sources, their flags, and what each calls.

May import the standard library and settings; everything else when its command runs, so that `--help` is quick.
"""

from __future__ import annotations

import argparse
from dataclasses import fields
from pathlib import Path

from recbole_vlm2rec.prepare.settings import Settings, describe

TABLE_COLUMNS = ("user", "item", "time", "rating", "title", "picture")
"""What `prepare table` reads, each from a column that `--user_column=…` and so on may name."""

_MORE = "[--FLAG=VALUE …]"


def add_commands(prepare: argparse._SubParsersAction) -> None:
    """Adds minishop, amazon, table, check and benchmark to `recbole-vlm2rec prepare`."""
    shop = prepare.add_parser("minishop", help="generate the bundled shop, or one like it")
    shop.add_argument(
        "--out", type=Path, metavar="FOLDER", default=Path("atomic_data"), help="folder of data sets (default: atomic_data)"
    )
    shop.add_argument("--name", default="minishop", help="name of the data set (default: minishop)")
    shop.add_argument("--seed", type=int, default=2026, help="the same seed gives the same files, bit for bit (default: 2026)")
    shop.add_argument(
        "--preset", choices=("balanced", "text-heavy", "image-heavy"), default="balanced", help="which side drives purchases"
    )
    shop.set_defaults(command=_prepare_minishop)
    _amazon_arguments(
        prepare.add_parser(
            "amazon",
            usage=f"%(prog)s --category=NAME {_MORE}",
            help="a category of the Amazon reviews, from raw files to pictures",
        )
    )
    _table_arguments(
        prepare.add_parser(
            "table",
            usage=f"%(prog)s --name=NAME --interactions=FILE --items=FILE {_MORE}",
            help="your own shop: CSV, TSV, JSON lines, Parquet or RecBole's atomic files",
        )
    )
    check = prepare.add_parser(
        "check", help="everything in a data set that a run would trip over; exit status 1 if anything would"
    )
    check.add_argument("--dataset", required=True, help="name of the data set")
    check.add_argument("--data_path", type=Path, default=Path("atomic_data"), help="folder of data sets (default: atomic_data)")
    check.set_defaults(command=_prepare_check)
    speed = prepare.add_parser("benchmark", help="measure the preparation against a local server, beside a plain loop")
    speed.add_argument("--sequences", type=Path, help="an .inter file to make the raw files from (default: generated)")
    speed.add_argument("--json", type=Path, help="write the figures there too")
    speed.set_defaults(command=_prepare_benchmark)


def _amazon_arguments(amazon: argparse.ArgumentParser) -> None:
    amazon.add_argument("--category", required=True, help="Beauty, Toys, Clothing, Sports, or a category as the release names it")
    amazon.add_argument("--release", choices=("2014", "2018", "2023"), default="2014", help="default: 2014, the paper's")
    amazon.add_argument(
        "--raw",
        type=Path,
        metavar="FOLDER",
        help="folder of the raw files; what is missing is downloaded (default: raw_data/amazon-RELEASE)",
    )
    amazon.add_argument(
        "--out", type=Path, metavar="FOLDER", default=Path("atomic_data"), help="folder of data sets (default: atomic_data)"
    )
    amazon.add_argument("--name", help="name of the data set (default: the category; with the release unless it is 2014)")
    amazon.add_argument("--base_url", help="where the raw files are downloaded from (default: the release's own place)")
    _settings_arguments(amazon)
    amazon.set_defaults(command=_prepare_amazon)


def _table_arguments(table: argparse.ArgumentParser) -> None:
    table.add_argument("--interactions", type=Path, metavar="FILE", help="file of users, items and times")
    table.add_argument("--items", type=Path, metavar="FILE", help="file of items, titles and pictures (paths or URLs)")
    table.add_argument(
        "--from_recbole",
        type=Path,
        metavar="FOLDER",
        help="RecBole data set folder that the interactions, and further columns of items, come from",
    )
    table.add_argument("--name", required=True, help="name of the data set")
    table.add_argument(
        "--out", type=Path, metavar="FOLDER", default=Path("atomic_data"), help="folder of data sets (default: atomic_data)"
    )
    for column in TABLE_COLUMNS:
        table.add_argument(f"--{column}_column", metavar="NAME", help=f"column of the {column} (default: guessed from the names)")
    table.add_argument(
        "--pictures", type=Path, metavar="FOLDER", help="folder that picture paths are relative to (default: the items file's)"
    )
    table.add_argument("--encoding", help="of text files (default: UTF-8, or UTF-16 with its byte-order mark)")
    table.add_argument("--dry_run", action="store_true", help="report what would be kept; fetch and write nothing")
    _settings_arguments(table)
    table.set_defaults(command=_prepare_table)


def _settings_arguments(parser: argparse.ArgumentParser) -> None:
    """A flag for each field of prepare.settings.Settings."""
    group = parser.add_argument_group("filters and pictures")
    for setting in fields(Settings):
        if isinstance(setting.default, bool):
            group.add_argument(f"--{setting.name}", action="store_true", help=setting.metadata["meaning"])
        else:
            kind = Path if isinstance(setting.default, Path) else type(setting.default)
            metavar = {int: "N", float: "X", str: "WORD", Path: "FOLDER"}[kind]
            group.add_argument(f"--{setting.name}", type=kind, default=setting.default, metavar=metavar, help=describe(setting))


def _settings(options: argparse.Namespace) -> Settings:
    return Settings(**{setting.name: getattr(options, setting.name) for setting in fields(Settings)})


def _prepare_amazon(options: argparse.Namespace) -> None:
    from recbole_vlm2rec.prepare import build
    from recbole_vlm2rec.prepare.amazon import prepare_amazon

    raw = options.raw or Path("raw_data") / f"amazon-{options.release}"
    report = prepare_amazon(
        options.category, raw, options.out, _settings(options), options.release, options.name, options.base_url
    )
    print(build.describe(report))


def _prepare_table(options: argparse.Namespace) -> None:
    from recbole_vlm2rec.prepare import build
    from recbole_vlm2rec.prepare.table import prepare_table

    columns = {column: getattr(options, f"{column}_column") for column in TABLE_COLUMNS}
    report = prepare_table(
        options.interactions,
        options.items,
        options.name,
        options.out,
        _settings(options),
        options.from_recbole,
        {column: name for column, name in columns.items() if name is not None},
        options.pictures,
        options.encoding,
        options.dry_run,
    )
    print(build.describe(report))


def _prepare_check(options: argparse.Namespace) -> int:
    from recbole_vlm2rec.prepare import check

    findings = check.check(options.data_path / options.dataset, options.dataset)
    print(check.describe(findings))
    return int(any(finding.fatal for finding in findings))


def _prepare_benchmark(options: argparse.Namespace) -> None:
    from recbole_vlm2rec.benchmark.preparation import benchmark

    benchmark(options.sequences, options.json)


def _prepare_minishop(options: argparse.Namespace) -> None:
    from recbole_vlm2rec.prepare.minishop import generate

    facts = generate(options.out, options.name, options.seed, options.preset)
    shares = ", ".join(f"{side} {share:.1%}" for side, share in facts["shares"].items())
    print(f"{options.out / options.name}: {facts['users']} users, {facts['items']} items, {facts['interactions']} interactions")
    print(f"share of the preference variance: {shares}")
    for reader, modalities in facts["scores"].items():
        print(
            f"{reader:>8}  "
            + "  ".join(f"{modality} N@20 {phases['test']['ndcg@20']:.3f}" for modality, phases in modalities.items())
        )
