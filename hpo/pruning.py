"""When a trial is given up: once it is no match for the others on the same folds, or has no prospect of becoming one.

Scores of early epochs are never compared: that would favour whoever learns fast. A trial in the middle of a stage is
measured by what it may reach by the end of it.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from optuna.trial import TrialState

from core.metrics import METRICS

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial, Trial

    from core.crossval import CrossValidation
    from hpo.definition import PrunerConfig, SearchConfig

FRESH_SECONDS = 10.0
"""Within a stage, what is known of the other trials may be this old."""


class SameFolds:
    """The rule of one trial.

    Args:
        search: pruner and metric of the study.
        trial: who asks.
        trials: those of the study, as they are known now.
    """

    def __init__(self, search: SearchConfig, trial: Trial, trials: Sequence[FrozenTrial]) -> None:
        self._pruner = search.pruner
        self._higher_is_better = METRICS[search.metric].higher_is_better
        self._trial = trial
        self._trials = trials
        self._read_at = time.monotonic()
        self._needed: dict[int, float] = {}  # by folds, of the trials as they are known

    def gives_up(self, cv: CrossValidation, *, stage_ended: bool) -> bool:
        """Is the trial to be pruned after the epoch that has just ended? Never in its last stage."""
        folds = cv.folds_begun
        if self._pruner.name == "none" or folds == cv.folds.count:
            return False
        if not stage_ended and not self._pruner.within_stages:
            return False
        if stage_ended or time.monotonic() - self._read_at > FRESH_SECONDS:
            self._trials = self._trial.study.get_trials(deepcopy=False)
            self._read_at = time.monotonic()
            self._needed.clear()
        if folds not in self._needed:
            peers = peers_at(self._trials, self._trial.number, folds)
            self._needed[folds] = needed(peers, self._pruner, higher_is_better=self._higher_is_better)
        prospect, least = cv.prospect(), self._needed[folds]
        return prospect < least if self._higher_is_better else prospect > least


def needed(peers: Sequence[float], pruner: PrunerConfig, *, higher_is_better: bool = True) -> float:
    """The least that is within the best `pruner.percentile` percent of what the peers scored on the same folds.

    Args:
        peers: the other trials' means over the same folds, pruned and running trials included: leaving out what was
            pruned would make the rule stricter with every trial that it prunes.
        pruner: with fewer peers than its `startup_trials`, nothing is hopeless yet.
        higher_is_better: the metric's direction.
    """
    known = np.array(peers, dtype=float)
    known = known[~np.isnan(known)]
    if len(known) < max(pruner.startup_trials, 1):
        return -math.inf if higher_is_better else math.inf
    return float(np.percentile(known, 100 - pruner.percentile if higher_is_better else pruner.percentile))


def peers_at(trials: Sequence[FrozenTrial], number: int, folds: int) -> list[float]:
    """What the trials but this one reported of so many folds, in the order of their numbers.

    Infeasible trials are no peers: nobody should lose against what cannot be trained to its end.
    """
    return [
        trial.intermediate_values[folds]
        for trial in trials
        if trial.number != number and trial.state != TrialState.FAIL and folds in trial.intermediate_values
    ]
