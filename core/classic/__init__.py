"""Training one model by hand: data frames, loaders, loss modules, and a trainer with early stopping.

Cross-validation of whole configurations is in `core.training`; both use the same engine.
"""

from ..losses import compute_log_odds, compute_pos_weight
from ..training.optimizer import linear_warmup
from .frames import create_dataloader, create_kfold_splits
from .losses import (
    AsymmetricLoss,
    BCELoss,
    FocalLoss,
    LogitAdjustedBCELoss,
    WeightedBCELoss,
    compute_class_weights,
    compute_focal_alpha,
    create_loss_function,
)
from .matching import IRISForCriterionMatching
from .trainer import Evaluated, Trainer

__all__ = [
    "AsymmetricLoss",
    "BCELoss",
    "Evaluated",
    "FocalLoss",
    "IRISForCriterionMatching",
    "LogitAdjustedBCELoss",
    "Trainer",
    "WeightedBCELoss",
    "compute_class_weights",
    "compute_focal_alpha",
    "compute_log_odds",
    "compute_pos_weight",
    "create_dataloader",
    "create_kfold_splits",
    "create_loss_function",
    "linear_warmup",
]
