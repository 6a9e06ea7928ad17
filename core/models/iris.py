"""IRIS: learned queries retrieve the k nearest chunks of each post, and only those count.

Li, Hill, Shu, Gao, Engelhard, "IRIS: Interpretable Retrieval-Augmented Classification for Long Interspersed
Document Sequences" (ACL 2025), made criterion-conditioned: every criterion has its own queries, which start at the
criterion's embedding. All folds of a stage live in one module: every parameter has a leading `folds` axis.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..config import IrisConfig
from ..features.bags import Bag
from ..features.views import EmbeddedCorpus
from .base import Model, normal
from .dropout import FoldDropout


class Iris(Model):
    """Queries → top-k chunks of each post → attention over those → head → one logit per criterion.

    Args:
        config: widths, k, temperature, dropout and the weight of the penalty.
        criteria: float32 `[criteria, dim]`, embeddings of the criteria's texts, where the queries start.
        prior: float32 `[folds, criteria]`, log-odds of each criterion in the fold's training part.
        seed: seeds the initial weights, together with the fold number.
        folds: fold numbers; the initial weights of a fold do not depend on the folds it is stacked with.
    """

    queries: nn.Parameter
    value: nn.Parameter
    inner: nn.Parameter
    inner_bias: nn.Parameter
    outer: nn.Parameter
    scale: nn.Parameter
    shift: nn.Parameter
    head: nn.Parameter

    def __init__(self, config: IrisConfig, criteria: Tensor, prior: Tensor, *, seed: int, folds: Sequence[int]) -> None:
        super().__init__()
        self.config = config
        self.criteria, self.dim = criteria.shape
        self._stack_folds(partial(self._start, criteria), prior, seed=seed, folds=folds)
        self.dropout = FoldDropout(config.dropout)

    @classmethod
    def build(
        cls, config: IrisConfig, features: EmbeddedCorpus, prior: Tensor, *, seed: int, folds: Sequence[int]
    ) -> Iris:
        """The model for a corpus; the other arguments are those of the class."""
        return cls(config, torch.from_numpy(features.criteria), prior, seed=seed, folds=folds)

    def _start(self, criteria: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        """The initial weights of one fold."""
        width, queries = self.config.hidden, self.config.num_queries
        noise_std = self.config.query_noise / math.sqrt(self.dim)
        noise = normal(generator, self.criteria, queries, self.dim, std=noise_std)
        return {
            "queries": functional.normalize(criteria, dim=-1)[:, None] + noise,
            "value": normal(generator, self.dim, width, std=1.0),  # unit vectors in, unit variance out
            "inner": normal(generator, width, width, std=1 / math.sqrt(width)),
            "inner_bias": torch.zeros(width),
            "outer": normal(generator, width, width, std=0.5 / math.sqrt(width)),
            "scale": torch.ones(width),
            "shift": torch.zeros(width),
            "head": torch.zeros(self.criteria, width),
        }

    def forward(self, bag: Bag) -> Tensor:
        """Logits `[folds, width, criteria]` of a bag of posts."""
        weights, values = self._attend(bag)
        return self._head(weights, values)

    def attend(self, bag: Bag) -> tuple[Tensor, Tensor]:
        """Attention `[folds, width, criteria * queries, length]`, zero outside the top k, and the values.

        Values are `[folds, width, length, hidden]`. Chunks that tie with the k-th are retrieved, too, so the order of a
        post's chunks never matters.
        """
        weights, values = self._attend(bag)
        return weights.mT, values

    def _attend(self, bag: Bag) -> tuple[Tensor, Tensor]:
        """The same as `attend`, but with weights `[folds, width, length, criteria * queries]`: no transposition."""
        folds, width, length, dim = bag.embeddings.shape
        queries = functional.normalize(self.queries, dim=-1).flatten(1, 2) / self.config.temperature
        # scores and values in one matrix product over the chunks
        projection = torch.cat([queries.mT, self.value], dim=-1)
        chunks = bag.embeddings.view(folds, width * length, dim)
        projected = torch.bmm(chunks, projection).view(folds, width, length, -1)
        scores, values = projected.split([queries.shape[1], self.config.hidden], dim=-1)
        with torch.no_grad():  # gradients flow through the weights of the chunks, not through the choice of chunks
            mask = torch.zeros_like(bag.present, dtype=scores.dtype).masked_fill(~bag.present, -math.inf)[..., None]
            if self.config.k_retrieved < length:
                masked_scores = scores + mask
                kth_score = kth_largest(masked_scores, self.config.k_retrieved)
                mask = torch.where(masked_scores < kth_score[:, :, None], -math.inf, mask)
        return torch.softmax(scores + mask, dim=2), values

    def _head(self, weights: Tensor, values: Tensor) -> Tensor:
        """Per-query MLP with residual, mean over the queries, LayerNorm, logit.

        Linear maps commute, so each is applied where its input is smallest. With attention weights A of a query (they
        add up to 1) and values V of the chunks, the inner layer is A (V W + b), and a post has fewer chunks than all
        criteria have queries. The mean over the queries comes before the outer layer and, in the residual, before the
        attention.
        """
        folds, width, length, hidden = values.shape
        queries, criteria, posts = self.config.num_queries, self.criteria, folds * width
        chunks = values.view(folds, width * length, hidden)
        inner_values = torch.baddbmm(self.inner_bias[:, None], chunks, self.inner).view(posts, length, hidden)
        inner = torch.relu_(torch.bmm(weights.view(posts, length, -1).mT, inner_values))
        inner = inner.view(folds, width * criteria, queries, hidden).sum(2)
        criterion_weights = weights.view(posts, length, criteria, queries).mean(3)
        residual = torch.bmm(criterion_weights.mT, values.view(posts, length, hidden))
        residual = residual.view(folds, width * criteria, hidden)
        pooled = torch.baddbmm(residual, inner, self.outer, alpha=1 / queries)
        pooled = functional.layer_norm(pooled, pooled.shape[-1:])
        pooled = torch.addcmul(self.shift[:, None], pooled, self.scale[:, None]).view(folds, width, criteria, hidden)
        dropped: Tensor = self.dropout(pooled)
        return (dropped * self.head[:, None]).sum(-1) + self.bias[:, None]

    def chunk_logits(self, bag: Bag) -> Tensor:
        """Logits `[folds, width, criteria]`, as `forward`."""
        return self(bag)  # type: ignore[no-any-return]

    def attention(self, bag: Bag) -> Tensor:
        """Attention `[folds, width, criteria, length]`, the mean over a criterion's queries."""
        weights, _ = self.attend(bag)
        return torch.stack(weights.split(self.config.num_queries, dim=2), dim=2).mean(3)

    def reseed(self, keys: Sequence[tuple[int | str, ...]]) -> None:
        """Seed the dropout of each fold for the coming epoch."""
        self.dropout.reseed(keys)

    def penalty(self) -> Tensor:
        """Diversity penalty of each fold `[folds]`: weight · mean over criteria of ‖Q̂Q̂ᵀ − I‖²."""
        return self.config.diversity_weight * overlap(self.queries)


