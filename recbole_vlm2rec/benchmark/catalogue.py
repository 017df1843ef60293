"""Peak memory and rate of an export by the number of items: titles are generated, a few pictures are reused.

Imports numpy, pillow, torch, tqdm, vlm and throughput; each export is a process of its own, by the same command that users give.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from recbole_vlm2rec.benchmark.throughput import machine
from recbole_vlm2rec.vlm.backbone import Lora
from recbole_vlm2rec.vlm.checkpoint import save_checkpoint
from recbole_vlm2rec.vlm.encoder import VLMEncoder
from recbole_vlm2rec.vlm.tiny_tokenizer import COMMON_WORDS

PICTURES, TITLE_WORDS, VISUAL_TOKENS = 64, 6, 4


def measure_exports(counts: Sequence[int], backbone: str = "tiny", json_file: Path | None = None) -> dict:
    """Exports catalogues of so many items one after another; prints a table, returns (and writes) the figures.

    Raises RuntimeError with what the export says where it fails.
    """
    rows = []
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        _write_checkpoint(folder, backbone)
        for count in counts:
            _write_shop(folder / "data", f"shop{count}", count)
            rows.append(_export(folder, count))
    figures = {"backbone": backbone, "exports": rows, "machine": machine("cpu")}
    print(table(figures))
    if json_file:
        json_file.parent.mkdir(parents=True, exist_ok=True)
        json_file.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    return figures


def _write_checkpoint(folder: Path, backbone: str) -> None:
    lora = Lora()
    encoder = VLMEncoder.from_pretrained(backbone, max_visual_tokens=VISUAL_TOKENS, lora=lora)
    choices = {"max_visual_tokens": VISUAL_TOKENS, "max_title_tokens": None, "fusion": "external", "modalities": "text+image"}
    description = {"model": "VLM2Rec", "dataset": "none", "data_path": str(folder / "data" / "none")}
    description["encoder"] = {"backbone": backbone, "lora": asdict(lora), **choices}
    save_checkpoint(folder / "run" / "checkpoint", encoder, {"alpha": torch.ones(())}, description)


def _write_shop(data_path: Path, name: str, count: int) -> None:
    rng = np.random.default_rng(0)
    folder = data_path / name
    folder.mkdir(parents=True)
    for number in range(PICTURES):
        Image.fromarray(rng.integers(0, 256, (56, 56, 3), dtype=np.uint8)).save(folder / f"{number}.png")
    with open(folder / f"{name}.item", "w", encoding="utf-8") as stream:
        stream.write("item_id:token\ttitle:token_seq\timage_path:token\n")
        for item in range(count):
            title = " ".join(rng.choice(COMMON_WORDS, TITLE_WORDS))
            stream.write(f"i{item}\t{title}\t{item % PICTURES}.png\n")


def _export(folder: Path, count: int) -> dict:
    command = [sys.executable, "-m", "recbole_vlm2rec", "export", f"--checkpoint={folder / 'run'}", f"--dataset=shop{count}"]
    command += [f"--data_path={folder / 'data'}", f"--out={folder / f'out{count}'}", "--device=cpu"]
    with open(folder / "log", "wb") as log:
        started = time.perf_counter()
        process = subprocess.Popen(command, stdout=log, stderr=log)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{(folder / 'log').read_text(encoding='utf-8')[-2000:]}")
    unit = 1024**2 if sys.platform == "darwin" else 1024
    return {"items": count, "seconds": time.perf_counter() - started, "peak_memory_mib": usage.ru_maxrss / unit}


def table(figures: dict) -> str:
    """The figures as a Markdown table."""
    on = figures["machine"]
    lines = [
        f"export with {figures['backbone']}, {PICTURES} pictures reused; {on['device']}, "
        f"{on['cores']} cores, {on['threads']} threads",
        "| items | seconds | items/s | peak memory |",
        "|---|---|---|---|",
    ]
    for row in figures["exports"]:
        rate = row["items"] / row["seconds"]
        lines.append(f"| {row['items']:,} | {row['seconds']:.0f} | {rate:.0f} | {row['peak_memory_mib']:.0f} MiB |")
    return "\n".join(lines)
