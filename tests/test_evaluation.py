"""The shared evaluation beside RecBole's own, and what it refuses."""

import numpy as np
import pytest
import torch
from recbole.evaluator import Collector, Evaluator
from recbole.trainer import Trainer

from recbole_vlm2rec.evaluation import ProtocolError, trainer_class
from recbole_vlm2rec.metrics import full_ranks
from recbole_vlm2rec.quick_start import get_trainer, make_config, prepare


class Scores(torch.nn.Module):
    """A fitted model's stand-in: fixed scores [n_users, n_items]."""

    def __init__(self, scores, flat=False, pairwise=False):
        super().__init__()
        self.scores, self.flat, self.pairwise = scores, flat, pairwise
        self.asked = []

    def full_sort_predict(self, interaction):
        if self.pairwise:
            raise NotImplementedError  # as RecBole's own models that only score pairs
        self.asked += interaction["user_id"].tolist()
        scores = self.scores[interaction["user_id"]]
        return scores.reshape(-1) if self.flat else scores

    def predict(self, interaction):
        return self.scores[interaction["user_id"], interaction["item_id"]]


def setting(toy, model="SASRec", **settings):
    """Configuration, loaders by phase, and a trainer of that model whose network is replaced by fixed random scores."""
    config = make_config(model, "toy", None, {**toy, **settings})
    dataset, train, valid, test = prepare(config)
    trainer = get_trainer(config.model_class)(config, config.model_class(config, train._dataset))
    torch.manual_seed(0)
    trainer.model = Scores(torch.randn(dataset.user_num, dataset.item_num), flat=model == "BPR")
    return config, {"valid": valid, "test": test}, trainer


def recboles_result(config, scores, positives):
    """RecBole's collector and evaluator on a matrix of scores [B, n_items]."""
    collector = Collector(config)
    collector.eval_batch_collect(scores, None, torch.arange(len(scores)), torch.as_tensor(positives))
    return Evaluator(config).evaluate(collector.get_data_struct())


@pytest.mark.parametrize("model", ["SASRec", "BPR"])
@pytest.mark.parametrize("phase", ["valid", "test"])
def test_same_as_recboles_evaluator_on_the_same_candidates(toy, model, phase):
    metrics = ["Hit", "NDCG", "MRR", "Recall", "Precision", "MAP"]
    config, loaders, trainer = setting(toy, model, metrics=metrics, topk=[1, 5, 10], valid_metric="NDCG@10")
    ours = trainer.evaluate(loaders[phase], load_best_model=False)
    candidates = loaders[phase]._dataset.candidates[phase]
    masked = torch.full((len(candidates.items), trainer.model.scores.shape[1]), -np.inf)
    columns = torch.as_tensor(candidates.items, dtype=torch.int64)
    masked.scatter_(1, columns, trainer.model.scores[candidates.user_ids].gather(1, columns))
    theirs = recboles_result(config, masked, candidates.targets.astype(np.int64))
    assert {name: round(value, 4) for name, value in ours.items()} == pytest.approx(theirs, abs=1e-12)
    assert len(set(theirs.values())) > 6


def test_full_ranking_same_as_recboles_own_evaluation(toy):
    """RecBole's general models rank all items but the user's own, as our full ranking does."""
    config, loaders, trainer = setting(toy, "BPR", eval_negatives="full")
    ours = trainer.evaluate(loaders["test"], load_best_model=False)
    theirs = Trainer.evaluate(trainer, loaders["test"], load_best_model=False)
    assert {name: round(value, 4) for name, value in ours.items()} == pytest.approx(theirs, abs=1e-12)
    assert 0 < theirs["ndcg@20"] < 1


@pytest.mark.parametrize("negatives", [20, "full"])
@pytest.mark.parametrize("model", ["SASRec", "BPR"])
def test_models_that_score_only_pairs_get_the_same_ranks(toy, negatives, model):
    _, loaders, trainer = setting(toy, model, eval_negatives=negatives)
    trainer.evaluate(loaders["test"], load_best_model=False)
    at_once = trainer.ranks["test"]
    trainer.model.pairwise = True
    trainer.evaluate(loaders["test"], load_best_model=False)
    assert (trainer.ranks["test"] == at_once).all()


def test_each_user_is_scored_once_and_ranks_stand_in_the_order_of_the_candidates(toy):
    _, loaders, trainer = setting(toy)
    trainer.evaluate(loaders["test"], load_best_model=False)
    candidates = loaders["test"]._dataset.candidates["test"]
    assert trainer.model.asked == candidates.user_ids.tolist()
    for user, items, place, rank in zip(candidates.user_ids, candidates.items, candidates.position, trainer.ranks["test"]):
        scores = trainer.model.scores[user].numpy()
        assert rank == 1 + (scores[items] > scores[items[place]]).sum()


def test_the_batch_size_does_not_matter(toy):
    ranks = []
    for size in (1, 7, 1000):
        _, loaders, trainer = setting(toy, eval_batch_size=size)
        trainer.evaluate(loaders["test"], load_best_model=False)
        ranks.append(trainer.ranks["test"].tolist())
    assert ranks[0] == ranks[1] == ranks[2]


