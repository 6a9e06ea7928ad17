"""Optuna's relational storage, extended to survive outages and to write only into trials that this worker owns.

*Retries.* Every storage method is retried, with growing pauses, while the database is unreachable. That is safe because
each of them is one idempotent transaction. Creating trials is not idempotent, and not retried here:
`hpo.running.claims` creates a trial together with its claim, which makes it idempotent.

*Fencing.* For every trial that this process has claimed, `fences` has a check that the claim is not lost. Every
transaction that writes into such a trial begins with the check, which locks the claim's row: a worker that takes the
trial over waits for the write to end, and later writes raise `ClaimLostError`. All writes take the same path, so no
caller can forget the check.

*Few round trips.* Optuna reads trials in seven statements through its object mapper and reads again before every
write, which takes most of the time of a short trial. `trial_rows` reads them in one statement, and a `transaction` or
`end` writes everything together. The tables and their contents stay Optuna's.

*Private parts.* This is the only module that touches private attributes of Optuna, which is why `pyproject.toml` bounds
its version from above. `trial_rows` knows the names of Optuna's tables.
"""

from __future__ import annotations

import copy
import functools
import threading
from collections.abc import Callable, Collection, Container, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, TypeVar

import sqlalchemy as sa
from optuna.distributions import BaseDistribution, check_distribution_compatibility, distribution_to_json
from optuna.exceptions import UpdateFinishedTrialError
from optuna.samplers import RandomSampler
from optuna.storages import RDBStorage
from optuna.storages._cached_storage import _CachedStorage
from optuna.trial import FrozenTrial, Trial, TrialState

from sparse_evidence.core.errors import UserError

from ..errors import ClaimLostError, StudyDeletedError
from . import trial_rows
from .address import describe
from .retry import retry
from .trial_rows import Batch

if TYPE_CHECKING:
    import optuna
    from optuna.storages import BaseStorage

P = ParamSpec("P")
T = TypeVar("T")

Fence = Callable[[sa.Connection], TrialState | None]
"""Locks this process's claim on a trial and returns the trial's state; None if the claim is lost."""


# ---- private parts of Optuna's objects -------------------------------------------------------------------------------


def unwrap(holder: BaseStorage | optuna.Study) -> RetryingStorage:
    """Return our storage behind a study or behind Optuna's cache."""
    cached = getattr(holder, "_storage", holder)
    storage = getattr(cached, "_backend", cached)
    assert isinstance(storage, RetryingStorage), "open studies with hpo.database.studies"
    return storage


def storage_of(study: optuna.Study) -> BaseStorage:
    """Return the storage of a study, for opening another study in it."""
    return study._storage  # noqa: SLF001


def study_id(study: optuna.Study) -> int:
    """Return the study's key in the database."""
    return study._study_id  # noqa: SLF001


def known_trial(trial: Trial) -> FrozenTrial:
    """Return what this process knows of the trial, which may be changed; nothing is read."""
    return trial._cached_frozen_trial  # noqa: SLF001


def reseeded(sampler: RandomSampler, seed: int) -> RandomSampler:
    """Return the sampler as a new one with this seed: making one takes 0.3 ms, for entropy that nobody uses."""
    sampler._rng.rng.seed(seed)  # noqa: SLF001
    return sampler


def read_trials(study: optuna.Study, trial_id: int) -> tuple[Trial, list[FrozenTrial]]:
    """Read the study's trials once, and make the one with this id, for the caller to write into; as `Study.ask` does.

    Without this, the trial would be read again, and samplers would read all of them again.

    Raises:
        StudyDeletedError: the study was deleted, and the trial with it.
    """
    trials = study.get_trials(deepcopy=False)
    study._thread_local.cached_all_trials = trials  # noqa: SLF001
    cache = study._storage  # noqa: SLF001
    assert isinstance(cache, Cache)
    mine = next((trial for trial in reversed(trials) if trial._trial_id == trial_id), None)  # noqa: SLF001
    if mine is not None:
        cache.just_read[trial_id] = copy.deepcopy(mine)
    try:
        return Trial(study, trial_id), trials
    except KeyError:
        raise StudyDeletedError from None


# ---- the storage -----------------------------------------------------------------------------------------------------


def _retried(method: Callable[Concatenate[Any, P], T]) -> Callable[Concatenate[Any, P], T]:
    """Return the method, retried while the database is unreachable."""

    @functools.wraps(method)
    def call(self: Any, /, *args: P.args, **kwargs: P.kwargs) -> T:  # noqa: ANN401 (a RetryingStorage, defined below)
        return retry(lambda: method(self, *args, **kwargs), self.retry_seconds)

    return call


