"""ItemLevel: a pretrained encoder of single titles and pictures ranks items by the mean of a history's item vectors (task 1).

Imports VLM2Rec and vlm.pooled. BERT and CLIP of the paper's tables are rows of it.
"""

from __future__ import annotations

from recbole_vlm2rec.model.vlm2rec import VLM2Rec, arithmetic
from recbole_vlm2rec.vlm.pooled import POOLED, PooledEncoder


class ItemLevel(VLM2Rec):
    """Any Hugging Face encoder named by `item_encoder`, untrained, with `pooling` `mean`, `cls` or `projected`.

    Raises ValueError without an `item_encoder`, for an objective or a checkpoint (there is nothing to train), and for choices
    that do not go together; BackboneError for an encoder that cannot do what is asked.
    """

    reads_checkpoints = False

    def load_encoder(self, config) -> PooledEncoder:
        if not config["item_encoder"]:
            raise ValueError(
                "item_encoder is not set: name an encoder on the Hugging Face hub or its folder, "
                "--item_encoder=google-bert/bert-large-uncased say"
            )
        if self.terms or config["checkpoint"]:
            key = "objective" if self.terms else "checkpoint"
            raise ValueError(f"{key} is {config[key]}: an item-level encoder is used as it is; objective none, no checkpoint")
        return PooledEncoder.from_pretrained(
            config["item_encoder"],
            config["pooling"],
            dtype=arithmetic(config["dtype"], self.device),
            device=self.device,
            token_budget=config["token_budget"],
            max_title_tokens=config["max_title_tokens"],
        )

    def encoder_settings(self, config) -> dict:
        names = ("item_encoder", "pooling", "max_title_tokens", "fusion", "modalities")
        return {"kind": POOLED, **{name: config[name] for name in names}, "lora": None}
