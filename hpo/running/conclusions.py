"""What a study concludes: from its finished trials an ensemble, and from their scores on fresh splits a winner.

Both are computed once, by a worker that has the data, and stored as attributes of the study.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from statistics import fmean, stdev
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import optuna

from sparse_evidence.core import metrics

from ..database import predictions, record
from ..database.connection import engine_of, try_conclusion_lock
from ..database.optuna_storage import study_id, unwrap
from ..database.record import BASELINES, CONFIRMED, ENSEMBLE
from ..database.retry import retry
from . import confirming
from .confirming import Confirming, Plan

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

    from ..study.config import ConfirmConfig
    from .task import StudyTask

MEMBERS = 10
"""Trials that the ensemble averages."""
SIMPLEST_FIRST = ("chance", "zero_shot", "linear", "retrieval", "default")
"""Candidates that win if the best one is not better by more than a standard error."""

Scores = dict[str, list[float]]
"""By name of a candidate, its value on every fresh split on which it was scored."""


def is_due(study: optuna.Study) -> bool:
    """Whether all trials that were ever requested are finished."""
    return len(confirming.counted(study)) >= (record.requested(study) or 0)


def is_concluded(study: optuna.Study, settings: ConfirmConfig, finished: int | None = None) -> bool:
    """Whether nothing is left to conclude from the study's trials.

    With `finished`, from those that were finished first, and with these very settings; otherwise it is enough that
    all trials are confirmed, with whatever settings: `hpo confirm` may have used more splits.
    """
    trials = confirming.counted(study, finished)
    complete = len(confirming.rank(study, trials))
    if not complete or (finished is None and not is_due(study)):
        return True
    ensemble, confirmed = record.ensemble(study), record.confirmed(study)
    if ensemble is None or ensemble["finished"] < len(trials):
        return False
    leaders = min(settings.leaders, complete)
    if leaders == 0:
        return True
    name = confirming.child_name(study.study_name, len(trials), leaders, settings.splits)
    return confirmed is not None and (
        confirmed["finished"] > len(trials)
        or (confirmed["finished"] == len(trials) and (finished is None or confirmed["study"] == name))
    )


# --- the ensemble -----------------------------------------------------------------------------------------------------


def conclude_search(study: optuna.Study, task: StudyTask, finished: int | None = None) -> bool:
    """Choose the ensemble and store it; False if another process is doing so. No complete trial: nothing is stored.

    Args:
        study: the study.
        task: its data.
        finished: only the trials that were finished first; default: all.

    Raises:
        StorageError: the database is unreachable.
    """
    count = len(confirming.counted(study, finished))

    def is_stored() -> bool:
        stored = record.ensemble(study)
        return stored is not None and stored["finished"] >= count

    def store() -> None:
        if (conclusion := _ensemble(study, task, count)) is not None:
            study.set_user_attr(ENSEMBLE, conclusion)

    return _once(study, is_stored, store)


def _ensemble(study: optuna.Study, task: StudyTask, finished: int) -> dict[str, Any] | None:
    ranked = confirming.rank(study, confirming.counted(study, finished))
    if not ranked:
        return None
    best, members = ranked[0], [trial.number for trial in ranked[:MEMBERS]]
    logits = average(predictions.load(study, members), members)
    folds = _fold_scores(task, logits)
    labels, scored = task.corpus.labels, task.folds.assignment >= 0
    return {
        "finished": finished,
        "members": members,
        "value": fmean(folds),
        "folds": folds,
        "threshold": metrics.best_threshold(labels[scored], _probabilities(logits[scored])),
        "best": {"trial": best.number, "value": best.value},
    }


def average(logits: Mapping[int, npt.NDArray[np.float32]], members: Sequence[int]) -> npt.NDArray[np.float64]:
    """The ensemble's logits `[posts, criteria]`: the mean of its members' logits; NaN where one is.

    A member that is listed more often weighs more.
    """
    mean: npt.NDArray[np.float64] = np.mean(np.stack([logits[m] for m in members]).astype(np.float64), axis=0)
    return mean


def _fold_scores(task: StudyTask, logits: npt.NDArray[np.float64]) -> list[float]:
    probabilities = _probabilities(logits)
    return [task.score(probabilities, fold) for fold in range(task.folds.count)]


def _probabilities(logits: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    from scipy.special import expit

    return np.asarray(expit(logits))


# --- confirming -------------------------------------------------------------------------------------------------------


def conclude_confirming(confirm: Confirming, task: StudyTask) -> bool:
    """Choose the winner from the scores on fresh splits and store it; False if another process is doing so.

    Raises:
        StorageError: the database is unreachable.
    """
    parent, name = confirm.parent, confirm.child.study_name

    def is_stored() -> bool:
        stored = record.confirmed(parent)
        return stored is not None and (stored["study"] == name or stored["finished"] > confirm.plan.finished)

    return _once(parent, is_stored, lambda: parent.set_user_attr(CONFIRMED, _confirmed(confirm, task)))


def _confirmed(confirm: Confirming, task: StudyTask) -> dict[str, Any]:
    trials, plan = confirm.child.get_trials(deepcopy=False), confirm.plan
    maximize = confirming.higher_is_better(confirm.parent)
    dropped = confirming.dropped_out(trials)
    members = [member for member in plan.members if member not in dropped]
    scores = candidate_scores(plan, trials)
    if members:
        scores = {"ensemble": _ensemble_scores(confirm, task, trials, members), **scores}
    last = len(confirming.rounds(len(plan.leaders), plan.splits)) - 1
    finalists = [str(leader) for leader in confirming.leaders_left(plan, trials, last, maximize=maximize)]
    eligible = {name: scores[name] for name in ("ensemble", *finalists, *SIMPLEST_FIRST) if name in scores}
    winner, reason = choose(eligible, maximize=maximize)
    named = "; ".join(f"trial {trial} dropped out ({why})" for trial, why in dropped.items())
    baselines = {name: fmean(values) for name, values in eligible.items() if name in SIMPLEST_FIRST[:-1]}
    best = max if maximize else min
    baseline = best(baselines, key=lambda name: baselines[name]) if baselines else None
    return {
        "study": confirm.child.study_name,
        "finished": plan.finished,
        "splits": plan.splits,
        "members": members,
        "scores": {name: {**summary(values), "splits": values} for name, values in scores.items()},
        "winner": winner,
        "reason": f"{reason}; {named}" if named else reason,
        "over_default": _gain(scores, winner, "default"),
        "over_baseline": _gain(scores, winner, baseline),
    }


def candidate_scores(plan: Plan, trials: Sequence[FrozenTrial]) -> Scores:
    """The values of all candidates but the ensemble on every split, without those that dropped out."""
    dropped = confirming.dropped_out(trials)
    values = {
        trial: [by_split[split] for split in sorted(by_split)]
        for trial, by_split in sorted(confirming.values_by_split(trials).items())
        if trial not in dropped
    }
    scores = {str(trial): values[trial] for trial in (*plan.leaders, *plan.members) if trial in values}
    if plan.default in values:
        scores["default"] = values[plan.default]
    on_splits = {
        entry["split"]: trial.user_attrs[BASELINES]
        for trial in trials
        if (entry := record.confirm(trial)) is not None and BASELINES in trial.user_attrs
    }
    if len(on_splits) == plan.splits:
        for name in (*record.baseline_names(on_splits[0]), "chance"):
            known = [on_splits[split].get(name) for split in range(plan.splits)]
            if None not in known:
                scores[name] = known
    return scores


def _ensemble_scores(
    confirm: Confirming, task: StudyTask, trials: Sequence[FrozenTrial], members: Sequence[int]
) -> list[float]:
    """The ensemble's value on every split: its members' logits averaged, scored fold by fold, then the mean."""
    numbers = {
        (entry["split"], entry["trial"]): trial.number
        for trial in trials
        if (entry := record.confirm(trial)) is not None and "trial" in entry
    }
    values = []
    for split in range(confirm.plan.splits):
        again = [numbers[split, member] for member in members]
        logits = average(predictions.load(confirm.child, again), again)
        values.append(fmean(_fold_scores(task.on_split(split), logits)))
    return values


# --- comparing --------------------------------------------------------------------------------------------------------


def choose(scores: Mapping[str, Sequence[float]], *, maximize: bool) -> tuple[str | None, str]:
    """The winner and why: the best mean, or the simplest candidate that is as good within one standard error.

    Only the default configuration and the baselines are simpler than what a search finds; a single trial does not
    displace an ensemble.

    Args:
        scores: by candidate, its value on every split.
        maximize: whether higher values are better.
    """
    if not scores:
        return None, "nothing could be trained on fresh splits"
    sign = 1.0 if maximize else -1.0
    best = max(scores, key=lambda name: sign * fmean(scores[name]))
    splits = len(scores[best])
    on = f"on {splits} fresh split{'' if splits == 1 else 's'}"
    ordered = [name for name in SIMPLEST_FIRST if name in scores]
    for name in ordered[: ordered.index(best)] if best in ordered else ordered:
        gains = [sign * (a - b) for a, b in zip(scores[best], scores[name], strict=True)]
        if fmean(gains) <= standard_error(gains):
            return name, (
                f"{_described(name)} is simpler than {_described(best)} and as good within one standard error {on} "
                f"(difference {fmean(gains):.4f}, standard error {standard_error(gains):.4f})"
            )
    return best, f"{_described(best)} has the best mean {on} ({fmean(scores[best]):.4f})"


def standard_error(values: Sequence[float]) -> float:
    """Standard error of the mean; 0 of a single value, whose spread is unknown."""
    return stdev(values) / math.sqrt(len(values)) if len(values) > 1 else 0.0


def summary(values: Sequence[float]) -> dict[str, Any]:
    """Mean and 95 % interval (Student's t) of values on splits; no interval of a single one."""
    mean = fmean(values)
    if len(values) < 2:
        return {"mean": mean, "interval": None}
    from scipy.special import stdtrit

    half = float(stdtrit(len(values) - 1, 0.975)) * standard_error(values)
    return {"mean": mean, "interval": [mean - half, mean + half]}


def _gain(scores: Scores, winner: str | None, other: str | None) -> dict[str, Any] | None:
    """The winner's value minus another candidate's, on the same splits; None if it is the same or was not scored."""
    if winner is None or other is None or winner == other or other not in scores:
        return None
    gain = summary([a - b for a, b in zip(scores[winner], scores[other], strict=True)])
    return {"name": other, "value": gain["mean"], "interval": gain["interval"]}


def _described(name: str) -> str:
    if name.isdigit():
        return f"trial {name}"
    kinds = {"ensemble": "the ensemble", "default": "the default configuration", "chance": "chance"}
    return kinds.get(name, f"the {name.replace('_', '-')} baseline")


def _once(study: optuna.Study, is_stored: Callable[[], bool], store: Callable[[], None]) -> bool:
    """Store a conclusion unless it is stored; False if another process is at it. The lock ends with its holder."""

    def attempt() -> bool:
        if is_stored():
            return True
        with engine_of(study).begin() as connection:
            if not try_conclusion_lock(connection, study_id(study)):
                return False
            if not is_stored():
                store()
            return True

    return retry(attempt, unwrap(study).retry_seconds)
