"""The exact loop: who works on which trial, until exactly as many are finished as were asked for.

Optuna's table alone says what state a trial is in; the table `hpo_claims` says who holds a running one. All decisions
are made in one transaction under the study's advisory lock and by the database's clock:

1. a running trial that was handed back, or whose heartbeat is older than the grace period, is taken over;
2. else, while finished and running trials are fewer than the budget, a trial is started (queued ones first);
3. else the worker waits for the others, or is done.

A trial and its claim are created together, and under a random owner, so that a claim whose answer got lost in an
outage is found again instead of made twice. What an owner may write is checked by `hpo.database.optuna_storage` in every transaction.

A worker that waits takes over within the grace period; one that is busy takes over between two trials. In between a
`Reaper` in every worker ends what has had all its attempts, and tidies up after workers that were killed while they
finished. It takes no trial away: a worker that was cut off for too long keeps its trial unless another began it.
"""

from __future__ import annotations

import logging
import math
import random
import threading
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import optuna
import sqlalchemy as sa
from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import FrozenTrial, Trial, TrialState

from ..database import claims_sql
from ..database.claims_sql import Counts, Held, Worker
from ..database.connection import backend, lock_study
from ..database.optuna_storage import DROP, LONGEST_PAUSE, SHORTEST_PAUSE, ClaimLostError, retry
from ..database.record import INFEASIBLE, OUTCOME, REASON

logger = logging.getLogger(__name__)

Discard = Callable[[str], bool]
"""Remove an artifact; False if that has to be tried again later."""


@dataclass(frozen=True)
class Wait:
    """Nothing to start, but others still work and might leave a trial behind: ask again soon."""

    counts: Counts


@dataclass(frozen=True)
class Finished:
    """The budget is spent."""

    counts: Counts


@dataclass(frozen=True)
class Terms:
    """How claims are kept, the same for every worker of a study."""

    heartbeat_seconds: float
    grace_seconds: float
    max_attempts: int
    stall_seconds: float = math.inf


class Claims:
    """One worker's way to trials: `claim` until `Finished`.

    Args:
        engine: the study's connection pool.
        study: the study.
        budget: trials to finish in all, by whomever.
        heartbeat_seconds: a claim says this often that its worker lives.
        grace_seconds: silence after which a trial goes to another.
        max_attempts: beginnings after which a trial is given up.
        stall_seconds: a claim without progress for this long is given back as failed, and `stalled` is called.
        worker: who claims.
        discard: removes the artifacts of trials that have ended.
        stalled: called in the heartbeat's thread; the main thread hangs, so it should end the process.
    """

    def __init__(
        self,
        engine: sa.Engine,
        study: optuna.Study,
        *,
        budget: int,
        heartbeat_seconds: float,
        grace_seconds: float,
        max_attempts: int,
        stall_seconds: float = math.inf,
        worker: Worker | None = None,
        discard: Discard = lambda _: True,
        stalled: Callable[[], None] = lambda: None,
    ) -> None:
        self.engine = engine
        self.study = study
        self.budget = budget
        self.terms = Terms(heartbeat_seconds, grace_seconds, max_attempts, stall_seconds)
        self.worker = worker or Worker()
        self.discard = discard
        self.stalled = stalled

    def claim(self) -> Claim | Wait | Finished:
        """Take over a trial that nobody works on, else start one, else say why not."""
        owner = uuid.uuid4().hex
        got = retry(lambda: self._decide(owner), backend(self.study).retry_seconds)
        if not isinstance(got, Held):
            return got
        backend(self.study).fences[got.trial_id] = owner
        # As `Study.ask` does: the sampler sees the study as it is now, and Optuna's cache learns of the trial.
        trials = self.study.get_trials(deepcopy=False)
        self.study._thread_local.cached_all_trials = trials  # noqa: SLF001 (no public way)
        trial = Trial(self.study, got.trial_id)
        logger.info("Claimed trial %d.", trial.number, extra={"action": "claimed", "attempt": got.attempt})
        return Claim(self.engine, trial, owner, got, self.terms, trials, discard=self.discard, stalled=self.stalled)

    def reap(self) -> None:
        """End what has had all its attempts, and tidy up after workers that were killed while they finished."""
        study, grace = claims_sql.study_id(self.study), self.terms.grace_seconds
        with self.engine.begin() as connection:
            lock_study(connection, study)
            for left in claims_sql.hopeless(connection, study, grace, self.terms.max_attempts):
                claims_sql.give_up(connection, left)
        with self.engine.connect() as connection:
            rows = claims_sql.leftovers(connection, study, grace)
        for row in rows:
            if all(self.discard(row[column]) for column in ("checkpoint", "pending") if row[column]):
                with self.engine.begin() as connection:
                    connection.execute(sa.text(DROP), {"trial": row["trial"], "owner": row["owner"]})

    def _decide(self, owner: str) -> Held | Wait | Finished:
        study = claims_sql.study_id(self.study)
        with self.engine.begin() as connection:
            lock_study(connection, study)
            if held := claims_sql.held_by(connection, owner):
                return held
            while left := claims_sql.left_behind(connection, study, self.terms.grace_seconds):
                if left.next_attempt <= self.terms.max_attempts:
                    return claims_sql.hold(connection, study, left.trial_id, owner, left.next_attempt, self.worker)
                claims_sql.give_up(connection, left)
            counts = claims_sql.counted(connection, study)
            if counts.finished + counts.running < self.budget:
                return claims_sql.hold(connection, study, claims_sql.started(connection, study), owner, 1, self.worker)
            return Wait(counts) if counts.running else Finished(counts)


