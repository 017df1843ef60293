"""Our encoder beside the loop that the documentation of transformers and PEFT leads to: one run, the same weights and inputs.

Imports numpy, pillow, torch, transformers, peft, tqdm, vlm, objectives and measure; runs from a plain checkout. Weights are
random, so nothing is downloaded; lengths follow Beauty. For embedding, sentence-transformers stands beside both if installed.
"""

from __future__ import annotations

import copy
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from peft import LoraConfig, get_peft_model
from PIL import Image
from torch import Tensor, nn
from tqdm import tqdm

from recbole_vlm2rec import objectives
from recbole_vlm2rec.benchmark.inputs import BEAUTY_LENGTHS, Shop, image_prompts, make_shop, random_model, text_prompts
from recbole_vlm2rec.benchmark.sentences import SentencePeer, available
from recbole_vlm2rec.benchmark.throughput import machine
from recbole_vlm2rec.measure import Meter
from recbole_vlm2rec.vlm.backbone import Backbone, Lora, native_bfloat16
from recbole_vlm2rec.vlm.encoder import VLMEncoder
from recbole_vlm2rec.vlm.fusion import ItemEncoder
from recbole_vlm2rec.vlm.prompts import IMAGE_INSTRUCTION, TEXT_INSTRUCTION
from recbole_vlm2rec.vlm.selftest import self_test

BATCH, PLAIN_BATCH = 8, 8
"""Users of a training step (the paper's), and sequences of one forward of the plain loop."""


class PlainLoop:
    """The whole model with its head, the processor at every step, padding, `output_hidden_states`, LoRA by the layers' names,
    activation checkpointing."""

    def __init__(self, model: nn.Module, tokenizer, processor, lora: Lora):
        model.gradient_checkpointing_enable({"use_reentrant": False})
        settings = LoraConfig(r=lora.rank, lora_alpha=lora.alpha, lora_dropout=lora.dropout, target_modules=list(lora.targets))
        self.model, self.tokenizer, self.processor = get_peft_model(model, settings), tokenizer, processor
        self.processor.size = {"shortest_edge": 56 * 56, "longest_edge": 2**24}
        self.device, self.half = next(model.parameters()).device, model.dtype == torch.bfloat16

    def encode(self, shop: Shop, sequences: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
        """Text and image vectors [B, d] of sequences of items."""
        pictures = [shop.pictures[item] for items in sequences for item in items]
        return self._vectors(text_prompts(shop, sequences), []), self._vectors(image_prompts(shop, sequences), pictures)

    def _vectors(self, prompts: list[str], pictures: list[Path]) -> Tensor:
        inputs = dict(self.tokenizer(prompts, padding=True, padding_side="right", return_tensors="pt"))
        if pictures:
            inputs |= dict(self.processor(images=[Image.open(path).convert("RGB") for path in pictures], return_tensors="pt"))
            inputs["mm_token_type_ids"] = (inputs["input_ids"] == self.model.config.image_token_id).int()
        inputs = {name: tensor.to(self.device) for name, tensor in inputs.items()}
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.half):
            hidden = self.model(**inputs, output_hidden_states=True).hidden_states[-1]
        return hidden[torch.arange(len(prompts)), inputs["attention_mask"].sum(1) - 1].float()