def _of_study(method: Callable[Concatenate[Any, P], T]) -> Callable[Concatenate[Any, P], T]:
    """Return the method, retried; a study whose key was known and is gone has been deleted."""
    retried = _retried(method)

    @functools.wraps(method)
    def call(self: Any, /, *args: P.args, **kwargs: P.kwargs) -> T:  # noqa: ANN401 (a RetryingStorage, defined below)
        try:
            return retried(self, *args, **kwargs)
        except KeyError:
            raise StudyDeletedError from None

    return call


class RetryingStorage(RDBStorage):
    """`RDBStorage` that survives outages and writes only into trials that this process owns or that are unclaimed."""

    def __init__(
        self,
        url: str,
        *,
        retry_seconds: float,
        longest_pause: float,
        engine_kwargs: dict[str, Any],
        immediate: sa.Engine,
        skip_table_creation: bool,
        without: Collection[str] = (),
    ) -> None:
        super().__init__(url, engine_kwargs, skip_table_creation=skip_table_creation, skip_compatibility_check=True)
        self._check_tables()
        self.immediate = immediate
        """An engine that sends what it executes as a transaction of its own: frozen, a worker holds no lock of it."""
        sa.event.listen(self.engine, "engine_disposed", lambda _: immediate.dispose())
        self.retry_seconds = retry_seconds
        """How long every call waits for an unreachable database."""
        self.longest_pause = longest_pause
        """Between two attempts to claim a trial or to read: a trial that is claimed already must not wait for long."""
        self.without = without
        """User attributes of trials that are not read."""
        self.fences: dict[int, Fence] = {}
        """By trial id, for every trial that this process has claimed."""
        self._open = threading.local()
        self._unfinished: dict[int, trial_rows.Versions] = {}  # by study, as they were read last
        self._reading = threading.Lock()

    def _check_tables(self) -> None:
        """Optuna's check of the tables' version, without its second session while a first one is open.

        Where many workers start behind a pooler with few sessions, each would hold one and wait for another.
        """
        if self.get_current_version() == self.get_head_version():
            return
        try:
            self._version_manager.check_table_schema_compatibility()
        except RuntimeError as error:
            raise UserError(f"{describe(self.engine.url)}: {error}") from None

    get_study_id_from_name = _retried(RDBStorage.get_study_id_from_name)
    get_study_name_from_id = _of_study(RDBStorage.get_study_name_from_id)
    get_study_directions = _of_study(RDBStorage.get_study_directions)
    get_study_user_attrs = _of_study(RDBStorage.get_study_user_attrs)
    get_study_system_attrs = _of_study(RDBStorage.get_study_system_attrs)
    set_study_user_attr = _of_study(RDBStorage.set_study_user_attr)
    set_study_system_attr = _of_study(RDBStorage.set_study_system_attr)
    get_all_studies = _retried(RDBStorage.get_all_studies)
    get_trial_user_attrs = _retried(RDBStorage.get_trial_user_attrs)
    get_trial_system_attrs = _retried(RDBStorage.get_trial_system_attrs)
    get_trial_id_from_study_id_trial_number = _retried(RDBStorage.get_trial_id_from_study_id_trial_number)
    _get_best_trial_id = _retried(RDBStorage._get_best_trial_id)  # noqa: SLF001 (Optuna's cache in front of us calls it)

    # ---- reading

    def get_trial(self, trial_id: int) -> FrozenTrial:
        """As Optuna's."""
        trial = self._read(lambda connection: trial_rows.select_trial(connection, trial_id, self.without))
        if trial is None:
            raise KeyError(f"There is no trial with the id {trial_id}.")
        return trial

    def _get_trials(
        self,
        study_id: int,
        states: Container[TrialState] | None,
        included_trial_ids: set[int],
        trial_id_greater_than: int,
    ) -> list[FrozenTrial]:
        """As Optuna's; the cache in front of us calls it."""
        known, after = included_trial_ids, trial_id_greater_than
        with self._reading:
            before = self._unfinished.setdefault(study_id, {})
            trials, is_there = self._read(
                lambda connection: trial_rows.select_trials(connection, study_id, known, after, self.without, before)
            )
        if not is_there:
            self.get_study_name_from_id(study_id)  # raises StudyDeletedError if there is no such study
        return [trial for trial in trials if states is None or trial.state in states]

    def _read(self, query: Callable[[sa.Connection], T]) -> T:
        """Run a query of one statement, retried."""

        def once() -> T:
            with self.immediate.connect() as connection:
                return query(connection)

        return retry(once, self.retry_seconds, longest_pause=self.longest_pause)

    # ---- writing

    @contextmanager
    def transaction(self, trial_id: int) -> Iterator[None]:
        """Collect everything that is written into the trial inside the block, and write it in one transaction."""
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
        """As Optuna's; a parameter that this trial already has keeps its value."""
        if previous_distribution is not None:
            check_distribution_compatibility(previous_distribution, distribution)
        with self._batch(trial_id) as batch:
            batch.param(param_name, param_value_internal, distribution_to_json(distribution))

    def set_trial_user_attr(self, trial_id: int, key: str, value: Any) -> None:  # noqa: ANN401 (any JSON)
        """As Optuna's."""
        with self._batch(trial_id) as batch:
            batch.user_attribute(key, value)

    def set_trial_system_attr(self, trial_id: int, key: str, value: Any) -> None:  # noqa: ANN401 (any JSON)
        """As Optuna's."""
        with self._batch(trial_id) as batch:
            batch.system_attribute(key, value)

    def set_trial_intermediate_value(self, trial_id: int, step: int, intermediate_value: float) -> None:
        """As Optuna's."""
        with self._batch(trial_id) as batch:
            batch.report(step, intermediate_value)

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
        also: Callable[[sa.Connection], object] | None = None,
    ) -> None:
        """Write a trial's end, its last attributes and reports, and whatever `also` writes, in one transaction.

        Raises:
            UpdateFinishedTrialError: another process has ended the trial.
            ClaimLostError: another worker has taken the trial over.
        """
        batch = _last_batch(trial_id, values, attributes, reports)
        # The two generals' problem: if the connection is lost at the commit, we cannot know whether it happened. So the
        # transaction is sent again, and when that finds the trial ended (or, its claim being deleted, not ours), we
        # compare: it was us if we had sent this very end before.
        sent = False

        def finish(connection: sa.Connection) -> None:
            nonlocal sent
            if not trial_rows.end_trial(connection, trial_id, state):
                raise UpdateFinishedTrialError(f"Another process has ended trial {trial_id}.")
            batch.write(connection)
            if also is not None:
                also(connection)
            sent = True

        try:
            self._write(trial_id, finish)
        except (UpdateFinishedTrialError, ClaimLostError):
            if not (sent and self._has_ended(trial_id, state, values)):
                raise

    def _has_ended(self, trial_id: int, state: TrialState, values: Sequence[float] | None) -> bool:
        """Whether the trial has this end."""
        try:
            stored = self.get_trial(trial_id)
        except KeyError:  # it was deleted
            return False
        return stored.state == state and stored.values == (list(values) if values else None)

    @contextmanager
    def _batch(self, trial_id: int) -> Iterator[Batch]:
        """The batch of the trial's open `transaction`, or one that is written immediately."""
        batch: Batch | None = getattr(self._open, "batch", None)
        if batch is not None and batch.trial_id == trial_id:
            yield batch
        else:
            batch = Batch(trial_id)
            yield batch
            self._write(trial_id, batch.write)

    def _write(self, trial_id: int, write: Callable[[sa.Connection], None]) -> None:
        """Write into a trial in one transaction, retried; `write` must be idempotent."""

        def once() -> None:
            with self.engine.begin() as connection:
                self._check_fence(connection, trial_id)
                write(connection)

        retry(once, self.retry_seconds)

    def _check_fence(self, connection: sa.Connection, trial_id: int) -> None:
        """Raise if the trial is finished or this process has lost its claim; lock the claim until the commit."""
        fence = self.fences.get(trial_id)
        if fence is None:
            state = trial_rows.trial_state(connection, trial_id)
            if state is None:
                raise KeyError(f"There is no trial with the id {trial_id}.")
        else:
            state = fence(connection)
            if state is None:
                raise ClaimLostError
        self.check_trial_is_updatable(trial_id, state)


