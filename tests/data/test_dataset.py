"""RecBole's data sets under our protocol: time order, targets, examples to train on, and what is refused."""

import numpy as np
import pytest

from recbole_vlm2rec.data.candidates import Histories
from recbole_vlm2rec.data.dataset import GeneralDataset, VLM2RecDataset, create_dataset
from recbole_vlm2rec.quick_start import make_config

# u has five interactions, v three, w two, x one; v's times are ten seconds apart, which float32 cannot tell at this size.
T = 1_500_000_000
ROWS = [("u", "a", T), ("u", "b", T), ("u", "c", T + 900), ("u", "d", T + 950), ("u", "e", T + 990)]
ROWS += [("v", "c", T + 20), ("v", "b", T + 10), ("v", "a", T), ("w", "e", T), ("w", "d", T + 1), ("x", "f", T + 2)]


def build(folder, model, atomic=None, rows=ROWS, name="small", **settings):
    if atomic:
        atomic(folder, name, rows)
    defaults = {"data_path": str(folder), "checkpoint_dir": str(folder / "saved"), "eval_negatives": 1, "train_batch_size": 8}
    config = make_config(model, name, None, {**defaults, **settings})
    dataset = create_dataset(config)
    return dataset, dataset.build()


def pairs(part) -> list[tuple[str, str]]:
    users, items = (part.id2token(field, part.inter_feat[field].numpy()) for field in (part.uid_field, part.iid_field))
    return sorted(zip(users.tolist(), items.tolist()))


def histories_of(part) -> dict[tuple[str, str], list[str]]:
    rows = part.inter_feat
    names = [part.id2token(part.iid_field, row[row > 0].numpy()).tolist() for row in rows["item_id_list"]]
    users, items = (part.id2token(field, rows[field].numpy()) for field in ("user_id", "item_id"))
    return dict(zip(zip(users, items), names))


def test_sequential_rows_by_hand(tmp_path, atomic):
    _, (train, valid, test) = build(tmp_path, "SASRec", atomic)
    assert histories_of(train) == {("u", "b"): ["a"], ("u", "c"): ["a", "b"], ("v", "b"): ["a"], ("w", "d"): ["e"]}
    assert histories_of(valid) == {("u", "d"): ["a", "b", "c"]}
    assert histories_of(test) == {("u", "e"): ["a", "b", "c", "d"], ("v", "c"): ["a", "b"]}
    assert [part.phase for part in (train, valid, test)] == ["train", "valid", "test"]


def test_train_examples_last_keeps_the_longest_row_of_each_user(tmp_path, atomic):
    _, (train, valid, test) = build(tmp_path, "SASRec", atomic, train_examples="last")
    assert histories_of(train) == {("u", "c"): ["a", "b"], ("v", "b"): ["a"], ("w", "d"): ["e"]}
    assert len(valid) == 1 and len(test) == 2


def test_general_models_hold_out_the_same_targets(tmp_path, atomic):
    _, (train, valid, test) = build(tmp_path, "BPR", atomic)
    assert pairs(valid) == [("u", "d")]
    assert pairs(test) == [("u", "e"), ("v", "c")]
    assert pairs(train) == [("u", "a"), ("u", "b"), ("u", "c"), ("v", "a"), ("v", "b"), ("w", "d"), ("w", "e"), ("x", "f")]


def test_histories_are_those_of_the_file(tmp_path, atomic):
    """Read by RecBole or straight from the rows: the same tokens, ids and order, hence the same candidates."""
    expected = Histories.from_rows(*zip(*ROWS)).sha256
    sequential, _ = build(tmp_path, "SASRec", atomic)
    general, _ = build(tmp_path, "BPR")
    assert isinstance(sequential, VLM2RecDataset) and isinstance(general, GeneralDataset)
    assert sequential.histories.sha256 == general.histories.sha256 == expected
    assert sequential.candidate_file == general.candidate_file


def test_items_without_interactions_are_no_candidates(toy, toy_folder):
    """SASRecF reads .item too, which has one item more than .inter."""
    plain, feature = (create_dataset(make_config(name, "toy", None, toy)) for name in ("SASRec", "SASRecF"))
    assert feature.item_num == plain.item_num + 1
    assert feature.candidate_file == plain.candidate_file
    assert feature.candidates["test"].items.max() <= plain.item_num - 1


def test_history_is_the_last_ten(tmp_path, atomic):
    rows = [("u", f"i{place}", place) for place in range(14)]
    _, (_, _, test) = build(tmp_path, "SASRec", atomic, rows, eval_negatives="full")
    assert histories_of(test) == {("u", "i13"): [f"i{place}" for place in range(3, 13)]}


