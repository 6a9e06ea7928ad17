"""Retries with growing, random pauses, and which database errors are transient."""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TypeVar

from ..errors import StorageError
from .rights import explained

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

_QUERY_CANCELED = "57014"
_LOCKED = {"55P03", "40P01"}
"""SQLSTATEs: a lock was not granted within `lock_timeout`; a deadlock was resolved at our cost."""


def is_transient(error: BaseException | None) -> bool:
    """Whether the same call may succeed later: a lost connection or a busy lock, not a wrong statement."""
    import sqlalchemy as sa

    error = _original(error)
    if isinstance(error, sa.exc.DBAPIError) and error.connection_invalidated:
        return True
    # PendingRollbackError: Optuna mistook the lost connection for another error and kept using it.
    lost = sa.exc.OperationalError | sa.exc.InterfaceError | sa.exc.TimeoutError | sa.exc.PendingRollbackError
    return isinstance(error, lost)


def is_busy(error: BaseException | None) -> bool:
    """Whether the database is well, but another process has a lock for longer than we wait for one."""
    import sqlalchemy as sa

    error = _original(error)
    if not isinstance(error, sa.exc.DBAPIError):
        return False
    state = getattr(error.orig, "pgcode", None)
    # A role can have a statement timeout that is shorter than our limit for locks.
    canceled = state == _QUERY_CANCELED and "pg_advisory_xact_lock" in (error.statement or "")
    return canceled or state in _LOCKED


def retry(call: Callable[[], T], seconds: float, *, longest_pause: float = PAUSES.longest) -> T:
    """Return `call()`, repeated for `seconds` while it fails with a transient error, after pauses of `longest_pause`.

    A busy lock is no outage: it is waited for, however long that takes. Its holder is alive, because the server ends
    the session of one that is not (`hpo.database.limits`).

    Raises:
        StorageError: the database was still unreachable after `seconds`.
        DatabaseRightsError: the role may not do that.
    """
    deadline = time.monotonic() + seconds
    pauses = replace(PAUSES, longest=longest_pause)
    failures = 0
    told: set[bool] = set()
    while True:
        try:
            return call()
        except Exception as error:
            if not is_transient(error):
                if (without_right := explained(_original(error))) is not None:
                    raise without_right from error
                raise
            busy = is_busy(error)
            if busy:
                deadline, failures = time.monotonic() + seconds, 0
            left = deadline - time.monotonic()
            if left <= 0:
                raise StorageError(
                    f"The database was unreachable for {seconds:.0f} s: check that Postgres is running, then run the "
                    "same command to resume; no reported result is lost."
                ) from error
        failures += 1
        if busy not in told:
            _tell(busy=busy)
            told.add(busy)
        time.sleep(min(left, pauses.pause(failures)))


def _tell(*, busy: bool) -> None:
    if busy:
        logger.warning(
            "A lock in the database is busy: another process has had it for longer than usual; waiting for it.",
            extra={"action": "lock_busy"},
        )
    else:
        logger.warning("The database is unreachable; retrying.", extra={"action": "database_unreachable"})


def _original(error: BaseException | None) -> BaseException | None:
    """The database's error, which Optuna may have wrapped."""
    from optuna.exceptions import StorageInternalError

    return _original(error.__cause__) if isinstance(error, StorageInternalError) else error
