"""How good a fitted model is: on the hold-out of its study, where every look is counted, or on other labelled posts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

import numpy as np
import numpy.typing as npt

from sparse_evidence.core import baselines, evaluation, metrics
from sparse_evidence.core.corpus.data import Corpus
from sparse_evidence.core.corpus.recognise import recognise
from sparse_evidence.core.errors import DataError, UserError, quote_value
from sparse_evidence.core.fitted import FittedModel, checksum
from sparse_evidence.core.fitted.evidence import evidence_hits
from sparse_evidence.core.seeding import stable_seed

from ..database import record
from ..database.looks import record_look
from ..errors import RefusedError
from ..results.best import FINGERPRINTS
from ..results.wording import metric_text
from ..running.task import StudyTask
from .fit import check_same

if TYPE_CHECKING:
    from optuna import Study

Floats = npt.NDArray[np.float64]
Labels = npt.NDArray[np.int8]

MODEL = "model"
"""The name of the model among the candidates."""


class Report(TypedDict):
    """What `hpo evaluate` shows; plain JSON. Undefined values are null."""

    data: str
    """`hold-out` or `other data`."""
    study: str | None
    """The study that the model is from; null if it names none."""
    model: str
    """Checksum of the model."""
    look: int | None
    """How often the hold-out has been looked at, this time included; null for other data."""
    looks: list[dict[str, Any]]
    """All of them: time, model, metric and value."""
    metric: str
    """What the study optimised; the metric of `scores`."""
    scores: dict[str, dict[str, Any]]
    """The model and its baselines by name: `value`, a mean over the criteria, with `interval`; of baselines also
    `gain`, by how much the model's value is above theirs on the same posts, with `gain_interval`."""
    evaluation: dict[str, Any]
    """Of the model, at its threshold: `core.evaluation.Evaluation`."""
    labelled: dict[str, int]
    """Labelled posts of each criterion."""
    evidence: dict[str, Any] | None
    """`precision_at_1`, `chance` and `pairs`; null where no evidence is known."""
    notes: list[str]
    """How other data were read, and what was left out, in sentences."""


@dataclass(frozen=True, eq=False)
class Ground:
    """Posts to judge a model on, and what simpler methods say of them."""

    corpus: Corpus
    """Its criteria are criteria of the model."""
    columns: list[int]
    """[criteria of the corpus]: their numbers in the model."""
    others: Mapping[str, Floats]
    """[posts, criteria]: scores of the baselines by name."""
    chance: float | None
    """The metric of a random ranking."""


# ---- the hold-out ----------------------------------------------------------------------------------------------------


def study_name(model: FittedModel, folder: Path) -> str:
    """The name of the study that a model was fitted from.

    Raises:
        UserError: it was not fitted from a study.
    """
    if "study" not in model.info:
        raise UserError(f"the model {folder} names no study, so it has no hold-out; give a file with labelled posts")
    return str(model.info["study"])


def holdout_report(model: FittedModel, folder: Path, task: StudyTask, study: Study) -> Report:
    """Judge a model on its study's hold-out, and count this look before returning what was seen.

    Args:
        model: loaded from `folder`.
        folder: the model's folder.
        task: the study's data.
        study: where looks are counted.

    Raises:
        RefusedError: data, folds or definition are not those that the model was fitted on, or those of the study.
        UserError: the study has no hold-out, or nothing can be measured on it.
        StorageError: the database is unreachable, so that the look cannot be counted.
    """
    check_study(model, study)
    check_same({"study": model.info["study"], "provenance": model.info}, task)
    ground, metric = _holdout(task), model.info["metric"]
    report = _report(model, ground, metric, stable_seed(task.definition.search.seed, "evaluate"))
    report |= {"data": "hold-out", "study": model.info["study"], "model": checksum(folder)}
    look = {"model": report["model"], "metric": metric, "value": report["scores"][MODEL]["value"]}
    looks = record_look(study, look)
    report |= {"look": len(looks), "looks": looks}
    return report


def check_study(model: FittedModel, study: Study) -> None:
    """Check that the study in the database is the one that a model was fitted from.

    Raises:
        RefusedError: it is another study with the same name.
    """
    identity = record.identity(study)
    differing = [text for key, text in FINGERPRINTS.items() if identity.get(key) != model.info[key]]
    if differing:
        raise RefusedError(
            f"the study {study.study_name!r} in this database is not the one that the model was fitted from: other "
            f"{', other '.join(differing)}; name the right database with --storage (HPO_STORAGE)"
        )


