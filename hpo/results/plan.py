"""A dry run: loads the study's data, times an epoch, and returns counts, baselines and an estimate as plain values."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from itertools import islice
from typing import Any

import numpy as np
import numpy.typing as npt

from sparse_evidence.core.config import is_solved
from sparse_evidence.core.errors import shown_value
from sparse_evidence.core.features.chunks import share_within
from sparse_evidence.core.features.retrieval import near_duplicates

from ..running.task import Progress, StudyTask, load_task
from ..study import space
from ..study.definition import StudyDefinition
from ..study.fields import Choices, Range
from ..study.space import Parameter

Clock = Callable[[], float]
"""A clock in seconds, with an arbitrary origin."""

PROBE_EPOCHS = 4
PROBE_SECONDS = 20.0
"""After this long no further epoch is measured."""
NAMED_DUPLICATES = 20
"""At most this many pairs of near-duplicates are listed, most similar first."""


@dataclass(frozen=True)
class ChunksPerPost:
    """The number of chunks in a post."""

    smallest: int
    median: int
    largest: int


@dataclass(frozen=True)
class Criterion:
    """How common a criterion is: shares of positive posts among those labelled, None where none is labelled."""

    name: str
    positives: int
    prevalence: float | None
    folds: tuple[float | None, ...]
    """The share in each fold's validation posts."""
    holdout: float | None


@dataclass(frozen=True)
class Cost:
    """An estimate of the time that one worker needs for the whole study."""

    epoch_seconds: float
    """One epoch of all folds of the default configuration, validation included."""
    shortest_seconds: float
    """If every trial stops as early as `patience` allows, and none is pruned."""
    longest_seconds: float
    """If no trial stops early, and none is pruned."""


@dataclass(frozen=True)
class NearDuplicates:
    """Posts of different groups with almost the same text: they leak between folds.

    With `[split] merge_near_duplicates` there are none: they share a group, and a note says how many did not.
    """

    pairs: int
    affected: int
    """Posts that are in at least one pair."""
    groups: int
    """Groups that these posts are in."""
    posts: tuple[tuple[str, str], ...]
    """Post ids of the most similar pairs, at most `NAMED_DUPLICATES`."""


@dataclass(frozen=True)
class Plan:
    """What `hpo validate` reports."""

    study: str
    path: str
    posts: int
    groups: int
    held_out: int
    """Posts in the hold-out."""
    chunks: int
    chunks_per_post: ChunksPerPost
    stages: tuple[int, ...]
    """Folds trained in each stage."""
    validation_posts: tuple[int, ...]
    """The number in each fold."""
    texts: int
    embedded_now: int
    """Texts whose embeddings were not in the cache."""
    short_posts: dict[int, float]
    """By limit or choice of `k_retrieved`: the share of posts with no more chunks than that."""
    metric: str
    baselines: dict[str, Any]
    trials: int
    cost: Cost
    criteria: tuple[Criterion, ...]
    parameters: tuple[Parameter, ...]
    """What is searched, in the order in which it is drawn."""
    near_duplicates: NearDuplicates
    notes: tuple[str, ...]
    """Notes on what is searched, then on the data, from the code that read them."""

    def as_dict(self) -> dict[str, Any]:
        """The plan as JSON values."""
        return asdict(self)


def make_plan(definition: StudyDefinition, progress: Progress | None = None) -> Plan:
    """Load the study's data and return its plan.

    Raises:
        UserError: the data, the folds or the encoder cannot be used.
    """
    return plan_task(load_task(definition, progress=progress))


