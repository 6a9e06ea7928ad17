"""Optuna's relational storage, made to wait for an absent database and to keep off other workers' trials.

*Patience.* Every storage method is repeated, with growing pauses, while the database is out of reach. That is safe
because each of them is one transaction that may be run twice; creating trials is the exception, and not repeated here
(`hpo.running.claims` creates them together with the claim, which makes that repeatable too).

*Fencing.* A trial that this process has claimed is in `fences` with the claim's owner. Every transaction that writes
into it begins by locking the claim's row and checking the owner, on the same connection: whoever takes the trial
over waits for the write to end, and later writes raise `ClaimLostError`. No caller can forget it: there is one way to write.

*Few round trips.* Optuna reads trials in seven statements through its object mapper and asks again before every
write, which is most of what a short trial costs. Here trials are read in one statement (`hpo.database.trial_rows`), and whatever is
written together (`together`, `end`) is written in one transaction. The tables, and what stands in them, are Optuna's.
"""

from __future__ import annotations

import functools
import json
import logging
import random
import threading
import time
from collections.abc import Callable, Collection, Container, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Concatenate, ParamSpec, TypeVar

import sqlalchemy as sa
from optuna.distributions import BaseDistribution, check_distribution_compatibility, distribution_to_json
from optuna.exceptions import StorageInternalError, UpdateFinishedTrialError
from optuna.storages import RDBStorage
from optuna.storages._rdb import models
from optuna.trial import FrozenTrial, TrialState

from ..errors import StorageError
from . import trial_rows as rows
from .trial_rows import Batch

P = ParamSpec("P")
T = TypeVar("T")

logger = logging.getLogger(__name__)

LOCKS = 0x68706F
"""First key of our advisory locks; the second is a study's id, or 0 for creating tables and studies."""
BASELINE_LOCKS = LOCKS + 1
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

NOW = "(clock_timestamp() AT TIME ZONE 'UTC')"
"""The database's clock, as Optuna's tables have it."""
_STATE = sa.text("SELECT state::text FROM trials WHERE trial_id = :trial")
# Locked until the transaction ends: who takes the trial over waits for our write.
_STATE_IF_MINE = sa.text("""
SELECT t.state::text FROM hpo_claims c JOIN trials t USING (trial_id)
WHERE c.trial_id = :trial AND c.owner = :owner AND NOT c.released FOR SHARE OF c
""")
DROP = "DELETE FROM hpo_claims WHERE trial_id = :trial AND owner = :owner"
_END = sa.text(f"""
UPDATE trials SET state = :state, datetime_complete = {NOW} WHERE trial_id = :trial AND state IN ('RUNNING', 'WAITING')
""")  # noqa: S608 (a constant)


class ClaimLostError(Exception):
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


def retry(call: Callable[[], T], retry_seconds: float) -> T:
    """Call until it succeeds, with growing pauses that differ between workers; `StorageError` when patience ends."""
    deadline = time.monotonic() + retry_seconds
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
                    f"The storage was out of reach for {retry_seconds:.0f} s: check that Postgres runs, then start "
                    "the command again; nothing that was reported is lost."
                ) from error
            if pause == SHORTEST_PAUSE:
                logger.warning("The database is out of reach; waiting for it.", extra={"action": "database_away"})
        time.sleep(min(left, pause * random.uniform(0.5, 1.5)))
        pause = min(2 * pause, LONGEST_PAUSE)


def _patient(method: Callable[Concatenate[Any, P], T]) -> Callable[Concatenate[Any, P], T]:
    """Return the method, repeated while the database is away."""

    @functools.wraps(method)
    def call(self: Any, /, *args: P.args, **kwargs: P.kwargs) -> T:  # noqa: ANN401 (a RetryingStorage, defined below)
        return retry(lambda: method(self, *args, **kwargs), self.retry_seconds)

    return call


