"""A study's task on fresh folds, for scores on splits that no search has seen."""

from __future__ import annotations

from dataclasses import replace

from sparse_evidence.core.training.resampling import fresh_folds
from sparse_evidence.hpo.running.task import StudyTask


def resample(task: StudyTask, seed: int) -> StudyTask:
    """Return the task with fresh folds of the same posts and another search seed; the hold-out stays as it is."""
    definition = replace(task.definition, search=replace(task.definition.search, seed=seed))
    return replace(task, definition=definition, folds=fresh_folds(task.corpus, task.folds, seed))
