"""Export folders: what goes in comes out, and everything that is damaged or foreign is refused with the reason."""

import hashlib
import json
import os
import re

import numpy as np
import pytest
from safetensors.numpy import load_file, save

from recbole_vlm2rec import embeddings
from recbole_vlm2rec.embeddings import EmbeddingsError

# Not sorted, with characters that naive readers trip over (U+2028 is a line end for str.splitlines).
ITEMS = ["b 7", "NA", "é\u2028x", "10"]
TEXT = np.array([[1, 2], [3, 4], [5, 6], [7, 8]], dtype=np.float32)
IMAGE = np.array([[10, 20], [30, 40], [50, 60], [70, 80]], dtype=np.float32)


@pytest.fixture
def folder(tmp_path):
    embeddings.write(tmp_path / "shop", ITEMS, TEXT, IMAGE, fused=TEXT + IMAGE, manifest={"dataset": "shop", "model": "VLM2Rec"})
    return tmp_path / "shop"


def rewrite(folder, name, data):
    """Puts other bytes into an export and states their hash, as a writer with a fault would."""
    (folder / name).write_bytes(data)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["content"]["sha256"][name] = hashlib.sha256(data).hexdigest()
    (folder / "manifest.json").write_text(json.dumps(manifest))


def test_round_trip(folder):
    export = embeddings.read(folder)
    assert export.item_ids == ITEMS
    for table, expected in ((export.text, TEXT), (export.image, IMAGE), (export.fused, TEXT + IMAGE)):
        assert table.dtype == np.float32
        assert table.tolist() == expected.tolist()
    assert (export.manifest["dataset"], export.manifest["model"]) == ("shop", "VLM2Rec")
    content = export.manifest["content"]
    assert (content["format"], content["items"], content["dimension"]) == (1, 4, 2)


def test_the_files_are_what_the_contract_says(folder):
    assert sorted(file.name for file in folder.iterdir()) == ["embeddings.safetensors", "item_ids.txt", "manifest.json"]
    assert (folder / "item_ids.txt").read_bytes() == "b 7\nNA\né\u2028x\n10\n".encode()
    assert set(load_file(folder / "embeddings.safetensors")) == {"text", "image", "fused"}


