"""Recommendations: the model's own ranking from a checkpoint, for users, unseen histories and new items; and the refusals."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from recbole_vlm2rec import cli, embeddings
from recbole_vlm2rec import export as export_module
from recbole_vlm2rec.config import Config
from recbole_vlm2rec.data.catalog import CatalogError
from recbole_vlm2rec.embeddings import EmbeddingsError
from recbole_vlm2rec.export import export
from recbole_vlm2rec.prepare.minishop import generate
from recbole_vlm2rec.quick_start import prepare
from recbole_vlm2rec.recommend import Recommender, RecommendError
from recbole_vlm2rec.registry import get_model, get_trainer
from recbole_vlm2rec.retrieval import RetrievalError

HEADER = "item_id:token\ttitle:token_seq\timage_path:token"


def save_run(root, name, seed=0, **changes):
    """An untrained VLM2Rec of `shop` with LoRA weights that are not 0, saved by its trainer; (run folder, model, test data)."""
    (root / name).mkdir()
    settings = {
        "data_path": str(root / "data"),
        "checkpoint_dir": str(root / name),
        "feature_cache": None,
        "show_progress": False,
        "use_gpu": False,
        "eval_negatives": "full",
        "MAX_ITEM_LIST_LENGTH": 4,
        "backbone": "tiny",
        "epochs": 0,
        **changes,
    }
    config = Config("VLM2Rec", "shop", config_dict=settings)
    dataset, train, _, test = prepare(config)
    model = get_model("VLM2Rec")(config, train._dataset)
    torch.manual_seed(seed)
    for parameter in model.items.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.05)
    get_trainer(type(model))(config, model).fit(train, verbose=False)  # no epoch: it saves what it is given
    model.eval()
    return root / name, model, test._dataset


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A folder with the data set `shop` in `data/`: 40 users who bought 5 to 12 of 120 items, and items that nobody bought."""
    folder = tmp_path_factory.mktemp("root")
    generate(folder / "data", "shop", seed=11, users=100, items=120)
    file = folder / "data" / "shop" / "shop.inter"
    lines = file.read_text(encoding="utf-8").splitlines()
    file.write_text("\n".join(line for line in lines if line < "u041" or line.startswith("user_id")) + "\n", encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def trained(root):
    return save_run(root, "run")


@pytest.fixture(scope="module")
def recommender(trained):
    return Recommender.load(trained[0], device="cpu")


@pytest.fixture
def copied(root, trained, tmp_path):
    """A run folder and data of the test's own: copied() -> Recommender, in which they can be spoilt."""
    shutil.copytree(root / "data", tmp_path / "data")
    shutil.copytree(trained[0] / "checkpoint", tmp_path / "run" / "checkpoint")

    def load(**options):
        return Recommender.load(tmp_path / "run", data_path=tmp_path / "data", device="cpu", **options)

    return load


@pytest.fixture
def new_items(tmp_path, root):
    """new_items(*lines) -> a file of new items beside a red picture and one of the shop's."""
    Image.new("RGB", (56, 56), "red").save(tmp_path / "red.png")
    shutil.copy(root / "data" / "shop" / "images" / "p007.png", tmp_path / "seven.png")

    def write(*lines, header=HEADER):
        (tmp_path / "new.tsv").write_text("\n".join([header, *lines]) + "\n", encoding="utf-8")
        return tmp_path / "new.tsv"

    return write


def lines_of(root, name="shop.item"):
    return [line.split("\t") for line in (root / "data" / "shop" / name).read_text(encoding="utf-8").splitlines()[1:]]


def bought(root, user):
    rows = [row for row in lines_of(root, "shop.inter") if row[0] == user]
    return [item for _, item, _ in sorted(rows, key=lambda row: float(row[2]))]


def scores(found):
    return {each.item: each.score for each in found}


@pytest.mark.parametrize("asking", ["fused", "text", "image"])
def test_the_ranking_is_the_models_own(recommender, trained, asking):
    """For every test user, from histories shorter and longer than the four items that the model reads."""
    _, model, data = trained
    model.asking = asking
    batch = data.inter_feat
    users = data.id2token(data.uid_field, batch[data.uid_field].numpy())
    tokens = data.id2token(data.iid_field, np.arange(data.item_num))
    expected = model.full_sort_predict(batch).numpy()
    assert len(users) == 40 and len(tokens) < 121
    for user, row in zip(users, expected):
        *history, target = recommender.history_of(user)
        found = recommender.recommend(history, top=120, asking=asking)
        of_model = {token: score for token, score in zip(tokens[1:], row[1:]) if token not in history}
        assert target in of_model and len(found) == 120 - len(history)
        mine = scores(found)
        assert {item: mine[item] for item in of_model} == pytest.approx(of_model, abs=2e-5)
        assert [each.score for each in found] == sorted(mine.values(), reverse=True)
        assert [each.rank for each in found] == list(range(1, len(found) + 1))
    assert np.std(expected) > 0.01, "the scores differ by far more than the tolerance"


def test_a_users_history_is_whole_and_in_time_order_and_left_out(recommender, root):
    titles = {item: title for item, title, _ in lines_of(root)}
    for user in ("u001", "u040"):
        history = recommender.history_of(user)
        assert history == bought(root, user) and 5 <= len(history) <= 12
        found = recommender.recommend(history, top=3)
        assert not set(history) & scores(recommender.recommend(history, top=120)).keys()
        assert [each.title for each in found] == [titles[each.item] for each in found]


def test_ties_in_time_keep_the_order_of_the_file(copied, tmp_path):
    rows = ["user_id:token\titem_id:token\ttimestamp:float", "z\tp003\t5", "z\tp001\t7", "y\tp009\t6", "z\tp002\t7", "z\tp004\t1"]
    (tmp_path / "data" / "shop" / "shop.inter").write_text("\n".join(rows) + "\n")
    assert copied().history_of("z") == ["p004", "p003", "p001", "p002"]


def test_many_histories_at_once_are_each_alone(recommender, root):
    histories = [bought(root, "u001"), ["p003"], bought(root, "u001")[:3], ["p003", "p003"]]
    together = recommender.recommend_many(iter(histories), top=7)
    for history, found in zip(histories, together, strict=True):
        alone = recommender.recommend(history, top=7)
        assert [each.item for each in alone] == [each.item for each in found]
        assert scores(alone) == pytest.approx(scores(found), abs=1e-5)
    assert recommender.recommend_many([]) == []


def test_new_items_are_ranked_with_the_rest_and_may_be_asked_with(copied, new_items, root):
    seven = next(line for line in lines_of(root) if line[0] == "p007")
    recommender = copied()
    before = scores(recommender.recommend(["p001", "p002"], top=118))
    assert recommender.add_items(new_items("n1\ta red thing\tred.png", f"n2\t{seven[1]}\tseven.png")) == ["n1", "n2"]
    found = recommender.recommend(["p001", "p002"], top=122)
    after = scores(found)
    assert {item: after[item] for item in before} == pytest.approx(before, abs=1e-6)
    assert set(after) - set(before) == {"n1", "n2"}
    assert after["n2"] == pytest.approx(before["p007"], abs=1e-5), "the same title and picture"
    assert {each.title for each in found if each.item == "n1"} == {"a red thing"}

    as_seven, as_new = (recommender.recommend(["p001", item], top=122) for item in ("p007", "n2"))
    assert "n2" not in scores(as_new) and "p007" in scores(as_new)
    assert scores(as_new)["p010"] == pytest.approx(scores(as_seven)["p010"], abs=1e-5)

    early = copied()
    early.add_items(new_items("n1\ta red thing\tred.png"))  # before anything is embedded
    assert scores(early.recommend(["p001", "p002"], top=121))["n1"] == pytest.approx(after["n1"], abs=1e-5)
    assert len(embeddings.read(early.trained.run_folder / "items").item_ids) == 120, "new items are not kept with the catalogue"


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["n1\ta thing"], r"new\.tsv, line 2: 2 cells where the header has 3 columns"),
        (["n1\ta thing\tred.png", "n2\t\tred.png"], r"new\.tsv, line 3, item 'n2': empty title"),
        (["n1\ta thing\tblue.png"], r"new\.tsv, line 2, item 'n1': picture .*blue\.png does not exist"),
        (["n1\ta thing\tnew.tsv"], r"new\.tsv, line 2, item 'n1': picture .*new\.tsv cannot be read"),
    ],
)
def test_a_damaged_file_of_new_items_is_refused_with_its_line(recommender, new_items, lines, message):
    with pytest.raises(CatalogError, match=message):
        recommender.add_items(new_items(*lines))
    assert len(recommender) == 120


