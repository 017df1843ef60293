"""Items as their titles and pictures, sequences of items as fused vectors (METHOD section 2, eq. 1 and 2).

Imports torch and the encoder only. Training, evaluation, export and benchmark all encode through `ItemEncoder`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from recbole_vlm2rec.vlm.encoder import VLMEncoder

MODALITIES = {"text+image": ("text", "image"), "text": ("text",), "image": ("image",)}
FUSIONS = ("external", "internal")


@dataclass(frozen=True)
class Vectors:
    """Embeddings of n sequences or items, float32 [n, d]; `text` and `image` are None where they are not encoded apart."""

    text: Tensor | None
    image: Tensor | None
    fused: Tensor

    @classmethod
    def of(cls, combine: Callable[..., Tensor], *parts: Vectors) -> Vectors:
        """Applies `combine` to the parts' text, image and fused vectors in turn; what is None stays None."""
        kinds = zip(*((part.text, part.image, part.fused) for part in parts), strict=True)
        return cls(*(None if kind[0] is None else combine(*kind) for kind in kinds))

    def rows(self, index: int | slice | Tensor) -> Vectors:
        return Vectors.of(lambda vectors: vectors[index], self)


class ItemEncoder(nn.Module):
    """Encodes sequences of item numbers; an item alone is a sequence of one.

    Args:
        encoder: the vision-language model.
        titles, pictures: of item number n at place n.
        fusion: `external` (two prompts, z = z_T + z_V on the raw vectors, eq. 2) or `internal` (one interleaved prompt).
        modalities: `text+image`, `text` or `image`.
    Raises ValueError for choices that do not exist or do not go together.
    """

    def __init__(
        self,
        encoder: VLMEncoder,
        titles: Sequence[str | None],
        pictures: Sequence[Path | None],
        fusion: str = "external",
        modalities: str = "text+image",
    ):
        super().__init__()
        if fusion not in FUSIONS:
            raise ValueError(f"fusion is {fusion!r}: choose external (two prompts, summed) or internal (one prompt)")
        if modalities not in MODALITIES:
            raise ValueError(f"modalities is {modalities!r}: choose one of {', '.join(MODALITIES)}")
        if fusion == "internal" and modalities != "text+image":
            raise ValueError(
                f"fusion internal reads titles and pictures in one prompt; modalities {modalities} has no use for it"
            )
        if modalities != "text" and not encoder.reads_pictures:
            family = encoder.model.config.model_type
            raise ValueError(
                f"the backbone's family, {family!r}, reads text alone; modalities: text (and objective sft or none) suit it"
            )
        self.encoder, self.titles, self.pictures = encoder, titles, pictures
        self.fusion, self.modalities = fusion, MODALITIES[modalities]

    @property
    def apart(self) -> bool:
        """Whether text and image embeddings exist apart, as WPCL, CRTR and the modality dropout test need them."""
        return self.fusion == "external" and len(self.modalities) == 2

    def encode(self, sequences: Sequence[Sequence[int]]) -> Vectors:
        """Vectors [B, d] of B sequences of item numbers, oldest first."""
        if self.fusion == "internal":
            pairs = [[(self.titles[item], self.pictures[item]) for item in items] for items in sequences]
            return Vectors(None, None, self.encoder.encode_interleaved(pairs).float())
        text = image = None
        if "text" in self.modalities:
            text = self.encoder.encode_text([[self.titles[item] for item in items] for items in sequences]).float()
        if "image" in self.modalities:
            image = self.encoder.encode_images([[self.pictures[item] for item in items] for items in sequences]).float()
        return Vectors(text, image, text + image if self.apart else (image if text is None else text))

    def encode_cached(self, sequences: Sequence[Sequence[int]], size: int) -> Vectors:
        """`encode`, `size` sequences at a time, for a loss over more of them than memory holds activations for.

        Each part's activations are dropped after its forward and computed again, with the same dropout, when the loss's gradient
        reaches its vectors: loss and gradients are those of `encode` in the same parts (GradCache, Gao et al. 2021,
        arXiv:2101.06983), for one more forward.
        """
        parts = []
        for start in range(0, len(sequences), size):
            part = sequences[start : start + size]
            # The tensor is there for its device alone: checkpoint keeps the random state of the devices it sees.
            here = torch.empty(0, device=self.encoder.backbone.device)
            vectors = checkpoint(lambda _, part=part: tuple(vars(self.encode(part)).values()), here, use_reentrant=False)
            parts.append(Vectors(*vectors))
        return Vectors.of(lambda *vectors: torch.cat(vectors), *parts)
