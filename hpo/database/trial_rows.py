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
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa
from optuna.distributions import BaseDistribution, json_to_distribution
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.dialects import postgresql

from ..errors import StudyDeletedError
from .locks import lock_study
from .record import FIXED

# A trial's version changes with every write into it; it says for the trial's own row and for each of these tables how
# many rows there are, and the sum of the transactions (`xmin`) that wrote them.
_VERSIONED = ("trial_params", "trial_intermediate_values", "trial_user_attributes", "trial_system_attributes")
_VERSION = " || ' ' || ".join([
    "t.xmin::text",
    *(
        f"(SELECT count(*) || ':' || coalesce(sum(r.xmin::text::bigint), 0) FROM {table} r WHERE r.trial_id = t.trial_id)"  # noqa: S608, E501
        for table in _VERSIONED
    ),
])  # fmt: skip


def _if_changed(table: str) -> str:
    """The condition that a table's rows of the trial have changed since they were read, or were never read."""
    place = 2 + _VERSIONED.index(table)
    return f"(read.version IS NULL OR split_part(now.version, ' ', {place}) <> split_part(read.version, ' ', {place}))"


# Parameters are in three columns, because most trials of a study have the same ones: their names and distributions are
# parsed once.
_SELECT = f"""
SELECT t.trial_id, t.number, t.state::text AS state, extract(epoch FROM t.datetime_start)::float8 AS started,
  extract(epoch FROM t.datetime_complete)::float8 AS ended, now.version,
  (SELECT json_agg(json_build_array(v.value, v.value_type) ORDER BY v.objective)
   FROM trial_values v WHERE v.trial_id = t.trial_id) AS outcome,
  parameters.*,
  CASE WHEN {_if_changed("trial_intermediate_values")} THEN (
   SELECT json_agg(json_build_array(i.step, i.intermediate_value, i.intermediate_value_type)
                   ORDER BY i.trial_intermediate_value_id)
   FROM trial_intermediate_values i WHERE i.trial_id = t.trial_id) END AS reports,
  CASE WHEN {_if_changed("trial_user_attributes")} THEN (
   SELECT json_agg(json_build_array(u.key, u.value_json) ORDER BY u.trial_user_attribute_id)
   FROM trial_user_attributes u WHERE u.trial_id = t.trial_id AND u.key <> ALL(:without)) END AS user_attributes,
  CASE WHEN {_if_changed("trial_system_attributes")} THEN (
   SELECT json_agg(json_build_array(s.key, s.value_json) ORDER BY s.trial_system_attribute_id)
   FROM trial_system_attributes s WHERE s.trial_id = t.trial_id) END AS system_attributes
FROM trials t
LEFT JOIN unnest(CAST(:unfinished AS integer[]), CAST(:versions AS text[])) AS read (trial_id, version)
  ON read.trial_id = t.trial_id
CROSS JOIN LATERAL (
  SELECT CASE WHEN t.state IN ('RUNNING', 'WAITING') OR read.version IS NOT NULL THEN {_VERSION} END AS version OFFSET 0
) AS now
LEFT JOIN LATERAL (
  SELECT json_agg(p.param_name)::text AS names, json_agg(p.distribution_json)::text AS distributions,
         array_agg(p.param_value) AS internal
  FROM (SELECT * FROM trial_params WHERE trial_id = t.trial_id ORDER BY param_id) AS p
  WHERE {_if_changed("trial_params")}
) AS parameters ON true
"""  # noqa: S608 (constants)
_SELECT_ONE = sa.text(f"{_SELECT} WHERE t.trial_id = :trial")
_SELECT_MANY = sa.text(f"""{_SELECT}
WHERE t.study_id = :study AND (t.trial_id > :after OR t.trial_id = ANY(:known))
  AND (read.version IS NULL OR now.version <> read.version)
ORDER BY t.trial_id
""")
_INFINITE = {"INF_POS": math.inf, "INF_NEG": -math.inf}
_SPECIAL = _INFINITE | {"NAN": math.nan}
_KINDS = {value: kind for kind, value in _INFINITE.items()}

_distribution = functools.lru_cache(maxsize=4096)(json_to_distribution)


# ---- reading ---------------------------------------------------------------------------------------------------------


