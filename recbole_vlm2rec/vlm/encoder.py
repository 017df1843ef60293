"""VLMEncoder: sequences of titles and pictures in, one vector a sequence out (METHOD section 2, eq. 1).

Imports torch and the rest of this room only. Prompts are laid end to end, or grouped by length; each distinct one runs once, and
a picture's visual tokens are computed once as long as the vision tower is frozen, and kept on disk if asked. All of it is exact.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from itertools import chain, pairwise
from logging import getLogger
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor, nn

from recbole_vlm2rec.vlm.backbone import Backbone, Lora, PictureFeatures, load_pretrained
from recbole_vlm2rec.vlm.features import FeatureStore
from recbole_vlm2rec.vlm.prompts import Picture, Prompt, image_prompt, interleaved_prompt, text_prompt
from recbole_vlm2rec.vlm.selftest import self_test

PICTURE_BATCH = 64
CACHED = 1 << 13  # texts whose tokens are remembered


class VLMEncoder(nn.Module):
    """Encodes sequences with one vision-language model; the last real token's last hidden state is the embedding.

    Args:
        backbone: the model behind its seam.
        token_budget: tokens (padding included) of one forward at most (a single longer prompt still runs, alone). Speed and
            memory only: the vectors do not depend on it.
        max_title_tokens: longer titles are cut after so many tokens; None leaves them whole.
        pad: whether prompts of unlike length share a padded forward; `selftest` says whether the backbone bears it. Where the
            backbone packs (`Backbone.pack`), there is no padding, and this says nothing.
        share: whether a prompt is read out of one that begins with it; the same.
    """

    def __init__(
        self,
        backbone: Backbone,
        token_budget: int = 8192,
        max_title_tokens: int | None = None,
        *,
        pad: bool = True,
        share: bool = True,
    ):
        super().__init__()
        self.backbone, self.pad, self.share = backbone, pad, share
        self.token_budget, self.max_title_tokens = token_budget, max_title_tokens
        self.features: dict[Path, PictureFeatures] = {}
        self.store: FeatureStore | None = None
        self._tokens = lru_cache(maxsize=CACHED)(backbone.tokenize)
        self._clip_title = lru_cache(maxsize=CACHED)(self._clip)

    @classmethod
    def from_pretrained(
        cls,
        path_or_name: str,
        *,
        max_visual_tokens: int = 64,
        lora: Lora | None = None,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        token_budget: int = 8192,
        max_title_tokens: int | None = None,
    ) -> VLMEncoder:
        """Loads `tiny`, a local folder or a hub name, and tests it. Raises BackboneError saying which, why, and what to do."""
        model, tokenizer, processor = load_pretrained(path_or_name, dtype)
        backbone = Backbone(model.to(device), tokenizer, processor, max_visual_tokens, lora).to(device)
        paths = self_test(backbone)
        backbone.pack(paths.pack)
        return cls(backbone, token_budget, max_title_tokens, pad=paths.pad, share=paths.share)

    def keep_pictures(self, pictures: Iterable[Path], folder: str | Path, show_progress: bool = False) -> None:
        """Computes the visual tokens of these pictures unless `folder` holds them (`features`), and reads them from there.

        Does nothing, and says so, where training reaches the vision tower. Raises BackboneError for a picture that cannot be
        read and a folder that cannot be written.
        """
        self.open_store(folder)
        if self.store is not None:
            self.store.compute(pictures, show_progress)

    def open_store(self, folder: str | Path) -> None:
        """From here on `store` is the folder's (`features.FeatureStore`); stays None where training reaches the vision tower."""
        if not self.backbone.frozen_tower:
            getLogger(__name__).info("visual tokens are not kept: lora_scope all trains the vision tower, so they change")
            return
        self.store = FeatureStore(folder, self.backbone)

    @property
    def hidden_size(self) -> int:
        return self.backbone.hidden_size

    @property
    def model(self) -> nn.Module:
        """The Hugging Face model."""
        return self.backbone.model

    @property
    def peft(self) -> nn.Module | None:
        """The model with its LoRA adapters; None without."""
        return self.backbone.peft

    @property
    def reads_pictures(self) -> bool:
        return self.backbone.processor is not None

    def encode_text(self, sequences: Sequence[Sequence[str]]) -> Tensor:
        """[B, d] from B sequences of titles, oldest first."""
        return self.encode([text_prompt([self._clip_title(title) for title in titles]) for titles in sequences])

    def encode_images(self, sequences: Sequence[Sequence[Path | Image.Image]]) -> Tensor:
        """[B, d] from B sequences of pictures, oldest first."""
        return self.encode([image_prompt(pictures) for pictures in sequences])

    def encode_interleaved(self, sequences: Sequence[Sequence[tuple[str, Path | Image.Image]]]) -> Tensor:
        """[B, d] from B sequences of (title, picture), oldest first: internal fusion."""
        return self.encode(
            [interleaved_prompt([(self._clip_title(title), image) for title, image in items]) for items in sequences]
        )

    def encode(self, prompts: Sequence[Prompt]) -> Tensor:
        """[B, d]: hidden state of each prompt's last real token, in the model's dtype, in the order given.

        A prompt that another one begins with (two prefixes of a user's history, say) is read out of the other's forward: what
        follows a token does not change its hidden state. While dropout is drawn it would then be shared too, so each distinct
        prompt has a forward of its own.
        """
        distinct = {prompt: row for row, prompt in enumerate(dict.fromkeys(prompts))}
        features = self._picture_features(distinct)
        ids = [self._prompt_ids(prompt, features) for prompt in distinct]
        keys = list(distinct)
        hosts = longest_extensions(self._literally(keys)) if self.share and not self.backbone.draws else range(len(ids))
        readers: dict[int, list[int]] = {}
        for row, host in enumerate(hosts):
            readers.setdefault(host, []).append(row)
        forwards = list(readers)
        vectors: list[Tensor] = [None] * len(ids)
        lengths = [len(ids[host]) for host in forwards]
        self.backbone.expect(sum(lengths))
        for group in self._groups(lengths):
            rows = [forwards[place] for place in group]
            pictures = [features[part] for row in rows for part in keys[row] if isinstance(part, Picture)]
            read = [(place, row) for place, host in enumerate(rows) for row in readers[host]]
            ends = [(place, len(ids[row]) - 1) for place, row in read]
            for (_, row), vector in zip(read, self._hidden_at(ends, [ids[row] for row in rows], pictures), strict=True):
                vectors[row] = vector
        return torch.stack([vectors[distinct[prompt]] for prompt in prompts])

    def _groups(self, lengths: Sequence[int]) -> Iterator[list[int]]:
        """Rows that share a forward: as many as the budget takes where they are packed, else of like length."""
        if self.backbone.packs:
            return _packs(lengths, self.token_budget)
        return length_groups(lengths, self.token_budget, waste=0.25 if self.pad else 0.0)

    def _hidden_at(self, places: list[tuple[int, int]], ids: list[list[int]], pictures: Sequence[PictureFeatures]) -> Tensor:
        """[len(places), d]: hidden states at (row, token) of one padded forward over `ids`."""
        lengths = torch.tensor([len(tokens) for tokens in ids])
        padded = torch.zeros(len(ids), int(lengths.max()), dtype=torch.long)
        for row, tokens in enumerate(ids):
            padded[row, : len(tokens)] = torch.tensor(tokens)
        mask = (torch.arange(padded.shape[1]) < lengths[:, None]).long()
        device = self.backbone.device
        hidden = self.backbone.hidden_states(padded.to(device), mask.to(device), pictures)
        rows, ends = torch.tensor(places, device=device).T
        return hidden[rows, ends]

    def _literally(self, prompts: Sequence[Prompt]) -> list[tuple[int, ...]]:
        """Each prompt as the token ids of its text, with a negative number for each picture."""
        numbers: dict[Picture, int] = {}
        parts = (
            [
                [-1 - numbers.setdefault(part, len(numbers))] if isinstance(part, Picture) else self._tokens(part)
                for part in prompt
            ]
            for prompt in prompts
        )
        return [tuple(chain.from_iterable(each)) for each in parts]

    def _prompt_ids(self, prompt: Prompt, features: dict) -> list[int]:
        ids: list[int] = list(self.backbone.start_ids)
        for part in prompt:
            ids += self.backbone.picture_ids(features[part]) if isinstance(part, Picture) else self._tokens(part)
        return ids

    def _picture_features(self, prompts: Iterable[Prompt]) -> dict[Picture, PictureFeatures]:
        """Features of every picture in the prompts. Files are remembered while the tower is frozen; open images are not."""
        wanted = dict.fromkeys(part for prompt in prompts for part in prompt if isinstance(part, Picture))
        found = {picture: known for picture in wanted if (known := self._known(picture)) is not None}
        new = [picture for picture in wanted if picture not in found]
        for start in range(0, len(new), PICTURE_BATCH):
            batch = new[start : start + PICTURE_BATCH]
            for picture, features in zip(batch, self.backbone.embed_pictures([p.source for p in batch]), strict=True):
                found[picture] = features
                if self.backbone.frozen_tower and isinstance(picture.source, Path):
                    self.features[picture.key] = features
        return found

    def _known(self, picture: Picture) -> PictureFeatures | None:
        if self.store is not None and picture.key in self.store:
            return self.store[picture.key]
        return self.features.get(picture.key)

    def _clip(self, title: str) -> str:
        if self.max_title_tokens is None:
            return title
        encoded = self.backbone.tokenizer(title, add_special_tokens=False, split_special_tokens=True, return_offsets_mapping=True)
        if len(encoded["input_ids"]) <= self.max_title_tokens:
            return title
        return title[: encoded["offset_mapping"][self.max_title_tokens - 1][1]]


