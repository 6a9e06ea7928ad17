"""Open a study's storage on Postgres, by URL or embedded, and the study in it, guarded by what it was started with.

A storage is one Postgres database. Optuna's own tables hold studies and trials, so optuna-dashboard and any Optuna
script read them; one table of ours says who holds which running trial. Optuna is imported where it is first needed:
`hpo --help` does not wait for it.
"""

from __future__ import annotations

import json
import logging
import os
import random
import socket
import time
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from sparse_evidence.core.errors import UserError

from ..errors import RefusedError, StorageError

if TYPE_CHECKING:
    import optuna
    from optuna.pruners import BasePruner
    from optuna.samplers import BaseSampler
    from optuna.storages import BaseStorage
    from sqlalchemy import URL, Connection, Engine

    from .optuna_storage import RetryingStorage

from .record import IDENTITY

logger = logging.getLogger(__name__)

RETRY_SECONDS = 600.0
"""How long a worker waits for a database that went away."""
CONNECT_SECONDS = 8
"""How long opening a storage may take before it counts as out of reach."""
BUSY_SECONDS = 60.0
"""How long opening a storage waits for a server that answers that it is starting, stopping or full."""
STATEMENT_MILLISECONDS = 60_000

Direction = Literal["minimize", "maximize"]
Identity = dict[str, Any]
Differences = Callable[[dict[str, Any], dict[str, Any]], list[str]]

_SCHEMES = ("postgres", "postgresql", "postgresql+psycopg2")
_READY = "SELECT 1 FROM pg_attribute WHERE attrelid = to_regclass('hpo_claims') AND attname = 'pending'"
_POOLER = "unsupported startup parameter"
_BUSY = ("too many clients", "remaining connection slots", "starting up", "shutting down", "not yet accepting")
_NAMES = {
    "data_sha256": "the data",
    "folds_sha256": "the folds",
    "encoders_sha256": "the encoder's weights",
    "code": "the code version",
}


# ---- where it is ----------------------------------------------------------------------------------------------------


@contextmanager
def resolve(url: str | None = None, *, folder: Path | None = None, create: bool = True) -> Iterator[str]:
    """Yield the storage's URL, ready for `open_storage`, for as long as it is used.

    `url` is `--storage`; without it `HPO_STORAGE` counts, and without that the embedded Postgres under `.hpo/` of
    `folder` (the current one): it runs while at least one process is inside this context. Who only reads does not
    `create` it: looking in the wrong folder leaves nothing behind, and a `UserError` says so.
    """
    given = url or os.environ.get("HPO_STORAGE")
    if given:
        yield normalised(given)
        return
    from . import embedded

    place = folder or Path.cwd()
    if not create and not (place / embedded.FOLDER).exists():
        raise UserError(
            f"There is no {embedded.FOLDER} folder in {place}, so no study was run here: go where it was run, or name "
            "its storage with --storage (HPO_STORAGE)."
        )
    with embedded.serve(place) as address:
        yield address


def normalised(url: str) -> str:
    """Return the URL with its driver and, if `HPO_STORAGE_PASSWORD_FILE` names a file, its password."""
    import sqlalchemy as sa

    try:
        parsed = sa.make_url(url.strip())
    except (sa.exc.ArgumentError, ValueError):
        # Not shown: what cannot be parsed cannot be masked either.
        raise UserError(
            "The storage URL cannot be read: write postgresql://USER@HOST:PORT/DATABASE (--storage or HPO_STORAGE)."
        ) from None
    if parsed.drivername not in _SCHEMES:
        raise UserError(
            f"The storage {masked(parsed)} is not Postgres: only postgresql:// is allowed; without --storage and "
            "HPO_STORAGE an embedded Postgres is used."
        )
    parsed = parsed.set(drivername="postgresql+psycopg2")
    if parsed.password is None and "password" not in parsed.query:
        parsed = parsed.set(password=_password_from_file())
    return parsed.render_as_string(hide_password=False)


def masked(url: str | URL) -> str:
    """Return the URL as it may be shown."""
    import sqlalchemy as sa

    parsed = sa.make_url(url)
    if "password" in parsed.query:
        parsed = parsed.update_query_dict({"password": "***"})
    return parsed.render_as_string(hide_password=True)


def _password_from_file() -> str | None:
    """Return what `HPO_STORAGE_PASSWORD_FILE` names; None leaves it to libpq (`PGPASSWORD`, `~/.pgpass`)."""
    name = os.environ.get("HPO_STORAGE_PASSWORD_FILE")
    if not name:
        return None
    try:
        return Path(name).read_text(encoding="utf-8").rstrip("\r\n")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise UserError(
            f"The password file {name} (HPO_STORAGE_PASSWORD_FILE) cannot be read: {reason}; "
            "name a readable file with the password in it."
        ) from error


# ---- storage --------------------------------------------------------------------------------------------------------


def open_storage(url: str, *, retry_seconds: float = RETRY_SECONDS, without: Collection[str] = ()) -> BaseStorage:
    """Open Optuna's storage at `url` (from `resolve`), with all tables there, and patient from here on.

    User attributes of trials named in `without` are not read: who does not need them spares time and memory.
    """
    import optuna
    import sqlalchemy as sa

    from . import optuna_storage as rdb

    _quiet()
    url = normalised(url)
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
                lock(connection)
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


def lock(connection: Connection, study_id: int = 0) -> None:
    """Take the study's advisory lock until the transaction ends; 0 is for creating tables and studies."""
    import sqlalchemy as sa

    from . import optuna_storage as rdb

    connection.execute(sa.select(sa.func.pg_advisory_xact_lock(rdb.LOCKS, study_id)))


