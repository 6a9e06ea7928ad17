"""The state of a study as a plain value: trials by state, the best so far, who works on what, the pace."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from ..database.connection import engine_of
from ..database.record import ATTEMPTS, BASELINES, IDENTITY, REQUESTED
from .best import best_trial

if TYPE_CHECKING:
    from optuna import Study


def study_status(study: Study) -> dict[str, Any]:
    """Trials by state, the best so far, who works on what, and trials begun more than once, as JSON values."""
    from ..database.claims_sql import count_trials, list_claims

    counts = count_trials(study)
    held = list_claims(engine_of(study), study)
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
