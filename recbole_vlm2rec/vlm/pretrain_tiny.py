"""Makes the shipped `tiny` backbone: `python -m recbole_vlm2rec.vlm.pretrain_tiny --out=FOLDER --seed=2026`.

Imports torch, transformers, pillow, numpy and `recbole_vlm2rec.prepare.products` only. It reads no data set.

A Qwen2.5-VL of 1.4 million parameters, random at first, learns from random products that no shop sells
(`products.held_out`), in three steps:
1. sight: the vision tower, under one linear head an attribute, names what a picture shows; then it is frozen;
2. one word: after one product, in the prompts that the encoder uses, the next-token distribution must equal the
   histogram of the product's attribute words ("describe in one word", softly);
3. lists: the same at the end of every entry of lists of twelve products, with the words of all entries so far.
Titles answer with the words they contain and pictures with the words of what they show, so the vectors of both sides
speak one vocabulary. Titles made of common English words keep the text side from knowing products only.
The same seed gives the same bytes with the same libraries and number of threads; another number rounds otherwise.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from functools import lru_cache
from itertools import product as combinations
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration, Qwen2Tokenizer

from recbole_vlm2rec.prepare.products import (
    ATTRIBUTES,
    IMAGE_ATTRIBUTES,
    TITLE_ATTRIBUTES,
    Product,
    held_out,
    random_product,
    title,
)
from recbole_vlm2rec.vlm.prompts import Picture, Prompt, image_prompt, interleaved_prompt, text_prompt
from recbole_vlm2rec.vlm.tiny_model import HIDDEN, build_model, build_processor, cut, picture_ids, read, save, see
from recbole_vlm2rec.vlm.tiny_tokenizer import COMMON_WORDS, build_tokenizer

WORDS = tuple(word for words in ATTRIBUTES.values() for word in words)
ALL_ATTRIBUTES = tuple(dict.fromkeys(TITLE_ATTRIBUTES + IMAGE_ATTRIBUTES))
KINDS = ("text", "image", "interleaved")
MAX_ENTRIES = 12
COMMON_SHARE = 0.125


@dataclass(frozen=True)
class Recipe:
    """How much of everything: renderings of each picture, optimiser steps, and what one step reads."""

    copies: int = 5
    sight_steps: int = 500
    sight_pictures: int = 64
    word_steps: int = 240
    word_products: int = 64
    list_steps: int = 700
    lists: int = 20

    def scaled(self, effort: float) -> Recipe:
        """The recipe with `effort` times as much of everything, at least one of each."""
        return Recipe(*(max(1, round(getattr(self, field.name) * effort)) for field in fields(self)))


class Progress:
    """Prints the mean loss since the last line, the rate and the time left, about every five seconds."""

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
    """AdamW over `steps` losses: a short linear warm-up to the learning rate `rate`, then a cosine down to a twentieth of it."""
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


def draw_product(rng: np.random.Generator, tastes: dict[str, str] | None = None) -> Product:
    """A random product outside the shops' share; with `tastes`, each of its words replaces the drawn one half the time."""
    while True:
        drawn = random_product(rng)
        if tastes:
            drawn = drawn.replace(**{name: word for name, word in tastes.items() if rng.random() < 0.5})
        if not held_out(drawn):
            return drawn


class Pictures:
    """`copies` renderings of every combination of the attributes that a picture shows.

    `pixels` [n, 16, 1176]: the patches as the processor cuts them; `products`: n products, one a picture.
    """

    def __init__(self, processor, copies: int, rng: np.random.Generator):
        self.products: list[Product] = []
        self.rows: dict[tuple[str, ...], list[int]] = {}
        shown = list(combinations(*(ATTRIBUTES[name] for name in IMAGE_ATTRIBUTES)))
        progress = Progress("pictures", copies * len(shown))
        patches = []
        for values in shown:
            for _ in range(copies):
                self.rows.setdefault(values, []).append(len(self.products))
                self.products.append(self._draw(dict(zip(IMAGE_ATTRIBUTES, values, strict=True)), rng))
                patches.append(cut(processor, self.products[-1], rng))
                progress(len(self.products))
        self.pixels = torch.stack(patches)

    def row_of(self, wanted: Product, rng: np.random.Generator) -> int:
        """One of the pictures that show what `wanted` looks like."""
        rows = self.rows[tuple(wanted[name] for name in IMAGE_ATTRIBUTES)]
        return int(rows[rng.integers(len(rows))])

    def _draw(self, shown: dict[str, str], rng: np.random.Generator) -> Product:
        while True:
            drawn = draw_product(rng).replace(**shown)
            if not held_out(drawn):
                return drawn