@pytest.mark.parametrize(
    ("row", "field"), [(("NA", "a", 1), "user_id"), (("u", "null", 1), "item_id"), (("u", "a", ""), "timestamp")]
)
def test_cells_that_read_as_missing_are_named(tmp_path, atomic, row, field):
    with pytest.raises(ValueError, match=rf"small.inter, line 5: no {field} \(1 such lines\)"):
        build(tmp_path, "SASRec", atomic, [*ROWS[:3], row, *ROWS[3:]])


def test_an_item_that_is_not_in_the_item_file_is_named(tmp_path, atomic):
    atomic(tmp_path, "small", ROWS, items=["a", "b", "c", "d", "f"])
    with pytest.raises(ValueError, match=r"1 items of .*small.inter are not in small.item: e;"):
        build(tmp_path, "SASRecF")


def test_nobody_to_evaluate(tmp_path, atomic):
    with pytest.raises(ValueError, match="no user of small has the 4 interactions"):
        build(tmp_path, "SASRec", atomic, ROWS[5:])


def test_duplicates_are_removed_in_time_order_when_asked(tmp_path, atomic):
    rows = [("u", "a", 5), ("u", "b", 2), ("u", "a", 1), ("u", "c", 3), ("u", "d", 4)]
    dataset, _ = build(tmp_path, "SASRec", atomic, rows, rm_dup_inter="first", eval_negatives="full")
    assert dataset.histories.item_tokens[dataset.histories.of(1)].tolist() == ["a", "b", "c", "d"]


def test_real_data_with_many_ties(real_data, tmp_path):
    """Sequential and general models agree with the file on every target, tied timestamps or not."""
    name = "ml-posters-mini"
    lines = [line.split("\t") for line in (real_data / name / f"{name}.inter").read_text().splitlines()]
    columns = [[cell.split(":")[0] for cell in lines[0]].index(field) for field in ("user_id", "item_id", "timestamp")]
    users, items, times = ([row[column] for row in lines[1:]] for column in columns)
    expected = Histories.from_rows(users, items, [float(time) for time in times])
    ties = len(times) - len(set(zip(users, times)))
    assert ties > 1000
    for model in ("SASRec", "BPR"):
        dataset, parts = build(real_data, model, name=name, checkpoint_dir=str(tmp_path), eval_negatives=100)
        assert dataset.histories.sha256 == expected.sha256
        for part in parts[1:]:
            rows = part.inter_feat
            order = np.argsort(rows["user_id"].numpy())
            asked, targets = expected.targets(part.phase)
            assert (rows["user_id"].numpy()[order] == asked).all() and (rows["item_id"].numpy()[order] == targets).all()


def test_a_missing_column_is_named(tmp_path):
    (tmp_path / "small").mkdir()
    (tmp_path / "small" / "small.inter").write_text("user_id:token\titem_id:token\nu\ta\n")
    with pytest.raises(ValueError, match="small.inter, line 1: no column timestamp; it has user_id, item_id"):
        build(tmp_path, "BPR")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("u\ta\tyesterday", r"line 3: timestamp 'yesterday' is not a number \(1 such lines\); write times as numbers"),
        ('u\t"a\t1', r"line 3: a cell begins with a double quote \(1 such lines\); remove the quote"),
        ("u\ta", r"line 3: 2 cells where the header has 3 columns \(1 such lines\); make it one cell a column"),
        ("u\ta\t1\t2\nv\ta\t1\t2", r"line 3: 4 cells where the header has 3 columns \(2 such lines\); make"),
        ("u\tcaf\udce9\t1", r"line 3: not UTF-8 \(1 such lines\); convert the file"),
    ],
)
@pytest.mark.parametrize("model", ["SASRec", "BPR"])
def test_lines_that_recboles_reader_cannot_take_are_named(tmp_path, atomic, model, line, message):
    atomic(tmp_path, "small", ROWS)
    file = tmp_path / "small" / "small.inter"
    lines = file.read_text().splitlines()
    file.write_bytes("\n".join([*lines[:2], line, *lines[2:]]).encode("utf-8", "surrogateescape"))
    with pytest.raises(ValueError, match=rf"small\.inter, {message}"):
        build(tmp_path, model)


def test_recboles_encoding_key_is_followed(tmp_path, atomic):
    atomic(tmp_path, "small", [*ROWS, ("w", "é", T + 9)])
    file = tmp_path / "small" / "small.inter"
    file.write_bytes(file.read_text(encoding="utf-8").encode("latin-1"))
    dataset, _ = build(tmp_path, "SASRec", encoding="latin-1")
    assert "é" in dataset.histories.item_tokens.tolist()