def test_an_item_that_is_there_already_is_not_new(recommender, new_items):
    with pytest.raises(RecommendError, match=r"new\.tsv, line 3, item 'p003': there is such an item already"):
        recommender.add_items(new_items("n1\ta thing\tred.png", "p003\ta thing\tred.png"))
    assert len(recommender) == 120


@pytest.mark.parametrize(
    ("history", "options", "message"),
    [
        ([], {}, "the history is empty"),
        (["p001", "q007"], {}, r"item 'q007' of the history is not in .*shop\.item; did you mean 'p007'\?$"),
        (["x", "p001", "y"], {}, r"item 'x' of .*\(2 of 3 items are unknown\)"),
        ("p001", {}, "history is the text 'p001': give a list"),
        (["p001"], {"top": 121}, "top is 121: give a number from 1 to 120"),
        (["p001"], {"top": 0}, "top is 0: give a number from 1 to 120"),
        (["p001"], {"asking": "sound"}, "asking is 'sound', but this checkpoint .* has fused and text and image alone"),
    ],
)
def test_what_cannot_be_asked_is_refused(recommender, history, options, message):
    with pytest.raises(RecommendError, match=message):
        recommender.recommend(history, **options)


def test_an_unknown_user_is_refused(recommender):
    with pytest.raises(RecommendError, match=r"user 'u0017' is not in .*shop\.inter; did you mean 'u0"):
        recommender.history_of("u0017")


