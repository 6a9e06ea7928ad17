"""Why a trial is where it is, as plain values and in sentences: also what became known after it had ended."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypedDict

from sparse_evidence.core.errors import UserError

from ..database import record
from . import notes, winner
from .wording import count_text, estimate_text, metric_text, number, setting_text

if TYPE_CHECKING:
    from optuna import Study
    from optuna.trial import FrozenTrial

WEAKEST = 2
"""How many of the folds on which a trial lost most are named."""


class BestTrial(TypedDict):
    """The best complete trial."""

    trial: int
    value: float
    folds: list[float]


class Confirmed(TypedDict):
    """What the trial scored on fresh splits."""

    mean: float
    interval: list[float]
    splits: int
    winner: bool
    """Whether it is the confirmed result."""


class Why(TypedDict):
    """What `hpo why --json` prints."""

    study: str
    metric: str
    trial: int
    state: str
    """From `notes.state_text`: `complete`, `pruned`, `infeasible`, `failed`, `running` or `waiting`."""
    value: float | None
    """On all folds; None for a trial that was not scored on all of them."""
    folds: list[float] | None
    """The value on every fold."""
    rank: int | None
    """Its place among the complete trials, from 1; of equal ones the first trial is first."""
    complete: int
    """How many trials are complete."""
    best: BestTrial | None
    behind: float | None
    """How much worse its value is than that of the best trial."""
    pruned: dict[str, Any] | None
    """What the pruning rule compared: `folds`, `value`, `threshold`, `peers`, and whether the stage had ended."""
    reported: dict[str, Any] | None
    """Of a trial without a value: its mean (`value`) over the first `folds`; None before its first stage ended."""
    reason: str | None
    """Why it is infeasible."""
    weight: float | None
    """Its weight in the ensemble; 0 if it is not a member, None if no ensemble has been chosen."""
    confirmed: Confirmed | None
    differs: dict[str, list[Any]]
    """Parameters by name, where the two differ: this trial's value and the best one's; null where it has none."""
    seconds: float | None
    attempts: int
    sentences: list[str]
    """The same in words."""


def why(study: Study, trial_number: int) -> Why:
    """What is known of a trial of a study.

    Raises:
        UserError: the study has no such trial.
    """
    trials = study.get_trials(deepcopy=False)
    if trial_number >= len(trials):
        exist = f"its trials are 0 to {len(trials) - 1}" if trials else "it has none yet"
        raise UserError(f"the study {study.study_name!r} has no trial {trial_number}; {exist}")
    trial = trials[trial_number]
    ranked = record.best_first(study, trials)
    best = ranked[0] if ranked else None
    known = notes.facts(record.identity(study)["definition"], trials)
    rank = next((place for place, other in enumerate(ranked, 1) if other.number == trial.number), None)
    confirmed = winner.current_confirmed(study)
    chosen = confirmed or record.ensemble(study)
    members = None if chosen is None else list(chosen["members"])  # of the result's ensemble, with repetitions
    result = _values(study, known, trial, ranked, rank, confirmed, members)
    result["sentences"] = [*notes.trial_sentences(known, trial), *_later(known, trial, best, result)]
    if members is not None and trial.state.is_finished():
        result["sentences"] += _outcome(members, confirmed, result)
    return result


def _values(
    study: Study,
    known: notes.Facts,
    trial: FrozenTrial,
    ranked: Sequence[FrozenTrial],
    rank: int | None,
    confirmed: Mapping[str, Any] | None,
    members: Sequence[int] | None,
) -> Why:
    best = ranked[0] if ranked else None
    value = trial.value if rank is not None else None
    return {
        "study": study.study_name,
        "metric": known.metric,
        "trial": trial.number,
        "state": notes.state_text(trial),
        "value": value,
        "folds": None if (summary := record.cv(trial)) is None else summary["folds"],
        "rank": rank,
        "complete": len(ranked),
        "best": None if best is None else _best(best),
        "behind": None if value is None or best is None else known.gain(best.value or 0.0, value),
        "pruned": record.pruned(trial),
        "reported": _reported(trial) if value is None else None,
        "reason": record.reason(trial),
        "weight": None if members is None else members.count(trial.number) / len(members),
        "confirmed": _confirmed(confirmed, trial.number),
        "differs": {} if best is None else _differs(trial.params, best.params),
        "seconds": notes.trial_seconds(trial),
        "attempts": record.attempts(trial),
        "sentences": [],
    }


def _best(trial: FrozenTrial) -> BestTrial:
    summary = record.cv(trial) or {}
    return {"trial": trial.number, "value": trial.value or 0.0, "folds": summary["folds"]}


def _reported(trial: FrozenTrial) -> dict[str, Any] | None:
    step = trial.last_step
    return None if step is None else {"folds": step, "value": trial.intermediate_values[step]}


def _confirmed(confirmed: Mapping[str, Any] | None, trial_number: int) -> Confirmed | None:
    name = "default" if trial_number == 0 else str(trial_number)
    if confirmed is None or name not in confirmed["scores"]:
        return None
    score = confirmed["scores"][name]
    return {
        "mean": score["mean"],
        "interval": score["interval"],
        "splits": len(score["splits"]),
        "winner": confirmed["winner"] == name,
    }


def _differs(params: Mapping[str, Any], best: Mapping[str, Any]) -> dict[str, list[Any]]:
    names = dict.fromkeys([*best, *params])
    return {name: [params.get(name), best.get(name)] for name in names if params.get(name) != best.get(name)}


# --- in sentences -----------------------------------------------------------------------------------------------------


def _later(known: notes.Facts, trial: FrozenTrial, best: FrozenTrial | None, values: Why) -> list[str]:
    """Where the trial stands now, and what tells it from the best one."""
    if best is None:
        return []
    if values["rank"] == 1:
        return [f"It is the best of {count_text(values['complete'], 'complete trial')} by now."]
    sentences = []
    if values["rank"] is not None and values["folds"] is not None:
        sentences.append(
            f"By now it is number {values['rank']} of {count_text(values['complete'], 'complete trial')}; the best is "
            f"trial {best.number} with {number(best.value)}, {number(values['behind'])} better."
        )
        sentences += _weak_folds(known, values["folds"], best)
    elif trial.last_step is not None and trial.last_step in best.intermediate_values:
        reported = best.intermediate_values[trial.last_step]
        folds = count_text(trial.last_step, "fold")
        sentences.append(
            f"The best trial by now, {best.number}, had {metric_text(known.metric)} {number(reported)} on the same "
            f"{folds}, and has {number(best.value)} on all {known.folds}."
        )
    return [*sentences, *_parameters(values["differs"], best.number)]


def _weak_folds(known: notes.Facts, folds: Sequence[float], best: FrozenTrial) -> list[str]:
    """On which folds the trial lost most against the best one; folds count from 1, as people do."""
    of_best = (record.cv(best) or {})["folds"]
    losses = sorted(
        ((known.gain(other, own), fold) for fold, (own, other) in enumerate(zip(folds, of_best, strict=True))),
        key=lambda loss: (-loss[0], loss[1]),
    )
    lost = [
        f"fold {fold + 1} ({number(folds[fold])}, not {number(of_best[fold])})"
        for loss, fold in losses[:WEAKEST]
        if loss > 0
    ]
    return [f"Against trial {best.number} it lost most on {' and '.join(lost)}."] if lost else []


def _parameters(differs: Mapping[str, Sequence[Any]], best: int) -> list[str]:
    """What tells the two apart; parameters that only one of them has follow from another choice, such as the model."""
    common = {name: pair for name, pair in differs.items() if None not in pair}
    if not common:
        return []
    listed = ", ".join(
        f"{name} {setting_text(own)} (not {setting_text(other)})" for name, (own, other) in common.items()
    )
    return [f"Its parameters that differ from those of trial {best}: {listed}."]


def _outcome(members: Sequence[int], confirmed: Mapping[str, Any] | None, values: Why) -> list[str]:
    """Its part in the ensemble and in confirming."""
    picks, size = members.count(values["trial"]), len(members)
    if picks:
        sentences = [f"It is in the ensemble, with weight {picks} of {size}."]
    else:
        sentences = [f"It is not in the ensemble of {count_text(len(set(members)), 'trial')}."]
    scored = values["confirmed"]
    if scored is not None:
        end = " It is the confirmed result." if scored["winner"] else ""
        sentences.append(
            f"On {count_text(scored['splits'], 'fresh split')} it has {metric_text(values['metric'])} "
            f"{estimate_text(scored['mean'], scored['interval'])}.{end}"
        )
    elif confirmed is not None:
        sentences.append("It was not trained on fresh splits: neither a leader, nor the default, nor in the ensemble.")
    return sentences
