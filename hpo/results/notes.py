"""What is said of a study and of its trials, in sentences: the notes of the dashboard, and part of `hpo why`.

A trial's sentences hold only what was known when it ended, so they stay true whatever comes later. They are made from
the numbers that are stored with the trial, so that they cannot contradict them and studies of earlier versions have
them, too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from optuna.trial import TrialState

from sparse_evidence.core.metrics import METRICS

from ..database import record
from . import winner
from .wording import (
    baselines_text,
    capitalized,
    count_text,
    duration,
    ensemble_text,
    metric_text,
    number,
)

if TYPE_CHECKING:
    from optuna import Study
    from optuna.trial import FrozenTrial


READING = (
    "Step n of the intermediate values is the mean over the first n folds; the last step is the value of a complete "
    "trial. A pruned trial was trained on fewer folds, so it has no value: its note says what it had, and why it was "
    "pruned. All values are on the folds of the search, which chose the best of them, so the best one flatters."
)
"""How to read the values of a study's trials."""


@dataclass(frozen=True)
class Facts:
    """What the sentences about a trial need to know of its study."""

    metric: str
    folds: int
    percentile: float | None
    """Of the pruning rule; None if the study file is of a version that had another one."""
    default: FrozenTrial | None
    """The default configuration; None until it is complete, and in a study that confirms another one."""
    best_before: Mapping[int, FrozenTrial | None]
    """By the number of a complete trial: which was the best one when it ended, itself aside."""

    @property
    def higher_is_better(self) -> bool:
        """The metric's direction."""
        return METRICS[self.metric].higher_is_better

    def gain(self, value: float, over: float) -> float:
        """How much better a value is than another one, above 0 whatever the metric."""
        return value - over if self.higher_is_better else over - value


def facts(definition: Mapping[str, Any], trials: Sequence[FrozenTrial]) -> Facts:
    """What is known of a study that hpo created.

    Args:
        definition: the study's, from `record.identity`.
        trials: all trials of the study, in order of number.
    """
    search = definition["search"]
    first = trials[0] if trials else None
    searched = first is not None and record.confirm(first) is None and record.cv(first) is not None
    return Facts(
        metric=search["metric"],
        folds=definition["split"]["folds"],
        percentile=search.get("pruner", {}).get("percentile"),
        default=first if searched else None,
        best_before=_best_before(trials, higher_is_better=METRICS[search["metric"]].higher_is_better),
    )


def _best_before(trials: Sequence[FrozenTrial], *, higher_is_better: bool) -> dict[int, FrozenTrial | None]:
    sign = 1.0 if higher_is_better else -1.0
    complete = [trial for trial in trials if record.cv(trial) is not None and trial.value is not None]
    best: FrozenTrial | None = None
    before: dict[int, FrozenTrial | None] = {}
    for trial in sorted(complete, key=lambda trial: (trial.datetime_complete, trial.number)):
        before[trial.number] = best
        if best is None or sign * (trial.value or 0.0) > sign * (best.value or 0.0):
            best = trial
    return before


# --- a trial ----------------------------------------------------------------------------------------------------------


def state_text(trial: FrozenTrial) -> str:
    """The trial's state: Optuna's in lower case, but `infeasible` or `failed` for a trial that failed."""
    if trial.state != TrialState.FAIL:
        return trial.state.name.lower()
    return record.INFEASIBLE if record.OUTCOME in trial.user_attrs else "failed"


def trial_seconds(trial: FrozenTrial) -> float | None:
    """From the start of a finished trial to its end, interruptions included."""
    if trial.datetime_start is None or trial.datetime_complete is None:
        return None
    return round((trial.datetime_complete - trial.datetime_start).total_seconds(), 3)


