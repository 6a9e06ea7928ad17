"""A study as plain values: the best trial as `best.json`, and the state of things for people and scripts."""

from __future__ import annotations

import json
import platform
import subprocess
from collections.abc import Container, Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparse_evidence.core.cache import write_atomically
from sparse_evidence.core.errors import UserError

from ..database.record import ATTEMPTS, BASELINES, CONFIG, CV, IDENTITY, REQUESTED
from ..database.studies import engine_of

if TYPE_CHECKING:
    from optuna import Study
    from optuna.trial import FrozenTrial

SCHEMA = 1

_VERSIONED = ("sparse-evidence-hpo", "optuna", "torch", "sentence-transformers", "scikit-learn", "numpy")


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


def best(study: Study) -> dict[str, Any]:
    """The best parameters with everything needed to train on and to judge them (`docs/best.schema.json`).

    Raises:
        UserError: no trial is complete yet.
    """
    from ..running.claims import count

    trial = best_trial(study)
    if trial is None:
        raise UserError(f"the study {study.study_name!r} has no complete trial yet; let `hpo run` finish one first")
    identity = study.user_attrs[IDENTITY]
    counts = count(study)
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


def status(study: Study) -> dict[str, Any]:
    """Trials by state, the best so far, who works on what, and trials begun more than once, as JSON values."""
    from ..running.claims import count, workers

    counts = count(study)
    held = workers(engine_of(study), study)
    states = asdict(counts)
    states.pop("waiting")
    trial = best_trial(study)
    requested = study.user_attrs.get(REQUESTED)
    left = max((requested or 0) - counts.finished, 0)
    return {
        "study": study.study_name,
        "metric": study.user_attrs[IDENTITY]["definition"]["search"]["metric"],
        "trials": {"requested": requested, "finished": counts.finished, **states},
        "best": None if trial is None else {"trial": trial.number, "value": trial.value, "params": dict(trial.params)},
        "floors": study.user_attrs.get(BASELINES),
        "pace": _pace(study, left if held else None),
        "workers": held,
        "attempts": {
            str(each.number): each.user_attrs[ATTEMPTS]
            for each in study.get_trials(deepcopy=False)
            if ATTEMPTS in each.user_attrs
        },
    }


RECENT_TRIALS = 20
"""The pace is that of so many trials finished last."""


def _pace(study: Study, left: int | None) -> dict[str, float | None]:
    """Trials per hour of late, and the seconds that `left` more take at that; None where it is not known."""
    ends = sorted(
        trial.datetime_complete for trial in study.get_trials(deepcopy=False) if trial.datetime_complete is not None
    )[-RECENT_TRIALS:]
    seconds = (ends[-1] - ends[0]).total_seconds() if ends else 0.0
    if seconds <= 0:
        return {"trials_per_hour": None, "seconds_left": None}
    each = seconds / (len(ends) - 1)
    return {"trials_per_hour": 3600 / each, "seconds_left": None if left is None else left * each}


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


def git_commit() -> str | None:
    """The commit this code was checked out at, None outside a checkout; "-dirty" where files were changed."""
    root = Path(__file__).resolve().parent.parent
    if not (root / ".git").exists():
        return None
    try:
        call = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
        return subprocess.run(call, check=True, capture_output=True, text=True, timeout=10).stdout.strip()  # noqa: S603
    except (OSError, subprocess.SubprocessError):
        return None


def versions() -> dict[str, str]:
    """Versions of what the numbers depend on."""
    found = {"python": platform.python_version()}
    for name in _VERSIONED:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
