"""Early stopping: when a curve is stale, where it was best, and which best value it is heading for."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np


def is_stale(means: Sequence[float], patience: int, *, higher_is_better: bool = True) -> bool:
    """True if the best value of the curve is at least `patience` epochs old."""
    if not means:
        return False
    return len(means) - 1 - best_index(means, higher_is_better=higher_is_better) >= patience


def best_index(means: Sequence[float], *, higher_is_better: bool = True) -> int:
    """Index of the best value, the earliest among equals; undefined (NaN) values are never best."""
    signed = np.asarray(means) if higher_is_better else -np.asarray(means)
    return int(np.argmax(np.where(np.isnan(signed), -np.inf, signed)))


def projected_best(
    means: Sequence[float], patience: int, *, longest: int, warmup: int = 0, higher_is_better: bool = True
) -> float:
    """Extrapolate the curve's best value linearly over the next `patience` epochs.

    The slope is that of the best value so far over the last `patience / 2` epochs (rounded up). Learning curves flatten
    out, so the line is an optimistic estimate. A curve that has not improved within those epochs has slope 0, and its
    projection is its best value.

    Args:
        means: the curve so far, one value per epoch.
        patience: epochs without improvement after which the curve is stale.
        longest: the maximum number of epochs; the line ends there at the latest.
        warmup: epochs at the beginning whose slope does not count, because a warm-up slowed learning down.
        higher_is_better: the metric's direction.

    Returns:
        The projected value; infinitely good while the curve is too short to have a slope.
    """
    window = math.ceil(patience / 2)
    if len(means) <= warmup + window:
        return math.inf if higher_is_better else -math.inf
    now = means[best_index(means, higher_is_better=higher_is_better)]
    before = means[best_index(means[:-window], higher_is_better=higher_is_better)]
    return now + (now - before) / window * min(patience, longest - len(means))
