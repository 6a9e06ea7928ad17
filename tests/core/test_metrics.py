"""Metrics compared with sklearn and with naive oracles, including ties and undefined cases."""

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

REDSM5 = (328, 124, 44, 102, 35, 124, 311, 59, 165, 92)


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
def test_functions_for_one_column_agree_with_those_for_many(table):
    labels, scores = table[0][:, 0], table[1][:, 0]
    both = metrics.average_precision_per_criterion(*table)[0], metrics.auroc_per_criterion(*table)[0]
    np.testing.assert_equal((metrics.average_precision(labels, scores), metrics.auroc(labels, scores)), both)


def test_the_average_precision_of_a_constant_is_the_prevalence():
    labels = np.array([1, 0, 0, 0, -1], np.int8)
    assert metrics.average_precision(labels, np.ones(5)) == 0.25
    assert metrics.auroc(labels, np.ones(5)) == 0.5


def test_infinite_scores_are_ranked_and_nan_is_refused():
    labels = np.array([1, 0], np.int8)
    assert metrics.auroc(labels, np.array([np.inf, -np.inf])) == 1
    with pytest.raises(ValueError, match="NaN"):
        metrics.auroc(labels, np.array([np.nan, 0]))
    with pytest.raises(ValueError, match=r"\[posts, criteria\]"):
        metrics.average_precision_per_criterion(np.zeros((2, 2), np.int8), np.zeros((2, 1)))


def test_metrics_of_no_posts_are_undefined():
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


def test_undefined_metrics_are_nan():
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


def test_macro_f1_is_the_mean_over_criteria_with_a_positive():
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


def test_thresholds_are_midpoints_and_ties_predict_the_fewest_positives():
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


# ---- scores and reports -----------------------------------------------------------------------------------------


def test_the_score_is_the_mean_over_criteria_where_it_is_defined():
    labels = np.array([[1, 0], [0, 0]], np.int8)
    scores = np.array([[0.9, 0.5], [0.1, 0.5]])
    assert metrics.score("average_precision", labels, scores) == 1
    assert metrics.score("brier", labels, scores) == pytest.approx((0.01 + 0.25) / 2)
    assert math.isnan(metrics.score("auroc", labels[:, 1:], scores[:, 1:]))
    with pytest.raises(ConfigError, match=r"did you mean 'average_precision'.*auroc, brier"):
        metrics.score("average_precison", labels, scores)
    assert [metric.higher_is_better for metric in metrics.METRICS.values()] == [True, True, False]


def test_a_report_can_be_written_as_json():
    labels = np.array([[1, 0, -1], [0, 0, -1], [1, 0, -1]], np.int8)
    probabilities = np.array([[0.9, 0.2, 0.5], [0.6, 0.2, 0.5], [0.4, 0.3, 0.5]])
    result = metrics.report(labels, probabilities, 0.5, ["some", "none", "unlabelled"])
    json.dumps(asdict(result), allow_nan=False)
    assert result.pooled["positives"] == 2
    assert result.pooled["prevalence"] == pytest.approx(1 / 3)
    assert result.pooled["macro_f1"] == result.per_criterion["some"]["f1"] == 0.5
    assert result.pooled["average_precision"] == pytest.approx((1 + 2 / 3) / 2)
    assert result.per_criterion["none"]["average_precision"] is None
    assert result.per_criterion["none"]["specificity"] == 1
    assert set(result.per_criterion["unlabelled"].values()) == {None, 0.0}
    assert result.pooled.keys() - {"macro_f1"} == result.per_criterion["some"].keys()


# ---- baselines --------------------------------------------------------------------------------------------------


def labels_like_redsm5():
    source = np.random.default_rng(0)
    labels = np.zeros((1484, len(REDSM5)), np.int8)
    for column, count in enumerate(REDSM5):
        labels[source.permutation(1484)[:count], column] = 1
    fold = np.zeros(1484, np.int16)
    fold[source.permutation(1484)] = np.arange(1484) % 5
    return labels, fold


def test_baselines_of_data_like_redsm5():
    labels, fold = labels_like_redsm5()
    result = metrics.baselines(labels, fold)
    assert result["mean_prevalence"] == pytest.approx(0.0933, abs=5e-5)
    assert result["criterion_only_auroc"] == pytest.approx(0.705, abs=0.01)  # the folds here are not balanced
    assert result["criterion_only_average_precision"] == pytest.approx(0.177, abs=0.01)
    assert result["criterion_only_f1"] == pytest.approx(0.294, abs=5e-4)
    assert result["all_positive_f1"] == pytest.approx(0.171, abs=5e-4)
    assert result["all_negative_accuracy"] == pytest.approx(0.907, abs=5e-4)
    scores = metrics.criterion_only_scores(labels, len(labels))
    assert metrics.auroc(labels.ravel(), scores.ravel()) == pytest.approx(0.705, abs=5e-4)


def test_baselines_use_neither_the_holdout_nor_the_fold_they_score():
    labels, fold = labels_like_redsm5()
    fold[:300] = -1
    changed = labels.copy()
    changed[:300] = 1 - changed[:300]
    assert metrics.baselines(changed, fold) == metrics.baselines(labels, fold)
    two = np.array([[1], [1], [0], [1]], np.int8)  # fold 0 scores .5, from fold 1; fold 1 scores 1, from fold 0
    assert metrics.baselines(two, np.array([0, 0, 1, 1]))["criterion_only_auroc"] == pytest.approx(1 / 6)


