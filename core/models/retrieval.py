"""Logistic regression on the mean embedding and on how similar the nearest chunks are to each criterion's text.

Similarities are cosines. All criteria's similarities are inputs of every criterion's logit, because criteria are
related. All folds of a stage live in one module: every parameter has a leading `folds` axis.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from ..config import RetrievalConfig
from ..features.bags import Bag
from ..features.views import EmbeddedCorpus
from .solved import SolvedModel

CONSTANT = 1e-6
"""An input with a smaller standard deviation in the training part is constant there, and left out."""


class Retrieval(SolvedModel):
    """[unit mean embedding; `similarity_weight` × similarities], standardised → one logit per criterion.

    The similarities of a post are, for each criterion, the `top_k` highest of its chunks and the mean over its chunks;
    a post with fewer chunks repeats its lowest. Every input is standardised on the fold's training posts, so a larger
    `similarity_weight` is a weaker penalty on the weights of the similarities.

    Args:
        config: C, k, the weight of the similarities, and how the k similarities are pooled.
        criteria: float32 `[criteria, dim]`, embeddings of the criteria's texts.
        prior: float32 `[folds, criteria]`, log-odds of each criterion in the fold's training part.
    """

    criteria: Tensor
    center: Tensor
    """[folds, inputs]: mean over the fold's training posts."""
    factor: Tensor
    """[folds, inputs]: weight divided by the standard deviation over the fold's training posts; 0 = left out."""

    def __init__(self, config: RetrievalConfig, criteria: Tensor, prior: Tensor) -> None:
        count, dim = criteria.shape
        similarities = count * ((config.top_k if config.pooling == "each" else 1) + 1)
        super().__init__(config.C, dim + similarities, prior)
        self.config, self.dim = config, dim
        self.register_buffer("criteria", functional.normalize(criteria, dim=-1), persistent=False)
        self.register_buffer("center", torch.zeros(len(prior), dim + similarities))
        self.register_buffer("factor", torch.ones(len(prior), dim + similarities))

    @classmethod
    def build(
        cls,
        config: RetrievalConfig,
        features: EmbeddedCorpus,
        prior: Tensor,
        *,
        seed: int,  # noqa: ARG003  (the solution has no randomness)
        folds: Sequence[int],  # noqa: ARG003
        train: Sequence[npt.NDArray[np.int64]],  # noqa: ARG003
    ) -> Retrieval:
        """The model for a corpus; the other arguments are those of the class."""
        return cls(config, torch.from_numpy(features.criteria), prior)

    def design(self, batch: Bag) -> Tensor:
        """The inputs `[folds, width, dim + similarities]`: unit mean, nearest similarities, mean similarity."""
        count = batch.present.sum(-1, keepdim=True).clamp(min=1)
        cosines = self._cosines(batch)
        nearest = cosines.gather(2, self._nearest(batch, cosines))  # [folds, width, k, criteria]
        pooled = nearest.flatten(2) if self.config.pooling == "each" else nearest.mean(2)
        mean_cosine = cosines.masked_fill(~batch.present[..., None], 0).sum(2) / count
        return torch.cat([functional.normalize(batch.means(), dim=-1), pooled, mean_cosine], dim=-1)

    def _cosines(self, bag: Bag) -> Tensor:
        """Similarity of each chunk to each criterion's text, `[folds, width, length, criteria]`; -inf where padded."""
        return (bag.embeddings @ self.criteria.T).masked_fill(~bag.present[..., None], -math.inf)

    def _nearest(self, bag: Bag, cosines: Tensor) -> Tensor:
        """Positions of the k nearest chunks, the nearest first, `[folds, width, k, criteria]`; the last may repeat."""
        k = self.config.top_k
        positions = cosines.topk(min(k, cosines.shape[2]), dim=2).indices
        last = bag.present.sum(-1, keepdim=True).clamp(1, positions.shape[2]) - 1  # [folds, width, 1]
        ranks = torch.arange(k, device=last.device).minimum(last)
        return positions.gather(2, ranks[..., None].expand(-1, -1, -1, cosines.shape[3]))

    def scale(self, design: Tensor, folds: slice = slice(None)) -> Tensor:
        """The inputs standardised on each fold's training posts, the similarities times their weight."""
        return (design - self.center[folds, None]) * self.factor[folds, None]

    def fit_scale(self, fold: int, design: Tensor) -> None:
        """Standardise a fold on the inputs `[posts, inputs]` of its training posts."""
        center, factor = standardisation(design.double(), self.dim, self.config.similarity_weight)
        self.center[fold], self.factor[fold] = center.to(self.center), factor.to(self.factor)

    def chunk_logits(self, bag: Bag) -> Tensor:
        """Logits `[folds, width, criteria]`, as `forward`."""
        return self(bag)  # type: ignore[no-any-return]

    def attention(self, bag: Bag) -> Tensor:
        """Attention `[folds, width, criteria, length]`: how many of a criterion's k similarities are the chunk's."""
        nearest = self._nearest(bag, self._cosines(bag)).transpose(2, 3)  # [folds, width, criteria, k]
        folds, width, length = bag.present.shape
        counts = torch.zeros(folds, width, len(self.criteria), length, device=nearest.device)
        return counts.scatter_add_(3, nearest, torch.ones_like(nearest, dtype=counts.dtype)) / self.config.top_k


def standardisation(design: Tensor, dim: int, similarity_weight: float) -> tuple[Tensor, Tensor]:
    """Mean and factor of each input, both `[inputs]`, from the inputs `[posts, inputs]` of the training posts.

    Args:
        design: from `Retrieval.design`.
        dim: number of inputs that are coordinates of the mean embedding; the others are similarities.
        similarity_weight: what the similarities are multiplied by.
    """
    deviation = design.std(0, correction=0)
    factor = torch.where(deviation < CONSTANT, 0.0, 1 / deviation.clamp(min=CONSTANT))
    factor[dim:] *= similarity_weight
    return design.mean(0), factor
