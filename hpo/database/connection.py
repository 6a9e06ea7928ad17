"""Connections to Postgres: engine options, opening Optuna's storage with all tables created, advisory locks."""

from __future__ import annotations

import os
import socket
import time
import warnings
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from sparse_evidence.core.errors import UserError

from ..errors import StorageError
from .address import describe, normalize_url
from .retry import Backoff, retry

if TYPE_CHECKING:
    import optuna
    from optuna.storages import BaseStorage
    from sqlalchemy import URL, Connection, Engine

    from .optuna_storage import RetryingStorage

RETRY_SECONDS = 600.0
"""How long a worker waits for a database that has become unreachable."""
LOOK_SECONDS = 5.0
"""How long commands that only look wait for it: a person, or a page in a browser, is waiting for the answer."""
CONNECT_SECONDS = 8
"""How long connecting may take before the database counts as unreachable."""
BUSY_SECONDS = 60.0
"""How long `open_storage` waits for a server that reports that it is starting, stopping or full."""
STATEMENT_MILLISECONDS = 60_000

_LOCKS = 0x68706F
"""First key of our advisory locks; the second is a study's id, or 0 for creating tables and studies."""
_BASELINE_LOCKS = _LOCKS + 1
"""The same for measuring a study's baselines, which takes seconds and must not block anything else."""
_CONCLUSION_LOCKS = _LOCKS + 2
"""The same for concluding from a study's trials."""
_EXPORT_LOCKS = _LOCKS + 3
"""The same for writing a study to a tracking server."""
_BUSY_PAUSES = Backoff(shortest=1.0, longest=2.0)
_POOLER = "unsupported startup parameter"
_BUSY = ("too many clients", "remaining connection slots", "starting up", "shutting down", "not yet accepting")


def open_storage(
    url: str, *, retry_seconds: float = RETRY_SECONDS, without: Collection[str] = (), create: bool = True
) -> BaseStorage:
    """Open Optuna's storage at `url` (from `address.storage_url`), with all tables created.

    Every later call on it waits up to `retry_seconds` for an unreachable database. User attributes of trials named in
    `without` are not read, to save time and memory. With `create=False`, for commands that only read, nothing is made
    in a database that no study was run in.

    Raises:
        UserError: with `create=False`: there are no tables of this package.
        StorageError: the database is unreachable.
    """
    import optuna
    import sqlalchemy as sa

    from . import claims_sql, predictions
    from .optuna_storage import RetryingStorage

    _quiet()
    url = normalize_url(url)
    options = _engine_options(sa.make_url(url))
    tables_exist = _tables_exist(url, options)
    if not create and not tables_exist and not _was_used(url, options):
        raise UserError(
            f"There is no study in {describe(url)}: start one with `hpo run` or `hpo worker`, or name its database "
            "with --storage (HPO_STORAGE)."
        )

    def connect(*, skip_table_creation: bool) -> RetryingStorage:
        return RetryingStorage(
            url.replace("{", "{{").replace("}", "}}"),  # Optuna fills a template
            retry_seconds=retry_seconds,
            engine_kwargs=options,
            skip_table_creation=skip_table_creation,
            without=without,
        )

    def open_once() -> RetryingStorage:
        if tables_exist:
            return connect(skip_table_creation=True)
        with _locked_for_creation(url, options) as connection:
            storage = connect(skip_table_creation=False)  # commits on other connections while this one holds the lock
            claims_sql.create_table(connection)
            predictions.create_table(connection)
            return storage

    return optuna.storages.get_storage(retry(open_once, CONNECT_SECONDS))


def open_to_look(url: str, *, without: Collection[str] = ()) -> BaseStorage:
    """Open the storage for a command that only looks: it makes nothing, and does not wait long for a database.

    Raises:
        UserError: there are no tables of this package.
        StorageError: the database is unreachable.
    """
    return open_storage(url, create=False, retry_seconds=LOOK_SECONDS, without=without)


def engine_of(holder: BaseStorage | optuna.Study) -> Engine:
    """Return the connection pool of a storage or a study."""
    from .optuna_storage import unwrap

    engine: Engine = unwrap(holder).engine
    return engine


def lock_study(connection: Connection, study_id: int = 0) -> None:
    """Take the study's advisory lock until the transaction ends; 0 is for creating tables and studies."""
    import sqlalchemy as sa

    connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_LOCKS, study_id)))


