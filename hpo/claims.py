"""The exact loop: who works on which trial, until exactly as many are finished as were asked for.

Optuna's table alone says what state a trial is in; the table `hpo_claims` says who holds a running one. All decisions
are made in one transaction under the study's advisory lock and by the database's clock:

1. a running trial that was handed back, or whose heartbeat is older than the grace period, is taken over;
2. else, while finished and running trials are fewer than the budget, a trial is started (queued ones first);
3. else the worker waits for the others, or is done.

A trial and its claim are created together, and under a random owner, so that a claim whose answer got lost in an
outage is found again instead of made twice. What an owner may write is checked by `hpo.rdb` in every transaction.
"""

from __future__ import annotations

import json
import logging
import math
import os
import random
import socket
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from types import TracebackType
from typing import Any, Self

import optuna
import sqlalchemy as sa
from optuna.exceptions import UpdateFinishedTrialError
from optuna.storages._rdb import models  # Optuna's tables: a trial and its claim are made in one transaction
from optuna.trial import Trial, TrialState
from sqlalchemy import orm

from hpo.rdb import LONGEST_PAUSE, SHORTEST_PAUSE, ClaimLost, patiently, still_mine
from hpo.storage import backend, engine_of, lock

__all__ = ["Claim", "ClaimLost", "Claims", "Counts", "Finished", "Wait", "Worker", "count", "workers"]

logger = logging.getLogger(__name__)

OUTCOME = "hpo:outcome"
"""User attribute of a failed trial that counts as finished: "infeasible"."""
REASON = "hpo:reason"
INFEASIBLE = "infeasible"

# A heartbeat that could not arrive while the database was down is not missing: the grace starts when it is up.
_STALE = """
SELECT t.trial_id, c.attempt, c.released FROM hpo_claims c JOIN trials t USING (trial_id)
WHERE c.study_id = :study AND t.state = 'RUNNING'
  AND (c.released
       OR greatest(c.heartbeat, pg_postmaster_start_time()) < clock_timestamp() - make_interval(secs => :grace))
ORDER BY t.number LIMIT 1
FOR UPDATE OF c SKIP LOCKED  -- locked: its owner is writing, so it is alive
"""
# Trials that something other than hpo started and then left.
_UNCLAIMED = """
SELECT t.trial_id, 1 AS attempt, false AS released FROM trials t
WHERE t.study_id = :study AND t.state = 'RUNNING'
  AND NOT EXISTS (SELECT 1 FROM hpo_claims c WHERE c.trial_id = t.trial_id)
  AND t.datetime_start < (clock_timestamp() AT TIME ZONE 'UTC') - make_interval(secs => :grace)
ORDER BY t.number LIMIT 1
"""
_HOLD = """
INSERT INTO hpo_claims (trial_id, study_id, owner, host, pid, slot, gpu, claimed_at, heartbeat, attempt, stage, epoch,
                        released)
VALUES (:trial, :study, :owner, :host, :pid, :slot, :gpu, clock_timestamp(), clock_timestamp(), :attempt, 0, 0, false)
ON CONFLICT (trial_id) DO UPDATE SET owner = excluded.owner, host = excluded.host, pid = excluded.pid,
    slot = excluded.slot, gpu = excluded.gpu, claimed_at = excluded.claimed_at, heartbeat = excluded.heartbeat,
    attempt = excluded.attempt, released = false
"""
_BEAT = """
UPDATE hpo_claims SET heartbeat = clock_timestamp(), stage = :stage, epoch = :epoch
WHERE trial_id = :trial AND owner = :owner AND NOT released
"""
_RELEASE = "UPDATE hpo_claims SET released = true WHERE trial_id = :trial AND owner = :owner"
_DROP = "DELETE FROM hpo_claims WHERE trial_id = :trial AND owner = :owner"
# A worker killed between finishing a trial and dropping its claim left the row behind.
_SWEEP = """
DELETE FROM hpo_claims c USING trials t
WHERE c.study_id = :study AND t.trial_id = c.trial_id AND t.state NOT IN ('RUNNING', 'WAITING')
  AND c.heartbeat < clock_timestamp() - make_interval(secs => :grace)
"""
_NOTE = """
INSERT INTO trial_user_attributes (trial_id, key, value_json) VALUES (:trial, :key, :value)
ON CONFLICT (trial_id, key) DO UPDATE SET value_json = excluded.value_json
"""
_COUNT = """
SELECT CASE WHEN t.state = 'FAIL' AND a.value_json = '"infeasible"' THEN 'INFEASIBLE' ELSE t.state::text END, count(*)
FROM trials t LEFT JOIN trial_user_attributes a ON a.trial_id = t.trial_id AND a.key = 'hpo:outcome'
WHERE t.study_id = :study GROUP BY 1
"""
_WORKERS = """
SELECT c.host, c.pid, c.slot, c.gpu, t.number AS trial, c.attempt, c.stage, c.epoch, c.released,
       extract(epoch FROM clock_timestamp() - c.heartbeat)::float AS heartbeat_age,
       extract(epoch FROM clock_timestamp() - c.claimed_at)::float AS held_seconds
FROM hpo_claims c JOIN trials t USING (trial_id)
WHERE c.study_id = :study AND t.state = 'RUNNING' ORDER BY c.host, c.slot, c.pid
"""


