"""Fit what a study has found: checks that data and folds are the study's own, trains, describes, and saves."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from sparse_evidence.core import evaluation
from sparse_evidence.core.errors import NonFiniteLossError, UserError
from sparse_evidence.core.fitted import Fit, FittedModel, fit, save_model
from sparse_evidence.core.fitted.fitting import Ground
from sparse_evidence.core.seeding import stable_seed

from ..errors import RefusedError
from ..results.best import FINGERPRINTS, differing_from, named_study_file, relative_to
from ..results.provenance import versions
from ..results.winner import winner_key
from ..running.task import StudyTask
from .card import model_card
from .recipes import WINNER, Chosen, choose


def study_file(best: Mapping[str, Any], best_file: Path) -> Path:
    """The study file that a result names, found from the folder that the result is in.

    Raises:
        UserError: the result names none, or there is no such file.
    """
    return named_study_file(best["provenance"], best_file.parent, str(best_file), "give it with --study")


def check_same(best: Mapping[str, Any], task: StudyTask) -> None:
    """Check that a result is of this data, these folds and this definition.

    Raises:
        RefusedError: it is not; the message says what differs.
    """
    differing = differing_from(best["provenance"], task)
    if differing:
        raise RefusedError(
            f"the result of the study {best['study']!r} is not of {task.definition.path} as it is now: other "
            f"{', other '.join(differing)}; restore them, or search again"
        )


def fit_result(
    best: Mapping[str, Any],
    task: StudyTask,
    folder: Path,
    *,
    what: str = WINNER,
    single: bool = False,
    device: str = "cpu",
) -> tuple[FittedModel, Chosen]:
    """Train what a result says, and save it in a folder.

    Args:
        best: the result.
        task: the study's data.
        folder: does not exist, is empty, or is a fitted model, which is replaced.
        what: one of `recipes.CHOICES`.
        single: one model of every member instead of one for each fold; see `core.fitted.fit`.
        device: where it trains.

    Returns:
        The model, and what was chosen.

    Raises:
        RefusedError: the data are not those of the result.
        UserError: there is nothing to fit, or the folder cannot be written.
    """
    check_same(best, task)
    chosen = choose(best, what, task)
    try:
        fitted = fit(chosen.recipes, ground_of(task), single=single, device=device)
    except NonFiniteLossError:
        raise UserError(f"{chosen.text} diverged when it was trained again; choose another with --what") from None
    model = fitted.model.with_info(_info(best, task, fitted, chosen, folder, single=single))
    save_model(model, folder, model_card(model))
    return model, chosen


def ground_of(task: StudyTask) -> Ground:
    """What the members of a fitted model are trained on: the study's data and folds."""
    from sparse_evidence.core.features.encoders import locate

    names = {name for name, _ in task.embedded}
    encoders = {name: locate(name, task.definition.path.parent) for name in names} | task.encoders
    metric = task.definition.search.metric
    return Ground(task.corpus, task.folds, task.definition.chunks, task.features, encoders, metric)


def _info(
    best: Mapping[str, Any], task: StudyTask, fitted: Fit, chosen: Chosen, folder: Path, *, single: bool
) -> dict[str, Any]:
    """What the model folder says of the model; plain JSON that depends on nothing but the result and the data."""
    scored = task.folds.assignment >= 0
    labels = task.corpus.labels[scored]
    out_of_fold = evaluation.evaluate(
        task.corpus.labels,
        fitted.model.calibration.logits(fitted.logits),
        task.corpus.groups,
        task.criteria,
        stable_seed(task.definition.search.seed, "fit"),
        threshold=fitted.model.threshold,
    )
    return {
        "study": best["study"],
        "study_file": relative_to(task.definition.path, folder),
        "metric": best["metric"],
        "fitted": chosen.name,
        "single": single,
        "winner": best["winner"],
        "claim": best["claim"] if chosen.name == winner_key(best) else None,
        "score": _score(best, chosen.name),
        "baselines": {name: score for name, score in _baselines(best).items() if name != chosen.name},
        "posts": int(scored.sum()),
        "holdout_posts": int((~scored).sum()),
        "folds": task.folds.count,
        "positives": dict(zip(task.criteria, np.sum(labels == 1, axis=0).tolist(), strict=True)),
        "labelled": dict(zip(task.criteria, np.sum(labels >= 0, axis=0).tolist(), strict=True)),
        "out_of_fold": out_of_fold.to_dict(),
        **{key: best["provenance"][key] for key in FINGERPRINTS},
        "versions": versions(),
    }


def _score(best: Mapping[str, Any], name: str) -> dict[str, Any] | None:
    """The most honest value that the result has for a candidate, and what kind it is; None if it has none."""
    confirmed, ensemble = best["confirmed"], best["ensemble"]
    if confirmed is not None and name in confirmed["scores"]:
        score = confirmed["scores"][name]
        return {"kind": "confirmed", "value": score["mean"], "interval": score["interval"]}
    if ensemble is not None and name == "ensemble":
        return {"kind": "corrected", **ensemble["corrected"]}
    if ensemble is not None and name == str(ensemble["best"]["trial"]):
        return {"kind": "corrected", **ensemble["best"]["corrected"]}
    floors = best["cv"]["floors"] or {}
    value = best["value"] if name == str(best["trial"]) else floors.get(name)
    if name == "default" and best["default"] is not None:
        value = best["default"]["value"]
    return None if value is None else {"kind": "search", "value": value, "interval": None}


def _baselines(best: Mapping[str, Any]) -> dict[str, Any]:
    found = {name: _score(best, name) for name in ("retrieval", "linear", "zero_shot", "chance")}
    return {name: score for name, score in found.items() if score is not None}
