"""The models behind one interface (`base.Model`), found by the name of their configuration (`registry.REGISTRY`)."""

from .base import Inputs, Model, join_models
from .registry import REGISTRY, build_model, fuses_folds, is_solved, make_inputs, prior_log_odds, reads_text

__all__ = [
    "REGISTRY",
    "Inputs",
    "Model",
    "build_model",
    "fuses_folds",
    "is_solved",
    "join_models",
    "make_inputs",
    "prior_log_odds",
    "reads_text",
]
