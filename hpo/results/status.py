"""The state of a study as a plain value: trials by state, the best one, running trials and their workers, the pace."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypedDict

from ..database import record
from ..database.address import mask_password
from ..database.connection import engine_of
from . import winner
from .best import best_trial, infeasible_reasons
from .finished import model_name
from .pace import recent_pace

if TYPE_CHECKING:
    from optuna import Study

    from ..database.claims_sql import Counts
    from ..running.confirming import Progress


class TrialCounts(TypedDict):
    """Trials by state."""

    requested: int | None
    finished: int
    """Complete, pruned or infeasible."""
    complete: int
    pruned: int
    infeasible: int
    failed: int
    """Failed by something other than hpo; such trials are not finished."""
    running: int
    """Claimed by a worker."""
    released: int
    """Started and released; the next worker resumes them."""


class BestSoFar(TypedDict):
    """The best complete trial."""

    trial: int
    value: float
    model: str | None
    params: dict[str, Any]


class PaceValues(TypedDict):
    """The rate of finished trials; None if no worker is running or too few trials are finished."""

    trials_per_hour: float | None
    seconds_left: float | None


class ConfirmingStatus(TypedDict):
    """How far the trials that confirm the result are."""

    study: str
    """The study that they belong to."""
    finished: int
    planned: int


class EnsembleStatus(TypedDict):
    """The ensemble of the trials that were finished when the budget was spent."""

    finished: int
    """Of how many finished trials it was chosen."""
    trials: list[int]
    """Numbers of its members, each once."""
    value: float
    """On the folds of the search, on which it was chosen."""
    corrected: dict[str, Any] | None
    """`value` and 95 % `interval`, corrected for selection."""


class ConfirmedStatus(TypedDict):
    """What was confirmed on fresh splits."""

    finished: int
    splits: int
    winner: str | None
    """`ensemble`, the number of a trial, `default` or a baseline; None if nothing could be trained."""
    reason: str
    value: float | None
    """The winner's mean over the splits."""
    interval: list[float] | None
    """Its 95 % interval."""


class NestedStatus(TypedDict):
    """What the whole procedure is worth, from `hpo nested`."""

    outer: int
    """Outer folds."""
    trials: int
    """Of the search without each of them."""
    value: float
    interval: list[float]
    """95 % interval of the value."""
    best_baseline: str
    gain: dict[str, Any]
    """`value` and 95 % `interval` of the procedure minus the best baseline."""


class StudyStatus(TypedDict):
    """What `hpo status --json` prints."""

    study: str
    metric: str
    trials: TrialCounts
    best: BestSoFar | None
    baselines: dict[str, Any] | None
    pace: PaceValues
    confirming: ConfirmingStatus | None
    """None before confirming has begun and after it is done."""
    ensemble: EnsembleStatus | None
    confirmed: ConfirmedStatus | None
    claim: str | None
    """What may be claimed of the result, in a sentence; None before the ensemble is chosen."""
    nested: NestedStatus | None
    """None before `hpo nested` is done."""
    workers: list[dict[str, Any]]
    """Unfinished trials with their claims, as `claims_sql.list_claims` returns them; while the result is confirmed,
    those of the study that confirms it."""
    attempts: dict[str, int]
    """By trial number, how many attempts it took; only trials with more than one."""
    infeasible_reasons: dict[str, int]
    """Why trials are infeasible, and how many for each reason."""
    storage: str
    """The URL of the database, its password masked: any Optuna script reads the study there, while it runs."""


