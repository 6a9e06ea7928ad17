"""Metrics against sklearn and against naive oracles, ties and undefined cases included."""

import json
import math
from dataclasses import asdict

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from sklearn import metrics as sk

from sparse_evidence.core import metrics
from sparse_evidence.core.errors import ConfigError

HOME = (328, 124, 44, 102, 35, 124, 311, 59, 165, 92)


def naive_average_precision(labels, scores):
    known = [(s, y) for s, y in zip(scores, labels, strict=True) if y >= 0]
    positives = sum(y for _, y in known)
    total, recall = 0.0, 0.0
    for cut in sorted({s for s, _ in known}, reverse=True):
        above = [y for s, y in known if s >= cut]
        now = sum(above) / positives
        total += (now - recall) * sum(above) / len(above)
        recall = now
    return total


def naive_auroc(labels, scores):
    positives = [s for s, y in zip(scores, labels, strict=True) if y == 1]
    negatives = [s for s, y in zip(scores, labels, strict=True) if y == 0]
    wins = sum((p > n) + (p == n) / 2 for p in positives for n in negatives)
    return wins / (len(positives) * len(negatives))


def naive_f1(labels, scores, threshold):
    pairs = [(y, s >= threshold) for y, s in zip(labels, scores, strict=True) if y >= 0]
    hit = sum(y == 1 and d for y, d in pairs)
    return 2 * hit / (sum(y for y, _ in pairs) + sum(d for _, d in pairs))


@st.composite
def predictions(draw, values=(-1, 0, 1)):
    """(labels, scores), both [n, c], with many equal scores."""
    n, c = draw(st.integers(1, 30)), draw(st.integers(1, 4))
    source = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    steps = draw(st.sampled_from([2, 5, 1000]))
    return source.choice(values, size=(n, c)).astype(np.int8), source.integers(0, steps, (n, c)) / steps


@given(predictions())
def test_rankings_agree_with_naive_oracles(table):
    labels, scores = table
    precisions, areas = metrics.average_precision_per_criterion(labels, scores), metrics.auroc_per_criterion(*table)
    for column in range(labels.shape[1]):
        y, s = labels[:, column], scores[:, column]
        if (y == 1).any():
            assert precisions[column] == pytest.approx(naive_average_precision(y, s))
        else:
            assert math.isnan(precisions[column])
        if (y == 1).any() and (y == 0).any():
            assert areas[column] == pytest.approx(naive_auroc(y, s))
        else:
            assert math.isnan(areas[column])


@given(predictions(values=(0, 1)))
def test_rankings_agree_with_sklearn(table):
    labels, scores = table
    assume(all(0 < y.sum() < len(y) for y in labels.T))
    expected = [sk.average_precision_score(y, s) for y, s in zip(labels.T, scores.T, strict=True)]
    np.testing.assert_allclose(metrics.average_precision_per_criterion(labels, scores), expected)
    expected = [sk.roc_auc_score(y, s) for y, s in zip(labels.T, scores.T, strict=True)]
    np.testing.assert_allclose(metrics.auroc_per_criterion(labels, scores), expected)


@given(predictions(), st.randoms(use_true_random=False))
def test_the_order_of_posts_does_not_matter(table, random):
    labels, scores = table
    order = list(range(len(labels)))
    random.shuffle(order)
    for metric in metrics.METRICS.values():
        np.testing.assert_allclose(metric.function(labels[order], scores[order]), metric.function(labels, scores))


@given(predictions())
def test_rankings_of_one_column_are_the_same(table):
    labels, scores = table[0][:, 0], table[1][:, 0]
    both = metrics.average_precision_per_criterion(*table)[0], metrics.auroc_per_criterion(*table)[0]
    np.testing.assert_equal((metrics.average_precision(labels, scores), metrics.auroc(labels, scores)), both)


def test_a_constant_score_is_worth_the_prevalence():
    labels = np.array([1, 0, 0, 0, -1], np.int8)
    assert metrics.average_precision(labels, np.ones(5)) == 0.25
    assert metrics.auroc(labels, np.ones(5)) == 0.5


def test_infinite_scores_rank_and_nan_is_refused():
    labels = np.array([1, 0], np.int8)
    assert metrics.auroc(labels, np.array([np.inf, -np.inf])) == 1
    with pytest.raises(ValueError, match="NaN"):
        metrics.auroc(labels, np.array([np.nan, 0]))
    with pytest.raises(ValueError, match=r"\[posts, criteria\]"):
        metrics.average_precision_per_criterion(np.zeros((2, 2), np.int8), np.zeros((2, 1)))


