"""What a study concludes: from its finished trials an ensemble, and from their scores on fresh splits a winner.

Both are computed once, by a worker that has the data, and stored as attributes of the study.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import optuna

from sparse_evidence.core import metrics, selection
from sparse_evidence.core.selection import Scorer

from ..database import predictions, record
from ..database.connection import engine_of
from ..database.locks import try_conclusion_lock
from ..database.optuna_storage import study_id, unwrap
from ..database.record import BASELINES, CONFIRMED, ENSEMBLE
from ..database.retry import retry
from . import confirming
from .confirming import Confirming
from .joining import scored_baselines

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

    from ..study.config import ConfirmConfig
    from .task import StudyTask

CANDIDATES = 300
"""The ensemble is chosen among so many of the best complete trials, so that the choice takes seconds."""
SIMPLEST_FIRST = ("chance", "zero_shot", "linear", "retrieval", "default")
"""Candidates that win if the best one is not better by more than a standard error."""


def is_due(study: optuna.Study) -> bool:
    """Whether all trials that were ever requested are finished."""
    return len(confirming.counted(study)) >= (record.requested(study) or 0)


def is_concluded(study: optuna.Study, settings: ConfirmConfig, finished: int | None = None) -> bool:
    """Whether nothing is left to conclude from the study's trials.

    With `finished`, from those that were finished first, and with these very settings; otherwise it is enough that
    all trials are confirmed, with whatever settings: `hpo confirm` may have used more splits.
    """
    trials = confirming.counted(study, finished)
    complete = len(record.best_first(study, trials))
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
        or (confirmed["finished"] == len(trials) and (finished is None or confirmed["study"].startswith(name)))
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

    return once(study, is_stored, store)


def _ensemble(study: optuna.Study, task: StudyTask, finished: int) -> dict[str, Any] | None:
    trials = confirming.counted(study, finished)
    stored = predictions.load(study, [trial.number for trial in trials])
    ranked = [trial for trial in record.best_first(study, trials) if trial.number in stored][:CANDIDATES]
    numbers = [trial.number for trial in ranked]
    if not numbers:
        return None
    scorer = make_scorer(task)
    logits = [stored[number] for number in numbers]
    bias = selection.pruning_bias(
        np.array([scorer.folds_of(stored[trial.number]) for trial in trials if trial.number in stored]),
        task.definition.split.stage_sizes()[0],
        higher_is_better=record.higher_is_better(study),
    )
    flattery = EpochFlattery(study, task)
    members = [numbers[member] for member in selection.choose_members(scorer, logits, range(task.folds.count))]
    mean = selection.mean_logits(stored, members)
    folds = scorer.folds_of(mean)
    kept = selection.leave_one_fold_out(scorer, logits, selection.choose_members, pruning=bias)
    corrected = float(kept.mean()) - fmean(map(flattery, members))
    best = numbers[0]
    best_kept = selection.leave_one_fold_out(scorer, logits, selection.choose_best, pruning=bias)
    left_out = scorer.without_blocks(mean)
    labels, scored = task.corpus.labels, task.folds.assignment >= 0
    return {
        "finished": finished,
        "members": members,
        "value": float(folds.mean()),
        "folds": folds.tolist(),
        "corrected": as_json(selection.estimate(corrected, left_out).of_score()),
        "threshold": metrics.best_threshold(labels[scored], metrics.sigmoid(mean[scored])),
        "best": {
            "trial": best,
            "value": ranked[0].value,
            "corrected": as_json(
                selection.estimate(
                    float(best_kept.mean()) - flattery(best), scorer.without_blocks(stored[best])
                ).of_score()
            ),
        },
        "over_default": _corrected_gain(scorer, corrected, left_out, "default", stored.get(0), flattery),
        "over_baseline": _corrected_gain(
            scorer, corrected, left_out, *best_baseline(scorer, scored_baselines(study, task)[1])
        ),
    }


class EpochFlattery:
    """How much a trial's value gains from taking the epoch that is best on the folds that score it.

    Args:
        study: the study.
        task: its data.
    """

    def __init__(self, study: optuna.Study, task: StudyTask) -> None:
        self._study, self._folds = study, task.folds.count
        self._known: dict[int, float] = {}

    def __call__(self, trial: int) -> float:
        """The gain of a trial by number, in the direction of the metric; 0 where it was not trained on all folds."""
        if trial not in self._known:
            curves = confirming.curves(self._study, trial)
            complete = len(curves) == self._folds
            better = record.higher_is_better(self._study)
            self._known[trial] = selection.epoch_flattery(curves, higher_is_better=better) if complete else 0.0
        return self._known[trial]


def best_baseline(scorer: Scorer, found: Mapping[str, npt.NDArray[np.float32]]) -> tuple[str, npt.NDArray[np.float32]]:
    """The best baseline on the search's folds by name, and its predictions, among those of all that read the posts."""
    name = max(found, key=lambda name: float(scorer.signed(scorer.value(found[name]))))
    return name, found[name]