def trial_sentences(known: Facts, trial: FrozenTrial) -> list[str]:
    """What became of a trial and why, as it was known when it ended."""
    entry = record.confirm(trial)
    sentences = [] if entry is None else [_confirms(entry)]
    if trial.state == TrialState.COMPLETE:
        sentences += _complete(known, trial)
    elif trial.state == TrialState.PRUNED:
        sentences += _pruned(known, trial)
    elif trial.state == TrialState.FAIL:
        sentences.append(_failed(trial))
    else:
        sentences.append(_unfinished(known, trial))
    attempts = record.attempts(trial)
    if attempts > 1:
        sentences.append(f"It took {attempts} attempts: a worker that trained it died, failed or stalled.")
    seconds = trial_seconds(trial)
    return sentences if seconds is None else [*sentences, f"It took {duration(seconds)} from start to end."]


def _confirms(entry: Mapping[str, Any]) -> str:
    what = f"trial {entry['trial']} of the search" if "trial" in entry else "the baselines"
    return f"It trains {what} on fresh split {entry['split'] + 1}."


def _complete(known: Facts, trial: FrozenTrial) -> list[str]:
    summary = record.cv(trial)
    value = trial.value or 0.0
    name = metric_text(known.metric)
    if summary is None:  # the baselines on a fresh split
        return [f"Complete: {name} {number(value)}, that of the best baseline on this split."]
    scores = summary["folds"]
    sentences = [
        f"Complete: {name} {number(value)}, the mean over {count_text(len(scores), 'fold')} "
        f"({number(min(scores))} to {number(max(scores))}), at epoch {summary['best_epoch']} of {summary['epochs']}."
    ]
    if record.confirm(trial) is not None:
        return sentences
    sentences.append(_beside_the_best(known, value, known.best_before.get(trial.number)))
    default = known.default
    if default is not None and default.number != trial.number and _ended_before(default, trial):
        sentences.append(
            f"The default configuration (trial {default.number}) has {number(default.value)}: "
            f"this is {difference_text(known, value, default.value or 0.0)}."
        )
    return sentences


def _beside_the_best(known: Facts, value: float, best: FrozenTrial | None) -> str:
    if best is None or best.value is None:
        return "No other trial was complete when it ended."
    if known.gain(value, best.value) > 0:
        gain = difference_text(known, value, best.value)
        return f"It was the best trial when it ended, {gain} than trial {best.number} ({number(best.value)})."
    return (
        f"When it ended, trial {best.number} was the best with {number(best.value)}: "
        f"this is {difference_text(known, value, best.value)}."
    )


def difference_text(known: Facts, value: float, other: float) -> str:
    """`0.0127 better`, `0.0009 worse` or `equal`: a value beside another one."""
    gain = known.gain(value, other)
    return "equal" if gain == 0 else f"{number(abs(gain))} {'better' if gain > 0 else 'worse'}"


def _ended_before(first: FrozenTrial, second: FrozenTrial) -> bool:
    ends = first.datetime_complete, second.datetime_complete
    return ends[0] is not None and ends[1] is not None and ends[0] <= ends[1]


def _pruned(known: Facts, trial: FrozenTrial) -> list[str]:
    name, folds = metric_text(known.metric), trial.last_step
    reported = None if folds is None else trial.intermediate_values[folds]
    not_comparable = "Its value is of fewer folds than that of a complete trial, so the two cannot be compared."
    judged = record.pruned(trial)
    if judged is None:
        on = "" if folds is None else f" after {folds} of {known.folds} folds, with {name} {number(reported)} on them"
        return [f"Pruned{on}. The version that pruned it did not store the threshold.", not_comparable]
    value, threshold = distinct(judged["value"], judged["threshold"])
    at = f"at {'least' if known.higher_is_better else 'most'} {threshold}"
    best = f"the best {known.percentile:g} % of " if known.percentile is not None else ""
    rule = f"the pruning rule asked for {at}, as {best}{count_text(judged['peers'], 'other trial')} had on these folds"
    if judged["stage_ended"]:
        what = f"Pruned after {judged['folds']} of {known.folds} folds: {name} {value} on these folds, but {rule}."
    else:
        what = (
            f"Pruned while training the first {judged['folds']} of {known.folds} folds: it had {name} "
            f"{number(reported)} and could be expected to reach {value}, but {rule}."
        )
    return [what, not_comparable]


