"""A pretrained vision-language model behind one seam: load it, embed pictures, run its headless language model.

Imports torch, transformers and peft only. What differs between model families belongs into `Backbone` and nowhere else.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from PIL import Image, ImageOps
from torch import Tensor, nn
from transformers import AutoImageProcessor, AutoModel, AutoTokenizer
from transformers.utils import logging as hf_logging

FAMILIES = ("qwen2_5_vl",)
SHIPPED = {"tiny": Path(__file__).parent / "tiny"}


class BackboneError(RuntimeError):
    """The backbone cannot be loaded or cannot do what was asked; the message says which, why, and what to do."""


@dataclass(frozen=True)
class Lora:
    """LoRA on the language model (METHOD section 2): W + (alpha / rank) B A on every linear layer named in `targets`."""

    rank: int = 16
    alpha: int = 32
    dropout: float = 0.2
    targets: tuple[str, ...] = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True)
class PictureFeatures:
    """What the language model reads of one picture: `tokens` [n, d] and the processor's patch grid (t, h, w)."""

    tokens: Tensor
    grid: Tensor


def resolve_backbone(name: str) -> str:
    """`tiny` is the folder shipped with the package; anything else is a local folder or a hub name, as it stands."""
    return str(SHIPPED.get(name, name))


def native_bfloat16(device: torch.device | str) -> bool:
    """Whether the device computes in bfloat16 itself; older GPUs only emulate it, slowly."""
    return torch.device(device).type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)


def load_pretrained(path_or_name: str, dtype: torch.dtype) -> tuple[nn.Module, object, object]:
    """Headless model, tokenizer and picture processor of a Hugging Face checkpoint.

    The processor's parts are loaded one by one: `AutoProcessor` of Qwen2.5-VL wants torchvision for its video part. Pictures go
    through Pillow even where torchvision is installed: the two resize differently, and a checkpoint means the same everywhere.
    Raises BackboneError when anything is missing, or when weights and architecture do not fit each other.
    """
    source = resolve_backbone(path_or_name)
    if path_or_name in SHIPPED:
        hf_logging.disable_progress_bar()  # a bar for 1.45 million parameters is noise
    try:
        tokenizer = AutoTokenizer.from_pretrained(source)
        processor = AutoImageProcessor.from_pretrained(source, backend="pil")
        model, report = AutoModel.from_pretrained(source, dtype=dtype, output_loading_info=True)
    except (OSError, ValueError, ImportError) as error:
        raise BackboneError(
            f"backbone {path_or_name!r} cannot be loaded: {str(error).strip().splitlines()[0]}\n"
            f"Give the name of a model on the Hugging Face hub that this machine can reach (hf download NAME "
            f"fetches it beforehand), a folder holding config.json, *.safetensors, tokenizer and preprocessor files, "
            f"or one of the shipped backbones: {', '.join(SHIPPED)}."
        ) from error
    finally:
        hf_logging.enable_progress_bar()
    if model.config.model_type not in FAMILIES:
        raise BackboneError(
            f"backbone {path_or_name!r} is of the family {model.config.model_type!r}; supported: {', '.join(FAMILIES)}. "
            f"Another family may read its pictures or positions in another way and would be silently wrong"
        )
    # A causal checkpoint carries its language-model head, which a headless model has no use for.
    unexpected = sorted(key for key in report["unexpected_keys"] if not key.startswith("lm_head"))
    missing = sorted(report["missing_keys"])
    if missing or unexpected:
        raise BackboneError(
            f"backbone {path_or_name!r}: the weights do not fit the architecture {type(model).__name__}: "
            f"missing {missing[:3]}, unexpected {unexpected[:3]}. Is the folder complete, and is transformers recent enough?"
        )
    return model, tokenizer, processor


