"""Makes the shipped `tiny` backbone: `python -m recbole_vlm2rec.vlm.pretrain_tiny --out=FOLDER --seed=2026`.

Imports torch, transformers, pillow, numpy and `recbole_vlm2rec.prepare.products` only. It reads no data set.

A Qwen2.5-VL of 1.4 million parameters, random at first, learns from drawn products that no shop sells
(`products.held_out`), in three steps:
1. sight: the vision tower, under one linear head an attribute, names what a picture shows; then it is frozen;
2. one word: after one to three products, in the prompts that the encoder uses, the next-token distribution must equal
   the histogram of the attribute words read so far ("describe in one word", softly);
3. lists: the same at the end of every entry of lists of up to twelve products.
Titles answer with the words they contain and pictures with the words of what they show, so that the vectors of both
speak one vocabulary. Titles made of common English words keep the text side from knowing products only.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import product as combinations
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration, Qwen2Tokenizer
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from recbole_vlm2rec.prepare.products import (
    ATTRIBUTES,
    IMAGE_ATTRIBUTES,
    TITLE_ATTRIBUTES,
    Product,
    held_out,
    random_product,
    render,
    title,
)
from recbole_vlm2rec.vlm.prompts import Picture, image_prompt, interleaved_prompt, text_prompt
from recbole_vlm2rec.vlm.tiny_tokenizer import COMMON_WORDS, build_tokenizer

PICTURE_SIZE = 56
GRID = (1, 4, 4)
VISUAL_TOKENS = 4
MAX_ENTRIES = 12
WORDS = tuple(word for words in ATTRIBUTES.values() for word in words)
ALL_ATTRIBUTES = tuple(dict.fromkeys(TITLE_ATTRIBUTES + IMAGE_ATTRIBUTES))


@dataclass(frozen=True)
class Recipe:
    """How much of everything; `scaled` shrinks it for a smoke run."""

    copies: int = 5
    vision_steps: int = 500
    vision_batch: int = 64
    word_steps: int = 240
    word_batch: int = 64
    list_steps: int = 700
    list_batch: int = 20

    def scaled(self, effort: float) -> Recipe:
        """The same recipe with `effort` (0 < effort <= 1) of the steps and pictures, at least one of each."""
        counts = {name: max(1, round(getattr(self, name) * effort)) for name in ("copies", "vision_steps", "word_steps", "list_steps")}
        return Recipe(**counts)


def build_model(tokenizer: Qwen2Tokenizer) -> Qwen2_5_VLForConditionalGeneration:
    """The untrained model, its head tied to the token embeddings; special token ids come from the tokenizer."""
    special = {name: tokenizer.convert_tokens_to_ids(f"<|{name}|>") for name in ("vision_start", "vision_end", "image_pad", "video_pad")}
    config = Qwen2_5_VLConfig(
        text_config={
            "vocab_size": len(tokenizer),
            "hidden_size": 128,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "intermediate_size": 384,
            "max_position_embeddings": tokenizer.model_max_length,
            "rms_norm_eps": 1e-6,
            "initializer_range": 0.06,
            # The three position axes share the 16 frequencies of a head in Qwen2.5-VL's proportion.
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [4, 6, 6]},
            "bos_token_id": tokenizer.pad_token_id,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
        },
        vision_config={
            "depth": 2,
            "hidden_size": 96,
            "intermediate_size": 256,
            "num_heads": 4,
            "out_hidden_size": 128,
            "fullatt_block_indexes": [1],
        },
        image_token_id=special["image_pad"],
        video_token_id=special["video_pad"],
        vision_start_token_id=special["vision_start"],
        vision_end_token_id=special["vision_end"],
        bos_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        tie_word_embeddings=True,
    )
    return Qwen2_5_VLForConditionalGeneration(config)


def build_processor() -> Qwen2VLImageProcessorPil:
    """Qwen's own preprocessing; a 56-pixel picture passes unscaled and makes 4 visual tokens."""
    return Qwen2VLImageProcessorPil(size={"shortest_edge": PICTURE_SIZE**2, "longest_edge": 448**2})


