"""Geometry of an embedding space (table 1 of arXiv 2603.17450), pure functions of vectors. Imports torch only.

On unit vectors, d the Euclidean distance, z a sequence and e an item:

    A_pos = mean of d(z, e+)^2 over (sequence, target) pairs                              (eq. 4)
    A_neg = mean of d(z, e-)^2 over (sequence, sampled negative) pairs                    (eq. 4)
    U     = log mean exp(-2 d^2), 0 when all vectors are one, at least -8                 (eq. 4)
    S     = A_neg / (A_pos + eps), above 1 when targets are closer than negatives         (eq. 5)

Eq. 4 writes U over (sequence, item) pairs: `uniformity_cross`. By Jensen's inequality that is at least -2 A_neg where negatives
are drawn uniformly, which values printed in table 1 fall below; so U within the sequences and within the items is given as well.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

EPSILON = 1e-12
# Rows at a time: [_CHUNK, N, d] differences, [_BLOCK, n] cosines.
_CHUNK, _BLOCK = 64, 1024


@torch.no_grad()
def geometry(queries: Tensor, items: Tensor, targets: Tensor, negatives: Tensor) -> dict[str, float]:
    """A_pos, A_neg, S and the three readings of U; nothing is drawn here, so the same arguments give the same numbers.

    Args:
        queries: [B, d] sequence vectors, B >= 2. items: [n_items, d] item vectors; row 0 is RecBole's padding and not used.
        targets: [B] item id of each sequence's target. negatives: [B, N] item ids of its negatives.
    Raises ValueError for shapes that do not fit, for ids that are no items, and for vectors that are zero or not finite.
    """
    targets, negatives = (torch.as_tensor(ids, device=items.device).long() for ids in (targets, negatives))
    if len(queries) < 2 or targets.shape != (len(queries),) or negatives.shape[:1] != targets.shape or negatives.ndim != 2:
        raise ValueError(
            f"{len(queries)} queries with targets {list(targets.shape)} and negatives {list(negatives.shape)}: "
            f"they must be [B, d], [B] and [B, N], with B >= 2"
        )
    for name, ids in (("targets", targets), ("negatives", negatives)):
        if ids.numel() == 0 or ids.min() < 1 or ids.max() >= len(items):
            raise ValueError(f"{name} must be item ids from 1 to {len(items) - 1}")
    queries, items = _unit(queries, "queries"), _unit(items[1:], "items")
    targets, negatives = targets - 1, negatives - 1

    positive = (queries - items[targets]).square().sum(dim=1).mean()
    # Differences rather than 2 - 2 cos: in a collapsed space the latter is rounding error.
    parts = zip(queries.split(_CHUNK), negatives.split(_CHUNK), strict=True)
    negative = torch.cat([(some[:, None] - items[ids]).square().sum(dim=2).mean(dim=1) for some, ids in parts]).mean()
    return {
        "alignment_positive": positive.item(),
        "alignment_negative": negative.item(),
        "separability": (negative / (positive + EPSILON)).item(),
        "uniformity_cross": uniformity(queries, items),
        "uniformity_queries": uniformity(queries),
        "uniformity_items": uniformity(items),
    }


@torch.no_grad()
def uniformity(first: Tensor, second: Tensor | None = None) -> float:
    """log mean exp(-2 d^2) over all pairs of a row of `first` [n, d] and one of `second` [m, d], all rows scaled to length 1.

    Without `second`: over all pairs of two different rows of `first`. Raises ValueError where there is no pair.
    """
    within = second is None
    first = _unit(first, "vectors")
    second = first if within else _unit(second, "vectors")
    pairs = len(first) * (len(second) - within)
    if pairs <= 0:
        raise ValueError(f"{len(first)} and {len(second)} vectors make no pair: uniformity needs one")
    sums = []
    for start in range(0, len(first), _BLOCK):
        # -2 d^2 = -2 (2 - 2 cos)
        exponents = 4 * (first[start : start + _BLOCK] @ second.T) - 4
        if within:
            # A row beside itself is no pair; row i of the chunk is row start + i of all.
            exponents.diagonal(offset=start).fill_(-math.inf)
        sums.append(exponents.flatten().logsumexp(dim=0))
    return (torch.stack(sums).logsumexp(dim=0) - math.log(pairs)).item()


def _unit(vectors: Tensor, name: str) -> Tensor:
    vectors = vectors if vectors.dtype == torch.float64 else vectors.float()
    norms = vectors.norm(dim=1)
    bad = (~torch.isfinite(norms) | (norms == 0)).nonzero().flatten()
    if len(bad):
        raise ValueError(
            f"{len(bad)} of {len(vectors)} {name} are zero or not finite and have no direction, the first is row {bad[0]}"
        )
    return F.normalize(vectors, dim=1)
