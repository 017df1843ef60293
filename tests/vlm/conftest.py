"""A randomly initialised Qwen2.5-VL with the shipped architecture and tokenizer, and pictures of several sizes."""

from pathlib import Path

import pytest
import torch
from PIL import Image
from transformers import AutoConfig, AutoModelForImageTextToText, AutoTokenizer
from transformers.models.auto.image_processing_auto import AutoImageProcessor

from recbole_vlm2rec.prepare.products import random_product, render
from recbole_vlm2rec.vlm.backbone import SHIPPED


@pytest.fixture(scope="session")
def random_vlm(tmp_path_factory) -> Path:
    """Folder of a Qwen2.5-VL with random weights, written by transformers as any checkpoint is."""
    folder = tmp_path_factory.mktemp("random_vlm")
    torch.manual_seed(0)
    # Larger initial weights than the default 0.02: differences between prompts shall be visible.
    config = AutoConfig.from_pretrained(SHIPPED["tiny"], initializer_range=0.1)
    config.text_config.initializer_range = config.vision_config.initializer_range = 0.1
    AutoModelForImageTextToText.from_config(config, dtype=torch.float32).save_pretrained(folder)
    AutoTokenizer.from_pretrained(SHIPPED["tiny"]).save_pretrained(folder)
    AutoImageProcessor.from_pretrained(SHIPPED["tiny"], backend="pil").save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def pictures(tmp_path_factory) -> list[Path]:
    """Six product pictures of three sizes, as files."""
    import numpy as np

    rng = np.random.default_rng(3)
    folder = tmp_path_factory.mktemp("pictures")
    paths = []
    for number, size in enumerate([(56, 56), (112, 56), (150, 200)] * 2):
        path = folder / f"{number}.png"
        render(random_product(rng), rng=rng).resize(size, Image.Resampling.BICUBIC).save(path)
        paths.append(path)
    return paths
