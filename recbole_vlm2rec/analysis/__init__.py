"""The analysis room: geometry of embeddings, significance of differences, references that every model is set beside. No recbole."""
