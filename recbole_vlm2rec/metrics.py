"""Ranks of the positive among its candidates, and the metrics of one positive a user, as functions of the rank.

May import numpy only. Section 5.1.3 of the paper; same values as RecBole's metrics and as ranx on the same lists.
"""

from __future__ import annotations

import numpy as np


def positive_ranks(scores: np.ndarray, position: np.ndarray) -> np.ndarray:
    """Rank (1 = best) of each row's positive among its candidates; int64 [B].

    Args:
        scores: [B, C] scores of the candidates, higher is better.
        position: [B] column of the positive.
    Ties are broken by list order. The positive stands at a random place of its list, so that a model which scores all
    alike gets the chance level. Raises ValueError naming the row where a score is NaN.
    """
    scores, position = np.asarray(scores), np.asarray(position)
    _refuse_nan(scores)
    rows = np.arange(len(scores))
    own = scores[rows, position][:, None]
    earlier = np.arange(scores.shape[1]) < position[:, None]
    return 1 + ((scores > own) | ((scores == own) & earlier)).sum(axis=1)


def full_ranks(scores: np.ndarray, target: np.ndarray, excluded: np.ndarray, tie: np.ndarray) -> np.ndarray:
    """Rank (1 = best) of each row's target among all items that are not excluded; int64 [B].

    Args:
        scores: [B, I] scores of all items. target: [B] its column.
        excluded: [B, I] bool, columns that are no candidates; the target's own entry does not matter.
        tie: [B] in [0, 1): share of the items tied with the target that are ranked before it, drawn at random.
    Raises ValueError naming the row where a candidate's score is NaN.
    """
    scores, target = np.asarray(scores), np.asarray(target)
    rows = np.arange(len(scores))
    rivals = ~excluded
    rivals[rows, target] = False
    _refuse_nan(np.where(excluded, 0, scores))
    own = scores[rows, target][:, None]
    _refuse_nan(own)
    tied = ((scores == own) & rivals).sum(axis=1)
    return 1 + ((scores > own) & rivals).sum(axis=1) + np.floor(tie * (tied + 1)).astype(np.int64)


def _refuse_nan(scores: np.ndarray) -> None:
    bad = np.flatnonzero(np.isnan(scores).any(axis=1))
    if len(bad):
        raise ValueError(f"{len(bad)} of {len(scores)} rows hold NaN scores, the first is row {bad[0]}: the model has diverged")


def hit(ranks: np.ndarray, k: int) -> np.ndarray:
    """1 where the positive is among the first k, else 0; float64 [B]."""
    return (np.asarray(ranks) <= k).astype(np.float64)


def ndcg(ranks: np.ndarray, k: int) -> np.ndarray:
    """1 / log2(1 + rank) where the positive is among the first k, else 0 (the ideal DCG of one positive is 1); float64 [B]."""
    return hit(ranks, k) / np.log2(1.0 + np.asarray(ranks))


def mrr(ranks: np.ndarray, k: int) -> np.ndarray:
    """1 / rank where the positive is among the first k, else 0; float64 [B]."""
    return hit(ranks, k) / np.asarray(ranks)


def precision(ranks: np.ndarray, k: int) -> np.ndarray:
    """1 / k where the positive is among the first k, else 0; float64 [B]."""
    return hit(ranks, k) / k


# RecBole's names. With one positive a user, recall is the hit and average precision the reciprocal rank.
METRICS = {"hit": hit, "recall": hit, "ndcg": ndcg, "mrr": mrr, "map": mrr, "precision": precision}


def per_user(ranks: np.ndarray, metric: str) -> np.ndarray:
    """One metric of each user, named as results name it: `per_user(ranks, "ndcg@20")`; float64 [B].

    Raises ValueError for a name that is none, and says which there are.
    """
    name, _, k = metric.lower().partition("@")
    if name not in METRICS or not k.isdecimal() or int(k) < 1:
        raise ValueError(f"{metric!r} is no metric; write NAME@K, K from 1 on, with one of {', '.join(METRICS)}")
    return METRICS[name](ranks, int(k))


def summary(ranks: np.ndarray, metrics: list[str], topk: list[int]) -> dict[str, float]:
    """Means over the users, named as RecBole names them: `{"hit@10": 0.31, ...}`, at full precision."""
    return {f"{name.lower()}@{k}": float(METRICS[name.lower()](ranks, k).mean()) for name in metrics for k in topk}
