"""The nearest rows of a table of vectors by cosine: exactly in chunks, or through FAISS (the optional extra `faiss`).

Imports numpy and torch; faiss only when an index of its own is built.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Collection, Sequence
from logging import getLogger

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

LARGE = 100_000
"""From more items than these on, FAISS searches where nothing else is asked for."""

APPROXIMATE = ("hnsw", "ivf")
INDEXES = ("exact", *APPROXIMATE)
CHUNK, QUERIES = 100_000, 256

# HNSW: links a node, candidates looked at while building and while searching. IVF: lists that a search reads.
LINKS, BUILD_DEPTH, SEARCH_DEPTH = 32, 100, 256
LEAST_LISTS, LISTS_READ = 8, 1 / 16


class RetrievalError(ValueError):
    """An index that does not exist or cannot be built; the message says what to do."""


class Retriever:
    """Finds rows of a table [n, d] by their cosine with queries.

    Args:
        vectors: the table; rows need not be normalised.
        index: None (plain matrix products up to 100,000 rows, beyond them as `exact`), `exact` (FAISS' flat index), or the
            approximate `hnsw` and `ivf`, whose `recall` is to be measured.
    Without faiss `exact` is plain matrix products too, and says so. Raises RetrievalError for another index, and for an
    approximate one without faiss.
    """

    def __init__(self, vectors: Tensor, index: str | None = None):
        check_index(index)
        self.vectors = _unit(vectors)
        self.kind = index or ("exact" if len(vectors) > LARGE else None)
        self._index = None if self.kind is None else _faiss_index(self.kind, self.vectors.numpy())

    @property
    def approximate(self) -> bool:
        return self.kind in APPROXIMATE

    def __len__(self) -> int:
        return len(self.vectors)

    def add(self, vectors: Tensor) -> None:
        """Appends rows; the index learns them without being built again."""
        vectors = _unit(vectors)
        self.vectors = torch.cat([self.vectors, vectors])
        if self._index is not None:
            self._index.add(vectors.numpy())

    def search(
        self, queries: Tensor, count: int, without: Sequence[Collection[int]], exactly: bool = False
    ) -> list[list[tuple[int, float]]]:
        """For each query [B, d] its (row, cosine), best first: `count` of them, or as many as there are.

        `without[b]`: rows that query b must not get. Where an approximate index finds too few, that query is answered exactly,
        and with `exactly` every one.
        """
        queries = _unit(queries)
        reach = min(count + max((len(set(rows)) for rows in without), default=0), len(self))
        if self._index is None or exactly:
            scores, rows = exact_search(self.vectors, queries, reach)
        else:
            scores, rows = self._index.search(queries.numpy(), reach, params=self._depth(reach))
        answers = [
            [(int(row), float(score)) for row, score in zip(*pair) if row >= 0 and row not in left_out][:count]
            for pair, left_out in zip(zip(rows, scores), map(set, without), strict=True)
        ]
        for place, (answer, left_out) in enumerate(zip(answers, without)):
            if len(answer) < min(count, len(self) - len(set(left_out))):
                answers[place] = self.search(queries[place : place + 1], count, [left_out], exactly=True)[0]
        return answers

    def recall(self, queries: Tensor, count: int, without: Sequence[Collection[int]]) -> float:
        """The mean share of the exact best `count` rows of these queries that `search` finds; 1 for an exact index."""
        found, exact = (self.search(queries, count, without, exactly) for exactly in (False, True))
        return mean_recall([[row for row, _ in answer] for answer in found], [[row for row, _ in answer] for answer in exact])

    def _depth(self, reach: int):
        """FAISS' search parameters: how far an approximate search for `reach` rows goes."""
        import faiss

        if self.kind == "hnsw":
            return faiss.SearchParametersHNSW(efSearch=max(SEARCH_DEPTH, 2 * reach))
        if self.kind == "ivf":
            return faiss.SearchParametersIVF(nprobe=max(LEAST_LISTS, round(self._index.nlist * LISTS_READ)))
        return None


def check_index(index: str | None) -> None:
    """Raises RetrievalError for an index that does not exist, or that needs faiss where that is not installed."""
    if index not in (None, *INDEXES):
        raise RetrievalError(f"index is {index!r}: choose one of {', '.join(INDEXES)}")
    if index in APPROXIMATE and importlib.util.find_spec("faiss") is None:
        raise RetrievalError(f'index {index} needs faiss: pip install "recbole-vlm2rec[faiss]", or leave --index out')


def exact_search(vectors: Tensor, queries: Tensor, count: int) -> tuple[np.ndarray, np.ndarray]:
    """(inner products, rows) of the `count` best rows of `vectors` [n, d] for each of `queries` [B, d]: two [B, count].

    Best first, equals by row; blocks of 256 queries by 100,000 rows, so that memory need not hold a score for each pair.
    """
    blocks = [_exact_block(vectors, queries[start : start + QUERIES], count) for start in range(0, len(queries), QUERIES)]
    scores, rows = (torch.cat(tables) for tables in zip(*blocks)) if blocks else (torch.empty(0, count),) * 2
    return scores.numpy(), rows.numpy()


def _exact_block(vectors: Tensor, queries: Tensor, count: int) -> tuple[Tensor, Tensor]:
    scores, rows = torch.empty(len(queries), 0), torch.empty(len(queries), 0, dtype=torch.long)
    for start in range(0, len(vectors), CHUNK):
        products = queries @ vectors[start : start + CHUNK].T
        best, places = products.topk(min(count, products.shape[1]), dim=1)
        scores, rows = torch.cat([scores, best], dim=1), torch.cat([rows, places + start], dim=1)
        order = torch.from_numpy(np.lexsort((rows.numpy(), -scores.numpy()), axis=1)[:, :count])
        scores, rows = scores.gather(1, order), rows.gather(1, order)
    return scores, rows


def mean_recall(found: Sequence[Collection[int]], exact: Sequence[Collection[int]]) -> float:
    """Mean over queries of |found and exact| / |exact|; queries to which nothing is due do not count."""
    shares = [len(set(some) & set(all_)) / len(set(all_)) for some, all_ in zip(found, exact, strict=True) if len(all_)]
    return float(np.mean(shares)) if shares else 1.0


def _unit(vectors: Tensor) -> Tensor:
    """Rows of length 1 in the processor's memory, float32."""
    return F.normalize(vectors.float().cpu(), dim=-1).contiguous()


def _faiss_index(kind: str, vectors: np.ndarray):
    """FAISS' index over these rows by inner product; None without faiss, which `exact` can do without."""
    if importlib.util.find_spec("faiss") is None:
        getLogger(__name__).warning(
            f"faiss is not installed: {len(vectors)} items are searched exactly by plain matrix products "
            f'(pip install "recbole-vlm2rec[faiss]" for an index)'
        )
        return None
    import faiss

    count, size = vectors.shape
    if kind == "exact":
        index = faiss.IndexFlatIP(size)
    elif kind == "hnsw":
        index = faiss.IndexHNSWFlat(size, LINKS, faiss.METRIC_INNER_PRODUCT)
        index.hnsw.efConstruction = BUILD_DEPTH
    else:
        # FAISS' own advice: some 4 sqrt(n) lists, and at least 39 rows to learn each from.
        lists = max(1, min(round(4 * count**0.5), count // 39))
        index = faiss.IndexIVFFlat(faiss.IndexFlatIP(size), size, lists, faiss.METRIC_INNER_PRODUCT)
        index.cp.min_points_per_centroid = 1  # no warning where there are fewer than 39 rows in all
        index.train(vectors)
    index.add(vectors)
    return index
