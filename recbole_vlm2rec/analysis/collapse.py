"""How far the modalities of a saved VLM2Rec run have collapsed: modality dropout, geometry, margins and penalty.

Imports numpy, torch, vlm, objectives, metrics, export, data and report.runs; no recbole. Histories, targets and candidates are
the run's, so that its figures come out as in its result.json, for variants and data sets that a run did not measure too.
"""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from recbole_vlm2rec import objectives
from recbole_vlm2rec.analysis.geometry import geometry
from recbole_vlm2rec.data.candidates import Candidates, FullRanking, Histories, draw_candidates, full_ranking, load_or_draw
from recbole_vlm2rec.data.catalog import Catalog
from recbole_vlm2rec.export import ITEM_BATCH
from recbole_vlm2rec.metrics import full_ranks, positive_ranks, summary
from recbole_vlm2rec.report.runs import RunError, read_run
from recbole_vlm2rec.trained import open_trained
from recbole_vlm2rec.vlm.checkpoint import load_penalty
from recbole_vlm2rec.vlm.fusion import ItemEncoder, Vectors

# Negatives a user for A_neg where all items are ranked and there are no lists of candidates.
GEOMETRY_NEGATIVES = 10
# Users ranked at a time, against all items.
_BLOCK = 1024
SIDES = {"f2f": "fused", "t2f": "text", "v2f": "image"}


def analyse(
    checkpoint: str | Path,
    dataset: str | None = None,
    data_path: str | Path | None = None,
    device: str | None = None,
    feature_cache: str | Path | None = None,
    json_file: Path | None = None,
    show_progress: bool = True,
) -> dict:
    """Measures the checkpoint on the test users of `dataset` and prints tables; returns (and writes) the figures.

    Args:
        checkpoint: a run folder of VLM2Rec, any variant, or its `checkpoint/`.
        dataset, data_path, device, feature_cache: as in `export`.
    What a checkpoint without separate text and image vectors cannot be asked is left out, and `notes` says so. Raises
    CheckpointError, CatalogError, CandidateError or BackboneError with what is wrong and where.
    """
    trained = open_trained(checkpoint, dataset, data_path, device)
    description, name, config, run = trained.description, trained.dataset, trained.description["config"], trained.run_folder
    catalog = Catalog.read_file(trained.item_file, trained.reads_pictures)
    histories = Histories.read(catalog.folder, name)
    catalog.check_items(histories.item_tokens[1:].tolist())
    catalog.verify_images()
    items = trained.items([*map(catalog.title, catalog.item_ids)], [*map(catalog.image, catalog.item_ids)])
    trained.open_store(feature_cache)
    if trained.encoder.store is not None:
        trained.encoder.store.compute(items.pictures, show_progress)
    lists, drawn = _candidates(histories, name, config, [catalog.folder / "candidates", run.parent / "candidates"])
    queries, table = _encode(items, catalog.item_ids, histories, lists, config, show_progress)
    result = {
        "checkpoint": str(checkpoint),
        "model": description["model"],
        **{key: config[key] for key in ("objective", "fusion", "modalities", "seed")},
        "trained_on": description["dataset"],
        "dataset": name,
        "users": len(lists.users),
        "candidates": drawn,
        **measure(queries, table, lists, histories, load_penalty(checkpoint), config),
    }
    result["notes"] += _other_candidates(run, name, drawn)
    print(as_text(result))
    if json_file:
        json_file.parent.mkdir(parents=True, exist_ok=True)
        json_file.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    return result


