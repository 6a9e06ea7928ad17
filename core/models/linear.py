"""The floor: logistic regression on the mean chunk embedding of a post, which retrieves nothing."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from ..splits import Folds
from .base import Model

_CERTAIN = 1000.0
"""A logit whose probability is exactly 1, and with a minus exactly 0."""


class Linear(Model):
    """One logit per criterion from the mean embedding, trained like every other model.

    Args:
        dim: width of the embeddings.
        prior: float32 `[folds, criteria]`, log-odds of each criterion in the fold's training part.
    """

    def __init__(self, dim: int, prior: Tensor) -> None:
        super().__init__()
        folds, criteria = prior.shape
        self.weight = nn.Parameter(torch.zeros(folds, dim, criteria))
        self.bias = nn.Parameter(prior.clone())

    def forward(self, means: Tensor) -> Tensor:
        """Logits `[folds, width, criteria]` of mean embeddings `[folds, width, dim]`."""
        return torch.baddbmm(self.bias[:, None], means, self.weight)

    def reseed(self, keys: Sequence[tuple[int | str, ...]]) -> None:
        """Nothing here is random."""

    def penalty(self) -> Tensor:
        """No penalty: zeros `[folds]`."""
        return torch.zeros_like(self.bias[:, 0])


def linear_baseline(
    means: npt.NDArray[np.float32], labels: npt.NDArray[np.int8], folds: Folds
) -> npt.NDArray[np.float64]:
    """Out-of-fold probabilities of a converged logistic regression (L2, C = 1), criterion by criterion.

    Args:
        means: mean embedding of each post, `[posts, dim]`.
        labels: 1, 0 or -1 (unlabelled), `[posts, criteria]`.
        folds: the very folds the candidates are scored on.

    Returns:
        float64 `[posts, criteria]`; NaN for posts of no fold.
    """
    probabilities = np.full(labels.shape, np.nan)
    with torch.no_grad():
        model = fit_linear_baseline(means, labels, folds).double()
        for fold in range(folds.count):
            validation = folds.validation(fold)
            logits = torch.from_numpy(means[validation]).double() @ model.weight[fold] + model.bias[fold]
            probabilities[validation] = torch.sigmoid(logits).numpy()
    return probabilities


def fit_linear_baseline(means: npt.NDArray[np.float32], labels: npt.NDArray[np.int8], folds: Folds) -> Linear:
    """The logistic regressions of `linear_baseline` as one model, stacked over the folds."""
    model = Linear(means.shape[1], torch.zeros(folds.count, labels.shape[1]))
    with torch.no_grad():
        for fold in range(folds.count):
            train = folds.train(fold)
            for criterion in range(labels.shape[1]):
                known = train[labels[train, criterion] >= 0]
                weight, bias = _fitted(means[known], labels[known, criterion])
                model.weight[fold, :, criterion] = torch.from_numpy(weight)
                model.bias[fold, criterion] = bias
    return model


def _fitted(rows: npt.NDArray[np.float32], target: npt.NDArray[np.int8]) -> tuple[npt.NDArray[np.float64], float]:
    """Weights `[dim]` and intercept; where there is one class only, it is all there is to say, and of none nothing."""
    positives = int((target == 1).sum())
    if not 0 < positives < len(target):
        return np.zeros(rows.shape[1]), (2.0 * positives - len(target)) * _CERTAIN
    from sklearn.linear_model import LogisticRegression  # a worker that joins never needs it, and it takes a second

    fitted = LogisticRegression(C=1.0, max_iter=1000).fit(rows, target)
    return np.asarray(fitted.coef_[0], dtype=np.float64), float(fitted.intercept_[0])
