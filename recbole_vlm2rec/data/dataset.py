"""RecBole's data sets under our protocol: exact time order, the same targets for every model, the shared candidates.

Imports recbole.data.dataset, data.atomic_files, data.candidates and, when asked for, data.catalog.
"""

from __future__ import annotations

from functools import cached_property
from logging import getLogger
from pathlib import Path

import numpy as np

from recbole_vlm2rec import compat

compat.apply()

import recbole.data.dataset as recbole_datasets
from recbole.data.dataset import Dataset, KnowledgeBasedDataset, SequentialDataset
from recbole.utils import ModelType

from recbole_vlm2rec.config import check_dataset
from recbole_vlm2rec.data.atomic_files import Problem, read_interactions
from recbole_vlm2rec.data.candidates import PHASES, Candidates, FullRanking, Histories, full_ranking, load_or_draw


class ProtocolDataset(Dataset):
    """Mixed into each of RecBole's data set classes.

    `histories`: every user's interactions. `candidates`: by phase. `candidate_file`: {"file", "sha256"}, None for a full ranking.
    `phase`: train, valid or test on the three data sets that `build` returns.
    """

    phase: str | None = None
    candidates: dict[str, Candidates | FullRanking]
    candidate_file: dict[str, str] | None

    def _filter_nan_user_or_item(self) -> None:
        """RecBole drops rows without a user or item, an item named `NA` among them; `create_dataset` has refused them."""

    def _remove_duplication(self) -> None:
        """Time order on the exact numbers: RecBole sorts after rounding to float32, where two minutes of today are one moment."""
        self._check_field("uid_field", "iid_field", "time_field")
        self.inter_feat.sort_values(self.time_field, kind="stable", inplace=True, ignore_index=True)
        if self.config["rm_dup_inter"] is not None:
            self.inter_feat.drop_duplicates([self.uid_field, self.iid_field], keep=self.config["rm_dup_inter"], inplace=True)

    def _filter_inter_by_user_or_item(self) -> None:
        """RecBole would drop interactions whose item is not in `.item`, for those models alone that read `.item`."""
        if self.item_feat is not None:
            unknown = ~self.inter_feat[self.iid_field].isin(self.item_feat[self.iid_field])
            if unknown.any():
                names = self.inter_feat[self.iid_field][unknown].unique()
                raise ValueError(
                    f"{len(names)} items of {self._inter_file()} are not in {self.dataset_name}.item: {', '.join(names[:5])}"
                    f"{' …' if len(names) > 5 else ''}; add them there or remove their interactions"
                )
        super()._filter_inter_by_user_or_item()

    def _data_processing(self) -> None:
        super()._data_processing()
        # What stands only in .user or .item has ids too, behind these; nobody bought it and no model is asked about it.
        users, items = (self.inter_feat[field].to_numpy() for field in (self.uid_field, self.iid_field))
        user_tokens = self.field2id_token[self.uid_field][: users.max() + 1]
        item_tokens = self.field2id_token[self.iid_field][: items.max() + 1]
        self.histories = Histories.from_ids(users, items, user_tokens, item_tokens)

    def _split_index_by_leave_one_out(self, grouped_index, leave_one_num):
        """A user keeps as many rows to train on as in a sequential model, which has no row for the first item."""
        rows = [list(index) for index in grouped_index]
        held_out = [min(leave_one_num, max(len(index) - self._first_target, 0)) for index in rows]
        parts = [[i for index, out in zip(rows, held_out) for i in index[: len(index) - out]]]
        for part in range(leave_one_num, 0, -1):
            parts.append([index[-part] for index, out in zip(rows, held_out) if out >= part])
        return parts

    _first_target = 2

    def build(self) -> list[Dataset]:
        parts = super().build()
        for part, phase in zip(parts, ("train", *PHASES)):
            part.phase = phase
        if (count := self.config["train_users"]) is not None:
            users = parts[0].inter_feat[self.uid_field].numpy()
            # Those of two interactions or more: whoever has a training row in every model.
            trainable = np.flatnonzero(np.diff(self.histories.start) >= 2)
            parts[0].inter_feat = parts[0].inter_feat[np.isin(users, _sample_users(trainable, count, self.config["seed"]))]
        return parts

    @cached_property
    def catalog(self):
        """Titles and pictures of the items; read when a model first asks for them."""
        return self._read_catalog(pictures=True)

    @cached_property
    def title_catalog(self):
        """Titles alone, for models that read no picture: `.item` need not name any."""
        return self._read_catalog(pictures=False)

    def _read_catalog(self, pictures: bool):
        from recbole_vlm2rec.data.catalog import Catalog

        catalog = Catalog.read(Path(self.dataset_path), self.dataset_name, pictures)
        catalog.check_items(self.histories.item_tokens[1:].tolist())
        catalog.verify_images()
        return catalog

    def _inter_file(self) -> Path:
        return Path(self.dataset_path) / f"{self.dataset_name}.inter"


