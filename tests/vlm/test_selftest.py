"""The start-up self-test: silent on what is right, and it finds what is made wrong on purpose."""

import pytest
import torch

from recbole_vlm2rec.vlm.backbone import Backbone, BackboneError, Lora, load_pretrained
from recbole_vlm2rec.vlm.encoder import VLMEncoder
from recbole_vlm2rec.vlm.selftest import Paths, self_test


@pytest.fixture
def backbone(random_vlm):
    return Backbone(*load_pretrained(str(random_vlm), torch.float32), max_visual_tokens=16, lora=Lora())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_sound_backbone_passes_in_silence(random_vlm, dtype, recwarn):
    backbone = Backbone(*load_pretrained(str(random_vlm), dtype), max_visual_tokens=16, lora=Lora())
    assert self_test(backbone) == Paths(pack=True, pad=True, share=True)
    assert not [warning for warning in recwarn if "relative difference" in str(warning.message)]


def test_lost_positions_are_found(backbone, monkeypatch):
    def one_dimensional(ids, kinds, **_):
        return torch.arange(ids.shape[1]).expand(3, *ids.shape), None

    monkeypatch.setattr(backbone, "hidden_states", lambda *inputs: _with(backbone, one_dimensional, *inputs))
    with pytest.raises(BackboneError, match="features, computed once and kept, give another vector than its pixels"):
        self_test(backbone)


def _with(backbone, rope, *inputs):
    """hidden_states with other positions than the model's own."""
    own, backbone.model.get_rope_index = backbone.model.get_rope_index, rope
    try:
        return Backbone.hidden_states(backbone, *inputs)
    finally:
        backbone.model.get_rope_index = own


def test_features_of_another_picture_are_found(backbone, monkeypatch):
    embed = backbone.embed_pictures
    monkeypatch.setattr(backbone, "embed_pictures", lambda pictures: embed([picture.rotate(180) for picture in pictures]))
    with pytest.raises(BackboneError, match="give another vector than its pixels"):
        self_test(backbone)


def test_a_backbone_that_looks_at_padding_groups_equal_lengths_only(random_vlm, pictures, monkeypatch):
    honest = Backbone.hidden_states
    careless = lambda self, ids, mask, shown: honest(self, ids, mask, shown) + (1 - mask).sum(1)[:, None, None]  # noqa: E731  (in place of a method, beside it)
    sequences = [["a mug"], ["a mug", "a shirt"], ["a cup"]]
    with torch.no_grad():
        expected = VLMEncoder.from_pretrained(str(random_vlm)).eval().encode_text(sequences)
        monkeypatch.setattr(Backbone, "hidden_states", careless)
        with pytest.warns(UserWarning, match="only prompts of equal length share a forward"):
            encoder = VLMEncoder.from_pretrained(str(random_vlm)).eval()
        torch.testing.assert_close(encoder.encode_text(sequences), expected, atol=1e-5, rtol=1e-5)


def test_a_backbone_that_looks_ahead_shares_nothing(random_vlm, monkeypatch):
    honest = Backbone.hidden_states

    def ahead(self, ids, mask, shown):
        left = mask.sum(1, keepdim=True) - mask.cumsum(1)
        return honest(self, ids, mask, shown) + left[..., None]

    sequences = [["a mug"], ["a mug", "a shirt"]]
    with torch.no_grad():
        monkeypatch.setattr(Backbone, "hidden_states", ahead)
        with pytest.warns(UserWarning, match="what follows a token changes its hidden state"):
            encoder = VLMEncoder.from_pretrained(str(random_vlm)).eval()
        one, two = (encoder.encode_text([sequence])[0] for sequence in sequences)
        torch.testing.assert_close(encoder.encode_text(sequences), torch.stack([one, two]), atol=1e-5, rtol=1e-5)
