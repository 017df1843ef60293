"""Retrieval: the exact search against a sort of all cosines, FAISS' indexes against the exact search."""

import sys

import numpy as np
import pytest
import torch

from recbole_vlm2rec import retrieval
from recbole_vlm2rec.retrieval import RetrievalError, Retriever, exact_search, mean_recall


def table(rows, size=16, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).normal(size=(rows, size)).astype(np.float32))


def by_sorting(vectors, queries, count, without):
    """Rows by cosine, each pair on its own in float64."""
    unit = [np.asarray(part, dtype=np.float64) for part in (vectors, queries)]
    unit = [part / np.linalg.norm(part, axis=1, keepdims=True) for part in unit]
    order = np.argsort(-unit[1] @ unit[0].T, axis=1)
    return [[row for row in rows if row not in left_out][:count] for rows, left_out in zip(order.tolist(), without)]


def rows_of(answers):
    return [[row for row, _ in answer] for answer in answers]


@pytest.fixture
def no_faiss(monkeypatch):
    monkeypatch.setitem(sys.modules, "faiss", None)


@pytest.mark.parametrize("index", [None, "exact"])
def test_exact_search_is_a_sort_by_cosine_whatever_the_blocks(index, monkeypatch):
    if index:
        pytest.importorskip("faiss")
    monkeypatch.setattr(retrieval, "CHUNK", 30)  # 100 rows: three full blocks and one of 10, fewer than are asked for
    monkeypatch.setattr(retrieval, "QUERIES", 4)
    vectors, queries = table(100), table(9, seed=1)
    without = [set(range(query)) for query in range(9)]
    retriever = Retriever(vectors * torch.rand(100, 1), index)
    answers = retriever.search(queries * 5, 12, without)
    assert rows_of(answers) == by_sorting(vectors, queries, 12, without)
    assert retriever.recall(queries, 12, without) == 1
    row, score = answers[3][0]
    assert score == pytest.approx(torch.cosine_similarity(vectors[row], queries[3], dim=0).item(), abs=1e-6)


def test_equal_rows_come_in_their_order_and_nothing_asked_is_nothing_found():
    vectors = torch.tensor([[0.0, 1.0], [1.0, 0.0], [2.0, 0.0], [3.0, 0.0]])
    scores, rows = exact_search(torch.nn.functional.normalize(vectors), torch.tensor([[1.0, 0.0]]), 4)
    assert rows.tolist() == [[1, 2, 3, 0]] and scores.tolist() == [[1, 1, 1, 0]]
    assert Retriever(vectors).search(torch.empty(0, 2), 3, []) == []


@pytest.mark.parametrize("index", [None, "exact", "hnsw", "ivf"])
def test_rows_added_later_are_found(index):
    if index:
        pytest.importorskip("faiss")
    retriever = Retriever(table(400), index)
    new = table(3, seed=9)
    retriever.add(new)
    assert len(retriever) == 403
    found = retriever.search(new, 1, [()] * 3)
    assert rows_of(found) == [[400], [401], [402]]
    assert [answer[0][1] for answer in found] == pytest.approx([1, 1, 1], abs=1e-6)


@pytest.mark.parametrize("index, least", [("hnsw", 0.5), ("ivf", 0.1)])
def test_measured_recall_is_that_of_a_brute_force_count(index, least, monkeypatch):
    pytest.importorskip("faiss")
    monkeypatch.setattr(retrieval, "SEARCH_DEPTH", 1)  # poor on purpose: at its usual depth it finds everything here
    monkeypatch.setattr(retrieval, "LEAST_LISTS", 2)
    vectors, queries = table(3000, 32), table(40, 32, seed=1)
    without = [{query, 5 * query} for query in range(40)]
    retriever = Retriever(vectors, index)
    found, exact = rows_of(retriever.search(queries, 10, without)), by_sorting(vectors, queries, 10, without)
    hits = sum(row in best for rows, best in zip(found, exact) for row in rows)
    assert all(len(set(rows)) == 10 and not left_out & set(rows) for rows, left_out in zip(found, without))
    assert retriever.recall(queries, 10, without) == pytest.approx(hits / 400)
    assert least < hits / 400 < 1 and retriever.approximate


def test_an_approximate_search_that_finds_too_few_is_made_up_for_exactly(monkeypatch):
    pytest.importorskip("faiss")
    monkeypatch.setattr(retrieval, "LEAST_LISTS", 1)
    vectors, queries, without = table(3000), table(2, seed=1), [{1, 2}, set()]
    retriever = Retriever(vectors, "ivf")
    _, rows = retriever._index.search(queries.numpy(), 3000, params=retriever._depth(3000))
    assert (rows == -1).any(axis=1).all(), "the lists that are read hold fewer rows than are asked for"
    assert rows_of(retriever.search(queries, 3000, without)) == by_sorting(vectors, queries, 3000, without)


def test_a_few_rows_are_enough_for_an_index():
    pytest.importorskip("faiss")
    vectors = table(5)
    assert rows_of(Retriever(vectors, "ivf").search(vectors, 1, [()] * 5)) == [[0], [1], [2], [3], [4]]


def test_recall_is_the_mean_share_of_the_exact_rows():
    assert mean_recall([[1, 2], [7, -1]], [[2, 3], [8, 7]]) == 0.5
    assert mean_recall([[1], []], [[1], []]) == 1  # to the second nothing is due
    assert mean_recall([], []) == 1


@pytest.mark.parametrize("rows, kind", [(10, None), (11, "exact")])
def test_beyond_the_limit_faiss_searches_unasked(rows, kind, monkeypatch):
    faiss = pytest.importorskip("faiss")
    monkeypatch.setattr(retrieval, "LARGE", 10)
    retriever = Retriever(table(rows))
    assert retriever.kind == kind
    assert isinstance(retriever._index, faiss.IndexFlatIP) == (kind == "exact")


def test_without_faiss_the_search_is_exact_and_says_so_once(no_faiss, monkeypatch, caplog):
    monkeypatch.setattr(retrieval, "LARGE", 10)
    vectors, queries = table(50), table(4, seed=1)
    retriever = Retriever(vectors)
    assert rows_of(retriever.search(queries, 5, [()] * 4)) == by_sorting(vectors, queries, 5, [()] * 4)
    assert [record.getMessage() for record in caplog.records] == [
        "faiss is not installed: 50 items are searched exactly by plain matrix products "
        '(pip install "recbole-vlm2rec[faiss]" for an index)'
    ]


@pytest.mark.parametrize("index", ["hnsw", "ivf"])
def test_an_approximate_index_needs_faiss(index, no_faiss):
    with pytest.raises(RetrievalError, match=f"index {index} needs faiss: pip install .*faiss.*, or leave --index out"):
        Retriever(table(5), index)


def test_an_unknown_index_is_refused():
    with pytest.raises(RetrievalError, match="index is 'flat': choose one of exact, hnsw, ivf"):
        Retriever(table(5), "flat")
