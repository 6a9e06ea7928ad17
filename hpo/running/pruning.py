"""When a trial is given up: it is no match for the others on the same folds, or not on its way to become one.

Scores are not compared epoch by epoch, which would favour whoever learns fast. In the middle of a stage a trial is
measured by what it may reach (`core.training.stopping.projected_best`), and compared with what the others have reached.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from optuna.trial import TrialState

from sparse_evidence.core.metrics import METRICS

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial, Trial

    from ..study.config import PrunerConfig
    from ..study.definition import StudyDefinition

FRESH_SECONDS = 10.0
"""Within a stage, what is known of the other trials may be this old."""


class SameFolds:
    """The rule of one trial.

    Args:
        definition: the study's pruner, metric and folds.
        trial: who asks.
        trials: those of the study, as they are known now.
    """

    def __init__(self, definition: StudyDefinition, trial: Trial, trials: Sequence[FrozenTrial]) -> None:
        self._pruner = definition.search.pruner
        self._higher_is_better = METRICS[definition.search.metric].higher_is_better
        self._all_folds = definition.split.folds
        self._trial = trial
        self._trials = trials
        self._read_at = time.monotonic()
        self._needed: tuple[int, float] | None = None  # folds, and the least for them

    def should_prune(self, folds: int, projected: float, *, stage_ended: bool) -> bool:
        """Is the trial to be pruned after an epoch? Never in its last stage, nor if its projected value is undefined (NaN).

        Args:
            folds: folds of the stages begun.
            projected: their mean as it may become by the end of the stage, or as it is if the stage has ended.
            stage_ended: it has.
        """
        asked = stage_ended or (self._pruner.within_stages and not math.isinf(projected))
        if self._pruner.name == "none" or folds == self._all_folds or not asked:
            return False
        if stage_ended or time.monotonic() - self._read_at > FRESH_SECONDS:
            self._trials = self._trial.study.get_trials(deepcopy=False)
            self._read_at = time.monotonic()
            self._needed = None
        if self._needed is None or self._needed[0] != folds:
            peers = peer_values(self._trials, self._trial.number, folds)
            self._needed = folds, needed(peers, self._pruner, higher_is_better=self._higher_is_better)
        least = self._needed[1]
        return projected < least if self._higher_is_better else projected > least


def needed(peers: Sequence[float], pruner: PrunerConfig, *, higher_is_better: bool = True) -> float:
    """The least that is within the best `pruner.percentile` percent of what the peers scored on the same folds.

    Args:
        peers: the other trials' means over the same folds, pruned and running trials included: leaving out what was
            pruned would make the rule stricter with every trial that it prunes. (Who was given up within a stage counts
            with its best so far, which makes the rule a little more lenient.)
        pruner: with fewer peers than its `startup_trials`, nothing is hopeless yet.
        higher_is_better: the metric's direction.
    """
    known = np.array(peers, dtype=float)
    known = known[~np.isnan(known)]
    if len(known) < max(pruner.startup_trials, 1):
        return -math.inf if higher_is_better else math.inf
    return float(np.percentile(known, 100 - pruner.percentile if higher_is_better else pruner.percentile))


def peer_values(trials: Sequence[FrozenTrial], number: int, folds: int) -> list[float]:
    """What the trials but this one reported of so many folds, in the order of their numbers.

    Infeasible trials are no peers: nobody should lose against what cannot be trained to its end.
    """
    return [
        trial.intermediate_values[folds]
        for trial in trials
        if trial.number != number and trial.state != TrialState.FAIL and folds in trial.intermediate_values
    ]
