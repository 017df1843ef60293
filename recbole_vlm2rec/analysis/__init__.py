"""The analysis room: geometry of embeddings, significance of differences, references beside every model. No recbole."""
