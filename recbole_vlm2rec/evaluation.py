"""The evaluation that every trainer shares: one score vector a user, a gather of the candidates, the rank of the positive.

Imports torch, recbole's interactions, metrics, measure and data.candidates. METHOD section 4.
"""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from recbole_vlm2rec import compat

compat.apply()

from recbole.data.interaction import Interaction
from recbole.utils import ModelType, calculate_valid_score, set_color

from recbole_vlm2rec.data.candidates import FullRanking
from recbole_vlm2rec.measure import Meter
from recbole_vlm2rec.metrics import full_ranks, positive_ranks, summary

# Models that score pair by pair get at most so many pairs at once.
PAIRS = 2**17
# Of the whole shop, to be looked at: so many items a test user.
TOP = 10


class ProtocolError(RuntimeError):
    """A model's evaluation rows are not the users and targets that every model is asked for."""


class ProtocolMixin:
    """Replaces the evaluation of one of RecBole's trainers; put it before the trainer among the base classes.

    After an evaluation, `ranks[phase]` holds each user's rank, in the order of `dataset.candidates[phase].users`, and
    `results[phase]` the metrics at full precision. After `fit`, those of `valid` are the best epoch's, `best_epoch` its
    number (RecBole counts from 0; None without validation), `epochs_run` the number of epochs.
    `top_items["test"]` holds the ids [U, 10] of the best items of the whole shop that the user had not touched before, best
    first, 0 where there are fewer; models that only score pairs have none.
    """

    def __init__(self, config, model):
        super().__init__(config, model)
        self.meter = Meter()
        self.ranks: dict[str, np.ndarray] = {}
        self.results: dict[str, dict[str, float]] = {}
        self.top_items: dict[str, np.ndarray] = {}
        self.best_epoch: int | None = None
        # Ranks and metrics of the best validation so far; a trainer that resumes a run restores them.
        self._best: tuple[np.ndarray, dict[str, float]] | None = None
        self._validated: dict[int, dict] = {}
        self._written: set[str] = set()
        self._top: list[np.ndarray] | None = None

    @property
    def epochs_run(self) -> int:
        return len(self.train_loss_dict)

    def diagnostics(self) -> dict:
        """What a trainer adds to result.json: loss and validation metrics of every epoch."""
        losses = {epoch: float(np.sum(loss)) for epoch, loss in self.train_loss_dict.items()}  # some models have several losses
        return {"training": [{"epoch": epoch, "loss": loss, **self._validated.get(epoch, {})} for epoch, loss in losses.items()]}

    def fit(self, *args, **kwargs):
        """RecBole's fit; afterwards ranks and results of `valid` are those of the best epoch."""
        with self.meter("train"):
            outcome = super().fit(*args, **kwargs)
        if self._best:
            self.ranks["valid"], self.results["valid"] = self._best
        return outcome

    def _valid_epoch(self, valid_data, show_progress=False) -> tuple[float, dict[str, float]]:
        """Score at full precision, metrics rounded for the log."""
        with self.meter("valid"):
            result = self.evaluate(valid_data, load_best_model=False, show_progress=show_progress)
        score = calculate_valid_score(result, self.valid_metric)
        self._validated[max(self.train_loss_dict, default=0)] = {"valid": dict(result)}
        # The rule of RecBole's early_stopping: among equals the latest is the best, and its weights are saved.
        if score >= self.best_valid_score if self.valid_metric_bigger else score <= self.best_valid_score:
            self._best = self.ranks["valid"], self.results["valid"]
            self.best_epoch = max(self.train_loss_dict, default=None)
        return score, OrderedDict((name, round(value, self.config["metric_decimal_place"])) for name, value in result.items())

    @torch.no_grad()
    def evaluate(self, eval_data, load_best_model=True, model_file=None, show_progress=False) -> OrderedDict[str, float]:
        """Metrics of one phase, at full precision, means over its users.

        Raises ProtocolError when the rows of `eval_data` are not this phase's users and targets, and ValueError for NaN
        scores, naming the user.
        """
        if load_best_model:
            self._load_best(model_file or self.saved_model_file)
        self.model.eval()
        dataset, transform = eval_data._dataset, eval_data.transform
        candidates = dataset.candidates[dataset.phase]
        check_targets(dataset, self.config["model"])
        rows = np.argsort(dataset.inter_feat[dataset.uid_field].numpy())
        title = set_color(f"Evaluate {dataset.phase}", "pink")
        progress = tqdm(total=len(rows), desc=title, unit="user", disable=not show_progress, leave=False)
        ranks = np.empty(len(rows), dtype=np.int64)
        self._top = [] if dataset.phase == "test" else None
        with progress:
            for batch in np.array_split(np.arange(len(rows)), np.arange(self.test_batch_size, len(rows), self.test_batch_size)):
                ranks[batch] = self._batch_ranks(dataset, transform, candidates, rows[batch], batch)
                progress.update(len(batch))
        self.ranks[dataset.phase] = ranks
        if self._top:
            self.top_items[dataset.phase] = np.concatenate(self._top)
        result = OrderedDict(summary(ranks, self.config["metrics"], self.config["topk"]))
        self.results[dataset.phase] = dict(result)
        self.wandblogger.log_eval_metrics(result, head="eval")
        return result

    def _batch_ranks(self, dataset, transform, candidates, rows: np.ndarray, batch: np.ndarray) -> np.ndarray:
        """Ranks of the users candidates.users[batch], whose rows in the data set are `rows`."""
        interaction = _questions(dataset, transform, rows)
        full, model = isinstance(candidates, FullRanking), self.config["model"]
        try:
            scores = self.model.full_sort_predict(interaction.to(self.device))
        except NotImplementedError:  # RecBole's word for a model that only scores pairs
            items = np.tile(np.arange(dataset.item_num), (len(batch), 1)) if full else candidates.items[batch]
            chosen = self._predict(dataset, interaction, items)
        else:
            # General models return one flat vector for all users.
            scores = scores.reshape(len(batch), -1)
            if scores.shape[1] != dataset.item_num:
                raise ProtocolError(f"{model}.full_sort_predict scores {scores.shape[1]} items, not {dataset.item_num}")
            if self._top is not None:
                self._top.append(
                    _best_items(scores, _never_candidates(dataset, candidates.user_ids[batch], candidates.targets[batch]))
                )
            if full:
                chosen = scores
            else:
                chosen = scores.gather(1, torch.as_tensor(candidates.items[batch], dtype=torch.int64, device=scores.device))
        # NumPy has no bfloat16.
        values = (chosen.float() if chosen.dtype in (torch.float16, torch.bfloat16) else chosen).cpu().numpy()
        try:
            if not full:
                return positive_ranks(values, candidates.position[batch])
            excluded = _never_candidates(dataset, candidates.user_ids[batch])
            return full_ranks(values, candidates.targets[batch], excluded, candidates.tie[batch])
        except ValueError as error:
            raise ValueError(f"{model}, {dataset.phase}, from user {candidates.users[batch[0]]} on: {error}") from error

    def _predict(self, dataset, interaction: Interaction, items: np.ndarray) -> torch.Tensor:
        """Scores [B, C] of `items` [B, C] by a model that only scores pairs."""
        users = max(1, PAIRS // items.shape[1])
        parts = []
        for start in range(0, len(items), users):
            some = items[start : start + users]
            pairs = interaction[start : start + users].repeat_interleave(some.shape[1])
            pairs.update(dataset.join(Interaction({dataset.iid_field: torch.as_tensor(some.reshape(-1), dtype=torch.int64)})))
            parts.append(self.model.predict(pairs.to(self.device)).reshape(some.shape))
        return torch.cat(parts)

    def _save_checkpoint(self, epoch, *args, **kwargs):
        super()._save_checkpoint(epoch, *args, **kwargs)
        self._written.add(str(Path(kwargs.get("saved_model_file", self.saved_model_file)).resolve()))

    def save_pretrained_model(self, epoch, saved_model_file):
        """RaCT and S3Rec save so, in their stages that have no validation."""
        super().save_pretrained_model(epoch, saved_model_file)
        self._written.add(str(Path(saved_model_file).resolve()))

    def _load_best(self, model_file=None) -> None:
        """Restores the weights that this trainer wrote.

        RecBole's checkpoints are pickles, which torch >= 2.6 does not open by default (RUCAIBox/RecBole#2212) and which can run
        any code: only the files that this very run wrote are opened. Raises ValueError for others.
        """
        file = str(Path(model_file or self.saved_model_file).resolve())
        if file not in self._written:
            raise ValueError(f"{file} was not written by this run: it is a pickle, which could run anything, and is not opened")
        checkpoint = torch.load(file, map_location=self.device, weights_only=False)
        self.model.load_state_dict(checkpoint["state_dict"])
        self.model.load_other_parameter(checkpoint.get("other_parameter"))


def _questions(dataset, transform, rows: np.ndarray) -> Interaction:
    """What a model is shown of these rows: a sequential model its history, any other the user alone."""
    if dataset.config["MODEL_TYPE"] == ModelType.SEQUENTIAL:
        return transform(dataset, dataset[rows])
    users = dataset.inter_feat[dataset.uid_field][rows]
    return dataset.join(Interaction({dataset.uid_field: users}))


def _best_items(scores: torch.Tensor, excluded: np.ndarray) -> np.ndarray:
    """Ids [B, TOP] of the best-scored items that are not excluded, best first; 0 where there are fewer."""
    left = scores.float().masked_fill(torch.as_tensor(excluded, device=scores.device), -torch.inf)
    best, items = left.topk(min(TOP, left.shape[1]), dim=1)
    found = np.zeros((len(scores), TOP), dtype=np.int32)
    found[:, : items.shape[1]] = items.masked_fill(best == -torch.inf, 0).cpu().numpy()
    return found


def _never_candidates(dataset, users: np.ndarray, targets: np.ndarray | None = None) -> np.ndarray:
    """Bool [B, n_items]: padding, items without interactions, and what the user touched, the target too unless it is named."""
    excluded = np.zeros((len(users), dataset.item_num), dtype=bool)
    excluded[:, 0] = True
    excluded[:, len(dataset.histories.item_tokens) :] = True
    for row, user in enumerate(users):
        excluded[row, dataset.histories.of(user)] = True
    if targets is not None:
        excluded[np.arange(len(users)), targets] = False
    return excluded


def check_targets(dataset, model: str) -> None:
    """Raises ProtocolError unless the rows of this phase are exactly the users and targets that the histories define."""
    rows = dataset.inter_feat
    users, items = rows[dataset.uid_field].numpy(), rows[dataset.iid_field].numpy()
    order = np.argsort(users)
    expected, targets = dataset.histories.targets(dataset.phase)
    same = len(users) == len(expected) and (users[order] == expected).all() and (items[order] == targets).all()
    ranked = dataset.candidates[dataset.phase]
    if not same or not (ranked.user_ids == expected).all() or not (ranked.targets == targets).all():
        raise ProtocolError(
            f"the {dataset.phase} rows of {model} are not the last items of the interactions in time order: its numbers could "
            f"not be compared with other models'"
        )


def trainer_class(cls: type) -> type:
    """A subclass of one of RecBole's trainers that evaluates by our protocol."""
    return type(cls.__name__, (ProtocolMixin, cls), {})
