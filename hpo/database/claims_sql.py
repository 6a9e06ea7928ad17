"""The claims table: its definition, its schema, and every statement on it, each with a function that runs it.

A row says which worker works on a running trial, when its last heartbeat arrived, and where its checkpoint is stored.
Only Optuna's table `trials` says what state a trial is in. A claim is

- *stale* when its last heartbeat is older than the grace period,
- *released* when its owner stopped working on the trial before the end,
- *exhausted* when the trial has had all its attempts,
- *orphaned* when its trial has finished, but its owner was killed before it could delete the row.

Functions that take a connection are one step of the caller's transaction; those that make a decision expect the
study's advisory lock to be held. Times come from the database, because the clocks of workers may differ.
"""

from __future__ import annotations

import json
import logging
import os
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa
from optuna.trial import TrialState

from .optuna_storage import study_id, unwrap
from .record import ATTEMPTS, INFEASIBLE, OUTCOME, REASON
from .retry import retry
from .trial_rows import Batch, lock_numbers

if TYPE_CHECKING:
    import optuna

logger = logging.getLogger(__name__)


# ---- the table -------------------------------------------------------------------------------------------------------

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
    sa.Column("released", sa.Boolean, nullable=False, comment="another worker may take the trial over immediately"),
    sa.Column("checkpoint", sa.Text, comment="artifact with the trial's state after its last saved epoch"),
    sa.Column("checkpoint_sha256", sa.Text),
    sa.Column("pending", sa.Text, comment="artifact being written or removed, so that a kill leaves none unknown"),
)

# Columns that the first version's table lacks.
_ADD_COLUMNS = [
    sa.text(f"ALTER TABLE hpo_claims ADD COLUMN IF NOT EXISTS {column} text")
    for column in ("checkpoint", "checkpoint_sha256", "pending")
]

# The columns are added in order: if the last one exists, all do.
_IS_CURRENT = sa.text("SELECT 1 FROM pg_attribute WHERE attrelid = to_regclass('hpo_claims') AND attname = 'pending'")


def create_table(connection: sa.Connection) -> None:
    """Create the table, or add the columns that an earlier version's lacks."""
    metadata.create_all(connection)
    for statement in _ADD_COLUMNS:
        connection.execute(statement)


def table_is_current(connection: sa.Connection) -> bool:
    """Whether the table exists with all its columns. It is created last, so Optuna's tables then exist as well."""
    return connection.execute(_IS_CURRENT).first() is not None


# ---- values ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Worker:
    """The process that claims trials, as `hpo status` shows it."""

    host: str = field(default_factory=socket.gethostname)
    pid: int = field(default_factory=os.getpid)
    slot: int = 0
    gpu: str | None = None


@dataclass(frozen=True)
class Counts:
    """Trials by state. `failed` ones were failed by something other than hpo and do not count as finished."""

    complete: int = 0
    pruned: int = 0
    infeasible: int = 0
    failed: int = 0
    running: int = 0
    waiting: int = 0

    @property
    def finished(self) -> int:
        """The number that is compared with the budget."""
        return self.complete + self.pruned + self.infeasible


@dataclass(frozen=True)
class ClaimedTrial:
    """A trial that was just claimed, with the artifacts that earlier owners wrote for it."""

    trial_id: int
    attempt: int
    checkpoint: str | None = None
    checkpoint_sha256: str | None = None
    pending: str | None = None


@dataclass(frozen=True)
class AbandonedTrial:
    """A running trial that no worker works on: its claim is stale or released, or it has none."""

    trial_id: int
    next_attempt: int


# ---- claiming --------------------------------------------------------------------------------------------------------

# If the answer to a commit was lost, the retry finds the claim by its owner, which is random.
_CLAIM_OF_OWNER = sa.text("""
SELECT trial_id, attempt, checkpoint, checkpoint_sha256, pending FROM hpo_claims WHERE owner = :owner
""")


def claim_of_owner(connection: sa.Connection, owner: str) -> ClaimedTrial | None:
    """Return the trial that `owner` has already claimed, if any."""
    row = connection.execute(_CLAIM_OF_OWNER, {"owner": owner}).first()
    return ClaimedTrial(*row) if row else None


