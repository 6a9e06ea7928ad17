"""What a study will be like before it starts: data, folds, floors, and the price of a real epoch."""

from __future__ import annotations

import time
from itertools import islice
from typing import Any

import numpy as np

from sparse_evidence.core.features.chunks import share_within
from sparse_evidence.core.models import folds_fuse

from ..running.task import Prepared, Progress, prepare
from ..study import space
from ..study.definition import StudyDefinition
from ..study.fields import Choices, Range
from .tables import duration, floors_in_words, number


def plan(definition: StudyDefinition, progress: Progress | None = None) -> dict[str, Any]:
    """Prepare the study for real, train one epoch of the default configuration, and tell what was found.

    Returns:
        `facts` (name to words), `criteria` (rows of numbers), `holdout` (is there one), `parameters` (name to what is
        searched), `notes` (sentences).
    """
    prepared = prepare(definition, progress=progress)
    corpus, folds = prepared.corpus, prepared.folds
    held = int((folds.assignment < 0).sum())
    lengths = np.diff(prepared.chunks.offsets)
    facts = {
        "study": f"{definition.name} ({definition.path})",
        "posts": f"{len(corpus)} in {len(set(corpus.groups))} groups; {held} of them held out",
        "chunks": f"{len(prepared.chunks.texts)}; a post has {lengths.min()} to {lengths.max()}, "
        f"half of them {int(np.median(lengths))} or fewer",
        "folds": f"{folds.count}, in stages of {', '.join(map(str, definition.split.stage_sizes()))}; "
        f"validation posts {', '.join(str(len(folds.validation(f))) for f in range(folds.count))}",
        "embedding": prepared.embedding,
        **_retrieval(prepared),
        **_floors(prepared),
        **_cost(prepared),
    }
    return {
        "facts": facts,
        "criteria": _criteria(prepared),
        "holdout": held > 0,
        "parameters": space.parameters(definition),
        "notes": list(corpus.notes),
    }


def _retrieval(prepared: Prepared) -> dict[str, str]:
    """Where a post has no more chunks than k, "retrieval" returns all of it: say how often."""
    ks: set[int] = set()
    for alternative in prepared.definition.model:
        match alternative.leaves.get("k_retrieved"):
            case Range(low=low, high=high):
                ks |= {int(low), int(high)}
            case Choices(values=values):
                ks |= {int(str(value)) for value in values}
            case int(value):
                ks.add(value)
    shares = [f"{100 * share_within(prepared.chunks, k):.1f} % at k = {k}" for k in sorted(ks)]
    return {"short posts": f"with no more than k chunks, so read whole: {', '.join(shares)}"} if shares else {}


def _floors(prepared: Prepared) -> dict[str, str]:
    metric, floors = prepared.definition.search.metric, prepared.floors()
    unread = (
        f"AUROC {number(floors['criterion_only_auroc'])}, F1 {number(floors['criterion_only_f1'])}; "
        f"all called positive: F1 {number(floors['all_positive_f1'])}"
    )
    return {"floors": f"{metric}: {floors_in_words(metric, floors)}", "": f"pooled, no post read: {unread}"}


def _cost(prepared: Prepared) -> dict[str, str]:
    definition = prepared.definition
    seconds = probe_epoch(prepared)
    candidate = space.suggest(definition, _default_trial(definition))
    longest = definition.search.trials * candidate.training.epochs * seconds
    shortest = definition.search.trials * min(candidate.training.patience + 1, candidate.training.epochs) * seconds
    return {
        "probe": f"{seconds:.2f} s for an epoch of all {prepared.folds.count} folds, default configuration",
        "projected": f"{duration(shortest)} to {duration(longest)} for {definition.search.trials} trials and one "
        f"worker if none is pruned, from all stopping as early as they may to none stopping early",
    }


PROBE_EPOCHS = 4
PROBE_SECONDS = 20.0
"""No further epoch is started after so long."""


def probe_epoch(prepared: Prepared) -> float:
    """Seconds for one epoch of all folds, validation included, of the default configuration.

    The first epoch pays for memory and caches, and others may share the machine: the fastest of a few counts.
    """
    definition = prepared.definition
    candidate = space.suggest(definition, _default_trial(definition))
    count = prepared.folds.count
    together = folds_fuse(candidate.model)  # else one fold is enough to know what the others take
    cv = prepared.cross_validation(candidate, stages=(count,) if together else (1,) * count)
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


def _criteria(prepared: Prepared) -> list[dict[str, Any]]:
    labels, folds = prepared.corpus.labels, prepared.folds

    def share(rows: Any, column: int) -> float | None:  # noqa: ANN401 (any NumPy index)
        judged = labels[rows, column]
        judged = judged[judged >= 0]
        return float((judged == 1).mean()) if len(judged) else None

    return [
        {
            "name": criterion.name,
            "positives": int(prepared.corpus.positives[column]),
            "prevalence": float(prepared.corpus.prevalence[column]),
            "folds": [share(folds.validation(fold), column) for fold in range(folds.count)],
            "holdout": share(folds.assignment < 0, column),
        }
        for column, criterion in enumerate(prepared.corpus.criteria)
    ]
