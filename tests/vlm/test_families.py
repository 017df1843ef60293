"""Every family of vision-language models, and language models without eyes, through the one seam.

Each is a tiny random model written as its family's checkpoint is. The reference is the whole model of transformers, one prompt
a forward, pixels each time, positions and masks as the model itself works them out.
"""

import json

import pytest
import torch
from peft import get_peft_model_state_dict
from PIL import Image
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText, AutoTokenizer

from recbole_vlm2rec.vlm.backbone import PICTURE_MARKS, SHIPPED, BackboneError, Lora
from recbole_vlm2rec.vlm.encoder import VLMEncoder
from recbole_vlm2rec.vlm.prompts import image_prompt, interleaved_prompt, text_prompt

WIDTH, VISION = 32, 24
TEXT = {
    "hidden_size": WIDTH, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "head_dim": 8, "initializer_range": 0.2, "bos_token_id": 1018, "eos_token_id": 1017, "pad_token_id": 1018,
}  # fmt: skip
TOWER = {
    "hidden_size": VISION, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 2, "patch_size": 14,
    "image_size": 56, "initializer_range": 0.2,
}  # fmt: skip
SECTIONS = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 2]}
QWEN = {"vision_start_token_id": "<|vision_start|>", "vision_end_token_id": "<|vision_end|>", "video_token_id": "<|video_pad|>"}
QWEN_PICTURES = {"image_processor_type": "Qwen2VLImageProcessor", "patch_size": 14, "min_pixels": 56 * 56, "max_pixels": 1 << 20}
SQUARE = {"height": 56, "width": 56}

# model_type: (configuration, picture processor, picture token, what stands around a picture, visual tokens of a 56 x 56 picture).
# The strings are those of the families' own processors.
FAMILIES = {
    "qwen2_vl": (
        {"text_config": {**TEXT, "rope_parameters": SECTIONS}, **QWEN,
         "vision_config": {"depth": 2, "embed_dim": VISION, "hidden_size": WIDTH, "num_heads": 2, "mlp_ratio": 2}},
        QWEN_PICTURES, "<|image_pad|>", ("<|vision_start|>", "<|vision_end|>"), 4,
    ),
    "qwen2_5_vl": (
        {"text_config": {**TEXT, "rope_parameters": SECTIONS}, **QWEN,
         "vision_config": {"depth": 2, "hidden_size": VISION, "out_hidden_size": WIDTH, "num_heads": 2, "intermediate_size": 48,
                           "fullatt_block_indexes": [1]}},
        QWEN_PICTURES, "<|image_pad|>", ("<|vision_start|>", "<|vision_end|>"), 4,
    ),
    "qwen3_vl": (
        {"text_config": {**TEXT, "rope_parameters": {**SECTIONS, "mrope_interleaved": True}}, **QWEN,
         "vision_config": {"depth": 3, "hidden_size": VISION, "out_hidden_size": WIDTH, "num_heads": 2, "intermediate_size": 48,
                           "patch_size": 14, "num_position_embeddings": 16, "deepstack_visual_indexes": [0, 1]}},
        QWEN_PICTURES, "<|image_pad|>", ("<|vision_start|>", "<|vision_end|>"), 4,
    ),
    "internvl": (
        {"text_config": {**TEXT, "model_type": "qwen2"},
         "vision_config": {**TOWER, "image_size": [56, 56], "patch_size": [14, 14], "layer_scale_init_value": 1.0}},
        {"image_processor_type": "GotOcr2ImageProcessor", "size": SQUARE}, "<IMG_CONTEXT>", ("<img>", "</img>"), 4,
    ),
    "llava": (
        {"text_config": {**TEXT, "model_type": "llama"}, "vision_config": {**TOWER, "model_type": "clip_vision_model"}},
        {"image_processor_type": "CLIPImageProcessor", "size": {"shortest_edge": 56}, "crop_size": SQUARE},
        "<image>", ("", ""), 16,
    ),
    "smolvlm": (
        {"text_config": {**TEXT, "model_type": "llama"}, "vision_config": TOWER, "scale_factor": 2},
        {"image_processor_type": "SmolVLMImageProcessor", "size": {"longest_edge": 112}, "max_image_size": {"longest_edge": 56}},
        "<image>", ("<fake_token_around_image><global-img>", "<fake_token_around_image>"), 4,
    ),
    "gemma3": (
        {"text_config": {**TEXT, "sliding_window": 512, "query_pre_attn_scalar": 8}, "mm_tokens_per_image": 4,
         "vision_config": {**TOWER, "model_type": "siglip_vision_model"}},
        {"image_processor_type": "Gemma3ImageProcessor", "size": SQUARE},
        "<image_soft_token>", ("\n\n<start_of_image>", "<end_of_image>\n\n"), 4,
    ),
}  # fmt: skip
MARKS = ["<img>", "</img>", "<IMG_CONTEXT>", "<image>", "<fake_token_around_image>", "<global-img>", "<start_of_image>",
         "<end_of_image>", "<image_soft_token>"]  # fmt: skip
