"""The operations of IRIS that take most of its time, with their gradients written by hand."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

CACHE_BYTES = 1 << 20
"""What all queries of some posts attend to is computed in parts of this size, which stay in the cache of a core."""


def attended(weights: Tensor, inner_values: Tensor, values: Tensor, queries: int) -> tuple[Tensor, Tensor]:
    """What the queries of each criterion attend to, after the inner layer and before it.

    Args:
        weights: attention A `[posts, length, criteria * queries]`.
        inner_values: V W + b `[posts, length, hidden]`.
        values: V `[posts, length, hidden]`.
        queries: number of queries of a criterion.

    Returns:
        The sum over a criterion's queries of relu(Aᵀ (V W + b)), and the mean over them of Aᵀ V; `[posts, criteria,
        hidden]` each.
    """
    inner, residual = _Attended.apply(weights, inner_values, values, queries)  # type: ignore[no-untyped-call]
    return inner, residual


class _Attended(torch.autograd.Function):
    """`attended`, part by part in the cache, and without keeping Aᵀ (V W + b), the largest matrix of all.

    The gradient computes it again: that takes less time than to write it to memory and to read it.
    """

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401
        weights: Tensor,
        inner_values: Tensor,
        values: Tensor,
        queries: int,
    ) -> tuple[Tensor, Tensor]:
        of_criteria = weights.unflatten(2, (-1, queries)).mean(3)
        residual = torch.bmm(of_criteria.mT, values)
        inner = torch.empty_like(residual)
        for part in _parts(weights, values):
            of_each = torch.bmm(weights[part].mT, inner_values[part]).relu_()
            torch.sum(of_each.unflatten(1, (-1, queries)), 2, out=inner[part])
        ctx.save_for_backward(weights, inner_values, values, of_criteria)
        ctx.queries = queries
        return inner, residual

    @staticmethod
    def backward(
        ctx: Any,  # noqa: ANN401
        inner_gradient: Tensor,
        residual_gradient: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor, None]:
        weights, inner_values, values, of_criteria = ctx.saved_tensors
        values_gradient = torch.bmm(of_criteria, residual_gradient)
        mean_gradient = torch.bmm(values, residual_gradient.mT).div_(ctx.queries)
        weights_gradient, inner_values_gradient = torch.empty_like(weights), torch.empty_like(inner_values)
        for part in _parts(weights, values):
            of_each = torch.bmm(weights[part].mT, inner_values[part])
            of_each.gt_(0).unflatten(1, (-1, ctx.queries)).mul_(inner_gradient[part, :, None])
            torch.bmm(inner_values[part], of_each.mT, out=weights_gradient[part])
            weights_gradient[part].unflatten(2, (-1, ctx.queries)).add_(mean_gradient[part, :, :, None])
            torch.bmm(weights[part], of_each, out=inner_values_gradient[part])
        return weights_gradient, inner_values_gradient, values_gradient, None


def _parts(weights: Tensor, values: Tensor) -> list[slice]:
    """The posts in parts; on a GPU, whose operations are faster the larger they are, in one."""
    posts, queries, hidden = len(weights), weights.shape[2], values.shape[2]
    fitting = CACHE_BYTES // (queries * hidden * values.element_size()) if weights.device.type == "cpu" else posts
    size = max(1, fitting)
    return [slice(start, start + size) for start in range(0, posts, size)]


def overlap(queries: Tensor) -> Tensor:
    """Mean over criteria of ‖Q̂Q̂ᵀ − I‖²: queries `[folds, criteria, queries, dim]` to `[folds]`."""
    overlaps: Tensor = _Overlap.apply(with_length(queries, 1.0))  # type: ignore[no-untyped-call]
    return overlaps


class _Overlap(torch.autograd.Function):
    """`overlap` of unit vectors, with its gradient written by hand: one product instead of two."""

    @staticmethod
    def forward(ctx: Any, unit: Tensor) -> Tensor:  # noqa: ANN401
        cosines = unit @ unit.mT
        cosines.diagonal(dim1=-2, dim2=-1).sub_(1)
        ctx.save_for_backward(unit, cosines)
        sums: Tensor = cosines.square().sum((-1, -2))
        return sums.mean(-1)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # noqa: ANN401
        unit, cosines = ctx.saved_tensors
        direction: Tensor = (cosines * ((4 / unit.shape[1]) * gradient[:, None, None, None])) @ unit
        return direction


def with_length(vectors: Tensor, length: float) -> Tensor:
    """The vectors (last axis) with another length."""
    scaled: Tensor = _WithLength.apply(vectors, length)  # type: ignore[no-untyped-call]
    return scaled


class _WithLength(torch.autograd.Function):
    """`with_length` with its gradient written by hand: half as many passes as that of torch's `normalize`."""

    @staticmethod
    def forward(ctx: Any, vectors: Tensor, length: float) -> Tensor:  # noqa: ANN401
        factors = length / torch.linalg.vector_norm(vectors, dim=-1, keepdim=True).clamp_(min=1e-12)
        scaled: Tensor = vectors * factors
        ctx.save_for_backward(scaled, factors)
        ctx.length = length
        return scaled

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:  # noqa: ANN401
        scaled, factors = ctx.saved_tensors
        along = torch.linalg.vecdot(gradient, scaled).unsqueeze(-1).div_(-(ctx.length**2))
        across: Tensor = torch.addcmul(gradient, scaled, along)
        return across.mul_(factors), None


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
