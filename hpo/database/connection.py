"""Connections to Postgres: engine options, opening Optuna's storage with all tables created."""

from __future__ import annotations

import itertools
import logging
import os
import socket
import threading
import time
import warnings
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sparse_evidence.core.errors import UserError

from ..errors import StorageError
from .address import describe, normalize_url
from .limits import (
    IDLE,
    IDLE_MILLISECONDS,
    Limits,
    as_options,
    kept_alive,
    limit_statements,
    limit_transactions,
    limits,
    with_check_of_clients,
)
from .locks import locked_for_creation
from .retry import PAUSES, Backoff, retry

if TYPE_CHECKING:
    import optuna
    from optuna.storages import BaseStorage
    from sqlalchemy import URL, Connection, Engine
    from sqlalchemy.engine.interfaces import DBAPIConnection
    from sqlalchemy.pool import ConnectionPoolEntry

    from .optuna_storage import RetryingStorage

logger = logging.getLogger(__name__)

RETRY_SECONDS = 600.0
"""How long a worker waits for a database that has become unreachable."""
LOOK_SECONDS = 5.0
"""How long commands that only look wait for it: a person, or a page in a browser, is waiting for the answer."""
CONNECT_SECONDS = 8
"""How long connecting may take before the database counts as unreachable."""
BUSY_SECONDS = 60.0
"""How long `open_storage` waits at least for a server that reports that it is starting, stopping or full."""
IDLE_SECONDS = 1.0
"""After so long without use, a connection is checked before it is used."""
PAUSE_OF_GRACE = 1 / 6
"""The longest pause between two attempts of a worker that may have claimed a trial, as a share of the grace period."""
GRACE_SECONDS = 120.0
"""Grace period for which a session is limited if the study's is not known."""

_BUSY_PAUSES = Backoff(shortest=1.0, longest=2.0)
_AWAY = (
    "refused",
    "No such file or directory",
    "timeout",
    "timed out",
    "closed the connection",
    "reset by peer",
    "unreachable",
    "No route to host",
    "name resolution",
    "translate host name",
)
"""What libpq says of a server that is away, and may come back; nothing that a password or a name could mend."""
_POOLER = "unsupported startup parameter"
_BUSY = (
    "too many clients",
    "remaining connection slots",
    "starting up",
    "shutting down",
    "in recovery mode",
    "not yet accepting",
)


def open_storage(
    url: str,
    *,
    retry_seconds: float = RETRY_SECONDS,
    wait_seconds: float = 0.0,
    stop: threading.Event | None = None,
    grace_seconds: float = GRACE_SECONDS,
    without: Collection[str] = (),
    create: bool = True,
) -> BaseStorage:
    """Open Optuna's storage at `url` (from `address.storage_url`), with all tables created.

    Args:
        url: the database.
        retry_seconds: every later call waits this long for an unreachable database.
        wait_seconds: this call waits so long for a server that is away; for one that is busy, at least `BUSY_SECONDS`.
        stop: once set, this call waits no longer.
        grace_seconds: the study's grace period: a transaction may be idle for a part of it; see `limits`.
        without: user attributes of trials that are not read, to save time and memory.
        create: False for commands that only look: nothing is made in a database that no study was run in. Tables of an
            older version are completed all the same.

    Raises:
        UserError: with `create=False`: there are no tables of this package.
        StorageError: the database is unreachable.
    """
    from .optuna_storage import Cache

    _quiet()
    database = _connect(normalize_url(url), limits(grace_seconds), wait_seconds, stop or threading.Event())
    if not create and not database.was_used:
        raise UserError(
            f"There is no study in {describe(url)}: start one with `hpo run` or `hpo worker`, or name its database "
            "with --storage (HPO_STORAGE)."
        )

    longest_pause = min(PAUSES.longest, PAUSE_OF_GRACE * grace_seconds)

    def open_once() -> RetryingStorage:
        if database.tables_exist:
            return database.storage(retry_seconds, longest_pause, without, skip_table_creation=True)
        with _creating_tables(database) as missing:
            return database.storage(retry_seconds, longest_pause, without, skip_table_creation=not missing)

    return Cache(retry(open_once, max(CONNECT_SECONDS, wait_seconds)))


