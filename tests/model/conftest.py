"""Settings under which each of our models trains in a few seconds on a small generated shop."""

from pathlib import Path

import numpy as np
import pytest

from recbole_vlm2rec import embeddings


@pytest.fixture(scope="session")
def export_folder(shop_folder, tmp_path_factory) -> Path:
    """An export for the shop's items that tells them apart: random vectors."""
    lines = (shop_folder / "shop" / "shop.item").read_text(encoding="utf-8").splitlines()[1:]
    tokens = [line.split("\t")[0] for line in lines]
    folder = tmp_path_factory.mktemp("exports") / "shop"
    vectors = np.random.default_rng(0).normal(size=(len(tokens), 24)).astype(np.float32)
    embeddings.write(folder, tokens, fused=vectors, manifest={"dataset": "shop"})
    return folder


@pytest.fixture
def settings(shop_folder, export_folder, tiny_bert, tmp_path):
    """config_dict by model name."""
    common = {
        "data_path": str(shop_folder),
        "dataset": "shop",
        "checkpoint_dir": str(tmp_path / "saved"),
        "show_progress": False,
        "use_gpu": False,
        "eval_negatives": 50,
        "MAX_ITEM_LIST_LENGTH": 3,
    }
    downstream = {"item_embeddings": str(export_folder), "epochs": 4, "train_batch_size": 64, "stopping_step": 10}
    return {
        "VLM2Rec": {
            **common,
            "backbone": "tiny",
            "epochs": 2,
            "train_batch_size": 20,
            "learning_rate": 2e-3,
            "lora_dropout": 0.0,
        },
        "ItemLevel": {**common, "item_encoder": str(tiny_bert)},
        "VLM2RecSASRec": {**common, **downstream},
        "VLM2RecGRU4Rec": {**common, **downstream},
    }
