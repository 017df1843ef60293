"""The shipped `tiny` backbone: loads like any Qwen2.5-VL, reads titles and pictures, and its script makes such a folder."""

import json

import numpy as np
import pytest
import torch
from transformers import AutoModel, AutoModelForImageTextToText, AutoTokenizer
from transformers.models.auto.image_processing_auto import AutoImageProcessor

from recbole_vlm2rec.prepare.products import (
    IMAGE_ATTRIBUTES,
    TITLE_ATTRIBUTES,
    Product,
    held_out,
    random_product,
    render,
    title,
)
from recbole_vlm2rec.vlm import pretrain_tiny, tiny_model
from recbole_vlm2rec.vlm.backbone import SHIPPED
from recbole_vlm2rec.vlm.encoder import VLMEncoder
from recbole_vlm2rec.vlm.prompts import text_prompt
from recbole_vlm2rec.vlm.tiny_tokenizer import SPECIAL_TOKENS, build_tokenizer

TINY = SHIPPED["tiny"]
FILES = {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "preprocessor_config.json", "README.md"}


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(TINY)


@pytest.fixture(scope="module")
def products() -> list[Product]:
    """150 products of the shops' share: the pretraining has not seen one of them."""
    rng = np.random.default_rng(11)
    return [drawn for drawn in (random_product(rng) for _ in range(900)) if held_out(drawn)][:150]


@pytest.fixture(scope="module")
def vectors(products) -> dict[str, torch.Tensor]:
    """[150, 128] for the title and for the picture of each product, as the encoder gives them."""
    encoder = VLMEncoder.from_pretrained("tiny")
    rng = np.random.default_rng(12)
    with torch.no_grad():
        return {
            "title": encoder.encode_text([[title(drawn)] for drawn in products]),
            "picture": encoder.encode_images([[render(drawn, rng=rng)] for drawn in products]),
        }


def assert_complete(report: dict) -> None:
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    assert not report["mismatched_keys"]


def test_folder_holds_these_files_and_weighs_under_five_megabytes():
    assert {path.name for path in TINY.iterdir()} == FILES
    assert sum(path.stat().st_size for path in TINY.iterdir()) < 5_000_000


def test_headless_model_loads_without_missing_or_unexpected_keys():
    model, report = AutoModel.from_pretrained(TINY, output_loading_info=True)
    assert_complete(report)
    assert type(model).__name__ == "Qwen2_5_VLModel"
    assert 1_000_000 < sum(parameter.numel() for parameter in model.parameters()) < 1_600_000
    assert all(parameter.isfinite().all() for parameter in model.parameters())


def test_model_with_head_ties_it_to_the_token_embeddings():
    model, report = AutoModelForImageTextToText.from_pretrained(TINY, output_loading_info=True)
    assert_complete(report)
    assert model.lm_head.weight.data_ptr() == model.get_input_embeddings().weight.data_ptr()


def test_ids_of_special_tokens_agree_between_config_and_tokenizer(tokenizer):
    config = json.loads((TINY / "config.json").read_text(encoding="utf-8"))
    for key, token in {
        "image_token_id": "<|image_pad|>",
        "video_token_id": "<|video_pad|>",
        "vision_start_token_id": "<|vision_start|>",
        "vision_end_token_id": "<|vision_end|>",
        "pad_token_id": "<|endoftext|>",
        "bos_token_id": "<|endoftext|>",
        "eos_token_id": "<|im_end|>",
    }.items():
        assert tokenizer.encode(token) == [config[key]], key
    assert config["text_config"]["vocab_size"] == len(tokenizer)
    assert sum(config["text_config"]["rope_parameters"]["mrope_section"]) == 128 // 4 // 2
    assert set(SPECIAL_TOKENS) <= set(tokenizer.all_special_tokens)


@pytest.mark.parametrize(
    "text",
    ["Toy Story (1995)", "😀👩‍👩‍👧 crème brûlée", "שלום, العربية", "日本語 \t\n\x00 end  ", "a,b)c\n0) 12"],
)
def test_any_text_comes_back_whole(tokenizer, text):
    ids = tokenizer.encode(text, add_special_tokens=False)
    assert tokenizer.decode(ids) == text
    assert not set(ids) & set(tokenizer.convert_tokens_to_ids(list(SPECIAL_TOKENS)))


def test_words_are_whole_and_marks_and_digits_stand_alone(tokenizer):
    prompt = text_prompt(["vintage cotton travel bag"] * 12)[0]
    tokens = tokenizer.convert_ids_to_tokens(tokenizer.encode(prompt, add_special_tokens=False))
    entry = ["Ġvintage", "Ġcotton", "Ġtravel", "Ġbag"]
    assert tokens[8:15] == [",", "Ċ", "0", ")", *entry[:3]]
    assert tokens[-9:] == [",", "Ġ", "1", "1", ")", *entry]


@pytest.mark.parametrize("entries", [2, 12])
def test_a_title_ends_on_a_stable_token_boundary(tokenizer, entries):
    titles = ["Emma, or: the end", "rustic steel party mug", "1984 (1984)"] * 4
    whole = tokenizer.encode(text_prompt(titles[:entries])[0], add_special_tokens=False)
    for count in range(1, entries):
        part = tokenizer.encode(text_prompt(titles[:count])[0], add_special_tokens=False)
        assert whole[: len(part)] == part


