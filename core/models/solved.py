"""Solved models: logistic regressions on fixed inputs. Their weights are computed, not trained epoch by epoch."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from . import logistic
from .base import Inputs, Model

POSTS_PER_BATCH = 64


class SolvedModel(Model):
    """Logits that are linear in fixed inputs of a post; every weight is the solution of `logistic.solve`.

    The loss is the log-loss and the penalty L2 with the configuration's `C`; neither a seed nor a setting of the
    training changes the solution. Before it is solved, the model predicts its prior.

    Args:
        strength: C, the inverse strength of the penalty.
        inputs: number of inputs.
        prior: float32 `[folds, criteria]`, log-odds of each criterion in the fold's training part.
    """

    weight: nn.Parameter
    """[folds, inputs, criteria]"""

    def __init__(self, strength: float, inputs: int, prior: Tensor) -> None:
        super().__init__()
        folds, criteria = prior.shape
        self.strength = strength
        self.weight = nn.Parameter(torch.zeros(folds, inputs, criteria))
        self.bias = nn.Parameter(prior.clone())

    @abstractmethod
    def design(self, batch: Any) -> Tensor:  # noqa: ANN401  (each model has its own batches)
        """The inputs `[folds, width, inputs]` of a batch's posts, as they are: the same for every fold."""

    def scale(self, design: Tensor, folds: slice = slice(None)) -> Tensor:  # noqa: ARG002  (the default has no scale)
        """The inputs `[folds, width, inputs]` as the weights of the folds take them; by default unchanged."""
        return design

    def fit_scale(self, fold: int, design: Tensor) -> None:
        """Set what `scale` does to a fold from the inputs `[posts, inputs]` of its training posts; by default nothing.

        Args:
            fold: the fold's position in the stack.
            design: from `design`.
        """

    def forward(self, batch: Any) -> Tensor:  # noqa: ANN401
        """Logits `[folds, width, criteria]` of a batch."""
        return torch.baddbmm(self.bias[:, None], self.scale(self.design(batch)), self.weight)

    @torch.no_grad()
    def solve(self, design: Tensor, labels: npt.NDArray[np.int8], train: Sequence[npt.NDArray[np.int64]]) -> None:
        """Solve every fold. It is computed on the CPU in float64, so that every device gets the same weights.

        Args:
            design: inputs of all posts, `[posts, inputs]`.
            labels: int8 `[posts, criteria]`: 1, 0 or -1 (unlabelled, does not count).
            train: training posts of each fold; no other post matters.
        """
        for fold, posts in enumerate(train):
            rows = design[torch.from_numpy(posts).to(design.device)]
            self.fit_scale(fold, rows)
            scaled = self.scale(rows[None], slice(fold, fold + 1))[0]
            solution = logistic.solve(scaled.cpu().numpy(), labels[posts], self.strength)
            self.weight[fold] = torch.from_numpy(solution.weight).to(self.weight)
            self.bias[fold] = torch.from_numpy(solution.bias).to(self.bias)

    def logits(self, design: Tensor, fold: int) -> Tensor:
        """Logits `[posts, criteria]` of one fold from inputs `[posts, inputs]`."""
        return torch.addmm(self.bias[fold], self.scale(design[None], slice(fold, fold + 1))[0], self.weight[fold])

    @torch.no_grad()
    def design_all(self, inputs: Inputs) -> Tensor:
        """The inputs `[posts, inputs]` of all posts of a corpus; posts of similar length share a batch."""
        order = np.argsort(inputs.lengths, kind="stable")
        parts = [
            self.design(inputs.batch(order[start : start + POSTS_PER_BATCH][None]))[0]
            for start in range(0, len(order), POSTS_PER_BATCH)
        ]
        by_length = torch.cat(parts)
        design = torch.empty_like(by_length)
        design[torch.from_numpy(order).to(design.device)] = by_length
        return design
