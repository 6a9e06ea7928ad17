"""The exact loop: assigns trials to workers until exactly the requested number has finished.

Optuna's table alone says what state a trial is in; the table `hpo_claims` says which worker has claimed a running one.
All decisions are made by the database, in one message under the study's advisory lock and by the database's clock
(`hpo.database.claims_sql`):

1. a running trial whose claim was released, or whose heartbeat is older than the grace period, is taken over;
2. else, while finished and running trials are fewer than the budget, a trial is started (queued ones first); without a
   budget, while trials are queued;
3. else the worker waits for the others, or is done.

A trial and its claim are created together, and under a random owner, so that a claim whose answer was lost in an outage
is found by the retry instead of made twice. In every transaction `hpo.database.optuna_storage` checks that its
writer still owns the trial.

A waiting worker takes over within the grace period; a busy one takes over between two trials. In between, a
`hpo.running.reaper.Reaper` in every worker fails trials that have had all their attempts.
"""

from __future__ import annotations

import logging
import math
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import Any, Self

import optuna
import sqlalchemy as sa
from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import FrozenTrial, Trial, TrialState

from ..database import claims_sql, predictions, trial_rows
from ..database.claims_sql import ClaimedTrial, Counts, Worker
from ..database.locks import lock_study
from ..database.optuna_storage import known_trial, read_trials, study_id, unwrap
from ..database.predictions import Logits
from ..database.record import INFEASIBLE, OUTCOME, REASON
from ..database.retry import retry
from ..errors import ClaimLostError, StudyDeletedError
from .heartbeat import Heartbeat

logger = logging.getLogger(__name__)

Discard = Callable[[str], bool]
"""Remove an artifact; False if it failed and must be retried later."""


@dataclass(frozen=True)
class Wait:
    """Nothing to start, but other workers may still fail to finish their trials: claim again soon."""

    counts: Counts


@dataclass(frozen=True)
class Finished:
    """The budget is spent."""

    counts: Counts


@dataclass(frozen=True)
class Terms:
    """When a claim is renewed, stale or exhausted; the same for every worker of a study."""

    heartbeat_seconds: float
    grace_seconds: float
    max_attempts: int
    stall_seconds: float = math.inf


class Claims:
    """One worker's access to trials: call `claim` until it returns `Finished`.

    Args:
        engine: the study's connection pool.
        study: the study.
        budget: the total number of trials to finish, by all workers together; None: those that are queued.
        heartbeat_seconds: a claim is renewed this often.
        grace_seconds: time without a heartbeat after which a trial is taken over.
        max_attempts: attempts after which a trial is failed.
        stall_seconds: a claim without progress for this long is released as failed, and `stalled` is called.
        worker: the process that claims.
        discard: removes the artifacts of trials that have ended.
        stalled: called in the heartbeat's thread; should end the process, because the main thread hangs.
        follow: called after every epoch with the trial's number, the stage and the epoch.
    """

    def __init__(
        self,
        engine: sa.Engine,
        study: optuna.Study,
        *,
        budget: int | None,
        heartbeat_seconds: float,
        grace_seconds: float,
        max_attempts: int,
        stall_seconds: float = math.inf,
        worker: Worker | None = None,
        discard: Discard = lambda _: True,
        stalled: Callable[[], None] = lambda: None,
        follow: Callable[[int, int, int], None] = lambda *_: None,
    ) -> None:
        self.engine = engine
        self.study = study
        self.budget = budget
        self.terms = Terms(heartbeat_seconds, grace_seconds, max_attempts, stall_seconds)
        self.worker = worker or Worker()
        self.discard = discard
        self.stalled = stalled
        self.follow = follow
        self._waiting = False  # whether there was nothing to claim the last time

    def claim(self) -> Claim | Wait | Finished:
        """Take over an abandoned trial or start a new one; return `Wait` or `Finished` if there is none.

        Raises:
            StorageError: the database is unreachable.
            StudyDeletedError: the study was deleted.
        """
        owner = uuid.uuid4().hex
        storage = unwrap(self.study)
        # After an outage it must be quicker than the grace period: the database may have made the claim before.
        decision = retry(lambda: self._decide(owner), storage.retry_seconds, longest_pause=storage.longest_pause)
        if not isinstance(decision, ClaimedTrial):
            return decision
        storage.fences[decision.trial_id] = partial(claims_sql.state_if_owned, trial_id=decision.trial_id, owner=owner)
        trial, trials = read_trials(self.study, decision.trial_id)
        logger.info("Claimed trial %d.", trial.number, extra={"action": "claimed", "attempt": decision.attempt})
        return Claim(self, trial, owner, decision, trials)

    def _decide(self, owner: str) -> ClaimedTrial | Wait | Finished:
        study, terms = study_id(self.study), self.terms
        if self._waiting and (counts := self._look()) is not None:
            return self._nothing_to_start(counts)
        while True:
            with unwrap(self.study).immediate.connect() as connection:
                decision = claims_sql.decide(
                    connection, study, owner, self.worker, budget=self.budget,
                    grace_seconds=terms.grace_seconds, max_attempts=terms.max_attempts,
                )  # fmt: skip
            if isinstance(decision, ClaimedTrial):
                self._waiting = False
                return decision
            if decision is not None:
                return self._nothing_to_start(decision)
            with self.engine.begin() as connection:
                lock_study(connection, study)
                claims_sql.fail_next_exhausted(connection, study, terms.grace_seconds, terms.max_attempts)

    def _look(self) -> Counts | None:
        """The trials by state if there is nothing to claim; many may be waiting, so this takes no lock."""
        with unwrap(self.study).immediate.connect() as connection:
            counts, abandoned = claims_sql.look(connection, study_id(self.study), self.terms.grace_seconds)
        return None if abandoned or self._may_start(counts) else counts

    def _nothing_to_start(self, counts: Counts) -> Wait | Finished:
        self._waiting = True
        queued = self.budget is None and counts.waiting > 0  # which another process has locked
        return Wait(counts) if counts.running or queued else Finished(counts)

    def _may_start(self, counts: Counts) -> bool:
        if self.budget is None:
            return counts.waiting > 0
        return counts.finished + counts.running < self.budget