# No heartbeat can arrive while the database is down, so the grace period starts again when it comes up.
_IS_SILENT = "greatest(c.heartbeat, pg_postmaster_start_time()) < clock_timestamp() - make_interval(secs => :grace)"

# A locked claim is skipped: its owner is writing, so it is alive.
_NEXT_STALE_OR_RELEASED_CLAIM = sa.text(f"""
SELECT t.trial_id, c.attempt, c.released FROM hpo_claims c JOIN trials t USING (trial_id)
WHERE c.study_id = :study AND t.state = 'RUNNING' AND (c.released OR {_IS_SILENT})
ORDER BY t.number LIMIT 1
FOR UPDATE OF c SKIP LOCKED
""")  # noqa: S608 (constants)

# Trials without a claim were started, and abandoned, by something other than hpo.
_NEXT_UNCLAIMED_TRIAL = sa.text("""
SELECT t.trial_id, 1 AS attempt, false AS released FROM trials t
WHERE t.study_id = :study AND t.state = 'RUNNING'
  AND NOT EXISTS (SELECT 1 FROM hpo_claims c WHERE c.trial_id = t.trial_id)
  AND t.datetime_start < (clock_timestamp() AT TIME ZONE 'UTC') - make_interval(secs => :grace)
ORDER BY t.number LIMIT 1
""")


def next_abandoned_trial(connection: sa.Connection, study: int, grace_seconds: float) -> AbandonedTrial | None:
    """Return the first running trial that can be taken over."""
    sql_params = {"study": study, "grace": grace_seconds}
    row = connection.execute(_NEXT_STALE_OR_RELEASED_CLAIM, sql_params).first()
    row = row or connection.execute(_NEXT_UNCLAIMED_TRIAL, sql_params).first()
    return _abandoned(row) if row else None


# The trial's old claim, if there is one, becomes the new owner's; its artifacts are kept.
_UPSERT_CLAIM = sa.text("""
INSERT INTO hpo_claims (trial_id, study_id, owner, host, pid, slot, gpu, claimed_at, heartbeat, attempt, stage, epoch,
                        released)
VALUES (:trial, :study, :owner, :host, :pid, :slot, :gpu, clock_timestamp(), clock_timestamp(), :attempt, 0, 0, false)
ON CONFLICT (trial_id) DO UPDATE SET owner = excluded.owner, host = excluded.host, pid = excluded.pid,
    slot = excluded.slot, gpu = excluded.gpu, claimed_at = excluded.claimed_at, heartbeat = excluded.heartbeat,
    attempt = excluded.attempt, released = false
RETURNING trial_id, attempt, checkpoint, checkpoint_sha256, pending
""")


def upsert_claim(
    connection: sa.Connection, study: int, trial_id: int, owner: str, attempt: int, worker: Worker
) -> ClaimedTrial:
    """Claim the trial for `owner`; replaces an earlier claim."""
    process = {"host": worker.host, "pid": worker.pid, "slot": worker.slot, "gpu": worker.gpu}
    sql_params = {"trial": trial_id, "study": study, "owner": owner, "attempt": attempt, **process}
    claimed = ClaimedTrial(*connection.execute(_UPSERT_CLAIM, sql_params).one())
    if attempt > 1:
        _set_attributes(connection, trial_id, {ATTEMPTS: attempt})
    return claimed


# Queued trials are started first, in their order.
_START_QUEUED_TRIAL = sa.text("""
UPDATE trials SET state = 'RUNNING', datetime_start = (clock_timestamp() AT TIME ZONE 'UTC') WHERE trial_id = (
    SELECT trial_id FROM trials WHERE study_id = :study AND state = 'WAITING'
    ORDER BY number LIMIT 1 FOR UPDATE SKIP LOCKED)
RETURNING trial_id
""")