def try_baselines_lock(connection: Connection, study_id: int) -> bool:
    """Take the lock for measuring a study's baselines until the transaction ends; False if another process has it."""
    return _try_lock(connection, _BASELINE_LOCKS, study_id)


def try_conclusion_lock(connection: Connection, study_id: int) -> bool:
    """Take the lock for concluding from a study until the transaction ends; False if another process has it."""
    return _try_lock(connection, _CONCLUSION_LOCKS, study_id)


def try_export_lock(connection: Connection, study_id: int) -> bool:
    """Take the lock for writing a study to a tracking server until the transaction ends; False if it is taken."""
    return _try_lock(connection, _EXPORT_LOCKS, study_id)


def _try_lock(connection: Connection, purpose: int, study_id: int) -> bool:
    import sqlalchemy as sa

    return bool(connection.scalar(sa.select(sa.func.pg_try_advisory_xact_lock(purpose, study_id))))


@contextmanager
def _locked_for_creation(url: str, options: Mapping[str, Any]) -> Iterator[Connection]:
    """A transaction in which no other process creates tables."""
    import sqlalchemy as sa

    engine = sa.create_engine(url, **options)
    try:
        with engine.begin() as connection:
            lock_study(connection)
            yield connection
    finally:
        engine.dispose()


def _engine_options(url: URL) -> dict[str, Any]:
    from_url = url.query.get("options", "")
    settings = f"-c TimeZone=UTC -c statement_timeout={STATEMENT_MILLISECONDS}"
    connect = {
        "connect_timeout": CONNECT_SECONDS,
        "keepalives": 1,
        "keepalives_idle": 30,
        "keepalives_interval": 10,
        "keepalives_count": 3,
        "tcp_user_timeout": 30_000,
        "options": f"{from_url if isinstance(from_url, str) else ' '.join(from_url)} {settings}".strip(),
        "application_name": f"hpo {socket.gethostname()}:{os.getpid()}",
    }
    return {
        "pool_pre_ping": True,
        "pool_size": 2,
        "max_overflow": 3,
        "pool_recycle": 1800,
        "connect_args": connect,
    }


def _tables_exist(url: str, options: dict[str, Any]) -> bool:
    """Whether all tables exist. Waits for a busy server, and drops from `options` what a pooler refuses.

    Raises:
        StorageError: the database is unreachable, or busy for longer than `BUSY_SECONDS`.
    """
    import sqlalchemy as sa

    deadline = time.monotonic() + BUSY_SECONDS
    attempt = 0
    while True:
        try:
            return _probe(url, options)
        except sa.exc.DBAPIError as error:
            reason = " ".join(str(error.orig).split())
            if _POOLER in reason and "options" in options["connect_args"]:
                # A connection pooler (pgbouncer) refuses settings at the start of a session. They are optional:
                # statements that depend on the time zone name it, and the server's statement timeout applies.
                del options["connect_args"]["options"]
                continue
            if time.monotonic() > deadline or not any(text in reason for text in _BUSY):
                raise StorageError(
                    f"The database {describe(url)} is unreachable ({reason}): check that Postgres is running "
                    "there and that the URL (--storage or HPO_STORAGE) and its password are right."
                ) from error
        attempt += 1
        time.sleep(_BUSY_PAUSES.pause(attempt))


def _probe(url: str, options: Mapping[str, Any]) -> bool:
    """Connect once; returns whether all tables exist."""
    import sqlalchemy as sa

    from . import claims_sql, predictions

    engine = sa.create_engine(url, **options)
    try:
        with engine.connect() as connection:
            return claims_sql.table_is_current(connection) and predictions.table_exists(connection)
    finally:
        engine.dispose()


def _was_used(url: str, options: Mapping[str, Any]) -> bool:
    """Whether this package, perhaps an older version, has made tables in the database; those of it are completed."""
    import sqlalchemy as sa

    from . import claims_sql

    engine = sa.create_engine(url, **options)
    try:
        return bool(sa.inspect(engine).has_table(claims_sql.claims.name))
    finally:
        engine.dispose()


def _quiet() -> None:
    """Route Optuna's warnings and errors to our log, and silence everything below."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    optuna.logging.disable_default_handler()
    optuna.logging.enable_propagation()
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