def try_lock(connection: Connection, study_id: int) -> bool:
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
            f"The storage {masked(url)} cannot be reached ({reason}): check that Postgres runs there and that the URL "
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


# ---- study ----------------------------------------------------------------------------------------------------------


def open_study(
    storage: BaseStorage,
    name: str,
    *,
    direction: Direction,
    identity: Identity,
    default_parameters: Mapping[str, Any] | None = None,
    sampler: BaseSampler | None = None,
    pruner: BasePruner | None = None,
    differences: Differences | None = None,
) -> optuna.Study:
    """Create the study, or join it if it was started with the same `identity`; else `RefusedError` says what differs.

    `identity` has the keys `definition` (a dict that survives JSON), `definition_sha256`, `data_sha256`,
    `folds_sha256` and `code`. `default_parameters` are queued when the study is created and so become trial 0.
    `differences(mine, theirs)` tells two definitions apart in words. Without a `pruner` nothing is pruned by Optuna.
    """
    from . import optuna_storage as rdb

    study = rdb.retry(
        lambda: _created(storage, name, direction, identity, default_parameters), backend(storage).retry_seconds
    )
    stored = study.user_attrs[IDENTITY]
    different = _compared(identity, stored, differences or _plain_differences)
    if study.direction.name.lower() != direction:
        different.append(f"the direction is {direction} here and {study.direction.name.lower()} in the study")
    if different:
        raise RefusedError(
            f"The study {name!r} in {masked(_url(storage))} was started with something else: {'; '.join(different)}; "
            "use what it was started with, or give this study another name."
        )
    return _study(storage, name, sampler, pruner)


def load_existing(storage: BaseStorage, name: str) -> optuna.Study:
    """Return the study, to be read; a `UserError` if it has not been started."""
    try:
        return _study(storage, name, None, None)
    except KeyError:
        raise UserError(
            f"There is no study {name!r} in {masked(_url(storage))}: start it with `hpo run` or `hpo worker`, or name "
            "its storage with --storage (HPO_STORAGE)."
        ) from None


def _created(
    storage: BaseStorage,
    name: str,
    direction: Direction,
    identity: Identity,
    default_parameters: Mapping[str, Any] | None,
) -> optuna.Study:
    """Make the study, its identity and its first trial; the latter two in one transaction, so both or neither."""
    import optuna
    import sqlalchemy as sa

    with engine_of(storage).begin() as connection:
        lock(connection)
        study = optuna.create_study(storage=storage, study_name=name, direction=direction, load_if_exists=True)
        if IDENTITY in study.user_attrs:
            return study
        trials = study.get_trials(deepcopy=False)
        if any(trial.state != optuna.trial.TrialState.WAITING for trial in trials):
            raise RefusedError(
                f"The study {name!r} in {masked(_url(storage))} was not made by hpo: give this study another name."
            )
        if default_parameters is not None and not trials:
            _enqueue(connection, study._study_id, default_parameters)  # noqa: SLF001 (no public way)
        note = sa.text("INSERT INTO study_user_attributes (study_id, key, value_json) VALUES (:study, :key, :value)")
        connection.execute(
            note,
            {"study": study._study_id, "key": IDENTITY, "value": json.dumps(identity)},  # noqa: SLF001
        )
    return study


def _enqueue(connection: Connection, study_id: int, parameters: Mapping[str, Any]) -> None:
    """What `Study.enqueue_trial` writes, but in our transaction: Optuna repeats its own, which can make two of it."""
    from optuna.storages._rdb import models
    from optuna.trial import TrialState
    from sqlalchemy import orm

    with orm.Session(connection, join_transaction_mode="create_savepoint") as session, session.begin():
        trial = models.TrialModel(study_id=study_id, number=0, state=TrialState.WAITING)
        session.add(trial)
        session.flush()
        fixed = models.TrialSystemAttributeModel(
            trial_id=trial.trial_id, key="fixed_params", value_json=json.dumps(dict(parameters))
        )
        session.add(fixed)


def _study(storage: BaseStorage, name: str, sampler: BaseSampler | None, pruner: BasePruner | None) -> optuna.Study:
    import optuna

    pruner = pruner or optuna.pruners.NopPruner()
    return optuna.load_study(storage=storage, study_name=name, sampler=sampler, pruner=pruner)


def _compared(mine: Identity, theirs: Identity, differences: Differences) -> list[str]:
    found = []
    if mine.get("definition_sha256") != theirs.get("definition_sha256"):
        found += differences(mine.get("definition", {}), theirs.get("definition", {})) or ["the definition differs"]
    for key, words in _NAMES.items():
        if mine.get(key) != theirs.get(key):
            found.append(f"{words} differ{'s' if key == 'code' else ''} ({_short(mine, key)} here, "
                         f"{_short(theirs, key)} in the study)")  # fmt: skip
    return found


def _plain_differences(mine: dict[str, Any], theirs: dict[str, Any], path: str = "") -> list[str]:
    found = []
    for key in sorted(mine.keys() | theirs.keys()):
        ours, other, where = mine.get(key), theirs.get(key), f"{path}{key}"
        if isinstance(ours, dict) and isinstance(other, dict):
            found += _plain_differences(ours, other, f"{where}.")
        elif ours != other:
            found.append(f"{where} is {ours!r} here and {other!r} in the study")
    return found


def _short(identity: Identity, key: str) -> str:
    value = str(identity.get(key))
    return value[:12] if key.endswith("_sha256") else value


def _url(storage: BaseStorage) -> URL:
    return engine_of(storage).url
