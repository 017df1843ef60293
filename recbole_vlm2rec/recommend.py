"""Recommends from a trained VLM2Rec: a history of items in, the items nearest to it by cosine out, new items among them.

Imports torch, data, vlm, embeddings, export and retrieval; no recbole.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from recbole_vlm2rec import embeddings
from recbole_vlm2rec.data.atomic_files import Problem, read_interactions
from recbole_vlm2rec.data.catalog import Catalog
from recbole_vlm2rec.export import ITEM_BATCH, kept_items
from recbole_vlm2rec.nearest import did_you_mean
from recbole_vlm2rec.retrieval import Retriever, check_index
from recbole_vlm2rec.trained import Trained, open_trained

HISTORY_BATCH = 256
RECALL_USERS = 100


class RecommendError(ValueError):
    """What is asked for cannot be recommended from; the message says why and what to do."""


@dataclass(frozen=True)
class Recommendation:
    """rank: from 1. score: cosine of history and item, in [-1, 1]."""

    rank: int
    item: str
    title: str
    score: float


class Recommender:
    """Ranks the items of a data set, and items added later, for histories of any length.

    Args:
        trained: the checkpoint and the data set.
        catalog: the data set's items.
        vectors: fused vectors [n, d] of the catalogue's items; None computes them when they are first needed, and keeps them.
        index: see `retrieval.Retriever`.
    """

    def __init__(
        self,
        trained: Trained,
        catalog: Catalog,
        vectors: Tensor | None = None,
        index: str | None = None,
        show_progress: bool = False,
    ):
        self.trained, self.catalog, self.show_progress = trained, catalog, show_progress
        self.item_ids = list(catalog.item_ids)
        self.items = trained.items([*map(catalog.title, self.item_ids)], [*map(catalog.image, self.item_ids)])
        self.length = trained.description.get("config", {}).get("MAX_ITEM_LIST_LENGTH", 10)
        self._place = {item: place for place, item in enumerate(self.item_ids)}
        self._vectors, self._index = vectors, index
        self._retriever: Retriever | None = None

    @classmethod
    def load(
        cls,
        checkpoint: str | Path,
        dataset: str | None = None,
        data_path: str | Path | None = None,
        export: str | Path | None = None,
        index: str | None = None,
        device: str | None = None,
        show_progress: bool = False,
    ) -> Recommender:
        """From a VLM2Rec run folder, for the items of `dataset` (default: the one it was trained on).

        The items' vectors are those of the `export` folder; else those kept in `items/` of the run folder, where the first call
        of `ready` puts them and a call after the data set or the checkpoint has changed puts new ones.
        Raises CheckpointError, CatalogError, BackboneError, RetrievalError, and EmbeddingsError for an export of another
        checkpoint or of other items.
        """
        check_index(index)
        trained = open_trained(checkpoint, dataset, data_path, device)
        catalog = Catalog.read_file(trained.item_file, trained.reads_pictures)
        vectors = None
        if export is not None:
            vectors = torch.from_numpy(trained.own(embeddings.read(export), catalog.item_ids, catalog.hash).fused)
        return cls(trained, catalog, vectors, index, show_progress)

    def __len__(self) -> int:
        return len(self.item_ids)

    def add_items(self, file: str | Path) -> list[str]:
        """Takes the items of a `.item` file into the ranking and into what a history may hold; returns their ids.

        They are embedded by title and picture; nothing is trained. Raises CatalogError for a file that breaks the contract
        (`Catalog.read_file`) or a picture that cannot be read, RecommendError for an item that is there already.
        """
        new = Catalog.read_file(file, self.trained.reads_pictures)
        new.verify_images()
        if known := [item for item in new.item_ids if item in self._place]:
            raise RecommendError(
                f"{file}, line {new.line(known[0])}, item {known[0]!r}: there is such an item already ({len(known)} of "
                f"{len(new)} are known); give new items ids of their own"
            )
        titles = [*self.items.titles, *map(new.title, new.item_ids)]
        self.items = self.trained.items(titles, [*self.items.pictures, *map(new.image, new.item_ids)])
        self._place.update({item: len(self) + place for place, item in enumerate(new.item_ids)})
        self.item_ids += new.item_ids
        return new.item_ids

    def title(self, item: str) -> str:
        return self.items.titles[self._place[item]]

    @property
    def users(self) -> list[str]:
        """The users of the data set, in the order of their first interactions."""
        return list(self._histories)

    def history_of(self, user: str) -> list[str]:
        """All items of a user of the data set, oldest first. Raises RecommendError for a user who is not in `.inter`."""
        if user not in self._histories:
            raise RecommendError(f"user {user!r} is not in {self._inter}{did_you_mean(user, self._histories)}")
        return self._histories[user]

    def recommend(self, history: Sequence[str], top: int = 10, asking: str = "fused") -> list[Recommendation]:
        """The `top` items nearest to a history of item ids, oldest first; items of the history are left out.

        The model reads the last 10 (`MAX_ITEM_LIST_LENGTH` of its training). `asking`: the vector of the history that is held
        against the items' fused vectors, `fused`, `text` or `image` (the modality dropout test).
        Returns fewer where fewer items are left. Raises RecommendError for an unknown item, an empty history, a `top` beyond
        the number of items, and a vector that this model does not have.
        """
        return self.recommend_many([history], top, asking)[0]

    def recommend_many(
        self, histories: Iterable[Sequence[str]], top: int = 10, asking: str = "fused"
    ) -> list[list[Recommendation]]:
        """`recommend` for many histories at once; histories that begin alike share their work."""
        queries, numbers = self._ask(histories, top, asking)
        return [
            [
                Recommendation(rank, self.item_ids[row], self.items.titles[row], score)
                for rank, (row, score) in enumerate(found, start=1)
            ]
            for found in self.ready().search(queries, top, without=numbers)
        ]

    def recall(self, top: int = 10, users: int = RECALL_USERS) -> float:
        """The mean share of the exact `top` items that the index finds, over a fixed sample of the data set's users."""
        sample = random.Random(0).sample(self.users, min(users, len(self.users)))
        queries, numbers = self._ask([self._histories[user] for user in sample], top, "fused")
        return self.ready().recall(queries, top, without=numbers)

    def ready(self) -> Retriever:
        """Embeds now what the next recommendation needs: the catalogue unless its vectors are kept, and items added since."""
        if self._retriever is None:
            if self._vectors is None:
                self._vectors = torch.from_numpy(kept_items(self.trained, self.catalog, self.show_progress).fused)
            self._retriever = Retriever(self._vectors, self._index)
        for start in range(len(self._retriever), len(self), ITEM_BATCH):
            batch = [[item] for item in range(start, min(start + ITEM_BATCH, len(self)))]
            self._retriever.add(self._encode(batch, "fused"))
        return self._retriever

    def _ask(self, histories: Iterable[Sequence[str]], top: int, asking: str) -> tuple[Tensor, list[list[int]]]:
        """The histories' vectors [B, d], and all of their items as numbers; checks whatever can be wrong before any work."""
        if not 1 <= top <= len(self):
            raise RecommendError(f"top is {top}: give a number from 1 to {len(self)}, which is all items there are")
        kinds = ("fused", *(self.items.modalities if self.items.fusion == "external" else ()))
        if asking not in kinds:
            settings = self.trained.settings
            made = f"modalities {settings['modalities']}, fusion {settings['fusion']}"
            raise RecommendError(f"asking is {asking!r}, but this checkpoint ({made}) has {' and '.join(kinds)} alone")
        numbers = [self._numbers(history) for history in histories]
        read = [items[-self.length :] for items in numbers]
        parts = [self._encode(read[start : start + HISTORY_BATCH], asking) for start in range(0, len(read), HISTORY_BATCH)]
        return torch.cat(parts) if parts else torch.empty(0, self.items.encoder.hidden_size), numbers

    def _numbers(self, history: Sequence[str]) -> list[int]:
        if isinstance(history, str):
            raise RecommendError(f"history is the text {history!r}: give a list of item ids")
        if not history:
            raise RecommendError("the history is empty: give at least one item, the oldest first")
        if unknown := [item for item in history if item not in self._place]:
            raise RecommendError(
                f"item {unknown[0]!r} of the history is not in {self.catalog.file}{did_you_mean(unknown[0], self._place)}"
                + (f" ({len(unknown)} of {len(history)} items are unknown)" if len(unknown) > 1 else "")
            )
        return [self._place[item] for item in history]

    @torch.no_grad()
    def _encode(self, sequences: list[list[int]], kind: str) -> Tensor:
        return getattr(self.items.encode(sequences), kind).cpu()

    @property
    def _inter(self) -> Path:
        return self.catalog.file.with_suffix(".inter")

    @cached_property
    def _histories(self) -> dict[str, list[str]]:
        """Every user's items in time order; the order of the file breaks ties."""
        rows = []
        for row in read_interactions(self._inter):
            if isinstance(row, Problem):
                raise RecommendError(str(row))
            rows.append(row)
        histories: dict[str, list[str]] = {}
        for row in sorted(rows, key=lambda row: row.time):
            histories.setdefault(row.user, []).append(row.item)
        return histories