def plan_task(task: StudyTask, *, clock: Clock = time.perf_counter) -> Plan:
    """Return the plan of a study whose data are loaded; trains a few epochs of the default configuration."""
    definition, corpus, folds = task.definition, task.corpus, task.folds
    lengths = np.diff(task.chunks.offsets)
    return Plan(
        study=definition.name,
        path=str(definition.path),
        posts=len(corpus),
        groups=len(set(corpus.groups)),
        held_out=int((folds.assignment < 0).sum()),
        chunks=len(task.chunks.texts),
        chunks_per_post=ChunksPerPost(int(lengths.min()), int(np.median(lengths)), int(lengths.max())),
        stages=tuple(definition.split.stage_sizes()),
        validation_posts=tuple(len(folds.validation(fold)) for fold in range(folds.count)),
        texts=task.texts,
        embedded_now=task.computed,
        short_posts={k: share_within(task.chunks, k) for k in _retrieved(definition)},
        metric=definition.search.metric,
        baselines=task.baselines(),
        trials=definition.search.trials,
        cost=_cost(task, clock),
        criteria=_criteria(task),
        parameters=space.searched(definition),
        near_duplicates=_near_duplicates(task),
        notes=task.notes,
    )


def _retrieved(definition: StudyDefinition) -> list[int]:
    """The limits and choices of `k_retrieved`, sorted; empty where no model retrieves."""
    ks: set[int] = set()
    for alternative in definition.model:
        match alternative.specs.get("k_retrieved"):
            case Range(low=low, high=high):
                ks |= {int(low), int(high)}
            case Choices(values=values):
                ks |= {int(str(value)) for value in values}
            case int(value):
                ks.add(value)
    return sorted(ks)


def _cost(task: StudyTask, clock: Clock) -> Cost:
    definition = task.definition
    seconds = probe_epoch(task, clock=clock)
    candidate = space.suggest(definition, _default_trial(definition))
    epochs = 1 if is_solved(candidate.model) else candidate.training.epochs
    trials = definition.search.trials
    return Cost(
        epoch_seconds=seconds,
        shortest_seconds=trials * min(candidate.training.patience + 1, epochs) * seconds,
        longest_seconds=trials * epochs * seconds,
    )


def probe_epoch(task: StudyTask, *, clock: Clock = time.perf_counter) -> float:
    """Seconds for one epoch of all folds, validation included, of the default configuration.

    The fastest of a few epochs counts: the first one warms up caches, and other processes may use the machine.
    """
    from sparse_evidence.core.models import fuses_folds

    definition = task.definition
    candidate = space.suggest(definition, _default_trial(definition))
    count = task.folds.count
    fused = fuses_folds(candidate.model)  # otherwise folds train one after another, and timing one is enough
    cv = task.cross_validation(candidate, stages=(count,) if fused else (1,) * count)
    seconds: list[float] = []
    started = clock()
    for _ in islice(cv.epochs(), PROBE_EPOCHS):
        seconds.append(clock() - started)
        if sum(seconds) > PROBE_SECONDS:
            break
        started = clock()
    return min(seconds) * (1 if fused else count)


def _default_trial(definition: StudyDefinition) -> Any:  # noqa: ANN401 (Optuna is imported late)
    from optuna.trial import FixedTrial

    return FixedTrial(space.default_parameters(definition))


def _criteria(task: StudyTask) -> tuple[Criterion, ...]:
    labels, folds = task.corpus.labels, task.folds

    def share(rows: npt.NDArray[Any], column: int) -> float | None:
        labelled = labels[rows, column]
        labelled = labelled[labelled >= 0]
        return float((labelled == 1).mean()) if len(labelled) else None

    return tuple(
        Criterion(
            name=criterion.name,
            positives=int(task.corpus.positives[column]),
            prevalence=share(folds.assignment >= -1, column),
            folds=tuple(share(folds.validation(fold), column) for fold in range(folds.count)),
            holdout=share(folds.assignment < 0, column),
        )
        for column, criterion in enumerate(task.corpus.criteria)
    )


def _near_duplicates(task: StudyTask) -> NearDuplicates:
    embedded = next(iter(task.embedded.values()))
    pairs = near_duplicates(embedded.embeddings, embedded.offsets, task.corpus.groups)
    ids, groups = task.corpus.post_ids, task.corpus.groups
    affected = {post for pair in pairs for post in (pair.first, pair.second)}
    return NearDuplicates(
        pairs=len(pairs),
        affected=len(affected),
        groups=len({groups[post] for post in affected}),
        posts=tuple((shown_value(ids[pair.first]), shown_value(ids[pair.second])) for pair in pairs[:NAMED_DUPLICATES]),
    )
