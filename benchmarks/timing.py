"""Timing things in alternation, so that a slow phase of the machine affects all of them."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import numpy as np


def time_alternately(runs: Sequence[Callable[[], object]], rounds: int, *, warm_up: bool = True) -> list[list[float]]:
    """Return seconds `[runs][rounds]` of functions called in alternation, after one warm-up call of each.

    Without `warm_up` they have been called before, or the first call hardly differs from others.
    """
    for run in runs if warm_up else ():
        run()
    seconds: list[list[float]] = [[] for _ in runs]
    for _ in range(rounds):
        for run, seconds_of_run in zip(runs, seconds, strict=True):
            started = time.perf_counter()
            run()
            seconds_of_run.append(time.perf_counter() - started)
    return seconds


def ratio(pair: Sequence[Sequence[float]]) -> float:
    """Return the second's seconds over the first's: the median over the rounds."""
    first, second = pair
    return float(np.median(np.divide(second, first)))