def train_sight(model: Qwen2_5_VLForConditionalGeneration, pictures: Pictures, recipe: Recipe, rng: np.random.Generator) -> None:
    """Step 1: linear heads on the mean visual token; then the heads are thrown away and the tower is frozen."""
    heads = nn.ModuleDict({name: nn.Linear(HIDDEN, len(ATTRIBUTES[name])) for name in IMAGE_ATTRIBUTES})
    labels = {
        name: torch.tensor([ATTRIBUTES[name].index(drawn[name]) for drawn in pictures.products]) for name in IMAGE_ATTRIBUTES
    }

    def losses() -> Iterator[Tensor]:
        while True:
            rows = torch.from_numpy(rng.integers(len(pictures.products), size=recipe.sight_pictures))
            pooled = see(model, pictures.pixels[rows]).mean(1)
            yield torch.stack([F.cross_entropy(head(pooled), labels[name][rows]) for name, head in heads.items()]).mean()

    optimise("sight", [*model.model.visual.parameters(), *heads.parameters()], losses(), recipe.sight_steps, 2e-3)
    model.model.visual.requires_grad_(False)


@dataclass(frozen=True)
class Example:
    """A tokenized list: `ids`, the rows of its pictures in reading order, and what is due where.

    `ends`: for every entry the position of its last token, and the tokens that the entry adds to the histogram due there.
    """

    ids: list[int]
    pictures: list[int]
    ends: list[tuple[int, list[int]]]


class Lists:
    """Random product lists in the encoder's own prompts; `text`, `image` and `interleaved` make one Example each."""

    def __init__(self, tokenizer: Qwen2Tokenizer, config: Qwen2_5_VLConfig, pictures: Pictures, rng: np.random.Generator):
        self.tokenizer, self.pictures, self.rng = tokenizer, pictures, rng
        self.encode = lru_cache(maxsize=4096)(lambda text: tuple(tokenizer(text, add_special_tokens=False)["input_ids"]))
        self.word_ids = {word: self.encode(" " + word)[0] for word in WORDS}
        self.picture_ids = picture_ids(config)

    def batch(self, kind: str, size: int, entries: int) -> list[Example]:
        """`size` lists of `entries` products each, of one of KINDS."""
        return [getattr(self, kind)(self._products(entries)) for _ in range(size)]

    def text(self, products: list[Product]) -> Example:
        """Titles of the products; COMMON_SHARE of the lists hold titles of common words, which answer with their own tokens."""
        if self.rng.random() < COMMON_SHARE:
            titles = [self._common_title() for _ in products]
            answers = [list(self.encode(" " + common)) for common in titles]
        else:
            titles = [title(drawn) for drawn in products]
            answers = [self._answer(drawn, TITLE_ATTRIBUTES) for drawn in products]
        encoded = self.tokenizer(text_prompt(titles)[0], add_special_tokens=False, return_offsets_mapping=True)
        title_ends = [len(text_prompt(titles[: entry + 1])[0]) for entry in range(len(titles))]
        positions = np.searchsorted([end for _, end in encoded["offset_mapping"]], title_ends)
        return Example(encoded["input_ids"], [], list(zip(positions.tolist(), answers, strict=True)))

    def image(self, products: list[Product]) -> Example:
        """Pictures alone."""
        rows = [self.pictures.row_of(drawn, self.rng) for drawn in products]
        return self._pictured(image_prompt(rows), [self._answer(drawn, IMAGE_ATTRIBUTES) for drawn in products])

    def interleaved(self, products: list[Product]) -> Example:
        """Title and picture of each product; the answer holds the words of both."""
        rows = [self.pictures.row_of(drawn, self.rng) for drawn in products]
        prompt = interleaved_prompt([(title(drawn), row) for drawn, row in zip(products, rows, strict=True)])
        return self._pictured(prompt, [self._answer(drawn, ALL_ATTRIBUTES) for drawn in products])

    def _pictured(self, prompt: Prompt, answers: list[list[int]]) -> Example:
        example = Example([], [], [])
        for part in prompt:
            if isinstance(part, Picture):
                example.ids.extend(self.picture_ids)
                example.ends.append((len(example.ids) - 1, answers[len(example.ends)]))
                example.pictures.append(part.source)
            else:
                example.ids.extend(self.encode(part))
        return example

    def _common_title(self) -> str:
        words = [COMMON_WORDS[place] for place in self.rng.integers(len(COMMON_WORDS), size=self.rng.integers(1, 5))]
        return " ".join(word.capitalize() for word in words) if self.rng.random() < 0.5 else " ".join(words)

    def _products(self, entries: int) -> list[Product]:
        """A list has favourite words for about half the attributes: histograms of histories are not flat either."""
        tastes = {name: words[self.rng.integers(len(words))] for name, words in ATTRIBUTES.items() if self.rng.random() < 0.5}
        return [draw_product(self.rng, tastes) for _ in range(entries)]

    def _answer(self, drawn: Product, attributes: Sequence[str]) -> list[int]:
        return [self.word_ids[drawn[name]] for name in attributes]


