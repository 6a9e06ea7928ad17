"""The models behind one interface (`base.Model`), found by the name of their configuration (`registry.REGISTRY`)."""

from .base import Inputs, Model, join_models
from .registry import REGISTRY, build_model, fuses_folds, make_inputs, prior_log_odds

__all__ = [
    "REGISTRY",
    "Inputs",
    "Model",
    "build_model",
    "fuses_folds",
    "join_models",
    "make_inputs",
    "prior_log_odds",
]
