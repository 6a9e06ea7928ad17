"""Optuna's relational storage, made to wait for an absent database and to keep off other workers' trials.

*Patience.* Every storage method is repeated, with growing pauses, while the database is out of reach. That is safe
because each of them is one transaction that may be run twice; creating trials is the exception, and not repeated here
(`hpo.claims` creates them together with the claim, which makes that repeatable too).

*Fencing.* A trial that this process has claimed is in `fences` with the claim's owner. Every transaction that writes
into it begins by locking the claim's row and checking the owner, on the same connection: whoever takes the trial
over waits for the write to end, and later writes raise `ClaimLost`. No caller can forget it.
"""

from __future__ import annotations

import functools
import json
import logging
import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Concatenate, ParamSpec, TypeVar

import sqlalchemy as sa
from optuna.distributions import BaseDistribution, check_distribution_compatibility, distribution_to_json
from optuna.exceptions import StorageInternalError, UpdateFinishedTrialError
from optuna.storages import RDBStorage
from optuna.storages._rdb import models
from optuna.trial import TrialState
from sqlalchemy import event, orm
from sqlalchemy.dialects import postgresql

from hpo.errors import StorageError

P = ParamSpec("P")
T = TypeVar("T")

logger = logging.getLogger(__name__)

LOCKS = 0x68706F
"""First key of our advisory locks; the second is a study's id, or 0 for creating tables and studies."""
FLOORS_LOCKS = LOCKS + 1
"""The same for measuring a study's floors, which takes seconds and keeps nobody from anything else."""
SHORTEST_PAUSE, LONGEST_PAUSE = 0.1, 10.0  # seconds