def test_no_posts_no_metric():
    empty = np.zeros((0, 2), np.int8), np.zeros((0, 2))
    for name in metrics.METRICS:
        assert math.isnan(metrics.score(name, *empty))


# ---- decisions --------------------------------------------------------------------------------------------------


@given(predictions(), st.sampled_from([0.0, 0.2, 0.5, 1.0]))
def test_decisions_agree_with_sklearn(table, threshold):
    labels, scores = table
    counts = metrics.confusion(labels, scores, threshold)
    for column in range(labels.shape[1]):
        known = labels[:, column] >= 0
        y, d = labels[known, column], scores[known, column] >= threshold
        if known.any():
            tn, fp, fn, tp = sk.confusion_matrix(y, d, labels=[0, 1]).ravel()
            assert [int(cell[column]) for cell in counts] == [tp, fp, tn, fn]
            assert metrics.accuracy(counts)[column] == pytest.approx(sk.accuracy_score(y, d))
        if y.any():
            assert metrics.f1(counts)[column] == pytest.approx(sk.f1_score(y, d, zero_division=0))
            assert metrics.sensitivity(counts)[column] == pytest.approx(sk.recall_score(y, d))
        if d.any():
            assert metrics.precision(counts)[column] == pytest.approx(sk.precision_score(y, d, zero_division=0))
        if (y == 0).any():
            assert metrics.specificity(counts)[column] == pytest.approx(sk.recall_score(1 - y, ~d))


def test_what_is_not_defined_is_nan():
    none_found = metrics.confusion(np.array([[1], [0]]), np.zeros((2, 1)), 0.5)
    assert metrics.f1(none_found)[0] == 0
    assert math.isnan(metrics.precision(none_found)[0])
    no_positive = metrics.confusion(np.array([[0], [0]]), np.array([[0.9], [0.1]]), 0.5)
    assert math.isnan(metrics.f1(no_positive)[0])
    assert math.isnan(metrics.sensitivity(no_positive)[0])
    assert metrics.precision(no_positive)[0] == 0
    no_label = metrics.confusion(np.array([[-1]]), np.array([[0.9]]), 0.5)
    assert math.isnan(metrics.accuracy(no_label)[0])
    assert math.isnan(metrics.specificity(no_label)[0])
    assert math.isnan(metrics.macro_f1(no_label))
    assert math.isnan(metrics.brier(np.array([[-1]]), np.array([[0.9]]))[0])


def test_macro_f1_is_the_mean_of_the_defined():
    labels = np.array([[1, 0, 1], [0, 0, 0]], np.int8)
    scores = np.array([[0.9, 0.9, 0.1], [0.1, 0.1, 0.1]])
    assert metrics.macro_f1(metrics.confusion(labels, scores, 0.5)) == 0.5


@given(predictions())
def test_no_other_threshold_is_better(table):
    labels, scores = table
    assume((labels == 1).any())
    threshold = metrics.best_threshold(labels, scores)
    y, s = labels.ravel(), scores.ravel()
    every = {cut: naive_f1(y, s, cut) for cut in s[y >= 0]}
    assert naive_f1(y, s, threshold) == pytest.approx(max(every.values()))
    assert naive_f1(y, s, threshold) == pytest.approx(float(metrics.f1(metrics.confusion(y, s, threshold))[0]))
    assert metrics.best_threshold(labels[::-1], scores[::-1]) == threshold


def test_thresholds_are_midpoints_and_ties_call_fewest_positive():
    assert metrics.best_threshold(np.array([1, 0]), np.array([0.8, 0.4])) == pytest.approx(0.6)
    # one positive on top (F1 2/3) or all three down to the last (F1 2·2/(3 + 2) = 0.8)
    assert metrics.best_threshold(np.array([1, 0, 1]), np.array([0.9, 0.5, 0.1])) == 0.1
    # cut below the first: 2·1/(1 + 2); cut below the fourth: 2·2/(4 + 2); equal, so the higher
    labels = np.array([1, 0, 0, 1, 0, 0])
    assert metrics.best_threshold(labels, np.array([0.9, 0.8, 0.7, 0.6, 0.5, 0.4])) == pytest.approx(0.85)
    with pytest.raises(ValueError, match="no positive"):
        metrics.best_threshold(np.array([0, -1]), np.array([0.8, 0.4]))


