"""The claims table: its definition, its schema, and every statement on it, each with a function that runs it.

A row says which worker works on a running trial, when its last heartbeat arrived, and where its checkpoint is stored.
Only Optuna's table `trials` says what state a trial is in. A claim is

- *stale* when its last heartbeat is older than the grace period,
- *released* when its owner stopped working on the trial before the end,
- *exhausted* when the trial has had all its attempts,
- *orphaned* when its trial has finished, but its owner was killed before it could delete the row.

Functions that take a connection are one step of the caller's transaction, and those that make a decision expect the
study's advisory lock to be held; but `decide` is a transaction of its own that takes the lock, and `look` needs none.
Times come from the database, because the clocks of workers may differ.
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

from ..errors import StudyDeletedError
from .locks import LOCK_STUDY
from .optuna_storage import study_id, unwrap
from .record import ATTEMPTS, INFEASIBLE, OUTCOME, REASON
from .retry import retry
from .trial_rows import Batch

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
# The reference makes Postgres delete the row with the trial, whoever deletes it: Optuna knows nothing of this table.
_IS_REFERENCE = "conrelid = to_regclass('hpo_claims') AND contype = 'f'"
_HAS_REFERENCE = sa.text(f"SELECT EXISTS (SELECT FROM pg_constraint WHERE {_IS_REFERENCE})")  # noqa: S608 (a constant)
_ADD_REFERENCE = [
    sa.text("DELETE FROM hpo_claims c WHERE NOT EXISTS (SELECT FROM trials t WHERE t.trial_id = c.trial_id)"),
    sa.text("ALTER TABLE hpo_claims ADD FOREIGN KEY (trial_id) REFERENCES trials (trial_id) ON DELETE CASCADE"),
]

# The columns are added in order: if the last one exists, all do. Only the table's owner can add the reference.
_IS_CURRENT = sa.text(f"""
SELECT FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid
WHERE c.oid = to_regclass('hpo_claims') AND a.attname = 'pending'
  AND (NOT pg_has_role(c.relowner, 'USAGE') OR EXISTS (SELECT FROM pg_constraint WHERE {_IS_REFERENCE}))
""")  # noqa: S608 (a constant)


def create_table(connection: sa.Connection) -> None:
    """Create the table, or add what an earlier version's lacks; Optuna's tables must exist."""
    metadata.create_all(connection)
    for statement in _ADD_COLUMNS:
        connection.execute(statement)
    if not connection.scalar(_HAS_REFERENCE):
        for statement in _ADD_REFERENCE:
            connection.execute(statement)


def table_is_current(connection: sa.Connection) -> bool:
    """Whether the table exists as this version creates it. It is created after Optuna's tables, so these exist, too."""
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

    @property
    def ended(self) -> int:
        """Trials that nobody will work on again."""
        return self.finished + self.failed

    @property
    def total(self) -> int:
        """Trials in every state."""
        return self.ended + self.running + self.waiting


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

# No heartbeat can arrive while the database is down, so the grace period starts again when it comes up.
_SILENCE = "clock_timestamp() - make_interval(secs => :grace)"
_IS_SILENT = f"(c.heartbeat < {_SILENCE} AND pg_postmaster_start_time() < {_SILENCE})"

# Running trials that can be taken over. Trials without a claim were started, and abandoned, by something other than
# hpo. A claim whose row is locked is skipped: its owner is writing, so it is alive, or else its session ends soon
# (`limits`).
_STALE = f"""
    SELECT t.trial_id, t.number, CASE WHEN c.released THEN c.attempt ELSE c.attempt + 1 END AS next_attempt
    FROM hpo_claims c JOIN trials t USING (trial_id)
    WHERE c.study_id = :study AND t.state = 'RUNNING' AND (c.released OR {_IS_SILENT})
"""  # noqa: S608 (constants)
_UNCLAIMED = """
    SELECT t.trial_id, t.number, 2 AS next_attempt FROM trials t
    WHERE t.study_id = :study AND t.state = 'RUNNING'
      AND NOT EXISTS (SELECT FROM hpo_claims c WHERE c.trial_id = t.trial_id)
      AND t.datetime_start < (clock_timestamp() AT TIME ZONE 'UTC') - make_interval(secs => :grace)
"""
_ABANDONED = f"""
stale AS ({_STALE} ORDER BY t.number LIMIT 1 FOR UPDATE OF c SKIP LOCKED),
unclaimed AS ({_UNCLAIMED} AND NOT EXISTS (SELECT FROM stale) ORDER BY t.number LIMIT 1),
abandoned AS (SELECT * FROM stale UNION ALL SELECT * FROM unclaimed)
"""  # noqa: S608 (constants)

