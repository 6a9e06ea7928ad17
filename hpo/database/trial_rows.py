"""What Optuna's tables hold of a trial: read in one statement, written in one per table, past its object mapper.

That takes `RDBStorage` seven statements, and one more before every write. What comes out equals what Optuna reads, and
what goes in what it writes (`tests/contract/test_rdb.py` compares); only distributions, which are values, are parsed
once and shared by all trials that have them.
"""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Collection
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa
from optuna.distributions import json_to_distribution
from optuna.storages._rdb import models
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.dialects import postgresql

_READ = """
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
FROM trials t WHERE
"""
_ONE = sa.text(f"{_READ} t.trial_id = :trial")
_SEVERAL = sa.text(
    f"{_READ} t.study_id = :study AND (t.trial_id > :after OR t.trial_id = ANY(:known)) ORDER BY t.trial_id"
)
_SPECIAL = {"INF_POS": math.inf, "INF_NEG": -math.inf, "NAN": math.nan}

_distribution = functools.lru_cache(maxsize=4096)(json_to_distribution)


def one(connection: sa.Connection, trial_id: int, without: Collection[str] = ()) -> FrozenTrial | None:
    """Read a trial; None if there is none with this id. User attributes `without` are left out."""
    row = connection.execute(_ONE, {"trial": trial_id, "without": list(without)}).first()
    return None if row is None else _frozen(row)


def several(
    connection: sa.Connection, study_id: int, known: Collection[int], after: int, without: Collection[str] = ()
) -> list[FrozenTrial]:
    """Read the trials of a study whose ids are among `known` or greater than `after`, in the order of their ids.

    User attributes `without` are left out.
    """
    asked = {"study": study_id, "known": list(known), "after": after, "without": list(without)}
    rows = connection.execute(_SEVERAL, asked)
    return [_frozen(row) for row in rows]


def _frozen(row: sa.Row[Any]) -> FrozenTrial:
    parameters = [(name, value, _distribution(words)) for name, value, words in row.parameters or ()]
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
    """What Optuna stores in two columns, because not every database takes infinities; JSON has made 1.0 a 1."""
    return _SPECIAL[kind] if value is None else float(value)


def _local(utc: datetime | None) -> datetime | None:
    return None if utc is None else utc.replace(tzinfo=UTC).astimezone().replace(tzinfo=None)


def _upsert(table: type[models.BaseModel], key: str) -> sa.Insert:
    """Insert rows of a trial. One that is there already gets the new values; a parameter stays as it is."""
    insert, target = postgresql.insert(table), ["trial_id", key]
    if table is models.TrialParamModel:
        return insert.on_conflict_do_nothing(index_elements=target)
    identity = {*target, *(column.name for column in insert.table.primary_key)}
    new = {column.name: column for column in insert.excluded if column.name not in identity}
    return insert.on_conflict_do_update(index_elements=target, set_=new)


_KEYS: dict[type[models.BaseModel], str] = {
    models.TrialParamModel: "param_name",
    models.TrialUserAttributeModel: "key",
    models.TrialSystemAttributeModel: "key",
    models.TrialValueModel: "objective",
    models.TrialIntermediateValueModel: "step",
}
"""The tables of what belongs to a trial, and what tells the rows of one trial apart."""
_UPSERTS = {table: _upsert(table, key) for table, key in _KEYS.items()}


@dataclass
class Batch:
    """What is to be written into a trial, by table and key."""

    trial_id: int
    _rows: dict[type[models.BaseModel], dict[str | int, dict[str, Any]]] = field(init=False, default_factory=dict)

    def add(self, table: type[models.BaseModel], key: str | int, **columns: Any) -> None:  # noqa: ANN401 (any column)
        """Put a row in; it takes the place of one with the same key."""
        self._rows.setdefault(table, {})[key] = {"trial_id": self.trial_id, _KEYS[table]: key, **columns}

    def __bool__(self) -> bool:
        return bool(self._rows)

    def write(self, connection: sa.Connection) -> None:
        """Write everything, in the caller's transaction. May be run twice."""
        for table, rows in self._rows.items():
            connection.execute(_UPSERTS[table], list(rows.values()))