_INSERT_TRIAL = sa.text("""
INSERT INTO trials (number, study_id, state, datetime_start)
SELECT count(*), :study, 'RUNNING', (clock_timestamp() AT TIME ZONE 'UTC') FROM trials WHERE study_id = :study
RETURNING trial_id
""")


def start_trial(connection: sa.Connection, study: int) -> int:
    """Start a queued trial, or create one; returns its id."""
    sql_params = {"study": study}
    lock_numbers(connection, study)
    queued: int | None = connection.execute(_START_QUEUED_TRIAL, sql_params).scalar()
    return connection.execute(_INSERT_TRIAL, sql_params).scalar_one() if queued is None else queued


# Attributes are read for failed trials only: reading them for all would take long.
_COUNT_TRIALS = sa.text("""
SELECT CASE WHEN t.state = 'FAIL' AND EXISTS (
         SELECT 1 FROM trial_user_attributes a
         WHERE a.trial_id = t.trial_id AND a.key = :outcome AND a.value_json = :infeasible
       ) THEN 'INFEASIBLE' ELSE t.state::text END, count(*)
FROM trials t WHERE t.study_id = :study GROUP BY 1
""")


def count_by_state(connection: sa.Connection, study: int) -> Counts:
    """Count the trials of a study by state."""
    sql_params = {"study": study, "outcome": OUTCOME, "infeasible": json.dumps(INFEASIBLE)}
    rows = connection.execute(_COUNT_TRIALS, sql_params)
    return Counts(**{"failed" if state == "FAIL" else state.lower(): number for state, number in rows})


# ---- changing a claim: every statement checks that it still belongs to the owner -------------------------------------

_IS_OWNED = "trial_id = :trial AND owner = :owner AND NOT released"

# The claim stays locked until the transaction ends: a worker that takes the trial over waits for our write.
_STATE_IF_OWNED = sa.text("""
SELECT t.state::text FROM hpo_claims c JOIN trials t USING (trial_id)
WHERE c.trial_id = :trial AND c.owner = :owner AND NOT c.released FOR SHARE OF c
""")


def state_if_owned(connection: sa.Connection, trial_id: int, owner: str) -> TrialState | None:
    """Lock the claim and return the trial's state; None if the claim is lost."""
    state = connection.execute(_STATE_IF_OWNED, {"trial": trial_id, "owner": owner}).scalar()
    return None if state is None else TrialState[state]


_HEARTBEAT = sa.text(
    f"UPDATE hpo_claims SET heartbeat = clock_timestamp(), stage = :stage, epoch = :epoch WHERE {_IS_OWNED}"  # noqa: S608
)


def heartbeat(connection: sa.Connection, trial_id: int, owner: str, stage: int, epoch: int) -> bool:
    """Record that the owner is alive, and its progress; False if the claim is lost."""
    return _update(connection, _HEARTBEAT, trial_id, owner, stage=stage, epoch=epoch)


# Recorded before the artifact is written: if the worker is killed while writing, the file is still known.
_MARK_PENDING = sa.text(f"UPDATE hpo_claims SET pending = :artifact WHERE {_IS_OWNED}")  # noqa: S608


def mark_pending(connection: sa.Connection, trial_id: int, owner: str, artifact: str) -> bool:
    """Record an artifact that is about to be written; False if the claim is lost."""
    return _update(connection, _MARK_PENDING, trial_id, owner, artifact=artifact)


# The old checkpoint becomes the pending artifact, to be removed. Idempotent.
_COMMIT_CHECKPOINT = sa.text(f"""
UPDATE hpo_claims SET checkpoint = :artifact, checkpoint_sha256 = :sha256,
       pending = CASE WHEN checkpoint IS NOT DISTINCT FROM :artifact THEN pending ELSE checkpoint END
WHERE {_IS_OWNED}
""")  # noqa: S608 (a constant)


def commit_checkpoint(connection: sa.Connection, trial_id: int, owner: str, artifact: str, sha256: str) -> bool:
    """Make the pending artifact the trial's checkpoint; False if the claim is lost."""
    return _update(connection, _COMMIT_CHECKPOINT, trial_id, owner, artifact=artifact, sha256=sha256)