class Backbone(nn.Module):
    """The headless model with its tokenizer and picture processor.

    Args:
        model, tokenizer, processor: as `load_pretrained` gives them.
        max_visual_tokens: upper bound on the visual tokens of one picture. The processor shrinks larger pictures; the
            checkpoints' own default admits thousands of tokens, so it is always pinned here.
        lora: where given, LoRA adapters on the language model become the only trainable weights.
    """

    def __init__(self, model: nn.Module, tokenizer, processor, max_visual_tokens: int, lora: Lora | None = None):
        super().__init__()
        self.model, self.tokenizer, self.processor = model, tokenizer, processor
        self.decoder_name = next(name for name, module in model.named_modules() if module is model.get_decoder())
        self.merge = processor.merge_size
        side = processor.patch_size * self.merge
        if max_visual_tokens < 1:
            raise BackboneError(f"max_visual_tokens is {max_visual_tokens}: a picture needs at least one token")
        # Qwen processors' `size` entries are pixel counts, not edges.
        budget = max_visual_tokens * side * side
        processor.size = {"shortest_edge": min(processor.size["shortest_edge"], budget), "longest_edge": budget}
        self.vision_start, self.vision_end = model.config.vision_start_token_id, model.config.vision_end_token_id
        self.image_token = model.config.image_token_id
        model.requires_grad_(False)
        self.peft = self._add_lora(lora) if lora else None

    def _add_lora(self, lora: Lora) -> PeftModel:
        # Suffixes alone would also hit the vision tower's layers: the pattern is anchored at the language model.
        names = "|".join(re.escape(target) for target in lora.targets)
        pattern = rf"{re.escape(self.decoder_name)}\..*\.({names})" if self.decoder_name else rf".*\.({names})"
        settings = LoraConfig(r=lora.rank, lora_alpha=lora.alpha, lora_dropout=lora.dropout, target_modules=pattern)
        try:
            with warnings.catch_warnings():
                # peft 0.21 asks transformers for a flag under its old name; nothing a user could change.
                warnings.simplefilter("ignore", FutureWarning)
                peft = get_peft_model(self.model, settings)
        except ValueError as error:
            raise BackboneError(
                f"no layer of the language model ({self.decoder_name!r}) has one of the LoRA target names "
                f"{', '.join(lora.targets)}"
            ) from error
        assert_language_only(self.model, self.decoder_name)
        return peft

    def checkpoint_activations(self) -> None:
        """Recomputes the language model's activations in the backward pass; the frozen tower needs no backward at all."""
        with warnings.catch_warnings():
            # transformers 5.23 renamed the method; the new name is missing in the older versions that are supported.
            warnings.simplefilter("ignore", FutureWarning)
            self.model.get_decoder().gradient_checkpointing_enable({"use_reentrant": False})

    @property
    def hidden_size(self) -> int:
        return self.model.get_input_embeddings().embedding_dim

    @property
    def device(self) -> torch.device:
        return self.model.get_input_embeddings().weight.device

    def tokenize(self, text: str) -> list[int]:
        """Token ids of plain text. A title that spells out a special token stays text."""
        return self.tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]

    def picture_ids(self, features: PictureFeatures) -> list[int]:
        """The token ids that stand for one picture in a prompt; the last one is the closing vision token."""
        return [self.vision_start, *[self.image_token] * len(features.tokens), self.vision_end]

    @torch.no_grad()
    def embed_pictures(self, pictures: Sequence[Path | Image.Image]) -> list[PictureFeatures]:
        """Visual tokens of each picture from the frozen tower and projector; raises BackboneError naming the picture."""
        opened = [_open_rgb(picture) for picture in pictures]
        try:
            batch = self.processor(images=opened, return_tensors="pt")
        except ValueError as error:
            names = ", ".join(map(str, pictures[:3]))
            raise BackboneError(f"the picture processor refuses one of {names}…: {error}") from error
        grids = batch["image_grid_thw"]
        outputs = self.model.get_image_features(batch["pixel_values"].to(self.device), grids.to(self.device), return_dict=True)
        return [PictureFeatures(tokens, grid) for tokens, grid in zip(outputs.pooler_output, grids, strict=True)]

    def hidden_states(self, ids: Tensor, mask: Tensor, pictures: Sequence[PictureFeatures]) -> Tensor:
        """Last hidden states [B, T, d], after the final norm, of right-padded `ids` [B, T] with `mask` [B, T].

        `pictures`: features of all pictures of the batch in reading order. Gradients reach the LoRA weights only.
        """
        embeddings = self.model.get_input_embeddings()(ids)
        if pictures:
            tokens = torch.cat([picture.tokens.to(self.device, embeddings.dtype) for picture in pictures])
            embeddings = embeddings.masked_scatter((ids == self.image_token).unsqueeze(-1), tokens)
            grids = torch.stack([picture.grid for picture in pictures]).to(self.device)
            # Given explicitly: without token types Qwen2.5-VL silently falls back to one-dimensional positions.
            kinds = (ids == self.image_token).int()
            positions = self.model.get_rope_index(ids, kinds, image_grid_thw=grids, attention_mask=mask)[0]
        else:
            positions = (mask.cumsum(1) - 1).clamp(min=0)
        # Under autocast the adapters' float32 weights do not pull a bfloat16 model's activations up to float32.
        half = self.model.dtype == torch.bfloat16
        with torch.autocast(ids.device.type, dtype=torch.bfloat16, enabled=half):
            outputs = self.model(inputs_embeds=embeddings, attention_mask=mask, position_ids=positions, use_cache=False)
        return outputs.last_hidden_state


def assert_language_only(model: nn.Module, decoder_name: str) -> None:
    """Raises BackboneError unless the trainable weights are LoRA weights inside the language model, and there are some."""
    trainable = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    outside = [name for name in trainable if "lora_" not in name or not name.startswith(decoder_name)]
    if outside or not trainable:
        raise BackboneError(
            f"LoRA must train weights of the language model ({decoder_name!r}) and nothing else; "
            + (f"it also reaches {outside[:3]}" if outside else "it trains none")
        )


def _open_rgb(picture: Path | Image.Image) -> Image.Image:
    if isinstance(picture, Image.Image):
        return picture.convert("RGB")
    try:
        with Image.open(picture) as opened:
            return ImageOps.exif_transpose(opened).convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise BackboneError(f"picture {picture} cannot be read: {error}") from error
