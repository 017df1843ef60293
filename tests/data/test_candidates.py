"""Histories, targets and candidates: by hand, by their properties, and through the file."""

import multiprocessing
from collections import Counter

import numpy as np
import pytest

from recbole_vlm2rec.data.candidates import (
    CandidateError,
    Histories,
    draw_candidates,
    draw_negatives,
    full_ranking,
    load_or_draw,
)

ROWS = [("b", "x", 5), ("a", "y", 3), ("a", "x", 1), ("a", "z", 3), ("b", "z", 4), ("a", "w", 9), ("b", "w", 5)]


def shop(users=30, items=200, length=6) -> Histories:
    rng = np.random.default_rng(3)
    rows = [(f"u{u}", f"i{i}", t) for u in range(users) for t, i in enumerate(rng.choice(items, size=length, replace=False))]
    return Histories.from_rows(*zip(*rows))


def test_histories_by_hand():
    """Time order, file order among ties: ax1 ay3 az3 bz4 bx5 bw5 aw9; ids by first appearance in that order."""
    histories = Histories.from_rows(*zip(*ROWS))
    assert histories.user_tokens.tolist() == ["[PAD]", "a", "b"]
    assert histories.item_tokens.tolist() == ["[PAD]", "x", "y", "z", "w"]
    assert histories.of(1).tolist() == [1, 2, 3, 4]
    assert histories.of(2).tolist() == [3, 1, 4]
    assert histories.of(0).tolist() == []


def test_targets_by_hand():
    """a has four interactions: both targets. b has three: a test target only."""
    histories = Histories.from_rows(*zip(*ROWS))
    assert [part.tolist() for part in histories.targets("valid")] == [[1], [3]]
    assert [part.tolist() for part in histories.targets("test")] == [[1, 2], [4, 4]]


def test_the_hash_changes_with_every_part():
    rows = [*zip(*ROWS)]
    base = Histories.from_rows(*rows).sha256
    assert base == Histories.from_rows(*rows).sha256
    assert base != Histories.from_rows(rows[0], [i.replace("w", "v") for i in rows[1]], rows[2]).sha256
    assert base != Histories.from_rows(rows[0], rows[1], [5, 3, 1, 2, 4, 9, 5]).sha256


def test_negatives_are_untouched_distinct_and_all_of_them_when_no_more_are_left():
    rng = np.random.default_rng(0)
    assert sorted(draw_negatives(np.array([1, 4, 4, 7]), 7, 4, rng)) == [2, 3, 5, 6]
    with pytest.raises(ValueError, match="4 untouched items, 5 asked for"):
        draw_negatives(np.array([1, 4, 7]), 7, 5, rng)


def test_negatives_are_uniform():
    """Each of the six pairs of {2, 3, 5, 6} comes up in a sixth of 6000 draws, within five standard deviations (29)."""
    rng = np.random.default_rng(0)
    pairs = Counter(tuple(sorted(draw_negatives(np.array([1, 4, 7]), 7, 2, rng))) for _ in range(6000))
    assert len(pairs) == 6
    assert all(abs(count - 1000) < 145 for count in pairs.values())


@pytest.mark.parametrize("phase", ["valid", "test"])
def test_candidate_lists(phase):
    histories = shop()
    drawn = draw_candidates(histories, phase, 100, seed=1)
    users, targets = histories.targets(phase)
    assert drawn.items.shape == (30, 101)
    assert drawn.user_ids.tolist() == users.tolist() and drawn.targets.tolist() == targets.tolist()
    assert drawn.users.tolist() == histories.user_tokens[users].tolist()
    for user, items, target in zip(users, drawn.items, targets):
        assert len(set(items)) == 101 and items.min() >= 1 and items.max() <= len(histories.item_tokens) - 1
        assert set(items) & set(histories.of(user)) == {target}
    assert len(set(drawn.position)) > 15


