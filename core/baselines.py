"""Baselines: what simpler methods score on given folds. A search is worth its time only if its result beats them.

- linear: logistic regression on the mean embedding of a post.
- retrieval: the model `retrieval` with its default configuration, but for C.
- zero_shot: without labels, the mean cosine of a post's three nearest chunks to the criterion's text.
- chance: the expected score of a random ranking.

The C of the first two is chosen inside each fold's training part, in a cross-validation with three folds of whole
groups, so no validation post has a say in it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from . import metrics
from .config import LinearConfig, RetrievalConfig
from .errors import SplitError
from .features.embeddings import mean_embeddings
from .features.views import EmbeddedCorpus
from .models.logistic import solve, solve_path
from .models.retrieval import Retrieval, standardisation
from .splits import Folds, kfold, partition

Floats = npt.NDArray[np.float64]
Index = npt.NDArray[np.int64]
Labels = npt.NDArray[np.int8]

LINEAR_STRENGTHS = (0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0)
RETRIEVAL_STRENGTHS = (0.0003, 0.001, 0.003, 0.01, 0.03, 0.1)
"""The C that are tried, ascending."""
INNER_FOLDS = 3
CHOICE_TOLERANCE = 1e-2
"""To choose C, logits need not be more exact than this."""


@dataclass(frozen=True, eq=False)
class _Method:
    """A logistic regression with C to choose: its inputs, and how they are standardised."""

    design: npt.NDArray[np.float32]
    """[posts, inputs]"""
    strengths: tuple[float, ...]
    default: float
    """C if the training part is too small to choose."""
    standardised: tuple[int, float] | None = None
    """(inputs that are coordinates of the embedding, weight of the others), None: the inputs are used as they are."""

    def rows(self, train: Index) -> Floats:
        """The inputs of all posts `[posts, inputs]`, standardised on the posts `train`."""
        design = self.design.astype(np.float64)
        if self.standardised is None:
            return design
        center, factor = standardisation(torch.from_numpy(design[train]), *self.standardised)
        return np.asarray((design - center.numpy()) * factor.numpy())


class Baselines:
    """The baselines that read the posts: trained on any posts, they predict any others.

    Args:
        embedded: posts, criteria and labels.
        groups: the group of each post that is trained on; further posts need none.
        metric: a name in `metrics.METRICS`, by which C is chosen.
    """

    def __init__(self, embedded: EmbeddedCorpus, groups: Sequence[str], metric: str) -> None:
        config, labels, dim = RetrievalConfig(), embedded.labels, embedded.embeddings.shape[1]
        model = Retrieval(config, torch.from_numpy(embedded.criteria), torch.zeros(1, labels.shape[1]))
        similar = model.design_all(embedded.bags.chunks("cpu")).numpy()
        means = mean_embeddings(embedded.embeddings, embedded.offsets)
        self._labels, self._groups, self._metric = labels, groups, metric
        self._methods = {
            "linear": _Method(means, LINEAR_STRENGTHS, LinearConfig().C),
            "retrieval": _Method(similar, RETRIEVAL_STRENGTHS, config.C, (dim, config.similarity_weight)),
        }
        nearest = similar[:, dim : dim + config.top_k * labels.shape[1]]
        self._similarity = nearest.reshape(len(labels), config.top_k, -1).mean(1, dtype=np.float64)

    def predict(self, train: Index, rows: Index) -> dict[str, Floats]:
        """Predictions of the posts `rows` by name, float64 `[rows, criteria]`; only the labels of `train` are used.

        Those of `linear` and `retrieval` are probabilities, those of `zero_shot`, which is left out if the metric needs
        probabilities, are similarities.
        """
        inner = _inner_folds(self._groups, self._labels, train)
        found = {
            name: metrics.sigmoid(self._solve(method, train, inner, rows)) for name, method in self._methods.items()
        }
        return found if self._metric == "brier" else found | {"zero_shot": self._similarity[rows]}

    def strength(self, name: str, train: Index) -> float:
        """The C of `linear` or `retrieval` that is best in a cross-validation of the posts `train`."""
        return self._strength(self._methods[name], _inner_folds(self._groups, self._labels, train))

    def _strength(self, method: _Method, inner: Folds | None) -> float:
        return method.default if inner is None else _best_strength(method, self._labels, inner, self._metric)

    def _solve(self, method: _Method, train: Index, inner: Folds | None, rows: Index) -> Floats:
        """Logits `[rows, criteria]` with the C that is best inside the training part."""
        inputs = method.rows(train)
        return solve(inputs[train], self._labels[train], self._strength(method, inner)).logits(inputs[rows])


def predict(embedded: EmbeddedCorpus, groups: Sequence[str], folds: Folds, metric: str) -> dict[str, Floats]:
    """Out-of-fold predictions of the baselines that read the posts.

    Args:
        embedded: posts, criteria and labels.
        groups: the group of each post, `[posts]`.
        folds: the folds that the candidates are scored on.
        metric: a name in `metrics.METRICS`, by which C is chosen.

    Returns:
        What `Baselines.predict` returns, of all posts: float64 `[posts, criteria]`, NaN for posts in no fold.
    """
    baselines = Baselines(embedded, groups, metric)
    result: dict[str, Floats] = {}
    for fold in range(folds.count):
        rows = folds.validation(fold)
        for name, predicted in baselines.predict(folds.train(fold), rows).items():
            result.setdefault(name, np.full(embedded.labels.shape, np.nan))[rows] = predicted
    return result


def as_logits(name: str, predictions: Floats) -> npt.NDArray[np.float32]:
    """Predictions of `predict` as logits `[posts, criteria]`, which rank the posts the same way.

    Similarities are centred and spread, so that they look like logits; they are no probabilities.
    """
    if name == "zero_shot":
        logits = (predictions - np.nanmean(predictions)) / max(float(np.nanstd(predictions)), 1e-9)
    else:
        inside = np.clip(predictions, 1e-12, 1 - 1e-12)
        logits = np.log(inside) - np.log1p(-inside)
    return np.asarray(logits, dtype=np.float32)


def _best_strength(method: _Method, labels: Labels, folds: Folds, metric: str) -> float:
    """The C with the best mean score over the folds; the smallest of equals, the default if no score is defined."""
    scores = np.zeros((folds.count, len(method.strengths)))
    for fold in range(folds.count):
        train, validation = folds.train(fold), folds.validation(fold)
        rows = method.rows(train)
        solutions = solve_path(rows[train], labels[train], method.strengths, tolerance=CHOICE_TOLERANCE)
        scores[fold] = [
            metrics.score(metric, labels[validation], metrics.sigmoid(solution.logits(rows[validation])))
            for solution in solutions
        ]
    means = np.array([metrics.mean_defined(column) for column in scores.T])
    if np.isnan(means).all():
        return method.default
    sign = 1.0 if metrics.METRICS[metric].higher_is_better else -1.0
    return method.strengths[int(np.nanargmax(sign * means))]


def _inner_folds(groups: Sequence[str], labels: Labels, train: Index) -> Folds | None:
    """Folds of a training part; without a promise that each has every class if groups are few, None with under 3."""
    part_groups, part_labels = [groups[post] for post in train.tolist()], labels[train]
    names = [str(criterion) for criterion in range(labels.shape[1])]
    try:
        part = kfold(part_groups, part_labels, INNER_FOLDS, 0, criteria=names).assignment
    except SplitError:
        if len(set(part_groups)) < INNER_FOLDS:
            return None
        part = partition(part_groups, part_labels, [1 / INNER_FOLDS] * INNER_FOLDS, 0)
    assignment = np.full(len(labels), -1, dtype=np.int16)
    assignment[train] = part
    return Folds(assignment, INNER_FOLDS)


def scores(predictions: Mapping[str, npt.NDArray[Any]], labels: Labels, folds: Folds, metric: str) -> dict[str, Any]:
    """Score the baselines, as candidates are scored: mean over the folds of the mean over the criteria.

    Args:
        predictions: from `predict`.
        labels: int8 `[posts, criteria]`: 1, 0 or -1 (unlabelled).
        folds: the folds of the predictions.
        metric: a name in `metrics.METRICS`.

    Returns:
        `NAME` (mean over the folds) and `NAME_folds` of each prediction, `chance`, and the values of
        `metrics.baselines`, which ignore the text.

    Raises:
        ValueError: a criterion has no label in the training part of a fold.
    """
    result: dict[str, Any] = {}
    for name, predicted in predictions.items():
        rows = [folds.validation(fold) for fold in range(folds.count)]
        per_fold = [metrics.score(metric, labels[part], predicted[part]) for part in rows]
        result |= {name: float(np.mean(per_fold)), f"{name}_folds": per_fold}
    return result | {"chance": chance(labels, folds, metric), **metrics.baselines(labels, folds.assignment)}


def chance(labels: Labels, folds: Folds, metric: str) -> float:
    """Expected score of predictions that know nothing of the posts, as a mean over folds and criteria.

    For a ranking metric they are in random order; for the Brier score they are the training prevalence.

    Args:
        labels: int8 `[posts, criteria]`: 1, 0 or -1 (unlabelled).
        folds: the folds that the candidates are scored on.
        metric: a name in `metrics.METRICS`.
    """
    per_fold = [
        expected_score(labels[folds.validation(fold)], labels[folds.train(fold)], metric) for fold in range(folds.count)
    ]
    return float(np.mean(per_fold))


def expected_score(labels: Labels, train: Labels, metric: str) -> float:
    """The same for one fold: the mean over the criteria; NaN if it is defined for none.

    Args:
        labels: int8 `[posts, criteria]`, of the posts that are scored.
        train: int8 `[training posts, criteria]`; only the Brier score depends on them.
        metric: a name in `metrics.METRICS`.
    """
    if metric == "brier":
        return metrics.score(metric, labels, metrics.criterion_only_scores(train, len(labels)))
    if metric == "auroc":
        return 0.5
    positives, known = (labels == 1).sum(0).tolist(), (labels >= 0).sum(0).tolist()
    expected = [random_average_precision(m, n) for m, n in zip(positives, known, strict=True)]
    return metrics.mean_defined(np.array(expected))


def random_average_precision(positives: int, posts: int) -> float:
    """Expected average precision of a random ranking, NaN without a positive.

    With m of n posts positive and H the n-th harmonic number it is (m−1)/(n−1) + H/n · (1 − (m−1)/(n−1)): in a small
    fold well above the prevalence m/n (Bestgen, "Exact Expected Average Precision of the Random Baseline for System
    Evaluation", Prague Bulletin of Mathematical Linguistics 103, 2015).
    """
    if positives == 0:
        return math.nan
    if posts == 1:
        return 1.0
    rest = (positives - 1) / (posts - 1)
    return rest + sum(1 / rank for rank in range(1, posts + 1)) / posts * (1 - rest)
