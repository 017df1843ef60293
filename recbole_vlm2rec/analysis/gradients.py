"""Which modality a fine-tuning step follows (figure 1b of arXiv 2603.17450). Imports torch and objectives only.

On one batch, with dropout off, g_fused, g_T and g_V are the gradients of the InfoNCE loss (eq. 3) with respect to the LoRA
weights, over fused and over single-modality embeddings of sequences and targets alike:

    alignment_m = cos(g_fused, g_m),   m in {T, V}
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from recbole_vlm2rec import objectives


def alignment(
    queries: Sequence[Tensor], targets: Sequence[Tensor], parameters: Sequence[Tensor], temperature: float, **masks: Tensor
) -> dict[str, float]:
    """{"text", "image"}: the cosine of each side's gradient with the fused one.

    Args:
        queries, targets: the fused, text and image vectors of a batch, [B, d] each, from one forward.
        parameters: what the gradients are taken with respect to; their `.grad` is neither read nor written.
        masks: `item_ids` and `user_ids` of `objectives.info_nce`.
    """
    gradients = []
    for query, target in zip(queries, targets, strict=True):
        loss = objectives.info_nce(query, target, temperature, **masks)
        # The last of the three may free the graph; weights that a loss does not reach have gradient 0.
        keep = len(gradients) < len(queries) - 1
        gradients.append(torch.autograd.grad(loss, parameters, retain_graph=keep, allow_unused=True, materialize_grads=True))
    fused, text, image = gradients
    return {"text": cosine(fused, text), "image": cosine(fused, image)}


def cosine(one: Sequence[Tensor], other: Sequence[Tensor]) -> float:
    """Cosine of two gradients given as tensors of the same shapes in the same order; 0 where one of them is 0."""
    product, length, length_other = (
        sum((a.double() * b.double()).sum() for a, b in zip(first, second, strict=True))
        for first, second in ((one, other), (one, one), (other, other))
    )
    return (product / (length * length_other).sqrt()).item() if length and length_other else 0.0


@contextmanager
def dropout_off(module: nn.Module) -> Iterator[None]:
    """Evaluation mode inside, and afterwards each part's mode and the random state as they were.

    Layers that recompute their activations stay in training mode, in which alone transformers does so: a diagnosis shall not
    need more memory than the step that it explains. Their dropout sits in their parts.
    """
    modes = {part: part.training for part in module.modules()}
    with torch.random.fork_rng(range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()):
        try:
            for part, training in modes.items():
                part.training = training and getattr(part, "gradient_checkpointing", False)
            yield
        finally:
            for part, training in modes.items():
                part.training = training
