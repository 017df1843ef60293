"""How many layers recompute their activations in the backward pass: as many as memory asks for, and no more.

Imports torch and transformers only. What a step computes does not depend on it: dropout is drawn again as it was.
"""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Callable
from logging import getLogger
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer

SHARE = 0.6
"""Of the free memory, what kept activations may fill: the backward pass and the step's other encodings need some too."""

PROBE = 64  # tokens
# Of a container: what it may use, and what it uses (cgroup version 2, version 1).
_CONTAINER = (
    ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
    ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
)


class ActivationBudget:
    """Switches layers of a decoder, anew for each encoding, by what a kept layer holds a token: measured in a short forward.

    Args:
        decoder: the language model, in training mode, its layers able to recompute (`gradient_checkpointing_enable`).
        probe: runs a forward of PROBE tokens through it.
        input_bytes: what a recomputed layer holds a token, which is its input.
    """

    def __init__(self, decoder: nn.Module, probe: Callable[[], object], input_bytes: int, device: torch.device):
        self.layers = [module for module in decoder.modules() if isinstance(module, GradientCheckpointingLayer)]
        self.input_bytes, self.device, self._most = input_bytes, device, 0
        self._switch(0)
        devices = [device] if device.type == "cuda" else []
        with torch.random.fork_rng(devices), torch.enable_grad():  # the training draws what it would have drawn without this
            self.layer_bytes = saved_bytes(probe) / PROBE / len(self.layers)

    def fit(self, tokens: int) -> int:
        """Lets the first layers recompute, as many as it takes for `tokens` to fit; returns how many."""
        budget = SHARE * free_bytes(self.device)
        count = recomputed_layers(tokens, len(self.layers), self.layer_bytes, self.input_bytes, budget)
        if count > self._most:
            self._most = count
            getLogger(__name__).info(
                f"{count} of {len(self.layers)} layers compute their activations again in the backward pass: those of {tokens} "
                f"tokens take {tokens * len(self.layers) * self.layer_bytes / 2**30:.1f} GiB, {budget / 2**30:.1f} may be used"
            )
        self._switch(count)
        return count

    def _switch(self, recomputed: int) -> None:
        for place, layer in enumerate(self.layers):
            layer.gradient_checkpointing = place < recomputed


def recomputed_layers(tokens: int, layers: int, layer_bytes: float, input_bytes: float, budget: float) -> int:
    """The least n for which tokens * (n * input_bytes + (layers - n) * layer_bytes) <= budget; `layers` where none does."""
    beyond = tokens * layers * layer_bytes - budget
    if beyond <= 0:
        return 0
    saved = tokens * (layer_bytes - input_bytes)
    return layers if saved <= 0 else min(layers, math.ceil(beyond / saved))


def free_bytes(device: torch.device) -> float:
    """Memory that can still be had on the device; infinite where the system does not say."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    found = [math.inf]
    with contextlib.suppress(OSError, TypeError):
        text = Path("/proc/meminfo").read_text(encoding="utf-8")
        found.append(int(re.search(r"^MemAvailable:\s+(\d+) kB", text, re.MULTILINE)[1]) * 1024)
    for most, used in _CONTAINER:
        with contextlib.suppress(OSError, ValueError):  # no such file; `max`: no limit
            found.append(int(Path(most).read_text(encoding="utf-8")) - int(Path(used).read_text(encoding="utf-8")))
    return max(0, min(found))


def saved_bytes(work: Callable[[], object]) -> int:
    """Bytes that autograd keeps for the backward pass of `work`, weights not counted."""
    storages: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        if not isinstance(tensor if tensor._base is None else tensor._base, nn.Parameter):
            storage = tensor.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        result = work()
    count = sum(storages.values())
    del result  # kept until here: freed memory would be given out, and counted, again
    return count
