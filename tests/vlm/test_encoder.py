"""VLMEncoder against a plain per-sequence forward of the Hugging Face model, and its refusals."""

import shutil

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText, AutoTokenizer
from transformers.models.auto.image_processing_auto import AutoImageProcessor

from recbole_vlm2rec.vlm.backbone import BackboneError, Lora, assert_language_only
from recbole_vlm2rec.vlm.encoder import VLMEncoder, length_groups, longest_extensions

TITLES = ["rustic bamboo travel mug", "Ça brûle! 100% (日本語) 🎬", "a", "modern cotton office shirt", "Jumanji (1995)", "12"]
SEQUENCES = [[0, 1, 2], [3], [5, 4, 3, 2, 1, 0], [2, 2], [1], [4, 0]]


class PlainLoop:
    """What a careful user writes: the whole prompt as one string, one sequence a forward, pixels each time."""

    def __init__(self, folder, max_visual_tokens):
        self.model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.processor = AutoImageProcessor.from_pretrained(folder, backend="pil")
        self.processor.size = {"shortest_edge": 56 * 56, "longest_edge": max_visual_tokens * 28 * 28}

    @torch.no_grad()
    def vector(self, prompt, pictures=()):
        inputs = {}
        if pictures:
            pixels = self.processor(images=[Image.open(path).convert("RGB") for path in pictures], return_tensors="pt")
            for grid in pixels["image_grid_thw"]:
                prompt = prompt.replace("<image>", "<|vision_start|>" + "<|PAD|>" * (int(grid.prod()) // 4) + "<|vision_end|>", 1)
            inputs = dict(pixels)
        ids = self.tokenizer(prompt.replace("<|PAD|>", "<|image_pad|>"), return_tensors="pt")["input_ids"]
        if pictures:
            inputs["mm_token_type_ids"] = (ids == self.model.config.image_token_id).int()
        return self.model(input_ids=ids, output_hidden_states=True, **inputs).hidden_states[-1][0, -1]


@pytest.fixture(scope="module", params=[4, 16])
def both(request, random_vlm):
    encoder = VLMEncoder.from_pretrained(str(random_vlm), max_visual_tokens=request.param, token_budget=300).eval()
    return encoder, PlainLoop(random_vlm, request.param)


def entries(parts):
    return ", ".join(f"{number}) {part}" for number, part in enumerate(parts))


def test_text_equals_the_plain_loop(both):
    encoder, plain = both
    with torch.no_grad():
        vectors = encoder.encode_text([[TITLES[item] for item in items] for items in SEQUENCES])
    for items, vector in zip(SEQUENCES, vectors, strict=True):
        prompt = "Describe this item text sequence in one word,\n" + entries(TITLES[item] for item in items)
        torch.testing.assert_close(vector, plain.vector(prompt), atol=1e-5, rtol=1e-5)


def test_images_equal_the_plain_loop(both, pictures):
    encoder, plain = both
    with torch.no_grad():
        vectors = encoder.encode_images([[pictures[item] for item in items] for items in SEQUENCES])
    for items, vector in zip(SEQUENCES, vectors, strict=True):
        prompt = "Describe this item image sequence in one word,\n" + entries("<image>" for _ in items)
        torch.testing.assert_close(vector, plain.vector(prompt, [pictures[item] for item in items]), atol=1e-5, rtol=1e-5)


def test_interleaved_equals_the_plain_loop(both, pictures):
    encoder, plain = both
    with torch.no_grad():
        vectors = encoder.encode_interleaved([[(TITLES[item], pictures[item]) for item in items] for items in SEQUENCES])
    for items, vector in zip(SEQUENCES, vectors, strict=True):
        prompt = "Describe this item sequence in one word,\n" + entries(f"{TITLES[item]} <image>" for item in items)
        torch.testing.assert_close(vector, plain.vector(prompt, [pictures[item] for item in items]), atol=1e-5, rtol=1e-5)


def test_order_and_pictures_matter(both, pictures):
    encoder, _ = both
    with torch.no_grad():
        one, turned, other = encoder.encode_images([pictures[:2], pictures[1::-1], pictures[2:4]])
    assert (one - turned).abs().max() > 1e-3
    assert (one - other).abs().max() > 1e-3


def test_open_images_give_the_same_as_files(both, pictures):
    encoder, _ = both
    with torch.no_grad():
        files = encoder.encode_images([pictures[:3]])
        opened = encoder.encode_images([[Image.open(path) for path in pictures[:3]]])
    torch.testing.assert_close(files, opened)


def test_the_picture_budget_is_pinned(random_vlm, tmp_path):
    path = tmp_path / "large.png"
    Image.new("RGB", (900, 700), "red").save(path)
    encoder = VLMEncoder.from_pretrained(str(random_vlm), max_visual_tokens=16)
    assert len(encoder.backbone.embed_pictures([path])[0].tokens) <= 16


def test_a_title_that_spells_a_special_token_stays_text(both, pictures):
    encoder, _ = both
    ids = encoder.backbone.tokenize("<|image_pad|> mug")
    assert encoder.backbone.image_token not in ids
    with torch.no_grad():
        assert encoder.encode_interleaved([[("<|vision_start|><|image_pad|>", pictures[0])]]).isfinite().all()


def test_long_titles_are_cut_where_asked(random_vlm):
    whole = VLMEncoder.from_pretrained(str(random_vlm)).eval()
    cut = VLMEncoder.from_pretrained(str(random_vlm), max_title_tokens=3).eval()
    title = "red mug " * 2000
    assert len(cut.backbone.tokenize(cut._clip(title))) == 3
    with torch.no_grad():
        torch.testing.assert_close(cut.encode_text([[title]]), whole.encode_text([[cut._clip(title)]]))
    assert cut._clip("mug") == "mug"


def test_gradients_equal_the_ungrouped_ones_and_stay_in_the_language_model(random_vlm, pictures):
    prompts = [[pictures[item] for item in items] for items in SEQUENCES]
    titles = [[TITLES[item] for item in items] for items in SEQUENCES]

    def gradients(token_budget, one_by_one):
        torch.manual_seed(1)
        encoder = VLMEncoder.from_pretrained(str(random_vlm), lora=Lora(dropout=0.0), token_budget=token_budget)
        for name, parameter in encoder.named_parameters():
            if "lora_B" in name:  # zero at first, which would leave A without a gradient
                torch.nn.init.normal_(parameter, std=0.1)
        if one_by_one:
            text = torch.cat([encoder.encode_text([sequence]) for sequence in titles])
            image = torch.cat([encoder.encode_images([sequence]) for sequence in prompts])
        else:
            text, image = encoder.encode_text(titles), encoder.encode_images(prompts)
        (text * image).sum().backward()
        return {name: p.grad for name, p in encoder.named_parameters() if p.grad is not None}, encoder

    grouped, encoder = gradients(8192, False)
    alone, _ = gradients(8192, True)
    assert grouped.keys() == alone.keys() == {n for n, p in encoder.named_parameters() if p.requires_grad}
    assert all("language_model" in name and "lora_" in name for name in grouped)
    for name, gradient in grouped.items():
        error = (gradient - alone[name]).norm() / alone[name].norm()
        assert error < 1e-4, (name, error)


def test_lora_beyond_the_language_model_is_refused(random_vlm):
    encoder = VLMEncoder.from_pretrained(str(random_vlm), lora=Lora())
    model = encoder.backbone.model
    assert_language_only(model, "language_model")
    model.visual.patch_embed.proj.weight.requires_grad_(True)
    with pytest.raises(BackboneError, match="nothing else; it also reaches .*visual"):
        assert_language_only(model, "language_model")
    with pytest.raises(BackboneError, match="no layer of the language model"):
        VLMEncoder.from_pretrained(str(random_vlm), lora=Lora(targets=("qkv",)))


def test_activation_checkpointing_changes_nothing(random_vlm, pictures):
    def gradient(checkpointing):
        torch.manual_seed(1)
        encoder = VLMEncoder.from_pretrained(str(random_vlm), lora=Lora(dropout=0.0)).train()
        if checkpointing:
            encoder.backbone.checkpoint_activations()
        torch.manual_seed(2)
        encoder.encode_images([pictures[:3]])[:, 0].sum().backward()
        return [p.grad for p in encoder.parameters() if p.grad is not None]

    plain, checkpointed = gradient(False), gradient(True)
    assert len(plain) == len(checkpointed) > 0
    for expected, found in zip(plain, checkpointed, strict=True):
        torch.testing.assert_close(found, expected)


def test_weights_that_cannot_be_had_say_which_and_what_to_do(tmp_path, monkeypatch):
    # The variable HF_HUB_OFFLINE is read at import: too late here.
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(BackboneError, match=r"'no-such/model' cannot be loaded.*\n.*hub.*folder.*tiny"):
        VLMEncoder.from_pretrained("no-such/model")
    with pytest.raises(BackboneError, match="cannot be loaded"):
        VLMEncoder.from_pretrained(str(tmp_path))


def test_missing_weights_are_refused(random_vlm, tmp_path):
    folder = tmp_path / "damaged"
    shutil.copytree(random_vlm, folder)
    weights = load_file(folder / "model.safetensors")
    name = next(name for name in weights if "mlp.gate_proj" in name and "visual" not in name)
    del weights[name]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(BackboneError, match="missing .*gate_proj"):
        VLMEncoder.from_pretrained(str(folder))


def test_an_unreadable_picture_is_named(both, tmp_path):
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"<html>not found</html>")
    with pytest.raises(BackboneError, match="broken.jpg cannot be read"):
        both[0].encode_images([[broken]])


def testlength_groups_cover_every_row_within_the_budget():
    lengths = [5, 100, 7, 96, 6, 40, 300]
    groups = list(length_groups(lengths, token_budget=200))
    assert sorted(row for group in groups for row in group) == list(range(7))
    # 300 alone (beyond the budget), 100 and 96 share (2 x 100 = 200), 40 alone, 7 and 6 share, 5 is under three quarters of 7.
    assert groups == [[6], [1, 3], [5], [2, 4], [0]]


def test_longest_extensions_by_hand():
    sequences = [(1, 2), (1, 2, 3, 4), (5,), (1,), (1, 2, 3), (1, 3), ()]
    hosts = longest_extensions(sequences)
    assert [hosts[place] for place in (0, 1, 2, 4, 5)] == [1, 1, 2, 1, 5]
    for place, host in enumerate(hosts):
        assert sequences[host][: len(sequences[place])] == sequences[place]
        assert hosts[host] == host


def test_histories_that_others_begin_with_are_read_out_of_them(random_vlm, pictures, monkeypatch):
    encoder = VLMEncoder.from_pretrained(str(random_vlm), max_visual_tokens=4, lora=Lora(dropout=0.1)).eval()
    titled = [[TITLES[item] for item in items] for items in ([0, 1, 2], [0, 1], [0], [3, 1], [1, 0])]
    shown = [[pictures[item] for item in items] for items in ([0, 1, 2], [0, 1], [0], [3, 1], [1, 0])]
    pairs = [list(zip(*both)) for both in zip(titled, shown)]
    calls = []
    forward = encoder.backbone.hidden_states
    monkeypatch.setattr(encoder.backbone, "hidden_states", lambda ids, *rest: calls.append(len(ids)) or forward(ids, *rest))
    with torch.no_grad():
        for encode, sequences in (
            (encoder.encode_text, titled), (encoder.encode_images, shown), (encoder.encode_interleaved, pairs),
        ):  # fmt: skip
            calls.clear()
            together = encode(sequences)
            assert sum(calls) == 3, "the three that begin alike are one forward"
            alone = torch.cat([encode([sequence]) for sequence in sequences])
            torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-5)
            calls.clear()
            encoder.train()
            encode(sequences)
            encoder.eval()
            assert sum(calls) == 5, "while dropout is drawn each has its own"


def test_the_gradient_through_a_shared_forward_is_that_of_each_alone(random_vlm, pictures):
    gradients = []
    for together in (True, False):
        encoder = VLMEncoder.from_pretrained(str(random_vlm), max_visual_tokens=4, lora=Lora(dropout=0.0)).eval()
        for name, weight in encoder.backbone.model.named_parameters():
            if weight.requires_grad:
                torch.nn.init.normal_(weight, std=0.1, generator=torch.Generator().manual_seed(len(name)))
        sequences = [pictures[:3], pictures[:2], pictures[3:4]]
        vectors = encoder.encode_images(sequences) if together else torch.cat([encoder.encode_images([s]) for s in sequences])
        (vectors * torch.randn(vectors.shape, generator=torch.Generator().manual_seed(3))).sum().backward()
        gradients.append(torch.cat([weight.grad.flatten() for weight in encoder.parameters() if weight.requires_grad]))
    assert (gradients[0] - gradients[1]).norm() < 1e-4 * gradients[1].norm()
