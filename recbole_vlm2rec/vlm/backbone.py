"""A pretrained language model, with eyes or without, behind one seam: load it, embed pictures, run it headless.

Imports torch, transformers and peft only. What differs between model families is looked up (`PICTURE_MARKS`) or asked of the
model (which arguments its functions take); there is no branch for any one of them.
"""

from __future__ import annotations

import inspect
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import torch
import torch.nn.functional as F
from peft import LoraConfig, PeftModel, get_peft_model
from PIL import Image, ImageOps
from torch import Tensor, nn
from transformers import AutoModel, AutoTokenizer

# Not from the top: without torchvision, transformers up to 5.17 puts a stand-in there that only raises.
from transformers.models.auto.image_processing_auto import AutoImageProcessor
from transformers.utils import logging as hf_logging

from recbole_vlm2rec.vlm.memory import PROBE, ActivationBudget
from recbole_vlm2rec.vlm.packing import NAME, packed

_QWEN = ("<|vision_start|>", "<|vision_end|>")
PICTURE_MARKS = {
    "qwen2_vl": _QWEN,
    "qwen2_5_vl": _QWEN,
    "qwen3_vl": _QWEN,
    "internvl": ("<img>", "</img>"),
    "llava": ("", ""),
    "smolvlm": ("<fake_token_around_image><global-img>", "<fake_token_around_image>"),
    "gemma3": ("\n\n<start_of_image>", "<end_of_image>\n\n"),
}
"""What each family's processor writes before and after the visual tokens of a picture in one piece, by `model_type`."""

_TILING = ("do_image_splitting", "crop_to_patches", "do_pan_and_scan")
SHIPPED = {"tiny": Path(__file__).parent / "tiny"}


class BackboneError(RuntimeError):
    """The backbone cannot be loaded or cannot do what was asked; the message says which, why, and what to do."""


@dataclass(frozen=True)
class Lora:
    """LoRA (METHOD section 2): W + (alpha / rank) B A on every linear layer named in `targets`.

    `scope`: `language`, the language model's layers only (the paper's), or `all`, the vision tower's and projector's of those
    names too. Raises BackboneError for another.
    """

    rank: int = 16
    alpha: int = 32
    dropout: float = 0.2
    targets: tuple[str, ...] = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    scope: str = "language"

    def __post_init__(self) -> None:
        if self.scope not in ("language", "all"):
            raise BackboneError(f"lora_scope is {self.scope!r}: use language or all")


@dataclass(frozen=True)
class PictureFeatures:
    """What the language model reads of one picture.

    `tokens`: [n, d]. `deep`: further [n, d] that are added behind its first layers (Qwen3-VL), else empty. `grid`: the
    processor's patch grid (t, h, w) where positions depend on it (Qwen-VL), else None.
    """

    tokens: Tensor
    deep: tuple[Tensor, ...] = ()
    grid: Tensor | None = None


def resolve_backbone(name: str) -> str:
    """`tiny` is the folder shipped with the package; anything else is a local folder or a hub name, as it stands."""
    return str(SHIPPED.get(name, name))


def native_bfloat16(device: torch.device | str) -> bool:
    """Whether the device computes in bfloat16 itself; older GPUs only emulate it, slowly."""
    return torch.device(device).type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)


def load_pretrained(path_or_name: str, dtype: torch.dtype) -> tuple[nn.Module, object, object | None]:
    """Headless model, tokenizer and picture processor (None for a model without eyes) of a Hugging Face checkpoint.

    The processor's parts are loaded one by one: `AutoProcessor` wants torchvision for the video part of most families. Pictures
    go through Pillow even where torchvision is installed: the two resize differently, and a checkpoint means the same everywhere.
    Raises BackboneError when anything is missing, or when weights and architecture do not fit each other.
    """
    source = resolve_backbone(path_or_name)
    if path_or_name in SHIPPED:
        hf_logging.disable_progress_bar()  # a bar for 1.45 million parameters is noise
    with loading(f"backbone {path_or_name!r}", f", or one of the shipped backbones: {', '.join(SHIPPED)}"):
        tokenizer = AutoTokenizer.from_pretrained(source)
        model, report = AutoModel.from_pretrained(source, dtype=dtype, output_loading_info=True)
        processor = AutoImageProcessor.from_pretrained(source, backend="pil") if has_eyes(model) else None
    if processor is not None and model.config.model_type not in PICTURE_MARKS:
        raise BackboneError(
            f"backbone {path_or_name!r} is of the family {model.config.model_type!r}; families whose pictures can be read: "
            f"{', '.join(PICTURE_MARKS)}. Another may frame its pictures in another way and would be silently wrong"
        )
    # A causal checkpoint carries its language-model head, which a headless model has no use for.
    unexpected = sorted(key for key in report["unexpected_keys"] if "lm_head" not in key.split("."))
    missing = sorted(report["missing_keys"])
    if missing or unexpected:
        raise BackboneError(
            f"backbone {path_or_name!r}: the weights do not fit the architecture {type(model).__name__}: "
            f"missing {missing[:3]}, unexpected {unexpected[:3]}. Is the folder complete, and is transformers recent enough?"
        )
    return model, tokenizer, processor