def _sample_users(users: np.ndarray, count: int, seed: int) -> np.ndarray:
    """`count` of these users (few-shot); of one seed, a smaller sample lies within a larger one. Raises ValueError."""
    if isinstance(count, bool) or not isinstance(count, int) or not 1 <= count <= len(users):
        raise ValueError(f"train_users is {count!r}: give a number from 1 to {len(users)}, the users that can be trained on")
    return np.random.default_rng(seed).permutation(users)[:count]


class VLM2RecDataset(ProtocolDataset, SequentialDataset):
    """Every sequential model's data set. `train_examples: all` trains on each prefix of a user's history, `last` on the
    longest only: the history before the last training item -> that item."""

    _first_target = 1

    def build(self) -> list[Dataset]:
        train, valid, test = super().build()
        if self.config["train_examples"] == "last":
            users = train.inter_feat[self.uid_field].numpy()
            _, from_end = np.unique(users[::-1], return_index=True)
            train.inter_feat = train.inter_feat[np.sort(len(users) - 1 - from_end)]
        return [train, valid, test]


class GeneralDataset(ProtocolDataset, Dataset):
    """General, context-aware and traditional models."""


class KnowledgeDataset(ProtocolDataset, KnowledgeBasedDataset):
    """Knowledge-aware models."""


class DIENDataset(VLM2RecDataset, recbole_datasets.DIENDataset):
    """DIEN's, with its negative histories."""


class GRU4RecKGDataset(VLM2RecDataset, recbole_datasets.GRU4RecKGDataset):
    """GRU4RecKG's, with a knowledge graph."""


class KSRDataset(VLM2RecDataset, recbole_datasets.KSRDataset):
    """KSR's, with a knowledge graph."""


_BY_MODEL = {"DIEN": DIENDataset, "GRU4RecKG": GRU4RecKGDataset, "KSR": KSRDataset}
_BY_TYPE = {ModelType.SEQUENTIAL: VLM2RecDataset, ModelType.KNOWLEDGE: KnowledgeDataset}


def create_dataset(config) -> ProtocolDataset:
    """The data set of `config["dataset"]` for `config["model"]`, with its candidates attached.

    Raises FileNotFoundError that lists the data sets there are, and ValueError or CandidateError for data that cannot be
    evaluated.
    """
    folder = Path(config["data_path"])
    check_dataset(folder.parent, folder.name)
    _check_interactions(folder / f"{folder.name}.inter", config)
    dataset = _BY_MODEL.get(config["model"], _BY_TYPE.get(config["MODEL_TYPE"], GeneralDataset))(config)
    attach_candidates(dataset, config)
    return dataset


def _check_interactions(file: Path, config) -> None:
    """Raises ValueError for the first line that RecBole's reader could not take, or would take for something else.

    pandas would answer with a traceback, skip, shift or swallow lines without a word.
    """
    fields = [config[key] for key in ("USER_ID_FIELD", "ITEM_ID_FIELD", "TIME_FIELD")]
    rows = read_interactions(file, fields, config["field_separator"], config["encoding"] or "utf-8")
    problems = (row for row in rows if isinstance(row, Problem))
    if first := next(problems, None):
        count = 1 + sum(problem.kind == first.kind for problem in problems)
        note = "" if first.line in (None, 1) else f" ({count} such lines)"
        raise ValueError(f"{first.statement}{note}; {first.remedy}")


def attach_candidates(dataset: ProtocolDataset, config) -> None:
    """Sets `candidates` and `candidate_file` of the data set; the file lies beside the data, else in checkpoint_dir."""
    for phase in PHASES:
        if not len(dataset.histories.targets(phase)[0]):
            raise ValueError(f"no user of {dataset.dataset_name} has the 4 interactions that training, validation and test need")
    seed = config["seed"] if config["candidate_seed"] is None else config["candidate_seed"]
    if config["eval_negatives"] == "full":
        dataset.candidates = {phase: full_ranking(dataset.histories, phase, seed) for phase in PHASES}
        dataset.candidate_file = None
        return
    folders = [Path(config["data_path"]) / "candidates", Path(config["checkpoint_dir"]) / "candidates"]
    name, count = dataset.dataset_name, config["eval_negatives"]
    dataset.candidates, file, digest = load_or_draw(dataset.histories, name, count, seed, folders)
    dataset.candidate_file = {"file": str(file), "sha256": digest}
    if file.parent == folders[1]:
        getLogger().info(f"{folders[0]} cannot be written; the candidates lie in {file.parent}")
