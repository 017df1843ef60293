"""Our recommenders, one file a model, found by quick_start under the lower-case name of the class. Imports recbole, torch, vlm, objectives."""