@pytest.mark.parametrize("negatives", [20, "full"])
def test_a_collapsed_model_gets_the_chance_level(toy, negatives):
    """Its ranks are uniform over each user's list: their mean is the middle, within four standard errors."""
    _, loaders, trainer = setting(toy, eval_negatives=negatives)
    trainer.model.scores = torch.zeros_like(trainer.model.scores)
    trainer.evaluate(loaders["test"], load_best_model=False)
    histories, users = loaders["test"]._dataset.histories, loaders["test"]._dataset.candidates["test"].user_ids
    lengths = np.array([21 if negatives == 20 else 60 - len(histories.of(user)) + 1 for user in users])
    error = np.sqrt(((lengths**2 - 1) / 12).sum()) / len(users)
    assert abs(trainer.ranks["test"].mean() - (lengths + 1).mean() / 2) < 4 * error
    assert (trainer.ranks["test"] <= lengths).all()


def test_full_ranking_never_ranks_against_padding_unknown_or_touched_items(toy):
    _, loaders, trainer = setting(toy, "SASRecF", eval_negatives="full")
    dataset = loaders["test"]._dataset
    scores = trainer.model.scores
    scores[:, 0] = scores[:, -1] = np.inf
    assert dataset.id2token("item_id", dataset.item_num - 1) == "never_bought"
    for user in range(dataset.user_num):
        scores[user, dataset.histories.of(user)] = 100.0
    trainer.evaluate(loaders["test"], load_best_model=False)
    assert (trainer.ranks["test"] == 1).all()


def test_nan_scores_raise_and_name_model_phase_and_user(toy):
    _, loaders, trainer = setting(toy)
    candidates = loaders["test"]._dataset.candidates["test"]
    trainer.model.scores[candidates.user_ids[9]] = np.nan
    message = f"SASRec, test, from user {candidates.users[7]} on: 1 of 7 rows hold NaN scores, the first is row 2"
    with pytest.raises(ValueError, match=message):
        trainer.evaluate(loaders["test"], load_best_model=False)


def test_bfloat16_scores(toy):
    _, loaders, trainer = setting(toy)
    trainer.model.scores = trainer.model.scores.to(torch.bfloat16)
    trainer.evaluate(loaders["test"], load_best_model=False)
    rounded = trainer.ranks["test"]
    trainer.model.scores = trainer.model.scores.float()
    trainer.evaluate(loaders["test"], load_best_model=False)
    assert (trainer.ranks["test"] == rounded).all()


def test_a_model_that_scores_another_number_of_items_is_refused(toy):
    _, loaders, trainer = setting(toy)
    trainer.model.scores = trainer.model.scores[:, :-1]
    with pytest.raises(ProtocolError, match="SASRec.full_sort_predict scores 60 items, not 61"):
        trainer.evaluate(loaders["test"], load_best_model=False)


def test_rows_that_are_not_the_targets_are_refused(toy):
    _, loaders, trainer = setting(toy)
    items = loaders["test"]._dataset.inter_feat["item_id"]
    items[3] = items[3] % 60 + 1
    with pytest.raises(ProtocolError, match="the test rows of SASRec are not the last items"):
        trainer.evaluate(loaders["test"], load_best_model=False)


def test_validation_keeps_the_best_epochs_ranks_the_latest_among_equals(toy):
    config, loaders, trainer = setting(toy, epochs=4, valid_metric="NDCG@10", stopping_step=9)
    wanted, model = iter([0.1, 0.4, 0.4, 0.2]), trainer.model
    best = []

    def evaluate(eval_data, **_):
        score = next(wanted)
        trainer.ranks["valid"], trainer.results["valid"] = np.array([len(best)]), {"ndcg@10": score}
        best.append(score)
        return trainer.results["valid"]

    trainer.evaluate = evaluate
    trainer._train_epoch = lambda *args, **kwargs: 1.0
    model.other_parameter = lambda: None
    score, result = trainer.fit(loaders["test"], loaders["valid"], verbose=False)
    assert (trainer.best_epoch, trainer.epochs_run) == (2, 4)
    assert trainer.ranks["valid"].tolist() == [2] and trainer.results["valid"] == {"ndcg@10": 0.4} and score == 0.4


def test_only_files_of_this_run_are_opened(toy, tmp_path):
    _, loaders, trainer = setting(toy)
    stranger = tmp_path / "stranger.pth"
    torch.save({"state_dict": {}}, stranger)
    with pytest.raises(ValueError, match="stranger.pth was not written by this run"):
        trainer.evaluate(loaders["test"], model_file=str(stranger))


def test_full_ranks_agree_with_sampled_ranks_when_all_items_are_drawn():
    rng = np.random.default_rng(0)
    scores = rng.normal(size=(20, 12))
    assert full_ranks(scores, np.full(20, 3), np.zeros((20, 12), dtype=bool), rng.random(20)).tolist() == [
        1 + sum(row > row[3]) for row in scores
    ]


def test_the_trainer_keeps_its_name():
    assert trainer_class(Trainer).__name__ == "Trainer" and issubclass(trainer_class(Trainer), Trainer)
