"""The floor: logistic regression on the mean chunk embedding of a post, which retrieves nothing."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn

from core.splits import Folds


class Linear(nn.Module):
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
        """No penalty: zeros `[folds]`, which can be differentiated."""
        return 0 * self.bias.sum(-1)


def linear_floor(means: npt.NDArray[np.float32], labels: npt.NDArray[np.int8], folds: Folds) -> npt.NDArray[np.float64]:
    """Out-of-fold probabilities of a converged logistic regression (L2, C = 1), criterion by criterion.

    Args:
        means: mean embedding of each post, `[posts, dim]`.
        labels: 1, 0 or -1 (unlabelled), `[posts, criteria]`.
        folds: the very folds the candidates are scored on.

    Returns:
        float64 `[posts, criteria]`; NaN for posts of no fold.
    """
    probabilities = np.full(labels.shape, np.nan)
    for fold in range(folds.count):
        train, validation = folds.train(fold), folds.validation(fold)
        for criterion in range(labels.shape[1]):
            known = train[labels[train, criterion] >= 0]
            target = labels[known, criterion]
            if target.min() == target.max():  # nothing to separate: the training rate is all there is to say
                probabilities[validation, criterion] = float(target[0])
                continue
            model = LogisticRegression(C=1.0, max_iter=1000).fit(means[known], target)
            probabilities[validation, criterion] = model.predict_proba(means[validation])[:, 1]
    return probabilities
