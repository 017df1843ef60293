"""Our recommenders, one file a model, found under the lower-case name of the class.

Imports recbole, torch, vlm, objectives and embeddings.
"""
