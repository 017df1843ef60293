"""Few-shot: training rows of sampled users only, the same users for every model, and every user is evaluated."""

import numpy as np
import pytest

from recbole_vlm2rec.data.dataset import create_dataset
from recbole_vlm2rec.quick_start import make_config, prepare, run
from recbole_vlm2rec.registry import get_model, get_trainer

# Of the toy shop's 40 users, one has a single interaction.
TRAINABLE = 39


@pytest.fixture
def build(toy):
    def build(model, **changes):
        dataset = create_dataset(make_config(model, "toy", None, {**toy, **changes}))
        return dataset, dataset.build()

    return build


def rows(part) -> list[tuple]:
    """(user, item) or (user, item, history) of each row, in order."""
    feat = part.inter_feat
    columns = [feat[part.uid_field].tolist(), feat[part.iid_field].tolist()]
    if "item_id_list" in feat:
        columns.append([tuple(history) for history in feat["item_id_list"].tolist()])
    return list(zip(*columns, strict=True))


def users_of(part) -> set[int]:
    return set(part.inter_feat[part.uid_field].tolist())


@pytest.mark.parametrize("model", ["BPR", "SASRec"])
def test_the_training_rows_of_so_many_users_stay_as_they_are(build, model):
    _, (whole, _, _) = build(model)
    samples = []
    for count in (5, 12, TRAINABLE):
        _, (train, _, _) = build(model, train_users=count)
        samples.append(users_of(train))
        assert len(samples[-1]) == count
        assert rows(train) == [row for row in rows(whole) if row[0] in samples[-1]]
    assert samples[0] < samples[1] < samples[2]


def test_the_last_row_of_each_sampled_user(build):
    _, (train, _, _) = build("SASRec", train_users=12, train_examples="last")
    users = [user for user, *_ in rows(train)]
    assert len(users) == len(set(users)) == 12


def test_every_model_trains_on_the_same_users(build):
    assert len({frozenset(users_of(build(model, train_users=10)[1][0])) for model in ("BPR", "FM", "SASRec", "BERT4Rec")}) == 1


def test_another_seed_samples_others(build):
    one, two = (users_of(build("BPR", train_users=10, seed=seed)[1][0]) for seed in (1, 2))
    assert one != two


@pytest.mark.parametrize("model", ["BPR", "SASRec"])
def test_evaluation_is_that_of_all_users(build, model):
    whole, (_, *whole_parts) = build(model)
    few, (_, *few_parts) = build(model, train_users=3)
    for before, after in zip(whole_parts, few_parts, strict=True):
        assert rows(after) == rows(before) and len(rows(after)) > 30
        one, two = whole.candidates[before.phase], few.candidates[before.phase]
        assert np.array_equal(one.items, two.items) and np.array_equal(one.users, two.users)


def test_only_these_users_vectors_are_trained(toy):
    config = make_config("BPR", "toy", None, {**toy, "train_users": 10})
    _, train, valid, _ = prepare(config)
    network = get_model("BPR")(config, train._dataset)
    before = network.user_embedding.weight.detach().clone()
    get_trainer(get_model("BPR"))(config, network).fit(train, valid, saved=False, verbose=False)
    moved = (network.user_embedding.weight.detach() != before).any(dim=1).nonzero().flatten().tolist()
    assert set(moved) == users_of(train._dataset) and len(moved) == 10


@pytest.mark.parametrize("model", ["BPR", "SASRec"])
def test_a_sequential_and_a_general_model_run(toy, model):
    few, whole = (run(model, "toy", config_dict={**toy, "epochs": 3, "train_users": count}) for count in (4, None))
    assert few["users"] == whole["users"] and few["candidates"] == whole["candidates"]
    assert few["test"] != whole["test"] and few["config"]["train_users"] == 4


@pytest.mark.parametrize("count", [0, -1, TRAINABLE + 1, True, "ten", 2.5])
def test_what_is_no_number_of_users_is_refused(build, count):
    with pytest.raises(ValueError, match=f"train_users is {count!r}: give a number from 1 to {TRAINABLE}"):
        build("BPR", train_users=count)