class RetryingStorage(RDBStorage):
    """`RDBStorage` that survives outages and writes only into trials that it may write into."""

    def __init__(
        self,
        url: str,
        *,
        retry_seconds: float,
        engine_kwargs: dict[str, Any],
        skip_table_creation: bool,
        without: Collection[str] = (),
    ) -> None:
        super().__init__(url, engine_kwargs, skip_table_creation=skip_table_creation)
        self.retry_seconds = retry_seconds
        self.without = without
        """User attributes of trials that are not read."""
        self.fences: dict[int, str] = {}
        """Claimed trials and the owner under which this process claimed them."""
        self._open = threading.local()

    get_study_id_from_name = _patient(RDBStorage.get_study_id_from_name)
    get_study_name_from_id = _patient(RDBStorage.get_study_name_from_id)
    get_study_directions = _patient(RDBStorage.get_study_directions)
    get_study_user_attrs = _patient(RDBStorage.get_study_user_attrs)
    get_study_system_attrs = _patient(RDBStorage.get_study_system_attrs)
    set_study_user_attr = _patient(RDBStorage.set_study_user_attr)
    set_study_system_attr = _patient(RDBStorage.set_study_system_attr)
    get_all_studies = _patient(RDBStorage.get_all_studies)
    get_trial_user_attrs = _patient(RDBStorage.get_trial_user_attrs)
    get_trial_system_attrs = _patient(RDBStorage.get_trial_system_attrs)
    get_trial_id_from_study_id_trial_number = _patient(RDBStorage.get_trial_id_from_study_id_trial_number)
    _get_best_trial_id = _patient(RDBStorage._get_best_trial_id)  # noqa: SLF001 (what Optuna's cache in front of us calls)

    # ---- reading

    def get_trial(self, trial_id: int) -> FrozenTrial:
        """As Optuna's."""
        found = self._read(lambda connection: rows.one(connection, trial_id, self.without))
        if found is None:
            raise KeyError(models.NOT_FOUND_MSG)
        return found

    def _get_trials(
        self,
        study_id: int,
        states: Container[TrialState] | None,
        included_trial_ids: set[int],
        trial_id_greater_than: int,
    ) -> list[FrozenTrial]:
        """As Optuna's: what the cache in front of us asks for."""
        known, after = included_trial_ids, trial_id_greater_than
        found = self._read(lambda connection: rows.several(connection, study_id, known, after, self.without))
        if not found:
            self.get_study_name_from_id(study_id)  # raises KeyError if there is no such study
        return [trial for trial in found if states is None or trial.state in states]

    def _read(self, query: Callable[[sa.Connection], T]) -> T:
        """Run a query for as long as it takes.

        Not with AUTOCOMMIT, though that would spare two round trips: taking it back fails on a lost connection, with an
        error that SQLAlchemy does not know, and a place in its pool is lost, too.
        """

        def once() -> T:
            with self.engine.connect() as connection:
                return query(connection)

        return retry(once, self.retry_seconds)

    # ---- writing

    @contextmanager
    def together(self, trial_id: int) -> Iterator[None]:
        """What is written into the trial inside is written in one transaction at the end, all or none."""
        batch = self._open.batch = Batch(trial_id)
        try:
            yield
        finally:
            self._open.batch = None
        if batch:
            self._write(trial_id, batch.write)

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
        with self._batch(trial_id) as batch:
            batch.add(
                models.TrialParamModel,
                param_name,
                param_value=param_value_internal,
                distribution_json=distribution_to_json(distribution),
            )

    def set_trial_user_attr(self, trial_id: int, key: str, value: Any) -> None:  # noqa: ANN401 (any JSON)
        """As Optuna's."""
        with self._batch(trial_id) as batch:
            batch.add(models.TrialUserAttributeModel, key, value_json=json.dumps(value))

    def set_trial_system_attr(self, trial_id: int, key: str, value: Any) -> None:  # noqa: ANN401 (any JSON)
        """As Optuna's."""
        with self._batch(trial_id) as batch:
            batch.add(models.TrialSystemAttributeModel, key, value_json=json.dumps(value))

    def set_trial_intermediate_value(self, trial_id: int, step: int, intermediate_value: float) -> None:
        """As Optuna's."""
        with self._batch(trial_id) as batch:
            _add_report(batch, step, intermediate_value)

    def set_trial_state_values(self, trial_id: int, state: TrialState, values: Sequence[float] | None = None) -> bool:
        """As Optuna's; see `end`."""
        if state.is_finished():
            self.end(trial_id, state, values)
            return True
        return retry(lambda: RDBStorage.set_trial_state_values(self, trial_id, state, values), self.retry_seconds)

    def end(
        self,
        trial_id: int,
        state: TrialState,
        values: Sequence[float] | None = None,
        attributes: Mapping[str, Any] | None = None,
        reports: Mapping[int, float] | None = None,
        *,
        drop_claim: bool = False,
    ) -> None:
        """Write a trial's end and what is told with it, and drop our claim if asked to; all or none.

        Raises:
            UpdateFinishedTrialError: it has ended before, by somebody else.
            ClaimLostError: another worker has taken the trial over.
        """
        batch = Batch(trial_id)
        for objective, each in enumerate(values or ()):
            value, kind = models.TrialValueModel.value_to_stored_repr(each)
            batch.add(models.TrialValueModel, objective, value=value, value_type=kind)
        for key, attribute in (attributes or {}).items():
            batch.add(models.TrialUserAttributeModel, key, value_json=json.dumps(attribute))
        for step, each in (reports or {}).items():
            _add_report(batch, step, each)
        sent = False

        def finish(connection: sa.Connection) -> None:
            nonlocal sent
            if not connection.execute(_END, {"trial": trial_id, "state": state.name}).rowcount:
                raise UpdateFinishedTrialError(f"Trial {trial_id} was ended by somebody else meanwhile.")
            batch.write(connection)
            if drop_claim:
                connection.execute(sa.text(DROP), {"trial": trial_id, "owner": self.fences[trial_id]})
            sent = True

        try:
            self._write(trial_id, finish)
        except (UpdateFinishedTrialError, ClaimLostError):
            stored = self.get_trial(trial_id)
            as_told = stored.state == state and stored.values == (list(values) if values else None)
            if not sent or not as_told:  # else it was us, and the answer got lost
                raise

    @contextmanager
    def _batch(self, trial_id: int) -> Iterator[Batch]:
        """The open batch of the trial, or one that is written at once."""
        batch: Batch | None = getattr(self._open, "batch", None)
        if batch is not None and batch.trial_id == trial_id:
            yield batch
        else:
            batch = Batch(trial_id)
            yield batch
            self._write(trial_id, batch.write)

    def _write(self, trial_id: int, write: Callable[[sa.Connection], None]) -> None:
        """Write into a trial in one transaction, for as long as it takes; it may be written twice."""

        def once() -> None:
            with self.engine.begin() as connection:
                self._admit(connection, trial_id)
                write(connection)

        retry(once, self.retry_seconds)

    def _admit(self, connection: sa.Connection, trial_id: int) -> None:
        """Begin to write into a trial: it is unfinished, and if we claimed it, it stays ours until the end."""
        owner = self.fences.get(trial_id)
        if owner is None:
            state = connection.execute(_STATE, {"trial": trial_id}).scalar()
            if state is None:
                raise KeyError(models.NOT_FOUND_MSG)
        else:
            state = connection.execute(_STATE_IF_MINE, {"trial": trial_id, "owner": owner}).scalar()
            if state is None:
                raise ClaimLostError
        self.check_trial_is_updatable(trial_id, TrialState[state])


def _add_report(batch: Batch, step: int, reported: float) -> None:
    table = models.TrialIntermediateValueModel
    value, kind = table.intermediate_value_to_stored_repr(reported)
    batch.add(table, step, intermediate_value=value, intermediate_value_type=kind)
