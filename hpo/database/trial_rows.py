"""Rows of Optuna's tables in plain SQL: a trial is read in one statement and written in one statement per table.

Optuna's own `RDBStorage` takes seven statements to read a trial, and one more before every write. The results equal
what Optuna reads and writes; `tests/hpo/database/test_optuna_storage.py` compares them. Distributions are immutable, so
each is parsed once and shared between trials.

This module knows Optuna's tables by name and touches no Optuna object; `optuna_storage` is the only one that does.
"""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa
from optuna.distributions import json_to_distribution
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.dialects import postgresql

from ..errors import StudyDeletedError
from .locks import lock_study
from .record import FIXED

# Changes with every write into an unfinished trial: `xmin` is the transaction that wrote a row.
_VERSION = " || ' ' || ".join(
    f"(SELECT count(*) || ':' || coalesce(sum(r.xmin::text::bigint), 0) FROM {table} r WHERE r.trial_id = t.trial_id)"  # noqa: S608
    for table in ("trial_params", "trial_intermediate_values", "trial_user_attributes", "trial_system_attributes")
)
_COLUMNS = """
SELECT t.trial_id, t.number, t.state::text AS state, t.datetime_start, t.datetime_complete,
  (SELECT json_agg(json_build_array(v.value, v.value_type) ORDER BY v.objective)
   FROM trial_values v WHERE v.trial_id = t.trial_id) AS outcome,
  (SELECT json_agg(json_build_array(p.param_name, p.param_value, p.distribution_json) ORDER BY p.param_id)
   FROM trial_params p WHERE p.trial_id = t.trial_id) AS parameters,
  (SELECT json_agg(json_build_array(i.step, i.intermediate_value, i.intermediate_value_type)
                   ORDER BY i.trial_intermediate_value_id)
   FROM trial_intermediate_values i WHERE i.trial_id = t.trial_id) AS reports,
  (SELECT json_agg(json_build_array(u.key, u.value_json) ORDER BY u.trial_user_attribute_id)
   FROM trial_user_attributes u WHERE u.trial_id = t.trial_id AND u.key <> ALL(:without)) AS user_attributes,
  (SELECT json_agg(json_build_array(s.key, s.value_json) ORDER BY s.trial_system_attribute_id)
   FROM trial_system_attributes s WHERE s.trial_id = t.trial_id) AS system_attributes
"""
_SELECT_ONE = sa.text(f"{_COLUMNS} FROM trials t WHERE t.trial_id = :trial")
_SELECT_MANY = sa.text(f"""
{_COLUMNS}, now.version FROM trials t
LEFT JOIN unnest(CAST(:unfinished AS integer[]), CAST(:versions AS text[])) AS read (trial_id, version)
  ON read.trial_id = t.trial_id
CROSS JOIN LATERAL (
    SELECT CASE WHEN t.state IN ('RUNNING', 'WAITING') THEN t.xmin::text || ' ' || {_VERSION} END AS version
) AS now
WHERE t.study_id = :study AND (t.trial_id > :after OR t.trial_id = ANY(:known))
  AND (read.version IS NULL OR now.version IS DISTINCT FROM read.version)
ORDER BY t.trial_id
""")  # noqa: S608 (constants)
_INFINITE = {"INF_POS": math.inf, "INF_NEG": -math.inf}
_SPECIAL = _INFINITE | {"NAN": math.nan}
_KINDS = {value: kind for kind, value in _INFINITE.items()}

_distribution = functools.lru_cache(maxsize=4096)(json_to_distribution)


# ---- reading ---------------------------------------------------------------------------------------------------------


def select_trial(connection: sa.Connection, trial_id: int, without: Collection[str] = ()) -> FrozenTrial | None:
    """Read a trial, without the user attributes `without`; None if there is none with this id."""
    row = connection.execute(_SELECT_ONE, {"trial": trial_id, "without": list(without)}).first()
    return None if row is None else _frozen(row)


