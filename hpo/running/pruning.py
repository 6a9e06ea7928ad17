"""The pruning rule: a trial is compared with the other trials of the study on the same folds.

Where: `running.objective.run` calls `SameFoldsRule.should_prune` after every epoch; nothing else prunes a trial.
When: at the end of every stage but the last, by the trial's mean score over the folds started so far; with
`within_stages` also after every other epoch of these stages, by its projected value. Both are compared with
`pruning_threshold`, a percentile of the values that other trials reported for the same folds.

Scores are never compared epoch by epoch, which would favor fast starters. Within a stage the rule compares the value
that the trial can still reach (`core.training.stopping.projected_best`) with the values that others have reached.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from optuna.trial import TrialState

from sparse_evidence.core.metrics import METRICS

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial, Trial

    from ..study.config import PrunerConfig
    from ..study.definition import StudyDefinition

FRESH_SECONDS = 10.0
"""Within a stage, the trials read from the database are reused for this long."""


@dataclass(frozen=True)
class Judged:
    """What the rule compared when it last decided; the study stores it of a trial that is pruned."""

    folds: int
    value: float
    """The trial's mean over these folds: as projected for the end of the stage, or the actual one if it has ended."""
    threshold: float
    """Infinite while there were too few peers."""
    peers: int
    """Other trials that had reported a value for the same folds."""
    stage_ended: bool


class SameFoldsRule:
    """The pruning rule, applied to one trial.

    Args:
        definition: the study's pruner, metric and folds.
        trial: the trial that may be pruned.
        trials: all trials of the study, just read from the database.
        clock: returns monotonic seconds.
    """

    def __init__(
        self,
        definition: StudyDefinition,
        trial: Trial,
        trials: Sequence[FrozenTrial],
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._pruner = definition.search.pruner
        self._higher_is_better = METRICS[definition.search.metric].higher_is_better
        self._all_folds = definition.split.folds
        self._trial = trial
        self._trials = trials
        self._clock = clock
        self._read_at = clock()
        self._threshold: tuple[int, float, int] | None = None  # (folds, the threshold for them, how many peers set it)
        self.judged: Judged | None = None
        """The latest decision; None before the first."""

    def should_prune(self, folds: int, projected: float, *, stage_ended: bool) -> bool:
        """Decide after an epoch. False in the last stage, and if the projected value is undefined (NaN).

        Args:
            folds: number of folds in the stages begun.
            projected: mean over these folds as projected for the end of the stage, or the actual mean if it has ended.
            stage_ended: whether this epoch ended the stage.
        """
        due = stage_ended or (self._pruner.within_stages and not math.isinf(projected))
        if self._pruner.name == "none" or folds == self._all_folds or not due:
            return False
        if stage_ended or self._clock() - self._read_at > FRESH_SECONDS:
            self._refresh()
        threshold, peers = self._threshold_for(folds)
        self.judged = Judged(folds, projected, threshold, peers, stage_ended)
        return projected < threshold if self._higher_is_better else projected > threshold

    def _refresh(self) -> None:
        self._trials = self._trial.study.get_trials(deepcopy=False)
        self._read_at = self._clock()
        self._threshold = None

    def _threshold_for(self, folds: int) -> tuple[float, int]:
        if self._threshold is None or self._threshold[0] != folds:
            peers = peer_values(self._trials, self._trial.number, folds)
            threshold = pruning_threshold(peers, self._pruner, higher_is_better=self._higher_is_better)
            self._threshold = folds, threshold, len(peers)
        return self._threshold[1:]


def pruning_threshold(peers: Sequence[float], pruner: PrunerConfig, *, higher_is_better: bool = True) -> float:
    """The worst value that is still within the best `pruner.percentile` percent of the peers' values.

    Args:
        peers: the other trials' means over the same folds, pruned and running trials included: without the pruned ones
            the rule would get stricter with every trial that it prunes. (A trial pruned within a stage counts with its
            best value so far, which makes the rule slightly more lenient.) NaN values are ignored.
        pruner: with fewer peers than its `startup_trials`, nothing is pruned.
        higher_is_better: the metric's direction.

    Returns:
        The threshold; infinitely bad (so that nothing is pruned) while there are too few peers.
    """
    known = np.array(peers, dtype=float)
    known = known[~np.isnan(known)]
    if len(known) < max(pruner.startup_trials, 1):
        return -math.inf if higher_is_better else math.inf
    return float(np.percentile(known, 100 - pruner.percentile if higher_is_better else pruner.percentile))


def peer_values(trials: Sequence[FrozenTrial], number: int, folds: int) -> list[float]:
    """The values that all trials except `number` reported for the first `folds` folds, in order of trial number.

    Infeasible trials are excluded: no trial should lose to one that cannot be trained to its end.
    """
    return [
        trial.intermediate_values[folds]
        for trial in trials
        if trial.number != number and trial.state != TrialState.FAIL and folds in trial.intermediate_values
    ]