def print_recommendations(
    checkpoint: str | Path,
    history: Sequence[str] | None = None,
    user: str | None = None,
    top: int = 10,
    new_items: str | Path | None = None,
    json_file: str | Path | None = None,
    **loading,
) -> dict:
    """The command: recommends for a history or for a user's, prints the table and returns (and writes) what it says.

    `loading`: what else `Recommender.load` takes.
    """
    recommender = Recommender.load(checkpoint, show_progress=True, **loading)
    known = len(recommender)
    added = recommender.add_items(new_items) if new_items else []
    history = recommender.history_of(user) if history is None else list(history)
    found = recommender.recommend(history, top)
    index = recommender.ready()
    recall = recommender.recall(top) if index.approximate else None

    trained, read = recommender.trained, history[-recommender.length :]
    width = max(len(item) for item in [*read, *(each.item for each in found), "item"])
    print(f"{trained.run_folder.name}, {known} items of {trained.dataset}" + (f" and {len(added)} new ones" if added else ""))
    note = f", the last {len(read)} are read" if len(read) < len(history) else ""
    print(f"history{'' if user is None else f' of {user}'} ({len(history)} items{note})")
    for item in read:
        print(f"      {item:<{width}}          {recommender.title(item)}")
    print(f"rank  {'item':<{width}}   score  title")
    for each in found:
        print(f"{each.rank:>4}  {each.item:<{width}}  {each.score:>6.4f}  {each.title}")
    if recall is not None:
        asked = min(RECALL_USERS, len(recommender.users))
        print(f"recall@{top} of {loading['index']} against exact search, histories of {asked} users: {recall:.4f}")
    result = {
        "checkpoint": str(trained.folder),
        "dataset": trained.dataset,
        "user": user,
        "history": history,
        "new_items": added,
        "index": loading.get("index"),
        "recall": recall,
        "recommendations": [asdict(each) for each in found],
    }
    if json_file:
        Path(json_file).parent.mkdir(parents=True, exist_ok=True)
        Path(json_file).write_text(json.dumps(result, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return result