def test_a_seed_gives_the_same_lists_and_another_seed_or_phase_others():
    histories = shop()
    first = draw_candidates(histories, "test", 50, seed=1)
    assert (first.items == draw_candidates(histories, "test", 50, seed=1).items).all()
    assert (first.items != draw_candidates(histories, "test", 50, seed=2).items).mean() > 0.5
    assert (first.items != draw_candidates(histories, "valid", 50, seed=1).items).mean() > 0.5


def test_too_few_items_names_the_user_and_what_to_do():
    message = r"user u0 .*\(14 untouched items, 15 asked for of 20 items in all\).*eval_negatives: full"
    with pytest.raises(CandidateError, match=message):
        draw_candidates(shop(items=20), "test", 15, seed=1)


def test_full_ranking_has_the_same_users_and_targets():
    histories = shop()
    ranking = full_ranking(histories, "test", seed=1)
    assert ranking.targets.tolist() == histories.targets("test")[1].tolist()
    assert 0 <= ranking.tie.min() < 0.2 and 0.8 < ranking.tie.max() < 1


def test_the_file_holds_what_was_drawn(tmp_path):
    histories = shop()
    drawn, file, digest = load_or_draw(histories, "toy", 30, 7, [tmp_path / "candidates"])
    assert file == tmp_path / "candidates" / f"toy-30-seed7-{histories.sha256[:8]}.npz"
    before = file.read_bytes()
    again, same_file, same_digest = load_or_draw(histories, "toy", 30, 7, [tmp_path / "candidates"])
    assert (same_file, same_digest, file.read_bytes()) == (file, digest, before)
    for phase in ("valid", "test"):
        for field in ("users", "user_ids", "items", "position"):
            assert (getattr(again[phase], field) == getattr(drawn[phase], field)).all()
    assert [path.name for path in file.parent.iterdir()] == [file.name]


def test_a_damaged_or_changed_file_is_refused_by_name(tmp_path):
    histories = shop()
    _, file, _ = load_or_draw(histories, "toy", 30, 7, [tmp_path])
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CandidateError, match=f"{file.name} is damaged"):
        load_or_draw(histories, "toy", 30, 7, [tmp_path])

    file.write_bytes(whole)
    with np.load(file) as stored:
        arrays = dict(stored)
    arrays["test_items"][0, 0] += 1
    np.savez_compressed(file, **arrays)
    with pytest.raises(CandidateError, match=f"{file.name} was changed"):
        load_or_draw(histories, "toy", 30, 7, [tmp_path])


def test_a_file_of_other_data_under_this_name_is_refused(tmp_path):
    _, file, _ = load_or_draw(shop(), "toy", 30, 7, [tmp_path])
    other = shop(length=7)
    file.rename(tmp_path / f"toy-30-seed7-{other.sha256[:8]}.npz")
    with pytest.raises(CandidateError, match="of other data"):
        load_or_draw(other, "toy", 30, 7, [tmp_path])


def test_a_read_only_data_folder_is_left_alone(tmp_path):
    data, saved = tmp_path / "data", tmp_path / "saved"
    data.mkdir()
    data.chmod(0o555)
    _, file, _ = load_or_draw(shop(), "toy", 30, 7, [data / "candidates", saved / "candidates"])
    assert file.parent == saved / "candidates" and not list(data.iterdir())
    with pytest.raises(OSError, match="no folder takes the candidates: .*data is marked read-only"):
        load_or_draw(shop(), "toy", 30, 8, [data / "candidates"])


def _draw_in_process(folder) -> str:
    return load_or_draw(shop(), "toy", 100, 7, [folder])[2]


def test_processes_that_write_at_once_leave_one_good_file(tmp_path):
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        digests = pool.map(_draw_in_process, [tmp_path] * 6, chunksize=1)
    assert len(set(digests)) == 1 and len(list(tmp_path.iterdir())) == 1
    assert load_or_draw(shop(), "toy", 100, 7, [tmp_path])[2] == digests[0]
