"""Targets and evaluation candidates: which item each user is asked for, among which others, the same for every model.

May import numpy and the standard library only. METHOD section 4: the last item is the test target, the second-last the
validation target; 1 positive against N items the user never touched, uniform without replacement, fixed by the seed.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

PHASES = ("valid", "test")
_FIELDS = ("users", "user_ids", "items", "position")
# A row of RecBole's sequential models needs one item of history, and a user keeps one row to train on: two items give a
# training row, three also a test row, four also a validation row. General models follow, so that all are asked the same.
SHORTEST = {"valid": 4, "test": 3}


@dataclass(frozen=True)
class Histories:
    """Every user's items, oldest first, in RecBole's ids: ids start at 1 and 0 is the padding entry of both token lists.

    `items[start[u]:start[u + 1]]` are the items of user u.
    """

    user_tokens: np.ndarray
    item_tokens: np.ndarray
    start: np.ndarray
    items: np.ndarray

    @classmethod
    def read(cls, folder: Path, name: str) -> Histories:
        """From `<folder>/<name>.inter`, read without RecBole and pandas; further columns may stand. The same ids as RecBole's."""
        with open(folder / f"{name}.inter", encoding="utf-8-sig") as lines:
            names = [column.split(":")[0] for column in next(lines).rstrip("\r\n").split("\t")]
            rows = [line.rstrip("\r\n").split("\t") for line in lines if line.strip()]
        user, item, moment = (names.index(column) for column in ("user_id", "item_id", "timestamp"))
        return cls.from_rows([row[user] for row in rows], [row[item] for row in rows], [float(row[moment]) for row in rows])

    @classmethod
    def from_rows(cls, users: Sequence[str], items: Sequence[str], timestamps: Sequence[float]) -> Histories:
        """From the rows of an `.inter` file: sorted by time, file order breaks ties; ids in order of first appearance."""
        order = np.argsort(np.asarray(timestamps, dtype=np.float64), kind="stable")
        user_ids, user_tokens = _factorize(np.asarray(users, dtype=str)[order])
        item_ids, item_tokens = _factorize(np.asarray(items, dtype=str)[order])
        return cls.from_ids(user_ids, item_ids, user_tokens, item_tokens)

    @classmethod
    def from_ids(cls, user_ids: np.ndarray, item_ids: np.ndarray, user_tokens: np.ndarray, item_tokens: np.ndarray) -> Histories:
        """From rows that are sorted by time already; tokens are indexed by id, entry 0 is padding."""
        order = np.argsort(user_ids, kind="stable")
        counts = np.bincount(user_ids, minlength=len(user_tokens))
        start = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
        tokens = (np.asarray(names, dtype=str) for names in (user_tokens, item_tokens))
        return cls(*tokens, start, item_ids[order].astype(np.int64))

    def of(self, user: int) -> np.ndarray:
        """All items of a user, oldest first."""
        return self.items[self.start[user] : self.start[user + 1]]

    def targets(self, phase: str) -> tuple[np.ndarray, np.ndarray]:
        """Users that have a target in this phase, ascending, and the target of each: two int64 [U]."""
        users = np.flatnonzero(np.diff(self.start) >= SHORTEST[phase])
        return users, self.items[self.start[users + 1] - (2 if phase == "valid" else 1)]

    @cached_property
    def sha256(self) -> str:
        """Hash of everything that candidates depend on: tokens, their ids, and every user's items in order."""
        tokens = ["\0".join(names).encode() for names in (self.user_tokens.tolist(), self.item_tokens.tolist())]
        return _sha256(*tokens, self.start, self.items)


@dataclass(frozen=True)
class Candidates:
    """One list a user. users: tokens [U]; user_ids: [U] ascending; items: ids [U, 1 + N]; position: [U] the positive's column."""

    users: np.ndarray
    user_ids: np.ndarray
    items: np.ndarray
    position: np.ndarray

    @property
    def targets(self) -> np.ndarray:
        """The positive of each user, [U]."""
        return self.items[np.arange(len(self.items)), self.position]


@dataclass(frozen=True)
class FullRanking:
    """All items the user never touched are candidates. tie: [U] in [0, 1), the share of tied items ranked before the target."""

    users: np.ndarray
    user_ids: np.ndarray
    targets: np.ndarray
    tie: np.ndarray


class CandidateError(ValueError):
    """Candidates cannot be drawn, or the file that holds them is damaged."""


def draw_negatives(touched: np.ndarray, n_items: int, count: int, rng: np.random.Generator) -> np.ndarray:
    """`count` distinct item ids of 1..n_items that are not in `touched`, each such set equally likely; int64 [count].

    Raises ValueError when fewer than `count` are left.
    """
    touched = np.unique(touched)
    left = n_items - len(touched)
    if left < count:
        raise ValueError(f"{left} untouched items, {count} asked for")
    chosen = rng.choice(left, size=count, replace=False)
    # The k-th untouched item (from 0) lies beyond as many touched items as have at most k untouched ones before them.
    return 1 + chosen + np.searchsorted(touched - 1 - np.arange(len(touched)), chosen, side="right")


