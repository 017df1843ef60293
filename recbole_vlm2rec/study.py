"""The modality collapse study: vanilla, SFT and VLM2Rec on generated shops, beside what could be reached at all.

On top of every room, like quick_start. Every run is a process of its own with one thread; what is finished is kept.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from recbole_vlm2rec.analysis import references
from recbole_vlm2rec.analysis.significance import holm, paired
from recbole_vlm2rec.metrics import ndcg
from recbole_vlm2rec.prepare.minishop import generate

VARIANTS = {
    "vanilla": {"objective": "none"},
    "SFT": {"objective": "sft"},
    "VLM2Rec": {"objective": "wpcl+crtr"},
    "SFT, all prefixes": {"objective": "sft", "train_examples": "all"},
    "VLM2Rec, all prefixes": {"objective": "wpcl+crtr", "train_examples": "all"},
    "SFT, tau 1": {"objective": "sft", "tau_wpcl": 1.0},
    "VLM2Rec, tau 1": {"objective": "wpcl+crtr", "tau_wpcl": 1.0},
}
EVERYWHERE = ("vanilla", "SFT", "VLM2Rec")
CANDIDATE_SEED = 2026
ASKING = {"f2f": "test_ranks", "t2f": "test_t2f_ranks", "v2f": "test_v2f_ranks"}
EXPLANATIONS = ("margin_text", "margin_image", "gap", "w", "gradient_through_w", "kl", "share_weak_image", "alpha", "beta")


@dataclass(frozen=True)
class Run:
    """One training run of the study."""

    preset: str
    data_seed: int
    variant: str
    seed: int

    @property
    def shop(self) -> str:
        return f"{self.preset}-{self.data_seed}"

    @property
    def name(self) -> str:
        return f"{self.shop}-{self.variant.replace(', ', '-').replace(' ', '-')}-{self.seed}"


def planned(presets: Sequence[str], data_seeds: Sequence[int], seeds: Sequence[int]) -> list[Run]:
    """Vanilla (once, it has no seed), SFT and VLM2Rec everywhere; the other variants on one shop, the last preset's first."""
    runs = []
    for preset in presets:
        for data_seed in data_seeds:
            runs += [Run(preset, data_seed, "vanilla", seeds[0])]
            runs += [Run(preset, data_seed, variant, seed) for variant in EVERYWHERE[1:] for seed in seeds]
    others = [variant for variant in VARIANTS if variant not in EVERYWHERE]
    # The longest first: two processes then end at about the same time.
    return [Run(presets[-1], data_seeds[0], variant, seeds[0]) for variant in others] + runs


