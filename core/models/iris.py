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

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional

from ..config import IrisConfig
from ..features.bags import Bag
from ..features.views import EmbeddedCorpus
from .base import Model, normal
from .dropout import FoldDropout
from .standard import Standard

POSTS_PER_PASS = 64
"""Posts whose direct inputs are computed together at the start."""


class Iris(Model):
    """Queries → top-k chunks of each post → attention over those → head → one logit per criterion.

    The softmax over a post's chunks keeps which of them are nearest, and drops how near they are. So the logit has two
    direct inputs beside the head, each with its own weights, which start at zero:

    - the `similarities` highest cosines of every query of every criterion, sorted, and its mean cosine over the post,
    - the mean embedding of the post as a unit vector.

    Both are standardised by constants that are computed from the fold's training posts at the start. The retrieved
    values have a gradient (the choice of chunks has none), so the queries also learn through them. IRIS as published
    has neither input: `similarities = 0` and `mean_embedding = False`. A model that is not made by `build` leaves them
    as they are.

    Args:
        config: widths, k, temperature, dropout, the direct inputs and the weight of the penalty.
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
    similarity_head: nn.Parameter
    mean_head: nn.Parameter

    def __init__(self, config: IrisConfig, criteria: Tensor, prior: Tensor, *, seed: int, folds: Sequence[int]) -> None:
        super().__init__()
        self.config = config
        self.criteria, self.dim = criteria.shape
        self._stack_folds(partial(self._start, criteria), prior, seed=seed, folds=folds)
        if config.similarities:
            self.similarity_standard = Standard(len(folds), self._similarity_inputs)
        if config.mean_embedding:
            self.mean_standard = Standard(len(folds), self.dim)
        self.dropout = FoldDropout(config.dropout)

    @classmethod
    def build(
        cls,
        config: IrisConfig,
        features: EmbeddedCorpus,
        prior: Tensor,
        *,
        seed: int,
        folds: Sequence[int],
        train: Sequence[npt.NDArray[np.int64]],
    ) -> Iris:
        """The model for a corpus; the other arguments are those of the class and of `Model.build`."""
        model = cls(config, torch.from_numpy(features.criteria), prior, seed=seed, folds=folds)
        model._standardise(features, train)
        return model

    @property
    def _similarity_inputs(self) -> int:
        """Number of similarities that are direct inputs: the highest and the mean of every query."""
        return (self.config.similarities + 1) * self.criteria * self.config.num_queries

    def _start(self, criteria: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        """The initial weights of one fold."""
        width, queries = self.config.hidden, self.config.num_queries
        noise_std = self.config.query_noise / math.sqrt(self.dim)
        noise = normal(generator, self.criteria, queries, self.dim, std=noise_std)
        if self.config.similarities:
            noise[:, 0] = 0  # the similarity to the criterion's own text is the strongest input there is
        weights = {
            "queries": functional.normalize(criteria, dim=-1)[:, None] + noise,
            "value": normal(generator, self.dim, width, std=1.0),  # unit vectors in, unit variance out
            "inner": normal(generator, width, width, std=1 / math.sqrt(width)),
            "inner_bias": torch.zeros(width),
            "outer": normal(generator, width, width, std=0.5 / math.sqrt(width)),
            "scale": torch.ones(width),
            "shift": torch.zeros(width),
            "head": torch.zeros(self.criteria, width),
        }
        if self.config.similarities:
            weights["similarity_head"] = torch.zeros(self._similarity_inputs, self.criteria)
        if self.config.mean_embedding:
            weights["mean_head"] = torch.zeros(self.dim, self.criteria)
        return weights

    @torch.no_grad()
    def _standardise(self, features: EmbeddedCorpus, train: Sequence[npt.NDArray[np.int64]]) -> None:
        """Compute the constants of the direct inputs, fold by fold: a fold must not depend on its stack."""
        if not (self.config.similarities or self.config.mean_embedding):
            return
        bags = features.bags.chunks("cpu")
        for fold, posts in enumerate(train):
            unit = functional.normalize(self.queries[fold : fold + 1], dim=-1).flatten(1, 2)
            by_length = posts[np.argsort(bags.lengths[posts], kind="stable")]
            similarities, means = [], []
            for part in np.array_split(by_length, math.ceil(len(posts) / POSTS_PER_PASS)):
                bag = bags.batch(part[None])
                means.append(bag.means())
                if self.config.similarities:
                    cosines = (bag.embeddings @ unit[:, None].mT).masked_fill(~bag.present[..., None], -math.inf)
                    ranked = largest(cosines, min(self.config.similarities, cosines.shape[2]))
                    highest = with_highest(cosines, ranked, self.config.similarities)
                    similarities.append(similarity_inputs(highest, means[-1], unit))
            if self.config.similarities:
                weight = self.config.similarity_weight
                self.similarity_standard.fit(fold, torch.cat(similarities, dim=1)[0], weight=weight)
            if self.config.mean_embedding:
                self.mean_standard.fit(fold, functional.normalize(torch.cat(means, dim=1)[0], dim=-1))

    def forward(self, bag: Bag) -> Tensor:
        """Logits `[folds, width, criteria]` of a bag of posts."""
        unit = functional.normalize(self.queries, dim=-1).flatten(1, 2)
        scores, values = self._project(bag, unit)
        mask, highest = self._retrieve(scores, bag.present)
        logits = self._head(torch.softmax(scores + mask, dim=2), values)
        if self.config.similarities or self.config.mean_embedding:
            means = bag.means()
        if self.config.similarities:
            inputs = similarity_inputs(highest * self.config.temperature, means, unit)
            logits = torch.baddbmm(logits, self.similarity_standard(inputs), self.similarity_head)
        if self.config.mean_embedding:
            inputs = self.mean_standard(functional.normalize(means, dim=-1))
            logits = torch.baddbmm(logits, inputs, self.mean_head)
        return logits

    def attend(self, bag: Bag) -> tuple[Tensor, Tensor]:
        """Attention `[folds, width, criteria * queries, length]`, zero outside the top k, and the values.

        Values are `[folds, width, length, hidden]`. Chunks that tie with the k-th are retrieved, too, so the order of a
        post's chunks never matters.
        """
        unit = functional.normalize(self.queries, dim=-1).flatten(1, 2)
        scores, values = self._project(bag, unit)
        mask, _ = self._retrieve(scores, bag.present)
        return torch.softmax(scores + mask, dim=2).mT, values

    def _project(self, bag: Bag, unit: Tensor) -> tuple[Tensor, Tensor]:
        """Scores `[folds, width, length, criteria * queries]` (cosine / temperature) and values of the chunks."""
        folds, width, length, dim = bag.embeddings.shape
        queries = unit / self.config.temperature
        # scores and values in one matrix product over the chunks
        projection = torch.cat([queries.mT, self.value], dim=-1)
        chunks = bag.embeddings.view(folds, width * length, dim)
        projected = torch.bmm(chunks, projection).view(folds, width, length, -1)
        scores, values = projected.split([queries.shape[1], self.config.hidden], dim=-1)
        return scores, values

    def _retrieve(self, scores: Tensor, present: Tensor) -> tuple[Tensor, Tensor]:
        """A mask, 0 where a chunk is retrieved and else -inf, and the scores of the highest that enter the logit.

        Gradients flow through the weights and the values of the chunks, not through the choice of chunks.
        """
        mask = torch.zeros_like(present, dtype=scores.dtype).masked_fill(~present, -math.inf)[..., None]
        length, count = scores.shape[2], self.config.similarities
        k = self.config.k_retrieved if self.config.k_retrieved < length else 0  # 0: all chunks are retrieved
        if not k and not count:
            return mask, scores[:, :, :0]
        masked_scores = scores + mask
        with torch.no_grad():
            ranked = largest(masked_scores, min(max(k, count), length))
            if k:
                mask = torch.where(masked_scores < ranked[k - 1][:, :, None], -math.inf, mask)
        return mask, with_highest(masked_scores, ranked, count) if count else scores[:, :, :0]

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


def similarity_inputs(highest: Tensor, means: Tensor, queries: Tensor) -> Tensor:
    """The similarities that enter the logit, `[folds, width, (count + 1) * queries]`: the highest, then the means.

    Args:
        highest: cosines `[folds, width, count, queries]`.
        means: mean embeddings of the posts `[folds, width, dim]`; their products with the queries are mean cosines.
        queries: unit vectors `[folds, queries, dim]`.
    """
    return torch.cat([highest.flatten(2), torch.bmm(means, queries.mT)], dim=-1)


def with_highest(scores: Tensor, ranked: Sequence[Tensor], count: int) -> Tensor:
    """The `count` highest scores of each post in descending order, `[folds, width, count, n]`, with their gradient.

    A post with fewer chunks repeats its lowest score.

    Args:
        scores: `[folds, width, length, n]`, -inf where padded.
        ranked: their largest values in descending order, from `largest`.
        count: how many.
    """
    values = [ranked[0]]
    for rank in range(1, count):
        value = ranked[min(rank, len(ranked) - 1)]
        values.append(torch.where(value == -math.inf, values[-1], value))
    highest: Tensor = _Highest.apply(scores, torch.stack(values, dim=2))  # type: ignore[no-untyped-call]
    return highest


class _Highest(torch.autograd.Function):
    """Known values of scores as a function of the scores: equal scores share the gradient of their value."""

    @staticmethod
    def forward(ctx: Any, scores: Tensor, values: Tensor) -> Tensor:  # noqa: ANN401
        ctx.save_for_backward(scores, values)
        return values.view_as(values)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:  # noqa: ANN401
        scores, values = ctx.saved_tensors
        total = torch.zeros_like(scores)
        for value, value_gradient in zip(values.unbind(2), gradient.unbind(2), strict=True):
            equal = (scores == value[:, :, None]).to(scores.dtype)
            total.addcmul_(equal, (value_gradient / equal.sum(2))[:, :, None])
        return total, None


INSERTION_MAX_K = 8
"""Up to this k, and from `INSERTION_MIN_SCORES` scores on, insertion finds the k largest on a CPU; `topk` takes two
to four times as long."""
INSERTION_MIN_SCORES = 16_384


def largest(scores: Tensor, k: int) -> Sequence[Tensor]:
    """The k largest along the third axis, in descending order, with `k <= length`.

    Scores `[folds, width, length, n]` give k tensors `[folds, width, n]`.
    """
    if k > INSERTION_MAX_K or scores.numel() < INSERTION_MIN_SCORES or scores.device.type != "cpu":
        return scores.topk(k, dim=2).values.unbind(2)
    ranked: list[Tensor] = []  # of the chunks so far
    for chunk_scores in scores.unbind(2):
        candidate = chunk_scores
        for rank, current in enumerate(ranked):
            ranked[rank], candidate = torch.maximum(current, candidate), torch.minimum(current, candidate)
        if len(ranked) < k:
            ranked.append(candidate)
    return ranked