TITLES = ["rustic bamboo travel mug", "Ça brûle! (日本語)", "a", "modern cotton office shirt"]


def save_checkpoint(folder, family):
    settings, processor, token, _, _ = FAMILIES[family]
    tokenizer = AutoTokenizer.from_pretrained(SHIPPED["tiny"])
    tokenizer.add_special_tokens({"additional_special_tokens": [*tokenizer.all_special_tokens, *MARKS]})
    settings = {
        key: tokenizer.convert_tokens_to_ids(value) if isinstance(value, str) else value for key, value in settings.items()
    }
    settings["text_config"] = {**settings["text_config"], "vocab_size": len(tokenizer)}
    config = AutoConfig.for_model(family, image_token_id=tokenizer.convert_tokens_to_ids(token), **settings)
    torch.manual_seed(0)
    model = AutoModelForImageTextToText.from_config(config, dtype=torch.float32)
    for weight in model.parameters():
        if not weight.any():  # biases, and Gemma 3's projector: every picture would come out as nothing
            torch.nn.init.normal_(weight, std=0.2)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    return folder


@pytest.fixture(scope="module", params=FAMILIES)
def family(request):
    return request.param


@pytest.fixture(scope="module")
def checkpoint(family, tmp_path_factory):
    return save_checkpoint(tmp_path_factory.mktemp(family), family)


def encoder_of(checkpoint, **settings):
    return VLMEncoder.from_pretrained(str(checkpoint), max_visual_tokens=16, token_budget=200, **settings).eval()


def plain(checkpoint, family, prompt, pictures):
    """[d] by the whole model; `prompt` holds `<P>` where a picture stands."""
    _, _, token, (before, after), _ = FAMILIES[family]
    model = AutoModelForImageTextToText.from_pretrained(checkpoint, dtype=torch.float32).eval()
    encoder = encoder_of(checkpoint)
    inputs = {}
    if pictures:
        inputs = encoder.backbone.picture_inputs(pictures)
        for picture in pictures:
            count = len(encoder.backbone.embed_pictures([picture])[0].tokens)
            prompt = prompt.replace("<P>", before + token * count + after, 1)
    ids = AutoTokenizer.from_pretrained(checkpoint)(prompt, return_tensors="pt")["input_ids"]
    kinds = (ids == model.config.image_token_id).int()
    if pictures and "image_grid_thw" in inputs:
        inputs["mm_token_type_ids"] = kinds
    if family == "gemma3":
        inputs["token_type_ids"] = kinds
    with torch.no_grad():
        return model(input_ids=ids, output_hidden_states=True, **inputs).hidden_states[-1][0, -1]


def close(vector, expected):
    torch.testing.assert_close(vector, expected, atol=2e-5, rtol=2e-5)


def test_every_family_of_the_table_is_tested():
    assert set(FAMILIES) == set(PICTURE_MARKS)


@torch.no_grad()
def test_pictures_and_their_parts_differ(checkpoint, pictures):
    """Else every test on pictures would pass in vain."""
    one, other = (picture.tokens for picture in encoder_of(checkpoint).backbone.embed_pictures(pictures[:2]))
    assert (one.mean(0) - other.mean(0)).norm() > 1e-2 * one.mean(0).norm() and (one - one[:1]).norm() > 1e-2 * one.norm()