def draw_candidates(histories: Histories, phase: str, count: int, seed: int) -> Candidates:
    """The positive of every user of this phase among `count` negatives, at a random place of the list.

    Each user has a random stream of their own. Raises CandidateError naming a user with too few untouched items.
    """
    users, targets = histories.targets(phase)
    n_items = len(histories.item_tokens) - 1
    items = np.empty((len(users), 1 + count), dtype=np.int32)
    position = np.empty(len(users), dtype=np.int32)
    for row, (user, target) in enumerate(zip(users, targets)):
        rng = np.random.default_rng([seed, PHASES.index(phase), user])
        try:
            negatives = draw_negatives(histories.of(user), n_items, count, rng)
        except ValueError as error:
            raise CandidateError(
                f"user {histories.user_tokens[user]} has too few negatives ({error} of {n_items} items in all): "
                f"set eval_negatives lower, or eval_negatives: full"
            ) from error
        position[row] = rng.integers(count + 1)
        items[row] = np.insert(negatives, position[row], target)
    return Candidates(histories.user_tokens[users], users, items, position)


def full_ranking(histories: Histories, phase: str, seed: int) -> FullRanking:
    """Targets of this phase, and how each breaks ties."""
    users, targets = histories.targets(phase)
    tie = np.random.default_rng([seed, PHASES.index(phase)]).random(len(users))
    return FullRanking(histories.user_tokens[users], users, targets, tie)


def load_or_draw(
    histories: Histories, name: str, count: int, seed: int, folders: Sequence[str | Path]
) -> tuple[dict[str, Candidates], Path, str]:
    """The candidates of both phases from the first folder that has them; else drawn and written to the first that takes them.

    Returns them by phase, the file, and the hash of its content. Raises CandidateError for a damaged file, with the file's
    name, and OSError when no folder can be written.
    """
    files = [Path(folder) / f"{name}-{count}-seed{seed}-{histories.sha256[:8]}.npz" for folder in folders]
    for file in files:
        if file.is_file():
            drawn, digest = read(file, histories, count, seed)
            return drawn, file, digest
    drawn = {phase: draw_candidates(histories, phase, count, seed) for phase in PHASES}
    refusals = []
    for file in files:
        try:
            _require_writable(file.parent)
            return drawn, file, write(file, drawn, histories, count, seed)
        except OSError as error:
            refusals.append(str(error))
    raise OSError(f"no folder takes the candidates: {'; '.join(refusals)}")


def _require_writable(folder: Path) -> None:
    """A folder whose mode says read-only is left alone even by root, whom the system would not stop."""
    there = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
    if not there.stat().st_mode & 0o222:
        raise PermissionError(f"{there} is marked read-only")


def write(file: Path, drawn: dict[str, Candidates], histories: Histories, count: int, seed: int) -> str:
    """Writes the file beside itself and renames it, so that a reader never sees half of it; returns its content's hash."""
    digest = _content_hash(drawn, histories, count, seed)
    arrays = {f"{phase}_{field}": getattr(drawn[phase], field) for phase in PHASES for field in _FIELDS}
    arrays |= {"item_tokens": histories.item_tokens, "dataset_sha256": histories.sha256, "sha256": digest}
    file.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=file.parent, prefix=f".{file.name}.")
    try:
        with os.fdopen(handle, "wb") as stream:
            np.savez_compressed(stream, count=count, seed=seed, **arrays)
        os.chmod(temporary, 0o644)
        os.replace(temporary, file)
    except BaseException:
        os.unlink(temporary)
        raise
    return digest


def read(file: Path, histories: Histories, count: int, seed: int) -> tuple[dict[str, Candidates], str]:
    """Reads and verifies a file: whole, unchanged since it was written, and of these histories. Returns candidates and hash."""
    try:
        with np.load(file, allow_pickle=False) as stored:
            drawn = {phase: Candidates(*(stored[f"{phase}_{field}"] for field in _FIELDS)) for phase in PHASES}
            claimed = str(stored["sha256"])
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise CandidateError(f"{file} is damaged ({error}); delete it and the same candidates are drawn anew") from error
    digest = _content_hash(drawn, histories, count, seed)
    if digest != claimed:
        raise CandidateError(f"{file} was changed, or is of other data, seed or count; delete it and they are drawn anew")
    return drawn, digest


def _content_hash(drawn: dict[str, Candidates], histories: Histories, count: int, seed: int) -> str:
    parts = [histories.sha256.encode(), f"{count} {seed}".encode()]
    for phase in PHASES:
        lists = drawn[phase]
        parts += ["\0".join(lists.users.tolist()).encode(), lists.user_ids, lists.items, lists.position]
    return _sha256(*parts)


def _sha256(*parts: bytes | np.ndarray) -> str:
    """Each part is hashed with its length before it; numbers as little-endian int64, whatever type holds them."""
    digest = hashlib.sha256()
    for part in parts:
        content = part if isinstance(part, bytes) else np.ascontiguousarray(part, dtype="<i8").tobytes()
        digest.update(len(content).to_bytes(8, "little") + content)
    return digest.hexdigest()


def _factorize(tokens: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Ids from 1 in order of first appearance, and the tokens by id with padding first, as RecBole numbers them."""
    names, first, inverse = np.unique(tokens, return_index=True, return_inverse=True)
    order = np.argsort(first, kind="stable")
    ids = np.empty(len(names), dtype=np.int64)
    ids[order] = np.arange(1, len(names) + 1)
    return ids[inverse.reshape(-1)], np.concatenate([["[PAD]"], names[order]])
