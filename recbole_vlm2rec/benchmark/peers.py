"""Our encoder beside the loop that the documentation of transformers and PEFT leads to: one run, the same weights and inputs.

Imports numpy, pillow, torch, transformers, peft, tqdm, vlm, objectives and measure; runs from a plain checkout. Weights are
random, so nothing is downloaded; lengths follow Beauty.
"""

from __future__ import annotations

import copy
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from peft import LoraConfig, get_peft_model
from PIL import Image
from torch import Tensor, nn
from tqdm import tqdm
from transformers import AutoConfig, AutoModelForImageTextToText, AutoTokenizer
from transformers.models.auto.image_processing_auto import AutoImageProcessor

from recbole_vlm2rec import objectives
from recbole_vlm2rec.benchmark.throughput import machine
from recbole_vlm2rec.measure import Meter
from recbole_vlm2rec.vlm.backbone import SHIPPED, Backbone, Lora, native_bfloat16
from recbole_vlm2rec.vlm.encoder import VLMEncoder
from recbole_vlm2rec.vlm.fusion import ItemEncoder
from recbole_vlm2rec.vlm.prompts import IMAGE_INSTRUCTION, TEXT_INSTRUCTION
from recbole_vlm2rec.vlm.tiny_tokenizer import COMMON_WORDS

BEAUTY_LENGTHS = {5: 6416, 6: 3687, 7: 2481, 8: 1906, 9: 2151, 10: 3102}
"""Interactions of a user -> users, of Beauty after the paper's filters (ten of its items dropped). The last two are held out."""

TITLE_WORDS = (8, 24)
TOKEN_SIDE = 28
"""Pixels of a visual token: a patch of 14, two by two of them merged."""

BATCH, PLAIN_BATCH = 8, 8
"""Users of a training step (the paper's), and sequences of one forward of the plain loop."""

CONFIGURATIONS = {
    # About 50 million parameters, shaped like Qwen2.5-VL.
    "mid": {
        "text": {"hidden_size": 512, "num_hidden_layers": 10, "num_attention_heads": 8, "num_key_value_heads": 2,
                 "intermediate_size": 1536, "vocab_size": 8192, "mrope_section": [8, 12, 12]},
        "vision": {"depth": 8, "hidden_size": 384, "intermediate_size": 1024, "num_heads": 6, "fullatt_block_indexes": [3, 7]},
    },
    # Qwen/Qwen2.5-VL-3B-Instruct, from its config.json.
    "qwen2.5-vl-3b": {
        "text": {"hidden_size": 2048, "num_hidden_layers": 36, "num_attention_heads": 16, "num_key_value_heads": 2,
                 "intermediate_size": 11008, "vocab_size": 151936, "mrope_section": [16, 24, 24]},
        "vision": {"depth": 32, "hidden_size": 1280, "intermediate_size": 3420, "num_heads": 16,
                   "fullatt_block_indexes": [7, 15, 23, 31]},
    },
}  # fmt: skip


@dataclass(frozen=True)
class Shop:
    """Titles and picture files by item, each user's items, oldest first, and the visual tokens of a picture."""

    titles: list[str]
    pictures: list[Path]
    users: list[list[int]]
    visual_tokens: int


def make_shop(folder: Path, users: int, items: int, visual_tokens: int = 64, seed: int = 0) -> Shop:
    """Items with random titles and noise pictures just as large as the tokens ask for; users as long as Beauty's."""
    side = round(visual_tokens**0.5) * TOKEN_SIDE
    rng = np.random.default_rng(seed)
    titles = [" ".join(rng.choice(COMMON_WORDS, rng.integers(*TITLE_WORDS, endpoint=True))) for _ in range(items)]
    pictures = []
    for item in range(items):
        pictures.append(folder / f"{item}.jpg")
        Image.fromarray(rng.integers(0, 256, (side, side, 3), dtype=np.uint8)).save(pictures[-1], quality=85)
    lengths, weights = np.array(list(BEAUTY_LENGTHS)), np.array(list(BEAUTY_LENGTHS.values()), float)
    drawn = rng.choice(lengths, users, p=weights / weights.sum())
    return Shop(titles, pictures, [rng.choice(items, length, replace=False).tolist() for length in drawn], visual_tokens)


