"""Studies in the database: created with an identity, joined only by whoever has the same one."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Literal

from sparse_evidence.core.errors import UserError

from ..errors import RefusedError
from .address import mask_password
from .connection import backend, engine_of, lock_study
from .record import IDENTITY

if TYPE_CHECKING:
    import optuna
    from optuna.pruners import BasePruner
    from optuna.samplers import BaseSampler
    from optuna.storages import BaseStorage
    from sqlalchemy import URL, Connection

Direction = Literal["minimize", "maximize"]
Identity = dict[str, Any]
Differences = Callable[[dict[str, Any], dict[str, Any]], list[str]]

_NAMES = {
    "data_sha256": "the data",
    "folds_sha256": "the folds",
    "encoders_sha256": "the encoder's weights",
    "code": "the code version",
}


def open_study(
    storage: BaseStorage,
    name: str,
    *,
    direction: Direction,
    identity: Identity,
    default_parameters: Mapping[str, Any] | None = None,
    sampler: BaseSampler | None = None,
    pruner: BasePruner | None = None,
    differences: Differences | None = None,
) -> optuna.Study:
    """Create the study, or join it if it was started with the same `identity`; else `RefusedError` says what differs.

    `identity` has the keys `definition` (a dict that survives JSON), `definition_sha256`, `data_sha256`,
    `folds_sha256` and `code`. `default_parameters` are queued when the study is created and so become trial 0.
    `differences(mine, theirs)` tells two definitions apart in words. Without a `pruner` nothing is pruned by Optuna.
    """
    from . import optuna_storage as rdb

    study = rdb.retry(
        lambda: _created(storage, name, direction, identity, default_parameters), backend(storage).retry_seconds
    )
    stored = study.user_attrs[IDENTITY]
    different = _compared(identity, stored, differences or _plain_differences)
    if study.direction.name.lower() != direction:
        different.append(f"the direction is {direction} here and {study.direction.name.lower()} in the study")
    if different:
        raise RefusedError(
            f"The study {name!r} in {mask_password(_url(storage))} was started with something else: {'; '.join(different)}; "
            "use what it was started with, or give this study another name."
        )
    return _study(storage, name, sampler, pruner)


def load_study(storage: BaseStorage, name: str) -> optuna.Study:
    """Return the study, to be read; a `UserError` if it has not been started."""
    try:
        return _study(storage, name, None, None)
    except KeyError:
        raise UserError(
            f"There is no study {name!r} in {mask_password(_url(storage))}: start it with `hpo run` or `hpo worker`, or name "
            "its storage with --storage (HPO_STORAGE)."
        ) from None


def _created(
    storage: BaseStorage,
    name: str,
    direction: Direction,
    identity: Identity,
    default_parameters: Mapping[str, Any] | None,
) -> optuna.Study:
    """Make the study, its identity and its first trial; the latter two in one transaction, so both or neither."""
    import optuna
    import sqlalchemy as sa

    with engine_of(storage).begin() as connection:
        lock_study(connection)
        study = optuna.create_study(storage=storage, study_name=name, direction=direction, load_if_exists=True)
        if IDENTITY in study.user_attrs:
            return study
        trials = study.get_trials(deepcopy=False)
        if any(trial.state != optuna.trial.TrialState.WAITING for trial in trials):
            raise RefusedError(
                f"The study {name!r} in {mask_password(_url(storage))} was not made by hpo: give this study another name."
            )
        if default_parameters is not None and not trials:
            _enqueue(connection, study._study_id, default_parameters)  # noqa: SLF001 (no public way)
        note = sa.text("INSERT INTO study_user_attributes (study_id, key, value_json) VALUES (:study, :key, :value)")
        connection.execute(
            note,
            {"study": study._study_id, "key": IDENTITY, "value": json.dumps(identity)},  # noqa: SLF001
        )
    return study


def _enqueue(connection: Connection, study_id: int, parameters: Mapping[str, Any]) -> None:
    """What `Study.enqueue_trial` writes, but in our transaction: Optuna repeats its own, which can make two of it."""
    from optuna.storages._rdb import models
    from optuna.trial import TrialState
    from sqlalchemy import orm

    with orm.Session(connection, join_transaction_mode="create_savepoint") as session, session.begin():
        trial = models.TrialModel(study_id=study_id, number=0, state=TrialState.WAITING)
        session.add(trial)
        session.flush()
        fixed = models.TrialSystemAttributeModel(
            trial_id=trial.trial_id, key="fixed_params", value_json=json.dumps(dict(parameters))
        )
        session.add(fixed)


def _study(storage: BaseStorage, name: str, sampler: BaseSampler | None, pruner: BasePruner | None) -> optuna.Study:
    import optuna

    pruner = pruner or optuna.pruners.NopPruner()
    return optuna.load_study(storage=storage, study_name=name, sampler=sampler, pruner=pruner)


def _compared(mine: Identity, theirs: Identity, differences: Differences) -> list[str]:
    found = []
    if mine.get("definition_sha256") != theirs.get("definition_sha256"):
        found += differences(mine.get("definition", {}), theirs.get("definition", {})) or ["the definition differs"]
    for key, words in _NAMES.items():
        if mine.get(key) != theirs.get(key):
            found.append(f"{words} differ{'s' if key == 'code' else ''} ({_short(mine, key)} here, "
                         f"{_short(theirs, key)} in the study)")  # fmt: skip
    return found


def _plain_differences(mine: dict[str, Any], theirs: dict[str, Any], path: str = "") -> list[str]:
    found = []
    for key in sorted(mine.keys() | theirs.keys()):
        ours, other, where = mine.get(key), theirs.get(key), f"{path}{key}"
        if isinstance(ours, dict) and isinstance(other, dict):
            found += _plain_differences(ours, other, f"{where}.")
        elif ours != other:
            found.append(f"{where} is {ours!r} here and {other!r} in the study")
    return found


def _short(identity: Identity, key: str) -> str:
    value = str(identity.get(key))
    return value[:12] if key.endswith("_sha256") else value


def _url(storage: BaseStorage) -> URL:
    return engine_of(storage).url
