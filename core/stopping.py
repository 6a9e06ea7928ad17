"""When a curve has stopped improving, and where it was best."""

from __future__ import annotations

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
