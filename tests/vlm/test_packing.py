"""Attention over prompts laid end to end, against attention with a dense mask that keeps them apart."""

import math

import pytest
import torch
from torch import nn

from recbole_vlm2rec.vlm import packing
from recbole_vlm2rec.vlm.packing import attention, can_pack

SIZES, HEADS, KEY_HEADS, WIDTH = (5, 1, 7), 4, 2, 8
ENDS = torch.tensor([0, 5, 6, 13], dtype=torch.int32)


def tensors():
    torch.manual_seed(0)
    shapes = [(1, heads, sum(SIZES), WIDTH) for heads in (HEADS, KEY_HEADS, KEY_HEADS)]
    return [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]


def dense(query, key, value, scaling, window):
    """softmax(scaling q k^T) v with every pair of tokens of two prompts, later ones and those beyond the window masked out."""
    places = torch.arange(sum(SIZES))
    prompt = torch.repeat_interleave(torch.arange(len(SIZES)), torch.tensor(SIZES))
    seen = (prompt[:, None] == prompt) & (places[:, None] >= places) & (places[:, None] - places < window)
    key, value = (part.repeat_interleave(HEADS // KEY_HEADS, dim=1) for part in (key, value))
    scores = (scaling * query @ key.transpose(2, 3)).masked_fill(~seen, -math.inf)
    return (scores.softmax(-1) @ value).transpose(1, 2)


@pytest.mark.parametrize("window", [None, 3, 7])
def test_each_prompt_looks_at_itself_alone(window):
    scaling = 0.3
    results = []
    for way in ("packed", "dense"):
        parts = tensors()
        if way == "packed":
            out, _ = attention(
                nn.Module(), *parts, None, scaling=scaling, cu_seq_lens_q=ENDS, max_length_q=7, sliding_window=window
            )
        else:
            out = dense(*parts, scaling, window or 99)
        (out * torch.randn(out.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)).sum().backward()
        results.append([out.detach(), *(part.grad for part in parts)])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, atol=1e-12, rtol=1e-12)


def test_without_ends_it_is_transformers_own():
    query, key, value = tensors()
    module = nn.Module()
    module.num_key_value_groups, module.is_causal = HEADS // KEY_HEADS, True
    own, _ = packing.sdpa_attention_forward(module, query, key, value, None, scaling=0.3)
    torch.testing.assert_close(attention(module, query, key, value, None, scaling=0.3)[0], own)


def test_a_gpu_needs_a_kernel_for_its_arithmetic(monkeypatch):
    gpu, cpu = torch.device("cuda"), torch.device("cpu")
    assert can_pack(cpu, torch.float32) and not can_pack(gpu, torch.float32) and not can_pack(gpu, torch.bfloat16, dropout=0.1)
    monkeypatch.setattr(packing, "varlen_attn", None)
    assert not can_pack(gpu, torch.bfloat16)
    monkeypatch.setattr(packing, "varlen_attn", lambda query, key, value, *, scale, window_size: None)
    assert not can_pack(gpu, torch.bfloat16), "knows no fewer key heads than query heads"
    monkeypatch.setattr(packing, "varlen_attn", lambda query, key, value, *, scale, window_size, enable_gqa: None)
    assert can_pack(gpu, torch.bfloat16)
