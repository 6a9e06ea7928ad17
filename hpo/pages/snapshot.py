"""A study as it is read once for a report: its trials, its state, and its result if there is one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from ..database import predictions, record
from ..database.claims_sql import is_worked_on
from ..results.best import BestResult, best_result, best_trial
from ..results.leaderboard import trial_rows
from ..results.status import StudyStatus, study_status
from ..results.wording import metric_text
from ..study.config import PrunerConfig

if TYPE_CHECKING:
    import numpy.typing as npt
    from optuna import Study
    from optuna.trial import FrozenTrial

    from ..study.definition import StudyDefinition


@dataclass(frozen=True, eq=False)
class Snapshot:
    """What a report is made of. It may be of a study that is running."""

    study: Study
    definition: StudyDefinition
    """The study's file; what the study was started with is in `started_with`."""
    status: StudyStatus
    best: BestResult | None
    """None while no trial is complete."""
    trials: Sequence[FrozenTrial]
    rows: Sequence[Mapping[str, Any]]
    """From `leaderboard.trial_rows`, in the order of `trials`."""

    @property
    def metric(self) -> str:
        """The study's metric in a sentence."""
        return metric_text(self.status["metric"])

    @cached_property
    def started_with(self) -> Mapping[str, Any]:
        """The definition that the study was started with."""
        stored: Mapping[str, Any] = record.identity(self.study)["definition"]
        return stored

    @cached_property
    def higher_is_better(self) -> bool:
        """The direction of the metric."""
        return record.higher_is_better(self.study)

    @property
    def folds(self) -> int:
        """Folds of a trial that is not pruned."""
        return int(self.started_with["split"]["folds"])

    @property
    def stage_ends(self) -> list[int]:
        """How many folds are trained at the end of every stage."""
        ends: list[int] = np.cumsum(self.started_with["split"]["stages"]).tolist()
        return ends

    @property
    def pruner(self) -> PrunerConfig:
        """The study's pruning rule."""
        stored = self.started_with["search"]["pruner"]
        return PrunerConfig(**{key.name: stored[key.name] for key in fields(PrunerConfig) if key.name in stored})

    @property
    def confirmed(self) -> Mapping[str, Any] | None:
        """What was confirmed on fresh splits."""
        return None if self.best is None else self.best["confirmed"]

    @cached_property
    def ranked(self) -> list[FrozenTrial]:
        """The complete trials, best first; the exported single trial before all others."""
        first = None if self.best is None else self.best["trial"]
        return sorted(record.best_first(self.study, self.trials), key=lambda trial: trial.number != first)

    @cached_property
    def logits(self) -> npt.NDArray[np.float32] | None:
        """Out-of-fold predictions `[posts, criteria]` of the exported single trial; None if none are stored.

        Raises:
            PredictionsError: they are damaged.
        """
        if self.best is None:
            return None
        return predictions.load(self.study, [self.best["trial"]]).get(self.best["trial"])

    @cached_property
    def post_counts(self) -> tuple[int, int] | None:
        """Posts that the trials were scored on, and posts that no trial has seen; None if that is not known."""
        if self.logits is None:
            return None
        scored = int((~np.isnan(self.logits).any(axis=1)).sum())
        return scored, len(self.logits) - scored

    @property
    def is_worked_on(self) -> bool:
        """Whether a worker gives signs of life."""
        grace = self.definition.service.grace_seconds
        return any(is_worked_on(row, grace) for row in self.status["workers"])


def read_snapshot(study: Study, definition: StudyDefinition) -> Snapshot:
    """Read a study. The trials are read last, so that no part of the result speaks of one that is missing.

    Raises:
        StorageError: the database is unreachable.
    """
    status = study_status(study, grace_seconds=definition.service.grace_seconds)
    best = None if best_trial(study) is None else best_result(study, definition.path)
    trials = study.get_trials(deepcopy=False)
    return Snapshot(study, definition, status, best, trials, trial_rows(trials))
