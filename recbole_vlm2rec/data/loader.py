"""Training batches of whole users: what lets all prefixes of a history share one causal pass.

Imports numpy and torch only; the loader that it wraps is RecBole's.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch.utils.data import DataLoader


class UserBatches(DataLoader):
    """Like RecBole's training loader `rows`, but `train_batch_size` counts users, each of which comes with all of its rows."""

    def __init__(self, rows):
        self.rows, self._dataset = rows, rows._dataset
        users = self._dataset.inter_feat[self._dataset.uid_field].numpy()
        order = np.argsort(users, kind="stable")
        starts = np.flatnonzero(np.diff(users[order])) + 1
        super().__init__(
            np.split(order, starts), batch_size=rows.step, shuffle=True, generator=rows.generator, collate_fn=self.collate,
            num_workers=rows.config["worker"],
        )  # fmt: skip

    def collate(self, users: Sequence[np.ndarray]):
        """The rows of these users as one interaction."""
        return self.rows.collate_fn(np.concatenate(users))