def test_the_threshold_separates_neighbouring_floats():
    low = 0.3
    high = np.nextafter(low, 1)
    assert metrics.best_threshold(np.array([1, 0]), np.array([high, low])) == high
    scores = np.array([high, low]).astype(np.float32) + np.array([np.finfo(np.float32).eps, 0], np.float32)
    threshold = metrics.best_threshold(np.array([1, 0]), scores)
    assert metrics.confusion(np.array([1, 0]), scores, threshold).fp.tolist() == [0]


# ---- the study's objective, reports -----------------------------------------------------------------------------


def test_the_score_is_the_mean_where_it_is_defined():
    labels = np.array([[1, 0], [0, 0]], np.int8)
    scores = np.array([[0.9, 0.5], [0.1, 0.5]])
    assert metrics.score("average_precision", labels, scores) == 1
    assert metrics.score("brier", labels, scores) == pytest.approx((0.01 + 0.25) / 2)
    assert math.isnan(metrics.score("auroc", labels[:, 1:], scores[:, 1:]))
    with pytest.raises(ConfigError, match=r"did you mean 'average_precision'.*auroc, brier"):
        metrics.score("average_precison", labels, scores)
    assert [metric.higher_is_better for metric in metrics.METRICS.values()] == [True, True, False]


def test_a_report_survives_json():
    labels = np.array([[1, 0, -1], [0, 0, -1], [1, 0, -1]], np.int8)
    probabilities = np.array([[0.9, 0.2, 0.5], [0.6, 0.2, 0.5], [0.4, 0.3, 0.5]])
    found = metrics.report(labels, probabilities, 0.5, ["some", "none", "unlabelled"])
    json.dumps(asdict(found), allow_nan=False)
    assert found.pooled["positives"] == 2
    assert found.pooled["prevalence"] == pytest.approx(1 / 3)
    assert found.pooled["macro_f1"] == found.per_criterion["some"]["f1"] == 0.5
    assert found.pooled["average_precision"] == pytest.approx((1 + 2 / 3) / 2)
    assert found.per_criterion["none"]["average_precision"] is None
    assert found.per_criterion["none"]["specificity"] == 1
    assert set(found.per_criterion["unlabelled"].values()) == {None, 0.0}
    assert found.pooled.keys() - {"macro_f1"} == found.per_criterion["some"].keys()


# ---- floors -----------------------------------------------------------------------------------------------------


def home_case():
    source = np.random.default_rng(0)
    labels = np.zeros((1484, len(HOME)), np.int8)
    for column, count in enumerate(HOME):
        labels[source.permutation(1484)[:count], column] = 1
    fold = np.zeros(1484, np.int16)
    fold[source.permutation(1484)] = np.arange(1484) % 5
    return labels, fold


def test_floors_of_the_home_case():
    labels, fold = home_case()
    found = metrics.baselines(labels, fold)
    assert found["mean_prevalence"] == pytest.approx(0.0933, abs=5e-5)
    assert found["criterion_only_auroc"] == pytest.approx(0.705, abs=0.01)  # the folds here are not balanced
    assert found["criterion_only_average_precision"] == pytest.approx(0.177, abs=0.01)
    assert found["criterion_only_f1"] == pytest.approx(0.294, abs=5e-4)
    assert found["all_positive_f1"] == pytest.approx(0.171, abs=5e-4)
    assert found["all_negative_accuracy"] == pytest.approx(0.907, abs=5e-4)
    scores = metrics.criterion_only_scores(labels, len(labels))
    assert metrics.auroc(labels.ravel(), scores.ravel()) == pytest.approx(0.705, abs=5e-4)


def test_floors_never_see_the_holdout_or_the_fold_they_score():
    labels, fold = home_case()
    fold[:300] = -1
    changed = labels.copy()
    changed[:300] = 1 - changed[:300]
    assert metrics.baselines(changed, fold) == metrics.baselines(labels, fold)
    two = np.array([[1], [1], [0], [1]], np.int8)  # fold 0 is scored .5 by fold 1, fold 1 is scored 1 by fold 0
    assert metrics.baselines(two, np.array([0, 0, 1, 1]))["criterion_only_auroc"] == pytest.approx(1 / 6)


def test_floors_say_what_is_not_defined():
    found = metrics.baselines(np.zeros((4, 2), np.int8), np.array([0, 0, 1, 1]))
    assert found["criterion_only_f1"] is None
    assert found["criterion_only_auroc"] is None
    assert found["all_negative_accuracy"] == 1
    with pytest.raises(ValueError, match="labelled nowhere"):
        metrics.criterion_only_scores(np.full((3, 1), -1, np.int8), 2)