def _corrected_gain(
    scorer: Scorer,
    corrected: float,
    left_out: npt.NDArray[np.float64],
    name: str,
    logits: npt.NDArray[Any] | None,
    flattery: EpochFlattery | None = None,
) -> dict[str, Any] | None:
    """The ensemble's corrected value minus another candidate's on the same folds; None if that has no predictions."""
    if logits is None or np.isnan(scorer.folds_of(logits)).any():
        return None
    other = scorer.value(logits) - (flattery(0) if flattery else 0.0)
    found = selection.estimate(corrected - other, left_out - scorer.without_blocks(logits))
    return {"name": name, **as_json(found)}


def make_scorer(task: StudyTask) -> Scorer:
    """Scores predictions on the task's folds; the blocks of posts are the same on every split of the same posts."""
    blocks = selection.make_blocks(task.corpus.groups, task.folds.assignment >= 0, task.definition.search.seed)
    return Scorer(task.definition.search.metric, task.corpus.labels, task.folds, blocks)


def as_json(found: selection.Estimate) -> dict[str, Any]:
    """The keys `value` and `interval`, as estimates are stored."""
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

    return once(parent, is_stored, lambda: parent.set_user_attr(CONFIRMED, _confirmed(confirm, task)))


def _confirmed(confirm: Confirming, task: StudyTask) -> dict[str, Any]:
    trials, plan = confirm.child.get_trials(deepcopy=False), confirm.plan
    maximize = record.higher_is_better(confirm.parent)
    dropped = confirming.dropped_out(trials)
    scores = fresh_scores(confirm, task, trials)
    everywhere = {name: found for name, found in scores.items() if len(found.values) == plan.splits and name != "0"}
    winner, reason = choose(everywhere, maximize=maximize)
    named = "; ".join(f"trial {trial} dropped out ({why})" for trial, why in dropped.items())
    baselines = [name for name in SIMPLEST_FIRST[:-1] if name in everywhere]
    best = max if maximize else min
    baseline = best(baselines, key=lambda name: everywhere[name].mean) if baselines else None
    return {
        "study": confirm.child.study_name,
        "finished": plan.finished,
        "splits": plan.splits,
        "members": [member for member in plan.members if member not in dropped],
        "scores": {name: found.as_json() for name, found in scores.items()},
        "winner": winner,
        "reason": f"{reason}; {named}" if named else reason,
        "over_default": _gain(scores, winner, "default"),
        "over_baseline": _gain(scores, winner, baseline),
        "over_others": [
            gain
            for name in baselines
            if name not in {baseline, "chance"} and (gain := _gain(scores, winner, name)) is not None
        ],
    }


@dataclass(frozen=True, eq=False)
class FreshScores:
    """The scores of a candidate on fresh splits."""

    values: dict[int, float]
    """By split."""
    left_out: dict[int, npt.NDArray[np.float64]]
    """By split, the same without each block of posts in turn, `[blocks]`."""

    @property
    def mean(self) -> float:
        """The mean value over the splits."""
        return fmean(self.values.values())

    def differences(self, other: FreshScores) -> list[float]:
        """How much better or worse than another candidate, on every split that both were scored on."""
        return [value - other.values[split] for split, value in self.values.items() if split in other.values]

    def minus(self, other: FreshScores) -> selection.Estimate:
        """The mean difference to another candidate on the splits that both were scored on."""
        shared = [split for split in self.values if split in other.values]
        left_out = [self.left_out[split] - other.left_out[split] for split in shared]
        return selection.estimate(self.differences(other), np.stack(left_out))

    def as_json(self) -> dict[str, Any]:
        """Mean, interval, and the value on every split."""
        found = selection.estimate(list(self.values.values()), np.stack(list(self.left_out.values()))).of_score()
        return {"mean": found.value, "interval": [found.low, found.high], "splits": list(self.values.values())}


def fresh_scores(confirm: Confirming, task: StudyTask, trials: Sequence[FrozenTrial]) -> dict[str, FreshScores]:
    """The scores of the ensemble, of single trials, of the default configuration and of the baselines.

    Candidates that dropped out are missing. A leader that was halved away has fewer splits, and so has a baseline that
    could not be scored on one.
    """
    plan, dropped = confirm.plan, confirming.dropped_out(trials)
    members = [member for member in plan.members if member not in dropped]
    scores: dict[str, FreshScores] = {}
    for split in range(plan.splits):
        scorer = make_scorer(task.on_split(split))
        found = logits_on_split(confirm, trials, split, dropped)
        candidates: dict[str, npt.NDArray[Any]] = {name: logits for name, logits in found.items() if name != "0"}
        if members:
            candidates["ensemble"] = selection.mean_logits({member: found[str(member)] for member in members}, members)
        if "0" in found:
            candidates["default"] = found["0"]
            candidates |= {"0": found["0"]} if 0 in (*plan.leaders, *plan.members) else {}
        for name, logits in candidates.items():
            of_splits = scores.setdefault(name, FreshScores({}, {}))
            of_splits.values[split] = scorer.value(logits)
            of_splits.left_out[split] = scorer.without_blocks(logits)
    if scores and (chance := _chance_on_splits(trials)):
        blocks = np.ones(int(make_scorer(task).blocks.max()) + 1)
        scores["chance"] = FreshScores(chance, {split: value * blocks for split, value in chance.items()})
    return scores


