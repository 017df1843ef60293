"""Visual tokens kept on disk: the same vectors, computed once over runs and processes, never those of another model."""

import hashlib
import logging
import subprocess
import sys
import threading
import time

import pytest
import torch
from filelock import FileLock
from safetensors import safe_open

from recbole_vlm2rec.vlm import features
from recbole_vlm2rec.vlm.backbone import BackboneError, Lora
from recbole_vlm2rec.vlm.encoder import VLMEncoder
from recbole_vlm2rec.vlm.features import FeatureStore


def encoder_of(folder, **settings):
    return VLMEncoder.from_pretrained(str(folder), **{"max_visual_tokens": 16, **settings}).eval()


def forbidden(*_):
    raise AssertionError("computed again")


@torch.no_grad()
def test_kept_tokens_give_the_same_vectors_and_are_not_computed_again(random_vlm, pictures, tmp_path, monkeypatch):
    sequences = [pictures[:3], pictures[3:], pictures[1:2]]
    first = encoder_of(random_vlm)
    expected = first.encode_images(sequences)
    first.keep_pictures(pictures, tmp_path)
    torch.testing.assert_close(first.encode_images(sequences), expected, atol=1e-6, rtol=1e-6)
    second = encoder_of(random_vlm)
    monkeypatch.setattr(second.backbone, "embed_pictures", forbidden)
    second.keep_pictures(pictures, tmp_path)
    torch.testing.assert_close(second.encode_images(sequences), expected, atol=1e-6, rtol=1e-6)


def test_a_run_reads_exactly_what_was_computed(random_vlm, pictures, tmp_path):
    for dtype in (torch.float32, torch.bfloat16):
        backbone = encoder_of(random_vlm, dtype=dtype).backbone
        store = FeatureStore(tmp_path, backbone)
        assert store.compute(pictures) == len(pictures)
        for picture, computed in zip(pictures, backbone.embed_pictures(pictures), strict=True):
            assert store[picture].tokens.dtype == dtype
            torch.testing.assert_close(store[picture].tokens, computed.tokens, atol=0, rtol=0)
            assert torch.equal(store[picture].grid, computed.grid)


def test_equal_contents_are_one_picture_and_changed_contents_another(random_vlm, pictures, tmp_path):
    store = FeatureStore(tmp_path / "kept", encoder_of(random_vlm).backbone)
    copy = tmp_path / "copy.png"
    copy.write_bytes(pictures[0].read_bytes())
    assert store.compute([pictures[0], copy]) == 1
    copy.write_bytes(pictures[1].read_bytes())
    assert FeatureStore(tmp_path / "kept", store.backbone).compute([pictures[0], copy]) == 1


@pytest.mark.parametrize("change", ["weights", "size", "dtype"])
def test_another_tower_processor_or_arithmetic_is_another_key(change, random_vlm, pictures, tmp_path):
    FeatureStore(tmp_path, encoder_of(random_vlm).backbone).compute(pictures[:1])
    settings = {"size": {"max_visual_tokens": 4}, "dtype": {"dtype": torch.bfloat16}}.get(change, {})
    backbone = encoder_of(random_vlm, **settings).backbone
    if change == "weights":
        next(backbone.model.visual.parameters()).data.flatten()[0] += 1
    assert FeatureStore(tmp_path, backbone).compute(pictures[:1]) == 1


def test_lora_on_the_language_model_keeps_the_key(random_vlm, pictures, tmp_path):
    FeatureStore(tmp_path, encoder_of(random_vlm).backbone).compute(pictures)
    assert FeatureStore(tmp_path, encoder_of(random_vlm, lora=Lora(rank=2)).backbone).compute(pictures) == 0


def test_a_damaged_shard_is_named_and_computed_again(random_vlm, pictures, tmp_path, caplog):
    store = FeatureStore(tmp_path, encoder_of(random_vlm).backbone)
    store.compute(pictures)
    (shard,) = store.folder.glob("*.safetensors")
    shard.write_bytes(shard.read_bytes()[:-10])
    with caplog.at_level(logging.WARNING):
        assert FeatureStore(tmp_path, store.backbone).compute(pictures) == len(pictures)
    assert f"{shard} is damaged" in caplog.text


def test_a_place_that_cannot_be_written_is_said(random_vlm, pictures, tmp_path):
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(BackboneError, match="cannot be kept in .*file.*another place with feature_cache"):
        encoder_of(random_vlm).keep_pictures(pictures, tmp_path / "file")


