"""Things timed by turns: when the machine is slow for a while, it is for all of them."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import numpy as np


def by_turns(runs: Sequence[Callable[[], object]], rounds: int) -> list[list[float]]:
    """Seconds `[runs][rounds]` of runs that take turns; the first turn of each is not counted."""
    for run in runs:
        run()
    taken: list[list[float]] = [[] for _ in runs]
    for _ in range(rounds):
        for run, own in zip(runs, taken, strict=True):
            started = time.perf_counter()
            run()
            own.append(time.perf_counter() - started)
    return taken


def ratio(pair: Sequence[Sequence[float]]) -> float:
    """The second's seconds over the first's, the median of the rounds."""
    first, second = pair
    return float(np.median(np.divide(second, first)))
