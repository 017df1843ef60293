import json

import numpy as np
import pytest

from recbole_vlm2rec.report.runs import RunError, find_runs, read_run


def write(folder, **result):
    folder.mkdir(parents=True)
    (folder / "result.json").write_text(json.dumps({"model": "BPR", "dataset": "shop", "seed": 1, **result}))
    np.savez_compressed(folder / "ranks.npz", test_users=np.array(["a", "b"]), test_ranks=np.array([1, 4]))
    return folder


def test_finds_runs_below_several_places_each_once(tmp_path):
    write(tmp_path / "saved" / "b")
    write(tmp_path / "saved" / "deep" / "a", model="VLM2RecSASRec", row="VLM2RecSASRec@VLMSFT")
    (tmp_path / "saved" / "unfinished").mkdir()
    runs = find_runs([tmp_path / "saved", tmp_path / "saved" / "b"])
    assert [(run.row, run.dataset, run.seed) for run in runs] == [("BPR", "shop", 1), ("VLM2RecSASRec@VLMSFT", "shop", 1)]
    assert runs[0].ranks["test_ranks"].tolist() == [1, 4]


def test_says_where_there_is_no_run(tmp_path):
    with pytest.raises(RunError, match="no finished run"):
        find_runs([tmp_path])
    with pytest.raises(RunError, match="is no folder"):
        find_runs([tmp_path / "absent"])
    with pytest.raises(RunError, match="holds no result.json"):
        read_run(tmp_path)


@pytest.mark.parametrize("file", ["result.json", "ranks.npz"])
def test_names_the_file_that_is_damaged(tmp_path, file):
    folder = write(tmp_path / "run")
    (folder / file).write_text("{")
    with pytest.raises(RunError, match=file):
        print(read_run(folder).ranks)


def test_a_copy_of_a_result_and_the_trials_of_a_search_are_no_runs_to_compare(tmp_path):
    write(tmp_path / "saved" / "run")
    write(tmp_path / "saved" / "tuning" / "runs" / "trial")
    (tmp_path / "saved" / "result.json").write_text("{}")
    assert [run.folder.name for run in find_runs([tmp_path / "saved"])] == ["run"]