Versions = dict[int, tuple[str, FrozenTrial]]
"""By id, unfinished trials as they were read last, each with its version in the database."""


def select_trials(
    connection: sa.Connection,
    study_id: int,
    known: Collection[int],
    after: int,
    without: Collection[str],
    before: Versions,
) -> tuple[list[FrozenTrial], bool]:
    """Read the trials of a study whose ids are among `known` or greater than `after`, in the order of their ids.

    User attributes `without` are not read. Of the unfinished trials only those are read that have changed since they
    were read `before`, which is brought up to date: a study may have a thousand of them.

    Returns:
        The trials, and whether any of them was read just now.
    """
    sql_params = {"study": study_id, "known": list(known), "after": after, "without": list(without),
                  "unfinished": list(before), "versions": [version for version, _ in before.values()]}  # fmt: skip
    rows = connection.execute(_SELECT_MANY, sql_params).all()
    changed = {row.trial_id: _frozen(row) for row in rows}
    same = {key: trial for key, (_, trial) in before.items() if key not in changed and (key > after or key in known)}
    for row in rows:
        before.pop(row.trial_id, None)
        if row.version is not None:
            before[row.trial_id] = row.version, changed[row.trial_id]
    trials = changed | same
    return [trials[key] for key in sorted(trials)], bool(rows)


def _count_trials(connection: sa.Connection, study_id: int) -> int:
    """Return how many trials a study has, of any state."""
    return int(connection.execute(_COUNT, {"study": study_id}).scalar_one())


def trial_state(connection: sa.Connection, trial_id: int) -> TrialState | None:
    """Read the state of a trial; None if there is none with this id."""
    state = connection.execute(_STATE, {"trial": trial_id}).scalar()
    return None if state is None else TrialState[state]


def _frozen(row: sa.Row[Any]) -> FrozenTrial:
    parameters = [(name, value, _distribution(as_json)) for name, value, as_json in row.parameters or ()]
    return FrozenTrial(
        number=row.number,
        state=TrialState[row.state],
        value=None,
        values=[_number(*pair) for pair in row.outcome] if row.outcome else None,
        datetime_start=_local(row.datetime_start),
        datetime_complete=_local(row.datetime_complete),
        params={name: distribution.to_external_repr(float(value)) for name, value, distribution in parameters},
        distributions={name: distribution for name, _, distribution in parameters},
        user_attrs={key: json.loads(value) for key, value in row.user_attributes or ()},
        system_attrs={key: json.loads(value) for key, value in row.system_attributes or ()},
        intermediate_values={step: _number(value, kind) for step, value, kind in row.reports or ()},
        trial_id=row.trial_id,
    )


def _number(value: float | None, kind: str) -> float:
    """A number that Optuna stores in two columns, because not every database has infinities. JSON turned 1.0 into 1."""
    return _SPECIAL[kind] if value is None else float(value)


def _local(utc: datetime | None) -> datetime | None:
    return None if utc is None else utc.replace(tzinfo=UTC).astimezone().replace(tzinfo=None)


# ---- writing ---------------------------------------------------------------------------------------------------------


def _upsert(table: str, key: str, *columns: str) -> postgresql.Insert:
    """Return the statement that inserts rows of a trial or updates existing ones; a parameter keeps its first value."""
    insert = postgresql.insert(sa.table(table, *map(sa.column, ("trial_id", key, *columns))))
    conflict = ["trial_id", key]
    if table == "trial_params":
        return insert.on_conflict_do_nothing(index_elements=conflict)
    return insert.on_conflict_do_update(
        index_elements=conflict, set_={column: insert.excluded[column] for column in columns}
    )


