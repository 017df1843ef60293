"""Every patch that RecBole 1.2.1 needs on current libraries, each with its reason; `apply()` installs them, once.

May import the standard library, numpy, scipy, pandas and torch, and recbole only inside `apply`; call it before using recbole.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

_applied = False


def apply() -> None:
    """Makes RecBole 1.2.1 work on current libraries. Raises RuntimeError for a library on which it would be silently wrong."""
    global _applied
    if _applied:
        return
    _refuse_pandas_3()
    _numpy_aliases()
    _scipy_dok_update()
    _quiet_deprecations()
    _tensorboard_beside_the_log()
    _no_reload_of_loaders()
    _applied = True


@contextmanager
def anomaly_mode_kept() -> Iterator[None]:
    """For imports of RecBole's models: autograd's anomaly detection stays as it is.

    SINE switches it on for the whole process, and importing any sequential model imports SINE: every training after that,
    of whatever model, would take several times as long.
    """
    import torch

    before = torch.is_anomaly_enabled(), torch.is_anomaly_check_nan_enabled()
    try:
        yield
    finally:
        torch.autograd.set_detect_anomaly(*before)


def _refuse_pandas_3() -> None:
    """pandas 3 copies on write: RecBole's `feat[field].fillna(..., inplace=True)` does nothing, missing cells get wrong ids."""
    import pandas

    if int(pandas.__version__.split(".")[0]) >= 3:
        reason = "makes RecBole 1.2.1 silently wrong (fillna in place); pip install 'pandas<3'"
        raise RuntimeError(f"pandas {pandas.__version__} {reason}")


def _numpy_aliases() -> None:
    """NumPy 1.24 removed these names, which RecBole uses; its own Config restores them from names that NumPy 2 removed in turn.

    RUCAIBox/RecBole#1604, #1714. Only what its source uses: float (data, evaluator/metrics.py), bool (evaluator/metrics.py),
    str (trainer/hyper_tuning.py), long (feature embeddings of the context-aware models).
    """
    for name, value in {"float": np.float64, "bool": np.bool_, "str": np.str_, "long": np.int_}.items():
        if name not in np.__dict__:
            setattr(np, name, value)


def _scipy_dok_update() -> None:
    """SciPy 1.13 removed `dok_matrix._update`, by which LightGCN, NGCF, GCMC, NCL, SpectralCF, KGIN and MCCLK fill their graphs.

    RUCAIBox/RecBole#2034, #2090, #2185.
    """
    from scipy.sparse import dok_matrix

    if not hasattr(dok_matrix, "_update"):

        def _update(self, data: dict) -> None:
            self._dict.update(data)

        dok_matrix._update = _update


def _quiet_deprecations() -> None:
    """RecBole's own deprecated calls would print a page of warnings at every start; the user can do nothing about them."""
    for module in (r"recbole\.", r"thop", r"hyperopt"):
        for category in (FutureWarning, DeprecationWarning, SyntaxWarning, UserWarning):
            warnings.filterwarnings("ignore", category=category, module=module)


def _tensorboard_beside_the_log() -> None:
    """RecBole writes ./log_tensorboard in the working folder whatever checkpoint_dir says; a run's events belong to the run."""
    from recbole.trainer import trainer
    from torch.utils.tensorboard import SummaryWriter

    recbole_writer = trainer.get_tensorboard

    def get_tensorboard(logger):
        for handler in logger.handlers:
            if getattr(handler, "run_folder", None):
                return SummaryWriter(os.path.join(handler.run_folder, "tensorboard"))
        return recbole_writer(logger)

    trainer.get_tensorboard = get_tensorboard


def _no_reload_of_loaders() -> None:
    """RecBole unpickles <checkpoint_dir>/<dataset>-for-<model>-dataloader.pth whenever there is one, of whatever data it was."""
    from recbole.data import utils

    utils.load_split_dataloaders = lambda config: None