def test_a_full_disk_is_said_and_leaves_nothing_half(random_vlm, pictures, tmp_path, monkeypatch):
    def full(tensors, path, metadata):
        path.write_bytes(b"half")
        raise features.SafetensorError("I/O error: No space left on device")

    monkeypatch.setattr(features, "save_file", full)
    store = FeatureStore(tmp_path, encoder_of(random_vlm).backbone)
    with pytest.raises(BackboneError, match="No space left on device"):
        store.compute(pictures)
    assert [file.name for file in store.folder.iterdir() if file.suffix != ".lock"] == ["about.json"]


def test_with_the_tower_in_training_nothing_is_kept_and_gradients_reach_it(random_vlm, pictures, tmp_path, caplog):
    encoder = encoder_of(random_vlm, lora=Lora(scope="all", dropout=0.0))
    with caplog.at_level(logging.INFO):
        encoder.keep_pictures(pictures, tmp_path)
    assert "visual tokens are not kept" in caplog.text and not list(tmp_path.iterdir())
    for name, weight in encoder.backbone.model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.1)
    before = encoder.encode_images([pictures[:2]])
    before.sum().backward()
    tower = [weight for name, weight in encoder.backbone.model.named_parameters() if "lora_A" in name and "visual" in name]
    assert tower and all(weight.grad.abs().max() > 0 for weight in tower)
    with torch.no_grad():
        for weight in tower:
            weight += weight.grad.sign()
        assert (encoder.encode_images([pictures[:2]]) - before).abs().max() > 1e-3, "an old picture was remembered"


WORKER = """
import sys, time
from pathlib import Path
from recbole_vlm2rec.vlm import features
from recbole_vlm2rec.vlm.encoder import VLMEncoder

model, folder, pictures, die_at, wait = sys.argv[1], sys.argv[2], sys.argv[3].split(";"), int(sys.argv[4]), sys.argv[5]
features.BATCH = features.SHARD = 2
backbone = VLMEncoder.from_pretrained(model, max_visual_tokens=16).backbone
embed, calls = backbone.embed_pictures, []


def counting(batch):
    calls.append(len(batch))
    if len(calls) == die_at:
        import os, signal
        os.kill(os.getpid(), signal.SIGKILL)
    if wait == "both":  # until the other process stands at the lock too, or has had the time to
        time.sleep(0.1)
    return embed(batch)


backbone.embed_pictures = counting
print(features.FeatureStore(folder, backbone).compute(map(Path, pictures)), sum(calls))
"""


def worker(model, folder, pictures, die_at=0, wait="no"):
    command = [sys.executable, "-c", WORKER, str(model), str(folder), ";".join(map(str, pictures)), str(die_at), wait]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def test_two_processes_at_once_share_the_work(random_vlm, pictures, tmp_path):
    processes = [worker(random_vlm, tmp_path, pictures, wait="both") for _ in range(2)]
    counts = [process.communicate()[0].split() for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    assert all(kept == embedded for kept, embedded in counts), "what a process computes it keeps"
    assert sum(int(kept) for kept, _ in counts) == len(pictures), "no picture twice"


def test_a_process_waits_for_the_share_of_another(random_vlm, pictures, tmp_path, caplog):
    """Another one holds the bucket of the first picture, computes it, and lets go."""
    encoder = encoder_of(random_vlm)
    mine, other = (FeatureStore(tmp_path, encoder.backbone) for _ in range(2))
    other.compute(pictures[1:2])
    lock = FileLock(other.folder / f".{hashlib.sha256(pictures[0].read_bytes()).hexdigest()[0]}.lock")
    held = threading.Event()

    def share():
        with lock:
            held.set()
            time.sleep(0.5)
            other._hashes[pictures[0]] = mine._hashes[pictures[0]]
            other._write("x", pictures[:1], other.backbone.embed_pictures(pictures[:1]))

    thread = threading.Thread(target=share)
    with caplog.at_level("INFO"):
        thread.start()
        held.wait()
        assert mine.compute(pictures[:1]) == 0
    assert "another process computes visual tokens" in caplog.text and pictures[0] in mine


def test_a_killed_process_is_gone_on_from(random_vlm, pictures, tmp_path):
    killed = worker(random_vlm, tmp_path, pictures, die_at=3)
    killed.communicate()
    assert killed.returncode == -9
    shards = [safe_open(file, "pt") for file in tmp_path.rglob("*.safetensors")]
    kept = sum(len(shard.get_tensor("counts")) for shard in shards)
    assert 2 <= kept < len(pictures)
    again = worker(random_vlm, tmp_path, pictures)
    assert again.communicate()[0].split() == [str(len(pictures) - kept)] * 2