def test_a_product_picture_makes_four_visual_tokens(products):
    batch = AutoImageProcessor.from_pretrained(TINY, backend="pil")(images=[render(products[0])], return_tensors="pt")
    assert batch["image_grid_thw"].tolist() == [[1, 4, 4]]
    tokens = AutoModel.from_pretrained(TINY).float().get_image_features(**batch, return_dict=True).pooler_output
    assert [tuple(picture.shape) for picture in tokens] == [(4, 128)]


@pytest.mark.parametrize(("side", "attributes"), [("title", TITLE_ATTRIBUTES), ("picture", IMAGE_ATTRIBUTES)])
def test_the_likeliest_next_words_are_a_held_out_products_own(vectors, products, tokenizer, side, attributes):
    head = AutoModelForImageTextToText.from_pretrained(TINY).float().lm_head
    said = head(vectors[side]).topk(len(attributes)).indices.tolist()
    own = [{tokenizer.encode(" " + drawn[name])[0] for name in attributes} for drawn in products]
    named = sum(len(words & set(top)) for words, top in zip(own, said, strict=True)) / (len(products) * len(attributes))
    assert named > 0.95


@pytest.mark.parametrize(("side", "attributes"), [("title", TITLE_ATTRIBUTES), ("picture", IMAGE_ATTRIBUTES)])
def test_vectors_of_like_products_are_alike(vectors, products, side, attributes):
    """The nearest other product by cosine shares more than twice as many attributes as a random one does."""
    unit = torch.nn.functional.normalize(vectors[side], dim=1)
    shared = torch.tensor([[sum(one[name] == other[name] for name in attributes) for other in products] for one in products])
    shared.fill_diagonal_(0)
    nearest = (unit @ unit.T).fill_diagonal_(-1).argmax(1)
    chance = shared.sum() / (len(products) * (len(products) - 1))
    assert shared[torch.arange(len(products)), nearest].float().mean() > 2 * chance


def test_a_list_says_what_most_of_its_entries_are():
    """After eight titles and after eight pictures of mugs the likeliest word is `mug`, though everything else varies."""
    encoder = VLMEncoder.from_pretrained("tiny")
    rng = np.random.default_rng(13)
    shop = [random_product(rng).replace(category="mug") for _ in range(8)]
    head = AutoModelForImageTextToText.from_pretrained(TINY).float().lm_head
    with torch.no_grad():
        lists = torch.cat([encoder.encode_text([[title(p) for p in shop]]), encoder.encode_images([[render(p) for p in shop]])])
        words = [encoder.backbone.tokenizer.decode([token]) for token in head(lists).argmax(1).tolist()]
    assert words == [" mug", " mug"]


def test_tokenizer_is_the_same_every_time_and_names_the_words_it_cannot_hold():
    captions = ["red striped mug on a beach", "vintage cotton travel bag"] * 5
    first, second = (build_tokenizer(captions, ["striped", "vintage"], size=600) for _ in range(2))
    assert first.get_vocab() == second.get_vocab()
    assert len(first) == 600
    with pytest.raises(ValueError, match="264 tokens splits .*striped, vintage"):
        build_tokenizer(captions, ["striped", "vintage"], size=264)


def test_histograms_count_the_words_of_all_entries_so_far():
    example = pretrain_tiny.Example(ids=[9] * 6, pictures=[], ends=[(2, [1, 3]), (5, [3, 4])])
    expected = [[0, 0.5, 0, 0.5, 0], [0, 0.25, 0, 0.5, 0.25]]
    assert pretrain_tiny.histograms([example], 5).tolist() == expected


def test_read_out_positions_are_the_titles_last_tokens_and_the_closing_vision_tokens(tokenizer):
    class OnePicture:
        def row_of(self, wanted, rng):
            return 0

    config = tiny_model.build_model(tokenizer).config
    lists = pretrain_tiny.Lists(tokenizer, config, OnePicture(), np.random.default_rng(0))
    shop = [Product(("mug", "vintage", "cotton", "travel", "red", "striped", "beach"))] * 11
    for make, token in ((lists.image, "<|vision_end|>"), (lists.interleaved, "<|vision_end|>")):
        example = make(shop)
        assert [tokenizer.decode([example.ids[position]]) for position, _ in example.ends] == [token] * 11
        assert len(example.pictures) == 11
    lists.rng = np.random.default_rng(1)
    example = lists.text(shop)
    assert [tokenizer.decode([example.ids[position]]) for position, _ in example.ends] == [" mug"] * 11
    assert [tokenizer.decode([token]) for token in example.ends[0][1]] == [" vintage", " cotton", " travel", " mug"]


def test_pretraining_draws_no_product_of_the_shops_share():
    rng = np.random.default_rng(0)
    tastes = {"category": "mug", "colour": "red"}
    assert not any(held_out(pretrain_tiny.draw_product(rng, tastes)) for _ in range(200))


@pytest.mark.slow
def test_the_script_makes_a_folder_that_loads_and_the_same_one_for_the_same_seed(tmp_path):
    for name in ("one", "two"):
        pretrain_tiny.main([f"--out={tmp_path / name}", "--seed=5", "--effort=0.01"])
    assert {path.name for path in (tmp_path / "one").iterdir()} == FILES
    assert_complete(AutoModel.from_pretrained(tmp_path / "one", output_loading_info=True)[1])
    assert VLMEncoder.from_pretrained(str(tmp_path / "one")).encode_text([["a mug"]]).shape == (1, 128)
    for file in ("model.safetensors", "tokenizer.json", "config.json"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes(), file