def histograms(examples: Sequence[Example], vocabulary: int) -> Tensor:
    """[entries of all examples, vocabulary]: at each entry's end, the shares of the answer tokens so far in its list."""
    rows = []
    for example in examples:
        counts = torch.zeros(vocabulary)
        for _, answer in example.ends:
            counts = counts.index_add(0, torch.tensor(answer), torch.ones(len(answer)))
            rows.append(counts / counts.sum())
    return torch.stack(rows)


def divergence(model: Qwen2_5_VLForConditionalGeneration, examples: Sequence[Example], visual_tokens: Tensor) -> Tensor:
    """KL(histogram || next-token distribution), mean over all entries; `visual_tokens` [n, 4, d] holds every picture's."""
    pictures = [row for example in examples for row in example.pictures]
    hidden = read(model, [example.ids for example in examples], visual_tokens[pictures])
    where = [(row, position) for row, example in enumerate(examples) for position, _ in example.ends]
    batch, position = torch.tensor(where).T
    due = histograms(examples, model.config.text_config.vocab_size)
    return F.kl_div(F.log_softmax(model.lm_head(hidden[batch, position]), dim=-1), due, reduction="batchmean")


def train_words(
    name: str, model: Qwen2_5_VLForConditionalGeneration, lists: Lists, visual_tokens: Tensor, steps: int, size: int, entries: int
) -> None:
    """Steps 2 and 3: batches of `size` text, image and interleaved lists in turn."""

    def losses() -> Iterator[Tensor]:
        for step in range(steps):
            yield divergence(model, lists.batch(KINDS[step % len(KINDS)], size, entries), visual_tokens)

    optimise(name, [parameter for parameter in model.parameters() if parameter.requires_grad], losses(), steps, 3e-3)


def pretrain(folder: Path, seed: int = 2026, effort: float = 1.0) -> None:
    """Trains the backbone and writes it into `folder`; `effort` below 1 shortens everything, for a trial."""
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
    train_words("one word", model, lists, visual_tokens, recipe.word_steps, recipe.word_products, 1)
    train_words("lists", model, lists, visual_tokens, recipe.list_steps, recipe.lists, MAX_ENTRIES)
    save(folder, model, tokenizer, processor, seed)


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line of the module."""
    parser = argparse.ArgumentParser(description="Pretrains the `tiny` backbone (five to six minutes on one core).")
    parser.add_argument("--out", type=Path, required=True, help="folder for the checkpoint")
    parser.add_argument("--seed", type=int, default=2026)
    parser.add_argument("--effort", type=float, default=1.0, help="share of the training, for a trial (default 1)")
    options = parser.parse_args(arguments)
    pretrain(options.out, options.seed, options.effort)


if __name__ == "__main__":
    main()
