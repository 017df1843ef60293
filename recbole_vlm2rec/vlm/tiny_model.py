"""The `tiny` backbone before and after its pretraining: architecture, preprocessing, forward pass, test and checkpoint folder.

Imports torch, transformers, pillow, numpy and `recbole_vlm2rec.prepare.products` only.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
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
from recbole_vlm2rec.vlm.prompts import image_prompt, text_prompt

PICTURE_SIZE = 56
HIDDEN = 128
GRID = (1, 4, 4)
VISUAL_TOKENS = 4
MEASURED = 300

README = """\
# tiny

A Qwen2.5-VL of {parameters:.2f} million parameters with its own byte-level tokenizer of {vocabulary} tokens. It loads as
`Qwen/Qwen2.5-VL-3B-Instruct` does and serves the bundled data set, tests and demonstrations: it knows the rendered products of
`recbole_vlm2rec.prepare.products` and little else. It was made without any data set, from random products outside the share
that shops draw theirs from (`products.held_out`; a title alone or a picture alone may recur), by

    python -m recbole_vlm2rec.vlm.pretrain_tiny --out=FOLDER --seed={seed}

Read-out: after one product in the encoder's prompt, the next-token distribution says its attributes. Share of {count} held-out
products whose likeliest word of an attribute is the right one:

{table}
"""


def build_model(tokenizer: Qwen2Tokenizer) -> Qwen2_5_VLForConditionalGeneration:
    """The untrained model, its head tied to the token embeddings; the ids of special tokens come from the tokenizer."""
    names = ("vision_start", "vision_end", "image_pad", "video_pad")
    vision_start, vision_end, image_pad, video_pad = (tokenizer.convert_tokens_to_ids(f"<|{name}|>") for name in names)
    ends = {
        "bos_token_id": tokenizer.pad_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    text = {
        "vocab_size": len(tokenizer),
        "hidden_size": HIDDEN,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "intermediate_size": 384,
        "max_position_embeddings": tokenizer.model_max_length,
        "rms_norm_eps": 1e-6,
        # At the default 0.02 the words of a model so narrow stay mute for hundreds of steps.
        "initializer_range": 0.06,
        # The three position axes share a head's 16 frequencies about as in Qwen2.5-VL (16, 24, 24 of 64).
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [4, 6, 6]},
        **ends,
    }
    vision = {
        "depth": 2,
        "hidden_size": 96,
        "intermediate_size": 256,
        "num_heads": 4,
        "out_hidden_size": HIDDEN,
        "fullatt_block_indexes": [1],
    }
    config = Qwen2_5_VLConfig(
        text_config=text,
        vision_config=vision,
        image_token_id=image_pad,
        video_token_id=video_pad,
        vision_start_token_id=vision_start,
        vision_end_token_id=vision_end,
        tie_word_embeddings=True,
        **ends,
    )
    return Qwen2_5_VLForConditionalGeneration(config)


def build_processor() -> Qwen2VLImageProcessorPil:
    """Qwen's own preprocessing; a 56-pixel picture passes unscaled and makes 4 visual tokens."""
    return Qwen2VLImageProcessorPil(size={"shortest_edge": PICTURE_SIZE**2, "longest_edge": 448**2})


def cut(processor: Qwen2VLImageProcessorPil, product: Product, rng: np.random.Generator) -> Tensor:
    """[16, 1176]: the patches of one rendering of a product."""
    return processor(images=[render(product, PICTURE_SIZE, rng)], return_tensors="pt")["pixel_values"]


def picture_ids(config: Qwen2_5_VLConfig) -> list[int]:
    """The tokens that stand for one picture in a prompt."""
    return [config.vision_start_token_id, *[config.image_token_id] * VISUAL_TOKENS, config.vision_end_token_id]


def see(model: Qwen2_5_VLForConditionalGeneration, pixels: Tensor) -> Tensor:
    """Visual tokens [n, 4, d] of n pictures' patches [n, 16, 1176]."""
    grid = torch.tensor(GRID).expand(len(pixels), 3)
    return torch.stack(model.model.get_image_features(pixels.flatten(0, 1), grid, return_dict=True).pooler_output)