def compare(
    configuration: str = "mid",
    device: str = "cpu",
    users: int = 24,
    items: int = 96,
    steps: int = 3,
    visual_tokens: int = 64,
    json_file: Path | None = None,
) -> dict:
    """Times training steps, embedding and evaluation, ours and the plain loop alternating; prints a table, returns the figures.

    Also checks, in the same run, that both give the same vectors. Rates are medians over `steps` parts. Raises ValueError for
    `visual_tokens` that are no square (16, 64, 256 …).
    """
    if round(visual_tokens**0.5) ** 2 != visual_tokens:
        raise ValueError(f"visual_tokens is {visual_tokens}: the pictures are square, take a square number such as 16 or 64")
    dtype = torch.bfloat16 if native_bfloat16(device) else torch.float32
    with tempfile.TemporaryDirectory() as place:
        shop = make_shop(Path(place), users, items, visual_tokens)
        model, tokenizer, processor = random_model(configuration, dtype, device)
        lora = Lora()
        plain = PlainLoop(copy.deepcopy(model), tokenizer, copy.deepcopy(processor), lora)
        backbone = Backbone(model.model, tokenizer, processor, visual_tokens, lora)
        paths = self_test(backbone)
        backbone.pack(paths.pack)
        backbone.checkpoint_activations(as_needed=True)
        ours = ItemEncoder(VLMEncoder(backbone, pad=paths.pad, share=paths.share).to(device), shop.titles, shop.pictures)
        ours.encoder.open_store(Path(place) / "features")
        sentences = None
        if available():
            sentences = SentencePeer(plain.model.get_base_model().model, tokenizer, plain.processor, device, PLAIN_BATCH)
        figures = _measure(shop, ours, plain, sentences, steps, device)
    figures = {
        "configuration": configuration,
        "parameters": sum(p.numel() for name, p in model.named_parameters() if "lora_" not in name),
        "dtype": str(dtype).removeprefix("torch."),
        **figures,
        "machine": machine(device),
    }
    print(table(figures))
    if json_file:
        json_file.parent.mkdir(parents=True, exist_ok=True)
        json_file.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    return figures


def _measure(shop: Shop, ours: ItemEncoder, plain: PlainLoop, sentences: SentencePeer | None, steps: int, device: str) -> dict:
    meter, seconds = Meter(), {}
    with meter("all models loaded"):
        pass

    def clock(name: str, work: Callable[[], object]) -> None:
        with meter(name):
            started = time.perf_counter()
            work()
            if torch.device(device).type == "cuda":
                torch.cuda.synchronize()
            seconds.setdefault(name, []).append(time.perf_counter() - started)

    def cold(items: Sequence[int]) -> None:
        ours.encoder.store.compute([shop.pictures[item] for item in items])
        ours.encode([[item] for item in items])

    parts = [part.tolist() for part in np.array_split(np.arange(len(shop.titles)), steps)]
    ours.eval(), plain.model.eval()
    with torch.no_grad():
        for part in tqdm(parts, desc="Embed", leave=False):
            single = [[item] for item in part]
            clock("embed, cold", lambda part=part: cold(part))
            clock("embed, kept", lambda single=single: ours.encode(single))
            clock("embed, plain", lambda single=single: _in_batches(plain, shop, single))
            if sentences:
                clock("embed, sentences", lambda single=single: _with_sentences(sentences, shop, single))
        same = _apart(ours, plain, sentences, shop)
        for part in tqdm(np.array_split(np.arange(len(shop.users)), steps), desc="Evaluate", leave=False):
            histories = [shop.users[user][:end] for user in part for end in (-2, -1)]
            clock("evaluate, ours", lambda histories=histories: ours.encode(histories))
            clock("evaluate, apart", lambda histories=histories: [ours.encode(histories[0::2]), ours.encode(histories[1::2])])
            clock("evaluate, plain", lambda histories=histories: _in_batches(plain, shop, histories))
    ours.train(), plain.model.train()
    trainers = {name: _Trainer(weights.parameters(), device) for name, weights in (("ours", ours), ("plain", plain.model))}
    tokens = {}
    for step in tqdm(range(steps), desc="Train", leave=False):
        rows = [shop.users[(step * BATCH + place) % len(shop.users)][:-2] for place in range(BATCH)]
        sequences = [row[:-1] for row in rows] + [[row[-1]] for row in rows]
        clock("train, ours", lambda sequences=sequences: trainers["ours"].step(_both(ours.encode(sequences)), sequences))
        clock("train, plain", lambda sequences=sequences: trainers["plain"].step(plain.encode(shop, sequences), sequences))
        tokens[step] = _tokens(ours, sequences, shop.visual_tokens)
    matmul = _matmul_rate(device, ours.encoder.backbone.model.dtype)
    linear = sum(
        module.weight.numel() for name, module in ours.encoder.backbone.model.get_decoder().named_modules()
        if isinstance(module, nn.Linear) and "lora_" not in name
    )  # fmt: skip
    # Frozen weights need no gradient of their own: forward and the gradient of the inputs, 2 FLOP a weight and token each.
    floor = statistics.median(4 * linear * count / matmul for count in tokens.values())
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    counts = {"embed": len(shop.titles) / steps, "evaluate": 2 * len(shop.users) / steps, "train": BATCH}
    return {
        "users": len(shop.users),
        "items": len(shop.titles),
        "largest_relative_difference": same,
        "seconds": seconds,
        "per_second": {name: counts[name.split(",")[0]] / median for name, median in medians.items()},
        "ratio": {
            "train": _ratio(seconds, "train, plain", "train, ours"),
            "embed, cold": _ratio(seconds, "embed, plain", "embed, cold"),
            "embed, kept": _ratio(seconds, "embed, plain", "embed, kept"),
            "evaluate": _ratio(seconds, "evaluate, plain", "evaluate, ours"),
            "evaluate, apart": _ratio(seconds, "evaluate, plain", "evaluate, apart"),
        },
        "visual_tokens": shop.visual_tokens,
        "train_tokens_per_second": {
            side: statistics.median(tokens.values()) / medians[f"train, {side}"] for side in ("ours", "plain")
        },
        "beauty_epoch_seconds": sum(BEAUTY_LENGTHS.values()) / BATCH * medians["train, ours"],
        "train_floor_seconds": floor,
        "matmul_tflops": matmul / 1e12,
        "mfu": floor / medians["train, ours"],
        "train_profile": _profile(lambda: trainers["ours"].step(_both(ours.encode(sequences)), sequences)),
        "steps": steps,
        "peak_memory_mib": meter.peak_memory_mib,
    }