@dataclass(frozen=True)
class Worker:
    """Who works, as `hpo status` shows it."""

    host: str = field(default_factory=socket.gethostname)
    pid: int = field(default_factory=os.getpid)
    slot: int = 0
    gpu: str | None = None


@dataclass(frozen=True)
class Counts:
    """Trials by state; `failed` are those that something else than hpo failed, and do not count as finished."""

    complete: int = 0
    pruned: int = 0
    infeasible: int = 0
    failed: int = 0
    running: int = 0
    waiting: int = 0

    @property
    def finished(self) -> int:
        """What the budget is compared with."""
        return self.complete + self.pruned + self.infeasible


@dataclass(frozen=True)
class Wait:
    """Nothing to start, but others still work and might leave a trial behind: ask again soon."""

    counts: Counts


@dataclass(frozen=True)
class Finished:
    """The budget is spent."""

    counts: Counts


def count(study: optuna.Study) -> Counts:
    """Count the study's trials by state; one cheap query."""

    def read() -> Counts:
        with engine_of(study).connect() as connection:
            return _counted(connection, _study_id(study))

    return patiently(read, backend(study).patience_seconds)


def workers(engine: sa.Engine, study: optuna.Study) -> list[dict[str, Any]]:
    """Who holds which running trial: host, pid, slot, gpu, trial, attempt, stage, epoch, released, heartbeat_age."""

    def read() -> list[dict[str, Any]]:
        with engine.connect() as connection:
            return [dict(row) for row in connection.execute(sa.text(_WORKERS), {"study": _study_id(study)}).mappings()]

    return patiently(read, backend(study).patience_seconds)


