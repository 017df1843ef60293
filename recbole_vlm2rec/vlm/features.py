"""Visual tokens of pictures, computed once and kept on disk: shared by training, evaluation, export, and by later runs.

Imports torch, safetensors, filelock and the backbone only.

    <folder>/<key>/about.json          what the key stands for
    <folder>/<key>/<name>.safetensors  a shard: tokens [sum of n, d], deep [layers, sum of n, d], counts [P], grids [P, 3];
                                       the pictures' SHA-256 in its metadata
The key covers everything that decides on the tokens: the tower's and projector's weights, their configuration, the picture
processor, the arithmetic, the versions. A shard appears whole under its name or not at all.
"""

from __future__ import annotations

import hashlib
import json
import os
import uuid
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, ExitStack
from logging import getLogger
from pathlib import Path

import PIL
import torch
import transformers
from filelock import FileLock, Timeout
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from tqdm import tqdm

from recbole_vlm2rec.vlm.backbone import Backbone, BackboneError, PictureFeatures

FORMAT = 1
BATCH, SHARD = 64, 512


class FeatureStore:
    """Features by picture file, for one backbone; read from memory-mapped shards as they are asked for.

    Args:
        folder: kept features of any number of backbones and data sets.
        backbone: its tower must be frozen.
    """

    def __init__(self, folder: str | Path, backbone: Backbone):
        self.backbone = backbone
        about = _about(backbone)
        digest = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()
        self.folder = Path(folder) / digest[:32]
        self._about = about
        self._places: dict[str, tuple[_Shard, int]] = {}
        self._shards: dict[str, _Shard] = {}
        self._hashes: dict[Path, str] = {}

    def __contains__(self, picture: object) -> bool:
        return self._hashes.get(picture) in self._places

    def __getitem__(self, picture: Path) -> PictureFeatures:
        shard, row = self._places[self._hashes[picture]]
        return shard.read(row)

    def compute(self, pictures: Iterable[Path], show_progress: bool = False) -> int:
        """Makes sure that every picture is kept; returns how many had to be computed.

        Two processes at once share the work, and the last one waits for the other's share; a killed one is gone on from at its
        last shard. Raises BackboneError for a picture that cannot be read and a folder that cannot be written.
        """
        pictures = list(pictures)
        for picture in pictures:
            if picture not in self._hashes:
                self._hashes[picture] = _file_hash(picture)
        self._order = {picture: place for place, picture in enumerate(pictures)}
        self._scan()
        missing, computed = self._missing(pictures), 0
        with tqdm(total=len(missing), desc="Visual tokens", unit="picture", disable=not show_progress, leave=False) as progress:
            try:
                for wait in (False, True):
                    buckets = self._buckets(missing)
                    while buckets:
                        computed += self._compute_some(buckets, wait, progress)
            except OSError as error:
                raise BackboneError(
                    f"visual tokens cannot be kept in {self.folder}: {error}. Give another place with feature_cache, or null to "
                    f"compute them anew in each run"
                ) from error
        return computed

    def _buckets(self, pictures: Iterable[Path]) -> dict[str, list[Path]]:
        """Those of the pictures that are still missing, by the first digit of their hash: locked together."""
        buckets: dict[str, list[Path]] = {}
        for picture in pictures:
            if picture not in self:
                buckets.setdefault(self._hashes[picture][0], []).append(picture)
        return buckets

    def _compute_some(self, buckets: dict[str, list[Path]], wait: bool, progress: tqdm) -> int:
        """Takes buckets until they fill a shard, and computes those that are not another process's; returns how many pictures.

        `wait`: takes one, and waits for it. (Nobody waits while it holds another: two could then wait for each other.)
        """
        held: dict[str, list[Path]] = {}
        with ExitStack() as locks:
            while buckets and sum(map(len, held.values())) < SHARD and not (wait and held):
                bucket = next(iter(buckets))
                pictures = buckets.pop(bucket)
                if lock := self._lock(bucket, wait):
                    locks.enter_context(lock)
                    held[bucket] = pictures
            return self._compute(held, progress) if held else 0

    def _lock(self, bucket: str, wait: bool) -> AbstractContextManager | None:
        """The bucket's lock, held until the context is left; None where another process holds it and we do not wait."""
        self.folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(self.folder / f".{bucket}.lock")
        try:
            return lock.acquire(timeout=0)
        except Timeout:
            if not wait:
                return None
            getLogger(__name__).info(f"another process computes visual tokens in {self.folder}; waiting for it")
            return lock.acquire()

    def _missing(self, pictures: Sequence[Path]) -> list[Path]:
        """One file for each content that is not kept yet."""
        return list({self._hashes[picture]: picture for picture in pictures if picture not in self}.values())

    def _scan(self) -> None:
        """Takes up the shards that have appeared since; a damaged one is removed and named, and computed again."""
        for file in sorted(self.folder.glob("*.safetensors")):
            if file.name in self._shards:
                continue
            try:
                shard = _Shard(file)
            except FileNotFoundError:  # another process has found it damaged, and removed it
                continue
            except (SafetensorError, KeyError, ValueError, TypeError) as error:
                getLogger(__name__).warning(f"{file} is damaged ({error}); it is removed and computed again")
                file.unlink(missing_ok=True)
                continue
            self._shards[file.name] = shard
            for row, digest in enumerate(shard.digests):
                self._places.setdefault(digest, (shard, row))

    def _compute(self, held: dict[str, list[Path]], progress: tqdm) -> int:
        """Computes what is missing of these buckets, whose locks are ours; returns how many pictures that were."""
        self._scan()  # another process may have been here
        pictures = [picture for part in held.values() for picture in part]
        missing = sorted(self._missing(pictures), key=self._order.__getitem__)
        progress.update(len(pictures) - len(missing))
        self._tidy(held)
        for start in range(0, len(missing), SHARD):
            part = missing[start : start + SHARD]
            features: list[PictureFeatures] = []
            for first in range(0, len(part), BATCH):
                batch = part[first : first + BATCH]
                features += self.backbone.embed_pictures(batch)
                progress.update(len(batch))
            self._write(next(iter(held)), part, features)
        self._scan()
        return len(missing)

    def _write(self, bucket: str, pictures: list[Path], features: list[PictureFeatures]) -> None:
        tensors = {
            "tokens": torch.cat([picture.tokens for picture in features]).cpu(),
            "counts": torch.tensor([len(picture.tokens) for picture in features]),
        }
        if features[0].deep:
            layers = zip(*(picture.deep for picture in features), strict=True)
            tensors["deep"] = torch.stack([torch.cat(layer) for layer in layers]).cpu()
        if features[0].grid is not None:
            tensors["grids"] = torch.stack([picture.grid for picture in features]).cpu()
        digests = [self._hashes[picture] for picture in pictures]
        draft = self.folder / f".{bucket}.{uuid.uuid4().hex}.draft"
        try:
            save_file(tensors, draft, metadata={"pictures": json.dumps(digests)})
            os.replace(draft, self.folder / f"{uuid.uuid4().hex}.safetensors")
        except SafetensorError as error:  # its word for a full disk
            raise OSError(str(error)) from error
        finally:
            draft.unlink(missing_ok=True)

    def _tidy(self, buckets: Iterable[str]) -> None:
        """Removes what a killed process left of the buckets, whose locks are ours, and says what the folder's name stands for."""
        for bucket in buckets:
            for draft in self.folder.glob(f".{bucket}.*.draft"):
                draft.unlink()
        if not (about := self.folder / "about.json").is_file():
            draft = self.folder / f".{bucket}.about.draft"
            draft.write_text(json.dumps(self._about, indent=2), encoding="utf-8")
            os.replace(draft, about)