_RELEASE_CLAIM = sa.text(f"UPDATE hpo_claims SET released = true WHERE {_IS_OWNED}")  # noqa: S608


def release_claim(connection: sa.Connection, trial_id: int, owner: str) -> bool:
    """Let another worker take the trial over immediately, in the same attempt; False if the claim is lost."""
    return _update(connection, _RELEASE_CLAIM, trial_id, owner)


# The claim gets the number of the next attempt.
_FAIL_CLAIM = sa.text(f"UPDATE hpo_claims SET released = true, attempt = attempt + 1 WHERE {_IS_OWNED}")  # noqa: S608


def fail_claim(connection: sa.Connection, trial_id: int, owner: str) -> bool:
    """Let another worker take the trial over immediately, as the next attempt; False if the claim is lost."""
    return _update(connection, _FAIL_CLAIM, trial_id, owner)


_DELETE_CLAIM = sa.text("DELETE FROM hpo_claims WHERE trial_id = :trial AND owner = :owner")


def delete_claim(connection: sa.Connection, trial_id: int, owner: str) -> bool:
    """Delete the claim of a finished trial whose artifacts are removed; False if there is no such claim."""
    return _update(connection, _DELETE_CLAIM, trial_id, owner)


# ---- cleaning up after workers that were killed ----------------------------------------------------------------------

# A released claim has the number of its next attempt, a stale one the number of its last.
_EXHAUSTED_CLAIMS = sa.text(f"""
SELECT t.trial_id, c.attempt, c.released FROM hpo_claims c JOIN trials t USING (trial_id)
WHERE c.study_id = :study AND t.state = 'RUNNING'
  AND ((c.released AND c.attempt > :max_attempts)
       OR (NOT c.released AND c.attempt >= :max_attempts AND {_IS_SILENT}))
FOR UPDATE OF c SKIP LOCKED
""")  # noqa: S608 (constants)


def exhausted_claims(
    connection: sa.Connection, study: int, grace_seconds: float, max_attempts: int
) -> list[AbandonedTrial]:
    """Return the abandoned trials that have had all their attempts."""
    sql_params = {"study": study, "grace": grace_seconds, "max_attempts": max_attempts}
    return [_abandoned(row) for row in connection.execute(_EXHAUSTED_CLAIMS, sql_params)]


_FAIL_TRIAL = sa.text("""
UPDATE trials SET state = 'FAIL', datetime_complete = (clock_timestamp() AT TIME ZONE 'UTC') WHERE trial_id = :trial
RETURNING number
""")

# An owner that wakes up finds its claim lost. The row stays until its artifacts are removed: it is orphaned now.
_RELEASE_ANY_CLAIM = sa.text("UPDATE hpo_claims SET released = true WHERE trial_id = :trial")


def fail_exhausted(connection: sa.Connection, trial: AbandonedTrial) -> None:
    """End a trial that has had all its attempts as infeasible."""
    number = connection.execute(_FAIL_TRIAL, {"trial": trial.trial_id}).scalar_one()
    reason = f"attempts exhausted: its worker died or failed {trial.next_attempt - 1} times"
    _set_attributes(connection, trial.trial_id, {OUTCOME: INFEASIBLE, REASON: reason})
    connection.execute(_RELEASE_ANY_CLAIM, {"trial": trial.trial_id})
    logger.warning("Trial %d: %s.", number, reason, extra={"action": "attempts_exhausted"})


# The grace period gives an owner time to delete its claim itself.
_ORPHANED_CLAIMS = sa.text("""
SELECT c.trial_id AS trial, c.owner, c.checkpoint, c.pending FROM hpo_claims c JOIN trials t USING (trial_id)
WHERE c.study_id = :study AND t.state NOT IN ('RUNNING', 'WAITING')
  AND c.heartbeat < clock_timestamp() - make_interval(secs => :grace)
""")


def orphaned_claims(connection: sa.Connection, study: int, grace_seconds: float) -> list[sa.RowMapping]:
    """Return the claims of finished trials, with the keys trial, owner, checkpoint and pending."""
    return list(connection.execute(_ORPHANED_CLAIMS, {"study": study, "grace": grace_seconds}).mappings())


