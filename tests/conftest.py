"""Data that several tests share: small generated data sets in a temporary folder, and real data where there are some."""

import os
from pathlib import Path

import numpy as np
import pytest

from recbole_vlm2rec.prepare.minishop import generate

# Before torch is loaded: on a busy machine the threads of these small models wait for each other, ten times as long as they work.
os.environ.setdefault("OMP_NUM_THREADS", "1")


def write_atomic(folder: Path, name: str, rows, items=None) -> Path:
    """Writes <folder>/<name>/<name>.inter from (user, item, time) rows and, given tokens, <name>.item; returns the folder."""
    place = folder / name
    place.mkdir(parents=True)
    lines = ["user_id:token\titem_id:token\ttimestamp:float", *("\t".join(map(str, row)) for row in rows)]
    (place / f"{name}.inter").write_text("\n".join(lines) + "\n", encoding="utf-8")
    if items is not None:
        lines = ["item_id:token\ttitle:token_seq", *(f"{item}\tthing number {item}" for item in items)]
        (place / f"{name}.item").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


@pytest.fixture
def atomic():
    """`write_atomic`, for tests that bring rows of their own."""
    return write_atomic


@pytest.fixture(scope="session")
def toy_folder(tmp_path_factory) -> Path:
    """A data_path with the data set `toy`: users of 1, 2, 3 and 4 interactions among 40, 60 items and tied timestamps, and one
    item more in .item than anybody bought."""
    rng = np.random.default_rng(5)
    items = [f"i{item}" for item in range(60)]
    rows = []
    for user in range(40):
        length = user + 1 if user < 4 else int(rng.integers(5, 14))
        for place, item in enumerate(rng.choice(60, size=length, replace=False)):
            rows.append((f"u{user}", items[item], 1_500_000_000 + 7 * user + place // 3))
    return write_atomic(tmp_path_factory.mktemp("atomic"), "toy", rows, [*items, "never_bought"])


@pytest.fixture(scope="session")
def toy(toy_folder, tmp_path_factory) -> dict:
    """config_dict for a quick run on `toy`: one epoch, 20 negatives, no progress bars, all output in a temporary folder."""
    return {
        "data_path": str(toy_folder),
        "checkpoint_dir": str(tmp_path_factory.mktemp("saved")),
        "epochs": 1,
        "eval_negatives": 20,
        "train_batch_size": 64,
        "eval_batch_size": 7,
        "show_progress": False,
        "use_gpu": False,
    }


@pytest.fixture(scope="session")
def shop_folder(tmp_path_factory) -> Path:
    """A data_path with the data set `shop`: 100 users, 120 items, titles and pictures."""
    folder = tmp_path_factory.mktemp("shops")
    generate(folder, "shop", seed=11, users=100, items=120)
    return folder


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real data sets that RECBOLE_VLM2REC_REAL_DATA names; skips without it."""
    folder = os.environ.get("RECBOLE_VLM2REC_REAL_DATA")
    if not folder or not Path(folder).is_dir():
        pytest.skip("RECBOLE_VLM2REC_REAL_DATA names no folder of real data sets")
    return Path(folder)


@pytest.fixture(scope="session")
def word_tokenizer():
    """A WordPiece tokenizer of the letters and a few words, with BERT's special tokens."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    letters = "abcdefghijklmnopqrstuvwxyz0123456789,.-&"
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *letters, *(f"##{letter}" for letter in letters), "red", "blue", "mug", "lamp"]
    made = Tokenizer(models.WordPiece({piece: number for number, piece in enumerate(pieces)}, unk_token="[UNK]"))
    made.normalizer = normalizers.Lowercase()
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)])
    special = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    return PreTrainedTokenizerFast(tokenizer_object=made, model_max_length=64, **special)


@pytest.fixture(scope="session")
def tiny_bert(word_tokenizer, tmp_path_factory) -> Path:
    """Folder of a BERT of random weights: hidden size 32, 2 layers, 64 positions."""
    import torch
    from transformers import BertConfig, BertModel

    folder = tmp_path_factory.mktemp("tiny_bert")
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    BertModel(
        BertConfig(vocab_size=len(word_tokenizer), max_position_embeddings=64, initializer_range=0.3, **shape)
    ).save_pretrained(folder)
    word_tokenizer.save_pretrained(folder)
    return folder


def _image_text(folder: Path, word_tokenizer, family: str) -> Path:
    import torch
    import transformers

    torch.manual_seed(0)
    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    text = {
        "vocab_size": len(word_tokenizer),
        "max_position_embeddings": 64,
        "bos_token_id": 2,
        "eos_token_id": 3,
        "pad_token_id": 0,
    }
    vision = {**shape, "image_size": 32, "patch_size": 16}
    options = {"projection_dim": 24} if family == "CLIP" else {}
    config = getattr(transformers, f"{family}Config")(text_config={**shape, **text}, vision_config=vision, **options)
    model = getattr(transformers, f"{family}Model")(config)
    for weight in model.parameters():
        if weight.ndim > 1:
            torch.nn.init.normal_(weight, std=0.2)
    model.save_pretrained(folder)
    word_tokenizer.save_pretrained(folder)
    size = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}} if family == "CLIP" else {
        "size": {"height": 32, "width": 32}
    }  # fmt: skip
    getattr(transformers, f"{family}ImageProcessorPil")(**size).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_clip(word_tokenizer, tmp_path_factory) -> Path:
    """Folder of a CLIP of random weights: 32-pixel pictures, 24 dimensions."""
    return _image_text(tmp_path_factory.mktemp("tiny_clip"), word_tokenizer, "CLIP")


@pytest.fixture(scope="session")
def tiny_siglip(word_tokenizer, tmp_path_factory) -> Path:
    """The same of a SigLIP, whose text tower reads the last position, padding or not."""
    return _image_text(tmp_path_factory.mktemp("tiny_siglip"), word_tokenizer, "Siglip")
