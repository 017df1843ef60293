"""PooledEncoder against the Hugging Face models themselves, one title or picture at a time, and its refusals."""

import shutil

import pytest
import torch
from PIL import Image
from transformers import AutoModel, AutoTokenizer, BertConfig, BertForMaskedLM
from transformers.models.auto.image_processing_auto import AutoImageProcessor

from recbole_vlm2rec.vlm import pooled
from recbole_vlm2rec.vlm.backbone import BackboneError
from recbole_vlm2rec.vlm.pooled import PooledEncoder, PooledItemEncoder

TITLES = ["red mug", "a large blue lamp with 2 shades, red", "lamp", "blue mug, red lamp", "[SEP] mug"]


def plain(folder, title, **options):
    """The model, and its input for one title without padding."""
    ids = AutoTokenizer.from_pretrained(folder)(title, split_special_tokens=True, return_tensors="pt", **options)["input_ids"]
    return AutoModel.from_pretrained(folder).eval(), ids


@pytest.mark.parametrize("token_budget", [8192, 20])
def test_mean_is_over_the_titles_own_tokens(tiny_bert, token_budget):
    vectors = PooledEncoder.from_pretrained(str(tiny_bert), "mean", token_budget=token_budget).encode_text(TITLES)
    assert vectors.shape == (5, 32) and vectors.dtype == torch.float32 and not vectors.requires_grad
    for title, vector in zip(TITLES, vectors, strict=True):
        model, ids = plain(tiny_bert, title)
        with torch.no_grad():
            states = model(ids).last_hidden_state[0]
        assert ids.tolist()[0].count(3) == 1  # a title that spells [SEP] does not end there
        torch.testing.assert_close(vector, sum(states) / len(states), atol=1e-6, rtol=1e-5)


def test_cls_is_the_first_token(tiny_bert):
    vectors = PooledEncoder.from_pretrained(str(tiny_bert), "cls").encode_text(TITLES)
    for title, vector in zip(TITLES, vectors, strict=True):
        model, ids = plain(tiny_bert, title)
        with torch.no_grad():
            torch.testing.assert_close(vector, model(ids).last_hidden_state[0, 0], atol=1e-6, rtol=1e-5)


def test_the_text_tower_of_an_image_text_model_is_an_encoder_too(tiny_clip):
    (vector,) = PooledEncoder.from_pretrained(str(tiny_clip), "mean").encode_text(TITLES[:1])
    model, ids = plain(tiny_clip, TITLES[0])
    with torch.no_grad():
        expected = model.text_model(ids).last_hidden_state[0].mean(0)
    torch.testing.assert_close(vector, expected, atol=1e-6, rtol=1e-5)


def test_projected_is_the_models_own_features(tiny_clip, pictures, monkeypatch):
    monkeypatch.setattr(pooled, "PICTURE_BATCH", 4)
    encoder = PooledEncoder.from_pretrained(str(tiny_clip), "projected")
    texts, images = encoder.encode_text(TITLES), encoder.encode_images(pictures)
    assert texts.shape == (5, 24) and images.shape == (6, 24) and encoder.hidden_size == 24
    processor = AutoImageProcessor.from_pretrained(tiny_clip, backend="pil")
    with torch.no_grad():
        for title, vector in zip(TITLES, texts, strict=True):
            model, ids = plain(tiny_clip, title)
            expected = model.text_projection(model.text_model(ids).pooler_output)[0]
            torch.testing.assert_close(vector, expected, atol=1e-6, rtol=1e-5)
        for path, vector in zip(pictures, images, strict=True):
            pixels = processor(images=Image.open(path).convert("RGB"), return_tensors="pt")["pixel_values"]
            expected = model.visual_projection(model.vision_model(pixels).pooler_output)[0]
            torch.testing.assert_close(vector, expected, atol=1e-6, rtol=1e-5)


def test_features_of_older_transformers_are_tensors(tiny_clip, monkeypatch):
    encoder = PooledEncoder.from_pretrained(str(tiny_clip), "projected")
    expected, newer = encoder.encode_text(TITLES), encoder.model.get_text_features
    monkeypatch.setattr(encoder.model, "get_text_features", lambda **inputs: newer(**inputs).pooler_output)
    torch.testing.assert_close(encoder.encode_text(TITLES), expected)


def test_a_model_that_reads_the_padding_gets_titles_of_full_length(tiny_siglip, tiny_clip):
    encoder = PooledEncoder.from_pretrained(str(tiny_siglip), "projected")
    assert encoder.pads_fully and not PooledEncoder.from_pretrained(str(tiny_clip), "projected").pads_fully
    for title, vector in zip(TITLES, encoder.encode_text(TITLES), strict=True):
        model, ids = plain(tiny_siglip, title, padding="max_length", max_length=64)
        with torch.no_grad():
            torch.testing.assert_close(vector, model.get_text_features(ids).pooler_output[0], atol=1e-6, rtol=1e-5)


