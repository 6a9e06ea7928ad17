"""A study's posts split anew: for scores that no search has seen."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from sparse_evidence.core.splits import split
from sparse_evidence.hpo.running.task import StudyTask


def anew(task: StudyTask, seed: int) -> StudyTask:
    """The same posts with other folds and another search seed; the hold-out stays locked away."""
    definition = task.definition
    searched = np.flatnonzero(task.folds.assignment >= 0)
    config = replace(definition.split, holdout=0.0, seed=seed)
    groups = [task.corpus.groups[row] for row in searched]
    inner = split(groups, task.corpus.labels[searched], config, criteria=task.criteria)
    assignment = np.full(len(task.folds.assignment), -1, dtype=np.int16)
    assignment[searched] = inner.assignment
    return replace(
        task,
        definition=replace(definition, search=replace(definition.search, seed=seed)),
        folds=replace(inner, assignment=assignment),
    )