def distinct(value: float, other: float) -> tuple[str, str]:
    """Two different numbers with as many decimals, four or more, as tell them apart."""
    for decimals in range(4, 17):
        texts = f"{value:.{decimals}f}", f"{other:.{decimals}f}"
        if texts[0] != texts[1]:
            return texts
    return number(value), number(other)


def _failed(trial: FrozenTrial) -> str:
    reason = record.reason(trial)
    if reason is None:
        return "Failed, not by hpo: it does not count as finished, and another trial takes its place."
    return f"Infeasible, because this configuration cannot be trained to its end: {reason}."


def _unfinished(known: Facts, trial: FrozenTrial) -> str:
    if trial.state == TrialState.WAITING:
        return "Queued: no worker has started it yet."
    folds = trial.last_step
    if folds is None:
        return "Unfinished, and nothing reported yet."
    value = f"{metric_text(known.metric)} {number(trial.intermediate_values[folds])}"
    return f"Unfinished: {value} on its first {folds} of {known.folds} folds so far."


# --- a study ----------------------------------------------------------------------------------------------------------


def study_paragraphs(study: Study, trials: Sequence[FrozenTrial]) -> dict[str, str]:
    """What is searched, on which data, what must be beaten, what was found, and how to read it, by heading."""
    definition, metric = record.identity(study)["definition"], record.metric(study)
    better = "higher" if record.higher_is_better(study) else "lower"
    value = f"{metric_text(metric)}, the mean over the folds of the mean over the criteria; {better} is better"
    plan = study.user_attrs.get(record.PLAN)
    if plan is not None:
        searched = (
            f"Nothing: this study confirms another one. Each trial trains one of its leaders again, for a fixed number "
            f"of epochs, on one of {count_text(plan['splits'], 'fresh split')}. Values: {value}."
        )
    else:
        models = definition["model"]
        names = [model["name"] for model in ([models] if isinstance(models, Mapping) else models)]
        requested = record.requested(study)
        of = "" if requested is None else f", with {count_text(requested, 'trial')}"
        searched = f"{'The model' if len(names) == 1 else 'The models'} {', '.join(names)}{of}. Values: {value}."
    split = definition["split"]
    source = definition["data"]
    data = f"{source['source']}{' ' + str(source['path']) if 'path' in source else ''}, in {split['folds']} folds"
    holdout = split.get("holdout")
    held_out = f"; {holdout:.0%} of the posts are held out, and no trial sees them" if holdout else ""
    paragraphs = {"Searched": searched, "Data": f"{capitalized(data)}{held_out}."}
    if plan is None:
        baselines = baselines_text(metric, record.baselines(study))
        paragraphs["To beat"] = f"{capitalized(baselines)}: the baselines on the same folds."
        paragraphs["Found"] = " ".join(_found(study, trials))
        paragraphs["How to read it"] = READING
    return paragraphs


def _found(study: Study, trials: Sequence[FrozenTrial]) -> list[str]:
    ranked = record.best_first(study, trials)
    if not ranked:
        return ["No trial is complete yet."]
    metric, best = record.metric(study), ranked[0]
    ensemble, confirmed = record.ensemble(study), winner.current_confirmed(study)
    found = [f"The best of {count_text(len(ranked), 'complete trial')} is trial {best.number}: {number(best.value)}."]
    if ensemble is not None:
        found.append(
            f"{capitalized(ensemble_text(ensemble['members'], ensemble['value'], ensemble.get('corrected')))}."
        )
    return [*found, winner.choose_winner(metric, best.value, ensemble, confirmed).claim]
