"""Item-level encoders: one pooled vector for a title or a picture, and the mean over a history (METHOD section 4).

Imports torch, transformers and this room only. Any encoder of the Hugging Face hub will do; nothing of it is trained.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Sequence
from itertools import chain
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor, nn
from transformers import AutoModel, AutoTokenizer
from transformers.models.auto.image_processing_auto import AutoImageProcessor

from recbole_vlm2rec.vlm.backbone import BackboneError, has_eyes, loading, open_rgb
from recbole_vlm2rec.vlm.encoder import PICTURE_BATCH, length_groups
from recbole_vlm2rec.vlm.fusion import ItemEncoder, Vectors

POOLED = "pooled"
"""`kind` of these encoders in a checkpoint's description."""

POOLINGS = ("mean", "cls", "projected")


class PooledEncoder(nn.Module):
    """Titles, and where the model has eyes pictures, as one vector each; frozen.

    What else asks for a `VLMEncoder`'s `model`, `peft`, `store`, `hidden_size` or `reads_pictures` finds them here too.

    Args:
        model, tokenizer: as Hugging Face's Auto classes give them. processor: the picture processor, if pictures shall be read.
        pooling: of the last hidden states, `mean` over a title's tokens, special ones included, or `cls`, the first token's; or
            `projected`, the vector in the space that an image-text model (CLIP, SigLIP, …) shares between titles and pictures.
        token_budget: tokens (padding included) of one forward at most; a single longer title still runs, alone.
        max_title_tokens: longer titles are cut after so many tokens; None, and never later: after the most the model reads.
    Raises ValueError for another pooling, BackboneError for `projected` of a model that has no such space.
    """

    peft = None
    store = None

    def __init__(
        self,
        model: nn.Module,
        tokenizer,
        processor=None,
        pooling: str = "mean",
        token_budget: int = 8192,
        max_title_tokens: int | None = None,
    ):
        super().__init__()
        check_pooling(pooling)
        if pooling == "projected" and not hasattr(model, "get_text_features"):
            raise BackboneError(
                f"family {model.config.model_type!r} has no space that titles and pictures share (no get_text_features): "
                f"pooling projected is for CLIP and its like; use mean or cls"
            )
        self.model, self.tokenizer, self.processor = model.eval().requires_grad_(False), tokenizer, processor
        self.pooling, self.token_budget = pooling, token_budget
        self.longest = self._longest(max_title_tokens)
        alone, self.pads_fully = self._probe()
        self.hidden_size = alone.shape[-1]

    @classmethod
    def from_pretrained(
        cls,
        path_or_name: str,
        pooling: str = "mean",
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        token_budget: int = 8192,
        max_title_tokens: int | None = None,
    ) -> PooledEncoder:
        """Loads a local folder or a hub name. Raises BackboneError saying which, why, and what to do.

        Pictures go through Pillow, as `backbone.load_pretrained` says.
        """
        check_pooling(pooling)
        with loading(f"item encoder {path_or_name!r}"):
            tokenizer = AutoTokenizer.from_pretrained(path_or_name)
            model, report = AutoModel.from_pretrained(path_or_name, dtype=dtype, output_loading_info=True)
            eyes = pooling == "projected" and has_eyes(model)
            processor = AutoImageProcessor.from_pretrained(path_or_name, backend="pil") if eyes else None
        # A checkpoint may bring heads that are of no use here, and lack the layer behind [CLS], which mean and cls do not read.
        needed = [key for key in report["missing_keys"] if pooling == "projected" or "pooler" not in key.split(".")]
        if missing := sorted(needed):
            raise BackboneError(
                f"item encoder {path_or_name!r}: the weights do not fit the architecture {type(model).__name__}: missing "
                f"{missing[:3]}. Is the folder complete, and is transformers recent enough?"
            )
        return cls(model.to(device), tokenizer, processor, pooling, token_budget, max_title_tokens)

    @property
    def device(self) -> torch.device:
        return self.model.device

    @property
    def reads_pictures(self) -> bool:
        return self.processor is not None

    def open_store(self, folder: str | Path) -> None:
        """Keeps nothing on disk: a picture is one vector, which `PooledItemEncoder` remembers."""

    def keep_pictures(self, pictures: Iterable[Path], folder: str | Path, show_progress: bool = False) -> None:
        """As `open_store`."""

    @torch.no_grad()
    def encode_text(self, titles: Sequence[str]) -> Tensor:
        """[n, d], float32, of n titles."""
        ids = [self._ids(title) for title in titles]
        vectors: list[Tensor] = [None] * len(ids)
        for rows in length_groups([self.longest if self.pads_fully else len(tokens) for tokens in ids], self.token_budget):
            for row, vector in zip(rows, self._forward([ids[row] for row in rows], self.pads_fully), strict=True):
                vectors[row] = vector
        return torch.stack(vectors)

    @torch.no_grad()
    def encode_images(self, pictures: Sequence[Path | Image.Image]) -> Tensor:
        """[n, d], float32, of n pictures. Raises BackboneError for a picture that cannot be read, and without eyes."""
        if self.processor is None:
            raise BackboneError(
                f"family {self.model.config.model_type!r} with pooling {self.pooling} reads text alone; use modalities: text, or "
                f"an image-text model such as CLIP with pooling: projected"
            )
        taken = inspect.signature(self.model.get_image_features).parameters
        parts = []
        for start in range(0, len(pictures), PICTURE_BATCH):
            opened = [open_rgb(picture) for picture in pictures[start : start + PICTURE_BATCH]]
            batch = self.processor(images=opened, return_tensors="pt")
            inputs = {name: self._moved(tensor) for name, tensor in batch.items() if name in taken}
            parts.append(self._features(self.model.get_image_features(**inputs)))
        return torch.cat(parts)

    def _forward(self, ids: Sequence[list[int]], fully: bool) -> Tensor:
        """[n, d] of n titles' tokens in one forward, padded to the longest of them or `fully`, as the model was trained."""
        lengths = torch.tensor([len(tokens) for tokens in ids])
        padded = torch.full((len(ids), self.longest if fully else int(lengths.max())), self.tokenizer.pad_token_id or 0)
        for row, tokens in enumerate(ids):
            padded[row, : len(tokens)] = torch.tensor(tokens)
        mask = (torch.arange(padded.shape[1]) < lengths[:, None]).long().to(self.device)
        padded = padded.to(self.device)
        if self.pooling == "projected":
            # Where the padding is read there was no mask in training either.
            masked = {} if fully else {"attention_mask": mask}
            return self._features(self.model.get_text_features(input_ids=padded, **masked))
        states = self._text_tower(input_ids=padded, attention_mask=mask).last_hidden_state.float()
        if self.pooling == "cls":
            return states[:, 0]
        mask = mask.unsqueeze(-1).float()
        return (states * mask).sum(1) / mask.sum(1)

    @property
    def _text_tower(self) -> nn.Module:
        """What turns tokens into hidden states: the text tower of an image-text model, the encoder of an encoder-decoder."""
        if self.model.config.is_encoder_decoder:
            return self.model.get_encoder()
        return getattr(self.model, "text_model", self.model)

    def _features(self, answer) -> Tensor:
        """Older transformers answer with the vectors, newer ones with an output that holds them."""
        vectors = answer if isinstance(answer, Tensor) else answer.pooler_output
        if not isinstance(vectors, Tensor) or vectors.ndim != 2:
            raise BackboneError(
                f"family {self.model.config.model_type!r} gives a title or picture more than one vector; pooling projected is "
                f"for CLIP and its like"
            )
        return vectors.float()

    def _moved(self, tensor: Tensor) -> Tensor:
        return tensor.to(self.device, self.model.dtype if tensor.is_floating_point() else None)

    def _ids(self, title: str) -> list[int]:
        """A title's token ids, special ones around it. A title that spells out a special token stays text."""
        cut = {} if self.longest is None else {"truncation": True, "max_length": self.longest}
        return self.tokenizer(title, split_special_tokens=True, **cut)["input_ids"]

    def _longest(self, max_title_tokens: int | None) -> int | None:
        """The most tokens that a title may have, special ones included; None where nothing limits them."""
        positions = getattr(self.model.config.get_text_config(), "max_position_embeddings", None)
        limits = [limit for limit in (self.tokenizer.model_max_length, positions) if limit is not None]
        if max_title_tokens is not None:
            limits.append(max_title_tokens + self.tokenizer.num_special_tokens_to_add())
        # A tokenizer that knows no limit says 1e30.
        return min((limit for limit in limits if limit < 1e9), default=None)

    @torch.no_grad()
    def _probe(self) -> tuple[Tensor, bool]:
        """A title's vector, and whether padding changes it, as in SigLIP: such models were trained on titles of full length."""
        short, long = self._ids("a"), self._ids("a b c d e f g h")
        alone, beside = self._forward([short], False)[0], self._forward([short, long], False)[0]
        changed = (alone - beside).norm() > 0.05 * alone.norm()  # bfloat16 rounds by less
        if changed and (self.pooling != "projected" or self.longest is None):
            raise BackboneError(
                f"family {self.model.config.model_type!r}: a title's vector changes with the padding behind it (pooling "
                f"{self.pooling}), so it would depend on the titles encoded beside it; choose another encoder or pooling"
            )
        return alone, bool(changed)


