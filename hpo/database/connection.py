"""Connections to Postgres: engine options, opening Optuna's storage with all tables there, advisory locks."""

from __future__ import annotations

import os
import random
import socket
import time
import warnings
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any

from ..errors import StorageError
from .address import mask_password, normalize_url

if TYPE_CHECKING:
    import optuna
    from optuna.storages import BaseStorage
    from sqlalchemy import URL, Connection, Engine

    from .optuna_storage import RetryingStorage

RETRY_SECONDS = 600.0
"""How long a worker waits for a database that went away."""
CONNECT_SECONDS = 8
"""How long opening a storage may take before it counts as out of reach."""
BUSY_SECONDS = 60.0
"""How long opening a storage waits for a server that answers that it is starting, stopping or full."""
STATEMENT_MILLISECONDS = 60_000

_READY = "SELECT 1 FROM pg_attribute WHERE attrelid = to_regclass('hpo_claims') AND attname = 'pending'"
_POOLER = "unsupported startup parameter"
_BUSY = ("too many clients", "remaining connection slots", "starting up", "shutting down", "not yet accepting")


def open_storage(url: str, *, retry_seconds: float = RETRY_SECONDS, without: Collection[str] = ()) -> BaseStorage:
    """Open Optuna's storage at `url` (from `address.storage_url`), with all tables there, and patient from here on.

    User attributes of trials named in `without` are not read: who does not need them spares time and memory.
    """
    import optuna
    import sqlalchemy as sa

    from . import optuna_storage as rdb

    _quiet()
    url = normalize_url(url)
    options = _engine_options(sa.make_url(url))
    ready = _ready(url, options)

    def opened(tables: bool) -> RetryingStorage:
        return rdb.RetryingStorage(
            url.replace("{", "{{").replace("}", "}}"),  # Optuna fills a template
            retry_seconds=retry_seconds,
            engine_kwargs=options,
            skip_table_creation=not tables,
            without=without,
        )

    def create() -> RetryingStorage:
        engine = sa.create_engine(url, **options)
        try:
            with engine.begin() as connection:
                lock_study(connection)
                storage = opened(tables=True)  # commits on connections of its own, while we hold the lock
                rdb.metadata.create_all(connection)
                for column in rdb.ADDED:
                    connection.execute(sa.text(f"ALTER TABLE hpo_claims ADD COLUMN IF NOT EXISTS {column} text"))
                return storage
        finally:
            engine.dispose()

    storage = rdb.retry(lambda: opened(tables=False) if ready else create(), CONNECT_SECONDS)
    return optuna.storages.get_storage(storage)


def backend(holder: BaseStorage | optuna.Study) -> RetryingStorage:
    """Return our storage behind Optuna's cache: the one place that knows where Optuna keeps it."""
    from . import optuna_storage as rdb

    cached = getattr(holder, "_storage", holder)
    found = getattr(cached, "_backend", cached)
    assert isinstance(found, rdb.RetryingStorage), "open studies with hpo.database.studies"
    return found


def engine_of(holder: BaseStorage | optuna.Study) -> Engine:
    """Return the connection pool of a storage or a study."""
    engine: Engine = backend(holder).engine
    return engine


def lock_study(connection: Connection, study_id: int = 0) -> None:
    """Take the study's advisory lock until the transaction ends; 0 is for creating tables and studies."""
    import sqlalchemy as sa

    from . import optuna_storage as rdb

    connection.execute(sa.select(sa.func.pg_advisory_xact_lock(rdb.LOCKS, study_id)))


def try_baselines_lock(connection: Connection, study_id: int) -> bool:
    """Take the lock under which a study's floors are measured, until the transaction ends; False if another has it."""
    import sqlalchemy as sa

    from . import optuna_storage as rdb

    return bool(connection.scalar(sa.select(sa.func.pg_try_advisory_xact_lock(rdb.BASELINE_LOCKS, study_id))))


def _engine_options(url: URL) -> dict[str, Any]:
    given = url.query.get("options", "")
    settings = f"-c TimeZone=UTC -c statement_timeout={STATEMENT_MILLISECONDS}"
    connect = {
        "connect_timeout": CONNECT_SECONDS,
        "keepalives": 1,
        "keepalives_idle": 30,
        "keepalives_interval": 10,
        "keepalives_count": 3,
        "tcp_user_timeout": 30_000,
        "options": f"{given if isinstance(given, str) else ' '.join(given)} {settings}".strip(),
        "application_name": f"hpo {socket.gethostname()}:{os.getpid()}",
    }
    return {
        "pool_pre_ping": True,
        "pool_size": 2,
        "max_overflow": 3,
        "pool_recycle": 1800,
        "connect_args": connect,
    }


def _probe(url: str, options: Mapping[str, Any]) -> bool:
    """Return whether all tables are there already; `StorageError` if the database cannot be reached."""
    import sqlalchemy as sa

    engine = sa.create_engine(url, **options)
    try:
        with engine.connect() as connection:
            # Its last column: created last, so that it stands for all others.
            return connection.execute(sa.text(_READY)).first() is not None
    except sa.exc.DBAPIError as error:
        reason = " ".join(str(error.orig).split())
        raise StorageError(
            f"The storage {mask_password(url)} cannot be reached ({reason}): check that Postgres runs there and that the URL "
            "(--storage or HPO_STORAGE) and its password are right."
        ) from error
    finally:
        engine.dispose()


def _ready(url: str, options: dict[str, Any]) -> bool:
    """As `_probe`, but patient with a server that is there and busy, and content with a pooler's terms."""
    deadline = time.monotonic() + BUSY_SECONDS
    while True:
        try:
            return _probe(url, options)
        except StorageError as error:
            if _POOLER in str(error) and "options" in options["connect_args"]:
                # A pooler in between (pgbouncer) refuses settings at the start of a session. We can do without:
                # whatever depends on the time zone says so itself, and the time-out is the server's then.
                del options["connect_args"]["options"]
            elif time.monotonic() > deadline or not any(words in str(error) for words in _BUSY):
                raise
            else:
                time.sleep(random.uniform(0.5, 1.5))


def _quiet() -> None:
    """Optuna's messages go where ours go, warnings and worse only."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    optuna.logging.disable_default_handler()
    optuna.logging.enable_propagation()
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
