"""Trains VLM2Rec: AdamW groups, accumulation, adapter-only checkpoints, resume, and what explains the training.

Imports recbole (Trainer), vlm.checkpoint, evaluation and analysis. Every other model keeps RecBole's own trainer, wrapped by
evaluation.ProtocolMixin.
"""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import torch
from recbole.trainer import Trainer
from safetensors.torch import load_file
from torch.nn.utils import clip_grad_norm_
from tqdm import tqdm

from recbole_vlm2rec.analysis.geometry import geometry
from recbole_vlm2rec.data.candidates import Candidates, draw_candidates
from recbole_vlm2rec.data.loader import UserBatches
from recbole_vlm2rec.evaluation import ProtocolMixin
from recbole_vlm2rec.report.runs import RUN_TIME
from recbole_vlm2rec.vlm.checkpoint import STATE, load_adapter, load_penalty, read_description, save_checkpoint

# Negatives a user for A_neg where the run ranks all items and has no lists of candidates.
GEOMETRY_NEGATIVES = 10

# What may change when a run is resumed: where it reads, writes and computes, and how long it goes on.
FREE_KEYS = RUN_TIME - {"metrics", "topk"} | {"epochs", "gradient_alignment_every"}


class VLM2RecTrainer(ProtocolMixin, Trainer):
    """RecBole's training loop around a VLM2Rec model.

    The run folder holds `checkpoint/` (the best epoch) and `last/` (the latest one, with the optimizer's state): each a
    standard PEFT adapter folder with our scalars and state beside it, never the backbone's weights.
    """

    def __init__(self, config, model):
        super().__init__(config, model)
        self.run_folder = Path(config["checkpoint_dir"])
        self.saved_model_file = str(self.run_folder / "checkpoint")
        self.accumulation_steps = config["accumulation_steps"]
        self.schedule = None
        self.history: list[dict] = []
        self.alignment_every = config["gradient_alignment_every"]
        if self.alignment_every is not None and self.alignment_every < 1:
            raise ValueError(f"gradient_alignment_every is {self.alignment_every}: give a number of batches, or null")
        self.alignments: list[dict] = []
        self.report: dict[str, dict] = {}
        self._loader_generator = None

    def _build_optimizer(self, **kwargs):
        """AdamW over LoRA weights and, apart, alpha and beta: their own rate and no decay (METHOD section 3)."""
        penalty = [self.model.alpha, self.model.beta]
        adapters = [p for p in self.model.items.parameters() if p.requires_grad]
        groups = [
            {"params": adapters, "lr": self.config["learning_rate"], "weight_decay": self.config["weight_decay"]},
            {"params": penalty, "lr": self.config["penalty_learning_rate"], "weight_decay": 0.0},
        ]
        return torch.optim.AdamW(groups)

    def fit(self, train_data, valid_data=None, verbose=True, saved=True, show_progress=False, callback_fn=None):
        """RecBole's fit; with objective `none` there is nothing to train and the checkpoint is the pretrained model."""
        if not self.model.terms:
            self.epochs = 0
        if self.config["train_examples"] == "all":
            train_data = UserBatches(train_data)
        updates = self.epochs * -(-len(train_data) // self.accumulation_steps)
        warmup = max(1, round(self.config["warmup_ratio"] * updates))
        self.schedule = torch.optim.lr_scheduler.LambdaLR(self.optimizer, lambda step: min(1.0, (step + 1) / warmup))
        self._loader_generator = train_data.generator
        if self.config["resume"]:
            self.resume_checkpoint(self.config["resume"])

        def after_epoch(epoch: int, score: float) -> None:
            self._save(self.run_folder / "last", epoch, self._training_state())
            if callback_fn:
                callback_fn(epoch, score)

        try:
            return super().fit(train_data, valid_data, verbose, saved, show_progress, after_epoch)
        except torch.OutOfMemoryError as error:
            raise RuntimeError(
                f"the GPU's memory is full ({str(error).splitlines()[0]}). Less of it, with the same result: --gradcache_size=8, "
                f"--gradient_checkpointing=True, --token_budget={self.config['token_budget'] // 2}; with another one: fewer "
                f"--max_visual_tokens, or a smaller --train_batch_size with --accumulation_steps"
            ) from error
        except KeyboardInterrupt:
            if (self.run_folder / "last").is_dir():
                self.logger.info(f"Interrupted. The same command with --resume={self.run_folder} goes on after the last epoch.")
            raise

    def _train_epoch(self, train_data, epoch_idx, loss_func=None, show_progress=False):
        """One pass over the training rows; returns the mean loss of a batch."""
        self.model.train()
        started, users, losses, statistics = time.perf_counter(), 0, [], []
        batches = tqdm(train_data, desc=f"Train {epoch_idx}", unit="batch", disable=not show_progress, leave=False)
        steps, whole = self.accumulation_steps, len(train_data) // self.accumulation_steps * self.accumulation_steps
        for batch, interaction in enumerate(batches, start=1):
            self._measure_alignment(epoch_idx, epoch_idx * len(train_data) + batch - 1, interaction)
            loss = self.model.calculate_loss(interaction.to(self.device))
            self._check_nan(loss)
            # The last group of an epoch may be smaller; it is averaged over its own size.
            (loss / (steps if batch <= whole else len(train_data) - whole)).backward()
            if batch % steps == 0 or batch == len(train_data):
                self._update()
            users += len(interaction[self.model.USER_ID].unique())
            losses.append(loss.item())
            statistics.append(self.model.statistics)
            batches.set_postfix(loss=f"{losses[-1]:.4f}", users_s=f"{users / (time.perf_counter() - started):.1f}")
        self._record(epoch_idx, losses, statistics, users / (time.perf_counter() - started))
        return self.history[-1]["loss"]

    def _measure_alignment(self, epoch: int, step: int, interaction) -> None:
        """Figure 1b, before the batch is trained on; `step` counts the batches before it. Training goes on as without it."""
        if self.alignment_every is None or step % self.alignment_every:
            return
        with self.meter("gradient_alignment"):
            found = self.model.gradient_alignment(interaction.to(self.device))
        self.alignments.append({"step": step, "epoch": epoch, **found})
        for side, value in found.items():
            self.tensorboard.add_scalar(f"Training/gradient_alignment_{side}", value, step)

    def _update(self) -> None:
        if self.clip_grad_norm:
            clip_grad_norm_((p for group in self.optimizer.param_groups for p in group["params"]), **self.clip_grad_norm)
        self.optimizer.step()
        self.schedule.step()
        self.optimizer.zero_grad()
        with torch.no_grad():
            # A negative beta would make w negative for large gaps, and its logarithm NaN.
            self.model.beta.clamp_(min=0)

    def _record(self, epoch: int, losses: list[float], statistics: list[dict], rate: float) -> None:
        """Means over the epoch's batches, for result.json and TensorBoard."""
        entry = {"epoch": epoch, "loss": sum(losses) / len(losses), "users_per_second": rate}
        entry |= {"alpha": self.model.alpha.item(), "beta": self.model.beta.item()}
        for name in statistics[0]:
            entry[name] = sum(float(step[name]) for step in statistics) / len(statistics)
            self.tensorboard.add_scalar(f"Training/{name}", entry[name], epoch)
        for name in ("alpha", "beta"):
            self.tensorboard.add_scalar(f"Training/{name}", entry[name], epoch)
        self.history.append(entry)

    def _valid_epoch(self, valid_data, show_progress=False):
        score, result = super()._valid_epoch(valid_data, show_progress)
        self.history[-1]["valid"] = dict(result)
        return score, result

    @torch.no_grad()
    def evaluate(self, eval_data, load_best_model=True, model_file=None, show_progress=False):
        """The protocol's evaluation; the test also asks with the text and with the image side alone, and measures geometry."""
        if eval_data._dataset.phase != "test" or not self.model.items.apart:
            return super().evaluate(eval_data, load_best_model, model_file, show_progress)
        if load_best_model:
            self._load_best(model_file)
        # Modality dropout (figure 1a). Histories and items are encoded once for all three; the fused query comes last and stays.
        self.report["modality_dropout"] = {}
        for name, self.model.asking in (("t2f", "text"), ("v2f", "image"), ("f2f", "fused")):
            result = super().evaluate(eval_data, load_best_model=False, show_progress=show_progress)
            self.report["modality_dropout"][name] = dict(result)
            self.ranks[f"test_{name}"], self.top_items[f"test_{name}"] = self.ranks["test"], self.top_items["test"]
        try:
            self.report["geometry"] = self._geometry(eval_data)
        except ValueError as error:
            # A data set too small for it (fewer than 2 users, or than 10 untouched items) must not cost the run its result.
            self.logger.warning(f"No geometry: {error}")
            self.report["geometry"] = None
        return result

    def _geometry(self, eval_data) -> dict[str, dict[str, float]]:
        """Table 1's measures of the fused, text and image vectors, over the test users."""
        dataset = eval_data._dataset
        rows = np.argsort(dataset.inter_feat[dataset.uid_field].numpy())  # in the order of the candidates
        lists = dataset.candidates["test"]
        if not isinstance(lists, Candidates):
            seed = self.config["seed"] if self.config["candidate_seed"] is None else self.config["candidate_seed"]
            lists = draw_candidates(dataset.histories, "test", GEOMETRY_NEGATIVES, seed)
        queries = self.model.query_vectors(eval_data.transform(dataset, dataset[rows]))
        items, targets = self.model.item_vectors(), lists.targets.astype(np.int64)
        others = np.arange(lists.items.shape[1]) != lists.position[:, None]
        negatives = lists.items[others].reshape(len(targets), -1).astype(np.int64)
        kinds = ("fused", "text", "image")
        return {kind: geometry(getattr(queries, kind), getattr(items, kind), targets, negatives) for kind in kinds}

    def diagnostics(self) -> dict:
        """Means of every epoch (`training`), how long all items took at last, gradient alignment, modality dropout, geometry."""
        alignment = {} if self.alignment_every is None else {"gradient_alignment": self.alignments}
        return {"training": self.history, "embedding_seconds": self.model.embedding_seconds, **alignment, **self.report}

    def _save_checkpoint(self, epoch, verbose=True, **kwargs):
        if epoch < 0 and self.start_epoch > 0:
            return  # RecBole's save before nothing: a resumed run without epochs left keeps its best checkpoint
        self._save(Path(self.saved_model_file), epoch)
        if verbose:
            self.logger.info(f"Saved the adapter of epoch {epoch}: {self.saved_model_file}")

    def _save(self, folder: Path, epoch: int, state: dict[str, torch.Tensor] | None = None) -> None:
        config, model = self.config, self.model
        description = {
            "model": config["model"],
            "dataset": config["dataset"],
            "data_path": str(config["data_path"]),
            "encoder": model.encoder_settings(config),
            "progress": {
                "epoch": epoch,
                "cur_step": self.cur_step,
                "best_valid_score": self.best_valid_score if self.best_valid_result else None,
                "best_valid_result": self.best_valid_result,
                "best_epoch": self.best_epoch,
                "best_metrics": self._best[1] if self._best else None,
                "history": self.history,
                "alignments": self.alignments,
                "updates": self.schedule.last_epoch,
            },
            "config": config.as_dict(),
        }
        save_checkpoint(folder, model.items.encoder, {"alpha": model.alpha, "beta": model.beta}, description, state)

    def _training_state(self) -> dict[str, torch.Tensor]:
        """The optimizer's moments and every generator that the next epoch draws from."""
        state = {"rng.torch": torch.get_rng_state(), "rng.loader": self._loader_generator.get_state()}
        if torch.cuda.is_available():
            state["rng.cuda"] = torch.cuda.get_rng_state()
        if self._best:
            state["best.ranks"] = torch.from_numpy(self._best[0])
        for parameter, values in self.optimizer.state_dict()["state"].items():
            state |= {f"optimizer.{parameter}.{name}": value for name, value in values.items()}
        return state

    def _load_best(self, model_file=None) -> None:
        self._load_weights(Path(model_file or self.saved_model_file))

    def _load_weights(self, folder: Path) -> None:
        load_adapter(folder, self.model.items.encoder)
        penalty = load_penalty(folder)
        with torch.no_grad():
            self.model.alpha.copy_(penalty["alpha"])
            self.model.beta.copy_(penalty["beta"])
        self.model.forget()

    def resume_checkpoint(self, resume_file):
        """Goes on after the last finished epoch of the run folder `resume_file`, as if it had never been interrupted."""
        folder = Path(resume_file) / "last"
        if not (folder / STATE).is_file():
            raise ValueError(
                f"{resume_file}: there is nothing to resume, it has no {folder.name}/{STATE} (written after every validation)"
            )
        description, state = read_description(folder), load_file(folder / STATE)
        progress, then, now = description["progress"], description["config"], self.config.as_dict()
        if changed := sorted(key for key in then.keys() | now.keys() if then.get(key) != now.get(key) and key not in FREE_KEYS):
            key = changed[0]
            raise ValueError(
                f"{resume_file} was started with other settings ({', '.join(changed)}): {key} was {then.get(key)!r} and is "
                f"{now.get(key)!r}; give the same command again, with --resume added"
            )
        self._load_weights(folder)
        self.start_epoch, self.cur_step = progress["epoch"] + 1, progress["cur_step"]
        self.best_valid_score, self.best_valid_result = progress["best_valid_score"], progress["best_valid_result"]
        self.best_epoch, self.history = progress["best_epoch"], progress["history"]
        self.alignments = progress.get("alignments", [])  # a run of an earlier version has none
        if "best.ranks" in state:
            self._best = state["best.ranks"].numpy(), progress["best_metrics"]
        self.train_loss_dict = {entry["epoch"]: entry["loss"] for entry in self.history}
        moments: dict[int, dict[str, torch.Tensor]] = {}
        for name, value in state.items():
            if name.startswith("optimizer."):
                _, parameter, moment = name.split(".")
                moments.setdefault(int(parameter), {})[moment] = value
        self.optimizer.load_state_dict({"state": moments, "param_groups": self.optimizer.state_dict()["param_groups"]})
        self.schedule.last_epoch = progress["updates"]
        for group, base, factor in zip(
            self.optimizer.param_groups, self.schedule.base_lrs, self.schedule.lr_lambdas, strict=True
        ):
            group["lr"] = base * factor(progress["updates"])
        torch.set_rng_state(state["rng.torch"])
        self._loader_generator.set_state(state["rng.loader"])
        if "rng.cuda" in state and torch.cuda.is_available():
            torch.cuda.set_rng_state(state["rng.cuda"])
