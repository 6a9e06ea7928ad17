"""What a study will be like before it starts: data, folds, floors, and the price of a real epoch."""

from __future__ import annotations

import time
from itertools import islice
from typing import Any

import numpy as np

from sparse_evidence.core.features.chunks import share_within
from sparse_evidence.core.models import fuses_folds

from ..running.task import Progress, StudyTask, load_task
from ..study import space
from ..study.definition import StudyDefinition
from ..study.fields import Choices, Range
from .tables import baselines_text, duration, number


def make_plan(definition: StudyDefinition, progress: Progress | None = None) -> dict[str, Any]:
    """Prepare the study for real, train one epoch of the default configuration, and tell what was found.

    Returns:
        `facts` (name to words), `criteria` (rows of numbers), `holdout` (is there one), `parameters` (name to what is
        searched), `notes` (sentences).
    """
    task = load_task(definition, progress=progress)
    corpus, folds = task.corpus, task.folds
    held = int((folds.assignment < 0).sum())
    lengths = np.diff(task.chunks.offsets)
    facts = {
        "study": f"{definition.name} ({definition.path})",
        "posts": f"{len(corpus)} in {len(set(corpus.groups))} groups; {held} of them held out",
        "chunks": f"{len(task.chunks.texts)}; a post has {lengths.min()} to {lengths.max()}, "
        f"half of them {int(np.median(lengths))} or fewer",
        "folds": f"{folds.count}, in stages of {', '.join(map(str, definition.split.stage_sizes()))}; "
        f"validation posts {', '.join(str(len(folds.validation(f))) for f in range(folds.count))}",
        "embedding": task.embedding,
        **_retrieval(task),
        **_floors(task),
        **_cost(task),
    }
    return {
        "facts": facts,
        "criteria": _criteria(task),
        "holdout": held > 0,
        "parameters": space.parameters(definition),
        "notes": list(corpus.notes),
    }


def _retrieval(task: StudyTask) -> dict[str, str]:
    """Where a post has no more chunks than k, "retrieval" returns all of it: say how often."""
    ks: set[int] = set()
    for alternative in task.definition.model:
        match alternative.leaves.get("k_retrieved"):
            case Range(low=low, high=high):
                ks |= {int(low), int(high)}
            case Choices(values=values):
                ks |= {int(str(value)) for value in values}
            case int(value):
                ks.add(value)
    shares = [f"{100 * share_within(task.chunks, k):.1f} % at k = {k}" for k in sorted(ks)]
    return {"short posts": f"with no more than k chunks, so read whole: {', '.join(shares)}"} if shares else {}


def _floors(task: StudyTask) -> dict[str, str]:
    metric, floors = task.definition.search.metric, task.baselines()
    unread = (
        f"AUROC {number(floors['criterion_only_auroc'])}, F1 {number(floors['criterion_only_f1'])}; "
        f"all called positive: F1 {number(floors['all_positive_f1'])}"
    )
    return {"floors": f"{metric}: {baselines_text(metric, floors)}", "": f"pooled, no post read: {unread}"}


def _cost(task: StudyTask) -> dict[str, str]:
    definition = task.definition
    seconds = probe_epoch(task)
    candidate = space.suggest(definition, _default_trial(definition))
    longest = definition.search.trials * candidate.training.epochs * seconds
    shortest = definition.search.trials * min(candidate.training.patience + 1, candidate.training.epochs) * seconds
    return {
        "probe": f"{seconds:.2f} s for an epoch of all {task.folds.count} folds, default configuration",
        "projected": f"{duration(shortest)} to {duration(longest)} for {definition.search.trials} trials and one "
        f"worker if none is pruned, from all stopping as early as they may to none stopping early",
    }


PROBE_EPOCHS = 4
PROBE_SECONDS = 20.0
"""No further epoch is started after so long."""


def probe_epoch(task: StudyTask) -> float:
    """Seconds for one epoch of all folds, validation included, of the default configuration.

    The first epoch pays for memory and caches, and others may share the machine: the fastest of a few counts.
    """
    definition = task.definition
    candidate = space.suggest(definition, _default_trial(definition))
    count = task.folds.count
    together = fuses_folds(candidate.model)  # else one fold is enough to know what the others take
    cv = task.cross_validation(candidate, stages=(count,) if together else (1,) * count)
    took: list[float] = []
    started = time.perf_counter()
    for _ in islice(cv.epochs(), PROBE_EPOCHS):
        took.append(time.perf_counter() - started)
        if sum(took) > PROBE_SECONDS:
            break
        started = time.perf_counter()
    return min(took) * (1 if together else count)


def _default_trial(definition: StudyDefinition) -> Any:  # noqa: ANN401 (Optuna is imported late)
    from optuna.trial import FixedTrial

    return FixedTrial(space.default_parameters(definition))


def _criteria(task: StudyTask) -> list[dict[str, Any]]:
    labels, folds = task.corpus.labels, task.folds

    def share(rows: Any, column: int) -> float | None:  # noqa: ANN401 (any NumPy index)
        judged = labels[rows, column]
        judged = judged[judged >= 0]
        return float((judged == 1).mean()) if len(judged) else None

    return [
        {
            "name": criterion.name,
            "positives": int(task.corpus.positives[column]),
            "prevalence": float(task.corpus.prevalence[column]),
            "folds": [share(folds.validation(fold), column) for fold in range(folds.count)],
            "holdout": share(folds.assignment < 0, column),
        }
        for column, criterion in enumerate(task.corpus.criteria)
    ]
