"""Attention over prompts laid end to end: no padding, no mask, each prompt looks at itself alone.

Imports torch and transformers only. Registered with transformers under `NAME`: a GPU computes it with torch's varlen kernels, a
CPU prompt by prompt. Where the prompts begin travels as `cu_seq_lens_q`, the name that transformers has for it, so that layers
which are computed again in the backward pass (activation checkpointing) get it too.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

try:
    from torch.nn.attention.varlen import varlen_attn
except ImportError:  # older versions of torch
    varlen_attn = None

NAME = "recbole_vlm2rec_packed"
_PACKED: ContextVar[bool] = ContextVar("packed", default=False)


def can_pack(device: torch.device, dtype: torch.dtype, dropout: float = 0.0) -> bool:
    """Whether there is a kernel: always on a CPU, on a GPU torch's varlen attention, which knows no float32 and no dropout."""
    if device.type == "cpu":
        return True
    if device.type != "cuda" or varlen_attn is None or dropout or dtype not in (torch.bfloat16, torch.float16):
        return False
    # In its first versions it took neither a scale nor fewer key heads than query heads.
    return {"scale", "window_size", "enable_gqa"} <= set(inspect.signature(varlen_attn).parameters)


@contextmanager
def packed() -> Iterator[None]:
    """While open, models whose attention is `NAME` make no mask: nothing they are given is padded."""
    token = _PACKED.set(True)
    try:
        yield
    finally:
        _PACKED.reset(token)


def attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    cu_seq_lens_q: Tensor | None = None,
    max_length_q: int | None = None,
    sliding_window: int | None = None,
    **kwargs,
) -> tuple[Tensor, None]:
    """Causal attention within each prompt; query [1, H, T, D], key and value [1, H_kv, T, D]; gives [1, T, H, D].

    cu_seq_lens_q: int32 [N + 1], where each of N prompts begins, and the end of the last; without it, transformers' own `sdpa`.
    """
    if cu_seq_lens_q is None:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, sliding_window=sliding_window, **kwargs
        )
    if query.is_cuda:
        window = (-1 if sliding_window is None else sliding_window - 1, 0)
        rows = (part[0].transpose(0, 1) for part in (query, key, value))
        ends = (cu_seq_lens_q, cu_seq_lens_q, max_length_q, max_length_q)
        return varlen_attn(*rows, *ends, scale=scaling, window_size=window, enable_gqa=True)[None], None
    sizes = cu_seq_lens_q.diff().tolist()
    parts = zip(*(part.split(sizes, dim=2) for part in (query, key, value)), strict=True)
    options = {"dropout_p": dropout, "scale": scaling, "enable_gqa": query.shape[1] != key.shape[1]}
    heads = [F.scaled_dot_product_attention(*part, **_within(part[0], sliding_window), **options) for part in parts]
    return torch.cat(heads, dim=2).transpose(1, 2), None


def _within(query: Tensor, sliding_window: int | None) -> dict:
    """Which keys a query of one prompt sees."""
    length = query.shape[2]
    if sliding_window is None or length <= sliding_window:
        return {"is_causal": True}
    near = torch.ones(length, length, dtype=torch.bool, device=query.device).tril()
    return {"attn_mask": near.triu(1 - sliding_window)}


def _mask(*args, **kwargs) -> Tensor | None:
    return None if _PACKED.get() else sdpa_mask(*args, **kwargs)


AttentionInterface.register(NAME, attention)
AttentionMaskInterface.register(NAME, _mask)
