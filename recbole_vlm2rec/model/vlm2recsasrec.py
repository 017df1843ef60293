"""VLM2RecSASRec: RecBole's SASRec on exported VLM2Rec item embeddings (task 2). Imports recbole and model.adapter."""

from recbole.model.sequential_recommender.sasrec import SASRec

from recbole_vlm2rec.model.adapter import adapted_item_embedding


class VLM2RecSASRec(SASRec):
    """RecBole's SASRec whose item table, on the input and on the output side, is an export behind one linear layer."""

    def __init__(self, config, dataset):
        super().__init__(config, dataset)
        self.item_embedding = adapted_item_embedding(config, dataset, self.hidden_size)