def draw_product(rng: np.random.Generator, tastes: dict[str, str] | None = None) -> Product:
    """A random product outside the shops' share; with `tastes`, each of these words replaces the drawn one half the time."""
    while True:
        drawn = random_product(rng)
        if tastes:
            drawn = drawn.replace(**{name: word for name, word in tastes.items() if rng.random() < 0.5})
        if not held_out(drawn):
            return drawn


class Progress:
    """Prints the mean loss since the last line, the rate and the time left of one training step of the recipe, about every five seconds."""

    def __init__(self, name: str, steps: int):
        self.name, self.steps = name, steps
        self.start = self.printed = time.monotonic()
        self.losses: list[float] = []

    def __call__(self, step: int, loss: Tensor | None = None) -> None:
        now = time.monotonic()
        if loss is not None:
            self.losses.append(loss.item())
        if now - self.printed < 5 and step < self.steps:
            return
        rate = step / (now - self.start)
        mean = f", loss {sum(self.losses) / len(self.losses):.4f}" if self.losses else ""
        print(f"{self.name}: {step}/{self.steps}{mean}, {rate:.1f}/s, {(self.steps - step) / rate:.0f} s left", flush=True)
        self.printed = now
        self.losses.clear()


def optimise(name: str, parameters: Sequence[nn.Parameter], losses: Iterator[Tensor], steps: int, rate: float) -> None:
    """AdamW over `steps` losses: a short linear warm-up, then a cosine down to a twentieth of `rate`."""
    optimiser = torch.optim.AdamW(parameters, lr=rate, betas=(0.9, 0.98), weight_decay=0.01)
    warmup = max(1, steps // 20)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimiser, lambda step: min((step + 1) / warmup, 0.05 + 0.475 * (1 + math.cos(math.pi * step / steps)))
    )
    progress = Progress(name, steps)
    for step in range(1, steps + 1):
        loss = next(losses)
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
        schedule.step()
        progress(step, loss)


class Pictures:
    """Rendered pictures of every combination of the attributes a picture shows, `copies` of each.

    `pixels` [n, 16, 1176]: the patches as the processor cuts them; `products`: n products, one a picture.
    """

    def __init__(self, processor, copies: int, rng: np.random.Generator):
        self.rows: dict[tuple[str, ...], list[int]] = {}
        self.products: list[Product] = []
        patches = []
        progress = Progress("pictures", copies * math.prod(len(ATTRIBUTES[name]) for name in IMAGE_ATTRIBUTES))
        for values in combinations(*(ATTRIBUTES[name] for name in IMAGE_ATTRIBUTES), range(copies)):
            shown = dict(zip(IMAGE_ATTRIBUTES, values))
            drawn = draw_product(rng).replace(**shown)
            while held_out(drawn):
                drawn = draw_product(rng).replace(**shown)
            self.rows.setdefault(values[:-1], []).append(len(self.products))
            self.products.append(drawn)
            batch = processor(images=[render(drawn, PICTURE_SIZE, rng)], return_tensors="pt")
            patches.append(batch["pixel_values"])
            progress(len(self.products))
        self.pixels = torch.stack(patches)

    def row_of(self, wanted: Product, rng: np.random.Generator) -> int:
        """One of the pictures that show what `wanted` looks like."""
        rows = self.rows[tuple(wanted[name] for name in IMAGE_ATTRIBUTES)]
        return rows[rng.integers(len(rows))]


def see(model: Qwen2_5_VLForConditionalGeneration, pixels: Tensor) -> Tensor:
    """Visual tokens [n, 4, d] of n pictures' patches [n, 16, 1176]."""
    grid = torch.tensor(GRID).expand(len(pixels), 3)
    tokens = model.model.get_image_features(pixels.flatten(0, 1), grid, return_dict=True).pooler_output
    return torch.stack(tokens)