_UPSERTS = {
    "trial_params": _upsert("trial_params", "param_name", "param_value", "distribution_json"),
    "trial_user_attributes": _upsert("trial_user_attributes", "key", "value_json"),
    "trial_system_attributes": _upsert("trial_system_attributes", "key", "value_json"),
    "trial_values": _upsert("trial_values", "objective", "value", "value_type"),
    "trial_intermediate_values": _upsert(
        "trial_intermediate_values", "step", "intermediate_value", "intermediate_value_type"
    ),
}
_COUNT = sa.text("SELECT count(*) FROM trials WHERE study_id = :study")
_STATE = sa.text("SELECT state::text FROM trials WHERE trial_id = :trial")
_END = sa.text("""
UPDATE trials SET state = :state, datetime_complete = (clock_timestamp() AT TIME ZONE 'UTC')
WHERE trial_id = :trial AND state IN ('RUNNING', 'WAITING')
""")
_INSERT_STUDY_ATTRIBUTE = sa.text("""
INSERT INTO study_user_attributes (study_id, key, value_json) VALUES (:study, :key, :value)
""")
_SELECT_STUDY_ATTRIBUTE = sa.text("""
SELECT value_json FROM study_user_attributes WHERE study_id = :study AND key = :key
""")
_WRITE_STUDY_ATTRIBUTE = sa.text("""
INSERT INTO study_user_attributes (study_id, key, value_json) VALUES (:study, :key, :value)
ON CONFLICT (study_id, key) DO UPDATE SET value_json = excluded.value_json
""")
_UTC_NOW = sa.text("SELECT clock_timestamp() AT TIME ZONE 'UTC'")
# The lock under which Optuna numbers trials.
_LOCK_NUMBERS = sa.text("SELECT 1 FROM studies WHERE study_id = :study FOR UPDATE")


def lock_numbers(connection: sa.Connection, study_id: int) -> None:
    """Take the lock under which Optuna numbers trials: a script may be adding some with `Study.ask`.

    Raises:
        StudyDeletedError: there is no such study any more.
    """
    if connection.execute(_LOCK_NUMBERS, {"study": study_id}).first() is None:
        raise StudyDeletedError


_ENQUEUE = sa.text("""
INSERT INTO trials (number, study_id, state)
SELECT count(*), :study, 'WAITING' FROM trials WHERE study_id = :study RETURNING trial_id
""")


@dataclass(frozen=True)
class QueuedTrial:
    """A trial that a worker will start."""

    parameters: Mapping[str, Any]
    """Its fixed parameters; others are drawn."""
    attributes: Mapping[str, Any] = field(default_factory=dict)
    """Its user attributes."""


class Batch:
    """Rows to write into one trial; a later row replaces an earlier one with the same key."""

    def __init__(self, trial_id: int) -> None:
        self.trial_id = trial_id
        self._rows: dict[str, dict[str | int, dict[str, Any]]] = {}

    def param(self, name: str, value: float, distribution: str) -> None:
        """Add a parameter: its value in Optuna's internal representation, its distribution as JSON."""
        self._add("trial_params", name, param_name=name, param_value=value, distribution_json=distribution)

    def user_attribute(self, key: str, value: object) -> None:
        """Add a user attribute, any JSON value."""
        self._add("trial_user_attributes", key, key=key, value_json=json.dumps(value))

    def system_attribute(self, key: str, value: object) -> None:
        """Add a system attribute, any JSON value."""
        self._add("trial_system_attributes", key, key=key, value_json=json.dumps(value))

    def outcome(self, objective: int, value: float) -> None:
        """Add the final value of an objective."""
        stored, kind = _stored(value)
        self._add("trial_values", objective, objective=objective, value=stored, value_type=kind)

    def report(self, step: int, value: float) -> None:
        """Add an intermediate value."""
        stored, kind = (None, "NAN") if math.isnan(value) else _stored(value)
        self._add("trial_intermediate_values", step, step=step, intermediate_value=stored, intermediate_value_type=kind)

    def write(self, connection: sa.Connection) -> None:
        """Write all rows, in the caller's transaction. Idempotent."""
        for table, rows in self._rows.items():
            connection.execute(_UPSERTS[table], list(rows.values()))

    def __bool__(self) -> bool:
        return bool(self._rows)

    def _add(self, table: str, row: str | int, /, **columns: object) -> None:
        self._rows.setdefault(table, {})[row] = {"trial_id": self.trial_id, **columns}


