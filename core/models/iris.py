"""IRIS: learned queries retrieve the k nearest chunks of each post, and only those count.

Li, Hill, Shu, Gao, Engelhard, "IRIS: Interpretable Retrieval-Augmented Classification for Long Interspersed
Document Sequences" (ACL 2025), made criterion-conditioned: every criterion has its own queries, which start at the
criterion's embedding. All folds of a stage live in one module: every parameter has a leading `folds` axis.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial

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
from .iris_operations import attended, largest, overlap, with_highest, with_length
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
        queries = self._queries()
        scores, values = self._project(bag, queries)
        mask, highest = self._retrieve(scores, bag.present)
        logits = self._head(torch.softmax(scores + mask, dim=2), values)
        if self.config.similarities or self.config.mean_embedding:
            means = bag.means()
        if self.config.similarities:
            cosines = similarity_inputs(highest, means, queries) * self.config.temperature
            logits = torch.baddbmm(logits, self.similarity_standard(cosines), self.similarity_head)
        if self.config.mean_embedding:
            inputs = self.mean_standard(functional.normalize(means, dim=-1))
            logits = torch.baddbmm(logits, inputs, self.mean_head)
        return logits

    def attend(self, bag: Bag) -> tuple[Tensor, Tensor]:
        """Attention `[folds, width, criteria * queries, length]`, zero outside the top k, and the values.

        Values are `[folds, width, length, hidden]`. Chunks that tie with the k-th are retrieved, too, so the order of a
        post's chunks never matters.
        """
        scores, values = self._project(bag, self._queries())
        mask, _ = self._retrieve(scores, bag.present)
        return torch.softmax(scores + mask, dim=2).mT, values

    def _queries(self) -> Tensor:
        """Queries of length 1 / temperature, `[folds, criteria * queries, dim]`."""
        return with_length(self.queries, 1 / self.config.temperature).flatten(1, 2)

    def _project(self, bag: Bag, queries: Tensor) -> tuple[Tensor, Tensor]:
        """Scores `[folds, width, length, criteria * queries]` (cosine / temperature) and values of the chunks."""
        folds, width, length, dim = bag.embeddings.shape
        chunks = bag.embeddings.view(folds, width * length, dim)
        scores, values = torch.bmm(chunks, queries.mT), torch.bmm(chunks, self.value)
        return scores.view(folds, width, length, -1), values.view(folds, width, length, -1)

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
                # 0 from the k-th highest on, else -inf: three vectorised passes, where torch.where compares one by one
                above = masked_scores - ranked[k - 1][:, :, None].clamp(min=torch.finfo(scores.dtype).min)
                mask = torch.threshold_(above, -torch.finfo(scores.dtype).tiny, -math.inf).clamp_(max=0)
        return mask, with_highest(masked_scores, ranked, count) if count else scores[:, :, :0]

    def _head(self, weights: Tensor, values: Tensor) -> Tensor:
        """Per-query MLP with residual, mean over the queries, LayerNorm, logit.

        Linear maps commute, so each is applied where its input is smallest. With attention weights A of a query (they
        add up to 1) and values V of the chunks, the inner layer is A (V W + b), and a post has fewer chunks than all
        criteria have queries. The mean over the queries comes before the outer layer and, in the residual, before the
        attention.
        """
        folds, width, length, hidden = values.shape
        queries, posts = self.config.num_queries, folds * width
        chunks = values.view(folds, width * length, hidden)
        inner_values = torch.baddbmm(self.inner_bias[:, None], chunks, self.inner).view(posts, length, hidden)
        of_posts = (weights.view(posts, length, -1), inner_values, values.view(posts, length, hidden))
        inner, residual = (part.view(folds, -1, hidden) for part in attended(*of_posts, queries))
        pooled = torch.baddbmm(residual, inner, self.outer, alpha=1 / queries)
        pooled = functional.layer_norm(pooled, pooled.shape[-1:])
        pooled = torch.addcmul(self.shift[:, None], pooled, self.scale[:, None])
        dropped: Tensor = self.dropout(pooled.view(folds, width, self.criteria, hidden))
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


def similarity_inputs(highest: Tensor, means: Tensor, queries: Tensor) -> Tensor:
    """The similarities that enter the logit, `[folds, width, (count + 1) * queries]`: the highest, then the means.

    Args:
        highest: products of chunks and queries `[folds, width, count, queries]`.
        means: mean embeddings of the posts `[folds, width, dim]`; their products with the queries are mean cosines.
        queries: `[folds, queries, dim]`.
    """
    return torch.cat([highest.flatten(2), torch.bmm(means, queries.mT)], dim=-1)
