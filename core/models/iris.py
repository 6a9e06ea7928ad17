"""IRIS: learned queries retrieve the k nearest chunks of each post, and only those are read.

Li, Hill, Shu, Gao, Engelhard, "IRIS: Interpretable Retrieval-Augmented Classification for Long Interspersed
Document Sequences" (ACL 2025), made criterion-conditioned: every criterion has queries of its own, which start at the
criterion's embedding. All folds of a stage live in one module: every parameter has a leading `folds` axis.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from core.bags import Bag
from core.config import IrisConfig
from core.models.dropout import FoldDropout
from core.seeding import torch_generator


class Iris(nn.Module):
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
        weights, values = self.attend(bag)
        read = weights @ values  # [folds, width, criteria * queries, hidden]
        return self._head(read)

    def _project(self, bag: Bag) -> tuple[Tensor, Tensor]:
        """Similarities `[folds, width, criteria * queries, length]` and values `[folds, width, length, hidden]`."""
        folds, width, length, dim = bag.embeddings.shape
        queries = functional.normalize(self.queries, dim=-1).flatten(1, 2)
        # one pass over the chunks for similarities and values together
        both = torch.cat([queries.mT, self.value], dim=-1)
        projected = (bag.embeddings.view(folds, width * length, dim) @ both).view(folds, width, length, -1)
        similarity, values = projected.split([queries.shape[1], self.config.hidden], dim=-1)
        similarity = similarity.transpose(2, 3).masked_fill(~bag.present[:, :, None], -math.inf)
        return similarity, values

    def attend(self, bag: Bag) -> tuple[Tensor, Tensor]:
        """Attention `[folds, width, criteria * queries, length]`, zero outside the top k, and the values."""
        similarity, values = self._project(bag)
        k = min(self.config.k_retrieved, similarity.shape[-1])
        if k == similarity.shape[-1]:
            return torch.softmax(similarity / self.config.temperature, dim=-1), values
        top = similarity.topk(k, dim=-1, sorted=False)
        weights = torch.softmax(top.values / self.config.temperature, dim=-1)
        return torch.zeros_like(similarity).scatter(-1, top.indices, weights), values

    def _head(self, read: Tensor) -> Tensor:
        """Per-query MLP with residual, mean over the queries, LayerNorm, logit."""
        folds, width = read.shape[:2]
        flat = read.flatten(1, 2)  # [folds, width * criteria * queries, hidden]
        inner = torch.relu(torch.baddbmm(self.inner_bias[:, None], flat, self.inner))
        # The outer layer is linear, so the mean over the queries may come before it: a query's worth of work for all.
        apart = (folds, width * self.criteria, self.config.num_queries, -1)
        pooled = torch.baddbmm(flat.view(apart).mean(2), inner.view(apart).mean(2), self.outer)
        pooled = functional.layer_norm(pooled, pooled.shape[-1:]).view(folds, width, self.criteria, -1)
        pooled = pooled * self.scale[:, None, None] + self.shift[:, None, None]
        kept: Tensor = self.dropout(pooled)
        return (kept * self.head[:, None]).sum(-1) + self.bias[:, None]

    def reseed(self, keys: Sequence[tuple[int | str, ...]]) -> None:
        """Seed the dropout of each fold for the coming epoch."""
        self.dropout.reseed(keys)

    def penalty(self) -> Tensor:
        """Diversity penalty of each fold `[folds]`: weight · mean over criteria of ‖Q̂Q̂ᵀ − I‖²."""
        queries = functional.normalize(self.queries, dim=-1)
        overlap = queries @ queries.mT - torch.eye(self.config.num_queries, device=queries.device)
        return self.config.diversity_weight * overlap.square().sum((-1, -2)).mean(-1)
