"""Out-of-fold predictions, pooled once: one threshold, a table per criterion, intervals over groups, calibration."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from . import metrics
from .metrics import Floats, Labels, Scores

BINS = 10
_POOLED = ("average_precision", "auroc", "f1", "precision", "sensitivity", "specificity", "brier")


@dataclass(frozen=True)
class Calibration:
    """How far probabilities can be taken at their word, over all labelled pairs."""

    brier: float
    """Mean squared error; lower is better."""
    ece: float
    """Expected calibration error over bins of equal mass; lower is better."""
    temperature: float
    """What logits are to be divided by; above 1 the model is too sure of itself. Fitted on these very predictions."""
    brier_scaled: float
    """The same of probabilities after that division."""
    ece_scaled: float


@dataclass(frozen=True)
class Evaluation:
    """What predictions are worth; NaN is never in it, None means not defined."""

    posts: int
    groups: int
    pooled: dict[str, float | None]
    """Every metric over all labelled (post, criterion) pairs together, and the mean over the criteria as mean_…."""
    per_criterion: dict[str, dict[str, float | None]]
    threshold: float
    """The one threshold for all criteria that maximises the pooled F1 of these predictions."""
    intervals: dict[str, tuple[float, float] | None]
    """95 % bootstrap intervals of what `pooled` has under the same name, drawing whole groups, at that threshold."""
    per_criterion_intervals: dict[str, tuple[float, float] | None]
    """Likewise of each criterion's average precision."""
    calibration: Calibration

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return asdict(self)


def evaluate(
    labels: Labels,
    logits: Scores,
    groups: Sequence[str],
    criteria: Sequence[str],
    seed: int,
    *,
    repeats: int = 1000,
) -> Evaluation:
    """Measure out-of-fold predictions of all folds together (Forman and Scholz, SIGKDD Explorations 2010).

    Threshold and temperature are one number each and are fitted on what they are measured on, which flatters them a
    little; those of a model that is used come from out-of-fold predictions and are measured on a hold-out.

    Args:
        labels: int8 [posts, criteria]: 1, 0 or -1 (not labelled).
        logits: [posts, criteria]; a row of NaN = a post that no fold predicts, left out.
        groups: the group of each post.
        criteria: names of the columns.
        seed: of the bootstrap.
        repeats: draws of the bootstrap.

    Raises:
        ValueError: shapes differ, there is no positive, there are fewer than two groups, or a logit is NaN.
    """
    rows = np.flatnonzero(~np.isnan(logits).all(axis=1))
    labels, z = np.asarray(labels)[rows], np.asarray(logits, dtype=np.float64)[rows]
    some_groups = [groups[row] for row in rows.tolist()]
    if np.isnan(z).any():
        raise ValueError("some logits of a post are NaN and others are not; find out where they come from")
    p = _sigmoid(z)
    threshold = metrics.best_threshold(labels, p)
    report = metrics.report(labels, p, threshold, criteria)
    names = [*_POOLED, "macro_f1", "mean_average_precision", "mean_auroc"]
    bounds = metrics.bootstrap_intervals(
        lambda drawn: _summary(labels[drawn], p[drawn], threshold), some_groups, repeats=repeats, seed=seed
    )
    low_high = [None if math.isnan(low) else (float(low), float(high)) for low, high in bounds]
    means = {f"mean_{name}": _defined(metrics.score(name, labels, p)) for name in ("average_precision", "auroc")}
    return Evaluation(
        posts=len(labels),
        groups=len(set(some_groups)),
        pooled={**report.pooled, **means},
        per_criterion=report.per_criterion,
        threshold=threshold,
        intervals=dict(zip(names, low_high[: len(names)], strict=True)),
        per_criterion_intervals=dict(zip(criteria, low_high[len(names) :], strict=True)),
        calibration=_calibration(labels, z),
    )


def _summary(labels: Labels, p: Floats, threshold: float) -> Floats:
    """What gets an interval: the pooled metrics, their means over criteria, each criterion's average precision."""
    chosen = labels >= 0
    y, s = labels[chosen][:, None], p[chosen][:, None]
    counts, columns = metrics.confusion(y, s, threshold), metrics.confusion(labels, p, threshold)
    precisions = metrics.average_precision_per_criterion(labels, p)
    areas = metrics.auroc_per_criterion(labels, p)
    rankings = [metrics.average_precision_per_criterion(y, s), metrics.auroc_per_criterion(y, s)]
    decisions = [metrics.f1, metrics.precision, metrics.sensitivity, metrics.specificity]
    pooled = [*(ranking[0] for ranking in rankings), *(of(counts)[0] for of in decisions), metrics.brier(y, s)[0]]
    means = [metrics.macro_f1(columns), _mean(precisions), _mean(areas)]
    return np.concatenate([pooled, means, precisions])


def _calibration(labels: Labels, z: Floats) -> Calibration:
    chosen = labels >= 0
    y, logits = labels[chosen], z[chosen]
    temperature = metrics.fit_temperature(y, logits)
    measured = [
        (float(metrics.brier(y, p)[0]), metrics.expected_calibration_error(y, p, bins=BINS))
        for p in (_sigmoid(logits), _sigmoid(logits / temperature))
    ]
    (brier, ece), (brier_scaled, ece_scaled) = measured
    return Calibration(brier, ece, temperature, brier_scaled, ece_scaled)


def _sigmoid(z: Floats) -> Floats:
    return np.asarray(np.exp(-np.logaddexp(0, -z)))


def _mean(values: Floats) -> float:
    defined = values[~np.isnan(values)]
    return float(defined.mean()) if defined.size else math.nan


def _defined(value: float) -> float | None:
    return None if math.isnan(value) else value