def _holdout(task: StudyTask) -> Ground:
    """The held-out posts, and the baselines trained on all others."""
    rows = np.flatnonzero(task.folds.assignment < 0)
    train = np.flatnonzero(task.folds.assignment >= 0)
    if not len(rows):
        raise UserError(
            f"the study {task.definition.name!r} has no hold-out ([split] holdout is 0); "
            "give a file with other labelled posts"
        )
    embedded, metric = next(iter(task.embedded.values())), task.definition.search.metric
    others = baselines.Baselines(embedded, task.corpus.groups, metric).predict(train, rows)
    labels = task.corpus.labels
    chance = baselines.expected_score(labels[rows], labels[train], metric)
    return Ground(task.corpus.subset(rows), list(range(labels.shape[1])), others, chance)


# ---- other data ------------------------------------------------------------------------------------------------------


def other_report(model: FittedModel, folder: Path, path: Path) -> Report:
    """Judge a model on a table of labelled posts. Nothing is counted, and no database is needed.

    Whether the model was trained on some of these posts is not known; that they are not all of its study's is checked.

    Args:
        model: loaded from `folder`.
        folder: the model's folder.
        path: a table as `hpo init` reads it; criteria are matched by name.

    Raises:
        UserError: the table cannot be used, has no criterion of the model, or holds the posts of the model's study.
    """
    recognised = recognise(path)
    corpus = recognised.source.load(Path())
    _check_not_own(model, corpus, path)
    numbers = {criterion.name: number for number, criterion in enumerate(model.criteria)}
    shared = [column for column, criterion in enumerate(corpus.criteria) if criterion.name in numbers]
    if not shared:
        raise DataError(
            str(path),
            [
                f"none of its criteria ({_listed(corpus)}) is one of the model's "
                f"({', '.join(numbers)}); give the column criterion their names"
            ],
        )
    ground = Ground(
        _with_criteria(corpus, shared), [numbers[corpus.criteria[column].name] for column in shared], {}, None
    )
    metric = str(model.info.get("metric", "average_precision"))
    if metric != "brier":  # a constant needs the prevalence of the posts that the model was trained on
        ground = replace(
            ground, chance=baselines.expected_score(ground.corpus.labels, ground.corpus.labels[:0], metric)
        )
    report = _report(model, ground, metric, stable_seed(0, "evaluate"))
    report |= {"data": "other data", "study": model.info.get("study"), "model": checksum(folder)}
    report["notes"] += corpus.notes
    if recognised.ignored:
        report["notes"].append(f"columns that were not read: {', '.join(recognised.ignored)}")
    unknown = [each.name for column, each in enumerate(corpus.criteria) if column not in shared]
    missing = [name for number, name in enumerate(numbers) if number not in ground.columns]
    if unknown:
        report["notes"].append(f"the model does not know {', '.join(unknown)}; their labels were left out")
    if missing:
        report["notes"].append(f"the file has no labels of {', '.join(missing)}")
    return report


def _check_not_own(model: FittedModel, corpus: Corpus, path: Path) -> None:
    """Raise a `UserError` if these are the data of the model's study: it was trained on most of them.

    A study file may describe criteria in other words than its table, so the model's words are compared.
    """
    described = {criterion.name: criterion for criterion in model.criteria}
    criteria = tuple(described.get(criterion.name, criterion) for criterion in corpus.criteria)
    own = replace(corpus, criteria=criteria)
    if model.info.get("data_sha256") in (own.fingerprint(), own.fingerprint(evidence=True)):
        raise UserError(
            f"{path} holds the posts of the model's own study, on which it was trained; give no file to look at the "
            "hold-out, which is counted"
        )


def _listed(corpus: Corpus) -> str:
    return ", ".join(quote_value(criterion.name) for criterion in corpus.criteria[:20])


def _with_criteria(corpus: Corpus, columns: Sequence[int]) -> Corpus:
    """The corpus with some of its criteria, and the posts that have a label of them."""
    position = {column: number for number, column in enumerate(columns)}
    evidence = [
        replace(item, criterion=position[item.criterion]) for item in corpus.evidence if item.criterion in position
    ]
    chosen = replace(
        corpus,
        criteria=tuple(corpus.criteria[column] for column in columns),
        labels=corpus.labels[:, list(columns)],
        evidence=tuple(evidence),
    )
    return chosen.subset((chosen.labels >= 0).any(1))


