"""All studies of a database at once, in few statements whatever their number."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from . import claims_sql
from .claims_sql import Counts
from .connection import engine_of
from .optuna_storage import unwrap
from .record import IDENTITY, INFEASIBLE, OUTCOME, READ_BY_LIST
from .retry import retry

if TYPE_CHECKING:
    from optuna.storages import BaseStorage


@dataclass(frozen=True)
class StudyEntry:
    """What the database knows of one study."""

    study_id: int
    name: str
    maximize: bool
    attributes: Mapping[str, Any]
    """Those of `READ_BY_LIST`."""
    counts: Counts = field(default_factory=Counts)
    workers: int = 0
    """Claims that are neither released nor without a heartbeat for the grace period."""
    best: float | None = None
    """The best value of a complete trial."""
    changed: datetime | None = None
    """When a trial last started or ended or a worker last gave a sign of life, in UTC; None if none ever has."""

    @property
    def parent(self) -> str | None:
        """Name of the study that this one confirms or is a part of; None for a study with a file of its own."""
        name, slash, _ = self.name.partition("/")
        return name if slash and self.is_ours else None

    @property
    def is_ours(self) -> bool:
        """Whether hpo created the study; one that was never started counts, so that it can be removed."""
        return IDENTITY in self.attributes or self.counts == Counts(waiting=self.counts.waiting)


_STUDIES = sa.text("""
SELECT s.study_id, s.study_name, coalesce(d.direction::text, 'MINIMIZE') = 'MAXIMIZE' AS maximize,
  (SELECT json_object_agg(a.key, a.value_json) FROM study_user_attributes a
   WHERE a.study_id = s.study_id AND a.key = ANY(:keys)) AS attributes,
  (SELECT CASE WHEN d.direction::text = 'MAXIMIZE' THEN max(v.value) ELSE min(v.value) END
   FROM trials t JOIN trial_values v USING (trial_id)
   WHERE t.study_id = s.study_id AND t.state = 'COMPLETE' AND v.objective = 0) AS best,
  (SELECT greatest(max(t.datetime_start), max(t.datetime_complete)) FROM trials t
   WHERE t.study_id = s.study_id) AS changed
FROM studies s LEFT JOIN study_directions d ON d.study_id = s.study_id AND d.objective = 0
ORDER BY s.study_name
""")
_COUNT_TRIALS = sa.text("""
SELECT t.study_id, CASE WHEN a.trial_id IS NOT NULL THEN 'infeasible' WHEN t.state = 'FAIL' THEN 'failed'
                   ELSE lower(t.state::text) END, count(*)
FROM trials t LEFT JOIN trial_user_attributes a
  ON a.trial_id = t.trial_id AND t.state = 'FAIL' AND a.key = :outcome AND a.value_json = :infeasible
GROUP BY 1, 2
""")
_NOW = sa.text("SELECT clock_timestamp() AT TIME ZONE 'UTC'")


def list_studies(storage: BaseStorage, *, grace_seconds: float) -> tuple[list[StudyEntry], datetime]:
    """All studies by name, those of other programs included, and the time of the database's clock in UTC.

    Args:
        storage: from `open_storage`.
        grace_seconds: a claim without a heartbeat for so long counts as abandoned.

    Raises:
        StorageError: the database is unreachable.
    """

    def read() -> tuple[list[StudyEntry], datetime]:
        with engine_of(storage).connect() as connection:
            now: datetime = connection.execute(_NOW).scalar_one()
            return read_studies(connection, grace_seconds), now.replace(tzinfo=UTC)

    return retry(read, unwrap(storage).retry_seconds)


def _counts(connection: sa.Connection) -> dict[int, Counts]:
    """Trials by state of every study that has any, by its key."""
    by_study: dict[int, dict[str, int]] = {}
    sql_params = {"outcome": OUTCOME, "infeasible": json.dumps(INFEASIBLE)}
    for study, state, number in connection.execute(_COUNT_TRIALS, sql_params):
        by_study.setdefault(study, {})[state] = number
    return {study: Counts(**by_state) for study, by_state in by_study.items()}


def read_studies(connection: sa.Connection, grace_seconds: float) -> list[StudyEntry]:
    """All studies by name, read in the caller's transaction; see `list_studies`."""
    counts = _counts(connection)
    at_work = claims_sql.count_workers(connection, grace_seconds)
    entries = []
    for row in connection.execute(_STUDIES, {"keys": list(READ_BY_LIST)}):
        workers, heartbeat = at_work.get(row.study_id, (0, None))
        ended = None if row.changed is None else row.changed.replace(tzinfo=UTC)
        entries.append(
            StudyEntry(
                row.study_id,
                row.study_name,
                row.maximize,
                {key: json.loads(value) for key, value in (row.attributes or {}).items()},
                counts.get(row.study_id, Counts()),
                workers,
                row.best,
                max((time for time in (ended, heartbeat) if time is not None), default=None),
            )
        )
    return entries