# ---- what status shows -----------------------------------------------------------------------------------------------

_LIST_CLAIMS = sa.text("""
SELECT c.host, c.pid, c.slot, c.gpu, t.number AS trial, c.attempt, c.stage, c.epoch, c.released,
       c.checkpoint IS NOT NULL AS checkpointed,
       extract(epoch FROM clock_timestamp() - c.heartbeat)::float AS heartbeat_age,
       extract(epoch FROM clock_timestamp() - c.claimed_at)::float AS held_seconds
FROM hpo_claims c JOIN trials t USING (trial_id)
WHERE c.study_id = :study AND t.state = 'RUNNING' ORDER BY c.host, c.slot, c.pid
""")


def list_claims(engine: sa.Engine, study: optuna.Study) -> list[dict[str, Any]]:
    """Return the claims of the study's running trials.

    Keys: host, pid, slot, gpu, trial, attempt, stage, epoch, released, checkpointed, heartbeat_age, held_seconds.
    """

    def read() -> list[dict[str, Any]]:
        with engine.connect() as connection:
            return [dict(row) for row in connection.execute(_LIST_CLAIMS, {"study": study_id(study)}).mappings()]

    return retry(read, unwrap(study).retry_seconds)


def count_trials(study: optuna.Study) -> Counts:
    """Count the study's trials by state, in one cheap query."""
    storage = unwrap(study)

    def read() -> Counts:
        with storage.engine.connect() as connection:
            return count_by_state(connection, study_id(study))

    return retry(read, storage.retry_seconds)


# ---- all studies, and the end of one ---------------------------------------------------------------------------------

_COUNT_WORKERS = sa.text(f"""
SELECT c.study_id, count(*) FILTER (WHERE NOT c.released AND NOT ({_IS_SILENT})), max(c.heartbeat)
FROM hpo_claims c JOIN trials t USING (trial_id) WHERE t.state = 'RUNNING' GROUP BY 1
""")  # noqa: S608 (constants)


def count_workers(connection: sa.Connection, grace_seconds: float) -> dict[int, tuple[int, datetime]]:
    """Count the workers at work on every study that has claims, and their last heartbeat, by the study's key."""
    rows = connection.execute(_COUNT_WORKERS, {"grace": grace_seconds})
    return {study: (workers, heartbeat) for study, workers, heartbeat in rows}


_ARTIFACTS = sa.text("SELECT checkpoint, pending FROM hpo_claims WHERE study_id = ANY(:studies)")


def list_artifacts(connection: sa.Connection, studies: Sequence[int]) -> list[str]:
    """Return every artifact that the claims of these studies name, finished trials included."""
    rows = connection.execute(_ARTIFACTS, {"studies": list(studies)})
    return sorted({artifact for row in rows for artifact in row if artifact})


_DELETE_CLAIMS = sa.text("DELETE FROM hpo_claims WHERE study_id = ANY(:studies)")


def delete_claims(connection: sa.Connection, studies: Sequence[int]) -> None:
    """Delete all claims of these studies, whoever owns them; their artifacts must be removed before."""
    connection.execute(_DELETE_CLAIMS, {"studies": list(studies)})


# ---- shared ----------------------------------------------------------------------------------------------------------


def _set_attributes(connection: sa.Connection, trial_id: int, attributes: Mapping[str, object]) -> None:
    batch = Batch(trial_id)
    for key, value in attributes.items():
        batch.user_attribute(key, value)
    batch.write(connection)


def _update(connection: sa.Connection, statement: sa.TextClause, trial_id: int, owner: str, **values: object) -> bool:
    """Run a statement on one claim; returns whether there was a row."""
    return bool(connection.execute(statement, {"trial": trial_id, "owner": owner, **values}).rowcount)


def _abandoned(row: sa.Row[Any]) -> AbandonedTrial:
    return AbandonedTrial(row.trial_id, row.attempt if row.released else row.attempt + 1)