class Claims:
    """One worker's way to trials: `claim` until `Finished`."""

    def __init__(
        self,
        engine: sa.Engine,
        study: optuna.Study,
        *,
        budget: int,
        heartbeat_seconds: float,
        grace_seconds: float,
        max_attempts: int,
        worker: Worker | None = None,
    ) -> None:
        self.engine = engine
        self.study = study
        self.budget = budget
        self.heartbeat_seconds = heartbeat_seconds
        self.grace_seconds = grace_seconds
        self.max_attempts = max_attempts
        self.worker = worker or Worker()

    def claim(self) -> Claim | Wait | Finished:
        """Take over a trial that nobody works on, else start one, else say why not."""
        owner = uuid.uuid4().hex
        got = patiently(lambda: self._decide(owner), backend(self.study).patience_seconds)
        if not isinstance(got, _Held):
            return got
        backend(self.study).fences[got.trial_id] = owner
        # As `Study.ask` does: the sampler sees the study as it is now, and Optuna's cache learns of the trial.
        self.study._thread_local.cached_all_trials = None  # noqa: SLF001 (no public way)
        self.study.get_trials(deepcopy=False)
        trial = Trial(self.study, got.trial_id)
        logger.info("Claimed trial %d.", trial.number, extra={"action": "claimed", "attempt": got.attempt})
        return Claim(self.engine, trial, owner, got.attempt, self.heartbeat_seconds)

    def _decide(self, owner: str) -> _Held | Wait | Finished:
        study = _study_id(self.study)
        asked = {"study": study, "grace": self.grace_seconds}
        with orm.Session(self.engine) as session, session.begin():
            connection = session.connection()
            lock(connection, study)
            mine = "SELECT trial_id, attempt FROM hpo_claims WHERE owner = :owner"
            if row := connection.execute(sa.text(mine), {"owner": owner}).first():
                return _Held(*row)  # made by the call whose answer got lost
            connection.execute(sa.text(_SWEEP), asked)
            if taken := self._take_over(session, asked, owner):
                return taken
            counts = _counted(connection, study)
            if counts.finished + counts.running < self.budget:
                return self._hold(connection, _started(session, study), owner, attempt=1)
            return Wait(counts) if counts.running else Finished(counts)

    def _take_over(self, session: orm.Session, asked: dict[str, Any], owner: str) -> _Held | None:
        connection = session.connection()
        while row := self._left_behind(connection, asked):
            attempt = row.attempt if row.released else row.attempt + 1
            if attempt <= self.max_attempts:
                return self._hold(connection, row.trial_id, owner, attempt)
            _give_up(session, row.trial_id, f"given up: its worker died {row.attempt} times")
        return None

    def _left_behind(self, connection: sa.Connection, asked: dict[str, Any]) -> sa.Row[Any] | None:
        found = connection.execute(sa.text(_STALE), asked).first()
        return found or connection.execute(sa.text(_UNCLAIMED), asked).first()

    def _hold(self, connection: sa.Connection, trial_id: int, owner: str, attempt: int) -> _Held:
        who = {"host": self.worker.host, "pid": self.worker.pid, "slot": self.worker.slot, "gpu": self.worker.gpu}
        what = {"trial": trial_id, "study": _study_id(self.study), "owner": owner, "attempt": attempt}
        connection.execute(sa.text(_HOLD), {**who, **what})
        return _Held(trial_id, attempt)


class Claim:
    """A trial held by this worker. As a context it keeps a heartbeat; a claim that nobody ends runs out by itself.

    Optuna's own calls on `trial` (suggest, report, attributes) raise `ClaimLost` once somebody else has taken over.
    """

    def __init__(self, engine: sa.Engine, trial: Trial, owner: str, attempt: int, heartbeat_seconds: float) -> None:
        self.trial = trial
        self.attempt = attempt
        self.lost = threading.Event()
        """Set when the heartbeat finds that the trial was taken over: stop working on it."""
        self._engine = engine
        self._key: dict[str, Any] = {"trial": trial._trial_id, "owner": owner}  # noqa: SLF001
        self._progress = (0, 0)
        self._heartbeat_seconds = heartbeat_seconds
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._beat, name=f"heartbeat of trial {trial.number}", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self._over.set()
        self._thread.join(timeout=1)  # it may be waiting for the database; it ends when that answers

    def progress(self, stage: int, epoch: int) -> None:
        """Say how far the work is; the next heartbeat carries it, so this costs nothing. Raises `ClaimLost`."""
        self._progress = (stage, epoch)
        if self.lost.is_set():
            raise ClaimLost

    @contextmanager
    def guard(self) -> Iterator[None]:
        """For what is written outside the database (a checkpoint): raises `ClaimLost` if the trial is not ours."""
        patiently(self._check, self._patience)
        yield

    def finish(self, state: TrialState, value: float | None = None, *, reason: str | None = None) -> None:
        """Tell the trial's end: COMPLETE with its value, PRUNED, or FAIL, which means infeasible for the `reason`."""
        if state == TrialState.COMPLETE and (value is None or math.isnan(value)):
            raise ValueError(f"A complete trial needs a value, not {value}: end it as infeasible (FAIL, reason=...).")
        patiently(self._check, self._patience)
        try:
            if state == TrialState.FAIL:
                self.trial.set_user_attr(REASON, reason or "no reason given")
                self.trial.set_user_attr(OUTCOME, INFEASIBLE)
            self.trial.study.tell(self.trial, value, state)
        except (ValueError, UpdateFinishedTrialError) as error:
            if self.trial.storage.get_trial(self._key["trial"]).state.is_finished():
                raise ClaimLost(f"Trial {self.trial.number} was ended by somebody else.") from error
            raise
        self._over.set()
        self._end(_DROP)

    def release(self) -> None:
        """Hand the trial back: the next worker that asks gets it, and no attempt is counted."""
        self._over.set()
        self._end(_RELEASE)

    @property
    def _patience(self) -> float:
        return backend(self.trial.study).patience_seconds

    def _check(self) -> None:
        try:
            with self._engine.begin() as connection:
                still_mine(connection, self._key["trial"], self._key["owner"])
        except ClaimLost:
            self.lost.set()
            raise

    def _end(self, statement: str) -> None:
        def once() -> None:
            with self._engine.begin() as connection:
                connection.execute(sa.text(statement), self._key)

        patiently(once, self._patience)

    def _beat(self) -> None:
        """Say "alive" until the claim is over, through any outage; a beat that is not ours any more says so."""
        missed = 0
        while not self._over.wait(self._pause(missed)):
            try:
                stage, epoch = self._progress
                with self._engine.begin() as connection:
                    beaten = connection.execute(sa.text(_BEAT), {**self._key, "stage": stage, "epoch": epoch}).rowcount
            except Exception as error:  # noqa: BLE001 (a thread that dies loses a live trial)
                missed += 1
                logger.warning("Heartbeat missed (%s); trying again.", type(error).__name__, extra={"action": "missed"})
                continue
            if not beaten:
                if not self._over.is_set():
                    self.lost.set()
                return
            missed = 0

    def _pause(self, missed: int) -> float:
        if not missed:
            return self._heartbeat_seconds
        longest = min(self._heartbeat_seconds, LONGEST_PAUSE)
        return min(longest, SHORTEST_PAUSE * 2.0 ** min(missed, 20)) * random.uniform(0.5, 1.0)


