"""Titles and pictures of items fused into vectors (eq. 2), and the choices that are refused."""

import pytest
import torch

from recbole_vlm2rec.vlm.backbone import Lora
from recbole_vlm2rec.vlm.encoder import VLMEncoder
from recbole_vlm2rec.vlm.fusion import ItemEncoder, Vectors

TITLES = [None, "red mug", "blue lamp", "green shoe"]


@pytest.fixture(scope="module")
def build(random_vlm, pictures):
    encoder = VLMEncoder.from_pretrained(str(random_vlm), max_visual_tokens=4).eval()
    return lambda *choice: ItemEncoder(encoder, TITLES, [None, *pictures[:3]], *choice)


@torch.no_grad()
def test_external_fusion_is_the_raw_sum(build, pictures):
    items = build("external", "text+image")
    vectors = items.encode([[1, 2], [3]])
    torch.testing.assert_close(vectors.text, items.encoder.encode_text([["red mug", "blue lamp"], ["green shoe"]]))
    torch.testing.assert_close(vectors.image, items.encoder.encode_images([pictures[:2], pictures[2:3]]))
    torch.testing.assert_close(vectors.fused, vectors.text + vectors.image)


@torch.no_grad()
def test_internal_fusion_reads_one_prompt(build, pictures):
    items = build("internal")
    vectors = items.encode([[1, 2]])
    assert vectors.text is None and vectors.image is None
    expected = items.encoder.encode_interleaved([[("red mug", pictures[0]), ("blue lamp", pictures[1])]])
    torch.testing.assert_close(vectors.fused, expected)


@torch.no_grad()
def test_one_modality_is_fused_alone(build):
    both = build("external", "text+image").encode([[2, 1]])
    text, image = build("external", "text").encode([[2, 1]]), build("external", "image").encode([[2, 1]])
    assert text.image is None and image.text is None
    torch.testing.assert_close(text.fused, both.text)
    torch.testing.assert_close(image.fused, both.image)


@pytest.mark.parametrize("choice, words", [
    (("inner", "text+image"), "fusion is 'inner'"),
    (("external", "images"), "modalities is 'images'"),
    (("internal", "text"), "no use for it"),
])  # fmt: skip
def test_choices_without_meaning_are_refused(build, choice, words):
    with pytest.raises(ValueError, match=words):
        build(*choice)


def test_vectors_combine_kind_by_kind():
    one = Vectors(torch.tensor([[1.0], [2.0]]), None, torch.tensor([[3.0], [4.0]]))
    two = one.rows(slice(1, None))
    assert two.text.tolist() == [[2.0]] and two.image is None and two.fused.tolist() == [[4.0]]
    joined = Vectors.of(lambda *kinds: torch.cat(kinds), one, two)
    assert joined.fused.tolist() == [[3.0], [4.0], [4.0]]


def trained(random_vlm, pictures, dropout):
    """An ItemEncoder in training mode whose LoRA weights are far from zero."""
    encoder = VLMEncoder.from_pretrained(str(random_vlm), max_visual_tokens=4, lora=Lora(dropout=dropout)).train()
    for name, weight in encoder.backbone.model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.1, generator=torch.Generator().manual_seed(len(name)))
    return ItemEncoder(encoder, TITLES, [None, *pictures[:3]])


def loss_and_gradients(items, encode):
    torch.manual_seed(5)
    vectors = encode(items)
    # A loss over all vectors at once, as the contrastive one is.
    loss = (vectors.fused @ vectors.fused.T).softmax(-1).diagonal().log().mean() + vectors.text[:, 0].mean()
    loss.backward()
    gradients = [weight.grad.clone() for weight in items.parameters() if weight.requires_grad]
    items.zero_grad()
    return loss.item(), gradients


SEQUENCES = [[1, 2], [3], [2, 3, 1], [1], [3, 1]]


@pytest.mark.parametrize("size", [1, 2, 9])
def test_gradcache_gives_the_loss_and_gradients_of_one_batch(size, random_vlm, pictures):
    items = trained(random_vlm, pictures, dropout=0.0)
    loss, gradients = loss_and_gradients(items, lambda items: items.encode(SEQUENCES))
    again, cached = loss_and_gradients(items, lambda items: items.encode_cached(SEQUENCES, size))
    assert again == pytest.approx(loss, abs=1e-5)
    one, other = (torch.cat([gradient.flatten() for gradient in each]) for each in (gradients, cached))
    assert (one - other).norm() < 1e-5 * one.norm()


def test_gradcache_replays_dropout(random_vlm, pictures):
    items = trained(random_vlm, pictures, dropout=0.5)

    def in_parts(items):
        parts = [items.encode(SEQUENCES[start : start + 2]) for start in (0, 2, 4)]
        return Vectors.of(lambda *vectors: torch.cat(vectors), *parts)

    loss, gradients = loss_and_gradients(items, in_parts)
    again, cached = loss_and_gradients(items, lambda items: items.encode_cached(SEQUENCES, 2))
    assert again == loss
    one, other = (torch.cat([gradient.flatten() for gradient in each]) for each in (gradients, cached))
    assert (one - other).norm() < 1e-5 * one.norm()


def test_gradcache_keeps_no_activations(random_vlm, pictures):
    """What autograd saves between forward and backward: with GradCache next to nothing, however long the batch."""
    items = trained(random_vlm, pictures, dropout=0.0)

    def saved(encode):
        sizes = []
        with torch.autograd.graph.saved_tensors_hooks(
            lambda tensor: sizes.append(tensor.nbytes) or tensor, lambda tensor: tensor
        ):
            encode()
        return sum(sizes)

    whole = saved(lambda: items.encode(SEQUENCES * 2))
    assert saved(lambda: items.encode_cached(SEQUENCES * 2, 2)) < whole / 20