metadata = sa.MetaData()
claims = sa.Table(
    "hpo_claims",
    metadata,
    sa.Column("trial_id", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("study_id", sa.Integer, nullable=False, index=True),
    sa.Column("owner", sa.Text, nullable=False, comment="random, new with every claim"),
    sa.Column("host", sa.Text, nullable=False),
    sa.Column("pid", sa.Integer, nullable=False),
    sa.Column("slot", sa.Integer, nullable=False),
    sa.Column("gpu", sa.Text),
    sa.Column("claimed_at", sa.DateTime(timezone=True), nullable=False),
    sa.Column("heartbeat", sa.DateTime(timezone=True), nullable=False, comment="by the database's clock"),
    sa.Column("attempt", sa.Integer, nullable=False),
    sa.Column("stage", sa.Integer, nullable=False),
    sa.Column("epoch", sa.Integer, nullable=False),
    sa.Column("released", sa.Boolean, nullable=False, comment="handed back: anyone may go on at once"),
    sa.Column("checkpoint", sa.Text, comment="artifact with the trial's state after its last saved epoch"),
    sa.Column("checkpoint_sha256", sa.Text),
    sa.Column("pending", sa.Text, comment="artifact being written or removed: a kill leaves none unknown"),
)
"""Who holds a running trial, and where its state is saved. What state a trial is in, Optuna's own table says alone."""
ADDED = ("checkpoint", "checkpoint_sha256", "pending")
"""Columns that a database of an earlier version lacks."""

_STILL_MINE = sa.text("SELECT 1 FROM hpo_claims WHERE trial_id = :trial AND owner = :owner AND NOT released FOR SHARE")


class ClaimLost(Exception):  # noqa: N818 (it is news, not a mistake)
    """The trial was taken over by another worker: drop it and claim the next one."""

    def __init__(self, message: str | None = None) -> None:
        super().__init__(message or self.__doc__)


def passing(error: BaseException | None) -> bool:
    """Whether the error is one that a database which comes back would not repeat."""
    if isinstance(error, StorageInternalError):
        return passing(error.__cause__)
    if isinstance(error, sa.exc.DBAPIError) and error.connection_invalidated:
        return True
    # PendingRollbackError: Optuna caught the loss of the connection, took it for something else, and went on with it.
    lost = sa.exc.OperationalError | sa.exc.InterfaceError | sa.exc.TimeoutError | sa.exc.PendingRollbackError
    return isinstance(error, lost)


def patiently(call: Callable[[], T], patience_seconds: float) -> T:
    """Call until it succeeds, with growing pauses that differ between workers; `StorageError` when patience ends."""
    deadline = time.monotonic() + patience_seconds
    pause = SHORTEST_PAUSE
    while True:
        try:
            return call()
        except (sa.exc.SQLAlchemyError, StorageInternalError) as error:
            left = deadline - time.monotonic()
            if not passing(error):
                raise
            if left <= 0:
                raise StorageError(
                    f"The storage was out of reach for {patience_seconds:.0f} s: check that Postgres runs, then start "
                    "the command again; nothing that was reported is lost."
                ) from error
            if pause == SHORTEST_PAUSE:
                logger.warning("The database is out of reach; waiting for it.", extra={"action": "database_away"})
        time.sleep(min(left, pause * random.uniform(0.5, 1.5)))
        pause = min(2 * pause, LONGEST_PAUSE)


def still_mine(connection: sa.Connection, trial_id: int, owner: str) -> None:
    """Lock the claim until the transaction ends; raises `ClaimLost` if it is no longer `owner`'s."""
    if connection.execute(_STILL_MINE, {"trial": trial_id, "owner": owner}).first() is None:
        raise ClaimLost


def _patient(method: Callable[Concatenate[Any, P], T]) -> Callable[Concatenate[Any, P], T]:
    """Return the method, repeated while the database is away."""

    @functools.wraps(method)
    def call(self: Any, /, *args: P.args, **kwargs: P.kwargs) -> T:  # noqa: ANN401 (a PatientStorage, defined below)
        return patiently(lambda: method(self, *args, **kwargs), self.patience_seconds)

    return call


def _fenced(method: Callable[Concatenate[Any, P], T]) -> Callable[Concatenate[Any, P], T]:
    """Return the method, whose first argument is a trial's id, with a check of the claim in its transaction."""

    @functools.wraps(method)
    def call(self: Any, /, *args: P.args, **kwargs: P.kwargs) -> T:  # noqa: ANN401 (a PatientStorage, defined below)
        trial_id = args[0] if args else kwargs["trial_id"]
        assert isinstance(trial_id, int)
        self.writing.trial_id = trial_id
        try:
            return method(self, *args, **kwargs)
        finally:
            self.writing.trial_id = None

    return call


@dataclass
class _Batch:
    """Rows for one trial, by table."""

    trial_id: int
    rows: dict[type[models.BaseModel], list[dict[str, Any]]] = field(default_factory=dict)


class PatientStorage(RDBStorage):
    """`RDBStorage` that survives outages and writes only into trials that it may write into."""

    def __init__(
        self, url: str, *, patience_seconds: float, engine_kwargs: dict[str, Any], skip_table_creation: bool
    ) -> None:
        super().__init__(url, engine_kwargs, skip_table_creation=skip_table_creation)
        self.patience_seconds = patience_seconds
        self.fences: dict[int, str] = {}
        """Claimed trials and the owner under which this process claimed them."""
        self.writing = threading.local()
        event.listen(self.scoped_session.session_factory, "after_begin", self._check_fence)

    def _check_fence(self, _: orm.Session, __: orm.SessionTransaction, connection: sa.Connection) -> None:
        trial_id = getattr(self.writing, "trial_id", None)
        owner = self.fences.get(trial_id) if trial_id is not None else None
        if trial_id is not None and owner is not None:
            still_mine(connection, trial_id, owner)

    get_study_id_from_name = _patient(RDBStorage.get_study_id_from_name)
    get_study_name_from_id = _patient(RDBStorage.get_study_name_from_id)
    get_study_directions = _patient(RDBStorage.get_study_directions)
    get_study_user_attrs = _patient(RDBStorage.get_study_user_attrs)
    get_study_system_attrs = _patient(RDBStorage.get_study_system_attrs)
    set_study_user_attr = _patient(RDBStorage.set_study_user_attr)
    set_study_system_attr = _patient(RDBStorage.set_study_system_attr)
    get_all_studies = _patient(RDBStorage.get_all_studies)
    get_trial = _patient(RDBStorage.get_trial)
    get_trial_user_attrs = _patient(RDBStorage.get_trial_user_attrs)
    get_trial_system_attrs = _patient(RDBStorage.get_trial_system_attrs)
    get_trial_id_from_study_id_trial_number = _patient(RDBStorage.get_trial_id_from_study_id_trial_number)
    _get_trials = _patient(RDBStorage._get_trials)  # noqa: SLF001 (what Optuna's cache in front of us calls)
    _get_best_trial_id = _patient(RDBStorage._get_best_trial_id)  # noqa: SLF001

    set_trial_intermediate_value = _patient(_fenced(RDBStorage.set_trial_intermediate_value))

    @contextmanager
    def together(self, trial_id: int) -> Iterator[None]:
        """Parameters and attributes of the trial set inside are written in one transaction at the end, all or none."""
        batch = _Batch(trial_id)
        self.writing.batch = batch
        try:
            yield
        finally:
            self.writing.batch = None
        if batch.rows:
            self._write(trial_id, batch)

    def _set_trial_param(
        self,
        trial_id: int,
        param_name: str,
        param_value_internal: float,
        distribution: BaseDistribution,
        previous_distribution: BaseDistribution | None,
    ) -> None:
        """As Optuna's; a parameter that this trial already has stays as it is."""
        if previous_distribution is not None:
            check_distribution_compatibility(previous_distribution, distribution)
        row = {"param_name": param_name, "param_value": param_value_internal}
        row["distribution_json"] = distribution_to_json(distribution)
        self._set(trial_id, models.TrialParamModel, row)

    def set_trial_user_attr(self, trial_id: int, key: str, value: Any) -> None:  # noqa: ANN401 (any JSON)
        """As Optuna's."""
        self._set(trial_id, models.TrialUserAttributeModel, {"key": key, "value_json": json.dumps(value)})

    def set_trial_system_attr(self, trial_id: int, key: str, value: Any) -> None:  # noqa: ANN401 (any JSON)
        """As Optuna's."""
        self._set(trial_id, models.TrialSystemAttributeModel, {"key": key, "value_json": json.dumps(value)})

    def _set(self, trial_id: int, table: type[models.BaseModel], row: dict[str, Any]) -> None:
        """Put a row into the open batch of the trial, or write it at once."""
        batch: _Batch | None = getattr(self.writing, "batch", None)
        together = batch is not None and batch.trial_id == trial_id
        if batch is None or not together:
            batch = _Batch(trial_id)
        batch.rows.setdefault(table, []).append({"trial_id": trial_id, **row})
        if not together:
            self._write(trial_id, batch)

    def _write(self, trial_id: int, batch: _Batch) -> None:
        patiently(lambda: _fenced(PatientStorage._write_once)(self, trial_id, batch), self.patience_seconds)

    def _write_once(self, trial_id: int, batch: _Batch) -> None:
        with self.scoped_session() as session, session.begin():
            trial: Any = models.TrialModel.find_or_raise_by_id(trial_id, session)
            self.check_trial_is_updatable(trial_id, trial.state)
            for table, rows in batch.rows.items():
                insert = postgresql.insert(table)
                if table is models.TrialParamModel:
                    insert = insert.on_conflict_do_nothing(index_elements=["trial_id", "param_name"])
                else:
                    new = {"value_json": insert.excluded.value_json}
                    insert = insert.on_conflict_do_update(index_elements=["trial_id", "key"], set_=new)
                session.execute(insert, rows)

    def set_trial_state_values(self, trial_id: int, state: TrialState, values: Sequence[float] | None = None) -> bool:
        """As Optuna's; if an answer got lost, the trial that is found finished as told *was* finished by us."""
        attempts = 0

        def once() -> bool:
            nonlocal attempts
            attempts += 1
            return _fenced(RDBStorage.set_trial_state_values)(self, trial_id, state, values)

        try:
            return patiently(once, self.patience_seconds)
        except UpdateFinishedTrialError:
            stored = self.get_trial(trial_id)
            if attempts > 1 and stored.state == state and stored.values == (list(values) if values else None):
                return True
            raise