def random_model(configuration: str, dtype: torch.dtype, device: str) -> tuple[nn.Module, object, object]:
    """The whole model with random weights, with the shipped tokenizer and picture processor."""
    tokenizer = AutoTokenizer.from_pretrained(SHIPPED["tiny"])
    shape = CONFIGURATIONS[configuration]
    text, vision = dict(shape["text"]), dict(shape["vision"])
    text["rope_parameters"] = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": text.pop("mrope_section")}
    ends = {
        "bos_token_id": tokenizer.pad_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    names = {"image_token_id": "<|image_pad|>", "video_token_id": "<|video_pad|>", "vision_start_token_id": "<|vision_start|>"}
    names["vision_end_token_id"] = "<|vision_end|>"
    config = AutoConfig.for_model(
        "qwen2_5_vl", text_config={**text, **ends}, vision_config={**vision, "out_hidden_size": text["hidden_size"]},
        tie_word_embeddings=True, **ends, **{key: tokenizer.convert_tokens_to_ids(name) for key, name in names.items()},
    )  # fmt: skip
    torch.manual_seed(0)
    with torch.device(device):
        model = AutoModelForImageTextToText.from_config(config, dtype=dtype)
    return model.to(device), tokenizer, AutoImageProcessor.from_pretrained(SHIPPED["tiny"], backend="pil")


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
        text = [TEXT_INSTRUCTION + ", ".join(f"{n}) {shop.titles[i]}" for n, i in enumerate(items)) for items in sequences]
        seen = "<|vision_start|>" + "<|image_pad|>" * shop.visual_tokens + "<|vision_end|>"
        image = [IMAGE_INSTRUCTION + ", ".join(f"{n}) {seen}" for n, _ in enumerate(items)) for items in sequences]
        pictures = [shop.pictures[item] for items in sequences for item in items]
        return self._vectors(text, []), self._vectors(image, pictures)

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
        ours = ItemEncoder(VLMEncoder(backbone).to(device), shop.titles, shop.pictures)
        figures = _measure(shop, ours, plain, steps, device)
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


def _measure(shop: Shop, ours: ItemEncoder, plain: PlainLoop, steps: int, device: str) -> dict:
    meter, seconds = Meter(), {}

    def clock(name: str, work: Callable[[], object]) -> None:
        with meter(name):
            started = time.perf_counter()
            work()
            if torch.device(device).type == "cuda":
                torch.cuda.synchronize()
            seconds.setdefault(name, []).append(time.perf_counter() - started)

    parts = np.array_split(np.arange(len(shop.titles)), steps)
    ours.eval(), plain.model.eval()
    with torch.no_grad():
        same = _apart(ours, plain, shop)
        ours.encoder.features.clear()
        for part in tqdm(parts, desc="Embed", leave=False):
            single = [[item] for item in part.tolist()]
            clock("embed, cold", lambda single=single: ours.encode(single))
            clock("embed, kept", lambda single=single: ours.encode(single))
            clock("embed, plain", lambda single=single: _in_batches(plain, shop, single))
        for part in tqdm(np.array_split(np.arange(len(shop.users)), steps), desc="Evaluate", leave=False):
            histories = [shop.users[user][:end] for user in part for end in (-2, -1)]
            clock("evaluate, ours", lambda histories=histories: ours.encode(histories))
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
        },
        "visual_tokens": shop.visual_tokens,
        "train_tokens_per_second": statistics.median(tokens.values()) / medians["train, ours"],
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


def _apart(ours: ItemEncoder, plain: PlainLoop, shop: Shop) -> float:
    """Largest relative difference between the two sides' vectors of a few sequences."""
    sequences = [shop.users[0][:-1], shop.users[1][:-2], [2]]
    pairs = zip(_both(ours.encode(sequences)), plain.encode(shop, sequences), strict=True)
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
    ]
    lines = [
        f"{figures['configuration']}: {figures['parameters'] / 1e6:.0f} M parameters, "
        f"{figures['visual_tokens']} visual tokens a picture, "
        f"Beauty's lengths, batch {BATCH}, {figures['dtype']}; {on['device']}, {on['cores']} cores, {on['threads']} threads; "
        f"medians of {figures['steps']}",
        "| | ours | plain loop | ratio |",
        "|---|---|---|---|",
    ]
    for name, one, two, three in rows:
        lines.append(f"| {name} | {rates[one]:.2f} | {rates[two]:.2f} | {ratio[three]:.1f} |")
    shares = ", ".join(f"{name} {share:.0%}" for name, share in figures["train_profile"].items())
    lines += [
        "",
        f"Largest relative difference of the vectors: {figures['largest_relative_difference']:.0e}. The matrix products of a "
        f"training step alone take {figures['train_floor_seconds']:.1f} s at the {figures['matmul_tflops']:.2f} TFLOP/s of a "
        f"large one; the step reaches {figures['mfu']:.0%} of that: {figures['train_tokens_per_second']:.0f} tokens/s, "
        f"{figures['beauty_epoch_seconds']:.0f} s for an epoch of Beauty's {sum(BEAUTY_LENGTHS.values()):,} users. "
        f"Its time by operation: {shares}.",
    ]
    return "\n".join(lines)
