"""Finished trials, in the order in which they ended, and each as the row that a person watching reads."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rich.text import Text

from ..database import record
from .notes import trial_seconds
from .wording import count_text, duration, number

if TYPE_CHECKING:
    from optuna import Study
    from optuna.trial import FrozenTrial

_OUTCOME_WIDTH = 26
_MODEL_WIDTH = 9
_TIME_WIDTH = 10
HEADING = f"{'trial':>5}  {'value':<{_OUTCOME_WIDTH}}  {'model':<{_MODEL_WIDTH}}  {'time':>{_TIME_WIDTH}}"
"""Stands above rows."""


def finished_trials(study: Study) -> list[FrozenTrial]:
    """The finished trials in the order in which they ended."""
    trials = [trial for trial in study.get_trials(deepcopy=False) if trial.state.is_finished()]
    return sorted(trials, key=lambda trial: (trial.datetime_complete, trial.number))


def outcome_text(trial: FrozenTrial) -> str:
    """`0.5437`, `0.5131 on 2 folds, pruned`, `0.5293 on fresh split 2`, `infeasible` or `failed`."""
    from optuna.trial import TrialState

    if trial.state == TrialState.COMPLETE:
        entry = record.confirm(trial)
        return number(trial.value) + ("" if entry is None else f" on fresh split {entry['split'] + 1}")
    if trial.state == TrialState.PRUNED:
        step = trial.last_step
        return f"{number(trial.intermediate_values[step])} on {count_text(step, 'fold')}, pruned" if step else "pruned"
    return "failed" if record.reason(trial) is None else "infeasible"


def row_text(trial: FrozenTrial, *, is_best: bool = False) -> Text:
    """A line that is cut, not wrapped: number, value, model, time; attempts if more than one; if it is the best yet.

    A trial that confirms another one has the number of that.
    """
    entry: dict[str, Any] = record.confirm(trial) or {"trial": trial.number}
    name = str(entry.get("trial", ""))
    seconds = trial_seconds(trial)
    time = "–" if seconds is None else duration(seconds)
    attempts = record.attempts(trial)
    notes = [*(["best so far"] if is_best else []), *([f"{attempts} attempts"] if attempts > 1 else [])]
    line = (
        f"{name:>5}  {outcome_text(trial):<{_OUTCOME_WIDTH}}  {_model(trial, entry):<{_MODEL_WIDTH}}  "
        f"{time:>{_TIME_WIDTH}}  {', '.join(notes)}"
    )
    return Text(line.rstrip(), style="bold green" if is_best else "", no_wrap=True, overflow="ellipsis")


def model_name(trial: FrozenTrial) -> str | None:
    """The model that the trial trained; None if it ended before its parameters were drawn."""
    config = trial.user_attrs.get(record.CONFIG)
    return None if config is None else str(config["model"]["name"])


def _model(trial: FrozenTrial, entry: dict[str, Any]) -> str:
    return (model_name(trial) or "–") if "trial" in entry else "baselines"
