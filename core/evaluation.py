"""Evaluation of out-of-fold predictions: one threshold, metrics per criterion, intervals over groups, calibration."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from . import metrics
from .metrics import Floats, Index, Labels, Scores

BINS = 10
"""Bins of the calibration error."""

_POOLED = ("average_precision", "auroc", "f1", "precision", "sensitivity", "specificity", "brier")


@dataclass(frozen=True)
class Calibration:
    """Calibration over all labelled pairs: how well probabilities agree with observed frequencies."""

    brier: float
    """Mean squared error; lower is better."""
    ece: float
    """Expected calibration error over bins of equal mass; lower is better."""
    temperature: float
    """Divisor of the logits that calibrates them best, fitted on these same predictions; above 1 = overconfident."""
    brier_scaled: float
    """`brier` of the logits divided by `temperature`."""
    ece_scaled: float
    """`ece` of the logits divided by `temperature`."""


@dataclass(frozen=True)
class Evaluation:
    """Metrics of predictions; undefined values are None, never NaN."""

    posts: int
    groups: int
    pooled: dict[str, float | None]
    """Every metric over all labelled (post, criterion) pairs together; means over the criteria are called mean_…."""
    per_criterion: dict[str, dict[str, float | None]]
    threshold: float
    """The one threshold for all criteria; by default the one that maximises the pooled F1 of these predictions."""
    intervals: dict[str, tuple[float, float] | None]
    """95 % bootstrap intervals of the `pooled` values of the same name, drawing whole groups, at that threshold."""
    per_criterion_intervals: dict[str, tuple[float, float] | None]
    """The same for each criterion's average precision."""
    calibration: Calibration

    def to_dict(self) -> dict[str, Any]:
        """The evaluation as plain values for JSON."""
        return asdict(self)


def evaluate(
    labels: Labels,
    logits: Scores,
    groups: Sequence[str],
    criteria: Sequence[str],
    seed: int,
    *,
    threshold: float | None = None,
    repeats: int = 1000,
) -> Evaluation:
    """Measure out-of-fold predictions of all folds together (Forman and Scholz, SIGKDD Explorations 2010).

    Threshold and temperature are one number each. They are fitted and measured on the same predictions, which is
    slightly optimistic; to judge a final model, take both from out-of-fold predictions and measure them on a hold-out.

    Args:
        labels: int8 [posts, criteria]: 1, 0 or -1 (not labelled).
        logits: [posts, criteria]; a row of NaN = a post that no fold predicts, ignored.
        groups: the group of each post.
        criteria: names of the columns.
        seed: seed of the bootstrap.
        threshold: of the probabilities; default: the one that is best for these predictions.
        repeats: number of bootstrap draws.

    Raises:
        ValueError: shapes differ, there is no positive, there are fewer than two groups, or a logit is NaN.
    """
    rows = np.flatnonzero(~np.isnan(logits).all(axis=1))
    labels, z = np.asarray(labels)[rows], np.asarray(logits, dtype=np.float64)[rows]
    row_groups = [groups[row] for row in rows.tolist()]
    if np.isnan(z).any():
        raise ValueError("some logits of a post are NaN and others are not; find out where they come from")
    p = metrics.sigmoid(z)
    threshold = metrics.best_threshold(labels, p) if threshold is None else threshold
    report = metrics.report(labels, p, threshold, criteria)
    names = [*_POOLED, "macro_f1", "mean_average_precision", "mean_auroc"]
    bounds = bootstrap_intervals(
        lambda drawn: _summary(labels[drawn], p[drawn], threshold), row_groups, repeats=repeats, seed=seed
    )
    low_high = [None if math.isnan(low) else (float(low), float(high)) for low, high in bounds]
    means = {
        f"mean_{name}": metrics.none_if_nan(metrics.score(name, labels, p)) for name in ("average_precision", "auroc")
    }
    return Evaluation(
        posts=len(labels),
        groups=len(set(row_groups)),
        pooled={**report.pooled, **means},
        per_criterion=report.per_criterion,
        threshold=threshold,
        intervals=dict(zip(names, low_high[: len(names)], strict=True)),
        per_criterion_intervals=dict(zip(criteria, low_high[len(names) :], strict=True)),
        calibration=_calibration(labels, z),
    )


# ---- intervals --------------------------------------------------------------------------------------------------


def bootstrap_interval(
    statistic: Callable[[Index], float],
    groups: Sequence[str],
    *,
    repeats: int = 1000,
    seed: int,
    level: float = 0.95,
) -> tuple[float, float]:
    """Return the percentile bootstrap interval of a statistic, drawing whole groups with replacement.

    Efron and Tibshirani, "An Introduction to the Bootstrap", 1993; whole groups, because posts of one group are not
    independent (Field and Welsh, JRSS B 2007).

    Args:
        statistic: a function of int64 [rows], the rows drawn (some more than once), to a number; draws in which
            it is NaN do not count.
        groups: the group of each row, [rows].
        repeats: number of draws.
        seed: seed of the draws.
        level: share of the draws inside the interval.

    Returns:
        (low, high); both NaN if the statistic is defined in no draw.

    Raises:
        ValueError: fewer than two groups, or level or repeats out of range.
    """
    bounds = bootstrap_intervals(
        lambda rows: np.array([statistic(rows)]), groups, repeats=repeats, seed=seed, level=level
    )
    return float(bounds[0, 0]), float(bounds[0, 1])


