"""Metrics of rankings and decisions, thresholds, and baselines that ignore the text.

Labels are 1 (positive), 0 (negative) or -1 (not labelled, ignored), usually [posts, criteria] with one metric value per
column. An undefined metric, such as the average precision of a column without a positive, is NaN (None in a `Report`),
never 0. Equal scores form one cut: no order among them is assumed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .errors import unknown_name

Floats = NDArray[np.float64]
Index = NDArray[np.int64]
Labels = NDArray[np.int8]
Scores = NDArray[np.floating]


# ---- rankings ---------------------------------------------------------------------------------------------------


def average_precision(labels: Labels, scores: Scores) -> float:
    """Average precision of one column; see `average_precision_per_criterion`.

    Args:
        labels: [posts].
        scores: [posts].

    Returns:
        The average precision, NaN without a positive.

    Raises:
        ValueError: shapes differ, or a score is NaN.
    """
    return float(average_precision_per_criterion(np.asarray(labels)[:, None], np.asarray(scores)[:, None])[0])


def average_precision_per_criterion(labels: Labels, scores: Scores) -> Floats:
    """Average precision, Σ_i (R_i − R_{i−1}) P_i over the distinct scores from high to low.

    P and R are precision and recall when every score of at least that value is predicted positive; without
    interpolation (for the reasons, see Davis and Goadrich, ICML 2006). A constant score yields the prevalence.

    Args:
        labels: [posts, criteria].
        scores: [posts, criteria].

    Returns:
        float64 [criteria], NaN where there is no positive.

    Raises:
        ValueError: shapes differ, or a score is NaN.
    """
    cuts = _cuts(labels, scores)
    precision = cuts.above_pos / np.maximum(cuts.above_pos + cuts.above_neg, 1)
    total = np.bincount(cuts.column, cuts.pos * precision, minlength=cuts.columns)
    return _ratio(total, cuts.sum(cuts.pos))


def auroc(labels: Labels, scores: Scores) -> float:
    """Area under the ROC curve of one column; see `auroc_per_criterion`.

    Args:
        labels: [posts].
        scores: [posts].

    Returns:
        The area, NaN without both classes.

    Raises:
        ValueError: shapes differ, or a score is NaN.
    """
    return float(auroc_per_criterion(np.asarray(labels)[:, None], np.asarray(scores)[:, None])[0])


def auroc_per_criterion(labels: Labels, scores: Scores) -> Floats:
    """Area under the ROC curve: the share of (positive, negative) pairs in the right order; ties count half.

    The Mann–Whitney statistic (Hanley and McNeil, Radiology 1982).

    Args:
        labels: [posts, criteria].
        scores: [posts, criteria].

    Returns:
        float64 [criteria], NaN where there are not both classes.

    Raises:
        ValueError: shapes differ, or a score is NaN.
    """
    cuts = _cuts(labels, scores)
    pairs = np.bincount(cuts.column, cuts.neg * (cuts.above_pos - cuts.pos / 2), minlength=cuts.columns)
    return _ratio(pairs, cuts.sum(cuts.pos) * cuts.sum(cuts.neg))


class _Cuts(NamedTuple):
    """The distinct scores of every column from high to low, columns concatenated; each array [cuts].

    `pos` and `neg` count the labels with exactly that score, `above_pos` and `above_neg` those with at least that
    score.
    """

    column: Index
    pos: Index
    neg: Index
    above_pos: Index
    above_neg: Index
    columns: int

    def sum(self, values: Index) -> Floats:
        return np.bincount(self.column, values, minlength=self.columns).astype(np.float64)


def _cuts(labels: Labels, scores: Scores) -> _Cuts:
    """Count the labels at every distinct score of every column; labels and scores are [posts, criteria]."""
    labels, scores = _same_shape(labels, scores)
    if np.isnan(scores).any():
        raise ValueError("a score is NaN, so the posts cannot be ranked; find out which post it belongs to")
    rows, columns = scores.shape
    order = np.argsort(-scores.T, axis=1)  # the order among equal scores does not matter
    ranked_scores = np.take_along_axis(scores.T, order, axis=1)
    ranked_labels = np.take_along_axis(labels.T, order, axis=1).ravel()
    ends = np.ones((columns, rows), dtype=np.bool_)  # the last of each run of equal scores
    np.not_equal(ranked_scores[:, 1:], ranked_scores[:, :-1], out=ends[:, :-1])
    cuts = np.flatnonzero(ends)
    column = cuts // max(rows, 1)
    first = np.concatenate([[True], column[1:] != column[:-1]]) if cuts.size else np.zeros(0, dtype=np.bool_)
    exact, at_least = [], []
    for value in (1, 0):
        running = np.cumsum(ranked_labels == value)[cuts]
        counts = np.diff(running, prepend=0)
        earlier_columns = (running - counts)[first]
        exact.append(counts)
        at_least.append(running - earlier_columns[np.cumsum(first) - 1])
    return _Cuts(column, exact[0], exact[1], at_least[0], at_least[1], columns)


# ---- probabilities ----------------------------------------------------------------------------------------------


def sigmoid(logits: Scores) -> Floats:
    """Return the probabilities of logits, float64 of the same shape; NaN stays NaN."""
    with np.errstate(invalid="ignore"):  # logaddexp warns of NaN on some processors
        return np.asarray(np.exp(-np.logaddexp(0, -np.asarray(logits, dtype=np.float64))))


def brier(labels: Labels, probabilities: Scores) -> Floats:
    """Brier score, the mean of (p − y)² (Brier, Monthly Weather Review, 1950); lower is better.

    Args:
        labels: [posts, criteria].
        probabilities: [posts, criteria].

    Returns:
        float64 [criteria], NaN where nothing is labelled.

    Raises:
        ValueError: shapes differ.
    """
    labels, probabilities = _same_shape(labels, probabilities)
    labelled = labels >= 0
    return _ratio(np.where(labelled, (probabilities - labels) ** 2, 0).sum(axis=0), labelled.sum(axis=0))


# ---- decisions --------------------------------------------------------------------------------------------------


class Confusion(NamedTuple):
    """Confusion counts: true and false positives and negatives, each int64 [criteria]."""

    tp: Index
    fp: Index
    tn: Index
    fn: Index

    def pooled(self) -> Confusion:
        """Return the counts summed over all criteria, each int64 [1]."""
        return Confusion(*(counts.sum(keepdims=True) for counts in self))


def confusion(labels: Labels, scores: Scores, threshold: float) -> Confusion:
    """Count the decisions "positive if score ≥ threshold".

    Args:
        labels: [posts, criteria], or [posts] for one column.
        scores: same shape; compared in float64.
        threshold: the same for all criteria.

    Raises:
        ValueError: shapes differ.
    """
    labels, scores = _same_shape(labels, scores)
    positive = scores >= threshold
    cells = [(labels == 1) & positive, (labels == 0) & positive, (labels == 0) & ~positive, (labels == 1) & ~positive]
    return Confusion(*(cell.sum(axis=0, dtype=np.int64) for cell in cells))


def precision(counts: Confusion) -> Floats:
    """Return TP / (TP + FP), float64 [criteria]; NaN where nothing is predicted positive."""
    return _ratio(counts.tp, counts.tp + counts.fp)


def sensitivity(counts: Confusion) -> Floats:
    """Return recall, TP / (TP + FN), float64 [criteria]; NaN where there is no positive."""
    return _ratio(counts.tp, counts.tp + counts.fn)


def specificity(counts: Confusion) -> Floats:
    """Return TN / (TN + FP), float64 [criteria]; NaN where there is no negative."""
    return _ratio(counts.tn, counts.tn + counts.fp)


def accuracy(counts: Confusion) -> Floats:
    """Return (TP + TN) / all labelled, float64 [criteria]; NaN where nothing is labelled."""
    return _ratio(counts.tp + counts.tn, sum(counts))


def f1(counts: Confusion) -> Floats:
    """Return F1 = 2 TP / (2 TP + FP + FN), float64 [criteria].

    NaN where there is no positive label, regardless of the predictions, so that a mean is always over the same
    criteria; 0 where there are positives but no true positive (van Rijsbergen, Information Retrieval, 1979).
    """
    scores = _ratio(2 * counts.tp, 2 * counts.tp + counts.fp + counts.fn)
    return np.where(counts.tp + counts.fn > 0, scores, np.nan)


def macro_f1(counts: Confusion) -> float:
    """Return the mean F1 of the criteria that have a positive label; NaN if none has."""
    return mean_defined(f1(counts))


def f1_from_logits(labels: Labels, logits: Scores, threshold: float = 0.5) -> float:
    """Return the pooled F1 of "positive if σ(logit) ≥ threshold": a `metric_fn` for `Trainer.train`.

    Args:
        labels: [posts] or [posts, criteria].
        logits: same shape.
        threshold: on the probability, between 0 and 1.

    Raises:
        ValueError: shapes differ, or the threshold is not between 0 and 1.
    """
    if not 0 < threshold < 1:
        raise ValueError(f"threshold is {threshold}, but must be between 0 and 1")
    return float(f1(confusion(labels, logits, math.log(threshold / (1 - threshold))).pooled())[0])


def best_threshold(labels: Labels, scores: Scores) -> float:
    """Return the one threshold for all criteria that maximises the pooled F1 of "positive if score ≥ threshold".

    Candidates are the midpoints between neighbouring distinct scores, and the lowest score (all positive). Ties are
    resolved to the highest threshold, which predicts the fewest positives. There is no threshold per criterion, because
    with few positives it would overfit.

    Args:
        labels: [posts] or [posts, criteria].
        scores: same shape.

    Raises:
        ValueError: shapes differ, a score is NaN, or there is no positive.
    """
    y, s = labelled_pairs(labels, scores)
    cuts = _cuts(y[:, None], s[:, None])
    positives = int(cuts.pos.sum())
    if positives == 0:
        raise ValueError("the labels have no positive, so F1 is undefined and there is no best threshold")
    f1_of_cut = 2 * cuts.above_pos / (cuts.above_pos + cuts.above_neg + positives)
    best = int(np.argmax(f1_of_cut))
    distinct = np.unique(s)[::-1]
    upper = float(distinct[best])
    if best + 1 == len(distinct):
        return upper
    lower = float(distinct[best + 1])
    middle = lower + (upper - lower) / 2
    return middle if middle > lower else upper


# ---- metrics to optimise ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Metric:
    """A threshold-free metric: a function from labels and scores, both [posts, criteria], to float64 [criteria]."""

    name: str
    function: Callable[[Labels, Scores], Floats]
    higher_is_better: bool


METRICS: Mapping[str, Metric] = MappingProxyType(
    {
        metric.name: metric
        for metric in (
            Metric("average_precision", average_precision_per_criterion, higher_is_better=True),
            Metric("auroc", auroc_per_criterion, higher_is_better=True),
            Metric("brier", brier, higher_is_better=False),
        )
    }
)


def score(metric: str, labels: Labels, scores: Scores) -> float:
    """Return the mean of a metric over the criteria for which it is defined; NaN if there is none.

    Args:
        metric: a name in `METRICS`.
        labels: [posts, criteria].
        scores: [posts, criteria].

    Raises:
        ConfigError: the metric is unknown.
        ValueError: shapes differ, or a score is NaN.
    """
    if metric not in METRICS:
        raise unknown_name("metric", metric, METRICS)
    return mean_defined(METRICS[metric].function(labels, scores))


# ---- reports and baselines --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Report:
    """All metrics at one threshold: pooled over all (post, criterion) pairs, and per criterion; None = undefined."""

    threshold: float
    pooled: dict[str, float | None]
    per_criterion: dict[str, dict[str, float | None]]


def report(labels: Labels, probabilities: Scores, threshold: float, criteria: Sequence[str]) -> Report:
    """Compute all metrics of the predictions, pooled over all (post, criterion) pairs and per criterion.

    The metrics are average_precision, auroc, f1, precision, sensitivity, specificity, brier, prevalence and positives.
    The pooled metrics also include macro_f1, the mean F1 of the criteria.

    Args:
        labels: [posts, criteria].
        probabilities: [posts, criteria].
        threshold: positive if probability ≥ threshold.
        criteria: names of the columns.

    Raises:
        ValueError: shapes differ, or a probability is NaN.
    """
    labels, probabilities = _same_shape(labels, probabilities)
    if len(criteria) != labels.shape[1]:
        raise ValueError(f"{len(criteria)} criteria are named, but the labels have {labels.shape[1]} columns")
    y, p = labelled_pairs(labels, probabilities)
    pooled = {name: none_if_nan(values[0]) for name, values in _all_metrics(y[:, None], p[:, None], threshold).items()}
    pooled["macro_f1"] = none_if_nan(macro_f1(confusion(labels, probabilities, threshold)))
    columns = _all_metrics(labels, probabilities, threshold)
    per_criterion = {
        criterion: {name: none_if_nan(values[column]) for name, values in columns.items()}
        for column, criterion in enumerate(criteria)
    }
    return Report(float(threshold), pooled, per_criterion)


def _all_metrics(labels: Labels, probabilities: Scores, threshold: float) -> dict[str, Floats]:
    """Return every metric, each float64 [columns]."""
    counts = confusion(labels, probabilities, threshold)
    positives = (labels == 1).sum(axis=0)
    return {
        "average_precision": average_precision_per_criterion(labels, probabilities),
        "auroc": auroc_per_criterion(labels, probabilities),
        "f1": f1(counts),
        "precision": precision(counts),
        "sensitivity": sensitivity(counts),
        "specificity": specificity(counts),
        "brier": brier(labels, probabilities),
        "prevalence": _ratio(positives, (labels >= 0).sum(axis=0)),
        "positives": positives.astype(np.float64),
    }


def criterion_only_scores(train_labels: Labels, n: int) -> Floats:
    """Return the predictions of a model that ignores the post: each criterion's prevalence in training.

    Args:
        train_labels: [training posts, criteria].
        n: number of posts to score.

    Returns:
        float64 [n, criteria], constant within each column.

    Raises:
        ValueError: a criterion has no label in training.
    """
    train_labels = np.asarray(train_labels)
    prevalence = _ratio((train_labels == 1).sum(axis=0), (train_labels >= 0).sum(axis=0))
    if np.isnan(prevalence).any():
        raise ValueError(f"criterion number {int(np.argmax(np.isnan(prevalence)))} has no label in training")
    return np.tile(prevalence, (n, 1))


def baselines(labels: Labels, fold_of_row: NDArray[np.integer]) -> dict[str, float | None]:
    """Compute baselines that ignore the text; a useful model must beat all of them.

    The criterion-only model predicts each criterion's prevalence in the training part of the fold. Its predictions of
    all folds are pooled, and its F1 is taken at its own best threshold, as for a model.

    Args:
        labels: [posts, criteria].
        fold_of_row: [posts], the validation fold of each post; posts with -1 are ignored.

    Returns:
        mean_prevalence (the average precision of a constant score, mean over the criteria), criterion_only_auroc,
        criterion_only_average_precision, criterion_only_f1, all_positive_f1, all_negative_accuracy; None = undefined.

    Raises:
        ValueError: shapes differ, or a criterion has no label in the training part of a fold.
    """
    if len(fold_of_row) != len(labels):
        raise ValueError(f"there are folds for {len(fold_of_row)} posts, but labels for {len(labels)} posts")
    labels, fold = np.asarray(labels)[fold_of_row >= 0], fold_of_row[fold_of_row >= 0]
    scores = np.zeros(labels.shape)
    for number in np.unique(fold):
        scores[fold == number] = criterion_only_scores(labels[fold != number], int((fold == number).sum()))
    y, s = labelled_pairs(labels, scores)
    has_positive = bool((y == 1).any())
    prevalence = _ratio((labels == 1).sum(axis=0), (labels >= 0).sum(axis=0))
    criterion_only_f1 = f1(confusion(y, s, best_threshold(y, s)))[0] if has_positive else math.nan
    values = {
        "mean_prevalence": mean_defined(prevalence),
        "criterion_only_auroc": auroc(y, s),
        "criterion_only_average_precision": average_precision(y, s),
        "criterion_only_f1": criterion_only_f1,
        "all_positive_f1": f1(confusion(y, np.ones(y.size), 0.5))[0],
        "all_negative_accuracy": accuracy(confusion(y, np.zeros(y.size), 0.5))[0],
    }
    return {name: none_if_nan(value) for name, value in values.items()}


# ---- helpers ----------------------------------------------------------------------------------------------------


def _same_shape(labels: Labels, scores: Scores) -> tuple[Labels, Floats]:
    """Return both as [rows, columns], scores in float64 ([rows] is one column)."""
    labels, values = np.asarray(labels), np.asarray(scores, dtype=np.float64)
    if labels.shape != values.shape or labels.ndim not in {1, 2}:
        raise ValueError(f"labels and scores must both be [posts, criteria], but are {labels.shape} and {values.shape}")
    return (labels, values) if labels.ndim == 2 else (labels[:, None], values[:, None])


def labelled_pairs(labels: Labels, scores: Scores) -> tuple[Labels, Floats]:
    """Return the labelled pairs, both [pairs]."""
    labels, values = _same_shape(labels, scores)
    labelled = labels >= 0
    return labels[labelled], values[labelled]


def _ratio(numerator: ArrayLike, denominator: ArrayLike) -> Floats:
    """Divide element by element; NaN where the denominator is 0."""
    top, bottom = np.asarray(numerator, dtype=np.float64), np.asarray(denominator, dtype=np.float64)
    ratio = np.full(top.shape, np.nan)
    np.divide(top, bottom, out=ratio, where=bottom > 0)
    return ratio


def mean_defined(values: Floats) -> float:
    """Return the mean of the values that are not NaN; NaN if there are none."""
    defined = values[~np.isnan(values)]
    return float(defined.mean()) if defined.size else math.nan


def none_if_nan(value: float) -> float | None:
    """Return the value as a float, or None if it is NaN."""
    return None if math.isnan(value) else float(value)
