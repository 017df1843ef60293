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

        A second process waits for the first and then finds its work done; a killed one is gone on from at its last shard
        (512 pictures). Raises BackboneError for a picture that cannot be read and a folder that cannot be written.
        """
        pictures = list(pictures)
        for picture in pictures:
            if picture not in self._hashes:
                self._hashes[picture] = _file_hash(picture)
        self._scan()
        if not self._missing(pictures):
            return 0
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with self._locked():
                self._scan()
                missing = self._missing(pictures)
                self._write_about()
                self._compute(missing, show_progress)
        except OSError as error:
            raise BackboneError(
                f"visual tokens cannot be kept in {self.folder}: {error}. Give another place with feature_cache, or null to "
                f"compute them anew in each run"
            ) from error
        return len(missing)

    def _locked(self) -> FileLock:
        lock = FileLock(self.folder / ".lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            getLogger(__name__).info(f"another process computes visual tokens in {self.folder}; waiting for it")
            lock.acquire()
        return lock

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
            except (SafetensorError, KeyError, ValueError, TypeError) as error:
                getLogger(__name__).warning(f"{file} is damaged ({error}); it is removed and computed again")
                file.unlink(missing_ok=True)
                continue
            self._shards[file.name] = shard
            for row, digest in enumerate(shard.digests):
                self._places.setdefault(digest, (shard, row))

    def _compute(self, missing: list[Path], show_progress: bool) -> None:
        with tqdm(total=len(missing), desc="Visual tokens", unit="picture", disable=not show_progress, leave=False) as progress:
            for start in range(0, len(missing), SHARD):
                part = missing[start : start + SHARD]
                features: list[PictureFeatures] = []
                for first in range(0, len(part), BATCH):
                    batch = part[first : first + BATCH]
                    features += self.backbone.embed_pictures(batch)
                    progress.update(len(batch))
                self._write(part, features)
        self._scan()

    def _write(self, pictures: list[Path], features: list[PictureFeatures]) -> None:
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
        draft = self.folder / f".{uuid.uuid4().hex}.draft"
        try:
            save_file(tensors, draft, metadata={"pictures": json.dumps(digests)})
            os.replace(draft, self.folder / f"{uuid.uuid4().hex}.safetensors")
        except SafetensorError as error:  # its word for a full disk
            raise OSError(str(error)) from error
        finally:
            draft.unlink(missing_ok=True)

    def _write_about(self) -> None:
        for draft in self.folder.glob(".*.draft"):
            draft.unlink()  # of a process that was killed; nobody else is at work while the lock is ours
        (self.folder / "about.json").write_text(json.dumps(self._about, indent=2), encoding="utf-8")


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
