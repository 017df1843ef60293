"""What the comparison runs on: a shop whose users are as long as Beauty's, and a model of a named shape with random weights.

Imports numpy, pillow, torch and transformers; of the package the shipped tokenizer alone. Nothing is downloaded.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn
from transformers import AutoConfig, AutoModelForImageTextToText, AutoTokenizer
from transformers.models.auto.image_processing_auto import AutoImageProcessor

from recbole_vlm2rec.vlm.backbone import SHIPPED
from recbole_vlm2rec.vlm.prompts import IMAGE_INSTRUCTION, TEXT_INSTRUCTION
from recbole_vlm2rec.vlm.tiny_tokenizer import COMMON_WORDS

BEAUTY_LENGTHS = {5: 6416, 6: 3687, 7: 2481, 8: 1906, 9: 2151, 10: 3102}
"""Interactions of a user -> users, of Beauty after the paper's filters (ten of its items dropped). The last two are held out."""

TITLE_WORDS = (8, 24)
TOKEN_SIDE = 28
"""Pixels of a visual token: a patch of 14, two by two of them merged."""

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


def text_prompts(shop: Shop, sequences: Sequence[Sequence[int]]) -> list[str]:
    return [TEXT_INSTRUCTION + ", ".join(f"{n}) {shop.titles[i]}" for n, i in enumerate(items)) for items in sequences]


def image_prompts(shop: Shop, sequences: Sequence[Sequence[int]]) -> list[str]:
    seen = "<|vision_start|>" + "<|image_pad|>" * shop.visual_tokens + "<|vision_end|>"
    return [IMAGE_INSTRUCTION + ", ".join(f"{n}) {seen}" for n, _ in enumerate(items)) for items in sequences]