def study_status(study: Study, *, grace_seconds: float = math.inf) -> StudyStatus:
    """The state of a study as JSON values; claims without a heartbeat for `grace_seconds` count as stale."""
    from ..database.claims_sql import count_trials, is_worked_on, list_claims
    from ..running import confirming

    counts = count_trials(study)
    claims = [_rounded(row) for row in list_claims(engine_of(study), study)]
    trials = _trials(counts, record.requested(study), claims)
    progress = confirming.progress(study)
    if progress is not None and (record.confirmed(study) or {}).get("study") == progress.study.study_name:
        progress = None
    confirm_claims = [] if progress is None else list_claims(engine_of(study), progress.study)
    is_running = any(is_worked_on(row, grace_seconds) for row in claims)
    return {
        "study": study.study_name,
        "metric": record.metric(study),
        "trials": trials,
        "best": _best(study),
        "baselines": record.baselines(study),
        "pace": _pace(study, trials) if is_running else {"trials_per_hour": None, "seconds_left": None},
        "confirming": _confirming(progress),
        "ensemble": _ensemble(record.ensemble(study)),
        "confirmed": _confirmed(winner.current_confirmed(study)),
        "claim": _claim(study),
        "nested": _nested(record.nested(study)),
        "workers": [*claims, *map(_rounded, confirm_claims)],
        "attempts": {
            str(trial.number): record.attempts(trial)
            for trial in study.get_trials(deepcopy=False)
            if record.ATTEMPTS in trial.user_attrs
        },
        "infeasible_reasons": infeasible_reasons(study),
        "storage": mask_password(engine_of(study).url),
    }


def _trials(counts: Counts, requested: int | None, claims: Sequence[Mapping[str, Any]]) -> TrialCounts:
    released = sum(row["released"] for row in claims)
    return {
        "requested": requested,
        "finished": counts.finished,
        "complete": counts.complete,
        "pruned": counts.pruned,
        "infeasible": counts.infeasible,
        "failed": counts.failed,
        "running": max(counts.running - released, 0),
        "released": released,
    }


def _best(study: Study) -> BestSoFar | None:
    trial = best_trial(study)
    if trial is None or trial.value is None:
        return None
    return {
        "trial": trial.number,
        "value": trial.value,
        "model": model_name(trial),
        "params": dict(trial.params),
    }


def _pace(study: Study, trials: TrialCounts) -> PaceValues:
    ends = (trial.datetime_complete for trial in study.get_trials(deepcopy=False))
    pace = recent_pace(end for end in ends if end is not None)
    if pace is None:
        return {"trials_per_hour": None, "seconds_left": None}
    left = max((trials["requested"] or 0) - trials["finished"], 0)
    return {"trials_per_hour": round(pace.trials_per_hour, 1), "seconds_left": round(pace.seconds_left(left), 1)}


def _confirming(progress: Progress | None) -> ConfirmingStatus | None:
    if progress is None:
        return None
    return {"study": progress.study.study_name, "finished": progress.finished, "planned": progress.planned}


def _ensemble(stored: Mapping[str, Any] | None) -> EnsembleStatus | None:
    if stored is None:
        return None
    return {
        "finished": stored["finished"],
        "trials": list(dict.fromkeys(stored["members"])),
        "value": stored["value"],
        "corrected": stored.get("corrected"),
    }


def _confirmed(stored: Mapping[str, Any] | None) -> ConfirmedStatus | None:
    if stored is None:
        return None
    score = stored["scores"].get(stored["winner"], {"mean": None, "interval": None})
    return {
        "finished": stored["finished"],
        "splits": stored["splits"],
        "winner": stored["winner"],
        "reason": stored["reason"],
        "value": score["mean"],
        "interval": score["interval"],
    }


def _nested(stored: Mapping[str, Any] | None) -> NestedStatus | None:
    if stored is None:
        return None
    score, gain = stored["scores"]["procedure"], stored["gains"][stored["best_baseline"]]
    return {
        "outer": stored["outer"],
        "trials": stored["trials"],
        "value": score["value"],
        "interval": score["interval"],
        "best_baseline": stored["best_baseline"],
        "gain": {"value": gain["value"], "interval": gain["interval"]},
    }


def _claim(study: Study) -> str | None:
    ensemble, confirmed, best = record.ensemble(study), winner.current_confirmed(study), best_trial(study)
    if best is None or (ensemble is None and confirmed is None):
        return None
    return winner.choose_winner(record.metric(study), best.value, ensemble, confirmed).claim


def _rounded(row: Mapping[str, Any]) -> dict[str, Any]:
    """A claim with durations rounded to a tenth of a second."""
    return {key: round(value, 1) if isinstance(value, float) else value for key, value in row.items()}
