"""Fitted models: an ensemble of fold models that predicts new posts, and the folder that it is kept in."""

from .fitting import Fit, Recipe, fit
from .folder import checksum, load_model, save_model
from .model import Explanation, FittedModel

__all__ = ["Explanation", "Fit", "FittedModel", "Recipe", "checksum", "fit", "load_model", "save_model"]
