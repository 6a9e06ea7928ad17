"""The models behind one interface (`base.Model`), found by the name of their configuration (`registry.REGISTRY`)."""

from .base import Inputs, Model
from .registry import REGISTRY, build_model, fuses_folds, is_solved, make_inputs, prior_log_odds, reads_text

__all__ = [
    "REGISTRY",
    "Inputs",
    "Model",
    "build_model",
    "fuses_folds",
    "is_solved",
    "make_inputs",
    "prior_log_odds",
    "reads_text",
]