class Claim:
    """A trial that this worker owns. As a context manager it sends heartbeats and ends finished or released.

    Optuna's own calls on `trial` (suggest, report, attributes) raise `ClaimLostError` once another worker has taken it
    over. An exception that leaves the context releases the trial immediately, as a failed attempt. A context that ends
    without `finish` or `release` also releases the trial.
    """

    def __init__(
        self, claims: Claims, trial: Trial, owner: str, claimed: ClaimedTrial, trials: Sequence[FrozenTrial]
    ) -> None:
        self.trial = trial
        self.trials_when_claimed = trials
        """All trials of the study when this one was claimed, itself included."""
        self.owner = owner
        self.attempt = claimed.attempt
        self.checkpoint, self.checkpoint_sha256 = claimed.checkpoint, claimed.checkpoint_sha256
        self.pending = claimed.pending
        self._claims = claims
        self._trial_id = claimed.trial_id
        self._ended = False
        self._heartbeat = Heartbeat(
            lambda stage, epoch: self._execute(claims_sql.heartbeat, stage, epoch),
            seconds=claims.terms.heartbeat_seconds,
            stall_seconds=claims.terms.stall_seconds,
            on_stall=self._stalled,
            name=f"heartbeat of trial {trial.number}",
        )
        self.lost = self._heartbeat.lost
        """Set when the trial was taken over: stop working on it."""
        self.deleted = False
        """Whether the trial was found to be deleted when the context was left."""

    def __enter__(self) -> Self:
        self._heartbeat.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._heartbeat.stop()
        if self._ended:
            return
        if self.lost.is_set() or isinstance(error, ClaimLostError | StudyDeletedError):
            self._discard_if_deleted()
            return
        failed = isinstance(error, Exception)  # not Ctrl-C
        self._release_on_exit(claims_sql.fail_claim if failed else claims_sql.release_claim)
        if failed:
            logger.error("Trial %d failed (%s) and was released.", self.trial.number, type(error).__name__)

    def transaction(self) -> AbstractContextManager[None]:
        """A block whose parameters and attributes of the trial are written in one transaction when it ends."""
        return unwrap(self.trial.study).transaction(self._trial_id)

    def progress(self, stage: int, epoch: int) -> None:
        """Record the progress; the next heartbeat sends it, so this is cheap. Raises `ClaimLostError`."""
        self._heartbeat.progress(stage, epoch)
        self._claims.follow(self.trial.number, stage, epoch)
        if self.lost.is_set():
            raise ClaimLostError

    def reported(self, step: int) -> bool:
        """Whether this or an earlier owner has reported at this step; no other worker can while we own the trial."""
        return step in known_trial(self.trial).intermediate_values

    def mark_pending(self, artifact: str) -> None:
        """Note an artifact that is about to be written for the trial. Raises `ClaimLostError`."""
        self._require(claims_sql.mark_pending, artifact)
        self.pending = artifact

    def commit_checkpoint(self, artifact: str, sha256: str) -> None:
        """Make the pending artifact the trial's checkpoint and remove the previous one. Raises `ClaimLostError`."""
        self._require(claims_sql.commit_checkpoint, artifact, sha256)
        self.pending, self.checkpoint, self.checkpoint_sha256 = self.checkpoint, artifact, sha256
        if self.pending and self._claims.discard(self.pending):
            self.pending = None

    def finish(
        self,
        state: TrialState,
        value: float | None = None,
        *,
        attributes: Mapping[str, Any] | None = None,
        reports: Mapping[int, float] | None = None,
        logits: Logits | None = None,
        reason: str | None = None,
    ) -> None:
        """End the trial, with its last attributes, reports and predictions, in one transaction.

        Args:
            state: COMPLETE with its value, PRUNED, or FAIL, which means infeasible.
            value: the value of a complete trial; a pruned one gets its last report, as in Optuna.
            attributes: user attributes of the trial.
            reports: by step, as `trial.report` takes them.
            logits: out-of-fold logits `[posts, criteria]`; see `hpo.database.predictions`.
            reason: why the trial is infeasible.

        Raises:
            ClaimLostError: another worker took the trial over, or another process ended it.
        """
        if state == TrialState.COMPLETE and (value is None or math.isnan(value)):
            raise ValueError(f"A complete trial needs a value, not {value}: end it as infeasible (FAIL, reason=...).")
        study, known = self.trial.study, known_trial(self.trial)
        known.intermediate_values.update(reports or {})
        if state == TrialState.PRUNED:
            value = _last_report(known)
        final = dict(attributes or {})
        if state == TrialState.FAIL:
            final |= {OUTCOME: INFEASIBLE, REASON: reason or "no reason given"}
        values = None if value is None else [float(value)]
        study.sampler.after_trial(study, known, state, values)  # as `Study.tell` does
        self._end(state, values, final, reports, logits)
        known.user_attrs.update(final)

    def release(self) -> None:
        """Release the trial: the next worker that claims one takes it over, in the same attempt."""
        self._ended = True
        self._heartbeat.cancel()
        self._retry(claims_sql.release_claim)

    def _end(
        self,
        state: TrialState,
        values: list[float] | None,
        attributes: Mapping[str, Any],
        reports: Mapping[int, float] | None,
        logits: Logits | None,
    ) -> None:
        artifacts = [artifact for artifact in (self.checkpoint, self.pending) if artifact]

        def also(connection: sa.Connection) -> None:
            if logits is not None:
                predictions.insert(connection, self._trial_id, logits)
            # The claim names the artifacts until they are removed; without any it is deleted in the same transaction.
            if not artifacts:
                claims_sql.delete_claim(connection, self._trial_id, self.owner)

        try:
            unwrap(self.trial.study).end(self._trial_id, state, values, attributes, reports, also=also)
        except ClaimLostError:
            self.lost.set()
            raise
        except UpdateFinishedTrialError as error:
            raise ClaimLostError(f"Another process has ended trial {self.trial.number}.") from error
        self._ended = True
        self._heartbeat.cancel()
        if artifacts and all(self._claims.discard(artifact) for artifact in artifacts):
            self._retry(claims_sql.delete_claim)  # else a reaper retries

    def _execute(self, statement: Callable[..., bool], *values: str | int) -> bool:
        """Run a statement of `claims_sql` on our claim, once; returns whether the claim is still ours."""
        with unwrap(self._claims.study).immediate.connect() as connection:
            return statement(connection, self._trial_id, self.owner, *values)

    def _retry(self, statement: Callable[..., bool], *values: str) -> bool:
        return retry(lambda: self._execute(statement, *values), unwrap(self.trial.study).retry_seconds)

    def _require(self, statement: Callable[..., bool], *values: str) -> None:
        if not self._retry(statement, *values):
            self.lost.set()
            raise ClaimLostError

    def _discard_if_deleted(self) -> None:
        """Remove the artifacts of a trial that was deleted: its claim, which named them, was deleted with it."""
        try:
            with unwrap(self._claims.study).immediate.connect() as connection:
                self.deleted = trial_rows.trial_state(connection, self._trial_id) is None
        except Exception as error:  # noqa: BLE001 (must not mask the original exception)
            logger.debug("Is the trial deleted? %s", type(error).__name__)
        if self.deleted:
            for artifact in (self.checkpoint, self.pending):
                if artifact:
                    self._claims.discard(artifact)

    def _release_on_exit(self, statement: Callable[..., bool]) -> None:
        """Release the trial without a retry: the unreachable database may be why the context ends."""
        try:
            self._execute(statement)
        except Exception as error:  # noqa: BLE001 (must not mask the original exception)
            logger.warning(
                "Trial %d could not be released (%s); another worker takes it over after the grace period.",
                self.trial.number, type(error).__name__, extra={"action": "release_failed"},
            )  # fmt: skip

    def _stalled(self) -> None:
        """Release a trial that makes no progress; called in the heartbeat's thread, while the main thread hangs."""
        seconds = self._claims.terms.stall_seconds
        logger.error(
            "Trial %d finished no epoch for %.0f s: this process ends.", self.trial.number, seconds,
            extra={"action": "stalled"},
        )  # fmt: skip
        if not self.lost.is_set():
            self._release_on_exit(claims_sql.fail_claim)
        self.lost.set()
        self._claims.stalled()


def _last_report(trial: FrozenTrial) -> float | None:
    step = trial.last_step
    value = None if step is None else trial.intermediate_values[step]
    return None if value is None or math.isnan(value) else value