@torch.no_grad()
def test_vectors_equal_the_whole_model_on_pixels(family, checkpoint, pictures):
    encoder = encoder_of(checkpoint)
    text = encoder.encode_text([TITLES, TITLES[1:2], TITLES[:3]])
    close(text[0], plain(checkpoint, family, "Describe this item text sequence in one word,\n" + ", ".join(
        f"{place}) {title}" for place, title in enumerate(TITLES)), []))  # fmt: skip
    sequences = [pictures[:3], pictures[3:4], pictures[4:6]]
    images = encoder.encode_images(sequences)
    for sequence, vector in zip(sequences, images, strict=True):
        prompt = ", ".join(f"{place}) <P>" for place in range(len(sequence)))
        close(vector, plain(checkpoint, family, "Describe this item image sequence in one word,\n" + prompt, sequence))
    assert (images[0] - images[1]).norm() > 0.1 * images[0].norm(), "the pictures are not seen"
    mixed = encoder.encode_interleaved([list(zip(TITLES, pictures))])[0]
    prompt = ", ".join(f"{place}) {title} <P>" for place, title in enumerate(TITLES))
    close(mixed, plain(checkpoint, family, "Describe this item sequence in one word,\n" + prompt, pictures[: len(TITLES)]))


@torch.no_grad()
@pytest.mark.parametrize("together", ["packed", "padded"])
def test_together_or_alone_the_vectors_are_the_same(family, checkpoint, pictures, together):
    """Gemma 3 reads the tokens of a picture in both directions, which a packed forward does not know: found out, and padded."""
    encoder = encoder_of(checkpoint)
    assert encoder.backbone.packs == (family != "gemma3")
    if together == "padded":
        encoder.backbone.pack(False)
    encoder.token_budget = 4000
    prompts = [image_prompt(pictures[:3]), image_prompt(pictures[3:4]), text_prompt(TITLES), text_prompt(TITLES[2:])]
    prompts += [interleaved_prompt(list(zip(TITLES, pictures))), interleaved_prompt([("a", pictures[5])])]
    vectors = encoder.encode(prompts)
    encoder.backbone.pack(False)
    close(vectors, torch.cat([encoder.encode([prompt]) for prompt in prompts]))


@torch.no_grad()
def test_a_picture_is_one_piece_of_the_known_size(family, checkpoint, pictures):
    features = encoder_of(checkpoint).backbone.embed_pictures([Image.new("RGB", (56, 56), "teal"), pictures[0]])
    assert [len(picture.tokens) for picture in features] == [FAMILIES[family][4]] * 2
    assert len(features[0].deep) == (2 if family == "qwen3_vl" else 0)


@pytest.mark.parametrize("checkpointed", [True, False])
def test_lora_stays_in_the_language_model_and_its_gradient_equals_one_by_one(family, checkpoint, pictures, checkpointed):
    """Packed, padded, one by one; with activations kept, and computed again in the backward pass; a prefix among them."""
    sequences = [pictures[:3], pictures[3:4], pictures[:2], pictures[1:3]]
    gradients = []
    for together in ("packed", "padded", "alone"):
        torch.manual_seed(1)
        encoder = encoder_of(checkpoint, lora=Lora(dropout=0.0))
        if together != "packed":
            encoder.backbone.pack(False)
        if checkpointed and together != "alone":
            encoder.backbone.checkpoint_activations()
        for name, weight in encoder.backbone.model.named_parameters():
            if weight.requires_grad:
                assert name.startswith(encoder.backbone.decoder_name) and "lora_" in name
                torch.nn.init.normal_(weight, std=0.1, generator=torch.Generator().manual_seed(len(name)))
        parts = [[sequence] for sequence in sequences] if together == "alone" else [sequences]
        vectors = torch.cat([encoder.train().encode([image_prompt(sequence) for sequence in part]) for part in parts])
        # A direction of its own for each row: the squares would not do, for the final norm makes every vector equally long.
        (vectors * torch.randn(vectors.shape, generator=torch.Generator().manual_seed(3))).sum().backward()
        gradients.append([weight.grad for weight in encoder.parameters() if weight.requires_grad])
    assert all(gradient.abs().max() > 0 for gradient in gradients[0])
    *together, alone = (torch.cat([gradient.flatten() for gradient in each]) for each in gradients)
    assert all((gradient - alone).norm() < 1e-4 * alone.norm() for gradient in together)
    assert set(get_peft_model_state_dict(encoder.backbone.peft))