@contextmanager
def loading(what: str, alternative: str = "") -> Iterator[None]:
    """Hugging Face's loaders inside it are quiet, and what they raise is a BackboneError that names `what` and says what to give.

    Quiet, because whoever loads judges the loading report in words of their own. `alternative` ends the sentence.
    """
    verbosity = hf_logging.get_verbosity()
    hf_logging.set_verbosity_error()
    try:
        yield
    except (OSError, ValueError, ImportError) as error:
        raise BackboneError(
            f"{what} cannot be loaded: {str(error).strip().splitlines()[0]}\n"
            f"Give the name of a model on the Hugging Face hub that this machine can reach (hf download NAME fetches "
            f"it beforehand), or a folder holding config.json, *.safetensors, tokenizer and preprocessor files{alternative}."
        ) from error
    finally:
        hf_logging.set_verbosity(verbosity)
        hf_logging.enable_progress_bar()


def has_eyes(model: nn.Module) -> bool:
    """Whether the model reads pictures at all, or text alone."""
    return hasattr(model, "get_image_features")


class Backbone(nn.Module):
    """The headless model with its tokenizer and picture processor.

    Args:
        model, tokenizer, processor: as `load_pretrained` gives them.
        max_visual_tokens: upper bound on the visual tokens of one picture, for families whose processor can shrink pictures
            (Qwen-VL; their checkpoints' own default admits thousands of tokens). The others read every picture in as many tokens
            as they were built for; a picture is never cut into several tiles.
        lora: where given, LoRA adapters on the language model become the only trainable weights.
    """

    def __init__(self, model: nn.Module, tokenizer, processor, max_visual_tokens: int, lora: Lora | None = None):
        super().__init__()
        self.model, self.tokenizer, self.processor, self.packs = model, tokenizer, processor, False
        self.decoder_name = next(name for name, module in model.named_modules() if module is model.get_decoder())
        if max_visual_tokens < 1:
            raise BackboneError(f"max_visual_tokens is {max_visual_tokens}: a picture needs at least one token")
        self.max_visual_tokens = max_visual_tokens
        self.image_token = None
        self._stacked: bool | None = None  # how the tower hands its features over; seen when it first does
        self._layers_stacked: list[bool] = []
        self._as_needed, self._budget = False, None
        if processor is not None:
            self.image_token = model.config.image_token_id
            self._before, self._after = (self._special(mark) for mark in PICTURE_MARKS[model.config.model_type])
            self._pin_picture_size()
        # What the tokenizer puts before any text: nothing for Qwen, `<s>` or `<bos>` for Llama's and Gemma's, which need it.
        self.start_ids = [token for token in tokenizer("")["input_ids"][:1] if token == tokenizer.bos_token_id]
        model.requires_grad_(False)
        self.frozen_tower = lora is None or lora.scope == "language"
        self.peft = self._add_lora(lora) if lora else None

    def _special(self, mark: str) -> list[int]:
        """Ids of the tokens around a picture; raises BackboneError where the tokenizer takes one of them for plain text."""
        known = self.tokenizer.get_added_vocab()
        if unknown := [token for token in re.findall(r"<[^<>]+>", mark) if token not in known]:
            raise BackboneError(
                f"the tokenizer does not know {unknown[0]}, which family {self.model.config.model_type!r} puts around a picture; "
                f"is it the tokenizer of this checkpoint?"
            )
        return self.tokenizer(mark, add_special_tokens=False)["input_ids"]

    def _pin_picture_size(self) -> None:
        for switch in _TILING:
            if hasattr(self.processor, switch):
                setattr(self.processor, switch, False)
        if hasattr(self.processor, "merge_size"):
            # These processors' `size` entries are pixel counts, not edges.
            side = self.processor.patch_size * self.processor.merge_size
            budget = self.max_visual_tokens * side * side
            least = min(self.processor.size["shortest_edge"], budget)
            self.processor.size = {"shortest_edge": least, "longest_edge": budget}

    def _add_lora(self, lora: Lora) -> PeftModel:
        # Suffixes alone would also hit the vision tower's layers: the pattern is anchored at the language model.
        names = "|".join(re.escape(target) for target in lora.targets)
        anchored = self.decoder_name and lora.scope == "language"
        pattern = rf"{re.escape(self.decoder_name)}\..*\.({names})" if anchored else rf".*\.({names})"
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
        if lora.scope == "language":
            assert_language_only(self.model, self.decoder_name)
        return peft

    def checkpoint_activations(self, as_needed: bool = False) -> None:
        """Recomputes the language model's activations in the backward pass; the frozen tower needs no backward at all.

        `as_needed`: only of as many layers as memory asks for (`memory`), decided for each encoding.
        """
        with warnings.catch_warnings():
            # transformers 5.23 renamed the method; the new name is missing in the older versions that are supported.
            warnings.simplefilter("ignore", FutureWarning)
            self.model.get_decoder().gradient_checkpointing_enable({"use_reentrant": False})
        self._as_needed, self._budget = as_needed, None

    def expect(self, tokens: int) -> None:
        """Told of the tokens of an encoding before it: where activations are recomputed as needed, decides of how many layers."""
        if not (self._as_needed and self.training and torch.is_grad_enabled()):
            return
        if self._budget is None:
            ids = torch.zeros(1, PROBE, dtype=torch.long, device=self.device)
            self._budget = ActivationBudget(
                self.model.get_decoder(),
                lambda: self.hidden_states(ids, torch.ones_like(ids), []),
                self.hidden_size * self.model.dtype.itemsize,
                self.device,
            )
        self._budget.fit(tokens)

    def merge_lora(self) -> None:
        """Adds (alpha / rank) B A to the weights: the same vectors without the adapters' own products; not to train on."""
        if self.peft is not None:
            self.peft.merge_adapter()

    @property
    def draws(self) -> bool:
        """Whether a forward draws anything: dropout, of LoRA's or the model's own, in training mode."""
        attention = getattr(self.model.get_decoder().config, "attention_dropout", 0.0)
        return self.training and (attention > 0 or any(m.p > 0 for m in self.modules() if isinstance(m, nn.Dropout)))

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
        """The token ids that stand for one picture in a prompt, with what the family puts around it."""
        return [*self._before, *[self.image_token] * len(features.tokens), *self._after]

    def embed_pictures(self, pictures: Sequence[Path | Image.Image]) -> list[PictureFeatures]:
        """Visual tokens of each picture from tower and projector, without a gradient where these are frozen.

        Raises BackboneError naming the picture that cannot be read.
        """
        if self.processor is None:
            raise BackboneError(f"family {self.model.config.model_type!r} reads text alone; use modalities: text")
        batch = self.picture_inputs(pictures)
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen_tower):
            outputs = self.model.get_image_features(**batch, return_dict=True)
        tokens = outputs.pooler_output
        if len(tokens) != len(pictures):
            raise BackboneError(f"{len(pictures)} pictures came out of the vision tower as {len(tokens)}; this cannot be read")
        # Older transformers keep some families' features in one tensor, newer ones in a list: handed back as they came.
        self._stacked = isinstance(tokens, Tensor)
        layers = getattr(outputs, "deepstack_features", None) or []
        self._layers_stacked = [isinstance(layer, Tensor) for layer in layers]
        sizes = [len(picture) for picture in tokens]
        deep = [layer.split(sizes) if isinstance(layer, Tensor) else layer for layer in layers]
        grids = batch.get("image_grid_thw", [None] * len(pictures))
        return [
            PictureFeatures(part, tuple(layer[place] for layer in deep), grid)
            for place, (part, grid) in enumerate(zip(tokens, grids, strict=True))
        ]

    def picture_inputs(self, pictures: Sequence[Path | Image.Image]) -> dict[str, Tensor]:
        """The processor's tensors for these pictures, on the device, as far as the vision tower takes them."""
        try:
            # Each picture in a list of its own: Idefics' processors would take a flat list for one sample's pictures.
            batch = self.processor(images=[[open_rgb(picture)] for picture in pictures], return_tensors="pt")
        except ValueError as error:
            names = ", ".join(map(str, pictures[:3]))
            raise BackboneError(f"the picture processor refuses one of {names}…: {error}") from error
        taken = inspect.signature(self.model.get_image_features).parameters
        return {name: tensor.to(self.device) for name, tensor in batch.items() if name in taken}

    def hidden_states(self, ids: Tensor, mask: Tensor, pictures: Sequence[PictureFeatures]) -> Tensor:
        """Last hidden states [B, T, d], after the final norm, of right-padded `ids` [B, T] with `mask` [B, T].

        `pictures`: features of all pictures of the batch in reading order. Gradients reach the LoRA weights only.
        """
        inputs = {"input_ids": ids, "attention_mask": mask, "position_ids": (mask.cumsum(1) - 1).clamp(min=0)}
        kinds = (ids == self.image_token).int() if pictures else torch.zeros_like(ids, dtype=torch.int)
        if pictures:
            inputs["pixel_values"] = ids.new_empty(0)  # never looked at: `_given` answers instead of the tower
        if pictures and pictures[0].grid is not None:
            grids = torch.stack([picture.grid.to(self.device) for picture in pictures])
            # Given explicitly: without token types Qwen-VL silently falls back to one-dimensional positions.
            inputs["image_grid_thw"] = grids
            inputs["position_ids"] = self.model.get_rope_index(ids, kinds, image_grid_thw=grids, attention_mask=mask)[0]
        if "token_type_ids" in inspect.signature(self.model.forward).parameters:
            inputs["token_type_ids"] = kinds  # Gemma 3 reads the tokens of one picture in both directions
        # Under autocast the adapters' float32 weights do not pull a bfloat16 model's activations up to float32.
        half = self.model.dtype == torch.bfloat16
        with self._given(pictures), torch.autocast(ids.device.type, dtype=torch.bfloat16, enabled=half):
            if not self.packs:
                return self.model(**inputs, use_cache=False).last_hidden_state
            real = mask.bool()
            with packed():
                states = self.model(**_end_to_end(inputs, real), use_cache=False).last_hidden_state[0]
            return states.new_zeros(*ids.shape, states.shape[-1]).masked_scatter(real[..., None], states)

    def pack(self, on: bool) -> None:
        """Whether the prompts of a forward are laid end to end (`packing`) rather than padded: the same hidden states."""
        self.packs = on
        self.model.get_decoder().set_attn_implementation(NAME if on else "sdpa")

    @contextmanager
    def _given(self, pictures: Sequence[PictureFeatures]) -> Iterator[None]:
        """While open, the model that asks its tower for these pictures gets the features computed before.

        The model's own forward then does with them what it always does, whatever the family and the version of transformers.
        """
        if not pictures:
            yield
            return
        if self._stacked is None:
            with torch.no_grad():
                self.embed_pictures([Image.new("RGB", (56, 56))])
        dtype = self.model.dtype
        tokens = [picture.tokens.to(self.device, dtype) for picture in pictures]
        layers = [[part.to(self.device, dtype) for part in layer] for layer in zip(*(picture.deep for picture in pictures))]
        answer = SimpleNamespace(
            pooler_output=torch.stack(tokens) if self._stacked else tokens,
            deepstack_features=[
                torch.cat(layer) if stacked else layer for layer, stacked in zip(layers, self._layers_stacked, strict=True)
            ],
        )
        self.model.get_image_features = lambda *_, **__: answer
        try:
            yield
        finally:
            del self.model.get_image_features