# Attributes are read for failed trials only: reading them for all would take long.
_COUNTED = """
SELECT count(*) AS total, count(*) FILTER (WHERE outcome = 'COMPLETE') AS complete,
       count(*) FILTER (WHERE outcome = 'PRUNED') AS pruned,
       count(*) FILTER (WHERE outcome = 'INFEASIBLE') AS infeasible,
       count(*) FILTER (WHERE outcome = 'FAIL') AS failed, count(*) FILTER (WHERE outcome = 'RUNNING') AS running,
       count(*) FILTER (WHERE outcome = 'WAITING') AS waiting
FROM (
    SELECT CASE WHEN t.state = 'FAIL' AND EXISTS (
               SELECT FROM trial_user_attributes a
               WHERE a.trial_id = t.trial_id AND a.key = :outcome AND a.value_json = :infeasible
           ) THEN 'INFEASIBLE' ELSE t.state::text END AS outcome
    FROM trials t WHERE t.study_id = :study
) AS outcomes
"""
_COUNTS = "complete, pruned, infeasible, failed, running, waiting"

# The whole decision is one message to the server, and one transaction: from the lock to the commit nothing waits for
# the worker, however far away or frozen it is. Every statement sees what was committed before it began, so the third
# one sees all decisions that were made before ours.
#
# The second lock is the one under which Optuna numbers trials: a script may be adding some with `Study.ask`.
#
# `mine`: if the answer to a decision was lost, the retry finds the claim by its owner, which is random. A trial's old
# claim, if there is one, becomes the new owner's, and its artifacts are kept. Queued trials are started first.
_DECIDE = sa.text(f"""
{LOCK_STUDY};
SELECT FROM studies WHERE study_id = :study FOR UPDATE;
WITH mine AS (
    SELECT trial_id, attempt, checkpoint, checkpoint_sha256, pending FROM hpo_claims WHERE owner = :owner
), {_ABANDONED}, counted AS ({_COUNTED}), may_start AS (
    SELECT FROM counted WHERE NOT EXISTS (SELECT FROM mine) AND NOT EXISTS (SELECT FROM abandoned)
      AND EXISTS (SELECT FROM studies WHERE study_id = :study)
      AND CASE WHEN :budget IS NULL THEN waiting > 0 ELSE complete + pruned + infeasible + running < :budget END
), queued AS (
    UPDATE trials SET state = 'RUNNING', datetime_start = (clock_timestamp() AT TIME ZONE 'UTC') WHERE trial_id = (
        SELECT trial_id FROM trials
        WHERE study_id = :study AND state = 'WAITING' AND EXISTS (SELECT FROM may_start)
        ORDER BY number LIMIT 1 FOR UPDATE SKIP LOCKED)
    RETURNING trial_id
), inserted AS (
    INSERT INTO trials (number, study_id, state, datetime_start)
    SELECT total, :study, 'RUNNING', (clock_timestamp() AT TIME ZONE 'UTC') FROM counted
    WHERE :budget IS NOT NULL AND EXISTS (SELECT FROM may_start) AND NOT EXISTS (SELECT FROM queued)
    RETURNING trial_id
), chosen AS (
    SELECT trial_id, next_attempt AS attempt FROM abandoned
    WHERE next_attempt <= :max_attempts AND NOT EXISTS (SELECT FROM mine)
    UNION ALL SELECT trial_id, 1 FROM queued
    UNION ALL SELECT trial_id, 1 FROM inserted
), claimed AS (
    INSERT INTO hpo_claims (trial_id, study_id, owner, host, pid, slot, gpu, claimed_at, heartbeat, attempt, stage,
                            epoch, released)
    SELECT trial_id, :study, :owner, :host, :pid, :slot, :gpu, clock_timestamp(), clock_timestamp(), attempt, 0,
           0, false
    FROM chosen
    ON CONFLICT (trial_id) DO UPDATE SET owner = excluded.owner, host = excluded.host, pid = excluded.pid,
        slot = excluded.slot, gpu = excluded.gpu, claimed_at = excluded.claimed_at, heartbeat = excluded.heartbeat,
        attempt = excluded.attempt, released = false
    RETURNING trial_id, attempt, checkpoint, checkpoint_sha256, pending
), noted AS (
    INSERT INTO trial_user_attributes (trial_id, key, value_json)
    SELECT trial_id, :attempts, attempt::text FROM chosen WHERE attempt > 1
    ON CONFLICT (trial_id, key) DO UPDATE SET value_json = excluded.value_json
)
SELECT c.trial_id, c.attempt, c.checkpoint, c.checkpoint_sha256, c.pending, {_COUNTS},
       EXISTS (SELECT FROM abandoned WHERE next_attempt > :max_attempts) AS exhausted,
       EXISTS (SELECT FROM studies WHERE study_id = :study) AS study_exists
FROM counted LEFT JOIN (SELECT * FROM claimed UNION ALL SELECT * FROM mine) c ON true
""")  # noqa: S608 (constants)


