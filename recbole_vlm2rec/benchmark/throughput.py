"""Seconds per epoch, items embedded and users evaluated a second, and peak memory of VLM2Rec on one data set.

Imports numpy, torch, vlm, objectives, measure, data.catalog and data.candidates; no recbole: it runs from a plain checkout.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
import transformers
from tqdm import tqdm

from recbole_vlm2rec import objectives
from recbole_vlm2rec.data.candidates import Histories
from recbole_vlm2rec.data.catalog import Catalog
from recbole_vlm2rec.measure import Meter
from recbole_vlm2rec.vlm.backbone import Lora, native_bfloat16
from recbole_vlm2rec.vlm.encoder import VLMEncoder
from recbole_vlm2rec.vlm.fusion import ItemEncoder

HISTORY = 10
EVALUATION_BATCH = 64
REPEATS = 3


def benchmark(
    dataset: str,
    data_path: str | Path,
    backbone: str = "tiny",
    users: int | None = None,
    max_visual_tokens: int = 4,
    batch_size: int = 32,
    device: str = "cpu",
    json_file: Path | None = None,
) -> dict:
    """Measures one data set and prints a table; returns (and writes to `json_file`) the figures.

    Training is one epoch of WPCL + CRTR with LoRA, one target a user, AdamW; evaluation encodes every user's validation and
    test history and all items. The pictures' visual tokens are computed once, in `embed items, cold`, and then kept.
    """
    folder = Path(data_path) / dataset
    catalog, histories = Catalog.read(folder, dataset), Histories.read(folder, dataset)
    catalog.check_items(histories.item_tokens[1:].tolist())
    torch.manual_seed(0)
    dtype = torch.bfloat16 if native_bfloat16(device) else torch.float32
    encoder = VLMEncoder.from_pretrained(backbone, max_visual_tokens=max_visual_tokens, lora=Lora(), dtype=dtype, device=device)
    tokens = histories.item_tokens[1:].tolist()
    titles, pictures = [None, *map(catalog.title, tokens)], [None, *map(catalog.image, tokens)]
    items = ItemEncoder(encoder, titles, pictures)
    sequences = [histories.of(user).tolist() for user in range(1, len(histories.user_tokens))][:users]
    sequences = [sequence for sequence in sequences if len(sequence) >= 4]
    single = [[item] for item in range(1, len(titles))]

    meter, seconds = Meter(), {}

    def clock(name: str, work: Callable[[], None], repeats: int = 1) -> None:
        times = []
        for _ in range(repeats):
            with meter(name):
                started = time.perf_counter()
                work()
                if torch.device(device).type == "cuda":
                    torch.cuda.synchronize()
                times.append(time.perf_counter() - started)
        seconds[name] = statistics.median(times)

    items.eval()
    clock("embed items, cold", lambda: _encode(items, single, "Items"))
    clock("embed items, pictures kept", lambda: _encode(items, single, "Items"), REPEATS)
    asked = [sequence[:-2][-HISTORY:] for sequence in sequences] + [sequence[:-1][-HISTORY:] for sequence in sequences]
    clock("evaluate users", lambda: _encode(items, asked, "Users"))
    clock("train one epoch", lambda: _train(items.train(), sequences, batch_size))

    result = {
        "dataset": dataset,
        "backbone": backbone,
        "parameters": sum(p.numel() for p in encoder.parameters()),
        "max_visual_tokens": max_visual_tokens,
        "batch_size": batch_size,
        "users": len(sequences),
        "items": len(single),
        "seconds": seconds,
        "per_second": {
            "items, cold": len(single) / seconds["embed items, cold"],
            "items, pictures kept": len(single) / seconds["embed items, pictures kept"],
            "histories evaluated": len(asked) / seconds["evaluate users"],
            "users trained": len(sequences) / seconds["train one epoch"],
        },
        "peak_memory_mib": meter.peak_memory_mib,
        "machine": machine(device),
    }
    print(table(result))
    if json_file:
        json_file.parent.mkdir(parents=True, exist_ok=True)
        json_file.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    return result


def _encode(items: ItemEncoder, sequences: Sequence[Sequence[int]], what: str) -> None:
    with torch.no_grad():
        for start in tqdm(range(0, len(sequences), EVALUATION_BATCH), desc=what, leave=False):
            items.encode(sequences[start : start + EVALUATION_BATCH])


def _train(items: ItemEncoder, sequences: Sequence[Sequence[int]], batch_size: int) -> None:
    alpha, beta = torch.nn.Parameter(torch.ones(())), torch.nn.Parameter(torch.ones(()))
    trained = [parameter for parameter in items.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW([{"params": trained, "lr": 1e-4}, {"params": [alpha, beta], "lr": 1e-5}])
    order = np.random.default_rng(0).permutation(len(sequences))
    for start in tqdm(range(0, len(order), batch_size), desc="Train", leave=False):
        rows = [sequences[row][:-2] for row in order[start : start + batch_size]]
        targets = [row[-1] for row in rows]
        both = items.encode([row[:-1][-HISTORY:] for row in rows] + [[target] for target in targets])
        z, e = both.rows(slice(len(rows))), both.rows(slice(len(rows), None))
        ids = torch.tensor(targets, device=z.fused.device)
        loss = objectives.wpcl(z.text, z.image, e.text, e.image, alpha.to(ids.device), beta.to(ids.device), 0.1, item_ids=ids)
        loss = loss + 0.1 * objectives.crtr(z.text, z.image, e.text, e.image, 0.1)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def machine(device: str) -> dict[str, str | int]:
    """What the figures were measured on."""
    cpu = platform.processor()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        cpu = next(
            (line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")), cpu
        )
    return {
        "device": torch.cuda.get_device_name(device) if torch.device(device).type == "cuda" else cpu,
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


def table(result: dict) -> str:
    """The figures as a Markdown table."""
    rates = result["per_second"]
    rows = [
        ("embed items, cold", f"{rates['items, cold']:.0f} items/s"),
        ("embed items, pictures kept", f"{rates['items, pictures kept']:.0f} items/s"),
        ("evaluate users", f"{rates['histories evaluated']:.0f} histories/s"),
        ("train one epoch", f"{rates['users trained']:.0f} users/s"),
    ]
    machine_ = result["machine"]
    lines = [
        f"{result['backbone']} on {result['dataset']}: {result['users']} users, {result['items']} items, "
        f"at most {result['max_visual_tokens']} visual tokens a picture, batch {result['batch_size']}; "
        f"{machine_['device']}, {machine_['cores']} cores, {machine_['threads']} threads",
        "| phase | seconds | rate | peak memory |",
        "|---|---|---|---|",
    ]
    for phase, rate in rows:
        peak = result["peak_memory_mib"].get(f"{phase}_gpu", result["peak_memory_mib"][phase])
        lines.append(f"| {phase} | {result['seconds'][phase]:.1f} | {rate} | {peak:.0f} MiB |")
    return "\n".join(lines)
