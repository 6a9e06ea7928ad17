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

from sparse_evidence.core import metrics, selection
from sparse_evidence.core.selection import Estimate, Logits, Scorer

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

SIMPLEST_FIRST = ("chance", "zero_shot", "linear", "retrieval", "default")
"""Candidates that win if the best one is not better by more than a standard error."""

Scores = dict[str, list[float]]
"""By name of a candidate, its value on every fresh split on which it was scored."""
LeftOut = dict[str, npt.NDArray[np.float64]]
"""By name of a candidate, its value on every fresh split without each block of posts `[splits, blocks]`."""


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
    trials = confirming.counted(study, finished)
    stored = predictions.load(study, [trial.number for trial in trials])
    complete = [trial for trial in confirming.rank(study, trials) if trial.number in stored]
    if not complete:
        return None
    scorer, numbers = task.scorer(), sorted(trial.number for trial in complete)
    logits, every = [stored[number] for number in numbers], range(task.folds.count)
    fold_scores = np.array([scorer.folds_of(stored[number]) for number in sorted(stored)])
    bias = selection.pruning_bias(
        fold_scores, task.definition.split.stage_sizes()[0], higher_is_better=scorer.metric.higher_is_better
    )
    picks = selection.choose_members(scorer, logits, every)
    averaged = selection.mean_logits(logits, picks)
    members, best = _Choice(scorer, averaged), _Choice(scorer, stored[complete[0].number])
    honest = selection.leave_one_fold_out(scorer, logits, selection.choose_members, pruned_by=bias)
    honest_best = selection.leave_one_fold_out(scorer, logits, selection.choose_best, pruned_by=bias)
    scored = task.folds.assignment >= 0
    return {
        "finished": finished,
        "members": [numbers[pick] for pick in picks],
        "value": scorer.value(averaged),
        "folds": scorer.folds_of(averaged).tolist(),
        **members.corrected(honest),
        "threshold": metrics.best_threshold(task.corpus.labels[scored], selection.probabilities(averaged[scored])),
        "best": {"trial": complete[0].number, "value": complete[0].value, **best.corrected(honest_best)},
        **_over_simple(task, members, honest, stored.get(0)),
    }


class _Choice:
    """Predictions that were chosen, and their score without each block of posts."""

    def __init__(self, scorer: Scorer, logits: Logits) -> None:
        self.scorer = scorer
        self.left_out = scorer.without_blocks(logits)

    def corrected(self, honest: npt.NDArray[np.float64]) -> dict[str, Any]:
        """The value corrected for selection, and its interval, from its scores on the folds."""
        found = selection.estimate(honest.mean(), self.left_out)
        return {"corrected": found.value, "interval": [found.low, found.high]}

    def gain(self, honest: npt.NDArray[np.float64], other: Logits) -> dict[str, Any]:
        """By how much it is better than predictions that were not chosen; above 0 is better in any metric."""
        gain = self.scorer.signed(honest.mean() - self.scorer.value(other))
        return _interval(
            selection.estimate(gain, self.scorer.signed(self.left_out - self.scorer.without_blocks(other)))
        )


def _over_simple(
    task: StudyTask, members: _Choice, honest: npt.NDArray[np.float64], default: Logits | None
) -> dict[str, Any]:
    """The gains over the default configuration (None if it was pruned or is infeasible) and over the best baseline."""
    scorer = members.scorer
    is_scored = default is not None and not np.isnan(scorer.value(default))
    baselines = _baseline_logits(task)
    name = max(baselines, key=lambda name: float(scorer.signed(scorer.value(baselines[name]))))
    return {
        "over_default": members.gain(honest, default) if default is not None and is_scored else None,
        "over_baseline": {"name": name, **members.gain(honest, baselines[name])},
    }


def _baseline_logits(task: StudyTask) -> dict[str, Logits]:
    """The baselines' predictions on a task's folds as logits; similarities are ranked as they are."""
    from scipy.special import logit

    found = task.baseline_predictions()
    return {name: scores if name == "zero_shot" else logit(scores) for name, scores in found.items()}