class PooledItemEncoder(ItemEncoder):
    """An `ItemEncoder` whose sequences are the mean of their items' raw vectors (METHOD section 4).

    Titles and pictures of an item are summed, z_T + z_V (eq. 2). Vectors of items are computed once and kept on the CPU.
    """

    def __init__(
        self,
        encoder: PooledEncoder,
        titles: Sequence[str | None],
        pictures: Sequence[Path | None],
        fusion: str = "external",
        modalities: str = "text",
    ):
        if fusion == "internal":
            raise ValueError("fusion is internal: an item-level encoder reads a title or a picture at a time; use external")
        if "image" in modalities and encoder.pooling != "projected":
            raise ValueError(f"modalities {modalities} needs pooling projected, of CLIP and its like, not {encoder.pooling}")
        super().__init__(encoder, titles, pictures, fusion, modalities)
        self._titles: dict[int, Tensor] = {}
        self._pictures: dict[int, Tensor] = {}

    def encode(self, sequences: Sequence[Sequence[int]]) -> Vectors:
        """Vectors [B, d] of B sequences of item numbers; their order does not matter."""
        text = image = None
        if "text" in self.modalities:
            text = self._means(sequences, self._titles, self.encoder.encode_text, self.titles)
        if "image" in self.modalities:
            image = self._means(sequences, self._pictures, self.encoder.encode_images, self.pictures)
        return Vectors(text, image, text + image if self.apart else (image if text is None else text))

    def _means(
        self, sequences: Sequence[Sequence[int]], kept: dict[int, Tensor], read: Callable[[list], Tensor], sources: Sequence
    ) -> Tensor:
        if new := [item for item in dict.fromkeys(chain.from_iterable(sequences)) if item not in kept]:
            kept.update(zip(new, read([sources[item] for item in new]).cpu(), strict=True))
        means = [torch.stack([kept[item] for item in items]).mean(0) for items in sequences]
        return torch.stack(means).to(self.encoder.device)


def check_pooling(pooling: str) -> None:
    """Raises ValueError for a pooling that does not exist."""
    if pooling not in POOLINGS:
        raise ValueError(f"pooling is {pooling!r}: choose one of {', '.join(POOLINGS)}")
