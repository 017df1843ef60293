"""VLM2RecGRU4Rec: RecBole's GRU4Rec on exported VLM2Rec item embeddings (task 2). Imports recbole and model.adapter."""

from recbole.model.sequential_recommender.gru4rec import GRU4Rec

from recbole_vlm2rec.model.adapter import adapted_item_embedding


class VLM2RecGRU4Rec(GRU4Rec):
    """RecBole's GRU4Rec whose item table, on the input and on the output side, is an export behind one linear layer."""

    def __init__(self, config, dataset):
        super().__init__(config, dataset)
        self.item_embedding = adapted_item_embedding(config, dataset, self.embedding_size)
