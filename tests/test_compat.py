"""The patches that RecBole needs: in place, and a refusal where no patch helps."""

import subprocess
import sys

import numpy as np
import pandas
import pytest
from scipy.sparse import dok_matrix

from recbole_vlm2rec import compat


def test_names_that_numpy_removed_are_there_again():
    compat.apply()
    assert (np.float, np.bool, np.str, np.long) == (np.float64, np.bool_, np.str_, np.int_)


def test_a_graph_can_be_filled_from_a_dictionary():
    compat.apply()
    graph = dok_matrix((2, 3), dtype=np.float32)
    graph._update({(0, 1): 1, (1, 2): 5})
    assert graph.toarray().tolist() == [[0, 1, 0], [0, 0, 5]]
    assert graph.tocoo().nnz == 2


def test_pandas_3_is_refused(monkeypatch):
    monkeypatch.setattr(pandas, "__version__", "3.0.1")
    monkeypatch.setattr(compat, "_applied", False)
    with pytest.raises(RuntimeError, match="pandas 3.0.1 makes RecBole 1.2.1 silently wrong"):
        compat.apply()


@pytest.mark.parametrize("before", [False, True])
def test_importing_a_model_leaves_autograds_anomaly_detection_alone(before):
    """RecBole's SINE switches it on for the process, which makes every training several times as slow."""
    code = f"""
import torch
torch.autograd.set_detect_anomaly({before})
from recbole_vlm2rec.registry import get_model
for name in ("SINE", "SASRec", "VLM2RecSASRec", "VLM2Rec"):
    get_model(name)
    print(torch.is_anomaly_enabled())
"""
    said = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert said.split() == [str(before)] * 4
