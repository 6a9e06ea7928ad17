"""The best trial of a study as a plain value, and as `best.json`."""

from __future__ import annotations

import json
from collections.abc import Container, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparse_evidence.core.cache import write_atomically
from sparse_evidence.core.errors import UserError

from ..database.record import BASELINES, CONFIG, CV, IDENTITY, REQUESTED
from .provenance import git_commit, versions

if TYPE_CHECKING:
    from optuna import Study
    from optuna.trial import FrozenTrial

SCHEMA = 1


def best_trial(study: Study, among: Container[int] | None = None) -> FrozenTrial | None:
    """The best trial that was scored on all folds, the earliest among equals; None if there is none yet.

    `among` leaves out trials with other numbers.
    """
    from optuna.study import StudyDirection
    from optuna.trial import TrialState

    complete = [
        trial
        for trial in study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        if CV in trial.user_attrs and trial.value is not None and (among is None or trial.number in among)
    ]
    if not complete:
        return None
    sign = -1.0 if study.direction == StudyDirection.MAXIMIZE else 1.0
    return min(complete, key=lambda trial: (sign * (trial.value or 0.0), trial.number))


def best_result(study: Study) -> dict[str, Any]:
    """The best parameters with everything needed to train on and to judge them (`studies/best.schema.json`).

    Raises:
        UserError: no trial is complete yet.
    """
    from ..database.claims_sql import count_trials

    trial = best_trial(study)
    if trial is None:
        raise UserError(f"the study {study.study_name!r} has no complete trial yet; let `hpo run` finish one first")
    identity = study.user_attrs[IDENTITY]
    counts = count_trials(study)
    cv = trial.user_attrs[CV]
    return {
        "schema": SCHEMA,
        "study": study.study_name,
        "metric": identity["definition"]["search"]["metric"],
        "value": trial.value,
        "trial": trial.number,
        "params": dict(trial.params),
        "config": trial.user_attrs[CONFIG],
        "cv": {**cv, "floors": study.user_attrs.get(BASELINES)},
        "trials": {
            "complete": counts.complete,
            "pruned": counts.pruned,
            "failed": counts.failed,
            "infeasible": counts.infeasible,
            "requested": study.user_attrs.get(REQUESTED),
        },
        "confirmed": None,
        "provenance": {
            "definition_sha256": identity["definition_sha256"],
            "data_sha256": identity["data_sha256"],
            "folds_sha256": identity["folds_sha256"],
            "git": git_commit(),
            "seed": identity["definition"]["search"]["seed"],
            "versions": versions(),
            "exported_at": datetime.now(UTC).isoformat(timespec="seconds"),
        },
    }


def write_json(values: Mapping[str, Any], path: Path) -> None:
    """Write sorted, NaN-free JSON that nobody ever sees half written.

    Raises:
        UserError: the file cannot be written.
    """
    text = json.dumps(values, indent=2, sort_keys=True, allow_nan=False, ensure_ascii=False)
    try:
        write_atomically(path, (text + "\n").encode())
    except OSError as error:
        raise UserError(f"{path} cannot be written ({error.strerror}); name another file with --out") from error


def check_writable(path: Path) -> None:
    """Find out before the search, not after it, that the result could not be written.

    Raises:
        UserError: `path` is a folder, or its folder is missing or cannot be written to.
    """
    if path.is_dir():
        raise UserError(f"{path} is a folder; name a file with --out, for example {path / 'best.json'}")
    probe = path.with_name(f".{path.name}.probe")
    try:
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise UserError(
            f"{path} cannot be written ({error.strerror}); create its folder, or name another file with --out"
        ) from error
