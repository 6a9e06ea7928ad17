"""The best trial of a study as a plain value, and as `best.json`."""

from __future__ import annotations

import json
from collections.abc import Container, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

from sparse_evidence.core.cache import write_atomically
from sparse_evidence.core.errors import UserError

from ..database import record
from .provenance import git_commit, versions

if TYPE_CHECKING:
    from optuna import Study
    from optuna.trial import FrozenTrial

SCHEMA = 1


class BestResult(TypedDict):
    """The content of `best.json`; `studies/best.schema.json` describes every key."""

    schema: int
    study: str
    metric: str
    value: float | None
    trial: int
    params: dict[str, Any]
    config: dict[str, Any]
    cv: dict[str, Any]
    trials: dict[str, int | None]
    confirmed: dict[str, Any] | None
    provenance: dict[str, Any]


def best_trial(study: Study, among: Container[int] | None = None) -> FrozenTrial | None:
    """The best trial that was scored on all folds; the first one if several are equal, None if there is none yet.

    With `among`, only trials with these numbers are considered.
    """
    from optuna.study import StudyDirection
    from optuna.trial import TrialState

    complete = [
        trial
        for trial in study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        if record.CV in trial.user_attrs and trial.value is not None and (among is None or trial.number in among)
    ]
    if not complete:
        return None
    sign = -1.0 if study.direction == StudyDirection.MAXIMIZE else 1.0
    return min(complete, key=lambda trial: (sign * (trial.value or 0.0), trial.number))


def best_result(study: Study) -> BestResult:
    """The best parameters, with everything needed to train with them and to judge them.

    Raises:
        UserError: no trial is complete yet.
    """
    trial = best_trial(study)
    if trial is None:
        raise UserError(
            f"the study {study.study_name!r} has no complete trial yet; run `hpo run` until one is complete"
        )
    return {
        "schema": SCHEMA,
        "study": study.study_name,
        "metric": record.metric(study),
        "value": trial.value,
        "trial": trial.number,
        "params": dict(trial.params),
        "config": record.config(trial),
        "cv": {**trial.user_attrs[record.CV], "floors": record.baselines(study)},
        "trials": _trials(study),
        "confirmed": None,
        "provenance": _provenance(record.identity(study)),
    }


def _trials(study: Study) -> dict[str, int | None]:
    from ..database.claims_sql import count_trials

    counts = count_trials(study)
    return {
        "complete": counts.complete,
        "pruned": counts.pruned,
        "failed": counts.failed,
        "infeasible": counts.infeasible,
        "requested": record.requested(study),
    }


def _provenance(identity: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "definition_sha256": identity["definition_sha256"],
        "data_sha256": identity["data_sha256"],
        "folds_sha256": identity["folds_sha256"],
        "git": git_commit(),
        "seed": identity["definition"]["search"]["seed"],
        "versions": versions(),
        "exported_at": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def write_json(values: Mapping[str, Any], path: Path) -> None:
    """Write sorted JSON without NaN; the file is replaced atomically, so that a reader never sees a partial file.

    Raises:
        UserError: the file cannot be written.
    """
    text = json.dumps(values, indent=2, sort_keys=True, allow_nan=False, ensure_ascii=False)
    try:
        write_atomically(path, (text + "\n").encode())
    except OSError as error:
        raise UserError(f"{path} cannot be written ({error.strerror}); name another file with --out") from error


def check_writable(path: Path) -> None:
    """Check that the result can be written: before the search, not after it.

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