def decide(
    connection: sa.Connection,
    study: int,
    owner: str,
    worker: Worker,
    *,
    budget: int | None,
    grace_seconds: float,
    max_attempts: int,
) -> ClaimedTrial | Counts | None:
    """Claim a trial for `owner`: take one over, or start one; in one round trip.

    Args:
        connection: of an engine that sends what it executes as a transaction of its own.
        study: the study's key.
        owner: random; the same again if the answer was lost.
        worker: the process that claims.
        budget: the number of trials to finish; None: those that are queued.
        grace_seconds: the silence after which a trial is taken over.
        max_attempts: the attempts after which it is not.

    Returns:
        The claimed trial; or, if there is nothing to claim, the trials by state; or None: a trial has had all its
        attempts and must be failed (`fail_next_exhausted`) before anything can be decided.

    Raises:
        StudyDeletedError: there is no such study any more.
    """
    process = {"host": worker.host, "pid": worker.pid, "slot": worker.slot, "gpu": worker.gpu}
    terms = {"budget": budget, "grace": grace_seconds, "max_attempts": max_attempts, "attempts": ATTEMPTS}
    row = connection.execute(_DECIDE, {"owner": owner, **process, **terms, **_counting(study)}).one()
    if not row.study_exists:
        raise StudyDeletedError
    if row.trial_id is not None:
        return ClaimedTrial(row.trial_id, row.attempt, row.checkpoint, row.checkpoint_sha256, row.pending)
    return None if row.exhausted else _counts(row)


_LOOK = sa.text(f"""
SELECT {_COUNTS}, EXISTS ({_STALE}) OR EXISTS ({_UNCLAIMED}) AS abandoned FROM ({_COUNTED}) AS counted
""")  # noqa: S608 (constants)


def look(connection: sa.Connection, study: int, grace_seconds: float) -> tuple[Counts, bool]:
    """Count the trials by state, and whether one is abandoned, without a lock."""
    row = connection.execute(_LOOK, {"grace": grace_seconds, **_counting(study)}).one()
    return _counts(row), row.abandoned


_COUNT_TRIALS = sa.text(_COUNTED)


def count_by_state(connection: sa.Connection, study: int) -> Counts:
    """Count the trials of a study by state."""
    return _counts(connection.execute(_COUNT_TRIALS, _counting(study)).one())


def _counting(study: int) -> dict[str, object]:
    return {"study": study, "outcome": OUTCOME, "infeasible": json.dumps(INFEASIBLE)}


def _counts(row: sa.Row[Any]) -> Counts:
    return Counts(**{name: getattr(row, name) for name in _COUNTS.split(", ")})


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

_NEXT_ABANDONED = sa.text(f"WITH {_ABANDONED} SELECT trial_id, next_attempt FROM abandoned")  # noqa: S608 (constants)


def fail_next_exhausted(connection: sa.Connection, study: int, grace_seconds: float, max_attempts: int) -> bool:
    """End the first abandoned trial as infeasible if it has had all its attempts; False if it has some left.

    For workers that claim: they take over or fail abandoned trials in the order of their numbers.
    """
    row = connection.execute(_NEXT_ABANDONED, {"study": study, "grace": grace_seconds}).first()
    if row is None or row.next_attempt <= max_attempts:
        return False
    fail_exhausted(connection, AbandonedTrial(row.trial_id, row.next_attempt))
    return True


_EXHAUSTED_CLAIMS = sa.text(f"""
SELECT trial_id, next_attempt FROM ({_STALE} FOR UPDATE OF c SKIP LOCKED) AS stale WHERE next_attempt > :max_attempts
""")  # noqa: S608 (constants)


def exhausted_claims(
    connection: sa.Connection, study: int, grace_seconds: float, max_attempts: int
) -> list[AbandonedTrial]:
    """Return the abandoned trials that have had all their attempts."""
    sql_params = {"study": study, "grace": grace_seconds, "max_attempts": max_attempts}
    return [AbandonedTrial(*row) for row in connection.execute(_EXHAUSTED_CLAIMS, sql_params)]


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


def is_worked_on(row: Mapping[str, Any], grace_seconds: float) -> bool:
    """Whether the worker of a row of `list_claims` gives signs of life."""
    return not row["released"] and bool(row["heartbeat_age"] < grace_seconds)


def list_claims(engine: sa.Engine, study: optuna.Study) -> list[dict[str, Any]]:
    """Return the claims of the study's running trials.

    Keys: host, pid, slot, gpu, trial, attempt, stage, epoch, released, checkpointed, heartbeat_age, held_seconds.
    """

    def read() -> list[dict[str, Any]]:
        with engine.connect() as connection:
            return [dict(row) for row in connection.execute(_LIST_CLAIMS, {"study": study_id(study)}).mappings()]

    return retry(read, unwrap(study).retry_seconds)


def count_trials(study: optuna.Study) -> Counts:
    """Count the study's trials by state, in one cheap query.

    Raises:
        StorageError: the database is unreachable.
        StudyDeletedError: the study was deleted.
    """
    storage = unwrap(study)

    def read() -> Counts:
        with storage.engine.connect() as connection:
            return count_by_state(connection, study_id(study))

    counts = retry(read, storage.retry_seconds)
    if counts == Counts():
        storage.get_study_name_from_id(study_id(study))  # raises StudyDeletedError
    return counts


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
