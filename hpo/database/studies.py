"""Studies in the database: created with an identity, and joined only by workers with the same identity."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from sparse_evidence.core.errors import UserError

from ..errors import RefusedError, StudyDeletedError
from . import record
from .address import describe
from .connection import engine_of
from .locks import locked_for_creation
from .record import FIXED, IDENTITY
from .retry import retry

if TYPE_CHECKING:
    import optuna
    from optuna.pruners import BasePruner
    from optuna.samplers import BaseSampler
    from optuna.storages import BaseStorage

    from .trial_rows import QueuedTrial

Direction = Literal["minimize", "maximize"]
Identity = dict[str, Any]
Differences = Callable[[dict[str, Any], dict[str, Any]], list[str]]

_NAMES = {
    "data_sha256": "the data",
    "folds_sha256": "the folds",
    "encoders_sha256": "the encoder's weights",
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
    queue: Sequence[QueuedTrial] = (),
    once: Sequence[Mapping[str, Any]] = (),
    attributes: Mapping[str, Any] | None = None,
    existing: int | None = None,
) -> optuna.Study:
    """Create the study, or join it if it was started with the same `identity`; else `RefusedError` says what differs.

    `identity` has the keys `definition` (a dict of JSON values), `definition_sha256`, `data_sha256`,
    `folds_sha256`, `encoders_sha256` and `code`. `default_parameters` are queued when the study is created and so
    become trial 0. `differences(ours, theirs)` describes how two definitions differ, a clause per difference. Default
    of `pruner`: Optuna prunes nothing. When the study is created, it also gets the trials in `queue` and the user
    attributes in `attributes`. The parameters in `once` are queued as well, also if the study exists, but never again.
    With `existing`, the study's key, it is not created: if it has been deleted, a `StudyDeletedError` says so.
    """
    from .optuna_storage import unwrap
    from .trial_rows import QueuedTrial

    first = [QueuedTrial(parameters) for parameters in ([] if default_parameters is None else [default_parameters])]
    first += [*map(QueuedTrial, once), *queue]
    started_with = {**(attributes or {}), IDENTITY: identity}
    study = retry(
        lambda: _create(storage, name, direction, started_with, first, existing), unwrap(storage).retry_seconds
    )
    stored = record.identity(study)
    if identity.get("code") != stored.get("code"):  # definitions of other versions have other keys: say only this
        raise RefusedError(
            f"The study {name!r} in {_database(storage)} was started by version {stored.get('code')} of "
            f"sparse-evidence-hpo, and this is version {identity.get('code')}, whose trials have other values: give "
            "this study another name to start anew (`hpo status` and `hpo export` can still read the old one)."
        )
    differing = _compare(identity, stored, differences or _plain_differences)
    if study.direction.name.lower() != direction:
        differing.append(f"the direction is {direction} here and {study.direction.name.lower()} in the study")
    if differing:
        raise RefusedError(
            f"The study {name!r} in {_database(storage)} was started with different inputs: "
            f"{'; '.join(differing)}; restore them, or give this study another name."
        )
    if once:
        retry(lambda: _queue_untried(study, once), unwrap(storage).retry_seconds)
    return _study(storage, name, sampler, pruner)


def load_study(storage: BaseStorage, name: str) -> optuna.Study:
    """Return the study, for reading. Raises a `UserError` if it does not exist."""
    try:
        return _study(storage, name, None, None)
    except KeyError:
        raise UserError(
            f"There is no study {name!r} in {_database(storage)}: start it with `hpo run` or `hpo worker`, "
            "or name its database with --storage (HPO_STORAGE)."
        ) from None


def _create(
    storage: BaseStorage,
    name: str,
    direction: Direction,
    attributes: Mapping[str, Any],
    queue: Sequence[QueuedTrial],
    existing: int | None,
) -> optuna.Study:
    """Create the study unless it exists. Its attributes and its first trials are written in one transaction."""
    import optuna

    from .optuna_storage import study_id
    from .trial_rows import enqueue, insert_study_attribute

    found = _key(storage, name)
    if existing is not None and found != existing:
        raise StudyDeletedError
    if found is not None and IDENTITY in storage.get_study_user_attrs(found):
        return _study(storage, name, None, None)  # without the lock, for which many may be waiting
    with locked_for_creation(engine_of(storage)) as connection:
        study = optuna.create_study(storage=storage, study_name=name, direction=direction, load_if_exists=True)
        if IDENTITY in study.user_attrs:
            return study
        trials = study.get_trials(deepcopy=False)
        if any(trial.state != optuna.trial.TrialState.WAITING for trial in trials):
            raise RefusedError(
                f"The study {name!r} in {_database(storage)} was not created by hpo: give this study another name."
            )
        if not trials:
            enqueue(connection, study_id(study), queue)
        for key, value in attributes.items():
            insert_study_attribute(connection, study_id(study), key, value)
    return study


def _key(storage: BaseStorage, name: str) -> int | None:
    """The key of the study with this name; None if there is none."""
    try:
        return storage.get_study_id_from_name(name)
    except KeyError:
        return None


def _queue_untried(study: optuna.Study, once: Sequence[Mapping[str, Any]]) -> None:
    """Queue the parameters that no trial of the study has or waits with; what was queued before is still known."""
    from .optuna_storage import study_id
    from .trial_rows import QueuedTrial, enqueue_if_complete

    while True:
        trials = study.get_trials(deepcopy=False)
        known = [parameters for trial in trials for parameters in (trial.params, trial.system_attrs.get(FIXED))]
        untried = [QueuedTrial(parameters) for parameters in once if dict(parameters) not in known]
        if enqueue_if_complete(engine_of(study), study_id(study), len(trials), untried):
            return


def _database(storage: BaseStorage) -> str:
    return describe(engine_of(storage).url)


def _study(storage: BaseStorage, name: str, sampler: BaseSampler | None, pruner: BasePruner | None) -> optuna.Study:
    import optuna

    pruner = pruner or optuna.pruners.NopPruner()
    return optuna.load_study(storage=storage, study_name=name, sampler=sampler, pruner=pruner)


def _compare(ours: Identity, theirs: Identity, differences: Differences) -> list[str]:
    differing = []
    if ours.get("definition_sha256") != theirs.get("definition_sha256"):
        local, stored = ours.get("definition", {}), theirs.get("definition", {})
        # Forms that differ in paths only (of an older version) are the same; equal forms of other hashes are not.
        differing += differences(local, stored) or (["the definition differs"] if local == stored else [])
    for key, name in _NAMES.items():
        if ours.get(key) != theirs.get(key):
            differing.append(f"{name} differ ({_short(ours, key)} here, {_short(theirs, key)} in the study)")
    return differing


def _plain_differences(ours: dict[str, Any], theirs: dict[str, Any], path: str = "") -> list[str]:
    differing = []
    for key in sorted(ours.keys() | theirs.keys()):
        our_value, their_value, field = ours.get(key), theirs.get(key), f"{path}{key}"
        if isinstance(our_value, dict) and isinstance(their_value, dict):
            differing += _plain_differences(our_value, their_value, f"{field}.")
        elif our_value != their_value:
            differing.append(f"{field} is {our_value!r} here and {their_value!r} in the study")
    return differing


def _short(identity: Identity, key: str) -> str:
    return str(identity.get(key))[:12]