def bootstrap_intervals(
    statistics: Callable[[Index], Floats],
    groups: Sequence[str],
    *,
    repeats: int = 1000,
    seed: int,
    level: float = 0.95,
) -> Floats:
    """Return the intervals of `bootstrap_interval` for a vector of statistics, all on the same draws.

    Args:
        statistics: a function of int64 [rows], the rows drawn, to float64 [statistics].
        groups: the group of each row, [rows].
        repeats: number of draws.
        seed: seed of the draws.
        level: share of the draws inside an interval.

    Returns:
        float64 [statistics, 2], low and high; NaN where a statistic is defined in no draw.

    Raises:
        ValueError: fewer than two groups, or level or repeats out of range.
    """
    if not (0 < level < 1 and repeats >= 1):
        raise ValueError(f"level must be between 0 and 1 and repeats at least 1, but are {level} and {repeats}")
    rows_of_group: dict[str, list[int]] = {}
    for row, name in enumerate(groups):
        rows_of_group.setdefault(name, []).append(row)
    if len(rows_of_group) < 2:
        raise ValueError(f"an interval over groups needs at least 2 groups, but there are {len(rows_of_group)}")
    rows = [np.array(members, dtype=np.int64) for members in rows_of_group.values()]
    generator = np.random.default_rng(seed)
    drawn = generator.integers(len(rows), size=(repeats, len(rows)))
    values = np.array([statistics(np.concatenate([rows[group] for group in draw])) for draw in drawn])
    bounds = np.full((values.shape[1], 2), np.nan)
    for column, drawn_values in enumerate(values.T):
        defined = drawn_values[~np.isnan(drawn_values)]
        if defined.size:
            bounds[column] = np.quantile(defined, [(1 - level) / 2, (1 + level) / 2])
    return bounds


# ---- calibration ------------------------------------------------------------------------------------------------


def expected_calibration_error(labels: Labels, probabilities: Scores, *, bins: int = BINS) -> float:
    """Return the calibration error of all pairs, Σ_b (n_b / n) |mean p − mean y| over bins b of equal mass.

    Naeini, Cooper and Hauskrecht, AAAI 2015; equal mass as in Nguyen and O'Connor, EMNLP 2015. Equal probabilities
    share a bin.

    Args:
        labels: [posts] or [posts, criteria].
        probabilities: same shape.
        bins: the maximum number of bins.

    Returns:
        The error, NaN where nothing is labelled.

    Raises:
        ValueError: shapes differ, or `bins` is less than 1.
    """
    if bins < 1:
        raise ValueError(f"bins is {bins}, but must be at least 1")
    y, p = metrics.labelled_pairs(labels, probabilities)
    if y.size == 0:
        return math.nan
    _, run, count = np.unique(p, return_inverse=True, return_counts=True)
    middle = np.cumsum(count) - count / 2  # ranks in the middle of each run of equal probabilities
    bin_of_pair = np.minimum((middle * bins / y.size).astype(np.int64), bins - 1)[run]
    return float(np.abs(np.bincount(bin_of_pair, p - y, minlength=bins)).sum() / y.size)


def fit_temperature(labels: Labels, logits: Scores) -> float:
    """Return the T > 0 that minimises the mean negative log-likelihood of σ(z / T).

    Temperature scaling (Guo, Pleiss, Sun and Weinberger, ICML 2017), searched between 0.01 and 100, where the
    likelihood has a single minimum; for logits that separate the classes perfectly the result is 0.01.

    Args:
        labels: [posts] or [posts, criteria].
        logits: same shape.

    Raises:
        ValueError: shapes differ, nothing is labelled, or a logit is NaN or infinite.
    """
    y, z = metrics.labelled_pairs(labels, logits)
    if y.size == 0:
        raise ValueError("nothing is labelled, so no temperature can be fitted")
    if not np.isfinite(z).all():
        raise ValueError("a logit is NaN or infinite, so no temperature can be fitted")
    logits_of_wrong_class = np.where(y == 1, -z, z)

    def loss(log_temperature: float) -> float:
        return float(np.logaddexp(0, logits_of_wrong_class * math.exp(-log_temperature)).mean())

    from scipy.optimize import minimize_scalar  # takes half a second, and only this function needs it

    bounds = (math.log(0.01), math.log(100))
    return math.exp(minimize_scalar(loss, bounds=bounds, method="bounded", options={"xatol": 1e-8}).x)


# ---- helpers ----------------------------------------------------------------------------------------------------


def _summary(labels: Labels, p: Floats, threshold: float) -> Floats:
    """The values with an interval: pooled metrics, means over the criteria, each criterion's average precision."""
    labelled = labels >= 0
    y, s = labels[labelled][:, None], p[labelled][:, None]
    counts, columns = metrics.confusion(y, s, threshold), metrics.confusion(labels, p, threshold)
    precisions = metrics.average_precision_per_criterion(labels, p)
    areas = metrics.auroc_per_criterion(labels, p)
    rankings = [metrics.average_precision_per_criterion(y, s), metrics.auroc_per_criterion(y, s)]
    decisions = [metrics.f1, metrics.precision, metrics.sensitivity, metrics.specificity]
    pooled = [
        *(ranking[0] for ranking in rankings),
        *(metric(counts)[0] for metric in decisions),
        metrics.brier(y, s)[0],
    ]
    means = [metrics.macro_f1(columns), metrics.mean_defined(precisions), metrics.mean_defined(areas)]
    return np.concatenate([pooled, means, precisions])


def _calibration(labels: Labels, z: Floats) -> Calibration:
    labelled = labels >= 0
    y, logits = labels[labelled], z[labelled]
    temperature = fit_temperature(y, logits)
    (brier, ece), (brier_scaled, ece_scaled) = (
        (float(metrics.brier(y, p)[0]), expected_calibration_error(y, p))
        for p in (metrics.sigmoid(logits), metrics.sigmoid(logits / temperature))
    )
    return Calibration(brier, ece, temperature, brier_scaled, ece_scaled)
