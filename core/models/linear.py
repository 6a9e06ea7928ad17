"""The linear baseline: logistic regression on the mean chunk embedding of a post, without retrieval."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from ..config import LinearConfig
from ..features.bags import Bag
from ..features.views import EmbeddedCorpus
from ..splits import Folds
from .base import Model

_CERTAIN = 1000.0
"""A logit whose probability is exactly 1; negated, exactly 0."""


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

    @classmethod
    def build(
        cls,
        config: LinearConfig,  # noqa: ARG003  (it has no parameters)
        features: EmbeddedCorpus,
        prior: Tensor,
        *,
        seed: int,  # noqa: ARG003  (it starts at zero)
        folds: Sequence[int],  # noqa: ARG003
        train: Sequence[npt.NDArray[np.int64]],  # noqa: ARG003
    ) -> Linear:
        """The model for a corpus."""
        return cls(features.embeddings.shape[1], prior)

    def forward(self, means: Tensor) -> Tensor:
        """Logits `[folds, width, criteria]` of mean embeddings `[folds, width, dim]`."""
        return torch.baddbmm(self.bias[:, None], means, self.weight)

    def chunk_logits(self, bag: Bag) -> Tensor:
        """Logits `[folds, width, criteria]` of the mean of each post's chunks."""
        present = bag.present[..., None]
        means = (bag.embeddings * present).sum(2) / present.sum(2).clamp(min=1)
        return self(means)  # type: ignore[no-any-return]

    def attention(self, bag: Bag) -> Tensor:
        """Attention `[folds, width, criteria, length]`: every chunk of a post counts the same."""
        uniform = bag.present / bag.present.sum(-1, keepdim=True)
        return uniform[:, :, None].expand(-1, -1, self.bias.shape[1], -1).contiguous()


def linear_baseline(
    means: npt.NDArray[np.float32], labels: npt.NDArray[np.int8], folds: Folds
) -> npt.NDArray[np.float64]:
    """Out-of-fold probabilities of a converged logistic regression (L2, C = 1), criterion by criterion.

    Args:
        means: mean embedding of each post, `[posts, dim]`.
        labels: 1, 0 or -1 (unlabelled), `[posts, criteria]`.
        folds: the folds that the candidates are scored on.

    Returns:
        float64 `[posts, criteria]`; NaN for posts in no fold.
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
    """Fit the logistic regressions of `linear_baseline`; the arguments are the same.

    Returns:
        One model, stacked over the folds.
    """
    model = Linear(means.shape[1], torch.zeros(folds.count, labels.shape[1]))
    with torch.no_grad():
        for fold in range(folds.count):
            train = folds.train(fold)
            for criterion in range(labels.shape[1]):
                labelled = train[labels[train, criterion] >= 0]
                weight, bias = _fit(means[labelled], labels[labelled, criterion])
                model.weight[fold, :, criterion] = torch.from_numpy(weight)
                model.bias[fold, criterion] = bias
    return model


def _fit(rows: npt.NDArray[np.float32], target: npt.NDArray[np.int8]) -> tuple[npt.NDArray[np.float64], float]:
    """Weights `[dim]` and intercept; with only one class they predict it with certainty, without rows both are 0."""
    positives = int((target == 1).sum())
    if not 0 < positives < len(target):
        return np.zeros(rows.shape[1]), (2.0 * positives - len(target)) * _CERTAIN
    from sklearn.linear_model import LogisticRegression  # takes a second; most workers never need it

    regression = LogisticRegression(C=1.0, max_iter=1000).fit(rows, target)
    return np.asarray(regression.coef_[0], dtype=np.float64), float(regression.intercept_[0])