def _end_to_end(inputs: dict[str, Tensor], real: Tensor) -> dict:
    """The inputs of a padded batch as those of one row without the padding; `real` [B, T] says which tokens stay."""
    lengths = real.sum(1)
    row = {
        name: tensor[..., real][..., None, :] if tensor.shape[-2:] == real.shape else tensor
        for name, tensor in inputs.items()
        if name != "attention_mask"
    }
    ends = F.pad(lengths.cumsum(0), (1, 0)).int()
    longest = int(lengths.max())
    return {**row, "cu_seq_lens_q": ends, "cu_seq_lens_k": ends, "max_length_q": longest, "max_length_k": longest}


def assert_language_only(model: nn.Module, decoder_name: str) -> None:
    """Raises BackboneError unless the trainable weights are LoRA weights inside the language model, and there are some."""
    trainable = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    outside = [name for name in trainable if "lora_" not in name or not name.startswith(decoder_name + "." * bool(decoder_name))]
    if outside or not trainable:
        raise BackboneError(
            f"LoRA must train weights of the language model ({decoder_name!r}) and nothing else; "
            + (f"it also reaches {outside[:3]}" if outside else "it trains none")
        )


def open_rgb(picture: Path | Image.Image) -> Image.Image:
    if isinstance(picture, Image.Image):
        return picture.convert("RGB")
    try:
        with Image.open(picture) as opened:
            return ImageOps.exif_transpose(opened).convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise BackboneError(f"picture {picture} cannot be read: {error}") from error
