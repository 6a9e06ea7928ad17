"""Advisory locks: of a study, for decisions about its trials, and of what only one process should do at a time."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING

from .limits import kept_alive

if TYPE_CHECKING:
    from sqlalchemy import Connection, Engine

_LOCKS = 0x68706F
"""First key of our advisory locks; the second is a study's id, or 0 for creating tables and studies."""
_BASELINE_LOCKS = _LOCKS + 1
"""The same for measuring a study's baselines, which takes seconds and must not block anything else."""
_CONCLUSION_LOCKS = _LOCKS + 2
"""The same for concluding from a study's trials."""
_EXPORT_LOCKS = _LOCKS + 3
"""The same for writing a study to a tracking server."""

LOCK_STUDY = f"SELECT pg_advisory_xact_lock({_LOCKS}, :study)"
"""Takes the study's advisory lock until the transaction ends; 0 is for creating tables and studies."""


CREATION_SECONDS = 30.0
"""For so long the lock for creating tables and studies is waited for without a session."""
CREATION_PAUSE = 0.1
"""Between two attempts to get it, in seconds; a random half of it is skipped."""


@contextmanager
def locked_for_creation(engine: Engine) -> Iterator[Connection]:
    """Hold the lock for creating tables and studies during a transaction; yields its connection.

    Its holder needs another session, for what Optuna writes. So those that wait keep none: behind a pooler they could
    have all that there are. After `CREATION_SECONDS` they wait in the database's queue, which reports a busy lock.
    """
    deadline = time.monotonic() + CREATION_SECONDS
    while True:
        with engine.begin() as connection:
            is_late = time.monotonic() > deadline
            if is_late:
                lock_study(connection)
            if is_late or _take_if_free(connection, _LOCKS, 0):
                yield connection
                return
        time.sleep(CREATION_PAUSE * random.uniform(0.5, 1.0))


def lock_study(connection: Connection, study_id: int = 0) -> None:
    """Take the study's advisory lock until the transaction ends; 0 is for creating tables and studies."""
    import sqlalchemy as sa

    connection.execute(sa.text(LOCK_STUDY), {"study": study_id})


def try_baselines_lock(engine: Engine, study_id: int) -> AbstractContextManager[bool]:
    """Hold the lock for measuring a study's baselines; yields False if another process has it."""
    return _try_lock(engine, _BASELINE_LOCKS, study_id)


def try_conclusion_lock(engine: Engine, study_id: int) -> AbstractContextManager[bool]:
    """Hold the lock for concluding from a study; yields False if another process has it."""
    return _try_lock(engine, _CONCLUSION_LOCKS, study_id)


def try_export_lock(engine: Engine, study_id: int) -> AbstractContextManager[bool]:
    """Hold the lock for writing a study to a tracking server; yields False if another process has it."""
    return _try_lock(engine, _EXPORT_LOCKS, study_id)


@contextmanager
def _try_lock(engine: Engine, purpose: int, study_id: int) -> Iterator[bool]:
    """Hold a lock for as long as the block lasts and this process is alive: a frozen or killed one loses it."""
    with engine.begin() as connection:
        if not _take_if_free(connection, purpose, study_id):
            yield False
            return
        with kept_alive(connection):
            yield True


def _take_if_free(connection: Connection, purpose: int, study_id: int) -> bool:
    """Take a lock until the transaction ends, if nobody has it; whether this transaction has it now."""
    import sqlalchemy as sa

    return bool(connection.scalar(sa.select(sa.func.pg_try_advisory_xact_lock(purpose, study_id))))