def test_written_in_blocks_the_bytes_are_safetensors_own(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(embeddings, "BLOCK", 3)
    embeddings.write(tmp_path / "blocks", iter(ITEMS), TEXT, IMAGE, fused=TEXT + IMAGE, manifest={"dataset": "shop"})
    expected = save({"text": TEXT, "image": IMAGE, "fused": TEXT + IMAGE})
    assert (folder / "embeddings.safetensors").read_bytes() == expected
    assert (tmp_path / "blocks" / "embeddings.safetensors").read_bytes() == expected


def test_an_export_is_found_by_its_manifest_as_long_as_it_is_whole(folder):
    stated = {"dataset": "shop", "model": "VLM2Rec"}
    assert embeddings.find(folder, stated)
    assert not embeddings.find(folder, {**stated, "model": "other"}) and not embeddings.find(folder / "nowhere", stated)
    with open(folder / "item_ids.txt", "a") as file:
        file.write("x\n")
    assert not embeddings.find(folder, stated)


def test_one_modality_or_internal_fusion_has_fused_alone(tmp_path):
    embeddings.write(tmp_path / "out", ITEMS, fused=TEXT.astype(np.float64), manifest={})
    export = embeddings.read(tmp_path / "out")
    assert export.text is None and export.image is None
    assert export.fused.dtype == np.float32
    picked = export.rows(["10"])
    assert picked.text is None and picked.fused.tolist() == [[7, 8]]


def test_rows_follow_the_tokens(folder):
    rows = embeddings.read(folder).rows(np.array(["10", "b 7"]))
    assert rows.item_ids == ["10", "b 7"]
    assert rows.text.tolist() == [[7, 8], [1, 2]]
    assert rows.image.tolist() == [[70, 80], [10, 20]]
    assert rows.fused.tolist() == [[77, 88], [11, 22]]


def test_rows_name_the_items_that_are_missing(folder):
    with pytest.raises(EmbeddingsError, match=r"shop.item_ids\.txt: 2 of 3 items are missing, the first are 'p1', 'p2'"):
        embeddings.read(folder).rows(["NA", "p1", "p2"])


def test_an_export_of_another_data_set_is_refused(folder):
    export = embeddings.read(folder)
    export.require(dataset="shop")
    with pytest.raises(EmbeddingsError, match="holds the items of data set 'shop', but 'Beauty' is asked for"):
        export.require(dataset="Beauty")


def test_an_export_is_replaced_whole(folder):
    embeddings.write(folder, ["a"], fused=np.ones((1, 3)), manifest={"dataset": "other"})
    export = embeddings.read(folder)
    assert export.item_ids == ["a"] and export.text is None and export.manifest["dataset"] == "other"
    assert [file.name for file in folder.parent.iterdir()] == ["shop"]


def test_a_folder_with_a_manifest_of_its_own_is_left_alone(folder):
    """Other programs write a manifest.json too."""
    (folder / "thesis.txt").write_text("mine")
    with pytest.raises(EmbeddingsError, match=r"exists and is no export \(thesis\.txt\)"):
        embeddings.write(folder, ["a"], fused=np.ones((1, 3)), manifest={})
    assert embeddings.read(folder).item_ids == ITEMS and (folder / "thesis.txt").read_text() == "mine"


def test_an_incomplete_export_is_replaced(folder):
    (folder / "manifest.json").unlink()
    embeddings.write(folder, ["a"], fused=np.ones((1, 3)), manifest={})
    assert embeddings.read(folder).item_ids == ["a"]


def test_a_link_to_an_export_stays_a_link(folder, tmp_path):
    (tmp_path / "latest").symlink_to(folder)
    embeddings.write(tmp_path / "latest", ["a"], fused=np.ones((1, 3)), manifest={})
    assert (tmp_path / "latest").is_symlink() and embeddings.read(folder).item_ids == ["a"]
    assert sorted(file.name for file in tmp_path.iterdir()) == ["latest", "shop"]


def test_a_folder_of_something_else_is_left_alone(tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(EmbeddingsError, match="exists and is no export"):
        embeddings.write(tmp_path, ITEMS, fused=TEXT, manifest={})
    with pytest.raises(EmbeddingsError, match="exists and is no export"):
        embeddings.write(tmp_path / "thesis.txt", ITEMS, fused=TEXT, manifest={})
    assert [(file.name, file.read_text()) for file in tmp_path.iterdir()] == [("thesis.txt", "mine")]


def test_an_empty_folder_is_used(tmp_path):
    embeddings.write(tmp_path, ITEMS, fused=TEXT, manifest={})
    assert embeddings.read(tmp_path).item_ids == ITEMS


def test_nothing_is_left_when_the_manifest_is_no_json(tmp_path):
    with pytest.raises(TypeError):
        embeddings.write(tmp_path / "out", ITEMS, fused=TEXT, manifest={"dataset": object()})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("failing", ["export to old", "draft to export"])
def test_a_failing_disk_leaves_the_old_export_and_no_draft(folder, monkeypatch, failing):
    replace, moves = embeddings.os.replace, []

    def full(source, target):
        moves.append(target)
        if len(moves) == ["export to old", "draft to export"].index(failing) + 1:
            raise OSError("no space left")
        replace(source, target)

    monkeypatch.setattr(embeddings.os, "replace", full)
    with pytest.raises(OSError, match="no space left"):
        embeddings.write(folder, ["a"], fused=np.ones((1, 3)), manifest={})
    assert [file.name for file in folder.parent.iterdir()] == ["shop"]
    assert embeddings.read(folder).item_ids == ITEMS


def test_what_a_killed_process_left_is_no_hindrance(folder):
    """In containers, process numbers come again soon."""
    for name in (f"shop.{os.getpid()}.draft", f"shop.{os.getpid()}.old"):
        (folder.parent / name).mkdir()
        (folder.parent / name / "item_ids.txt").write_text("half\n")
    embeddings.write(folder, ["a"], fused=np.ones((1, 3)), manifest={})
    assert embeddings.read(folder).item_ids == ["a"]
    assert [file.name for file in folder.parent.iterdir()] == ["shop"]


def test_a_missing_folder_is_refused(tmp_path):
    with pytest.raises(EmbeddingsError, match="nowhere is no complete export; export again"):
        embeddings.read(tmp_path / "nowhere")


@pytest.mark.parametrize("name", ["item_ids.txt", "embeddings.safetensors", "manifest.json"])
def test_a_missing_file_is_refused(folder, name):
    (folder / name).unlink()
    with pytest.raises(EmbeddingsError, match=rf"{re.escape(name)} cannot be read \(No such file"):
        embeddings.read(folder)


@pytest.mark.parametrize("name", ["item_ids.txt", "embeddings.safetensors"])
def test_a_changed_file_is_refused(folder, name):
    data = (folder / name).read_bytes()
    (folder / name).write_bytes(data[:-2] + bytes([data[-2] ^ 1]) + data[-1:])
    with pytest.raises(EmbeddingsError, match=rf"{re.escape(name)} is not the file that manifest.json describes"):
        embeddings.read(folder)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"content": {"sha256": {}}}'])
def test_a_foreign_manifest_is_refused(folder, text):
    (folder / "manifest.json").write_text(text)
    with pytest.raises(EmbeddingsError, match="manifest.json is no manifest of an export"):
        embeddings.read(folder)


def test_another_format_is_refused(folder):
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["content"]["format"] = 2
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(EmbeddingsError, match="manifest.json: format 2, but this version of the project reads 1"):
        embeddings.read(folder)


def test_items_of_another_encoding_are_refused(folder):
    rewrite(folder, "item_ids.txt", "a\nb\né\nd\n".encode("latin-1"))
    with pytest.raises(EmbeddingsError, match="shop cannot be read .*utf-8"):
        embeddings.read(folder)


def test_a_tensor_file_of_another_format_is_refused(folder):
    rewrite(folder, "embeddings.safetensors", b"not tensors")
    with pytest.raises(EmbeddingsError, match="shop cannot be read"):
        embeddings.read(folder)


WRONG = {
    "non-finite": (
        {"fused": np.array([[1, 2], [3, np.nan], [5, np.inf], [7, 8]])},
        "fused: 2 rows hold NaN or infinite values, the first is item 'NA'",
    ),
    "rows": ({"fused": TEXT, "text": TEXT[:3]}, "text: 3 rows for 4 items"),
    "width": ({"fused": TEXT, "image": IMAGE[:, :1]}, r"image: float32 \[4, 1\], where float32 \[items, d\] is due"),
    "flat": ({"fused": TEXT[:, 0]}, r"fused: float32 \[4\], where"),
}


@pytest.mark.parametrize(("tables", "message"), WRONG.values(), ids=WRONG)
def test_wrong_tables_are_refused_both_ways(folder, tmp_path, tables, message):
    stored = {kind: np.ascontiguousarray(table, np.float32) for kind, table in tables.items()}
    rewrite(folder, "embeddings.safetensors", save(stored))
    with pytest.raises(EmbeddingsError, match=message):
        embeddings.read(folder)
    with pytest.raises(EmbeddingsError, match=message):
        embeddings.write(tmp_path / "out", ITEMS, **tables, manifest={})
    assert not (tmp_path / "out").exists()


def test_tables_of_another_type_or_name_are_refused(folder):
    rewrite(folder, "embeddings.safetensors", save({"fused": TEXT.astype(np.float64)}))
    with pytest.raises(EmbeddingsError, match=r"fused: float64 \[4, 2\]"):
        embeddings.read(folder)
    rewrite(folder, "embeddings.safetensors", save({"text": TEXT}))
    with pytest.raises(EmbeddingsError, match="holds text: fused is needed"):
        embeddings.read(folder)
    rewrite(folder, "embeddings.safetensors", save({"fused": TEXT, "price": TEXT}))
    with pytest.raises(EmbeddingsError, match="holds fused, price: fused is needed, text and image may stand"):
        embeddings.read(folder)


@pytest.mark.parametrize(
    ("items", "message"),
    [
        (["a", "b", "a", "c"], "line 3: item 'a' stands on line 1 already"),
        (["a", "", "b", "c"], "line 2: item '' is empty"),
    ],
)
def test_wrong_items_are_refused_both_ways(folder, tmp_path, items, message):
    rewrite(folder, "item_ids.txt", "".join(f"{item}\n" for item in items).encode())
    with pytest.raises(EmbeddingsError, match=message):
        embeddings.read(folder)
    with pytest.raises(EmbeddingsError, match=message):
        embeddings.write(tmp_path / "out", items, fused=TEXT, manifest={})


def test_no_items_are_refused_both_ways(folder, tmp_path):
    rewrite(folder, "item_ids.txt", b"")
    with pytest.raises(EmbeddingsError, match="item_ids.txt: no items"):
        embeddings.read(folder)
    with pytest.raises(EmbeddingsError, match="item_ids.txt: no items"):
        embeddings.write(tmp_path / "out", [], fused=np.ones((0, 2)), manifest={})


def test_an_item_with_a_line_break_is_not_written(tmp_path):
    with pytest.raises(EmbeddingsError, match="line 2: item 'b.nc' is empty or holds a line break"):
        embeddings.write(tmp_path / "out", ["a", "b\nc"], fused=TEXT[:2], manifest={})


def test_another_catalogue_of_the_same_name_is_refused(tmp_path):
    embeddings.write(
        tmp_path / "export", ["a"], fused=np.ones((1, 2), dtype=np.float32), manifest={"dataset": "shop", "catalog": "old"}
    )
    export = embeddings.read(tmp_path / "export")
    export.require(dataset="shop")
    export.require(dataset="shop", catalog="old")
    with pytest.raises(EmbeddingsError, match="other titles or pictures than those of 'shop'"):
        export.require(dataset="shop", catalog="new")
