"""The best trials beside the ensemble, the default configuration and the baselines, each with what is known of it.

Values and gains are on the folds of the search, which chose the trials, so they flatter them; `confirmed` does not.
Intervals are those of `core.selection`, from the out-of-fold predictions that are stored for every trial.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypedDict

import numpy as np
import numpy.typing as npt

from sparse_evidence.core import selection

from ..database import predictions, record
from ..database.record import BASELINE_NAMES
from ..running.conclusions import as_json, best_baseline, make_scorer
from ..running.joining import scored_baselines
from . import winner
from .best import nothing_complete
from .notes import state_text, trial_seconds

if TYPE_CHECKING:
    from optuna import Study
    from optuna.trial import FrozenTrial

    from ..running.task import StudyTask

Logits = npt.NDArray[Any]
"""Out-of-fold predictions `[posts, criteria]`."""


class Row(TypedDict):
    """A trial, the ensemble or a baseline."""

    name: str
    """As `best.json` names it: the number of a trial, `ensemble`, `default`, or a baseline."""
    value: float | None
    """On the folds of the search; None for a default configuration that was pruned."""
    interval: list[float] | None
    """The 95 % interval of the value; None without predictions."""
    over_default: dict[str, Any] | None
    """How much better than the default configuration, on the same posts: `value` and 95 % `interval`, above 0 is
    better. None for the default itself, or if one of the two has no predictions."""
    over_baseline: dict[str, Any] | None
    """The same over the best baseline."""
    folds: list[float] | None
    """The value on every fold."""
    seconds: float | None
    """From the start of the trial to its end, interruptions included; of the ensemble, summed over its members."""
    confirmed: dict[str, Any] | None
    """On fresh splits: `mean`, 95 % `interval`, and the values on the `splits`. None: not trained on any."""
    params: dict[str, Any]
    """The trial's parameters."""


class Leaderboard(TypedDict):
    """What `hpo leaderboard --json` prints."""

    study: str
    metric: str
    best_baseline: str
    """The baseline behind `over_baseline`."""
    fresh_splits: int | None
    """How many fresh splits a candidate is confirmed on; None if nothing was confirmed."""
    complete: int
    """Trials that were ranked; pruned ones are not, because they were trained on fewer folds."""
    shown: int
    """How many of them are among the rows for their rank."""
    rows: list[Row]
    """The best first."""


class Candidate:
    """A candidate on the folds of the search.

    Args:
        value: its value; None if it was not scored on all folds.
        logits: its predictions; None if they are not known.
        scorer: scores predictions.
    """

    def __init__(self, value: float | None, logits: Logits | None, scorer: selection.Scorer) -> None:
        self.value = value
        self._scorer = scorer
        self._logits = logits if value is not None else None

    @cached_property
    def left_out(self) -> npt.NDArray[np.float64] | None:
        """The value without each block of posts in turn, `[blocks]`."""
        return None if self._logits is None else self._scorer.without_blocks(self._logits)

    @cached_property
    def folds(self) -> list[float] | None:
        """The value on every fold."""
        return None if self._logits is None else self._scorer.folds_of(self._logits).tolist()

    def interval(self) -> list[float] | None:
        """The 95 % interval of the value."""
        if self.value is None or self.left_out is None:
            return None
        return list(as_json(selection.estimate(self.value, self.left_out).of_score())["interval"])

    def over(self, other: Candidate | None) -> dict[str, Any] | None:
        """How much better than another candidate on the same posts, with its 95 % interval."""
        if other is None or other is self or self.value is None or other.value is None:
            return None
        if self.left_out is None or other.left_out is None:
            return None
        gain, left_out = self._scorer.signed(self.value - other.value), self.left_out - other.left_out
        return as_json(selection.estimate(gain, self._scorer.signed(left_out)))


def leaderboard(study: Study, task: StudyTask, *, top: int = 10) -> Leaderboard:
    """The best trials with the ensemble, the default configuration and the baselines, the best value first.

    Args:
        study: the study.
        task: its data, which must be those that the study was started with (`join_study` checks that).
        top: how many trials to show at most.

    Raises:
        UserError: no trial is complete yet.
        PredictionsError: stored predictions are damaged.
    """
    trials = study.get_trials(deepcopy=False)
    ranked = record.best_first(study, trials)
    if not ranked:
        raise nothing_complete(study)
    confirmed = winner.current_confirmed(study)
    board = _Board(study, task, trials, confirmed)
    shown = ranked[:top]
    rows = [board.trial(trial) for trial in shown]
    if all(trial.number != 0 for trial in shown):
        rows.append(board.trial(trials[0]))
    rows += [*board.ensemble(), *board.baselines()]
    return {
        "study": study.study_name,
        "metric": task.definition.search.metric,
        "best_baseline": board.best_baseline,
        "fresh_splits": None if confirmed is None else confirmed["splits"],
        "complete": len(ranked),
        "shown": len(shown),
        "rows": sorted(rows, key=board.rank),
    }


