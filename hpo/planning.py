"""What a study will be like before it starts: data, folds, floors, and the price of a real epoch."""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from core.chunks import share_within
from core.crossval import CrossValidation
from hpo import space
from hpo.definition import Choices, Range, StudyDefinition
from hpo.preparation import Prepared, Progress, prepare
from hpo.report import duration, floors_in_words, number


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
        "folds": f"{folds.count}, trained in stages of {', '.join(map(str, definition.split.stage_sizes()))}; "
        f"validation posts {', '.join(str(len(folds.validation(f))) for f in range(folds.count))}",
        "texts": f"{prepared.texts}: {prepared.computed} embedded now, {prepared.texts - prepared.computed} cached",
        **_retrieval(prepared),
        "floors": f"{definition.search.metric}: "
        + floors_in_words(definition.search.metric, floors := prepared.floors()),
        "": f"pooled, never reading a post: AUROC {number(floors['criterion_only_auroc'])}, "
        f"F1 {number(floors['criterion_only_f1'])}; all positive: F1 {number(floors['all_positive_f1'])}",
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
    shares = [f"k = {k}: {100 * share_within(prepared.chunks, k):.1f} %" for k in sorted(ks)]
    return {"posts with no more than k chunks": ", ".join(shares)} if shares else {}


def _cost(prepared: Prepared) -> dict[str, str]:
    definition = prepared.definition
    seconds = probe_epoch(prepared)
    candidate = space.suggest(definition, _default_trial(definition))
    longest = definition.search.trials * candidate.training.epochs * seconds
    shortest = definition.search.trials * min(candidate.training.patience + 1, candidate.training.epochs) * seconds
    return {
        "probe": f"an epoch of all {prepared.folds.count} folds takes {seconds:.2f} s with the default configuration",
        "projected": f"{definition.search.trials} trials take {duration(shortest)} (every trial stops as early as it "
        f"may) to {duration(longest)} (none stops early) with one worker; more workers share that",
    }


def probe_epoch(prepared: Prepared) -> float:
    """Seconds for one epoch of all folds, validation included, of the default configuration; after a warm-up."""
    definition = prepared.definition
    candidate = space.suggest(definition, _default_trial(definition))
    seconds = 0.0
    for _ in range(2):  # the first one pays for memory and caches
        cv = CrossValidation(
            prepared.readable(candidate.model),
            prepared.folds,
            candidate,
            stages=(prepared.folds.count,),
            metric=definition.search.metric,
            criteria=prepared.criteria,
            seed=definition.search.seed,
        )
        started = time.perf_counter()
        next(cv.epochs())
        seconds = time.perf_counter() - started
    return seconds


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