def test_items_are_embedded_once_and_again_when_they_or_the_weights_have_changed(copied, root, tmp_path, monkeypatch, caplog):
    counts = []

    def counted(trained, *arguments):
        folder = export_items(trained, *arguments)
        counts.append(len(embeddings.read(folder).item_ids))
        return folder

    export_items = export_module.export_items
    monkeypatch.setattr(export_module, "export_items", counted)
    first = copied().recommend(["p001"])
    assert copied().recommend(["p001"]) == first and counts == [120] and not caplog.records

    (tmp_path / "run" / "items" / "embeddings.safetensors").write_bytes(b"damaged")
    assert copied().recommend(["p001"]) == first and counts == [120] * 2
    assert "the items are embedded again" in caplog.text and "SHA-256 differs" in caplog.text

    item_file = tmp_path / "data" / "shop" / "shop.item"
    first_title = lines_of(root)[0][1]
    item_file.write_text(item_file.read_text().replace(first_title, "something else", 1))
    changed = copied().recommend(["p002"], top=119)
    assert counts == [120] * 3 and "made from other titles or pictures" in caplog.text
    assert "something else" in {each.title for each in changed}

    adapter = tmp_path / "run" / "checkpoint" / "adapter_model.safetensors"
    shutil.copy(save_run(root, "other", seed=1)[0] / "checkpoint" / adapter.name, adapter)
    assert scores(copied().recommend(["p002"], top=119)) != pytest.approx(scores(changed), abs=1e-3)
    assert counts == [120] * 4 and "adapter_sha256 differs" in caplog.text