def overlap(queries: Tensor) -> Tensor:
    """Mean over criteria of ‖Q̂Q̂ᵀ − I‖²: queries `[folds, criteria, queries, dim]` to `[folds]`."""
    overlaps: Tensor = _Overlap.apply(queries)  # type: ignore[no-untyped-call]
    return overlaps


class _Overlap(torch.autograd.Function):
    """`overlap` with its gradient written by hand, which saves a tenth of a training step's small operations."""

    @staticmethod
    def forward(ctx: Any, queries: Tensor) -> Tensor:  # noqa: ANN401
        norms = torch.linalg.vector_norm(queries, dim=-1, keepdim=True).clamp_(min=1e-12)
        unit = queries / norms
        cosines = unit @ unit.mT
        cosines.diagonal(dim1=-2, dim2=-1).sub_(1)
        ctx.save_for_backward(unit, norms, cosines)
        sums: Tensor = cosines.square().sum((-1, -2))
        return sums.mean(-1)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # noqa: ANN401
        unit, norms, cosines = ctx.saved_tensors
        direction: Tensor = cosines @ unit
        direction -= (direction * unit).sum(-1, keepdim=True) * unit  # the length of a query changes nothing
        direction *= (4 / unit.shape[1]) * gradient[:, None, None, None] / norms
        return direction


INSERTION_MAX_K = 8
"""Up to this k, and from `INSERTION_MIN_SCORES` scores on, insertion finds the k-th largest on a CPU; `topk` takes two
to four times as long."""
INSERTION_MIN_SCORES = 16_384


def kth_largest(scores: Tensor, k: int) -> Tensor:
    """The k-th largest along the third axis: `[folds, width, length, n]` to `[folds, width, n]`, with `k <= length`."""
    if k > INSERTION_MAX_K or scores.numel() < INSERTION_MIN_SCORES or scores.device.type != "cpu":
        return scores.topk(k, dim=2).values[:, :, -1]
    largest: list[Tensor] = []  # descending, of the chunks so far
    for chunk_scores in scores.unbind(2):
        candidate = chunk_scores
        for rank, current in enumerate(largest):
            largest[rank], candidate = torch.maximum(current, candidate), torch.minimum(current, candidate)
        if len(largest) < k:
            largest.append(candidate)
    return largest[-1]