def open_to_look(url: str, *, without: Collection[str] = ()) -> BaseStorage:
    """Open the storage for a command that only looks: `create=False`, and it does not wait long for a database.

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


@dataclass(frozen=True)
class _Database:
    """How sessions of a database are opened."""

    url: str
    options: Mapping[str, Any]
    """Of the engine."""
    limits: Limits
    pooled: bool
    """Whether a pooler hands sessions around, so that the limits must be set in every transaction."""
    tables_exist: bool
    was_used: bool
    """Whether this package, perhaps an older version, has made tables; those of an older version are completed."""

    def engine(self) -> Engine:
        import sqlalchemy as sa

        return self._prepared(sa.create_engine(self.url, **self.options))

    def immediate_engine(self) -> Engine:
        """An engine that sends what it executes at once, as a transaction of its own."""
        import sqlalchemy as sa

        engine = sa.create_engine(self.url, **{**self.options, "pool_size": 1}, isolation_level="AUTOCOMMIT")
        check_idle_connections(engine)
        if self.pooled:
            limit_statements(engine, self.limits)
        return engine

    def storage(
        self, retry_seconds: float, longest_pause: float, without: Collection[str], *, skip_table_creation: bool
    ) -> RetryingStorage:
        from .optuna_storage import RetryingStorage

        storage = RetryingStorage(
            self.url.replace("{", "{{").replace("}", "}}"),  # Optuna fills a template
            retry_seconds=retry_seconds,
            longest_pause=longest_pause,
            engine_kwargs=dict(self.options),
            immediate=self.immediate_engine(),
            skip_table_creation=skip_table_creation,
            without=without,
        )
        self._prepared(storage.engine)
        return storage

    def _prepared(self, engine: Engine) -> Engine:
        """The engine, with what its sessions need."""
        check_idle_connections(engine)
        if self.pooled:
            limit_transactions(engine, self.limits)
        return engine


def check_idle_connections(engine: Engine) -> None:
    """Before a connection is used that has been idle for a while, ask whether its server is still there.

    SQLAlchemy's `pool_pre_ping` asks every time, a message before every transaction. A server that goes away in between
    is an outage like any other, and what was tried is tried again (`retry`).
    """
    import sqlalchemy as sa

    def checkin(_connection: object, record: ConnectionPoolEntry) -> None:
        record.info["returned"] = time.monotonic()

    def checkout(connection: DBAPIConnection, record: ConnectionPoolEntry, _fairy: object) -> None:
        returned = record.info.get("returned")  # None: it has just been made
        if returned is None or time.monotonic() - returned < IDLE_SECONDS:
            return
        try:
            engine.dialect.do_ping(connection)
        except engine.dialect.loaded_dbapi.Error as error:
            raise sa.exc.InvalidatePoolError from error  # the pool connects anew

    sa.event.listen(engine, "checkin", checkin)
    sa.event.listen(engine, "checkout", checkout)


@contextmanager
def _creating_tables(database: _Database) -> Iterator[bool]:
    """A block in which no other process creates tables; ours are created when it ends, after Optuna's.

    Yields False if another process has created them meanwhile: many may be waiting. Optuna commits on connections of
    its own while this one holds the lock.
    """
    from . import claims_sql, predictions

    engine = database.engine()
    try:
        with locked_for_creation(engine) as connection:
            missing = not _have_tables(connection)
            with kept_alive(connection):
                yield missing
            if missing:
                claims_sql.create_table(connection)
                predictions.create_tables(connection)
    finally:
        engine.dispose()


def _have_tables(connection: Connection) -> bool:
    from . import claims_sql, predictions

    return claims_sql.table_is_current(connection) and predictions.tables_exist(connection)


def _engine_options(url: URL, known: Limits) -> dict[str, Any]:
    from_url = url.query.get("options", "")
    settings = f"-c TimeZone=UTC {as_options(known)}"
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
        "executemany_mode": "values_plus_batch",  # many rows are one message
        "pool_size": 2,
        "max_overflow": 3,
        "pool_recycle": 1800,
        "connect_args": connect,
    }


def _connect(url: str, known: Limits, wait_seconds: float, stop: threading.Event) -> _Database:
    """Connect once, and learn how sessions are opened. Waits for a server that is busy or away.

    Raises:
        StorageError: the database is unreachable, or busy or away for too long.
    """
    import sqlalchemy as sa

    options = _engine_options(sa.make_url(url), known)
    began, told = time.monotonic(), False
    for attempt in itertools.count(1):
        try:
            return _probe(url, options, known)
        except sa.exc.DBAPIError as error:
            reason = " ".join(str(error.orig).split())
            if _POOLER in reason and "options" in options["connect_args"]:
                # A connection pooler (pgbouncer) refuses settings at the start of a session. The limits are set in
                # every transaction then, and statements that depend on the time zone name it.
                del options["connect_args"]["options"]
                continue
            busy = any(text in reason for text in _BUSY)
            patience = max(wait_seconds, BUSY_SECONDS) if busy else wait_seconds * any(text in reason for text in _AWAY)
            left = patience - (time.monotonic() - began)
            if left <= 0 or stop.is_set():
                raise StorageError(
                    f"The database {describe(url)} is unreachable ({reason}): check that Postgres is running "
                    "there and that the URL (--storage or HPO_STORAGE) and its password are right."
                ) from error
        if not told and not busy:
            told = True
            logger.warning(
                "The database %s is unreachable (%s); waiting for it for up to %.0f min.", describe(url), reason,
                wait_seconds / 60, extra={"action": "database_unreachable"},
            )  # fmt: skip
        stop.wait(min(left, (_BUSY_PAUSES if busy else PAUSES).pause(attempt)))
    raise AssertionError("the loop above never ends")


# Postgres 14 and later can notice that a client has gone, if its operating system can.
_SESSION = f"""
SELECT current_setting('client_connection_check_interval', true) IS NOT NULL AND version() ~* 'linux|apple|darwin|bsd',
       {IDLE_MILLISECONDS}
"""


def _probe(url: str, options: Mapping[str, Any], known: Limits) -> _Database:
    import sqlalchemy as sa

    from . import claims_sql

    engine = sa.create_engine(url, **options)
    try:
        with engine.connect() as connection:
            checks, idle = connection.execute(sa.text(_SESSION)).one()
            exist = _have_tables(connection)
            was_used = exist or sa.inspect(connection).has_table(claims_sql.claims.name)
    finally:
        engine.dispose()
    pooled = idle != known[IDLE]  # a pooler may also ignore the settings
    if checks:
        known = with_check_of_clients(known)
        if not pooled:
            options = _engine_options(sa.make_url(url), known)
    return _Database(url, options, known, pooled, exist, was_used)


def _quiet() -> None:
    """Route Optuna's warnings and errors to our log, and silence everything below."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    optuna.logging.disable_default_handler()
    optuna.logging.enable_propagation()
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