def train_sight(model: Qwen2_5_VLForConditionalGeneration, pictures: Pictures, recipe: Recipe, rng: np.random.Generator) -> None:
    """Step 1: linear heads on the mean visual token; the heads are thrown away, the tower is frozen."""
    heads = nn.ModuleDict({name: nn.Linear(128, len(ATTRIBUTES[name])) for name in IMAGE_ATTRIBUTES})
    labels = {
        name: torch.tensor([ATTRIBUTES[name].index(drawn[name]) for drawn in pictures.products]) for name in IMAGE_ATTRIBUTES
    }

    def losses() -> Iterator[Tensor]:
        while True:
            rows = torch.from_numpy(rng.integers(len(pictures.products), size=recipe.vision_batch))
            pooled = see(model, pictures.pixels[rows]).mean(1)
            yield torch.stack([F.cross_entropy(head(pooled), labels[name][rows]) for name, head in heads.items()]).mean()

    optimise("sight", [*model.model.visual.parameters(), *heads.parameters()], losses(), recipe.vision_steps, 2e-3)
    model.model.visual.requires_grad_(False)


class Lists:
    """Batches of product lists in the encoder's own prompts, with the word histogram due at the end of every entry."""

    def __init__(self, tokenizer: Qwen2Tokenizer, config: Qwen2_5_VLConfig, pictures: Pictures, rng: np.random.Generator):
        self.tokenizer, self.config, self.pictures, self.rng = tokenizer, config, pictures, rng
        self.encode = lru_cache(maxsize=4096)(lambda text: tuple(tokenizer(text, add_special_tokens=False)["input_ids"]))
        self.word_ids = {word: self.encode(" " + word)[0] for word in WORDS}
        self.picture_ids = (
            config.vision_start_token_id,
            *[config.image_token_id] * VISUAL_TOKENS,
            config.vision_end_token_id,
        )

    def batch(self, kind: str, size: int, entries: int) -> tuple[list[list[int]], list[int], list[list[tuple[int, list[int]]]]]:
        """Token ids of `size` lists, the picture rows in reading order, and (position, new target tokens) of each entry."""
        ids, rows, ends = [], [], []
        for _ in range(size):
            tokens, pictures, entry_ends = getattr(self, kind)(self._products(entries))
            ids.append(tokens)
            rows += pictures
            ends.append(entry_ends)
        return ids, rows, ends

    def text(self, products: list[Product]) -> tuple[list[int], list[int], list[tuple[int, list[int]]]]:
        """Titles of the products; one list in eight holds titles of common words, which answer with their own tokens."""
        if self.rng.random() < 0.125:
            titles = [self._common_title() for _ in products]
            targets = [list(self.encode(" " + common)) for common in titles]
        else:
            titles = [title(drawn) for drawn in products]
            targets = [self._targets(drawn, TITLE_ATTRIBUTES) for drawn in products]
        encoded = self.tokenizer(text_prompt(titles)[0], add_special_tokens=False, return_offsets_mapping=True)
        token_ends = [end for _, end in encoded["offset_mapping"]]
        title_ends = [len(text_prompt(titles[: count + 1])[0]) for count in range(len(titles))]
        return encoded["input_ids"], [], list(zip(np.searchsorted(token_ends, title_ends).tolist(), targets, strict=True))

    def image(self, products: list[Product]) -> tuple[list[int], list[int], list[tuple[int, list[int]]]]:
        """Pictures alone."""
        rows = [self.pictures.row_of(drawn, self.rng) for drawn in products]
        return self._pictured(image_prompt(rows), [self._targets(drawn, IMAGE_ATTRIBUTES) for drawn in products])

    def interleaved(self, products: list[Product]) -> tuple[list[int], list[int], list[tuple[int, list[int]]]]:
        """Title and picture of each product; the answer holds the words of both."""
        rows = [self.pictures.row_of(drawn, self.rng) for drawn in products]
        prompt = interleaved_prompt([(title(drawn), row) for drawn, row in zip(products, rows, strict=True)])
        return self._pictured(prompt, [self._targets(drawn, ALL_ATTRIBUTES) for drawn in products])

    def _pictured(self, prompt: tuple, targets: list[list[int]]) -> tuple[list[int], list[int], list[tuple[int, list[int]]]]:
        ids, rows, ends = [], [], []
        for part in prompt:
            if isinstance(part, Picture):
                ids += self.picture_ids
                rows.append(part.source)
                ends.append((len(ids) - 1, targets[len(ends)]))
            else:
                ids += self.encode(part)
        return ids, rows, ends

    def _common_title(self) -> str:
        words = [COMMON_WORDS[place] for place in self.rng.integers(len(COMMON_WORDS), size=self.rng.integers(1, 5))]
        return " ".join(word.capitalize() for word in words) if self.rng.random() < 0.5 else " ".join(words)

    def _products(self, entries: int) -> list[Product]:
        tastes = {name: words[self.rng.integers(len(words))] for name, words in ATTRIBUTES.items() if self.rng.random() < 0.5}
        return [draw_product(self.rng, tastes) for _ in range(entries)]

    def _targets(self, drawn: Product, attributes: Sequence[str]) -> list[int]:
        return [self.word_ids[drawn[name]] for name in attributes]