class _Board:
    """Makes the rows: what all of them are compared with is computed once."""

    def __init__(
        self, study: Study, task: StudyTask, trials: list[FrozenTrial], confirmed: Mapping[str, Any] | None
    ) -> None:
        self._study, self._trials = study, trials
        self._scores: Mapping[str, Any] = confirmed["scores"] if confirmed is not None else {}
        self._scorer = make_scorer(task)
        self._baselines, logits = scored_baselines(study, task)
        self.best_baseline = best_baseline(self._scorer, logits)[0]
        self._references = {
            name: Candidate(self._baselines[name], predicted, self._scorer) for name, predicted in logits.items()
        }
        self._references["default"] = self._candidate(trials[0])

    def rank(self, row: Row) -> float:
        """The place of a row: the best value first, those without a value last."""
        return float("inf") if row["value"] is None else -float(self._scorer.signed(row["value"]))

    def trial(self, trial: FrozenTrial) -> Row:
        """The row of a trial; trial 0 is the default configuration."""
        if trial.number == 0:
            return self._row("default", self._references["default"], seconds=trial_seconds(trial), params=trial.params)
        return self._row(str(trial.number), self._candidate(trial), seconds=trial_seconds(trial), params=trial.params)

    def ensemble(self) -> list[Row]:
        """The row of the ensemble, if it has been chosen."""
        stored = record.ensemble(self._study)
        if stored is None:
            return []
        members = dict.fromkeys(stored["members"])
        logits = selection.mean_logits(predictions.load(self._study, members), stored["members"])
        seconds = [trial_seconds(self._trials[member]) or 0.0 for member in members]
        return [self._row("ensemble", Candidate(stored["value"], logits, self._scorer), seconds=round(sum(seconds), 3))]

    def baselines(self) -> list[Row]:
        """The rows of the baselines."""
        known = {name: self._references.get(name) for name in BASELINE_NAMES if name in self._baselines}
        return [
            self._row(name, candidate or Candidate(self._baselines[name], None, self._scorer))
            for name, candidate in known.items()
        ]

    def _candidate(self, trial: FrozenTrial) -> Candidate:
        value = trial.value if record.cv(trial) is not None else None
        return Candidate(value, predictions.load(self._study, [trial.number]).get(trial.number), self._scorer)

    def _row(
        self,
        name: str,
        candidate: Candidate,
        *,
        seconds: float | None = None,
        params: Mapping[str, Any] | None = None,
    ) -> Row:
        return {
            "name": name,
            "value": candidate.value,
            "interval": candidate.interval(),
            "over_default": candidate.over(self._references["default"]),
            "over_baseline": candidate.over(self._references[self.best_baseline]),
            "folds": candidate.folds,
            "seconds": seconds,
            "confirmed": self._scores.get(name),
            "params": dict(params or {}),
        }


def flat(board: Leaderboard) -> list[dict[str, Any]]:
    """The rows with one value per key, for a CSV file or a data frame: an interval becomes NAME_low and NAME_high.

    Parameters get the prefix `params.`; every row has all keys, None where it has no value.
    """
    rows = [_flat(row) for row in board["rows"]]
    keys = dict.fromkeys(key for row in rows for key in row)
    return [{key: row.get(key) for key in keys} for row in rows]


def _flat(row: Row) -> dict[str, Any]:
    confirmed = row["confirmed"] or {"mean": None, "interval": None, "splits": []}
    estimates: dict[str, tuple[float | None, list[float] | None]] = {
        "value": (row["value"], row["interval"]),
        **{
            key: (None, None) if gain is None else (gain["value"], gain["interval"])
            for key, gain in (("over_default", row["over_default"]), ("over_baseline", row["over_baseline"]))
        },
        "confirmed": (confirmed["mean"], confirmed["interval"]),
    }
    flat: dict[str, Any] = {"name": row["name"]}
    for key, (value, interval) in estimates.items():
        low, high = interval or (None, None)
        flat |= {key: value, f"{key}_low": low, f"{key}_high": high}
    flat |= {"fresh_splits": len(confirmed["splits"]), "folds": len(row["folds"] or ()), "seconds": row["seconds"]}
    flat |= {f"fold_{number}": value for number, value in enumerate(row["folds"] or ())}
    return flat | {f"params.{name}": value for name, value in row["params"].items()}


def trial_rows(trials: Iterable[FrozenTrial]) -> list[dict[str, Any]]:
    """Every trial as one row, for a data frame; parameters get the prefix `params.`."""
    return [_trial_row(trial) for trial in trials]


def _trial_row(trial: FrozenTrial) -> dict[str, Any]:
    summary = record.cv(trial)
    reported = trial.intermediate_values.get(trial.last_step) if trial.last_step is not None else None
    return {
        "number": trial.number,
        "state": state_text(trial),
        "value": trial.value if summary is not None else None,
        "folds": (trial.last_step or 0) if summary is None else len(summary["folds"]),
        "reported": reported if summary is None else trial.value,
        "best_epoch": None if summary is None else summary["best_epoch"],
        "seconds": trial_seconds(trial),
        "attempts": record.attempts(trial),
        "reason": record.reason(trial),
        **{f"params.{name}": value for name, value in trial.params.items()},
    }
