"""The references against numbers worked out by hand on three short sequences, and on whole data sets: against RecBole's Pop,
run under the same protocol, and against what the bundled shop says of itself."""

import json
from pathlib import Path

import numpy as np
import pytest

from recbole_vlm2rec.analysis.references import category_markov, item_markov, popularity, random, ranks
from recbole_vlm2rec.metrics import ndcg
from recbole_vlm2rec.quick_start import run

MINISHOP = Path(__file__).parents[2] / "atomic_data" / "minishop"

# Interactions: item 0 three times, 1 and 2 twice, 3 never. Transitions: 0 -> 1 twice, 0 -> 2 once, 1 -> 2 once.
SEQUENCES = [np.array([0, 1, 2]), np.array([0, 1]), np.array([0, 2])]
SHARE = [3 / 7, 2 / 7, 2 / 7, 0]


def test_popularity_by_hand():
    assert popularity(SEQUENCES, [[1], [0, 2]], 4).tolist() == [[3, 2, 2, 0]] * 2


def test_item_markov_by_hand():
    scores = item_markov(SEQUENCES, [[2, 0], [1], [3], []], 4)
    # After 0: followers 1, 1, 2 and the prior, which is worth one transition.
    assert scores[0].tolist() == pytest.approx([3 / 28, (2 + 2 / 7) / 4, (1 + 2 / 7) / 4, 0])
    # After 1: follower 2.
    assert scores[1].tolist() == pytest.approx([3 / 14, 1 / 7, (1 + 2 / 7) / 2, 0])
    # After 3, which nobody had, and after nothing: popularity.
    assert scores[2].tolist() == pytest.approx(SHARE)
    assert scores[3].tolist() == pytest.approx(SHARE)


def test_prior_moves_the_estimate_from_the_transitions_to_popularity():
    assert item_markov(SEQUENCES, [[0]], 4, prior=1e-15)[0].tolist() == pytest.approx([0, 2 / 3, 1 / 3, 0])
    assert item_markov(SEQUENCES, [[0]], 4, prior=1e9)[0].tolist() == pytest.approx(SHARE)


def test_category_markov_by_hand():
    """Categories a = {0, 3}, b = {1, 2}; transitions a -> b three times, b -> b once; shares 3/7 and 4/7.

    Within a: (3 + 1/2) / 4 = 7/8 and 1/8; within b: (2 + 1/2) / 5 = 1/2 each.
    After item 0: P(a) = (0 + 3/7) / 4 = 3/28, P(b) = (3 + 4/7) / 4 = 25/28.
    After item 2: P(a) = (0 + 3/7) / 2 = 3/14, P(b) = (1 + 4/7) / 2 = 11/14.
    """
    scores = category_markov(SEQUENCES, [[1, 0], [2], []], 4, ["a", "b", "b", "a"])
    assert scores[0].tolist() == pytest.approx([3 / 28 * 7 / 8, 25 / 56, 25 / 56, 3 / 28 / 8])
    assert scores[1].tolist() == pytest.approx([3 / 14 * 7 / 8, 11 / 28, 11 / 28, 3 / 14 / 8])
    assert scores[2].tolist() == pytest.approx([3 / 7 * 7 / 8, 2 / 7, 2 / 7, 3 / 7 / 8])


def test_markov_scores_are_probabilities():
    histories = [[0], [1], [2], [3], []]
    assert item_markov(SEQUENCES, histories, 4).sum(axis=1).tolist() == pytest.approx([1] * 5)
    assert category_markov(SEQUENCES, histories, 4, [5, 1, 5, 9]).sum(axis=1).tolist() == pytest.approx([1] * 5)


def test_chance_is_uniform_and_fixed_by_the_seed():
    scores = random([[0]] * 50, 40, seed=3)
    assert scores.shape == (50, 40) and len(np.unique(scores)) == 2000
    assert (scores == random([[0]] * 50, 40, seed=3)).all() and (scores != random([[0]] * 50, 40, seed=4)).all()