class _Trainer:
    """WPCL + CRTR and AdamW, for either side."""

    def __init__(self, weights, device: str):
        self.penalty = [nn.Parameter(torch.ones((), device=device)) for _ in range(2)]
        trained = [weight for weight in weights if weight.requires_grad]
        self.optimizer = torch.optim.AdamW([{"params": trained, "lr": 1e-5}, {"params": self.penalty, "lr": 1e-5}])

    def step(self, vectors: tuple[Tensor, Tensor], sequences: Sequence[Sequence[int]]) -> None:
        (z_t, e_t), (z_v, e_v) = (kind.chunk(2) for kind in vectors)
        ids = torch.tensor([items[0] for items in sequences[BATCH:]], device=z_t.device)
        loss = objectives.wpcl(z_t, z_v, e_t, e_v, *self.penalty, 0.1, item_ids=ids)
        loss = loss + 0.1 * objectives.crtr(z_t, z_v, e_t, e_v, 0.1)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()


def _both(vectors) -> tuple[Tensor, Tensor]:
    return vectors.text, vectors.image


def _in_batches(plain: PlainLoop, shop: Shop, sequences: Sequence[Sequence[int]]) -> None:
    for start in range(0, len(sequences), PLAIN_BATCH):
        plain.encode(shop, sequences[start : start + PLAIN_BATCH])


def _with_sentences(sentences: SentencePeer, shop: Shop, single: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """Text and image vectors [n, d] of single items."""
    pictures = [shop.pictures[item] for (item,) in single]
    shown = [{"text": text, "image": picture} for text, picture in zip(image_prompts(shop, single), pictures, strict=True)]
    return sentences.encode(text_prompts(shop, single)), sentences.encode(shown)


def _apart(ours: ItemEncoder, plain: PlainLoop, sentences: SentencePeer | None, shop: Shop) -> float:
    """Largest relative difference between the sides' vectors of a few sequences and items."""
    sequences, single = [shop.users[0][:-1], shop.users[1][:-2], [2]], [[2], [3], [5]]
    pairs = [*zip(_both(ours.encode(sequences)), plain.encode(shop, sequences), strict=True)]
    if sentences:
        pairs += zip(_both(ours.encode(single)), _with_sentences(sentences, shop, single), strict=True)
    return max(((one - other).norm(dim=-1) / other.norm(dim=-1)).max().item() for one, other in pairs)


def _tokens(ours: ItemEncoder, sequences: Sequence[Sequence[int]], visual_tokens: int) -> int:
    """Tokens of a step: the text and image prompts of its distinct sequences."""
    encoder = ours.encoder
    text = sum(len(encoder.backbone.tokenize(TEXT_INSTRUCTION + ", ".join(
        f"{n}) {ours.titles[item]}" for n, item in enumerate(items)))) for items in {tuple(s) for s in sequences})  # fmt: skip
    image = sum(
        len(encoder.backbone.tokenize(IMAGE_INSTRUCTION)) + len(items) * (visual_tokens + 5)
        for items in {tuple(s) for s in sequences}
    )
    return text + image


def _matmul_rate(device: str, dtype: torch.dtype) -> float:
    """FLOP a second of a large matrix product, the best of six."""
    size = 8192 if torch.device(device).type == "cuda" else 2048
    one, other = torch.randn(2, size, size, device=device, dtype=dtype)
    best = float("inf")
    for _ in range(6):
        started = time.perf_counter()
        product = one @ other
        if product.is_cuda:
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - started)
    return 2 * size**3 / best


