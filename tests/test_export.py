"""Export: the encoder's own vectors in the catalogue's order, and from there into RecBole's order of items."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from recbole_vlm2rec import embeddings
from recbole_vlm2rec import export as export_module
from recbole_vlm2rec.config import Config
from recbole_vlm2rec.data.catalog import Catalog, CatalogError
from recbole_vlm2rec.data.dataset import create_dataset
from recbole_vlm2rec.embeddings import EmbeddingsError
from recbole_vlm2rec.export import export
from recbole_vlm2rec.model.adapter import adapted_item_embedding
from recbole_vlm2rec.vlm.backbone import Lora
from recbole_vlm2rec.vlm.checkpoint import CheckpointError, save_checkpoint
from recbole_vlm2rec.vlm.encoder import VLMEncoder
from recbole_vlm2rec.vlm.fusion import ItemEncoder

LORA = {"rank": 4, "alpha": 8, "dropout": 0.2, "targets": ("q_proj", "down_proj")}
# Neither sorted nor in the order of the interactions; nobody bought `e`.
ITEMS = {"d": "red cotton shirt", "a": "blue mug", "e": "green vase", "c": "small lamp", "b": "a red mug, large"}
COLOURS = ("red", "blue", "green", "yellow", "white")
BOUGHT = {"u": "abcd", "v": "cadb", "w": "bdac"}


def write_shop(data_path: Path, name: str, items: dict[str, str]) -> None:
    folder = data_path / name
    folder.mkdir(parents=True)
    lines = ["item_id:token\ttitle:token_seq\timage_path:token"]
    for (token, title), colour in zip(items.items(), COLOURS):
        Image.new("RGB", (56, 56), colour).save(folder / f"{token}.png")
        lines.append(f"{token}\t{title}\t{token}.png")
    (folder / f"{name}.item").write_text("\n".join(lines) + "\n")
    rows = [f"{user}\t{item}\t{time}" for user, history in BOUGHT.items() for time, item in enumerate(history)]
    (folder / f"{name}.inter").write_text("\n".join(["user_id:token\titem_id:token\ttimestamp:float", *rows]) + "\n")


@pytest.fixture(scope="module")
def data_path(tmp_path_factory):
    """A data_path with `shop` and with `other`, which has other items."""
    folder = tmp_path_factory.mktemp("data")
    write_shop(folder, "shop", ITEMS)
    write_shop(folder, "other", {"x": "a wooden chair", "y": "black boots"})
    return folder


@pytest.fixture(scope="module")
def encoder():
    """`tiny` with LoRA weights that are not 0, so that a lost adapter is noticed."""
    encoder = VLMEncoder.from_pretrained("tiny", max_visual_tokens=4, lora=Lora(**LORA)).eval()
    torch.manual_seed(4)
    for parameter in encoder.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.1)
    return encoder


@pytest.fixture
def checkpoint(encoder, data_path, tmp_path):
    """checkpoint(fusion, modalities) -> the run folder of a VLM2Rec of `shop`, as the trainer describes it."""

    def save(fusion="external", modalities="text+image"):
        choices = {"max_visual_tokens": 4, "max_title_tokens": None, "fusion": fusion, "modalities": modalities}
        description = {
            "model": "VLM2Rec",
            "dataset": "shop",
            "data_path": str(data_path / "shop"),
            "encoder": {"backbone": "tiny", "lora": LORA, **choices},
        }
        save_checkpoint(tmp_path / "run" / "checkpoint", encoder, {"alpha": torch.tensor(1.0)}, description)
        return tmp_path / "run"

    return save


def run_export(folder, out, **options):
    return embeddings.read(export(folder, out, device="cpu", show_progress=False, **options))


@pytest.mark.parametrize(
    ("fusion", "modalities", "kinds"),
    [
        ("external", "text+image", ("text", "image", "fused")),
        ("external", "text", ("text", "fused")),
        ("external", "image", ("image", "fused")),
        ("internal", "text+image", ("fused",)),
    ],
)
def test_rows_are_the_encoders_vectors_in_the_order_of_the_catalogue(
    encoder, checkpoint, data_path, tmp_path, monkeypatch, fusion, modalities, kinds
):
    """Against every item encoded alone; in batches of 2, so that 5 items take three, the last one not full."""
    monkeypatch.setattr(export_module, "ITEM_BATCH", 2)
    exported = run_export(checkpoint(fusion, modalities), tmp_path / "out")
    assert exported.item_ids == list(ITEMS)
    catalog = Catalog.read(data_path / "shop", "shop")
    for row, item in enumerate(ITEMS):
        alone = ItemEncoder(encoder, [catalog.title(item)], [catalog.image(item)], fusion, modalities)
        with torch.no_grad():
            vectors = alone.encode([[0]])
        for kind in ("text", "image", "fused"):
            expected, table = getattr(vectors, kind), getattr(exported, kind)
            assert (table is not None) == (expected is not None) == (kind in kinds)
            if table is not None:
                torch.testing.assert_close(torch.from_numpy(table[row]), expected[0], rtol=1e-4, atol=1e-4)
    # The items differ by more than the tolerance: an order that is wrong would be seen.
    assert torch.pdist(torch.from_numpy(exported.fused)).min() > 0.01


def test_the_adapter_is_in_the_vectors(checkpoint, tmp_path):
    folder = checkpoint()
    trained = run_export(folder, tmp_path / "trained").fused
    with_zeros = VLMEncoder.from_pretrained("tiny", max_visual_tokens=4, lora=Lora(**LORA))  # LoRA starts as nothing
    with_zeros.backbone.peft.save_pretrained(str(folder / "checkpoint"))
    assert abs(run_export(folder, tmp_path / "untrained").fused - trained).max() > 0.1


def test_the_manifest_says_where_the_vectors_come_from(checkpoint, data_path, tmp_path, monkeypatch):
    folder = checkpoint()
    monkeypatch.chdir(folder / "checkpoint")
    manifest = run_export(Path(), tmp_path / "out").manifest
    assert manifest["dataset"] == manifest["trained_on"] == "shop"
    assert (manifest["model"], manifest["checkpoint"], manifest["dtype"]) == ("VLM2Rec", "run", "float32")
    assert manifest["catalog"] == Catalog.read(data_path / "shop", "shop").hash
    assert manifest["encoder"]["backbone"] == "tiny" and manifest["encoder"]["lora"]["rank"] == 4


def test_another_data_set_beside_the_trained_one_or_elsewhere(checkpoint, data_path, tmp_path):
    folder = checkpoint()
    exported = run_export(folder, tmp_path / "out", dataset="other")
    assert exported.item_ids == ["x", "y"]
    assert (exported.manifest["dataset"], exported.manifest["trained_on"]) == ("other", "shop")
    write_shop(tmp_path / "elsewhere", "shop", {"q": "a hat"})
    assert run_export(folder, tmp_path / "out", data_path=tmp_path / "elsewhere").item_ids == ["q"]


def test_what_does_not_exist_is_refused(checkpoint, tmp_path):
    folder = checkpoint()
    with pytest.raises(CatalogError, match=r"unknown.unknown\.item does not exist"):
        run_export(folder, tmp_path / "out", dataset="unknown")
    with pytest.raises(CatalogError, match=r"nowhere.shop.shop\.item does not exist"):
        run_export(folder, tmp_path / "out", data_path=tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match="nowhere is no checkpoint"):
        run_export(tmp_path / "nowhere", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_place_that_is_taken_is_refused_before_anything_is_encoded(checkpoint, tmp_path, monkeypatch):
    folder = checkpoint()
    monkeypatch.setattr(export_module, "open_trained", None)  # would raise TypeError when called
    with pytest.raises(EmbeddingsError, match="run exists and is no export"):
        run_export(folder, folder)
    assert os.listdir(folder) == ["checkpoint"]


def downstream(data_path, tmp_path, **changes):
    settings = {
        "data_path": str(data_path),
        "checkpoint_dir": str(tmp_path / "saved"),
        "eval_negatives": "full",
        "use_gpu": False,
        "item_embeddings": str(tmp_path / "out"),
        **changes,
    }
    config = Config("VLM2RecSASRec", "shop", config_dict=settings)
    return config, create_dataset(config)


def test_the_item_table_follows_recboles_order(checkpoint, data_path, tmp_path):
    exported = run_export(checkpoint(), tmp_path / "out")
    config, dataset = downstream(data_path, tmp_path)
    tokens = dataset.id2token(dataset.iid_field, range(1, dataset.item_num)).tolist()
    assert sorted(tokens) == ["a", "b", "c", "d"] and tokens != [item for item in ITEMS if item != "e"]

    table = adapted_item_embedding(config, dataset, 8).table.weight
    assert table.shape == (5, exported.fused.shape[1]) and table[0].abs().max() == 0
    by_token = dict(zip(exported.item_ids, torch.from_numpy(exported.fused), strict=True))
    rows = torch.stack([by_token[token] for token in tokens])
    # One number for the whole table: the root mean square of the four norms.
    torch.testing.assert_close(table[1:] * rows.norm(dim=1).square().mean().sqrt(), rows)


def test_an_export_that_does_not_fit_is_refused_with_the_reason(checkpoint, data_path, tmp_path):
    run_export(checkpoint(), tmp_path / "out", dataset="other")
    with pytest.raises(EmbeddingsError, match="holds the items of data set 'other', but 'shop' is asked for"):
        adapted_item_embedding(*downstream(data_path, tmp_path), 8)
    write_shop(tmp_path / "fewer", "shop", {"d": "red cotton shirt", "b": "a red mug"})
    run_export(tmp_path / "run", tmp_path / "out", data_path=tmp_path / "fewer")
    with pytest.raises(EmbeddingsError, match="2 of 4 items are missing, the first are 'a', 'c'"):
        adapted_item_embedding(*downstream(data_path, tmp_path), 8)
    with pytest.raises(ValueError, match="VLM2RecSASRec needs --item_embeddings=FOLDER"):
        adapted_item_embedding(*downstream(data_path, tmp_path, item_embeddings=None), 8)


WORKER = """
import os, signal, sys
from recbole_vlm2rec import export as export_module
from recbole_vlm2rec.vlm.fusion import ItemEncoder