def hidden_states(
    model: Qwen2_5_VLForConditionalGeneration, ids: list[list[int]], visual_tokens: Tensor, pad: int
) -> Tensor:
    """Last hidden states [B, T, d] of right-padded prompts; `visual_tokens` [n, 4, d] in reading order."""
    width = max(map(len, ids))
    padded = torch.tensor([tokens + [pad] * (width - len(tokens)) for tokens in ids])
    mask = torch.tensor([[1] * len(tokens) + [0] * (width - len(tokens)) for tokens in ids])
    vision = {}
    if len(visual_tokens):
        vision = {
            "image_grid_thw": torch.tensor(GRID).expand(len(visual_tokens), 3),
            "mm_encoder_outputs": {"image": BaseModelOutputWithPooling(pooler_output=tuple(visual_tokens))},
            "mm_token_type_ids": (padded == model.config.image_token_id).int(),
        }
    return model.model(input_ids=padded, attention_mask=mask, use_cache=False, **vision).last_hidden_state


def train_words(
    name: str, model: Qwen2_5_VLForConditionalGeneration, lists: Lists, visual_tokens: Tensor, steps: int, size: int, entries: int, rate: float
) -> None:
    """Steps 2 and 3: text, image and interleaved batches in turn; cross-entropy to the histogram of the words so far."""
    kinds = ("text", "image", "interleaved")

    def losses() -> Iterator[Tensor]:
        step = 0
        while True:
            ids, rows, ends = lists.batch(kinds[step % 3], size, entries)
            step += 1
            hidden = hidden_states(model, ids, visual_tokens[rows], lists.tokenizer.pad_token_id)
            where = [(row, position) for row, due_words in enumerate(ends) for position, _ in due_words]
            due = torch.zeros(len(where), model.config.text_config.vocab_size)
            place = 0
            for due_words in ends:
                seen = torch.zeros(due.shape[1])
                for _, words in due_words:
                    seen = seen.index_add(0, torch.tensor(words), torch.ones(len(words)))
                    due[place] = seen / seen.sum()
                    place += 1
            batch, position = torch.tensor(where).T
            spoken = F.log_softmax(model.lm_head(hidden[batch, position]), dim=-1)
            # The histogram's own entropy is subtracted: the loss is a KL divergence and can reach 0.
            yield (torch.special.xlogy(due, due) - due * spoken).sum(-1).mean()

    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimise(name, parameters, losses(), steps, rate)