def _profile(work: Callable[[], object], most: int = 6) -> dict[str, float]:
    """The operations that take most of the time, and their share of it."""
    with torch.profiler.profile() as profile:
        work()
    events = profile.key_averages()
    on_device = torch.cuda.is_available() and any(event.self_device_time_total for event in events)
    times = {event.key: event.self_device_time_total if on_device else event.self_cpu_time_total for event in events}
    total = sum(times.values())
    return {name: times[name] / total for name in sorted(times, key=times.get, reverse=True)[:most]}


def _ratio(seconds: dict[str, list[float]], slow: str, fast: str) -> float:
    """Median over the parts of how many times longer the plain loop takes."""
    return statistics.median(one / other for one, other in zip(seconds[slow], seconds[fast], strict=True))


def table(figures: dict) -> str:
    """The figures as a Markdown table."""
    rates, ratio, on = figures["per_second"], figures["ratio"], figures["machine"]
    rows = [
        ("training step, users/s", "train, ours", "train, plain", "train"),
        ("embed items, cold, items/s", "embed, cold", "embed, plain", "embed, cold"),
        ("embed items, pictures kept, items/s", "embed, kept", "embed, plain", "embed, kept"),
        ("evaluate (valid + test), histories/s", "evaluate, ours", "evaluate, plain", "evaluate"),
        ("the same, in two calls", "evaluate, apart", "evaluate, plain", "evaluate, apart"),
    ]
    lines = [
        f"{figures['configuration']}: {figures['parameters'] / 1e6:.0f} M parameters, "
        f"{figures['visual_tokens']} visual tokens a picture, "
        f"Beauty's lengths, batch {BATCH}, {figures['dtype']}; {on['device']}, {on['cores']} cores, {on['threads']} threads; "
        f"medians of {figures['steps']}",
        "| | ours | plain loop | ratio | memory, ours | memory, plain |",
        "|---|---|---|---|---|---|",
    ]
    for name, one, two, three in rows:
        memory = " | ".join(f"{_memory(figures, phase):.0f} MiB" for phase in (one, two))
        lines.append(f"| {name} | {rates[one]:.2f} | {rates[two]:.2f} | {ratio[three]:.1f} | {memory} |")
    if "embed, sentences" in rates:
        lines += ["", f"sentence-transformers embeds {rates['embed, sentences']:.2f} items/s."]
    shares = ", ".join(f"{name} {share:.0%}" for name, share in figures["train_profile"].items())
    speed = figures["train_tokens_per_second"]
    lines += [
        "",
        f"Largest relative difference of the vectors: {figures['largest_relative_difference']:.0e}. Memory is what a phase takes "
        f"beyond the models. The matrix products of a training step alone take {figures['train_floor_seconds']:.1f} s at the "
        f"{figures['matmul_tflops']:.2f} TFLOP/s of a large one; our step reaches {figures['mfu']:.0%} of that: "
        f"{speed['ours']:.0f} tokens/s (plain loop {speed['plain']:.0f}), {figures['beauty_epoch_seconds']:.0f} s for an epoch "
        f"of Beauty's {sum(BEAUTY_LENGTHS.values()):,} users. Its time by operation: {shares}.",
    ]
    return "\n".join(lines)


def _memory(figures: dict, phase: str) -> float:
    """MiB at the peak of a phase beyond what all models take; the GPU's where there is one."""
    peaks = figures["peak_memory_mib"]
    suffix = "_gpu" if f"{phase}_gpu" in peaks else ""
    return peaks[phase + suffix] - peaks["all models loaded" + suffix]