def test_undefined_baselines_are_none():
    result = metrics.baselines(np.zeros((4, 2), np.int8), np.array([0, 0, 1, 1]))
    assert result["criterion_only_f1"] is None
    assert result["criterion_only_auroc"] is None
    assert result["all_negative_accuracy"] == 1
    with pytest.raises(ValueError, match="has no label in training"):
        metrics.criterion_only_scores(np.full((3, 1), -1, np.int8), 2)


@given(predictions(), st.integers(2, 4))
def test_the_criterion_only_baseline_is_the_prevalence_in_the_other_folds(table, folds):
    labels, _ = table
    fold = np.arange(len(labels)) % folds
    labelled_elsewhere = all((labels[fold != number] >= 0).any(axis=0).all() for number in np.unique(fold))
    if not labelled_elsewhere:
        with pytest.raises(ValueError, match="has no label in training"):
            metrics.baselines(labels, fold)
        return
    scores = np.zeros(labels.shape)
    for row, column in np.ndindex(*labels.shape):
        train = labels[fold != fold[row], column]
        scores[row, column] = (train == 1).sum() / (train >= 0).sum()
    known = labels >= 0
    values = metrics.baselines(labels, fold)
    if 0 < labels[known].sum() < known.sum():
        assert values["criterion_only_auroc"] == pytest.approx(naive_auroc(labels[known], scores[known]))
        assert values["all_positive_f1"] == pytest.approx(naive_f1(labels[known], np.ones(known.sum()), 0.5))
    assert values["all_negative_accuracy"] == pytest.approx((labels[known] == 0).mean())


def test_baselines_need_a_fold_for_every_post():
    with pytest.raises(ValueError, match="there are folds for 3 posts, but labels for 4 posts"):
        metrics.baselines(np.zeros((4, 1), np.int8), np.array([0, 1, 0]))


@given(predictions(values=(0, 1)))
def test_the_brier_score_agrees_with_sklearn(table):
    labels, probabilities = table
    expected = [sk.brier_score_loss(y, p, pos_label=1) for y, p in zip(labels.T, probabilities.T, strict=True)]
    np.testing.assert_allclose(metrics.brier(labels, probabilities), expected)


@given(predictions())
def test_unlabelled_pairs_have_no_influence(table):
    labels, scores = table
    changed = np.where(labels < 0, 1 - scores, scores)
    for metric in metrics.METRICS.values():
        np.testing.assert_array_equal(metric.function(labels, changed), metric.function(labels, scores))
    counts, other = (metrics.confusion(labels, values, 0.5) for values in (scores, changed))
    assert all(np.array_equal(a, b) for a, b in zip(counts, other, strict=True))


@given(predictions())
def test_ranking_metrics_depend_only_on_the_order_of_scores(table):
    labels, scores = table
    for function in (metrics.average_precision_per_criterion, metrics.auroc_per_criterion):
        np.testing.assert_array_equal(function(labels, 3 * scores - 7), function(labels, scores))


@given(predictions())
def test_reversed_scores_have_the_complementary_auroc(table):
    labels, scores = table
    np.testing.assert_allclose(
        metrics.auroc_per_criterion(labels, -scores), 1 - metrics.auroc_per_criterion(labels, scores)
    )


@given(predictions(), st.sampled_from([0.2, 0.5, 0.9]))
def test_confusion_counts_add_up_to_the_labelled_posts(table, threshold):
    labels, scores = table
    counts = metrics.confusion(labels, scores, threshold)
    np.testing.assert_array_equal(sum(counts), (labels >= 0).sum(axis=0))
    np.testing.assert_array_equal(counts.tp + counts.fn, (labels == 1).sum(axis=0))
    assert [int(cell[0]) for cell in counts.pooled()] == [int(cell.sum()) for cell in counts]


@given(predictions(values=(0, 1)), st.sampled_from([0.1, 0.5, 0.8]))
def test_f1_from_logits_is_the_pooled_f1_of_probabilities(table, threshold):
    labels, scores = table
    assume(labels.any())
    logits = 8 * scores - 4
    expected = sk.f1_score(labels.ravel(), (1 / (1 + np.exp(-logits)) >= threshold).ravel(), zero_division=0)
    assert metrics.f1_from_logits(labels, logits, threshold) == pytest.approx(expected)


@pytest.mark.parametrize("threshold", [0, 1, -0.5, 2, math.nan])
def test_thresholds_on_probabilities_lie_between_0_and_1(threshold):
    with pytest.raises(ValueError, match="must be between 0 and 1"):
        metrics.f1_from_logits(np.array([1, 0]), np.array([1.0, -1.0]), threshold)


@given(predictions(), st.sampled_from([0.3, 0.5]))
def test_a_report_has_the_values_of_the_single_metrics(table, threshold):
    labels, probabilities = table
    names = [f"criterion {column}" for column in range(labels.shape[1])]
    report = metrics.report(labels, probabilities, threshold, names)
    counts = metrics.confusion(labels, probabilities, threshold)
    expected = {
        "auroc": metrics.auroc_per_criterion(labels, probabilities),
        "brier": metrics.brier(labels, probabilities),
        "specificity": metrics.specificity(counts),
        "f1": metrics.f1(counts),
    }
    assert report.threshold == threshold
    for column, name in enumerate(names):
        for metric, values in expected.items():
            value = report.per_criterion[name][metric]
            assert value == (None if math.isnan(values[column]) else values[column])


def test_a_report_needs_a_name_for_every_criterion():
    with pytest.raises(ValueError, match="2 criteria are named, but the labels have 1 columns"):
        metrics.report(np.zeros((3, 1), np.int8), np.zeros((3, 1)), 0.5, ["a", "b"])
