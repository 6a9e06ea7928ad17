"""Standardised inputs of a model: to zero mean and unit variance over the training posts of each fold."""

from __future__ import annotations

import torch
from torch import Tensor, nn

_CONSTANT = 1e-6
"""Inputs with a smaller standard deviation are constant: they are centred, not scaled."""


class Standard(nn.Module):
    """Constants `[folds, inputs]`, part of a model's state but not trained; until `fit` the inputs stay as they are."""

    mean: Tensor
    scale: Tensor

    def __init__(self, folds: int, inputs: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(folds, inputs))
        self.register_buffer("scale", torch.ones(folds, inputs))

    @torch.no_grad()
    def fit(self, fold: int, rows: Tensor, *, weight: float = 1.0) -> None:
        """Compute the constants of one fold.

        Args:
            fold: the fold's position in the stack.
            rows: the inputs of its training posts or chunks, `[rows, inputs]`.
            weight: standard deviation of the standardised inputs.
        """
        deviation, mean = torch.std_mean(rows, dim=0, correction=0)
        self.mean[fold] = mean
        self.scale[fold] = weight / torch.where(deviation > _CONSTANT, deviation, 1.0)

    def forward(self, inputs: Tensor) -> Tensor:
        """Standardise `[folds, rows, inputs]`."""
        return (inputs - self.mean[:, None]) * self.scale[:, None]