@torch.no_grad()
def measure(
    model: Qwen2_5_VLForConditionalGeneration, tokenizer: Qwen2Tokenizer, processor, rng: np.random.Generator, count: int = 300
) -> dict[str, dict[str, float]]:
    """Share of products of the shops' share whose likeliest next word, among an attribute's words, is right, by side."""
    products: list[Product] = []
    while len(products) < count:
        drawn = random_product(rng)
        if held_out(drawn):
            products.append(drawn)
    pixels = torch.stack([processor(images=[render(drawn, PICTURE_SIZE, rng)], return_tensors="pt")["pixel_values"] for drawn in products])
    visual_tokens = see(model, pixels)
    encode = lambda text: tokenizer(text, add_special_tokens=False)["input_ids"]
    config = model.config
    picture = [config.vision_start_token_id, *[config.image_token_id] * VISUAL_TOKENS, config.vision_end_token_id]
    prompts = {
        "title": ([encode(text_prompt([title(drawn)])[0]) for drawn in products], visual_tokens[:0], TITLE_ATTRIBUTES),
        "picture": ([encode(image_prompt([None])[0]) + picture] * count, visual_tokens, IMAGE_ATTRIBUTES),
    }
    result = {}
    for side, (ids, tokens, attributes) in prompts.items():
        hidden = hidden_states(model, ids, tokens, tokenizer.pad_token_id)
        last = torch.tensor([len(row) - 1 for row in ids])
        logits = model.lm_head(hidden[torch.arange(count), last])
        result[side] = {}
        for name in attributes:
            word_ids = [encode(" " + word)[0] for word in ATTRIBUTES[name]]
            right = torch.tensor([ATTRIBUTES[name].index(drawn[name]) for drawn in products])
            result[side][name] = (logits[:, word_ids].argmax(-1) == right).float().mean().item()
    return result


README = """\
# tiny

A Qwen2.5-VL of {parameters:.2f} million parameters with its own byte-level tokenizer of {vocabulary} tokens. It loads like
`Qwen/Qwen2.5-VL-3B-Instruct` and is meant for the bundled data set, tests and demonstrations: it knows the rendered
products of `recbole_vlm2rec.prepare.products` and little else. Made without any data set, from random products outside the
share that shops draw from (`products.held_out`), by

    python -m recbole_vlm2rec.vlm.pretrain_tiny --out=FOLDER --seed={seed}

Share of held-out products whose likeliest next word, among an attribute's words, is right ({count} products):

{table}
"""


def save(folder: Path, model: Qwen2_5_VLForConditionalGeneration, tokenizer: Qwen2Tokenizer, processor, seed: int) -> None:
    """Writes the checkpoint folder in half precision, and its README with accuracies measured on the rounded weights."""
    model.half().float()
    count = 300
    accuracy = measure(model, tokenizer, processor, np.random.default_rng((seed, 1)), count)
    table = "\n".join(
        f"- {side}: " + ", ".join(f"{name} {share:.3f}" for name, share in shares.items()) for side, shares in accuracy.items()
    )
    print(table, flush=True)
    model.half()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    processor.save_pretrained(folder)
    parameters = sum(parameter.numel() for parameter in model.parameters()) / 1e6
    (folder / "README.md").write_text(
        README.format(parameters=parameters, vocabulary=len(tokenizer), seed=seed, count=count, table=table), encoding="utf-8"
    )


def pretrain(folder: Path, seed: int = 2026, effort: float = 1.0) -> None:
    """Trains and writes the backbone into `folder`; `effort` below 1 shortens every step (smoke runs)."""
    recipe = Recipe().scaled(effort)
    rng = np.random.default_rng(seed)
    torch.manual_seed(seed)
    tokenizer = build_tokenizer((f" {title(draw_product(rng))}" for _ in range(2000)), WORDS)
    model, processor = build_model(tokenizer), build_processor()
    pictures = Pictures(processor, recipe.copies, rng)
    train_sight(model, pictures, recipe, rng)
    with torch.no_grad():
        visual_tokens = torch.cat([see(model, pixels) for pixels in pictures.pixels.split(256)])
    lists = Lists(tokenizer, model.config, pictures, rng)
    train_words("one word", model, lists, visual_tokens, recipe.word_steps, recipe.word_batch, 1, 3e-3)
    train_words("lists", model, lists, visual_tokens, recipe.list_steps, recipe.list_batch, MAX_ENTRIES, 3e-3)
    save(folder, model, tokenizer, processor, seed)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Pretrains the `tiny` backbone (about five minutes on two cores).")
    parser.add_argument("--out", type=Path, required=True, help="folder for the checkpoint")
    parser.add_argument("--seed", type=int, default=2026)
    parser.add_argument("--effort", type=float, default=1.0, help="share of the training steps, for a trial (default 1)")
    options = parser.parse_args(arguments)
    pretrain(options.out, options.seed, options.effort)


if __name__ == "__main__":
    main()