def select_trial(connection: sa.Connection, trial_id: int, without: Collection[str] = ()) -> FrozenTrial | None:
    """Read a trial, without the user attributes `without`; None if there is none with this id."""
    nothing_read: dict[str, object] = {"unfinished": [], "versions": []}
    row = connection.execute(_SELECT_ONE, {"trial": trial_id, "without": list(without), **nothing_read}).first()
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

    User attributes `without` are not read. Of trials that were unfinished when they were read `before`, only what has
    changed since is read, and `before` is brought up to date: a study may have a thousand of them.

    Returns:
        The trials, and whether any of them was read just now.
    """
    sql_params = {"study": study_id, "known": list(known), "after": after, "without": list(without),
                  "unfinished": list(before), "versions": [version for version, _ in before.values()]}  # fmt: skip
    rows = connection.execute(_SELECT_MANY, sql_params).all()
    changed = {row.trial_id: _frozen(row, before.get(row.trial_id)) for row in rows}
    same = {key: trial for key, (_, trial) in before.items() if key not in changed and (key > after or key in known)}
    for row in rows:
        before.pop(row.trial_id, None)
        trial = changed[row.trial_id]
        if not trial.state.is_finished():
            before[row.trial_id] = row.version, trial
    trials = changed | same
    return [trials[key] for key in sorted(trials)], bool(rows)


def _count_trials(connection: sa.Connection, study_id: int) -> int:
    """Return how many trials a study has, of any state."""
    return int(connection.execute(_COUNT, {"study": study_id}).scalar_one())


def trial_state(connection: sa.Connection, trial_id: int) -> TrialState | None:
    """Read the state of a trial; None if there is none with this id."""
    state = connection.execute(_STATE, {"trial": trial_id}).scalar()
    return None if state is None else TrialState[state]


def _frozen(row: sa.Row[Any], before: tuple[str, FrozenTrial] | None = None) -> FrozenTrial:
    """The trial of a row of `_SELECT`; what has not changed since it was read `before` is taken from there."""
    cells: tuple[Any, ...] = tuple(row)
    trial_id, number, state, started, ended, version, outcome, names, as_json, internal = cells[:10]
    reports, user_attributes, system_attributes = cells[10:]
    params, distributions = _parameters(names, as_json, internal)
    trial = FrozenTrial(
        number=number,
        state=TrialState[state],
        value=None,
        values=[_number(*pair) for pair in outcome] if outcome else None,
        datetime_start=_local(started),
        datetime_complete=_local(ended),
        params=params,
        distributions=distributions,
        user_attrs={key: json.loads(value) for key, value in user_attributes or ()},
        system_attrs={key: json.loads(value) for key, value in system_attributes or ()},
        intermediate_values={step: _number(value, kind) for step, value, kind in reports or ()},
        trial_id=trial_id,
    )
    return trial if before is None else _completed(trial, version, *before)


def _completed(trial: FrozenTrial, version: str, version_before: str, before: FrozenTrial) -> FrozenTrial:
    """Add what was not read again, because it is unchanged."""
    parts = zip(_VERSIONED, version.split(" ")[1:], version_before.split(" ")[1:], strict=True)
    unchanged = {table for table, one, other in parts if one == other}
    if "trial_params" in unchanged:
        trial.params, trial.distributions = dict(before.params), dict(before.distributions)
    if "trial_intermediate_values" in unchanged:
        trial.intermediate_values = dict(before.intermediate_values)
    if "trial_user_attributes" in unchanged:
        trial.user_attrs = dict(before.user_attrs)
    if "trial_system_attributes" in unchanged:
        trial.system_attrs = dict(before.system_attrs)
    return trial


def _parameters(
    names: str | None, as_json: str | None, internal: Sequence[float]
) -> tuple[dict[str, Any], dict[str, BaseDistribution]]:
    if names is None or as_json is None:
        return {}, {}
    distributions = _distributions(names, as_json)
    pairs = zip(distributions.items(), internal, strict=True)
    return {name: distribution.to_external_repr(value) for (name, distribution), value in pairs}, dict(distributions)


@functools.lru_cache(maxsize=1024)
def _distributions(names: str, as_json: str) -> dict[str, BaseDistribution]:
    return {name: _distribution(text) for name, text in zip(json.loads(names), json.loads(as_json), strict=True)}


def _number(value: float | None, kind: str) -> float:
    """A number that Optuna stores in two columns, because not every database has infinities. JSON turned 1.0 into 1."""
    return _SPECIAL[kind] if value is None else float(value)


def _local(seconds: float | None) -> datetime | None:
    """Local time, as Optuna gives it. A double holds the seconds since 1970 to less than half a microsecond."""
    return None if seconds is None else datetime.fromtimestamp(seconds)


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
    """Delete studies with all their trials, in the caller's transaction. Tables that refer to them follow."""
    for statement in _DELETE_STUDIES:
        connection.execute(sa.text(statement), {"studies": list(studies)})


def _stored(value: float) -> tuple[float | None, str]:
    kind = _KINDS.get(value)
    return (value, "FINITE") if kind is None else (None, kind)