export_module.ITEM_BATCH = 2
encode, calls = ItemEncoder.encode, []


def counting(self, sequences):
    calls.append(len(sequences))
    if len(calls) == int(sys.argv[3]):
        os.kill(os.getpid(), signal.SIGKILL)
    return encode(self, sequences)


ItemEncoder.encode = counting
export_module.export(sys.argv[1], sys.argv[2], device="cpu", show_progress=False)
print(sum(calls))
"""


def worker(run, out, die_at=0, **environment):
    command = [sys.executable, "-c", WORKER, str(run), str(out), str(die_at)]
    return subprocess.Popen(command, env={**os.environ, **environment}, stdout=subprocess.PIPE, text=True)


def files(folder):
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def test_killed_it_goes_on_and_several_processes_share_the_work(checkpoint, tmp_path):
    """Five items in three batches of two; every way gives the same bytes."""
    run = checkpoint()
    undisturbed = worker(run, tmp_path / "one")
    assert undisturbed.communicate()[0].split() == ["5"]
    expected = files(tmp_path / "one")

    killed = worker(run, tmp_path / "two", die_at=2)
    killed.communicate()
    assert killed.returncode == -9 and not (tmp_path / "two").exists()
    assert worker(run, tmp_path / "two").communicate()[0].split() == ["3"], "two of the five were embedded before"
    assert files(tmp_path / "two") == expected and not (tmp_path / "two.parts").exists()

    shares = [worker(run, tmp_path / "three", RANK=str(rank), WORLD_SIZE="2") for rank in range(2)]
    assert sorted(share.communicate()[0].split() for share in shares) == [["2"], ["3"]]
    assert files(tmp_path / "three") == expected and not (tmp_path / "three.parts").exists()


def test_parts_of_another_export_are_not_taken_up(checkpoint, data_path, tmp_path):
    run = checkpoint()
    killed = worker(run, tmp_path / "out", die_at=2)
    killed.communicate()
    assert len(list((tmp_path / "out.parts").rglob("*.safetensors"))) == 1
    checkpoint(modalities="text")
    assert worker(run, tmp_path / "out").communicate()[0].split() == ["5"]
    assert embeddings.read(tmp_path / "out").image is None
    checkpoint()
    assert worker(run, tmp_path / "out").communicate()[0].split() == ["3"], "the first one's parts are still there"
    assert embeddings.read(tmp_path / "out").image is not None and not (tmp_path / "out.parts").exists()


def test_who_comes_late_finds_the_export_done(checkpoint, tmp_path):
    run = checkpoint()
    assert worker(run, tmp_path / "out").communicate()[0].split() == ["5"]
    expected = files(tmp_path / "out")
    assert worker(run, tmp_path / "out", RANK="1", WORLD_SIZE="2").communicate()[0].split() == ["0"]
    assert files(tmp_path / "out") == expected and not (tmp_path / "out.parts").exists()


def test_without_a_feature_cache_nothing_is_kept_and_the_vectors_are_the_same(checkpoint, tmp_path):
    run = checkpoint()
    kept = run_export(run, tmp_path / "kept")
    assert (tmp_path / "features").is_dir()
    bare = run_export(run, tmp_path / "bare", feature_cache="none")
    assert bare.fused.tolist() == kept.fused.tolist() and not (tmp_path / "none").exists()
