"""The item table of task 2: exported embeddings behind one linear layer, in place of RecBole's `nn.Embedding`.

Imports torch and embeddings. Shared by VLM2RecSASRec and VLM2RecGRU4Rec, whose input and output sides both read it.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recbole_vlm2rec import embeddings


class AdaptedItemEmbedding(nn.Module):
    """Linear(d -> size) over a table [n_items, d]; used as RecBole uses `nn.Embedding`: called with ids, or by `.weight`.

    The table is divided by one number, the root mean square of its rows' norms: the linear layer could absorb it, but
    with it the layer starts where RecBole's own embeddings start, whatever the backbone's scale.
    """

    def __init__(self, table: Tensor, size: int, initializer_range: float, freeze: bool):
        super().__init__()
        scale = table.norm(dim=1)[1:].square().mean().sqrt()
        self.table = nn.Embedding.from_pretrained(table / scale, freeze=freeze, padding_idx=0)
        self.adapter = nn.Linear(table.shape[1], size)
        nn.init.normal_(self.adapter.weight, std=initializer_range)
        nn.init.zeros_(self.adapter.bias)

    @property
    def weight(self) -> Tensor:
        """The adapted table, [n_items, size]."""
        return self.adapter(self.table.weight)

    def forward(self, item_ids: Tensor) -> Tensor:
        return self.adapter(self.table(item_ids))


def adapted_item_embedding(config, dataset, size: int) -> AdaptedItemEmbedding:
    """The item table from the export named by `item_embeddings`, in RecBole's item order.

    Raises ValueError without the key, and EmbeddingsError with the reason when the export is of another data set, damaged,
    or lacks items.
    """
    if not config["item_embeddings"]:
        raise ValueError(
            f"{config['model']} needs --item_embeddings=FOLDER, an export of a trained VLM2Rec: "
            f"recbole-vlm2rec export --checkpoint=RUN/checkpoint --out=FOLDER"
        )
    export = embeddings.read(config["item_embeddings"])
    export.require(dataset=config["dataset"])
    rows = export.rows(dataset.id2token(dataset.iid_field, range(1, dataset.item_num)))
    # After the items: which are missing says more than that something differs.
    read_pictures = export.manifest.get("encoder", {}).get("modalities") != "text"
    export.require(dataset=config["dataset"], catalog=(dataset.catalog if read_pictures else dataset.title_catalog).hash)
    table = F.pad(torch.from_numpy(rows.fused), (0, 0, 1, 0))
    return AdaptedItemEmbedding(table, size, config["adapter_initializer_range"], config["freeze_item_embeddings"])
