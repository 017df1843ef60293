"""sentence-transformers over the same model, as a peer for embedding items (optional: `pip install sentence-transformers`).

Its own loader takes the whole processor of a vision-language model, which wants torchvision; tokenizer and picture processor are
handed to it here instead. Everything else is its `encode`: sorting by length, batches, padding, pooling of the last token.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from PIL import Image
from torch import Tensor, nn

try:
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.base.modules.input_module import InputModule
    from sentence_transformers.sentence_transformer.modules.pooling import Pooling
except ImportError:  # not installed, or older than 6
    SentenceTransformer, InputModule, Pooling = None, object, None


class _Reader(InputModule):
    """Texts, or (text, picture) pairs, through a headless model: what sentence-transformers asks of a first module."""

    def __init__(self, model: nn.Module, tokenizer, processor):
        super().__init__()
        self.model, self.tokenizer, self.processor = model, tokenizer, processor

    @property
    def modalities(self) -> list:
        return ["text", ("image", "text")]

    def preprocess(self, inputs: Sequence, prompt: str | None = None, **_) -> dict[str, Tensor]:
        texts = [entry if isinstance(entry, str) else entry["text"] for entry in inputs]
        batch = dict(self.tokenizer(texts, padding=True, padding_side="right", return_tensors="pt"))
        if not isinstance(inputs[0], str):
            pictures = [Image.open(entry["image"]).convert("RGB") for entry in inputs]
            batch |= dict(self.processor(images=pictures, return_tensors="pt"))
            batch["mm_token_type_ids"] = (batch["input_ids"] == self.model.config.image_token_id).int()
        return batch

    def forward(self, features: dict[str, Tensor], **_) -> dict[str, Tensor]:
        asked = ("input_ids", "attention_mask", "pixel_values", "image_grid_thw", "mm_token_type_ids")
        inputs = {name: features[name] for name in asked if name in features}
        # An input that a model does not take makes transformers compute positions of one dimension: none is left out above.
        return {**features, "token_embeddings": self.model(**inputs, use_cache=False).last_hidden_state}

    def save(self, *_, **__) -> None:
        raise NotImplementedError("a benchmark's model is not saved")  # sentence-transformers asks for the method


class SentencePeer:
    """Embeds text prompts and (text, picture) prompts with `SentenceTransformer.encode`."""

    def __init__(self, model: nn.Module, tokenizer, processor, device: str, batch_size: int):
        width = model.get_input_embeddings().embedding_dim
        modules = [_Reader(model, tokenizer, processor), Pooling(width, pooling_mode="lasttoken")]
        self.model, self.batch_size = SentenceTransformer(modules=modules, device=device).eval(), batch_size
        self.half = model.dtype == torch.bfloat16

    def encode(self, prompts: Sequence) -> Tensor:
        """[n, d] float32 of `prompts`: all strings, or all {"text": …, "image": path}."""
        device = self.model.device.type
        with torch.autocast(device, dtype=torch.bfloat16, enabled=self.half):
            vectors = self.model.encode(
                list(prompts), batch_size=self.batch_size, convert_to_tensor=True, show_progress_bar=False
            )
        return vectors.float()


def available() -> bool:
    """Whether sentence-transformers (6 or later) is installed."""
    return SentenceTransformer is not None