def read(model: Qwen2_5_VLForConditionalGeneration, ids: Sequence[Sequence[int]], visual_tokens: Tensor) -> Tensor:
    """Last hidden states [B, T, d] of B prompts, padded on the right; `visual_tokens` [n, 4, d] in reading order."""
    width = max(map(len, ids))
    padded = torch.tensor([[*tokens, *[model.config.pad_token_id] * (width - len(tokens))] for tokens in ids])
    mask = torch.tensor([[1] * len(tokens) + [0] * (width - len(tokens)) for tokens in ids])
    vision = {}
    if len(visual_tokens):
        vision = {
            "image_grid_thw": torch.tensor(GRID).expand(len(visual_tokens), 3),
            "mm_encoder_outputs": {"image": BaseModelOutputWithPooling(pooler_output=tuple(visual_tokens))},
            # Without the token types Qwen2.5-VL silently falls back to one-dimensional positions.
            "mm_token_type_ids": (padded == model.config.image_token_id).int(),
        }
    return model.model(input_ids=padded, attention_mask=mask, use_cache=False, **vision).last_hidden_state


@torch.no_grad()
def measure(
    model: Qwen2_5_VLForConditionalGeneration, tokenizer: Qwen2Tokenizer, processor: Qwen2VLImageProcessorPil, seed: int
) -> dict[str, dict[str, float]]:
    """Side -> attribute -> share of MEASURED products of the shops' share whose likeliest next word of the attribute is right."""
    rng = np.random.default_rng((seed, 1))
    products: list[Product] = []
    while len(products) < MEASURED:
        drawn = random_product(rng)
        if held_out(drawn):
            products.append(drawn)

    def encode(text: str) -> list[int]:
        return tokenizer(text, add_special_tokens=False)["input_ids"]

    visual_tokens = see(model, torch.stack([cut(processor, drawn, rng) for drawn in products]))
    picture = encode(image_prompt([None])[0]) + picture_ids(model.config)
    sides = {
        "title": ([encode(text_prompt([title(drawn)])[0]) for drawn in products], visual_tokens[:0], TITLE_ATTRIBUTES),
        "picture": ([picture] * MEASURED, visual_tokens, IMAGE_ATTRIBUTES),
    }
    shares: dict[str, dict[str, float]] = {}
    for side, (ids, tokens, attributes) in sides.items():
        last = [len(prompt) - 1 for prompt in ids]
        logits = model.lm_head(read(model, ids, tokens)[torch.arange(MEASURED), last])
        shares[side] = {}
        for name in attributes:
            guess = logits[:, [encode(" " + word)[0] for word in ATTRIBUTES[name]]].argmax(-1).tolist()
            right = [ATTRIBUTES[name][place] == drawn[name] for place, drawn in zip(guess, products, strict=True)]
            shares[side][name] = sum(right) / MEASURED
    return shares


def save(
    folder: Path,
    model: Qwen2_5_VLForConditionalGeneration,
    tokenizer: Qwen2Tokenizer,
    processor: Qwen2VLImageProcessorPil,
    seed: int,
) -> None:
    """Writes the checkpoint folder in half precision, with a README that states `measure` of the rounded weights."""
    shares = measure(model.half().float(), tokenizer, processor, seed)
    table = "\n".join(
        f"- {side}: " + ", ".join(f"{name} {share:.3f}" for name, share in words.items()) for side, words in shares.items()
    )
    print(table, flush=True)
    for part in (model.half(), tokenizer, processor):
        part.save_pretrained(folder)
    (folder / "generation_config.json").unlink(missing_ok=True)
    # The safetensors writer leaves the file to its owner alone; an installed package is read by others too.
    (folder / "model.safetensors").chmod(0o644)
    parameters = sum(parameter.numel() for parameter in model.parameters()) / 1e6
    text = README.format(parameters=parameters, vocabulary=len(tokenizer), seed=seed, count=MEASURED, table=table)
    (folder / "README.md").write_text(text, encoding="utf-8")