def test_items_of_another_data_set_have_a_folder_of_their_own(copied, tmp_path):
    copied().ready()
    generate(tmp_path / "data", "second", seed=12, users=100, items=130)
    found = copied(dataset="second").recommend(["p001"], top=130)
    assert len(found) == 129
    assert [len(embeddings.read(tmp_path / "run" / name).item_ids) for name in ("items", "items-second")] == [120, 130]


def test_a_folder_items_that_is_no_export_is_left_alone(copied, tmp_path):
    (tmp_path / "run" / "items").mkdir()
    (tmp_path / "run" / "items" / "notes.txt").write_text("mine")
    with pytest.raises(EmbeddingsError, match=r"items exists and is no export \(notes.txt\)"):
        copied().recommend(["p001"])
    assert (tmp_path / "run" / "items" / "notes.txt").read_text() == "mine"


def test_a_run_folder_that_cannot_be_written_to_is_said_so(copied, monkeypatch):
    def refuse(*_):
        raise PermissionError("Read-only file system")

    monkeypatch.setattr(export_module, "export_items", refuse)
    with pytest.raises(EmbeddingsError, match=r"cannot be kept in .*items \(Read-only.*--out=FOLDER.*--export"):
        copied().recommend(["p001"])


def test_vectors_from_an_export(recommender, copied, trained, root, tmp_path):
    folder = export(trained[0], tmp_path / "vectors", device="cpu", show_progress=False)
    found = copied(export=folder).recommend(["p001"])
    assert [each.item for each in found] == [each.item for each in recommender.recommend(["p001"])]
    assert os.listdir(tmp_path / "run") == ["checkpoint"], "nothing was embedded"

    item_file = tmp_path / "data" / "shop" / "shop.item"
    lines = item_file.read_text().splitlines()
    item_file.write_text("\n".join([lines[0], *reversed(lines[1:])]) + "\n")
    with pytest.raises(EmbeddingsError, match="was made from other titles or pictures"):
        copied(export=folder)
    item_file.write_text("\n".join([*lines, lines[1].replace("p001", "p999", 1)]) + "\n")
    with pytest.raises(EmbeddingsError, match="1 of 121 items are missing, the first are 'p999'"):
        copied(export=folder)

    generate(tmp_path / "data", "second", seed=12, users=100, items=130)
    with pytest.raises(EmbeddingsError, match="holds the items of data set 'shop', but 'second' is asked for"):
        copied(dataset="second", export=folder)


def test_an_export_of_another_checkpoint_is_refused(copied, recommender, tmp_path):
    recommender.ready()
    kept = embeddings.read(recommender.trained.run_folder / "items")
    manifest = {key: value for key, value in kept.manifest.items() if key != "content"}
    embeddings.write(tmp_path / "e", kept.item_ids, fused=kept.fused, manifest={**manifest, "adapter_sha256": "0" * 64})
    with pytest.raises(EmbeddingsError, match=r"not made by the checkpoint .*run.checkpoint \(adapter_sha256 differs\)"):
        copied(export=tmp_path / "e")


def test_a_model_of_titles_needs_no_picture(root, new_items):
    run, _, _ = save_run(root, "titles", modalities="text", objective="sft")
    recommender = Recommender.load(run, device="cpu")
    recommender.add_items(new_items("n1\ta wooden thing", header="item_id:token\ttitle:token_seq"))
    found = recommender.recommend(["p001", "n1"], top=121)
    assert len(found) == 119 and recommender.recommend(["p001", "n1"], top=121, asking="text") == found
    with pytest.raises(RecommendError, match=r"asking is 'image', .*\(modalities text, .* has fused and text alone"):
        recommender.recommend(["p001"], asking="image")


def test_a_model_of_one_prompt_has_one_vector(root):
    run, _, _ = save_run(root, "internal", fusion="internal", objective="sft")
    recommender = Recommender.load(run, device="cpu")
    assert len(recommender.recommend(["p001"], top=3)) == 3
    with pytest.raises(RecommendError, match=r"asking is 'text', .*fusion internal\) has fused alone"):
        recommender.recommend(["p001"], asking="text")