def test_what_is_refused():
    with pytest.raises(ValueError, match="3 categories for 4 items"):
        category_markov(SEQUENCES, [[0]], 4, ["a", "b", "b"])
    with pytest.raises(ValueError, match="no training interactions"):
        popularity([[], []], [[0]], 4)


def write_inter(folder, rows):
    lines = ["user_id:token\titem_id:token\ttimestamp:float", *("\t".join(map(str, row)) for row in rows)]
    (folder / "toy.inter").write_text("\n".join(lines) + "\n")


def test_a_history_ends_with_the_validation_item(tmp_path):
    """Ten users buy i1 i2 i3 i4. v's training part [i5, i3, i4] says that i4 follows i3, which stands last in their histories.

    After i2, nothing would be known, and i4 would tie in popularity with i5.
    """
    rows = [(f"u{user}", f"i{item}", item) for user in range(10) for item in (1, 2, 3, 4)]
    rows += [("v", f"i{item}", time) for time, item in enumerate((5, 3, 4, 6, 7), start=10)]
    write_inter(tmp_path, rows)
    found = ranks(tmp_path, "toy", seed=1, negatives=2)
    assert found["item Markov"][:10].tolist() == [1] * 10
    assert set(found["popularity"][:10]) == {1, 2}


def test_the_references_see_neither_validation_nor_test_items(tmp_path):
    """Six users buy i1 i2 i3 i4, two buy i5 i6 i7 i8: i4 and i8, always the test items, are never in training.

    Training is [i1, i2] or [i5, i6]; histories end with i3 or i7, which nobody had in training, so that the Markov chain falls
    back on popularity, where the test item has count 0.
    """
    rows = [(f"u{user}", f"i{item}", item) for user in range(6) for item in (1, 2, 3, 4)]
    rows += [(f"v{user}", f"i{item}", item) for user in range(2) for item in (5, 6, 7, 8)]
    write_inter(tmp_path, rows)
    found = ranks(tmp_path, "toy", seed=1, negatives=4)
    assert set(found) == {"random", "popularity", "item Markov"}
    # All four untouched items are drawn; of them i5 and i6 (for the u's), i1 and i2 (for the v's) have a count above 0.
    for reference in ("popularity", "item Markov"):
        assert len(found[reference]) == 8
        assert found[reference].min() >= 3


def test_popularity_ranks_every_user_as_recboles_pop_does_in_a_run(toy, toy_folder):
    """Same users, histories, training part, candidates and ties: two ways through the protocol that share no scoring.

    As RecBole sets it up, Pop is not popularity: it counts sampled negatives as if bought, and an item that a batch holds
    several times once (RUCAIBox/RecBole#1844, #2198). Without negatives and in batches of one interaction it counts right.
    """
    result = run("Pop", "toy", config_dict={**toy, "train_neg_sample_args": None, "train_batch_size": 1})
    found = ranks(toy_folder / "toy", "toy", seed=result["seed"], negatives=toy["eval_negatives"])
    with np.load(Path(result["checkpoint"]).parent / "ranks.npz") as stored:
        assert found["popularity"].tolist() == stored["test_ranks"].tolist()
    assert ndcg(found["popularity"], 20).mean() == pytest.approx(result["test"]["ndcg@20"], rel=1e-12)


def test_the_bundled_shops_readers_rank_as_its_record_says():
    """The record was written by the generator, which ranks on its own; seed 2026 and 100 negatives are the protocol's."""
    record = json.loads((MINISHOP / "minishop.json").read_text())["scores"]
    found = {name: ndcg(place, 20).mean() for name, place in ranks(MINISHOP, "minishop", seed=2026).items()}
    for modality in ("both", "text", "image"):
        assert found[f"MAP reader, {modality}"] == pytest.approx(record["map"][modality]["test"]["ndcg@20"], abs=5e-5)
        assert found[f"oracle, {modality}"] == pytest.approx(record["oracle"][modality]["test"]["ndcg@20"], abs=5e-5)
    # Knowing more can only help, on 900 users by far more than chance.
    assert found["random"] < found["category Markov"] < found["MAP reader, both"] < found["oracle, both"]
    assert found["random"] < found["item Markov"]