class Claim:
    """A trial held by this worker. As a context it keeps a heartbeat, and leaves no trial unattended.

    Optuna's own calls on `trial` (suggest, report, attributes) raise `ClaimLostError` once somebody else has taken over.
    A context left by an exception hands the trial back at once, as an attempt that failed; one left without having
    finished or released it hands it back, too.
    """

    def __init__(
        self,
        engine: sa.Engine,
        trial: Trial,
        owner: str,
        held: Held,
        terms: Terms,
        trials: Sequence[FrozenTrial],
        *,
        discard: Discard = lambda _: True,
        stalled: Callable[[], None] = lambda: None,
    ) -> None:
        self.trial = trial
        self.trials_when_claimed = trials
        """Those of the study, this one included."""
        self.owner = owner
        self.attempt = held.attempt
        self.checkpoint, self.checkpoint_sha256, self.pending = held.checkpoint, held.checkpoint_sha256, held.pending
        self.lost = threading.Event()
        """Set when the heartbeat finds that the trial was taken over: stop working on it."""
        self._engine = engine
        self._key: dict[str, Any] = {"trial": held.trial_id, "owner": owner}
        self._progress = (0, 0)
        self._moved = time.monotonic()
        self._terms = terms
        self._discard = discard
        self._stalled = stalled
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._beat, name=f"heartbeat of trial {trial.number}", daemon=True)

    def __enter__(self) -> Self:
        self._moved = time.monotonic()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        ended = self._over.is_set()
        self._over.set()
        self._thread.join(timeout=1)  # it may be waiting for the database; it ends when that answers
        if ended or self.lost.is_set() or isinstance(error, ClaimLostError):
            return
        failed = isinstance(error, Exception)  # not Ctrl-C
        self._leave(claims_sql.FAIL if failed else claims_sql.RELEASE)
        if failed:
            logger.error("Trial %d failed (%s) and was handed back.", self.trial.number, type(error).__name__)

    def together(self) -> AbstractContextManager[None]:
        """A block whose parameters and attributes of the trial are written in one transaction when it ends."""
        return backend(self.trial.study).together(self._key["trial"])

    def progress(self, stage: int, epoch: int) -> None:
        """Say how far the work is; the next heartbeat carries it, so this costs nothing. Raises `ClaimLostError`."""
        self._progress = (stage, epoch)
        self._moved = time.monotonic()
        if self.lost.is_set():
            raise ClaimLostError

    def reported(self, step: int) -> bool:
        """Whether this or an earlier worker has reported at this step; nobody else can since the trial is ours."""
        return step in self._known.intermediate_values

    def announce(self, artifact: str) -> None:
        """Note an artifact that is about to be written for the trial. Raises `ClaimLostError`."""
        self._write(claims_sql.ANNOUNCE, artifact=artifact)
        self.pending = artifact

    def keep(self, artifact: str, sha256: str) -> None:
        """Make the announced artifact the trial's checkpoint and remove the one before. Raises `ClaimLostError`."""
        self._write(claims_sql.KEEP, artifact=artifact, sha256=sha256)
        self.pending, self.checkpoint, self.checkpoint_sha256 = self.checkpoint, artifact, sha256
        if self.pending and self._discard(self.pending):
            self.pending = None

    def finish(
        self,
        state: TrialState,
        value: float | None = None,
        *,
        attributes: Mapping[str, Any] | None = None,
        reports: Mapping[int, float] | None = None,
        reason: str | None = None,
    ) -> None:
        """Tell the trial's end, and what is known of it then, in one transaction.

        Args:
            state: COMPLETE with its value, PRUNED, or FAIL, which means infeasible.
            value: of a complete trial; a pruned one has what it reported last, as Optuna has it.
            attributes: user attributes of the trial.
            reports: by step, as `trial.report` takes them.
            reason: why it is infeasible.

        Raises:
            ClaimLostError: another worker took the trial over, or somebody else ended it.
        """
        if state == TrialState.COMPLETE and (value is None or math.isnan(value)):
            raise ValueError(f"A complete trial needs a value, not {value}: end it as infeasible (FAIL, reason=...).")
        self._known.intermediate_values.update(reports or {})
        if state == TrialState.PRUNED:
            value = self._last_report()
        told = dict(attributes or {})
        if state == TrialState.FAIL:
            told |= {OUTCOME: INFEASIBLE, REASON: reason or "no reason given"}
        artifacts = [artifact for artifact in (self.checkpoint, self.pending) if artifact]
        values = None if value is None else [float(value)]
        study = self.trial.study
        study.sampler.after_trial(study, self._known, state, values)  # as `Study.tell` does
        try:
            # The claim is what remembers artifacts: without any it can go at once.
            backend(study).end(self._key["trial"], state, values, told, reports, drop_claim=not artifacts)
        except ClaimLostError:
            self.lost.set()
            raise
        except UpdateFinishedTrialError as error:
            raise ClaimLostError(f"Trial {self.trial.number} was ended by somebody else.") from error
        self._over.set()
        self._known.user_attrs.update(told)
        if artifacts and all(self._discard(artifact) for artifact in artifacts):
            self._end(DROP)  # else a reaper tries again

    def release(self) -> None:
        """Hand the trial back: the next worker that asks gets it, and no attempt is counted."""
        self._over.set()
        self._end(claims_sql.RELEASE)

    @property
    def _patience(self) -> float:
        return backend(self.trial.study).retry_seconds

    @property
    def _known(self) -> FrozenTrial:
        """What this worker knows of its trial."""
        return self.trial._cached_frozen_trial  # noqa: SLF001 (no public way)

    def _last_report(self) -> float | None:
        step = self._known.last_step
        value = None if step is None else self._known.intermediate_values[step]
        return None if value is None or math.isnan(value) else value

    def _write(self, statement: str, **values: str) -> None:
        def once() -> int:
            with self._engine.begin() as connection:
                return connection.execute(sa.text(statement), {**self._key, **values}).rowcount

        if not retry(once, self._patience):
            self.lost.set()
            raise ClaimLostError

    def _end(self, statement: str) -> None:
        def once() -> None:
            with self._engine.begin() as connection:
                connection.execute(sa.text(statement), self._key)

        retry(once, self._patience)

    def _leave(self, statement: str) -> None:
        """Hand the trial back on the way out: one try, because the database may be what went wrong."""
        try:
            with self._engine.begin() as connection:
                connection.execute(sa.text(statement), self._key)
        except Exception as error:  # noqa: BLE001 (the exception in flight matters more)
            logger.warning("Trial %d is left to the grace period (%s).", self.trial.number, type(error).__name__)

    def _beat(self) -> None:
        """Say "alive" until the claim is over, through any outage; a beat that is not ours any more says so."""
        missed = 0
        while not self._over.wait(self._pause(missed)):
            try:
                stage, epoch = self._progress
                with self._engine.begin() as connection:
                    values = {**self._key, "stage": stage, "epoch": epoch}
                    beaten = connection.execute(sa.text(claims_sql.BEAT), values).rowcount
            except Exception as error:  # noqa: BLE001 (a thread that dies loses a live trial)
                missed += 1
                self._moved = time.monotonic()  # waiting for the database is no stall
                logger.warning("Heartbeat missed (%s); trying again.", type(error).__name__, extra={"action": "missed"})
                continue
            missed = 0
            if not beaten and not self._over.is_set():
                self.lost.set()
                self._over.wait(
                    self._terms.stall_seconds if self._terms.stall_seconds < threading.TIMEOUT_MAX else None
                )
            if not self._over.is_set() and time.monotonic() - self._moved > self._terms.stall_seconds:
                self._end_stalled()
                return
            if not beaten:
                return

    def _end_stalled(self) -> None:
        seconds = self._terms.stall_seconds
        logger.error("Trial %d ended no epoch for %.0f s: this process ends.", self.trial.number, seconds)
        if not self.lost.is_set():
            self._leave(claims_sql.FAIL)
        self.lost.set()
        self._stalled()

    def _pause(self, missed: int) -> float:
        if not missed:
            return self._terms.heartbeat_seconds
        longest = min(self._terms.heartbeat_seconds, LONGEST_PAUSE)
        return min(longest, SHORTEST_PAUSE * 2.0 ** min(missed, 20)) * random.uniform(0.5, 1.0)


class Reaper:
    """Calls `claims.reap` on a timer, whatever the worker is busy with, while its context is entered."""

    def __init__(self, claims: Claims) -> None:
        self._claims = claims
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="reaper", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join(timeout=1)

    def _run(self) -> None:
        while not self._over.wait(self._claims.terms.grace_seconds * random.uniform(0.3, 0.6)):
            try:
                self._claims.reap()
            except Exception as error:  # noqa: BLE001 (it comes again)
                logger.warning("The reaper will try again (%s).", type(error).__name__, extra={"action": "missed"})