def _interval(found: Estimate) -> dict[str, Any]:
    return {"value": found.value, "interval": [found.low, found.high]}


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
    last = len(confirming.rounds(len(plan.leaders), plan.splits)) - 1
    finalists = [
        leader for leader in confirming.leaders_left(plan, trials, last, maximize=maximize) if leader not in dropped
    ]
    scores = candidate_scores(plan, trials)
    values, left_out = _on_splits(confirm, task, members, [*finalists, *([0] if "default" in scores else [])])
    scores = {**({"ensemble": values} if members else {}), **scores}
    eligible = [name for name in ("ensemble", *map(str, finalists), *SIMPLEST_FIRST) if name in scores]
    winner, reason = choose({name: scores[name] for name in eligible}, maximize=maximize)
    named = "; ".join(f"trial {trial} dropped out ({why})" for trial, why in dropped.items())
    best = max if maximize else min
    baseline = best(
        (name for name in SIMPLEST_FIRST[:-1] if name in scores), key=lambda name: fmean(scores[name]), default=None
    )
    return {
        "study": confirm.child.study_name,
        "finished": plan.finished,
        "splits": plan.splits,
        "members": members,
        "scores": {
            name: {"mean": fmean(values), "interval": _interval_of(values, left_out.get(name)), "splits": values}
            for name, values in scores.items()
        },
        "winner": winner,
        "reason": f"{reason}; {named}" if named else reason,
        "over_default": _gain(scores, left_out, winner, "default", maximize=maximize),
        "over_baseline": _gain(scores, left_out, winner, baseline, maximize=maximize),
    }


def _on_splits(
    confirm: Confirming, task: StudyTask, members: Sequence[int], singles: Sequence[int]
) -> tuple[list[float], LeftOut]:
    """The ensemble's value on every split; of all candidates that may win, the score without each block of posts."""
    numbers = {
        (entry["split"], entry["trial"]): trial.number
        for trial in confirm.child.get_trials(deepcopy=False)
        if (entry := record.confirm(trial)) is not None and "trial" in entry
    }
    values: list[float] = []
    left_out: dict[str, list[npt.NDArray[np.float64]]] = {}
    for split in range(confirm.plan.splits):
        on_split = task.on_split(split)
        scorer, again = on_split.scorer(), {trial: numbers[split, trial] for trial in {*members, *singles}}
        stored = predictions.load(confirm.child, again.values())
        candidates = _baseline_logits(on_split)
        candidates |= {str(single): stored[again[single]] for single in singles}
        if confirm.plan.default in singles:
            candidates["default"] = candidates[str(confirm.plan.default)]
        if members:
            candidates["ensemble"] = selection.mean_logits([stored[again[m]] for m in members], range(len(members)))
            values.append(scorer.value(candidates["ensemble"]))
        for name, logits in candidates.items():
            left_out.setdefault(name, []).append(scorer.without_blocks(logits))
    return values, {name: np.array(blocks) for name, blocks in left_out.items()}


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
            if not any(value is None or math.isnan(value) for value in known):
                scores[name] = known
    return scores


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


def _interval_of(values: Sequence[float], left_out: npt.NDArray[np.float64] | None) -> list[float] | None:
    """The 95 % interval of a mean over splits; None for candidates that could not win."""
    if left_out is None or len(left_out) != len(values):
        return None
    found = selection.estimate(values, left_out)
    return [found.low, found.high]


def _gain(
    scores: Scores, left_out: LeftOut, winner: str | None, other: str | None, *, maximize: bool
) -> dict[str, Any] | None:
    """By how much the winner is better, on the same splits and posts; None over itself or what was not scored."""
    if winner is None or other is None or winner == other or other not in scores:
        return None
    sign = 1.0 if maximize else -1.0
    gains = sign * (np.array(scores[winner]) - np.array(scores[other]))
    if winner not in left_out or other not in left_out:  # chance has no predictions
        return {"name": other, "value": float(gains.mean()), "interval": None}
    return {"name": other, **_interval(selection.estimate(gains, sign * (left_out[winner] - left_out[other])))}


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