def test_long_titles_are_cut(tiny_bert):
    encoder = PooledEncoder.from_pretrained(str(tiny_bert))
    long, cut = encoder.encode_text(["mug " * 500, "mug " * 62])  # with [CLS] and [SEP] 64 tokens
    torch.testing.assert_close(long, cut, atol=1e-6, rtol=1e-5)
    shorter = PooledEncoder.from_pretrained(str(tiny_bert), max_title_tokens=2)
    one, two = shorter.encode_text(["red mug and lamp", "red mug"])
    torch.testing.assert_close(one, two, atol=1e-6, rtol=1e-5)
    assert not torch.allclose(*encoder.encode_text(["red mug and lamp", "red mug"]), atol=1e-3)


@pytest.mark.parametrize("modalities", ["text", "image", "text+image"])
def test_a_history_is_the_mean_of_its_items(tiny_clip, pictures, modalities):
    encoder = PooledEncoder.from_pretrained(str(tiny_clip), "projected")
    items = PooledItemEncoder(encoder, [None, *TITLES[:3]], [None, *pictures[:3]], modalities=modalities)
    text, image = encoder.encode_text(TITLES[:3]), encoder.encode_images(pictures[:3])
    fused = {"text": text, "image": image, "text+image": text + image}[modalities]
    found = items.encode([[1, 3, 3], [2], [3, 2]])
    expected = torch.stack([(fused[0] + 2 * fused[2]) / 3, fused[1], (fused[2] + fused[1]) / 2])
    torch.testing.assert_close(found.fused, expected, atol=1e-5, rtol=1e-5)
    assert (found.text is None, found.image is None) == ("text" not in modalities, "image" not in modalities)
    if items.apart:
        torch.testing.assert_close(found.text[2], (text[2] + text[1]) / 2, atol=1e-6, rtol=1e-5)
        torch.testing.assert_close(found.image[2], (image[2] + image[1]) / 2, atol=1e-6, rtol=1e-5)


def test_an_item_is_encoded_once(tiny_bert, monkeypatch):
    encoder = PooledEncoder.from_pretrained(str(tiny_bert))
    read, encode = [], encoder.encode_text
    monkeypatch.setattr(encoder, "encode_text", lambda titles: read.extend(titles) or encode(titles))
    items = PooledItemEncoder(encoder, TITLES, [None] * 5)
    first = items.encode([[0, 1], [1]]).fused
    torch.testing.assert_close(items.encode([[1, 0], [1], [2, 2]]).fused[:2], first)
    assert read == TITLES[:3]


def test_refusals(tiny_bert, tiny_clip, pictures, tmp_path):
    with pytest.raises(ValueError, match="pooling is 'max': choose one of mean, cls, projected"):
        PooledEncoder.from_pretrained(str(tiny_bert), "max")
    with pytest.raises(BackboneError, match="'bert' has no space that titles and pictures share"):
        PooledEncoder.from_pretrained(str(tiny_bert), "projected")
    bert, clip = PooledEncoder.from_pretrained(str(tiny_bert)), PooledEncoder.from_pretrained(str(tiny_clip), "projected")
    with pytest.raises(BackboneError, match="'bert' with pooling mean reads text alone"):
        bert.encode_images(pictures)
    with pytest.raises(ValueError, match="modalities text.image needs pooling projected"):
        PooledItemEncoder(bert, TITLES, pictures, modalities="text+image")
    with pytest.raises(ValueError, match="fusion is internal"):
        PooledItemEncoder(clip, TITLES, pictures, fusion="internal", modalities="text+image")
    (tmp_path / "broken.png").write_text("no picture")
    with pytest.raises(BackboneError, match="broken.png cannot be read"):
        clip.encode_images([tmp_path / "broken.png"])


def test_what_cannot_be_loaded_is_named(tiny_bert, tmp_path):
    with pytest.raises(BackboneError, match="item encoder .*nowhere.* cannot be loaded"):
        PooledEncoder.from_pretrained(str(tmp_path / "nowhere"))
    shutil.copytree(tiny_bert, tmp_path / "wider")
    BertConfig.from_pretrained(tiny_bert, num_hidden_layers=3).save_pretrained(tmp_path / "wider")
    with pytest.raises(BackboneError, match="weights do not fit the architecture BertModel: missing .*layer.2"):
        PooledEncoder.from_pretrained(str(tmp_path / "wider"))


def test_a_pretraining_head_more_and_a_pooler_less_do_not_matter(tiny_bert, tmp_path):
    """As in the published BERT, RoBERTa and MPNet."""
    torch.manual_seed(0)
    model = BertForMaskedLM(BertConfig.from_pretrained(tiny_bert))
    model.save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(tiny_bert).save_pretrained(tmp_path)
    (vector,) = PooledEncoder.from_pretrained(str(tmp_path), "cls").encode_text(["red mug"])
    _, ids = plain(tiny_bert, "red mug")
    with torch.no_grad():
        expected = model.eval().bert(ids).last_hidden_state[0, 0]
    torch.testing.assert_close(vector, expected, atol=1e-6, rtol=1e-5)