@torch.no_grad()
def test_merged_adapters_give_the_same_vectors(checkpoint, pictures):
    encoder = encoder_of(checkpoint, lora=Lora(dropout=0.5))
    for name, weight in encoder.backbone.model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.1, generator=torch.Generator().manual_seed(len(name)))
    apart = encoder.encode_images([pictures[:2]]), encoder.encode_text([TITLES])
    encoder.backbone.merge_lora()
    merged = encoder.encode_images([pictures[:2]]), encoder.encode_text([TITLES])
    plain_vectors = encoder_of(checkpoint).encode_text([TITLES])
    for one, other in zip(apart, merged, strict=True):
        torch.testing.assert_close(one, other, atol=2e-5, rtol=2e-5)
    assert (merged[1] - plain_vectors).norm() > 0.1 * plain_vectors.norm()


@torch.no_grad()
def test_kept_features_and_shared_prefixes_give_the_same_vectors(checkpoint, pictures, tmp_path):
    encoder = encoder_of(checkpoint)
    sequences = [pictures[:3], pictures[:2], pictures[:1], pictures[2:4]]
    alone = torch.cat([encoder.encode_images([sequence]) for sequence in sequences])
    encoder.features.clear()
    encoder.keep_pictures(pictures, tmp_path)
    assert encoder.store is not None and encoder.share
    close(encoder.encode_images(sequences), alone)
    titles = [TITLES, TITLES[:2], TITLES[:1]]
    close(encoder.encode_text(titles), torch.cat([encoder.encode_text([one]) for one in titles]))


@pytest.mark.parametrize("model_type", ["qwen2", "llama", "qwen3"])
def test_a_language_model_without_eyes_reads_titles(model_type, tmp_path, pictures):
    tokenizer = AutoTokenizer.from_pretrained(SHIPPED["tiny"])
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **TEXT, vocab_size=1024)).eval()
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    encoder = VLMEncoder.from_pretrained(str(tmp_path), lora=Lora()).eval()
    with torch.no_grad():
        vector = encoder.encode_text([TITLES[:2], TITLES[2:]])[0]
        ids = tokenizer(f"Describe this item text sequence in one word,\n0) {TITLES[0]}, 1) {TITLES[1]}", return_tensors="pt")
        close(vector, model(**ids, output_hidden_states=True).hidden_states[-1][0, -1])
        for name, weight in encoder.backbone.model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(weight, std=0.1, generator=torch.Generator().manual_seed(len(name)))
        sequences = [TITLES[:2], TITLES[:1], TITLES]
        alone = torch.cat([encoder.encode_text([sequence]) for sequence in sequences])
        close(encoder.encode_text(sequences), alone)  # the shorter ones are read out of the longest
        encoder.backbone.merge_lora()
        close(encoder.encode_text(sequences), alone)
    with pytest.raises(BackboneError, match="reads text alone; use modalities: text"):
        encoder.encode_images([pictures[:1]])


def test_a_tokenizer_that_starts_every_text_starts_every_prompt(tmp_path):
    from tokenizers.processors import TemplateProcessing

    folder = save_checkpoint(tmp_path, "llava")
    tokenizer = AutoTokenizer.from_pretrained(folder, bos_token="<|im_start|>")
    start = tokenizer.bos_token_id
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|im_start|> $A", special_tokens=[("<|im_start|>", start)]
    )
    tokenizer.save_pretrained(folder)
    encoder = encoder_of(folder)
    assert encoder.backbone.start_ids == [start]
    with torch.no_grad():
        vector = encoder.encode_text([["a mug"]])[0]
    close(vector, plain(folder, "llava", "Describe this item text sequence in one word,\n0) a mug", []))


def test_a_tokenizer_of_another_family_is_refused(tmp_path):
    folder = save_checkpoint(tmp_path, "internvl")
    AutoTokenizer.from_pretrained(SHIPPED["tiny"]).save_pretrained(folder)
    with pytest.raises(BackboneError, match="does not know <img>, which family 'internvl' puts around a picture"):
        encoder_of(folder)


def test_a_family_that_cannot_read_a_picture_in_fewer_tokens_says_so(tmp_path):
    with pytest.warns(
        UserWarning, match="'llava' reads every picture in 16 visual tokens; max_visual_tokens: 4 cannot make them"
    ):
        VLMEncoder.from_pretrained(str(save_checkpoint(tmp_path, "llava")), max_visual_tokens=4)


def test_an_unknown_family_with_eyes_is_refused(tmp_path, monkeypatch):
    folder = save_checkpoint(tmp_path, "smolvlm")
    monkeypatch.delitem(PICTURE_MARKS, "smolvlm")
    with pytest.raises(BackboneError, match="family 'smolvlm'; families whose pictures can be read: qwen2_vl"):
        encoder_of(folder)
