"""Calibration errors and intervals against naive oracles, and what each number of an evaluation is."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparse_evidence.core import metrics
from sparse_evidence.core.evaluation import (
    BINS,
    bootstrap_interval,
    bootstrap_intervals,
    evaluate,
    expected_calibration_error,
)
from sparse_evidence.core.seeding import numpy_generator

NAMES = ("a", "b", "c")


def predictions(posts=120, seed=0):
    """Labels, of which some are missing, overconfident logits, and groups of three posts."""
    source = numpy_generator(seed, "calibration")
    logits = source.standard_normal((posts, 3)) - 1
    labels = (source.random((posts, 3)) < 1 / (1 + np.exp(-logits))).astype(np.int8)
    labels[source.random((posts, 3)) < 0.1] = -1
    return labels, 2 * logits, [f"u{post // 3}" for post in range(posts)]


def sigmoid(z):
    return 1 / (1 + np.exp(-z))


# ---- the calibration error --------------------------------------------------------------------------------------


@settings(deadline=None)
@given(st.integers(1, 12), st.integers(1, 20), st.integers(0, 999))
def test_bins_hold_equally_many_of_different_probabilities(bins, per_bin, seed):
    source = np.random.default_rng(seed)
    p, y = source.permutation(bins * per_bin) / (bins * per_bin), source.integers(0, 2, bins * per_bin).astype(np.int8)
    by_rank = np.argsort(p).reshape(bins, per_bin)
    expected = np.mean([abs(p[rows].mean() - y[rows].mean()) for rows in by_rank])
    assert expected_calibration_error(y, p, bins=bins) == pytest.approx(expected)


@settings(deadline=None)
@given(st.lists(st.sampled_from([0.1, 0.4, 0.8]), min_size=1, max_size=40), st.integers(0, 999))
def test_with_enough_bins_every_probability_has_its_own(values, seed):
    p = np.array(values)
    y = np.random.default_rng(seed).integers(0, 2, len(p)).astype(np.int8)
    gaps = [abs((p[p == value] - y[p == value]).sum()) for value in set(values)]
    assert expected_calibration_error(y, p, bins=2 * len(p)) == pytest.approx(sum(gaps) / len(p))


def test_equal_probabilities_share_the_bin_of_their_middle_rank():
    """Ranks 2 to 7 of ten are equal: their middle is in the second of two bins, and so are all of them."""
    p, y = np.array([0.1] * 2 + [0.5] * 6 + [0.9] * 2), np.array([1, 0, 1, 1, 1, 1, 0, 1, 0, 0], dtype=np.int8)
    first, second = abs(2 * 0.1 - 1), abs(6 * 0.5 + 2 * 0.9 - 5)
    assert expected_calibration_error(y, p, bins=2) == pytest.approx((first + second) / 10)


@settings(deadline=None)
@given(st.integers(1, 40), st.integers(0, 999))
def test_one_bin_compares_the_means(count, seed):
    source = np.random.default_rng(seed)
    p, y = source.random(count), source.integers(0, 2, count).astype(np.int8)
    assert expected_calibration_error(y, p, bins=1) == pytest.approx(abs(p.mean() - y.mean()))


def test_unlabelled_pairs_are_in_no_bin():
    labels, logits, _ = predictions()
    p, chosen = sigmoid(logits), labels >= 0
    assert expected_calibration_error(labels, p) == expected_calibration_error(labels[chosen], p[chosen])


@pytest.mark.parametrize("bins", [0, -3])
def test_a_calibration_error_needs_a_bin(bins):
    with pytest.raises(ValueError, match=f"bins is {bins}, but must be at least 1"):
        expected_calibration_error(np.array([1]), np.array([0.5]), bins=bins)


def test_an_evaluation_has_the_calibration_of_its_logits_and_of_the_scaled_ones():
    labels, logits, groups = predictions()
    measured = evaluate(labels, logits, groups, NAMES, 0, repeats=1).calibration
    assert measured.temperature > 1
    chosen = labels >= 0
    y, z = labels[chosen], logits[chosen]
    for p, brier, ece in (
        (sigmoid(z), measured.brier, measured.ece),
        (sigmoid(z / measured.temperature), measured.brier_scaled, measured.ece_scaled),
    ):
        assert brier == pytest.approx(((p - y) ** 2).mean())
        assert ece == pytest.approx(expected_calibration_error(y, p, bins=BINS))
    assert BINS == 10  # part of every published number


# ---- intervals --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("level", [0.5, 0.9, 0.99])
def test_an_interval_holds_the_requested_share_of_the_draws(level):
    groups = [f"g{row}" for row in range(50)]
    values = np.random.default_rng(0).standard_normal(50)
    drawn = []

    def mean(rows):
        drawn.append(values[rows].mean())
        return drawn[-1]

    low, high = bootstrap_interval(mean, groups, repeats=1000, seed=0, level=level)
    share = np.mean([low <= value <= high for value in drawn])
    assert share == pytest.approx(level, abs=0.003)
    below, above = (np.mean(np.array(drawn) < low), np.mean(np.array(drawn) > high))
    assert below == pytest.approx(above, abs=0.003)


def test_intervals_of_several_statistics_use_the_same_draws():
    _, logits, groups = predictions()
    columns = [lambda rows, c=c: float(logits[rows, c].mean()) for c in range(3)]
    alone = [bootstrap_interval(statistic, groups, repeats=50, seed=4) for statistic in columns]
    together = bootstrap_intervals(lambda rows: logits[rows].mean(0), groups, repeats=50, seed=4)
    np.testing.assert_allclose(together, alone)


@pytest.mark.parametrize("column", ["average_precision", "auroc", "f1", "precision", "sensitivity", "specificity"])
def test_every_pooled_interval_is_that_of_its_own_metric(column):
    """At the threshold of the whole, for whole groups: not the interval of a neighbour in the list."""
    labels, logits, groups = predictions()
    evaluation = evaluate(labels, logits, groups, NAMES, 3, repeats=40)
    p = sigmoid(logits)

    def pooled(rows):
        return metrics.report(labels[rows], p[rows], evaluation.threshold, NAMES).pooled[column]

    assert evaluation.intervals[column] == pytest.approx(bootstrap_interval(pooled, groups, repeats=40, seed=3))


def test_intervals_of_means_and_criteria_are_those_of_their_own_metrics():
    labels, logits, groups = predictions()
    evaluation = evaluate(labels, logits, groups, NAMES, 3, repeats=40)
    p = sigmoid(logits)
    statistics = {
        "mean_average_precision": lambda rows: metrics.score("average_precision", labels[rows], p[rows]),
        "mean_auroc": lambda rows: metrics.score("auroc", labels[rows], p[rows]),
        "macro_f1": lambda rows: metrics.macro_f1(metrics.confusion(labels[rows], p[rows], evaluation.threshold)),
        "brier": lambda rows: float(((p - labels)[rows][labels[rows] >= 0] ** 2).mean()),
    }
    for name, statistic in statistics.items():
        expected = bootstrap_interval(statistic, groups, repeats=40, seed=3)
        assert evaluation.intervals[name] == pytest.approx(expected), name
    for column, name in enumerate(NAMES):
        expected = bootstrap_interval(
            lambda rows, c=column: metrics.average_precision(labels[rows, c], p[rows, c]), groups, repeats=40, seed=3
        )
        assert evaluation.per_criterion_intervals[name] == pytest.approx(expected), name


# ---- invariances ------------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=10)
@given(st.permutations(range(3)))
def test_the_order_of_criteria_changes_no_number(order):
    labels, logits, groups = predictions(posts=60)
    names = [NAMES[column] for column in order]
    before = evaluate(labels, logits, groups, NAMES, 0, repeats=5)
    after = evaluate(labels[:, order], logits[:, order], groups, names, 0, repeats=5)
    assert after.pooled == pytest.approx(before.pooled)
    assert after.threshold == before.threshold
    for name in NAMES:
        assert after.per_criterion[name] == pytest.approx(before.per_criterion[name])
        assert after.per_criterion_intervals[name] == pytest.approx(before.per_criterion_intervals[name])


def test_the_order_of_posts_changes_no_estimate():
    labels, logits, groups = predictions()
    order = np.random.default_rng(1).permutation(len(labels))
    before = evaluate(labels, logits, groups, NAMES, 0, repeats=2)
    after = evaluate(labels[order], logits[order], [groups[row] for row in order], NAMES, 0, repeats=2)
    assert after.pooled == pytest.approx(before.pooled)
    assert (after.threshold, after.posts, after.groups) == (before.threshold, before.posts, before.groups)
    assert after.calibration.ece == pytest.approx(before.calibration.ece)


def test_groups_of_ignored_posts_are_not_counted():
    labels, logits, groups = predictions(posts=30)
    logits[27:] = np.nan
    evaluation = evaluate(labels, logits, groups, NAMES, 0, repeats=2)
    assert (evaluation.posts, evaluation.groups) == (27, 9)
    assert json.loads(json.dumps(evaluation.to_dict()))["groups"] == 9
