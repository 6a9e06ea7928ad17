"""Reports and baselines: every number is that of the labelled pairs alone, computed here by counting."""

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from sparse_evidence.core import metrics


@st.composite
def predictions(draw):
    """Labels 1, 0 or -1 and probabilities, both [posts, criteria], with many equal probabilities."""
    shape = draw(st.integers(1, 20)), draw(st.integers(1, 3))
    source = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    return source.choice((-1, 0, 1), size=shape).astype(np.int8), source.integers(0, 6, shape) / 5


def share(numerator, denominator):
    return numerator / denominator if denominator else None


def counted(y, p, threshold):
    """Metrics of a list of labelled pairs, from a loop over them."""
    tp = sum(label == 1 and score >= threshold for label, score in zip(y, p, strict=True))
    fp = sum(label == 0 and score >= threshold for label, score in zip(y, p, strict=True))
    fn, tn = int((y == 1).sum()) - tp, int((y == 0).sum()) - fp
    pairs = [(a > b) + (a == b) / 2 for a in p[y == 1] for b in p[y == 0]]
    return {
        "precision": share(tp, tp + fp),
        "sensitivity": share(tp, tp + fn),
        "specificity": share(tn, tn + fp),
        "f1": share(2 * tp, 2 * tp + fp + fn) if tp + fn else None,
        "auroc": share(sum(pairs), len(pairs)),
        "brier": share(sum((score - label) ** 2 for label, score in zip(y, p, strict=True)), len(y)),
        "prevalence": share(tp + fn, len(y)),
        "positives": tp + fn,
    }


@settings(deadline=None)
@given(predictions(), st.sampled_from([0.0, 0.2, 0.5, 1.0]))
def test_a_report_counts_the_labelled_pairs(table, threshold):
    labels, p = table
    names = [f"criterion {column}" for column in range(labels.shape[1])]
    report = metrics.report(labels, p, threshold, names)
    known = labels >= 0
    for name, value in counted(labels[known], p[known], threshold).items():
        assert report.pooled[name] == pytest.approx(value), name
    for column, criterion in enumerate(names):
        y, s = labels[known[:, column], column], p[known[:, column], column]
        for name, value in counted(y, s, threshold).items():
            assert report.per_criterion[criterion][name] == pytest.approx(value), (criterion, name)
    scores = [values["f1"] for values in report.per_criterion.values() if values["f1"] is not None]
    assert report.pooled["macro_f1"] == pytest.approx(share(sum(scores), len(scores)))


@settings(deadline=None)
@given(predictions())
def test_a_monotone_change_of_the_scores_changes_no_ranking(table):
    labels, p = table
    names = [str(column) for column in range(labels.shape[1])]
    before, after = (metrics.report(labels, scores, 0.5, names) for scores in (p, p**3 / 2))
    for name in ("average_precision", "auroc", "prevalence", "positives"):
        assert after.pooled[name] == before.pooled[name]


@settings(deadline=None)
@given(predictions(), st.integers(0, 99))
def test_the_best_threshold_needs_no_order_and_no_unlabelled_pair(table, seed):
    labels, p = table
    assume((labels == 1).any())
    best = metrics.best_threshold(labels, p)
    order = np.random.default_rng(seed).permutation(labels.size)
    y, s = labels.ravel()[order], p.ravel()[order]
    assert metrics.best_threshold(y, s) == best
    assert metrics.best_threshold(y[y >= 0], s[y >= 0]) == best
    assert metrics.best_threshold(y, s / 2) == pytest.approx(best / 2)


@settings(deadline=None, max_examples=30)
@given(st.integers(2, 6), st.integers(0, 999))
def test_baselines_are_those_of_counting(folds, seed):
    source = np.random.default_rng(seed)
    labels = source.choice((-1, 0, 1), (folds * 6, 2), p=(0.2, 0.5, 0.3)).astype(np.int8)
    labels[:, 0] = np.abs(labels[:, 0])  # the second criterion alone has unlabelled posts
    labels[0], fold = 1, np.arange(len(labels)) % folds
    known = labels >= 0
    assume(all((known & (fold != number)[:, None]).any(0).all() for number in range(folds)))
    prevalences = [labels[known[:, column], column].mean() for column in (0, 1)]
    scores = [
        [labels[(fold != number) & known[:, column], column].mean() for column in (0, 1)] for number in fold.tolist()
    ]
    y, s = labels[known], np.array(scores)[known]
    measured = metrics.baselines(labels, fold)
    assert measured["mean_prevalence"] == pytest.approx(np.mean(prevalences))
    assert measured["all_negative_accuracy"] == pytest.approx(1 - y.mean())
    assert measured["all_positive_f1"] == pytest.approx(2 * y.mean() / (y.mean() + 1))
    assert measured["criterion_only_auroc"] == pytest.approx(counted(y, s, 0.5)["auroc"])
    best = max(counted(y, s, cut)["f1"] for cut in np.unique(s))
    assert measured["criterion_only_f1"] == pytest.approx(best)
