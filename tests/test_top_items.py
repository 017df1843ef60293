"""The best items of the whole shop for each test user: those of a plain loop, kept with the run, read as tokens."""

from pathlib import Path

import numpy as np
import pytest
import torch

from recbole_vlm2rec.data.dataset import create_dataset
from recbole_vlm2rec.evaluation import TOP, _best_items
from recbole_vlm2rec.quick_start import make_config, prepare, run
from recbole_vlm2rec.registry import get_model, get_trainer
from recbole_vlm2rec.report.runs import read_run


def histories(folder: Path, name: str) -> dict[str, list[str]]:
    """Items of each user, oldest first; ties as they stand in the file."""
    lines = [line.split("\t") for line in (folder / name / f"{name}.inter").read_text(encoding="utf-8").splitlines()[1:]]
    found = {}
    for user, item, _ in sorted(lines, key=lambda line: float(line[2])):
        found.setdefault(user, []).append(item)
    return found


def test_by_hand():
    scores = torch.tensor([[9.0, 0.1, 0.4, 0.3, 0.2], [9.0, 0.5, 0.6, 0.7, 0.8]])
    excluded = np.array([[True, False, False, True, False], [True, True, True, True, True]])
    assert _best_items(scores, excluded).tolist() == [[2, 4, 1] + [0] * (TOP - 3), [0] * TOP]


def test_they_are_those_of_a_plain_loop(toy, toy_folder):
    config = make_config("BPR", "toy", None, toy)
    dataset, train, valid, test = prepare(config)
    network = get_model("BPR")(config, train._dataset)
    trainer = get_trainer(get_model("BPR"))(config, network)
    trainer.fit(train, valid, saved=False, verbose=False)
    trainer.evaluate(test, load_best_model=False)
    bought = histories(toy_folder, "toy")
    everything = {item for items in bought.values() for item in items}
    users, items = (network.user_embedding.weight.detach().double(), network.item_embedding.weight.detach().double())
    found = trainer.top_items["test"]
    assert found.shape == (38, 10)
    for user, ids in zip(dataset.candidates["test"].users, found, strict=True):
        *before, target = bought[str(user)]
        assert target not in before
        vector = users[dataset.token2id("user_id", str(user))]
        scores = {item: float(vector @ items[dataset.token2id("item_id", item)]) for item in everything - set(before)}
        assert dataset.id2token("item_id", ids).tolist() == sorted(scores, key=scores.get, reverse=True)[:10]


@pytest.fixture(scope="module")
def ranked(toy):
    """A run that ranks the whole shop, so that its ranks are of the same list as its top items."""
    return run("BPR", "toy", config_dict={**toy, "eval_negatives": "full", "epochs": 3})


def test_a_target_is_among_them_where_its_rank_says_so(ranked, toy_folder):
    finished = read_run(Path(ranked["checkpoint"]).parent)
    assert set(finished.top_items) == {"test"}
    top, ranks, bought = finished.top_items["test"], finished.ranks["test_ranks"], histories(toy_folder, "toy")
    inside = 0
    for user, items, rank in zip(finished.ranks["test_users"], top, ranks, strict=True):
        *before, target = bought[str(user)]
        assert len(set(items)) == 10 and "" not in items and "never_bought" not in items and not set(items) & set(before)
        assert (target in items) == (rank <= 10)
        if rank <= 10:
            assert items[rank - 1] == target
            inside += 1
    assert 0 < inside < len(top)


def test_fewer_than_ten_are_filled_with_nothing(tmp_path, atomic, toy):
    order = ["abcd", "cabde", "fabgc"]
    rows = [(f"u{user}", item, 100 * place + user) for user, items in enumerate(order) for place, item in enumerate(items)]
    result = run("BPR", "small", config_dict={**toy, "data_path": str(atomic(tmp_path, "small", rows)), "eval_negatives": 1})
    finished = read_run(Path(result["checkpoint"]).parent)
    top = dict(zip(finished.ranks["test_users"].tolist(), finished.top_items["test"].tolist(), strict=True))
    for user, items in enumerate(order):
        left = set("abcdefg") - set(items[:-1])
        assert set(top[f"u{user}"][: len(left)]) == left and top[f"u{user}"][len(left) :] == [""] * (10 - len(left))


def test_models_that_score_pairs_only_have_none(toy):
    result = run("FM", "toy", config_dict=toy)
    finished = read_run(Path(result["checkpoint"]).parent)
    assert finished.top_items == {} and not (finished.folder / "top_items.npz").exists()


def test_a_vision_language_model_has_them_for_each_modality_too(toy, shop_folder):
    settings = {**toy, "data_path": str(shop_folder), "backbone": "tiny", "MAX_ITEM_LIST_LENGTH": 3}
    finished = read_run(Path(run("VLMVanilla", "shop", config_dict=settings)["checkpoint"]).parent)
    top = finished.top_items
    assert set(top) == {"test", "test_t2f", "test_v2f", "test_f2f"}
    assert (top["test"] == top["test_f2f"]).all() and (top["test_t2f"] != top["test_v2f"]).any()
    shape = (len(create_dataset(make_config("VLMVanilla", "shop", None, settings)).candidates["test"].users), 10)
    assert {tokens.shape for tokens in top.values()} == {shape}
