"""A study's posts split anew: for scores that no search has seen."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from core.config import CandidateConfig
from core.crossval import CrossValidation
from core.splits import Folds, split
from hpo.preparation import Prepared


def folds_anew(prepared: Prepared, seed: int) -> Folds:
    """Other folds of the same posts; the hold-out stays locked away."""
    searched = np.flatnonzero(prepared.folds.assignment >= 0)
    config = replace(prepared.definition.split, holdout=0.0, seed=seed)
    groups = [prepared.corpus.groups[row] for row in searched]
    inner = split(groups, prepared.corpus.labels[searched], config, criteria=prepared.criteria)
    assignment = np.full(len(prepared.folds.assignment), -1, dtype=np.int16)
    assignment[searched] = inner.assignment
    return replace(inner, assignment=assignment)


def cross_validation(prepared: Prepared, folds: Folds, candidate: CandidateConfig, seed: int) -> CrossValidation:
    """All folds in lock-step."""
    return CrossValidation(
        prepared.readable(candidate.model), folds, candidate, stages=(folds.count,),
        metric=prepared.definition.search.metric, criteria=prepared.criteria, seed=seed,
    )  # fmt: skip