class Cache(_CachedStorage):
    """Optuna's cache of the trials that were read, without its costs where a study has thousands."""

    def __init__(self, backend: RetryingStorage) -> None:
        super().__init__(backend)
        self.just_read: dict[int, FrozenTrial] = {}
        """Trials that the next `get_trial` returns, once each."""

    def get_trial(self, trial_id: int) -> FrozenTrial:
        """As Optuna's."""
        return self.just_read.pop(trial_id, None) or super().get_trial(trial_id)

    def get_all_trials(
        self, study_id: int, deepcopy: bool = True, states: Container[TrialState] | None = None
    ) -> list[FrozenTrial]:
        """As Optuna's, which sorts the trials by calling a function for each."""
        self._read_trials_from_remote_storage(study_id)
        with self._lock:
            known = self._studies[study_id].trials
            trials = [known[number] for number in sorted(known) if states is None or known[number].state in states]
            return copy.deepcopy(trials) if deepcopy else trials


def _last_batch(
    trial_id: int,
    values: Sequence[float] | None,
    attributes: Mapping[str, Any] | None,
    reports: Mapping[int, float] | None,
) -> Batch:
    batch = Batch(trial_id)
    for objective, value in enumerate(values or ()):
        batch.outcome(objective, value)
    for key, attribute in (attributes or {}).items():
        batch.user_attribute(key, attribute)
    for step, reported in (reports or {}).items():
        batch.report(step, reported)
    return batch