@dataclass(frozen=True)
class _Held:
    trial_id: int
    attempt: int


def _study_id(study: optuna.Study) -> int:
    return study._study_id  # noqa: SLF001 (no public way)


def _counted(connection: sa.Connection, study_id: int) -> Counts:
    rows = connection.execute(sa.text(_COUNT), {"study": study_id})
    return Counts(**{"failed" if state == "FAIL" else state.lower(): number for state, number in rows})


def _started(session: orm.Session, study_id: int) -> int:
    """Take a queued trial, or make one: what `Study.ask` does first, but in our transaction."""
    # Optuna numbers trials under this lock; scripts beside us may be adding some.
    models.StudyModel.find_or_raise_by_id(study_id, session, for_update=True)
    queued = (
        sa.select(models.TrialModel)
        .where(models.TrialModel.study_id == study_id, models.TrialModel.state == TrialState.WAITING)
        .order_by(models.TrialModel.number)
        .limit(1)
        .with_for_update(skip_locked=True)
    )
    trial: models.TrialModel | None = session.scalars(queued).first()
    if trial is None:
        trial = models.TrialModel(study_id=study_id, number=None)
        trial.state = TrialState.RUNNING
        session.add(trial)
        session.flush()
        trial.number = trial.count_past_trials(session)
    trial.state = TrialState.RUNNING
    trial.datetime_start = datetime.now().astimezone()
    session.flush()
    return int(trial.trial_id)


def _give_up(session: orm.Session, trial_id: int, reason: str) -> None:
    trial = session.get_one(models.TrialModel, trial_id)
    trial.state = TrialState.FAIL
    trial.datetime_complete = datetime.now().astimezone()
    session.flush()
    for key, value in ((OUTCOME, INFEASIBLE), (REASON, reason)):
        session.execute(sa.text(_NOTE), {"trial": trial_id, "key": key, "value": json.dumps(value)})
    session.execute(sa.text("DELETE FROM hpo_claims WHERE trial_id = :trial"), {"trial": trial_id})
    logger.warning("Trial %d: %s.", trial.number, reason, extra={"action": "given_up"})
