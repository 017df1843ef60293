"""Which runs stand in a table: the latest of equals, and an error that names the folders for whatever differs."""

import numpy as np
import pytest

from recbole_vlm2rec.analysis.comparison import ComparisonError
from recbole_vlm2rec.report.runs import RunError
from recbole_vlm2rec.report.selection import names_of, read_gains, select


def test_data_sets_and_rows_as_they_come_and_seeds_ascending(finished):
    runs = [
        finished("SASRec", 2, [1]),
        finished("BPR", 1, [1]),
        finished("SASRec", 1, [1]),
        finished("BPR", 1, [1], dataset="other"),
        finished("VLM2RecSASRec", 1, [1], row="VLM2RecSASRec@VLMSFT"),
    ]
    selection = select(runs)
    assert list(selection) == ["shop", "other"]
    assert {row: list(by_seed) for row, by_seed in selection["shop"].items()} == {
        "SASRec": [1, 2],
        "BPR": [1],
        "VLM2RecSASRec@VLMSFT": [1],
    }
    assert list(selection["shop"]) == ["SASRec", "BPR", "VLM2RecSASRec@VLMSFT"]
    assert selection["shop"]["SASRec"][1] is runs[2]


def test_of_equal_runs_the_latest_by_folder_name(finished):
    """The tenth of one second comes after the second, which it does not in the order of letters."""
    names = ["BPR-shop-seed1-20260102-000000-10", "BPR-shop-seed1-20260102-000000-2", "BPR-shop-seed1-20260101-235959"]
    runs = [finished("BPR", 1, [1], folder=name, device=name[-1], data_path=name) for name in names]
    assert select(runs)["shop"]["BPR"][1] is runs[0]


def test_runs_that_differ_are_named_with_the_keys_in_which_they_do(finished):
    runs = [
        finished("VLM2Rec", 1, [1], folder="first", objective="wpcl+crtr", learning_rate=0.1, worker=0),
        finished("VLM2Rec", 1, [1], folder="second", objective="sft", learning_rate=0.1, worker=4, lora_scope="all"),
    ]
    with pytest.raises(ComparisonError, match="first.*second") as error:
        select(runs)
    assert "lora_scope (not set / all), objective (wpcl+crtr / sft);" in str(error.value)
    assert "worker" not in str(error.value) and "learning_rate" not in str(error.value)


def test_measuring_gradients_makes_no_other_run(finished):
    runs = [finished("VLMSFT", 1, [1], folder=f"VLMSFT-{every}", gradient_alignment_every=every) for every in (None, 10)]
    assert select(runs)["shop"]["VLMSFT"][1] is runs[0]  # "None" comes after "10"


def test_one_row_is_one_configuration_over_its_seeds(finished):
    runs = [finished("SASRec", 1, [1], hidden_size=64), finished("SASRec", 2, [1], hidden_size=128)]
    with pytest.raises(ComparisonError, match=r"SASRec on shop, seeds 1 and 2: .*hidden_size \(64 / 128\)"):
        select(runs)


def test_an_embedder_may_change_with_the_seed_but_not_within_one(finished):
    runs = [finished("VLM2RecSASRec", seed, [1], item_embeddings=f"exports/{seed}") for seed in (1, 2)]
    assert list(select(runs)["shop"]["VLM2RecSASRec"]) == [1, 2]
    runs.append(finished("VLM2RecSASRec", 2, [1], folder="again", item_embeddings="exports/sft"))
    with pytest.raises(ComparisonError, match="item_embeddings"):
        select(runs)


def test_other_candidates_are_refused_within_a_seed(finished):
    runs = [finished("BPR", 1, [1], folder="one", sha256="c0ffee00"), finished("SASRec", 1, [1], folder="two", sha256="decade00")]
    with pytest.raises(ComparisonError, match="seed 1.*one.*two.*different candidates.*c0ffee00.*decade00"):
        select(runs)


def test_another_number_of_negatives_is_refused_over_seeds_too(finished):
    runs = [finished("BPR", 1, [1], folder="one"), finished("SASRec", 2, [1], folder="two", eval_negatives="full")]
    with pytest.raises(ComparisonError, match="one ranks among 100 negatives, .*two among full"):
        select(runs)


def test_gains_are_ordered_by_user_token(finished):
    one = finished("BPR", 1, [1, 2, 3], users=["c", "a", "b"])
    other = finished("SASRec", 1, [2, 3, 1], users=["a", "b", "c"])
    found = [read_gains(run, ["mrr@3"])["mrr@3"] for run in (one, other)]
    assert found[0].users.tolist() == found[1].users.tolist() == ["a", "b", "c"]
    assert found[0].values.tolist() == found[1].values.tolist() == pytest.approx([1 / 2, 1 / 3, 1])


def test_files_that_contradict_each_other_are_named(finished):
    run = finished("BPR", 1, [1, 11], test={"hit@10": 0.6}, folder="wrong")
    with pytest.raises(RunError, match=r"wrong: hit@10 is 0.6 in result.json and 0.5 by ranks.npz"):
        read_gains(run, ["hit@10"])
    with pytest.raises(RunError, match="3 test ranks for 2 different users"):
        read_gains(finished("SASRec", 1, [1, 2, 3], users=["a", "b", "a"]), ["hit@10"])
    np.savez_compressed(run.folder / "ranks.npz", valid_ranks=np.array([1]))
    with pytest.raises(RunError, match="holds no ranks of the test items"):
        read_gains(type(run)(run.folder, run.result), ["hit@10"])


def test_names_of_metrics():
    assert names_of(["NDCG@20", " ndcg@20", "hit@10"]) == ("ndcg@20", "hit@10")