def measure(
    queries: Vectors,
    table: Vectors,
    lists: Candidates | FullRanking,
    histories: Histories,
    scalars: dict[str, Tensor],
    config: dict,
) -> dict:
    """`modality_dropout`, `geometry`, `penalty` and `notes` of the test users' vectors [U, d] and the items' [1 + n, d]."""
    apart = queries.text is not None and queries.image is not None
    sides = SIDES if apart else {"f2f": "fused"}
    targets, users = (torch.as_tensor(ids.astype(np.int64), device=table.fused.device) for ids in (lists.targets, lists.user_ids))
    dropout = {
        short: summary(_ranks(getattr(queries, kind), table.fused, lists, histories), config["metrics"], config["topk"])
        for short, kind in sides.items()
    }
    result = {"modality_dropout": dropout, "geometry": None, "penalty": None, "notes": []}
    try:
        negatives = _negatives(lists, histories, config)
        result["geometry"] = {
            kind: geometry(getattr(queries, kind), getattr(table, kind), targets, negatives) for kind in sides.values()
        }
    except ValueError as error:  # a data set too small for it
        result["notes"].append(f"No geometry: {error}.")
    if apart:
        result["penalty"] = penalty(queries, table.rows(targets), targets, users, scalars, config)
    else:
        why = "one prompt holds both" if config["fusion"] == "internal" else f"it reads {config['modalities']} alone"
        result["notes"].append(
            f"No separate text and image vectors ({why}): t2f, v2f, their geometry and the margins are left out."
        )
    return result


