"""VLM2Rec inside RecBole: objectives by name, evaluation vectors, checkpoints, resume, and refusals."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig

from recbole_vlm2rec import objectives
from recbole_vlm2rec.config import Config
from recbole_vlm2rec.data.catalog import CatalogError
from recbole_vlm2rec.data.loader import UserBatches
from recbole_vlm2rec.export import export
from recbole_vlm2rec.quick_start import prepare, run
from recbole_vlm2rec.registry import get_model, get_trainer
from recbole_vlm2rec.vlm.backbone import SHIPPED


@pytest.fixture
def build(settings):
    def build(**changes):
        chosen = {key: value for key, value in {**settings["VLM2Rec"], **changes}.items() if key != "dataset"}
        config = Config("VLM2Rec", "shop", config_dict=chosen)
        dataset, train, valid, test = prepare(config)
        torch.manual_seed(0)
        return get_model("VLM2Rec")(config, train._dataset), (train, valid, test), config

    return build


def batch_of(train):
    return next(iter(train))


@pytest.mark.parametrize("objective", ["wpcl+crtr", "wpcl", "crtr", "sft", "sft+crtr"])
def test_the_loss_is_the_objective_named(build, objective):
    model, (train, _, _), config = build(objective=objective, crtr_weight=0.5, tau_wpcl=0.2, tau_crtr=0.3)
    model.eval()  # no dropout: two encodings are the same
    batch = batch_of(train)
    z = model.items.encode(model.histories(batch))
    targets = batch[model.POS_ITEM_ID]
    e = model.items.encode([[item] for item in targets.tolist()])
    one = torch.tensor(1.0)
    terms = {
        "wpcl": objectives.wpcl(z.text, z.image, e.text, e.image, one, one, 0.2, item_ids=targets),
        "sft": objectives.info_nce(z.fused, e.fused, 0.2, item_ids=targets),
        "crtr": 0.5 * objectives.crtr(z.text, z.image, e.text, e.image, 0.3),
    }
    expected = sum(terms[name] for name in objective.split("+"))
    torch.testing.assert_close(model.calculate_loss(batch), expected)


def test_gradcache_is_the_same_step(build):
    steps = []
    for size in (None, 3):
        model, (train, _, _), _ = build(gradcache_size=size)
        loss = model.calculate_loss(batch_of(train))
        loss.backward()
        steps.append((loss.item(), {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}))
    (loss, gradients), (again, cached) = steps
    assert again == pytest.approx(loss, abs=1e-5) and gradients.keys() == cached.keys()
    for name in gradients:
        torch.testing.assert_close(cached[name], gradients[name], atol=1e-5, rtol=1e-3)


def test_gradients_reach_adapters_and_penalty_only(build):
    model, (train, _, _), _ = build()
    model.calculate_loss(batch_of(train)).backward()
    reached = {
        name for name, parameter in model.named_parameters() if parameter.grad is not None and parameter.grad.abs().sum() > 0
    }
    assert {"alpha", "beta"} < reached
    assert all("lora_" in name for name in reached - {"alpha", "beta"})
    trainable = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    # A freshly initialised B is zero, so A has no gradient yet; everything else trainable has one.
    assert {name for name in trainable if "lora_A" not in name} == {name for name in reached if "lora_A" not in name}


def test_history_and_target_are_what_the_row_says(build):
    model, (train, _, _), _ = build()
    batch = batch_of(train)
    histories = model.histories(batch)
    for row, history in enumerate(histories):
        sequence = batch["item_id_list"][row].tolist()
        assert history == [item for item in sequence if item] and 1 <= len(history) <= 3


def test_items_and_histories_are_encoded_once_an_evaluation(build, monkeypatch):
    model, (_, valid, _), _ = build()
    model.eval()
    encoded = []
    encode = model.items.encode
    monkeypatch.setattr(model.items, "encode", lambda sequences: encoded.extend(map(tuple, sequences)) or encode(sequences))
    rows = valid.transform(valid._dataset, valid._dataset[np.arange(12)])
    first = model.full_sort_predict(rows)
    count = len(encoded)
    assert count == len(set(encoded))
    torch.testing.assert_close(model.full_sort_predict(rows), first)
    assert len(encoded) == count
    model.train()  # weights may change: the vectors are stale
    model.eval()
    model.full_sort_predict(rows)
    assert len(encoded) == 2 * count


def test_scores_are_cosines_of_the_sums(build):
    model, (_, valid, _), _ = build()
    model.eval()
    rows = valid.transform(valid._dataset, valid._dataset[np.arange(3)])
    with torch.no_grad():
        z = model.items.encode(model.histories(rows))
        e = model.items.encode([[item] for item in range(1, model.n_items)])
    expected = torch.nn.functional.cosine_similarity((z.text + z.image)[:, None], (e.text + e.image)[None], dim=-1)
    torch.testing.assert_close(model.full_sort_predict(rows)[:, 1:], expected, atol=1e-5, rtol=1e-5)


def test_all_prefixes_give_more_rows_than_one_target_a_user(build):
    _, (last, _, _), _ = build()
    _, (everything, _, _), _ = build(train_examples="all")
    assert len(last._dataset.inter_feat) == 100 < len(everything._dataset.inter_feat)


def test_all_prefixes_come_user_by_user(build):
    model, (rows, _, _), _ = build(train_examples="all", train_batch_size=16)
    batches = UserBatches(rows)
    seen = [(batch[model.USER_ID], batch[model.ITEM_SEQ_LEN]) for batch in batches]
    assert len(seen) == len(batches) == 7 and [len(users.unique()) for users, _ in seen] == [16] * 6 + [4]
    everyone = torch.cat([users.unique() for users, _ in seen])
    assert len(everyone) == len(everyone.unique()) == 100 and sum(len(users) for users, _ in seen) == len(rows._dataset)
    again = [batch[model.USER_ID] for batch in UserBatches(build(train_examples="all", train_batch_size=16)[1][0])]
    assert all(torch.equal(one, users) for one, (users, _) in zip(again, seen, strict=True))


def test_without_dropout_all_prefixes_of_a_user_share_a_pass_with_the_same_loss_and_gradients(build, monkeypatch):
    model, (rows, _, _), _ = build(
        train_examples="all", train_batch_size=8, lora_dropout=0.0, objective="sft", gradient_checkpointing=False
    )
    batch = next(iter(UserBatches(rows)))
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.1)
    backbone, read = model.items.encoder.backbone, []
    monkeypatch.setattr(backbone, "hidden_states", lambda ids, mask, p: read.append(mask.sum()) or type(backbone).hidden_states(
        backbone, ids, mask, p))  # fmt: skip
    results = []
    for shared in (True, False):
        model.train().zero_grad()
        model.items.encoder.share = shared
        read.clear()
        loss = model.calculate_loss(batch)
        tokens = int(sum(read))
        loss.backward()
        results.append((tokens, loss.item(), torch.cat([w.grad.flatten() for w in model.items.parameters() if w.requires_grad])))
    (few, loss, gradient), (many, expected, slow) = results
    assert few < 0.7 * many
    assert loss == pytest.approx(expected, abs=1e-5)
    assert (gradient - slow).norm() < 1e-4 * slow.norm()


def test_with_dropout_every_prefix_has_a_forward_of_its_own(build):
    model, _, _ = build(lora_dropout=0.2)
    assert model.train().items.encoder.backbone.draws and not model.eval().items.encoder.backbone.draws


def test_vanilla_is_the_pretrained_model(build, settings, tmp_path):
    result = run("VLM2Rec", config_dict={**settings["VLM2Rec"], "objective": "none"})
    assert result["epochs"] == 0
    model, _, _ = build(objective="none")
    assert not any("lora_" in name for name, _ in model.items.named_parameters())
    assert not (Path(result["checkpoint"]) / "adapter_model.safetensors").exists()


def test_internal_fusion_and_single_modalities_run(settings):
    common = {**settings["VLM2Rec"], "epochs": 1, "objective": "sft"}
    scores = {
        choice: run("VLM2Rec", config_dict={**common, **dict([choice])})["test"]
        for choice in [("fusion", "internal"), ("modalities", "text"), ("modalities", "image")]
    }
    assert len({tuple(metrics.values()) for metrics in scores.values()}) == 3


def test_a_language_model_without_eyes_is_trained_on_titles(settings, tmp_path):
    words = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 1024}
    AutoModelForCausalLM.from_config(LlamaConfig(**words)).save_pretrained(tmp_path / "llama")
    AutoTokenizer.from_pretrained(SHIPPED["tiny"]).save_pretrained(tmp_path / "llama")
    chosen = {**settings["VLM2Rec"], "backbone": str(tmp_path / "llama"), "objective": "sft", "epochs": 1}
    result = run("VLM2Rec", config_dict={**chosen, "modalities": "text"})
    assert result["epochs"] == 1 and 0 < result["test"]["ndcg@20"] < 1
    with pytest.raises(ValueError, match="family, 'llama', reads text alone; modalities: text"):
        run("VLM2Rec", config_dict=chosen)


def test_a_shop_without_pictures_is_enough_for_titles(settings, shop_folder, tmp_path):
    folder = tmp_path / "data" / "shop"
    folder.mkdir(parents=True)
    for name in ("shop.inter", "shop.item"):
        lines = [line.split("\t") for line in (shop_folder / "shop" / name).read_text(encoding="utf-8").splitlines()]
        kept = [place for place, column in enumerate(lines[0]) if not column.startswith("image_path")]
        (folder / name).write_text("".join("\t".join(line[place] for place in kept) + "\n" for line in lines), encoding="utf-8")
    there = {"data_path": str(tmp_path / "data"), "epochs": 1}
    chosen = {**settings["VLM2Rec"], **there, "objective": "sft"}
    result = run("VLM2Rec", config_dict={**chosen, "modalities": "text"})
    with pytest.raises(CatalogError, match="no column image_path.*with --modalities=text a title alone"):
        run("VLM2Rec", config_dict=chosen)
    export(result["checkpoint"], tmp_path / "vectors", device="cpu", show_progress=False)
    downstream = {**settings["VLM2RecSASRec"], **there, "item_embeddings": str(tmp_path / "vectors")}
    assert run("VLM2RecSASRec", config_dict=downstream)["epochs"] == 1


@pytest.mark.parametrize("changes, words", [
    ({"objective": "wpcl", "fusion": "internal"}, "use objective sft or none"),
    ({"objective": "crtr", "modalities": "text"}, "use objective sft or none"),
    ({"objective": "infonce"}, "unknown term 'infonce'"),
    ({"objective": "wpcl+sft"}, "give one of them"),
    ({"dtype": "float16"}, "auto, float32 or bfloat16"),
    ({"gradcache_size": 0}, "give a number of sequences, or null"),
])  # fmt: skip
def test_what_has_no_meaning_is_refused(build, changes, words):
    with pytest.raises(ValueError, match=words):
        build(**changes)


def test_accumulation_averages_each_group_of_batches(build, monkeypatch):
    """Three batches in groups of two: gradients (g1 + g2) / 2, then g3 alone."""
    model, (train, _, _), config = build(accumulation_steps=2, objective="sft")
    trainer = get_trainer(type(model))(config, model)
    batches = list(train)[:3]
    parameters = [p for p in model.items.parameters() if p.requires_grad]

    def gradient():
        return torch.cat([p.grad.flatten() for p in parameters if p.grad is not None])

    expected = []
    for batch in batches:
        model.zero_grad()
        model.calculate_loss(batch).backward()
        expected.append(gradient())
    model.zero_grad()
    seen = []
    monkeypatch.setattr(trainer, "_update", lambda: (seen.append(gradient()), model.zero_grad()))
    trainer._train_epoch(batches, 0)
    torch.testing.assert_close(seen[0], (expected[0] + expected[1]) / 2)
    torch.testing.assert_close(seen[1], expected[2])
    assert len(seen) == 2


def test_warm_up_raises_the_rate_to_its_value(build):
    model, (train, valid, _), config = build(warmup_ratio=0.5, epochs=2, objective="sft")
    trainer = get_trainer(type(model))(config, model)
    rates = []
    update = trainer._update
    trainer._update = lambda: (rates.append(trainer.optimizer.param_groups[0]["lr"]), update())
    trainer.fit(train, valid, verbose=False)
    # 100 users in batches of 20, two epochs: 10 updates, 5 of them rising.
    assert rates == pytest.approx([2e-3 * min(1, step / 5) for step in range(1, 11)])


def test_beta_never_turns_negative(settings):
    result = run("VLM2Rec", config_dict={**settings["VLM2Rec"], "penalty_learning_rate": 5.0})
    assert [entry["beta"] for entry in result["training"]] == [0.0, 0.0]
    assert all(np.isfinite(entry["loss"]) for entry in result["training"])


def test_penalty_has_its_own_rate_and_no_decay(build, tmp_path):
    model, _, config = build(learning_rate=1e-3, penalty_learning_rate=1e-5, weight_decay=0.1)
    adapters, penalty = get_trainer(type(model))(config, model).optimizer.param_groups
    assert (adapters["lr"], adapters["weight_decay"]) == (1e-3, 0.1)
    assert (penalty["lr"], penalty["weight_decay"]) == (1e-5, 0.0)
    assert {id(p) for p in penalty["params"]} == {id(model.alpha), id(model.beta)}
    assert all(p.dtype == torch.float32 for p in penalty["params"])


def test_what_explains_the_training_is_reported(settings):
    result = run("VLM2Rec", config_dict=settings["VLM2Rec"])
    for entry in result["training"]:
        assert {
            "loss",
            "alpha",
            "beta",
            "margin_text",
            "margin_image",
            "w",
            "gradient_through_w",
            "kl",
            "share_weak_image",
        } <= set(entry)
    assert set(result["modality_dropout"]) == {"f2f", "t2f", "v2f"}
    assert result["modality_dropout"]["f2f"] == result["test"]
    assert result["modality_dropout"]["t2f"] != result["modality_dropout"]["v2f"]
    assert set(result["geometry"]) == {"fused", "text", "image"}
    folder = Path(result["checkpoint"]).parent
    with np.load(folder / "ranks.npz") as ranks:
        assert {"test_t2f_ranks", "test_v2f_ranks", "test_ranks"} <= set(ranks)


def test_a_full_gpu_says_what_takes_less_of_it(settings, monkeypatch):
    def full(self, interaction):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nSee documentation")

    monkeypatch.setattr("recbole_vlm2rec.model.vlm2rec.VLM2Rec.calculate_loss", full)
    with pytest.raises(RuntimeError, match=r"allocate 2\.00 GiB\.\)\. Less of it, with the same result: --gradcache_size=8"):
        run("VLM2Rec", config_dict=settings["VLM2Rec"])


def test_an_interrupted_run_goes_on_as_if_nothing_had_happened(settings, monkeypatch):
    chosen = {**settings["VLM2Rec"], "epochs": 3, "lora_dropout": 0.2}
    whole = run("VLM2Rec", config_dict=chosen)

    trainer = get_trainer(get_model("VLM2Rec"))
    train_epoch = trainer._train_epoch

    def stop_in_the_third(self, train_data, epoch_idx, *rest, **named):
        if epoch_idx == 2:
            raise KeyboardInterrupt
        return train_epoch(self, train_data, epoch_idx, *rest, **named)

    monkeypatch.setattr(trainer, "_train_epoch", stop_in_the_third)
    with pytest.raises(KeyboardInterrupt):
        run("VLM2Rec", config_dict=chosen)
    monkeypatch.undo()
    interrupted = max(Path(chosen["checkpoint_dir"]).glob("VLM2Rec-*"), key=lambda folder: folder.stat().st_mtime_ns)
    assert not (interrupted / "result.json").exists()

    resumed = run("VLM2Rec", config_dict={**chosen, "resume": str(interrupted)})
    assert resumed["test"] == whole["test"] and resumed["valid"] == whole["valid"]
    assert resumed["best_epoch"] == whole["best_epoch"] and resumed["epochs"] == 3
    assert (whole["epochs_timed"], resumed["epochs_timed"]) == (3, 1)
    # Not bit for bit: the pictures' features are computed anew, in batches of another order.
    assert [entry["loss"] for entry in resumed["training"]] == pytest.approx(
        [entry["loss"] for entry in whole["training"]], rel=1e-5
    )
    assert json.loads((interrupted / "result.json").read_text())["test"] == whole["test"]

    checkpoint = json.loads((interrupted / "checkpoint" / "checkpoint.json").read_text())
    again = run("VLM2Rec", config_dict={**chosen, "resume": str(interrupted)})  # nothing is left to train: the best stays
    assert json.loads((interrupted / "checkpoint" / "checkpoint.json").read_text()) == checkpoint
    assert again["test"] == whole["test"] and again["valid"] == whole["valid"]

    with pytest.raises(ValueError, match="learning_rate"):
        run("VLM2Rec", config_dict={**chosen, "resume": str(interrupted), "learning_rate": 0.5})
    with pytest.raises(ValueError, match="nothing to resume"):
        run("VLM2Rec", config_dict={**chosen, "resume": chosen["data_path"]})
    with pytest.raises(ValueError, match="SASRec"):
        run("SASRec", config_dict={**chosen, "resume": str(interrupted)})


def test_full_ranking_reaches_the_result(settings):
    result = run("VLM2Rec", config_dict={**settings["VLM2Rec"], "epochs": 1, "eval_negatives": "full"})
    assert result["candidates"] is None
    assert result["modality_dropout"]["f2f"] == result["test"] and result["geometry"]["fused"]["separability"] > 0


def test_bfloat16_trains_adapters_in_float32(build):
    model, (train, _, _), _ = build(dtype="bfloat16")
    assert model.items.encoder.backbone.model.dtype == torch.bfloat16
    model.calculate_loss(batch_of(train)).backward()
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert all(p.dtype == torch.float32 for p in trained.values())
    assert all(p.grad is None or p.grad.isfinite().all() for p in trained.values())
