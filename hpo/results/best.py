"""The result of a study as a plain value, the content of `best.json`: best trial, ensemble, confirmed winner."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Container, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

from sparse_evidence.core.errors import UserError

from ..database import record
from . import winner
from .provenance import git_commit, versions

if TYPE_CHECKING:
    from optuna import Study
    from optuna.trial import FrozenTrial

    from ..running.task import StudyTask

SCHEMA = 2
FINGERPRINTS = {
    "data_sha256": "posts, labels or groups",
    "folds_sha256": "folds",
    "encoders_sha256": "encoder weights",
    "definition_sha256": "study file",
}
"""Of the provenance: what a model has in common with its result, and what differs if it does not."""


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
    default: dict[str, Any] | None
    ensemble: dict[str, Any] | None
    confirmed: dict[str, Any] | None
    winner: str | None
    reason: str
    claim: str
    provenance: dict[str, Any]


def best_trial(study: Study, among: Container[int] | None = None) -> FrozenTrial | None:
    """The best trial that was scored on all folds; the first one if several are equal, None if there is none yet.

    With `among`, only trials with these numbers are considered.
    """
    from optuna.trial import TrialState

    trials = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    ranked = record.best_first(study, (trial for trial in trials if among is None or trial.number in among))
    return ranked[0] if ranked else None


def best_result(study: Study, study_file: Path | None = None, out: Path | None = None) -> BestResult:
    """The result, with everything needed to train it and to judge it.

    Args:
        study: the study.
        study_file: the file that it was started from, so that `hpo fit` finds it.
        out: where the result will be written; the path of the study file is relative to its folder.

    Raises:
        UserError: no trial is complete yet.
    """
    searched = best_trial(study)
    if searched is None:
        raise nothing_complete(study)
    metric, ensemble, confirmed = record.metric(study), record.ensemble(study), winner.current_confirmed(study)
    trials = study.get_trials(deepcopy=False)
    single = winner.confirmed_single(metric, confirmed) if confirmed is not None else None
    trial = searched if single is None else trials[single]
    chosen = winner.choose_winner(metric, searched.value, ensemble, confirmed)
    members = confirmed["members"] if confirmed else ensemble["members"] if ensemble else []
    return {
        "schema": SCHEMA,
        "study": study.study_name,
        "metric": metric,
        "value": trial.value,
        "trial": trial.number,
        "params": dict(trial.params),
        "config": record.config(trial),
        "cv": {**trial.user_attrs[record.CV], "floors": record.baselines(study)},
        "trials": _trials(study),
        "default": _trained(study, trials[0]) if record.CONFIG in trials[0].user_attrs else None,
        "ensemble": None if ensemble is None else {**ensemble, "members": _members(study, trials, members)},
        "confirmed": None if confirmed is None else {key: confirmed[key] for key in confirmed if key != "study"},
        "winner": chosen.name,
        "reason": chosen.reason,
        "claim": chosen.claim,
        "provenance": {
            **provenance_of(record.identity(study)),
            "study_file": None if study_file is None else relative_to(study_file, (out or Path("-")).parent),
        },
    }


def nothing_complete(study: Study) -> UserError:
    """The error of commands that need a complete trial."""
    reasons = infeasible_reasons(study)
    finished = [trial for trial in study.get_trials(deepcopy=False) if trial.state.is_finished()]
    name = study.study_name
    if not reasons or len(finished) < (record.requested(study) or 0):
        return UserError(f"the study {name!r} has no complete trial yet; run `hpo run` until one is complete")
    told = "; ".join(f"{count} {reason}" for reason, count in list(reasons.items())[:3])
    return UserError(
        f"none of the {len(finished)} trials of the study {name!r} is complete, {sum(reasons.values())} of them are "
        f"infeasible ({told}): change the ranges in the study file (of training.learning_rate, if trials diverged) and "
        "give the study another name"
    )


def infeasible_reasons(study: Study) -> dict[str, int]:
    """Why trials are infeasible, and how many for each reason, the most frequent first."""
    reasons = (record.reason(trial) for trial in study.get_trials(deepcopy=False))
    counted = Counter(reason.rstrip(".") for reason in reasons if reason is not None)
    return dict(counted.most_common())


def differing_from(stored: Mapping[str, Any], task: StudyTask) -> list[str]:
    """What differs between the provenance of a result, or the info of a model, and a study's data and file."""
    identity = task.identity()
    return [
        text
        for key, text in FINGERPRINTS.items()
        if stored[key] != identity[key] and not (key == "definition_sha256" and task.definition.has_hash(stored[key]))
    ]


def _trained(study: Study, trial: FrozenTrial) -> dict[str, Any]:
    """What training a trial's configuration again needs; the value is None if it was pruned."""
    from ..running.confirming import best_epoch

    summary = record.cv(trial)
    return {
        "trial": trial.number,
        "value": None if summary is None else trial.value,
        "config": record.config(trial),
        "seed": trial.user_attrs.get(record.SEED),
        "epochs": best_epoch(study, trial) if trial.state.is_finished() and record.reason(trial) is None else None,
    }


def _members(study: Study, trials: Sequence[FrozenTrial], picks: Sequence[int]) -> list[dict[str, Any]]:
    """The members of the ensemble, the heaviest first: a trial that was picked more often weighs more."""
    return [
        {**_trained(study, trials[number]), "picks": count, "weight": count / len(picks)}
        for number, count in Counter(picks).most_common()
    ]


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


def provenance_of(identity: Mapping[str, Any]) -> dict[str, Any]:
    """What a result of the study depends on: its hashes and seed, and the code and packages that run now."""
    return {
        "definition_sha256": identity["definition_sha256"],
        "data_sha256": identity["data_sha256"],
        "folds_sha256": identity["folds_sha256"],
        "encoders_sha256": identity["encoders_sha256"],
        "git": git_commit(),
        "seed": identity["definition"]["search"]["seed"],
        "versions": versions(),
        "exported_at": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def relative_to(path: Path, folder: Path) -> str:
    """The path of a file as seen from a folder, so that both can be moved together; absolute on another drive."""
    try:
        return Path(os.path.relpath(path.resolve(), folder.resolve())).as_posix()
    except ValueError:
        return path.resolve().as_posix()


def named_study_file(named: Mapping[str, Any], folder: Path, what: str, remedy: str) -> Path:
    """The study file that a result or a model names.

    Args:
        named: the `provenance` of a result, or the `info` of a model.
        folder: the folder that the result is in, or that of the model.
        what: the result or the model, as the start of a sentence.
        remedy: what to do if there is no such file, as the end of a sentence.

    Raises:
        UserError: it names none, or there is no such file.
    """
    stored = named.get("study_file")
    if stored is None:
        raise UserError(f"{what} does not name its study file; {remedy}")
    path = Path(os.path.normpath(folder.resolve() / str(stored)))
    if not path.is_file():
        raise UserError(f"{what} names the study file {path}, which does not exist; {remedy}")
    return path