# ---- measuring -------------------------------------------------------------------------------------------------------


def _report(model: FittedModel, ground: Ground, metric: str, seed: int) -> Report:
    """Everything that is measured; where the posts are from is for the caller to add."""
    corpus = ground.corpus
    _check_measurable(corpus, metric)
    probabilities = model.probabilities(corpus.posts)[:, ground.columns]
    names = [criterion.name for criterion in corpus.criteria]
    measured = evaluation.evaluate(
        corpus.labels, _logits(probabilities), corpus.groups, names, seed, threshold=model.threshold
    )
    scores = _scores(corpus, {MODEL: probabilities, **ground.others}, metric, seed)
    if ground.chance is not None:
        gain = scores[MODEL]["value"] - ground.chance
        scores["chance"] = {"value": ground.chance, "interval": None, "gain": gain, "gain_interval": None}
    return {
        "data": "",
        "study": None,
        "model": "",
        "look": None,
        "looks": [],
        "metric": metric,
        "scores": scores,
        "evaluation": measured.to_dict(),
        "labelled": dict(zip(names, (corpus.labels >= 0).sum(0).tolist(), strict=True)),
        "evidence": _evidence(model, ground),
        "notes": [],
    }


def _check_measurable(corpus: Corpus, metric: str) -> None:
    """Raise a `UserError` if the metric or its interval is not defined on these posts."""
    if not (corpus.labels == 1).any() or not (corpus.labels == 0).any():
        raise UserError(f"the posts of {corpus.name} have labels of one kind only; nothing can be ranked on them")
    if np.isnan(metrics.score(metric, corpus.labels, np.zeros(corpus.labels.shape))):
        raise UserError(
            f"{metric_text(metric)} is not defined on the posts of {corpus.name}: each criterion has labels of one "
            "kind only; give posts with both labels of a criterion"
        )
    if len(set(corpus.groups)) < 2:
        raise UserError(f"the posts of {corpus.name} are all of one group; intervals need at least 2 groups")


def _logits(probabilities: Floats) -> Floats:
    inside = np.clip(probabilities, 1e-15, 1 - 1e-15)
    return np.asarray(np.log(inside) - np.log1p(-inside))


def _scores(corpus: Corpus, predictions: Mapping[str, Floats], metric: str, seed: int) -> dict[str, dict[str, Any]]:
    """The metric of every candidate, the model first, and its gains, with intervals over the same draws of groups."""

    def values(rows: npt.NDArray[np.int64]) -> Floats:
        labels = corpus.labels[rows]
        found = np.array([metrics.score(metric, labels, predicted[rows]) for predicted in predictions.values()])
        return np.concatenate([found, found[0] - found])

    measured = values(np.arange(len(corpus)))
    bounds = evaluation.bootstrap_intervals(values, corpus.groups, seed=seed)
    intervals = [None if np.isnan(low) else (float(low), float(high)) for low, high in bounds]
    scores: dict[str, dict[str, Any]] = {}
    for number, name in enumerate(predictions):
        gain = number + len(predictions)
        scores[name] = {"value": metrics.none_if_nan(float(measured[number])), "interval": intervals[number]}
        if number:
            scores[name] |= {"gain": metrics.none_if_nan(float(measured[gain])), "gain_interval": intervals[gain]}
    return scores


def _evidence(model: FittedModel, ground: Ground) -> dict[str, Any] | None:
    """Precision at 1 of the sentences that the model shows; None where no evidence is known."""
    if not ground.corpus.evidence:
        return None
    labels = np.full((len(ground.corpus), len(model.criteria)), -1, dtype=np.int8)
    labels[:, ground.columns] = ground.corpus.labels
    whole = replace(
        ground.corpus,
        criteria=model.criteria,
        labels=labels,
        evidence=tuple(replace(item, criterion=ground.columns[item.criterion]) for item in ground.corpus.evidence),
    )
    hits = evidence_hits(model, whole)
    if not len(hits.posts):
        return None
    return {"precision_at_1": hits.rate, "chance": hits.expected, "pairs": len(hits.posts)}