def longest_extensions(sequences: Sequence[tuple[int, ...]]) -> list[int]:
    """For each sequence the place of a longest one that begins with it; its own where there is none."""
    order = sorted(range(len(sequences)), key=sequences.__getitem__)
    hosts = list(range(len(sequences)))
    # Sorted, a sequence is followed at once by one that begins with it, if any does.
    for place, following in reversed(list(pairwise(order))):
        if sequences[following][: len(sequences[place])] == sequences[place]:
            hosts[place] = hosts[following]
    return hosts


def _packs(lengths: Sequence[int], token_budget: int) -> Iterator[list[int]]:
    """Rows in their order, in groups of at most `token_budget` tokens."""
    group: list[int] = []
    for row, length in enumerate(lengths):
        if group and sum(lengths[place] for place in group) + length > token_budget:
            yield group
            group = []
        group.append(row)
    if group:
        yield group


def length_groups(lengths: Sequence[int], token_budget: int, waste: float = 0.25) -> Iterator[list[int]]:
    """Rows in groups of like length: at most `token_budget` padded tokens, none shorter than (1 - waste) of the longest."""
    group: list[int] = []
    for row in sorted(range(len(lengths)), key=lambda row: -lengths[row]):
        longest = lengths[group[0]] if group else 0
        if group and ((len(group) + 1) * longest > token_budget or lengths[row] < (1 - waste) * longest):
            yield group
            group = []
        group.append(row)
    if group:
        yield group
