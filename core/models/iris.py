"""IRIS: learned queries retrieve the k nearest chunks of each post, and only those are read.

Li, Hill, Shu, Gao, Engelhard, "IRIS: Interpretable Retrieval-Augmented Classification for Long Interspersed
Document Sequences" (ACL 2025), made criterion-conditioned: every criterion has queries of its own, which start at the
criterion's embedding. All folds of a stage live in one module: every parameter has a leading `folds` axis.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..config import IrisConfig
from ..features.bags import Bag
from ..seeding import torch_generator
from .base import Model
from .dropout import FoldDropout


class Iris(Model):
    """Queries → top-k chunks of each post → attention over those → head → one logit per criterion.

    Args:
        config: widths, k, temperature.
        criteria: float32 `[criteria, dim]`, embeddings of the criteria's texts, where the queries start.
        prior: float32 `[folds, criteria]`, log-odds of each criterion in the fold's training part.
        seed: seed of the study.
        folds: fold numbers; fold `f` starts at the same weights whichever folds it is stacked with.
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
        starts = [self._start(criteria, torch_generator(seed, "model", fold)) for fold in folds]
        for name in starts[0]:
            self.register_parameter(name, nn.Parameter(torch.stack([start[name] for start in starts])))
        self.bias = nn.Parameter(prior.clone())
        self.dropout = FoldDropout(config.dropout)

    def _start(self, criteria: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        """The initial weights of one fold."""
        width, queries = self.config.hidden, self.config.num_queries

        def normal(*shape: int, std: float) -> Tensor:
            return torch.randn(*shape, generator=generator) * std

        noise = normal(self.criteria, queries, self.dim, std=self.config.query_noise / math.sqrt(self.dim))
        return {
            "queries": functional.normalize(criteria, dim=-1)[:, None] + noise,
            "value": normal(self.dim, width, std=1.0),  # unit vectors in, unit variance out
            "inner": normal(width, width, std=1 / math.sqrt(width)),
            "inner_bias": torch.zeros(width),
            "outer": normal(width, width, std=0.5 / math.sqrt(width)),
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

        Values are `[folds, width, length, hidden]`. Chunks as similar as the k-th are read, too, so that the order of a
        post's chunks never matters.
        """
        weights, values = self._attend(bag)
        return weights.mT, values

    def _attend(self, bag: Bag) -> tuple[Tensor, Tensor]:
        """As `attend`, but `[folds, width, length, criteria * queries]`: as the matrix product leaves them."""
        folds, width, length, dim = bag.embeddings.shape
        queries = functional.normalize(self.queries, dim=-1).flatten(1, 2) / self.config.temperature
        # one pass over the chunks for scores and values together
        both = torch.cat([queries.mT, self.value], dim=-1)
        chunks = bag.embeddings.view(folds, width * length, dim)
        projected = torch.bmm(chunks, both).view(folds, width, length, -1)
        scores, values = projected.split([queries.shape[1], self.config.hidden], dim=-1)
        with torch.no_grad():  # what is read has no gradient, only how much of it
            barred = torch.zeros_like(bag.present, dtype=scores.dtype).masked_fill(~bag.present, -math.inf)[..., None]
            if self.config.k_retrieved < length:
                allowed = scores + barred
                least = kth_largest(allowed, self.config.k_retrieved)
                barred = torch.where(allowed < least[:, :, None], -math.inf, barred)
        return torch.softmax(scores + barred, dim=2), values

    def _head(self, weights: Tensor, values: Tensor) -> Tensor:
        """Per-query MLP with residual, mean over the queries, LayerNorm, logit.

        Everything linear is done where there is least of it. With attention weights A of a query (they add up to 1) and
        values V of the chunks, the inner layer of what it reads is A (V W + b), and a post has fewer chunks than
        queries; the mean over the queries may come before the outer layer and, in the residual, before reading.
        """
        folds, width, length, hidden = values.shape
        queries, criteria, posts = self.config.num_queries, self.criteria, folds * width
        chunks = values.view(folds, width * length, hidden)
        inner_values = torch.baddbmm(self.inner_bias[:, None], chunks, self.inner).view(posts, length, hidden)
        inner = torch.relu_(torch.bmm(weights.view(posts, length, -1).mT, inner_values))
        inner = inner.view(folds, width * criteria, queries, hidden).sum(2)
        of_criteria = weights.view(posts, length, criteria, queries).mean(3)
        read = torch.bmm(of_criteria.mT, values.view(posts, length, hidden)).view(folds, width * criteria, hidden)
        pooled = torch.baddbmm(read, inner, self.outer, alpha=1 / queries)
        pooled = functional.layer_norm(pooled, pooled.shape[-1:])
        pooled = torch.addcmul(self.shift[:, None], pooled, self.scale[:, None]).view(folds, width, criteria, hidden)
        kept: Tensor = self.dropout(pooled)
        return (kept * self.head[:, None]).sum(-1) + self.bias[:, None]

    def reseed(self, keys: Sequence[tuple[int | str, ...]]) -> None:
        """Seed the dropout of each fold for the coming epoch."""
        self.dropout.reseed(keys)

    def penalty(self) -> Tensor:
        """Diversity penalty of each fold `[folds]`: weight · mean over criteria of ‖Q̂Q̂ᵀ − I‖²."""
        return self.config.diversity_weight * overlap(self.queries)


def overlap(queries: Tensor) -> Tensor:
    """Mean over criteria of ‖Q̂Q̂ᵀ − I‖² of queries `[folds, criteria, queries, dim]`, `[folds]`."""
    measured: Tensor = _Overlap.apply(queries)  # type: ignore[no-untyped-call]
    return measured


class _Overlap(torch.autograd.Function):
    """With the gradient written out: autograd would spend a tenth of a step's small operations on it."""

    @staticmethod
    def forward(ctx: Any, queries: Tensor) -> Tensor:  # noqa: ANN401
        norms = torch.linalg.vector_norm(queries, dim=-1, keepdim=True).clamp_(min=1e-12)
        unit = queries / norms
        likeness = unit @ unit.mT
        likeness.diagonal(dim1=-2, dim2=-1).sub_(1)
        ctx.save_for_backward(unit, norms, likeness)
        sums: Tensor = likeness.square().sum((-1, -2))
        return sums.mean(-1)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # noqa: ANN401
        unit, norms, likeness = ctx.saved_tensors
        towards: Tensor = likeness @ unit
        towards -= (towards * unit).sum(-1, keepdim=True) * unit  # the length of a query changes nothing
        towards *= (4 / unit.shape[1]) * gradient[:, None, None, None] / norms
        return towards


INSERTED = 8
"""Up to this k, and from so many scores on, the k-th largest is found by insertion on a CPU: `topk` would take two to
four times as long."""
MANY = 16_384


def kth_largest(scores: Tensor, k: int) -> Tensor:
    """The k-th largest along the third axis: `[folds, width, length, n]` to `[folds, width, n]`, with `k <= length`."""
    if k > INSERTED or scores.numel() < MANY or scores.device.type != "cpu":
        return scores.topk(k, dim=2).values[:, :, -1]
    largest: list[Tensor] = []  # from the largest down, of the chunks so far
    for scored in scores.unbind(2):
        falling = scored
        for place, kept in enumerate(largest):
            largest[place], falling = torch.maximum(kept, falling), torch.minimum(kept, falling)
        if len(largest) < k:
            largest.append(falling)
    return largest[-1]
