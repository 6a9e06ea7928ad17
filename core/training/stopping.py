"""When a curve has stopped improving, where it was best, and where it is heading."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np


def is_stale(means: Sequence[float], patience: int, *, higher_is_better: bool = True) -> bool:
    """Has the curve not improved on its best for `patience` epochs?"""
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
    """What the curve's best would be after `patience` more epochs at the pace of the last half of `patience`.

    Learning curves flatten once learning has begun in earnest, and a straight line flatters such a curve. One that has
    stood still for half the patience has its best as its prospect.

    Args:
        means: the curve so far, one value an epoch.
        patience: epochs that an improvement is waited for.
        longest: epochs at most; the line ends there, too.
        warmup: epochs at the beginning that say nothing of the pace, because learning was held back.
        higher_is_better: the metric's direction.

    Returns:
        The value; infinitely good while the curve is too short to have a pace.
    """
    window = math.ceil(patience / 2)
    if len(means) <= warmup + window:
        return math.inf if higher_is_better else -math.inf
    now = means[best_index(means, higher_is_better=higher_is_better)]
    before = means[best_index(means[:-window], higher_is_better=higher_is_better)]
    return now + (now - before) / window * min(patience, longest - len(means))
