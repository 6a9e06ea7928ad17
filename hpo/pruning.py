"""When a trial is given up between two stages: compared on the same folds, never on early epochs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from optuna.trial import TrialState

if TYPE_CHECKING:
    from optuna import Study
    from optuna.trial import FrozenTrial


def is_hopeless(
    value: float, peers: Sequence[float], *, percentile: float, startup_trials: int, higher_is_better: bool
) -> bool:
    """Is `value` outside the best `percentile` percent of what the peers scored on the same folds?

    Args:
        value: the trial's mean over its finished folds.
        peers: the other trials' means over the same folds, pruned and running trials included: leaving out what was
            pruned would make the rule stricter with every trial that it prunes.
        percentile: 0 to 100; 50 keeps what is at least as good as the median.
        startup_trials: with fewer peers than this, nothing is hopeless yet.
        higher_is_better: the metric's direction.
    """
    known = [peer for peer in peers if not np.isnan(peer)]
    if len(known) < max(startup_trials, 1):
        return False
    if higher_is_better:
        return value < float(np.percentile(known, 100 - percentile))
    return value > float(np.percentile(known, percentile))


def peers_at(study: Study, number: int, folds_finished: int) -> list[float]:
    """What the other trials reported after the same number of finished folds, in the order of their numbers.

    Infeasible trials are no peers: nobody should lose against what cannot be trained to its end.
    """
    trials: list[FrozenTrial] = study.get_trials(deepcopy=False)
    return [
        trial.intermediate_values[folds_finished]
        for trial in trials
        if trial.number != number and trial.state != TrialState.FAIL and folds_finished in trial.intermediate_values
    ]
