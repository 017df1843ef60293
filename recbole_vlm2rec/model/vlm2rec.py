"""VLM2Rec: a vision-language model ranks items by the cosine of sequence and item embeddings (task 1).

Imports recbole (the abstract model), vlm, objectives and analysis. One encoder reads histories and items alike.
"""

from __future__ import annotations

import time
from dataclasses import asdict
from pathlib import Path

import torch
import torch.nn.functional as F
from recbole.model.abstract_recommender import SequentialRecommender
from recbole.utils import InputType
from torch import Tensor, nn
from tqdm import tqdm

from recbole_vlm2rec import objectives
from recbole_vlm2rec.analysis.gradients import alignment, dropout_off
from recbole_vlm2rec.vlm.backbone import Lora, native_bfloat16
from recbole_vlm2rec.vlm.checkpoint import items_of, load_adapter, load_penalty, read_description
from recbole_vlm2rec.vlm.encoder import VLMEncoder
from recbole_vlm2rec.vlm.fusion import Vectors
from recbole_vlm2rec.vlm.pooled import PooledEncoder

OBJECTIVE_TERMS = ("wpcl", "sft", "crtr")
ITEM_BATCH = 256


class VLM2Rec(SequentialRecommender):
    """VLM2Rec (arXiv 2603.17450), its vanilla and SFT variants and its ablations, by configuration.

    `objective` is a sum of terms: `wpcl+crtr` (eq. 14), `sft` (eq. 3), `none` (the pretrained model as it is), and the
    ablations of table 5: `crtr` (without WPCL), `sft+crtr` (without w_pen), `wpcl` (without CRTR), and
    `stop_gradient: False`. `fusion` is `external` (z = z_T + z_V, eq. 2) or `internal` (one interleaved prompt).
    `modalities` is `text+image`, `text` or `image`. Raises ValueError for combinations that have no meaning.
    """

    input_type = InputType.POINTWISE
    trainer = "VLM2RecTrainer"
    reads_checkpoints = True

    def __init__(self, config, dataset):
        super().__init__(config, dataset)
        self.terms = _objective_terms(config["objective"])
        self.tau_wpcl, self.tau_crtr = config["tau_wpcl"], config["tau_crtr"]
        self.crtr_weight = config["crtr_weight"]
        self.penalty_options = {"stop_gradient": config["stop_gradient"], "centre": config["centre_penalty"]}
        self.reduction = config["loss_reduction"]
        self.show_progress = config["show_progress"]

        tokens = dataset.id2token(dataset.iid_field, range(1, self.n_items))
        source = config["checkpoint"]
        self.lora = _lora(config) if self.terms or (source and read_description(source)["encoder"]["lora"]) else None
        encoder = self.load_encoder(config)
        # Row 0 is RecBole's padding item; no history and no candidate list ever holds it.
        catalog = dataset.title_catalog if config["modalities"] == "text" else dataset.catalog
        titles = [None, *map(catalog.title, tokens)]
        pictures = [None, *map(catalog.image, tokens)]
        self.items = items_of(encoder, config, titles, pictures)
        if not self.items.apart and {"wpcl", "crtr"} & set(self.terms):
            raise ValueError(
                f"objective {config['objective']} compares text with image embeddings: it needs fusion: external and modalities: "
                f"text+image. With fusion {config['fusion']} and modalities {config['modalities']} use objective sft or none"
            )
        if (cache := config["feature_cache"]) and "image" in config["modalities"]:
            folder = Path(config["checkpoint_dir"]) / "features" if cache == "auto" else cache
            encoder.keep_pictures(pictures[1:], folder, self.show_progress)
        if config["gradient_alignment_every"] is not None and not self.items.apart:
            raise ValueError(
                f"gradient_alignment_every compares text with image gradients: it needs fusion: external and modalities: "
                f"text+image, not fusion {config['fusion']} and modalities {config['modalities']}"
            )
        self.gradcache_size = config["gradcache_size"]
        if self.gradcache_size is not None and self.gradcache_size < 1:
            raise ValueError(f"gradcache_size is {self.gradcache_size}: give a number of sequences, or null")
        if (checkpointing := config["gradient_checkpointing"]) not in (True, False, "auto"):
            raise ValueError(f"gradient_checkpointing is {checkpointing!r}: use auto, True or False")
        if self.terms and checkpointing and not self.gradcache_size:  # each costs a forward, and either is enough
            encoder.backbone.checkpoint_activations(as_needed=checkpointing == "auto")
        # In bf16 these two would never move: they stay in fp32 whatever the backbone's type (METHOD section 3).
        self.alpha = nn.Parameter(torch.tensor(float(config["alpha_init"])), requires_grad="wpcl" in self.terms)
        self.beta = nn.Parameter(torch.tensor(float(config["beta_init"])), requires_grad="wpcl" in self.terms)
        if source:
            if self.terms:
                raise ValueError(f"checkpoint is used as it is: it needs objective none, not {config['objective']}")
            load_adapter(source, encoder)
            for name, value in load_penalty(source).items():
                getattr(self, name).data.copy_(value)
        # fused, or for the modality dropout test (figure 1a) text or image; items are always fused.
        self.asking = "fused"
        self.statistics: dict[str, Tensor] = {}
        self.embedding_seconds: float | None = None  # what all items took when they were encoded last
        self.forget()

    def load_encoder(self, config) -> VLMEncoder | PooledEncoder:
        """The pretrained encoder on the model's device, with fresh LoRA weights if there shall be any."""
        return VLMEncoder.from_pretrained(
            config["backbone"],
            max_visual_tokens=config["max_visual_tokens"],
            lora=self.lora,
            dtype=arithmetic(config["dtype"], self.device),
            device=self.device,
            token_budget=config["token_budget"],
            max_title_tokens=config["max_title_tokens"],
        )

    def encoder_settings(self, config) -> dict:
        """What `vlm.checkpoint` builds the encoder from again; part of the checkpoint."""
        names = ("backbone", "max_visual_tokens", "max_title_tokens", "fusion", "modalities")
        return {name: config[name] for name in names} | {"lora": asdict(self.lora) if self.lora else None}

    def calculate_loss(self, interaction) -> Tensor:
        """The configured objective over a batch of (history, target) rows; scalar."""
        z, e, masks = self.encode_batch(interaction)
        loss = z.fused.new_zeros(())
        if "wpcl" in self.terms:
            loss = loss + objectives.wpcl(
                z.text, z.image, e.text, e.image, self.alpha, self.beta, self.tau_wpcl,
                reduction=self.reduction, **self.penalty_options, **masks,
            )  # fmt: skip
        if "sft" in self.terms:
            loss = loss + objectives.info_nce(z.fused, e.fused, self.tau_wpcl, reduction=self.reduction, **masks)
        if "crtr" in self.terms:
            crtr = objectives.crtr(z.text, z.image, e.text, e.image, self.tau_crtr, reduction=self.reduction)
            loss = loss + self.crtr_weight * crtr
        if self.items.apart:
            self.statistics = objectives.penalty_statistics(
                z.text, z.image, e.text, e.image, self.alpha, self.beta, self.tau_wpcl, self.tau_crtr,
                centre=self.penalty_options["centre"], **masks,
            )  # fmt: skip
        return loss

    def encode_batch(self, interaction) -> tuple[Vectors, Vectors, dict[str, Tensor]]:
        """Vectors of the rows' histories and of their targets, [B, d] each, and the ids that mask negatives."""
        histories, targets = self.histories(interaction), interaction[self.POS_ITEM_ID]
        # One call, so that histories and items of like length share forwards and each distinct prompt runs once.
        sequences = histories + [[item] for item in targets.tolist()]
        both = self.items.encode_cached(sequences, self.gradcache_size) if self.gradcache_size else self.items.encode(sequences)
        masks = {"item_ids": targets, "user_ids": interaction[self.USER_ID]}
        return both.rows(slice(len(histories))), both.rows(slice(len(histories), None)), masks

    def gradient_alignment(self, interaction) -> dict[str, float]:
        """Cosine of the text-only and of the image-only InfoNCE gradient with the fused one (figure 1b), dropout off."""
        weights = [parameter for parameter in self.items.parameters() if parameter.requires_grad]
        with dropout_off(self):
            z, e, masks = self.encode_batch(interaction)
            sides = ([vectors.fused, vectors.text, vectors.image] for vectors in (z, e))
            return alignment(*sides, weights, self.tau_wpcl, **masks)

    def histories(self, interaction) -> list[list[int]]:
        """The rows' histories as lists of item ids, oldest first, padding removed."""
        lengths = interaction[self.ITEM_SEQ_LEN].tolist()
        return [row[:length] for row, length in zip(interaction[self.ITEM_SEQ].tolist(), lengths, strict=True)]

    def train(self, mode: bool = True) -> VLM2Rec:
        if mode or self.training:
            self.forget()
        return super().train(mode)

    def forget(self) -> None:
        """Drops the vectors kept during an evaluation; called whenever the weights may change."""
        self._item_vectors: Vectors | None = None
        self._query_vectors: dict[tuple[int, ...], Vectors] = {}

    @torch.no_grad()
    def item_vectors(self) -> Vectors:
        """Vectors of all items, [n_items, d], row 0 (padding) zero; computed once an evaluation."""
        if self._item_vectors is None:
            started = time.perf_counter()
            starts = tqdm(
                range(1, self.n_items, ITEM_BATCH), desc="Embed items", unit=f"x{ITEM_BATCH}",
                disable=not self.show_progress, leave=False,
            )  # fmt: skip
            parts = [
                self.items.encode([[item] for item in range(start, min(start + ITEM_BATCH, self.n_items))]) for start in starts
            ]
            self._item_vectors = Vectors.of(lambda *vectors: F.pad(torch.cat(vectors), (0, 0, 1, 0)), *parts)
            if self.device.type == "cuda":
                torch.cuda.synchronize(self.device)
            self.embedding_seconds = round(time.perf_counter() - started, 3)
        return self._item_vectors

    @torch.no_grad()
    def query_vectors(self, interaction) -> Vectors:
        """Vectors of the rows' histories, [B, d]; each distinct history is encoded once an evaluation."""
        keys = [tuple(history) for history in self.histories(interaction)]
        new = list(dict.fromkeys(key for key in keys if key not in self._query_vectors))
        if new:
            encoded = self.items.encode(new)
            self._query_vectors.update({key: encoded.rows(row) for row, key in enumerate(new)})
        return Vectors.of(lambda *vectors: torch.stack(vectors), *(self._query_vectors[key] for key in keys))

    def full_sort_predict(self, interaction) -> Tensor:
        """Cosine of each row's history with every item, [B, n_items]; `asking` says which vector of the history asks."""
        queries = getattr(self.query_vectors(interaction), self.asking)
        return F.normalize(queries, dim=-1) @ F.normalize(self.item_vectors().fused, dim=-1).T

    def predict(self, interaction) -> Tensor:
        """Cosine of each row's history with the row's item, [B]."""
        scores = self.full_sort_predict(interaction)
        return scores.gather(1, interaction[self.ITEM_ID].unsqueeze(1)).squeeze(1)


def _objective_terms(objective: str) -> tuple[str, ...]:
    if objective in (None, "none"):
        return ()
    terms = tuple(objective.split("+"))
    if unknown := [term for term in terms if term not in OBJECTIVE_TERMS]:
        raise ValueError(
            f"objective {objective!r}: unknown term {unknown[0]!r}; use none, or a sum of {', '.join(OBJECTIVE_TERMS)}"
        )
    if {"wpcl", "sft"} <= set(terms):
        raise ValueError(f"objective {objective!r}: wpcl with w = 1 is sft; give one of them")
    return terms


def _lora(config) -> Lora:
    return Lora(
        config["lora_rank"], config["lora_alpha"], config["lora_dropout"], tuple(config["lora_targets"]), config["lora_scope"]
    )


def arithmetic(name: str, device: torch.device) -> torch.dtype:
    """The type that the key `dtype` names. Raises ValueError for another."""
    if name == "auto":
        return torch.bfloat16 if native_bfloat16(device) else torch.float32
    if name not in ("float32", "bfloat16"):
        raise ValueError(f"dtype is {name!r}: use auto, float32 or bfloat16")
    return getattr(torch, name)
