"""The claims table in SQL: who holds which running trial, who was silent for too long, what is finished.

Every function here is one step of a transaction that the caller owns and, where it decides something, has begun with
the study's advisory lock. Time is the database's: the clocks of workers may differ.
"""

from __future__ import annotations

import json
import logging
import os
import socket
from dataclasses import dataclass, field
from typing import Any

import optuna
import sqlalchemy as sa

from .connection import backend, engine_of
from .optuna_storage import NOW, retry
from .record import ATTEMPTS, INFEASIBLE, OUTCOME, REASON

logger = logging.getLogger(__name__)


# A heartbeat that could not arrive while the database was down is not missing: the grace starts when it is up.
_SILENT = "greatest(c.heartbeat, pg_postmaster_start_time()) < clock_timestamp() - make_interval(secs => :grace)"
_STALE = f"""
SELECT t.trial_id, c.attempt, c.released FROM hpo_claims c JOIN trials t USING (trial_id)
WHERE c.study_id = :study AND t.state = 'RUNNING' AND (c.released OR {_SILENT})
ORDER BY t.number LIMIT 1
FOR UPDATE OF c SKIP LOCKED  -- locked: its owner is writing, so it is alive
"""  # noqa: S608 (constants)
_HOPELESS = f"""
SELECT t.trial_id, c.attempt, c.released FROM hpo_claims c JOIN trials t USING (trial_id)
WHERE c.study_id = :study AND t.state = 'RUNNING'
  AND (c.released AND c.attempt > :most OR c.attempt >= :most AND NOT c.released AND {_SILENT})
FOR UPDATE OF c SKIP LOCKED
"""  # noqa: S608 (constants)
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
RETURNING trial_id, attempt, checkpoint, checkpoint_sha256, pending
"""
_MINE = "trial_id = :trial AND owner = :owner AND NOT released"
BEAT = f"UPDATE hpo_claims SET heartbeat = clock_timestamp(), stage = :stage, epoch = :epoch WHERE {_MINE}"  # noqa: S608
RELEASE = f"UPDATE hpo_claims SET released = true WHERE {_MINE}"  # noqa: S608
FAIL = f"UPDATE hpo_claims SET released = true, attempt = attempt + 1 WHERE {_MINE}"  # noqa: S608
ANNOUNCE = f"UPDATE hpo_claims SET pending = :artifact WHERE {_MINE}"  # noqa: S608
# The old checkpoint takes the new one's place as the artifact to be removed. May be run twice.
KEEP = f"""
UPDATE hpo_claims SET checkpoint = :artifact, checkpoint_sha256 = :sha256,
       pending = CASE WHEN checkpoint IS NOT DISTINCT FROM :artifact THEN pending ELSE checkpoint END
WHERE {_MINE}
"""  # noqa: S608
# A worker killed between finishing a trial and dropping its claim left the row, and maybe artifacts, behind.
_LEFTOVERS = """
SELECT c.trial_id AS trial, c.owner, c.checkpoint, c.pending FROM hpo_claims c JOIN trials t USING (trial_id)
WHERE c.study_id = :study AND t.state NOT IN ('RUNNING', 'WAITING')
  AND c.heartbeat < clock_timestamp() - make_interval(secs => :grace)
"""
_NOTE = """
INSERT INTO trial_user_attributes (trial_id, key, value_json) VALUES (:trial, :key, :value)
ON CONFLICT (trial_id, key) DO UPDATE SET value_json = excluded.value_json
"""
# Only a failed trial's attributes are looked at: a study has thousands of others.
_COUNT = """
SELECT CASE WHEN t.state = 'FAIL' AND EXISTS (
         SELECT 1 FROM trial_user_attributes a
         WHERE a.trial_id = t.trial_id AND a.key = 'hpo:outcome' AND a.value_json = '"infeasible"'
       ) THEN 'INFEASIBLE' ELSE t.state::text END, count(*)
FROM trials t WHERE t.study_id = :study GROUP BY 1
"""
# What `Study.ask` does first, in our transaction. Optuna numbers trials under this lock; scripts may be adding some.
_NUMBERING = "SELECT 1 FROM studies WHERE study_id = :study FOR UPDATE"
_QUEUED = f"""
UPDATE trials SET state = 'RUNNING', datetime_start = {NOW} WHERE trial_id = (
    SELECT trial_id FROM trials WHERE study_id = :study AND state = 'WAITING'
    ORDER BY number LIMIT 1 FOR UPDATE SKIP LOCKED)
RETURNING trial_id
"""  # noqa: S608 (a constant)
_NEW = f"""
INSERT INTO trials (number, study_id, state, datetime_start)
SELECT count(*), :study, 'RUNNING', {NOW} FROM trials WHERE study_id = :study RETURNING trial_id
"""  # noqa: S608 (a constant)
_GIVE_UP = f"UPDATE trials SET state = 'FAIL', datetime_complete = {NOW} WHERE trial_id = :trial RETURNING number"  # noqa: S608 (a constant)
_WORKERS = """
SELECT c.host, c.pid, c.slot, c.gpu, t.number AS trial, c.attempt, c.stage, c.epoch, c.released,
       c.checkpoint IS NOT NULL AS checkpointed,
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
class Held:
    """A trial just claimed, and where its state was saved by an earlier owner."""

    trial_id: int
    attempt: int
    checkpoint: str | None = None
    checkpoint_sha256: str | None = None
    pending: str | None = None