def penalty(
    queries: Vectors, targets: Vectors, item_ids: Tensor, user_ids: Tensor, scalars: dict[str, Tensor], config: dict
) -> dict[str, float]:
    """alpha, beta, and `objectives.penalty_statistics` of all rows, means over users, in batches of the run's size.

    A user's negatives are the other targets of the batch: the rows are shuffled, by the run's seed, and what is left over at the
    end is shared out, since a batch of one has no negatives.
    """
    order = np.random.default_rng(config["seed"]).permutation(len(item_ids))
    parts = np.array_split(order, max(1, len(order) // config["train_batch_size"]))
    totals: dict[str, float] = {}
    for rows in map(torch.from_numpy, parts):
        z, e = queries.rows(rows), targets.rows(rows)
        found = objectives.penalty_statistics(
            z.text, z.image, e.text, e.image, *(scalars[name].to(z.text.device) for name in ("alpha", "beta")),
            config["tau_wpcl"], config["tau_crtr"], item_ids[rows], user_ids[rows], config["centre_penalty"],
        )  # fmt: skip
        for name, value in found.items():
            totals[name] = totals.get(name, 0.0) + value.item() * len(rows) / len(order)
    return {"alpha": scalars["alpha"].item(), "beta": scalars["beta"].item(), **totals}


def _candidates(histories: Histories, name: str, config: dict, folders: list[Path]):
    """The test lists that the run's settings define, and {"file", "sha256"} as in result.json; None for a full ranking."""
    if config["eval_negatives"] == "full":
        return full_ranking(histories, "test", _seed(config)), None
    drawn, file, digest = load_or_draw(histories, name, config["eval_negatives"], _seed(config), folders)
    return drawn["test"], {"file": str(file), "sha256": digest}


def _seed(config: dict) -> int:
    return config["seed"] if config["candidate_seed"] is None else config["candidate_seed"]


def _other_candidates(run: Path, name: str, drawn: dict | None) -> list[str]:
    """A note where the run was tested on this data set with other candidates: its data have changed since."""
    with suppress(RunError):
        stated = read_run(run).result
        before = stated["candidates"] and stated["candidates"]["sha256"]
        if stated["dataset"] == name and before != (drawn and drawn["sha256"]):
            return [f"The candidates are not those of the run's own test: the interactions of {name} have changed since."]
    return []


@torch.no_grad()
def _encode(
    items: ItemEncoder, item_ids: list[str], histories: Histories, lists, config: dict, show_progress: bool
) -> tuple[Vectors, Vectors]:
    """Vectors of the test users' histories, [U, d], and of all items by the histories' ids, [1 + n, d], row 0 zero."""
    place = {token: row for row, token in enumerate(item_ids)}
    rows = [0, *(place[token] for token in histories.item_tokens[1:].tolist())]
    longest = config["MAX_ITEM_LIST_LENGTH"]
    asked = [[rows[item] for item in histories.of(user)[:-1][-longest:]] for user in lists.user_ids]

    def encode(sequences: list[list[int]], size: int, what: str) -> Vectors:
        starts = tqdm(range(0, len(sequences), size), desc=what, unit=f"x{size}", disable=not show_progress, leave=False)
        return Vectors.of(
            lambda *vectors: torch.cat(vectors), *(items.encode(sequences[start : start + size]) for start in starts)
        )

    queries = encode(asked, config["eval_batch_size"], "Encode histories")
    table = encode([[row] for row in rows[1:]], ITEM_BATCH, "Embed items")
    return queries, Vectors.of(lambda vectors: F.pad(vectors, (0, 0, 1, 0)), table)


def _ranks(queries: Tensor, items: Tensor, lists: Candidates | FullRanking, histories: Histories) -> np.ndarray:
    """Rank of each user's target by cosine, 1 is best."""
    queries, items = F.normalize(queries, dim=-1), F.normalize(items, dim=-1)
    ranks = []
    for rows in np.array_split(np.arange(len(queries)), np.arange(_BLOCK, len(queries), _BLOCK)):
        scores = (queries[rows[0] : rows[-1] + 1] @ items.T).cpu().numpy()
        if isinstance(lists, Candidates):
            chosen = np.take_along_axis(scores, lists.items[rows].astype(np.int64), axis=1)
            ranks.append(positive_ranks(chosen, lists.position[rows]))
            continue
        excluded = np.zeros(scores.shape, dtype=bool)
        excluded[:, 0] = True
        for row, user in enumerate(lists.user_ids[rows]):
            excluded[row, histories.of(user)] = True
        ranks.append(full_ranks(scores, lists.targets[rows], excluded, lists.tie[rows]))
    return np.concatenate(ranks)


def _negatives(lists: Candidates | FullRanking, histories: Histories, config: dict) -> np.ndarray:
    """Each user's negatives for A_neg, [U, N]."""
    if isinstance(lists, FullRanking):
        lists = draw_candidates(histories, "test", GEOMETRY_NEGATIVES, _seed(config))
    others = np.arange(lists.items.shape[1]) != lists.position[:, None]
    return lists.items[others].reshape(len(lists.items), -1).astype(np.int64)


def as_text(result: dict) -> str:
    """The figures as tables to read."""
    among = "all untouched items" if result["candidates"] is None else f"the candidates of {result['candidates']['file']}"
    lines = [
        f"{result['model']} (objective {result['objective']}, fusion {result['fusion']}, {result['modalities']}) trained on "
        f"{result['trained_on']}, seed {result['seed']}",
        f"{result['users']} test users of {result['dataset']}, one target among {among}",
        "",
    ]
    asked = {"f2f": "history", "t2f": "its titles alone", "v2f": "its pictures alone"}
    rows = {f"{short}  {asked[short]}": metrics for short, metrics in result["modality_dropout"].items()}
    lines += _table("modality dropout", rows, {name: name for name in next(iter(rows.values()))})
    if result["geometry"]:
        measures = {"alignment_positive": "A_pos", "alignment_negative": "A_neg", "separability": "S = A_neg / A_pos"}
        measures |= {f"uniformity_{reading}": f"U {reading}" for reading in ("cross", "queries", "items")}
        lines += ["", *_table("geometry", result["geometry"], measures)]
    if result["penalty"]:
        names = {
            "alpha": "alpha", "beta": "beta", "margin_text": "margin, text", "margin_image": "margin, image", "gap": "gap",
            "w": "w", "share_weak_image": "users whose weaker side is the image", "kl": "KL (CRTR)",
            "gradient_through_w": "gradient through w, of the positive's",
        }  # fmt: skip
        lines += ["", "margins and penalty, means over users"]
        lines += [f"  {text:<38}{result['penalty'][name]:>10.4f}" for name, text in names.items()]
    return "\n".join([*lines, *(f"\n{note}" for note in result["notes"])])


def _table(title: str, rows: dict[str, dict[str, float]], columns: dict[str, str]) -> list[str]:
    widths = [max(10, len(text) + 2) for text in columns.values()]
    lines = [f"{title:<28}" + "".join(f"{text:>{width}}" for text, width in zip(columns.values(), widths, strict=True))]
    for name, values in rows.items():
        lines.append(f"  {name:<26}" + "".join(f"{values[key]:>{width}.4f}" for key, width in zip(columns, widths, strict=True)))
    return lines
