"""How fast trials finish, and how long the remaining ones will take."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import datetime

RECENT_TRIALS = 20
"""How many of the last finished trials `recent_pace` considers."""


@dataclass(frozen=True)
class Pace:
    """A rate of finished trials."""

    seconds_per_trial: float
    seconds_since: float = 0.0
    """Time since the last trial finished."""

    @property
    def trials_per_hour(self) -> float:
        """Finished trials per hour."""
        return 3600 / self.seconds_per_trial

    def seconds_left(self, trials: int) -> float:
        """Seconds until `trials` more are finished."""
        return max(trials * self.seconds_per_trial - self.seconds_since, 0.0)


def recent_pace(ends: Iterable[datetime]) -> Pace | None:
    """The pace of the `RECENT_TRIALS` that ended last; None for fewer than two ends."""
    recent = sorted(ends)[-RECENT_TRIALS:]
    seconds = (recent[-1] - recent[0]).total_seconds() if recent else 0.0
    return Pace(seconds / (len(recent) - 1)) if seconds > 0 else None


class PaceMeter:
    """The pace of a live run, counted from the moment its first trial runs: the start-up of workers is excluded."""

    def __init__(self, finished: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._finished_before = finished
        self._finished = 0
        self._since: float | None = None
        self._last = 0.0

    def update(self, *, finished: int, running: int) -> None:
        """Record how many trials are finished and running now."""
        now, finished = self._clock(), finished - self._finished_before
        if self._since is None and (running or finished):
            self._since = now
        if finished > self._finished:
            self._finished, self._last = finished, now

    @property
    def pace(self) -> Pace | None:
        """The pace from the first running trial to the last finished one; None until one has finished."""
        if self._since is None or self._finished == 0 or self._last <= self._since:
            return None
        return Pace((self._last - self._since) / self._finished, self._clock() - self._last)