def end_trial(connection: sa.Connection, trial_id: int, state: TrialState) -> bool:
    """Give an unfinished trial its final state; False if it is finished."""
    return bool(connection.execute(_END, {"trial": trial_id, "state": state.name}).rowcount)


def insert_study_attribute(connection: sa.Connection, study_id: int, key: str, value: object) -> None:
    """Add a user attribute, any JSON value, to a study that does not have it."""
    connection.execute(_INSERT_STUDY_ATTRIBUTE, {"study": study_id, "key": key, "value": json.dumps(value)})


def select_study_attribute(connection: sa.Connection, study_id: int, key: str) -> Any:  # noqa: ANN401 (any JSON)
    """Return a user attribute of a study, None if it does not have it."""
    stored = connection.scalar(_SELECT_STUDY_ATTRIBUTE, {"study": study_id, "key": key})
    return None if stored is None else json.loads(stored)


def write_study_attribute(connection: sa.Connection, study_id: int, key: str, value: object) -> None:
    """Add or replace a user attribute of a study in the caller's transaction."""
    connection.execute(_WRITE_STUDY_ATTRIBUTE, {"study": study_id, "key": key, "value": json.dumps(value)})


def utc_now(connection: sa.Connection) -> str:
    """Return the time of the database's clock, as ISO 8601 in UTC."""
    now: datetime = connection.execute(_UTC_NOW).scalar_one()
    return now.replace(tzinfo=UTC).isoformat(timespec="seconds")


def enqueue(connection: sa.Connection, study_id: int, trials: Iterable[QueuedTrial]) -> None:
    """Queue trials, as `Study.enqueue_trial` does, but in the caller's transaction.

    Optuna retries its call after a lost answer, which can queue a trial twice.
    """
    lock_numbers(connection, study_id)
    for trial in trials:
        batch = Batch(connection.execute(_ENQUEUE, {"study": study_id}).scalar_one())
        batch.system_attribute(FIXED, dict(trial.parameters))
        for key, value in trial.attributes.items():
            batch.user_attribute(key, value)
        batch.write(connection)


def enqueue_if_complete(engine: sa.Engine, study_id: int, seen: int, trials: Iterable[QueuedTrial]) -> bool:
    """Queue trials that follow from those that were `seen`; False, and nothing is queued, if there are others by now.

    So trials can be read before the study's lock is taken: many may be waiting for it, and reading may take long.

    Args:
        engine: of the study.
        study_id: the study.
        seen: how many trials it had when they were read.
        trials: what is queued.
    """
    with engine.begin() as connection:
        lock_study(connection, study_id)
        if _count_trials(connection, study_id) != seen:
            return False
        enqueue(connection, study_id, trials)
        return True


# Every table of Optuna that refers to a study or to a trial, each before the one that it refers to.
_OF_TRIAL = (
    "trial_heartbeats", "trial_intermediate_values", "trial_params", "trial_system_attributes", "trial_user_attributes",
    "trial_values",
)  # fmt: skip
_OF_STUDY = ("trials", "study_directions", "study_system_attributes", "study_user_attributes", "studies")
_DELETE_STUDIES = [
    *(
        f"DELETE FROM {table} USING trials t WHERE {table}.trial_id = t.trial_id AND t.study_id = ANY(:studies)"  # noqa: S608
        for table in _OF_TRIAL
    ),
    *(f"DELETE FROM {table} WHERE study_id = ANY(:studies)" for table in _OF_STUDY),  # noqa: S608 (constants)
]


def delete_studies(connection: sa.Connection, studies: Collection[int]) -> None:
    """Delete studies with all their trials, in the caller's transaction. Tables that refer to trials follow."""
    for statement in _DELETE_STUDIES:
        connection.execute(sa.text(statement), {"studies": list(studies)})


def _stored(value: float) -> tuple[float | None, str]:
    kind = _KINDS.get(value)
    return (value, "FINITE") if kind is None else (None, kind)