@dataclass(frozen=True)
class LeftBehind:
    """A running trial that nobody works on."""

    trial_id: int
    next_attempt: int


def study_id(study: optuna.Study) -> int:
    """Return the study's key in the database."""
    return study._study_id  # noqa: SLF001 (no public way)


def count_trials(study: optuna.Study) -> Counts:
    """Count the study's trials by state; one cheap query."""

    def read() -> Counts:
        with engine_of(study).connect() as connection:
            return counted(connection, study_id(study))

    return retry(read, backend(study).retry_seconds)


def list_claims(engine: sa.Engine, study: optuna.Study) -> list[dict[str, Any]]:
    """Who holds which running trial.

    Keys: host, pid, slot, gpu, trial, attempt, stage, epoch, released, checkpointed, heartbeat_age, held_seconds.
    """

    def read() -> list[dict[str, Any]]:
        with engine.connect() as connection:
            return [dict(row) for row in connection.execute(sa.text(_WORKERS), {"study": study_id(study)}).mappings()]

    return retry(read, backend(study).retry_seconds)


def counted(connection: sa.Connection, study: int) -> Counts:
    """Count the trials of a study by state."""
    rows = connection.execute(sa.text(_COUNT), {"study": study})
    return Counts(**{"failed" if state == "FAIL" else state.lower(): number for state, number in rows})


def held_by(connection: sa.Connection, owner: str) -> Held | None:
    """Return what `owner` holds already: made by a call whose answer got lost."""
    asked = "SELECT trial_id, attempt, checkpoint, checkpoint_sha256, pending FROM hpo_claims WHERE owner = :owner"
    row = connection.execute(sa.text(asked), {"owner": owner}).first()
    return Held(*row) if row else None


def left_behind(connection: sa.Connection, study: int, grace_seconds: float) -> LeftBehind | None:
    """Return the first running trial that was handed back or whose owner was silent for longer than the grace."""
    asked = {"study": study, "grace": grace_seconds}
    row = connection.execute(sa.text(_STALE), asked).first() or connection.execute(sa.text(_UNCLAIMED), asked).first()
    return LeftBehind(row.trial_id, row.attempt if row.released else row.attempt + 1) if row else None


def hopeless(connection: sa.Connection, study: int, grace_seconds: float, max_attempts: int) -> list[LeftBehind]:
    """Return the trials left behind that have had all their attempts."""
    asked = {"study": study, "grace": grace_seconds, "most": max_attempts}
    rows = connection.execute(sa.text(_HOPELESS), asked)
    return [LeftBehind(row.trial_id, row.attempt if row.released else row.attempt + 1) for row in rows]


def hold(connection: sa.Connection, study: int, trial_id: int, owner: str, attempt: int, worker: Worker) -> Held:
    """Make `owner` the one who works on the trial; where its state is saved stays as it was."""
    who = {"host": worker.host, "pid": worker.pid, "slot": worker.slot, "gpu": worker.gpu}
    what = {"trial": trial_id, "study": study, "owner": owner, "attempt": attempt}
    held = Held(*connection.execute(sa.text(_HOLD), {**who, **what}).one())
    if attempt > 1:
        note(connection, trial_id, ATTEMPTS, attempt)
    return held


def note(connection: sa.Connection, trial_id: int, key: str, value: object) -> None:
    """Set a user attribute of a trial."""
    connection.execute(sa.text(_NOTE), {"trial": trial_id, "key": key, "value": json.dumps(value)})


def started(connection: sa.Connection, study: int) -> int:
    """Take a queued trial, or make one; returns its id."""
    asked = {"study": study}
    connection.execute(sa.text(_NUMBERING), asked)
    queued: int | None = connection.execute(sa.text(_QUEUED), asked).scalar()
    return connection.execute(sa.text(_NEW), asked).scalar_one() if queued is None else queued


def give_up(connection: sa.Connection, left: LeftBehind) -> None:
    """End a trial that no worker survives as infeasible. Its claim stays, as what `leftovers` finds."""
    number = connection.execute(sa.text(_GIVE_UP), {"trial": left.trial_id}).scalar_one()
    reason = f"given up: its worker died or failed {left.next_attempt - 1} times"
    note(connection, left.trial_id, OUTCOME, INFEASIBLE)
    note(connection, left.trial_id, REASON, reason)
    released = "UPDATE hpo_claims SET released = true WHERE trial_id = :trial"  # whoever wakes up finds it lost
    connection.execute(sa.text(released), {"trial": left.trial_id})
    logger.warning("Trial %d: %s.", number, reason, extra={"action": "given_up"})


def leftovers(connection: sa.Connection, study: int, grace_seconds: float) -> list[sa.RowMapping]:
    """Return the claims of finished trials whose owner had no time to drop them: trial, owner, checkpoint, pending."""
    asked = {"study": study, "grace": grace_seconds}
    return list(connection.execute(sa.text(_LEFTOVERS), asked).mappings())