class _Shard:
    """One file, memory-mapped: rows are read when asked for."""

    def __init__(self, file: Path):
        self._open = safe_open(file, framework="pt")
        self.digests: list[str] = json.loads(self._open.metadata()["pictures"])
        names = set(self._open.keys())
        self._ends = self._open.get_tensor("counts").cumsum(0).tolist()
        self._tokens = self._open.get_slice("tokens")
        self._deep = self._open.get_slice("deep") if "deep" in names else None
        self._grids = self._open.get_tensor("grids") if "grids" in names else None
        if not len(self.digests) == len(self._ends) or self._tokens.get_shape()[0] != self._ends[-1]:
            raise ValueError("its parts do not fit each other")

    def read(self, row: int) -> PictureFeatures:
        start, end = (self._ends[row - 1] if row else 0), self._ends[row]
        deep: tuple[Tensor, ...] = () if self._deep is None else tuple(self._deep[:, start:end])
        return PictureFeatures(self._tokens[start:end], deep, None if self._grids is None else self._grids[row])


def _about(backbone: Backbone) -> dict:
    """Everything that decides on a picture's tokens, besides the picture."""
    config = backbone.model.config.to_dict()
    own = {
        name: config.get(name) for name in sorted(config) if name not in ("text_config", "_name_or_path", "transformers_version")
    }
    return {
        "format": FORMAT,
        "weights": _tower_hash(backbone),
        "config": json.loads(json.dumps(own, default=str)),
        "processor": json.loads(json.dumps(backbone.processor.to_dict(), default=str, sort_keys=True)),
        "dtype": str(backbone.model.dtype),
        "versions": {"transformers": transformers.__version__, "torch": torch.__version__, "pillow": PIL.__version__},
    }


def _tower_hash(backbone: Backbone) -> str:
    """SHA-256 over names and bytes of all weights outside the language model."""
    digest = hashlib.sha256()
    for name, tensor in sorted(backbone.model.state_dict().items()):
        if not name.startswith(backbone.decoder_name + "."):
            digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
            digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def _file_hash(picture: Path) -> str:
    try:
        return hashlib.sha256(picture.read_bytes()).hexdigest()
    except OSError as error:
        raise BackboneError(f"picture {picture} cannot be read: {error}") from error