def logits_on_split(
    confirm: Confirming, trials: Sequence[FrozenTrial], split: int, dropped: Container[int]
) -> dict[str, npt.NDArray[np.float32]]:
    """The logits `[posts, criteria]` of every configuration and every baseline that was scored on a split."""
    here = [(entry, trial) for trial in trials if (entry := record.confirm(trial)) and entry["split"] == split]
    stored = predictions.load(confirm.child, [trial.number for _, trial in here])
    found: dict[str, npt.NDArray[np.float32]] = {}
    for entry, trial in here:
        if trial.number not in stored:
            continue
        if "baselines" in entry:
            names = record.baseline_names(trial.user_attrs[BASELINES])
            found |= predictions.apart(stored[trial.number], names)
        elif entry["trial"] not in dropped:
            found[str(entry["trial"])] = stored[trial.number]
    return found


def _chance_on_splits(trials: Sequence[FrozenTrial]) -> dict[int, float]:
    """What predictions that know nothing are worth, by split, where the baselines could be scored."""
    return {
        entry["split"]: trial.user_attrs[BASELINES]["chance"]
        for trial in sorted(trials, key=lambda trial: trial.number)
        if (entry := record.confirm(trial)) is not None and "chance" in trial.user_attrs.get(BASELINES, ())
    }


# --- comparing --------------------------------------------------------------------------------------------------------


def choose(scores: Mapping[str, FreshScores], *, maximize: bool) -> tuple[str | None, str]:
    """The winner and why, in two steps.

    What the search found is the best single trial, but the ensemble instead if that is as good within two standard
    errors: the best single trial is the luckiest of several. The winner is what has the best mean, that or a baseline
    or the default configuration; but the simplest of these instead if it is as good within one standard error.

    The standard error is that of the paired difference over the splits: which of the two is better on these posts.
    Whether it is better on other posts is less certain; what may be claimed follows from the intervals (`_gain`).

    Args:
        scores: by candidate, all on the same splits.
        maximize: whether higher values are better.
    """
    if not scores:
        return None, "nothing could be trained on fresh splits"
    sign = 1.0 if maximize else -1.0
    text = record.candidate_text
    found = [name for name in scores if name not in SIMPLEST_FIRST]
    simple = [name for name in SIMPLEST_FIRST if name in scores]
    best = max(found or simple, key=lambda name: sign * scores[name].mean)
    splits = len(scores[best].values)
    on = f"on {splits} fresh split{'' if splits == 1 else 's'}"
    reason = f"{text(best)} has the best mean {on} ({scores[best].mean:.4f})"
    if best != "ensemble" and "ensemble" in scores:
        gain, error = _paired(scores[best], scores["ensemble"], sign)
        if gain <= 2 * error:
            reason = (
                f"the ensemble depends less on luck than {text(best)} and is as good within two standard errors "
                f"{on} (difference {gain:.4f}, standard error {error:.4f})"
            )
            best = "ensemble"
    if simple and sign * scores[best].mean < max(sign * scores[name].mean for name in simple):
        best = max(simple, key=lambda name: sign * scores[name].mean)
        reason = f"{text(best)} has the best mean {on} ({scores[best].mean:.4f})"
    for name in simple[: simple.index(best)] if best in simple else simple:
        gain, error = _paired(scores[best], scores[name], sign)
        if gain <= error:
            return name, (
                f"{text(name)} is simpler than {text(best)} and is as good within one standard error {on} "
                f"(difference {gain:.4f}, standard error {error:.4f})"
            )
    return best, reason


def _paired(ours: FreshScores, other: FreshScores, sign: float) -> tuple[float, float]:
    """How much better we are, and the standard error over the splits; of a single split, that over its posts."""
    gains = [sign * gain for gain in ours.differences(other)]
    error = stdev(gains) / math.sqrt(len(gains)) if len(gains) > 1 else ours.minus(other).standard_error
    return fmean(gains), error


def _gain(scores: Mapping[str, FreshScores], winner: str | None, other: str | None) -> dict[str, Any] | None:
    """The winner's value minus another candidate's, on the same splits; None if it is the same or was not scored."""
    if winner is None or other is None or winner == other or other not in scores:
        return None
    return {"name": other, **as_json(scores[winner].minus(scores[other]))}


def once(study: optuna.Study, is_stored: Callable[[], bool], store: Callable[[], None]) -> bool:
    """Store a conclusion unless it is stored; False if another process is at it. The lock ends with its holder.

    Args:
        study: the study that the conclusion is about; other conclusions about it wait.
        is_stored: whether nothing is left to do.
        store: computes the conclusion and stores it.
    """

    def attempt() -> bool:
        if is_stored():
            return True
        with try_conclusion_lock(engine_of(study), study_id(study)) as ours:
            if ours and not is_stored():
                store()
        return ours

    return retry(attempt, unwrap(study).retry_seconds)