@pytest.mark.parametrize("index", ["exact", "hnsw", "ivf"])
def test_an_index_finds_what_the_plain_search_finds(recommender, trained, new_items, index):
    pytest.importorskip("faiss")
    indexed = Recommender.load(trained[0], index=index, device="cpu")
    found, plain = (each.recommend(["p001", "p009"], top=5) for each in (indexed, recommender))
    assert [each.item for each in found] == [each.item for each in plain]  # so few items: every list and link is followed
    assert indexed.recall(top=5) == 1
    indexed.add_items(new_items("n1\ta red thing\tred.png"))
    assert "n1" in scores(indexed.recommend(["p001"], top=120))


def test_an_index_that_cannot_be_had_is_refused_before_any_work(tmp_path):
    with pytest.raises(RetrievalError, match="index is 'flat'"):
        Recommender.load(tmp_path / "nowhere", index="flat")


def test_the_command_prints_and_writes_what_it_recommends(recommender, trained, root, tmp_path, capsys, new_items):
    """From the run's own description: the data are found where it was trained."""
    options = [f"--checkpoint={trained[0]}", "--top=3", "--device=cpu"]
    assert cli.main(["recommend", *options, "--user=u001", f"--json={tmp_path / 'deep' / 'out.json'}"]) == 0
    printed, written = capsys.readouterr().out, json.loads((tmp_path / "deep" / "out.json").read_text())
    expected = recommender.recommend(bought(root, "u001"), top=3)
    assert [(each["rank"], each["item"], each["title"]) for each in written["recommendations"]] == [
        (each.rank, each.item, each.title) for each in expected
    ]
    assert (written["user"], written["history"], written["dataset"]) == ("u001", bought(root, "u001"), "shop")
    lines = printed.splitlines()
    assert lines[0] == "run, 120 items of shop" and lines[1].startswith("history of u001 (")
    for line, each in zip(lines[-3:], expected):
        assert line.split() == [str(each.rank), each.item, f"{each.score:.4f}", *each.title.split()]

    file = new_items("n1\ta red thing\tred.png")
    assert cli.main(["recommend", *options, "--history=p001, n1", f"--new-items={file}"]) == 0
    printed = capsys.readouterr().out
    assert "120 items of shop and 1 new ones" in printed and "history (2 items)" in printed and "a red thing" in printed


def test_the_command_prints_the_recall_of_an_approximate_index(trained, capsys):
    pytest.importorskip("faiss")
    assert cli.main(["recommend", f"--checkpoint={trained[0]}", "--history=p001", "--index=hnsw", "--device=cpu"]) == 0
    assert "recall@10 of hnsw against exact search, histories of 40 users: 1.0000" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--history="], "error: the history is empty"),
        (["--user=nobody"], "error: user 'nobody' is not in"),
        (["--history=p001", "--top=999"], "error: top is 999"),
        (["--history=p001", "--data_path=nowhere"], "error: nowhere/shop/shop.item does not exist"),
    ],
)
def test_mistakes_are_one_line(trained, arguments, message, capsys):
    assert cli.main(["recommend", f"--checkpoint={trained[0]}", "--device=cpu", *arguments]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1].replace(os.sep, "/")
    assert message in error


def test_either_a_history_or_a_user_is_asked_for(trained, capsys):
    for asked in ([], ["--history=p001", "--user=u001"]):
        with pytest.raises(SystemExit) as end:
            cli.main(["recommend", f"--checkpoint={trained[0]}", *asked])
        assert end.value.code == 2
    assert "not allowed with argument --history" in capsys.readouterr().err


def test_a_folder_that_is_no_run_is_refused(tmp_path, capsys):
    assert cli.main(["recommend", f"--checkpoint={Path(tmp_path)}", "--history=p001"]) == 2
    assert "is no checkpoint" in capsys.readouterr().err
