"""The tables of a study file that core does not use: how to search, and how to run the study."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Interval

from sparse_evidence.core.config import MOST, Count

YEAR = 366 * 24 * 3600
Seconds = Annotated[float, Interval(gt=0, le=YEAR)]


@dataclass(frozen=True)
class PrunerConfig:
    """When a trial is pruned."""

    name: Literal["same_folds", "none"] = "same_folds"
    percentile: Annotated[float, Interval(gt=0, lt=100)] = 50.0
    """After every stage but the last, a trial continues if its mean is within this best share of the trials on the same
    folds."""
    startup_trials: Annotated[int, Interval(ge=0, le=MOST)] = 1
    """Nothing is pruned until this many other trials have reported at the stage."""
    within_stages: bool = True
    """Also prune after every epoch, by the best score that the trial is projected to reach in `patience` more epochs at
    the pace of the last half of `patience`."""


@dataclass(frozen=True)
class SearchConfig:
    """The metric to optimize, the number of trials, the sampler and the pruner."""

    metric: str = "average_precision"
    """Mean over folds of the mean over criteria."""
    trials: Count = 40
    """Trials to finish, complete or pruned. May be raised later: it is not part of the study's identity."""
    seed: Annotated[int, Interval(ge=0, lt=2**32)] = 0
    """Seed of the sampler and of the training."""
    sampler: Literal["tpe", "random"] = "tpe"
    space: Literal["default", "file"] = "default"
    """What is searched. `default`: settings of the model, its training and the loss that the file does not mention are
    searched as in the model's default space. `file`: only what the file writes as ranges or choices."""
    pruner: PrunerConfig = PrunerConfig()


@dataclass(frozen=True)
class ConfirmConfig:
    """How the result is confirmed on fresh splits when the trials are finished. Not part of the study's identity."""

    leaders: Annotated[int, Interval(ge=0, le=64)] = 4
    """How many of the best trials are trained again; after every round the better half of them goes on. 0: nothing is
    confirmed. HPO_CONFIRM_LEADERS overrides."""
    splits: Annotated[int, Interval(ge=1, le=64)] = 3
    """On how many fresh splits, each with other folds and other seeds. HPO_CONFIRM_SPLITS overrides."""


@dataclass(frozen=True)
class OuterFold:
    """An outer fold of a nested cross-validation: a child study leaves its posts out. HPO_NESTED names it."""

    number: int
    """Counted from 1."""
    count: int

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"


@dataclass(frozen=True)
class ServiceConfig:
    """How a study is run. Not part of its identity: change it at any time."""

    heartbeat_seconds: Seconds = 20.0
    """Interval between a worker's heartbeats. HPO_HEARTBEAT_SECONDS overrides."""
    grace_seconds: Seconds = 120.0
    """Another worker takes a trial over when its worker has sent no heartbeat for this long. HPO_GRACE_SECONDS
    overrides."""
    max_attempts: Count = 3
    """A trial whose worker has died, failed or stalled this many times is marked infeasible."""
    checkpoint_seconds: Annotated[float, Interval(ge=0, le=YEAR)] = 5.0
    """A trial is checkpointed after an epoch, but no more often than this; 0: after every epoch. Work since the last
    checkpoint is repeated, with bit-identical results. HPO_CHECKPOINT_SECONDS overrides."""
    stall_seconds: Seconds = 3600.0
    """A worker that has finished no epoch for this long exits, and another worker takes its trial over. Must be longer
    than the longest epoch. HPO_STALL_SECONDS overrides."""