def study(out: Path, presets: Sequence[str], data_seeds: Sequence[int], seeds: Sequence[int], jobs: int = 2) -> dict:
    """Runs what is missing under `out`, then writes and prints `study.json` and `study.md`. Returns the content of the former."""
    for preset in presets:
        for data_seed in data_seeds:
            if not (out / "shops" / f"{preset}-{data_seed}" / f"{preset}-{data_seed}.json").exists():
                generate(out / "shops", f"{preset}-{data_seed}", data_seed, preset)
    runs = planned(presets, data_seeds, seeds)
    missing = [run for run in runs if not _result_file(out, run).exists()]
    with ThreadPoolExecutor(jobs) as pool, tqdm(total=len(missing), desc="Study", unit="run") as progress:
        for _ in pool.map(lambda run: _start(out, run), missing):
            progress.update()
    report = summarise(out, runs)
    (out / "study.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    text = as_markdown(report)
    (out / "study.md").write_text(text, encoding="utf-8")
    print(text)
    return report


def _result_file(out: Path, run: Run) -> Path:
    return out / "results" / f"{run.name}.json"


def _start(out: Path, run: Run) -> None:
    settings = {
        "model": "VLM2Rec",
        "dataset": run.shop,
        "data_path": out / "shops",
        "backbone": "tiny",
        "seed": run.seed,
        "candidate_seed": CANDIDATE_SEED,
        "checkpoint_dir": out / "runs",
        "result_file": _result_file(out, run),
        "show_progress": False,
        **VARIANTS[run.variant],
    }
    command = [sys.executable, "-m", "recbole_vlm2rec", "run", *(f"--{key}={value}" for key, value in settings.items())]
    outcome = subprocess.run(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, check=False)
    if outcome.returncode:
        raise RuntimeError(f"run {run.name} failed; {' '.join(command)} says:\n{outcome.stderr[-2000:]}")


def summarise(out: Path, runs: Iterable[Run]) -> dict:
    """Figures of every shop and variant: per-user means, geometry, what explains them, and paired differences."""
    runs = list(runs)
    results = {run: json.loads(_result_file(out, run).read_text(encoding="utf-8")) for run in runs}
    # N@20 of each user, averaged over training seeds: [users].
    gains: dict[tuple[str, str, str], np.ndarray] = {}
    rows = []
    for shop, variant in dict.fromkeys((run.shop, run.variant) for run in runs):
        chosen = [run for run in runs if (run.shop, run.variant) == (shop, variant)]
        for asking, key in ASKING.items():
            gains[shop, variant, asking] = np.mean([ndcg(_ranks(results[run])[key], 20) for run in chosen], axis=0)
        geometry = {
            side: float(np.mean([results[run]["geometry"][side]["separability"] for run in chosen])) for side in ("text", "image")
        }
        last = [results[run]["training"][-1] for run in chosen if results[run]["training"]]
        explanations = {name: float(np.mean([entry[name] for entry in last])) for name in EXPLANATIONS} if last else {}
        ndcg20 = {asking: float(gains[shop, variant, asking].mean()) for asking in ASKING}
        rows.append(
            {
                "shop": shop,
                "variant": variant,
                "runs": len(chosen),
                "ndcg@20": ndcg20,
                "separability": geometry,
                "last_epoch": explanations,
            }
        )
    shops = list(dict.fromkeys(run.shop for run in runs))
    known = {
        shop: {
            name: float(ndcg(ranks, 20).mean())
            for name, ranks in references.ranks(out / "shops" / shop, shop, CANDIDATE_SEED).items()
        }
        for shop in shops
    }
    return {
        "rows": rows,
        "references": known,
        "differences": _differences(gains, shops),
        "versions": results[runs[0]]["versions"],
    }


def _ranks(result: dict) -> dict[str, np.ndarray]:
    with np.load(Path(result["checkpoint"]).parent / "ranks.npz") as ranks:
        return {key: ranks[key] for key in ASKING.values()}


def _differences(gains: dict[tuple[str, str, str], np.ndarray], shops: Sequence[str]) -> list[dict]:
    """Paired by user within each shop, and over all shops of a preset together; p corrected by Holm over the whole list."""
    comparisons = [
        ("SFT", "vanilla", "f2f"), ("SFT", "vanilla", "t2f"), ("SFT", "vanilla", "v2f"),
        ("VLM2Rec", "SFT", "f2f"), ("VLM2Rec", "SFT", "t2f"), ("VLM2Rec", "SFT", "v2f"),
        ("SFT, all prefixes", "vanilla", "v2f"), ("VLM2Rec, all prefixes", "SFT, all prefixes", "f2f"),
        ("VLM2Rec, all prefixes", "SFT, all prefixes", "v2f"), ("VLM2Rec, tau 1", "SFT, tau 1", "f2f"),
        ("VLM2Rec, tau 1", "SFT, tau 1", "v2f"),
    ]  # fmt: skip
    presets = list(dict.fromkeys(_preset(shop) for shop in shops))
    found = []
    for preset in presets:
        for one, other, asking in comparisons:
            both = [
                shop
                for shop in shops
                if _preset(shop) == preset and (shop, one, asking) in gains and (shop, other, asking) in gains
            ]
            if not both:
                continue
            pair = [np.concatenate([gains[shop, variant, asking] for shop in both]) for variant in (one, other)]
            by_shop = [float((gains[shop, one, asking] - gains[shop, other, asking]).mean()) for shop in both]
            found.append({"preset": preset, "one": one, "other": other, "asking": asking, "by_shop": by_shop, **paired(*pair)})
    for entry, p in zip(found, holm([entry["p"] for entry in found]), strict=True):
        entry["p_holm"] = float(p)
    return found


def as_markdown(report: dict) -> str:
    """The study's three tables: scores, paired differences, and what explains them."""
    return "\n".join([*_score_table(report), "", *_difference_table(report), "", *_explanation_table(report), ""])


def _preset(shop: str) -> str:
    return shop.rsplit("-", 1)[0]


def _grouped(report: dict) -> dict[tuple[str, str], list[dict]]:
    """Rows of the report by (preset, variant), presets as they come, variants in the order of VARIANTS."""
    presets = dict.fromkeys(_preset(shop) for shop in report["references"])
    groups = {(preset, variant): [] for preset in presets for variant in VARIANTS}
    for row in report["rows"]:
        groups[_preset(row["shop"]), row["variant"]].append(row)
    return {key: rows for key, rows in groups.items() if rows}


def _score_table(report: dict) -> list[str]:
    lines = ["N@20 on the test items, 1 positive + 100 negatives, means over data and training seeds; S = A_neg / A_pos.", ""]
    lines += ["| shop | variant | shops x runs | f2f | t2f | v2f | S text | S image |", "|---|---|---|---|---|---|---|---|"]
    for preset in dict.fromkeys(_preset(shop) for shop in report["references"]):
        known = [scores for shop, scores in report["references"].items() if _preset(shop) == preset]
        for name in known[0]:
            lines.append(f"| {preset} | *{name}* | {len(known)} | {np.mean([scores[name] for scores in known]):.4f} | | | | |")
        for (of, variant), rows in _grouped(report).items():
            if of == preset:
                scores = [f"{np.mean([row['ndcg@20'][asking] for row in rows]):.4f}" for asking in ASKING]
                apart = [f"{np.mean([row['separability'][side] for row in rows]):.3f}" for side in ("text", "image")]
                lines.append(f"| {preset} | {variant} | {len(rows)} x {rows[0]['runs']} | {' | '.join(scores + apart)} |")
    return lines


def _difference_table(report: dict) -> list[str]:
    lines = ["Differences in N@20, paired by user (a preset's shops together); t-test, Holm's correction over all rows.", ""]
    lines += [
        "| shop | comparison | query | difference | standard error | by shop | p | p corrected |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for entry in report["differences"]:
        by_shop = ", ".join(f"{value:+.4f}" for value in entry["by_shop"])
        size = f"{entry['mean']:+.4f} | {entry['standard_error']:.4f} | {by_shop} | {entry['p']:.2g} | {entry['p_holm']:.2g}"
        lines.append(f"| {entry['preset']} | {entry['one']} - {entry['other']} | {entry['asking']} | {size} |")
    return lines


def _explanation_table(report: dict) -> list[str]:
    lines = ["Means over the training batches of the last epoch.", ""]
    lines += [f"| shop | variant | {' | '.join(EXPLANATIONS)} |", "|---|---|" + "---|" * len(EXPLANATIONS)]
    for (preset, variant), rows in _grouped(report).items():
        if rows[0]["last_epoch"]:
            means = [f"{np.mean([row['last_epoch'][name] for row in rows]):.4f}" for name in EXPLANATIONS]
            lines.append(f"| {preset} | {variant} | {' | '.join(means)} |")
    return lines
