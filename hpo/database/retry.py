"""Retries with growing, random pauses, and which database errors are transient."""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from ..errors import StorageError

T = TypeVar("T")

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Backoff:
    """Pauses between attempts, in seconds: each twice as long as the one before, from `shortest` to `longest`.

    A random part of every pause, up to the share `jitter`, is skipped, so that many workers that failed together do
    not all retry together.
    """

    shortest: float
    longest: float
    jitter: float = 0.5

    def pause(self, attempt: int) -> float:
        """Seconds to wait after the given number of failures in a row (1, 2, ...); never more than `longest`."""
        doublings = min(attempt - 1, 60)  # 2 ** 60 exceeds every `longest`, and much larger powers overflow
        return min(self.longest, self.shortest * 2.0**doublings) * random.uniform(1 - self.jitter, 1)


PAUSES = Backoff(shortest=0.1, longest=10.0)
"""Between attempts to reach the database."""


def is_transient(error: BaseException | None) -> bool:
    """Whether the same call may succeed once the database is back: a lost connection, not a wrong statement."""
    import sqlalchemy as sa
    from optuna.exceptions import StorageInternalError

    if isinstance(error, StorageInternalError):
        return is_transient(error.__cause__)
    if isinstance(error, sa.exc.DBAPIError) and error.connection_invalidated:
        return True
    # PendingRollbackError: Optuna mistook the lost connection for another error and kept using it.
    lost = sa.exc.OperationalError | sa.exc.InterfaceError | sa.exc.TimeoutError | sa.exc.PendingRollbackError
    return isinstance(error, lost)


def retry(call: Callable[[], T], seconds: float) -> T:
    """Return `call()`, repeated while it fails with a transient error.

    Raises:
        StorageError: the database was still unreachable after `seconds`.
    """
    deadline = time.monotonic() + seconds
    failures = 0
    while True:
        try:
            return call()
        except Exception as error:
            if not is_transient(error):
                raise
            left = deadline - time.monotonic()
            if left <= 0:
                raise StorageError(
                    f"The database was unreachable for {seconds:.0f} s: check that Postgres is running, then run the "
                    "same command to resume; no reported result is lost."
                ) from error
        failures += 1
        if failures == 1:
            logger.warning("The database is unreachable; retrying.", extra={"action": "database_unreachable"})
        time.sleep(min(left, PAUSES.pause(failures)))
