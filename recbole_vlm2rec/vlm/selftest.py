"""What a backbone is asked before it is trusted: each fast path against the slow one, on two noise pictures and a few words.

Imports torch, pillow, the backbone and packing only. Run once when an encoder is loaded: six short forwards of the language
model.
"""

from __future__ import annotations

import inspect
import warnings
from dataclasses import dataclass

import torch
import transformers
from PIL import Image
from torch import Tensor

from recbole_vlm2rec.vlm.backbone import Backbone, BackboneError, PictureFeatures
from recbole_vlm2rec.vlm.packing import can_pack

TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 5e-2, torch.float16: 1e-2}
"""Largest relative difference between two ways to one vector that rounding explains; wrong positions give 0.1 and more."""


@dataclass(frozen=True)
class Paths:
    """Which fast paths are exact.

    `pack`: prompts laid end to end (`packing`). `pad`: prompts of unlike length in one padded forward. `share`: a prompt read out
    of a longer one.
    """

    pack: bool
    pad: bool
    share: bool


@torch.no_grad()
def self_test(backbone: Backbone) -> Paths:
    """Which fast paths the backbone bears; a warning names each that it does not, and what runs instead. None is switched on.

    Raises BackboneError where features that were computed before, and are handed to the language model, give another vector
    than the model makes of the pixels by itself: such a backbone would be silently wrong on every path.
    """
    family, tolerance = backbone.model.config.model_type, TOLERANCE.get(backbone.model.dtype, 5e-2)
    words = backbone.tokenize("0) one, 1) another, 2) a third")
    short = [*backbone.start_ids, *words]
    pictures, inputs = [], {}
    if backbone.processor is not None:
        pixels = torch.randint(0, 256, (90, 60, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)).numpy()
        noise = [Image.fromarray(pixels), Image.fromarray(pixels.swapaxes(0, 1).copy())]
        pictures, inputs = backbone.embed_pictures(noise), backbone.picture_inputs(noise)
        if (most := max(len(picture.tokens) for picture in pictures)) > backbone.max_visual_tokens:
            _warn(
                f"family {family!r} reads every picture in {most} visual tokens; max_visual_tokens: "
                f"{backbone.max_visual_tokens} cannot make them fewer"
            )
    long = list(backbone.start_ids)
    for picture in pictures:
        long += [*words[:3], *backbone.picture_ids(picture)]
    long += [] if pictures else words + words
    alone = [_at_end(backbone, [prompt], shown) for prompt, shown in ((short, []), (long, pictures))]
    if pictures and not (apart := _difference(alone[1], _from_pixels(backbone, long, inputs))) <= tolerance:
        raise BackboneError(
            f"family {family!r} under transformers {transformers.__version__}: a picture's features, computed once and kept, "
            f"give another vector than its pixels (relative difference {apart:.1e}, {tolerance:.0e} may be rounding). "
            f"Every result would be wrong; try another version of transformers"
        )
    padded = _difference(torch.cat(alone), _at_end(backbone, [short, long], pictures))
    if not padded <= tolerance:
        _warn(
            f"family {family!r}: a prompt that is padded in a batch gives another vector than alone (relative difference "
            f"{padded:.1e}); only prompts of equal length share a forward, which is slower and exact"
        )
    inside = _difference(alone[1], _at_end(backbone, [long + words], pictures, end=len(long)))
    if not inside <= tolerance:
        _warn(
            f"family {family!r}: what follows a token changes its hidden state (relative difference {inside:.1e}); each prompt "
            f"has a forward of its own, which is slower and exact"
        )
    pack = can_pack(backbone.device, backbone.model.dtype, getattr(backbone.model.get_decoder().config, "attention_dropout", 0.0))
    if pack:
        backbone.pack(True)
        end_to_end = _difference(torch.cat(alone), _at_end(backbone, [short, long], pictures))
        backbone.pack(False)
        if not (pack := end_to_end <= tolerance):
            _warn(
                f"family {family!r}: prompts laid end to end give other vectors than alone (relative difference "
                f"{end_to_end:.1e}); they are padded instead, which is slower and exact"
            )
    return Paths(pack=pack, pad=padded <= tolerance, share=inside <= tolerance)


def _warn(message: str) -> None:
    warnings.warn(message, stacklevel=4)


def _from_pixels(backbone: Backbone, prompt: list[int], inputs: dict[str, Tensor]) -> Tensor:
    """[1, d] with positions, masks and visual tokens as the model itself works them out."""
    ids = torch.tensor([prompt], device=backbone.device)
    kinds = (ids == backbone.image_token).int()
    taken = inspect.signature(backbone.model.forward).parameters
    inputs = {**inputs, **{name: kinds for name in ("mm_token_type_ids", "token_type_ids") if name in taken}}
    return backbone.model(input_ids=ids, use_cache=False, **inputs).last_hidden_state[:, -1]


def _at_end(backbone: Backbone, prompts: list[list[int]], pictures: list[PictureFeatures], end: int | None = None) -> Tensor:
    """[B, d]: hidden states of the last real tokens, or of token `end - 1`."""
    lengths = torch.tensor([len(prompt) for prompt in prompts], device=backbone.device)
    ids = torch.zeros(len(prompts), int(lengths.max()), dtype=torch.long, device=backbone.device)
    for row, prompt in enumerate(prompts):
        ids[row, : len(prompt)] = torch.tensor(prompt)
    mask = (torch.arange(ids.shape[1], device=backbone.device) < lengths[:, None]).long()
    ends = lengths - 1 if end is None else torch.full_like(lengths, end - 1)
    return backbone.hidden_states(ids, mask, pictures)[torch.arange(len(prompts)), ends]


def _difference(vectors: Tensor, others: Tensor) -> float:
    """Largest relative distance of two rows; not a number where a vector is none."""
    vectors, others = vectors.float(), others.float()
    return ((vectors - others).norm(dim=-1) / others.norm(dim=-1)).max().item()
