"""Evaluation of out-of-fold predictions: metrics, intervals over groups, calibration."""

import json
import math
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from sparse_evidence.core import metrics
from sparse_evidence.core.evaluation import (
    bootstrap_interval,
    evaluate,
    expected_calibration_error,
    fit_temperature,
)
from sparse_evidence.core.seeding import numpy_generator

NAMES = ("a", "b", "c")


def predictions(posts=300, sharpness=1.0, seed=0):
    """Labels drawn from the probabilities of the logits, which are then multiplied by `sharpness`."""
    source = numpy_generator(seed, "evaluation")
    logits = source.standard_normal((posts, 3)) * 1.5 - 1.5
    labels = (source.random((posts, 3)) < 1 / (1 + np.exp(-logits))).astype(np.int8)
    return labels, logits * sharpness, [f"u{post // 3}" for post in range(posts)]


def test_metrics_are_taken_at_one_threshold():
    labels, logits, groups = predictions()
    labels[::11, 0] = -1
    evaluation = evaluate(labels, logits, groups, NAMES, 0, repeats=50)
    p = 1 / (1 + np.exp(-logits))
    assert evaluation.threshold == pytest.approx(metrics.best_threshold(labels, p))
    report = metrics.report(labels, p, evaluation.threshold, NAMES)
    assert evaluation.per_criterion.keys() == set(NAMES)
    for name in NAMES:
        assert evaluation.per_criterion[name] == pytest.approx(report.per_criterion[name])
    assert evaluation.pooled["f1"] == pytest.approx(report.pooled["f1"])
    assert evaluation.pooled["mean_average_precision"] == pytest.approx(metrics.score("average_precision", labels, p))
    assert (evaluation.posts, evaluation.groups) == (300, 100)


def test_intervals_contain_the_estimate_and_draw_groups():
    labels, logits, groups = predictions()
    evaluation = evaluate(labels, logits, groups, NAMES, 0, repeats=200)
    assert evaluation.intervals.keys() <= evaluation.pooled.keys()
    for name, (low, high) in evaluation.intervals.items():
        assert low < evaluation.pooled[name] < high, name
    for name, (low, high) in evaluation.per_criterion_intervals.items():
        assert low < evaluation.per_criterion[name]["average_precision"] < high
    chosen = labels.ravel() >= 0
    auroc_interval = bootstrap_interval(
        lambda rows: metrics.auroc(labels[rows].ravel()[chosen], logits[rows].ravel()), groups, repeats=200, seed=0
    )
    assert evaluation.intervals["auroc"] == pytest.approx(auroc_interval)
    assert evaluate(labels, logits, groups, NAMES, 0, repeats=200) == evaluation
    assert evaluate(labels, logits, groups, NAMES, 1, repeats=200).intervals != evaluation.intervals


def test_posts_of_one_group_widen_the_interval():
    labels, logits, _ = predictions(posts=100)
    labels, logits = np.repeat(labels, 4, axis=0), np.repeat(logits, 4, axis=0)
    widths = []
    for groups in ([f"{row}" for row in range(400)], [f"{row // 4}" for row in range(400)]):
        low, high = evaluate(labels, logits, groups, NAMES, 0, repeats=200).intervals["average_precision"]
        widths.append(high - low)
    assert widths[1] > 1.5 * widths[0]


@st.composite
def labelled_probabilities(draw):
    """Labels 1, 0 or -1 and probabilities, both [n, criteria], with many equal probabilities."""
    shape = draw(st.integers(1, 30)), draw(st.integers(1, 4))
    source = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    steps = draw(st.sampled_from([2, 5, 1000]))
    return source.choice((-1, 0, 1), size=shape).astype(np.int8), source.integers(0, steps, shape) / steps


@pytest.mark.parametrize("sharpness", [1.0, 3.0])
def test_the_temperature_measures_overconfidence(sharpness):
    labels, logits, groups = predictions(posts=2000, sharpness=sharpness)
    evaluation = evaluate(labels, logits, groups, NAMES, 0, repeats=1).calibration
    assert evaluation.temperature == pytest.approx(sharpness, rel=0.1)
    assert evaluation.ece_scaled < 0.03
    assert (evaluation.ece > 0.1) is (sharpness == 3.0)
    assert evaluation.brier_scaled <= evaluation.brier + 1e-3


def test_posts_in_no_fold_are_ignored():
    labels, logits, groups = predictions()
    longer = np.concatenate([labels, np.ones((5, 3), np.int8)])
    unknown = np.concatenate([logits, np.full((5, 3), math.nan)])
    evaluation = evaluate(longer, unknown, [*groups, *["new"] * 5], NAMES, 0, repeats=20)
    assert evaluation == evaluate(labels, logits, groups, NAMES, 0, repeats=20)


def test_undefined_values_are_none_and_valid_json():
    labels, logits, groups = predictions(posts=60)
    labels[:, 1] = 0
    evaluation = evaluate(labels, logits, groups, NAMES, 0, repeats=20)
    assert evaluation.per_criterion["b"]["average_precision"] is None
    assert evaluation.per_criterion_intervals["b"] is None
    text = json.dumps(evaluation.to_dict(), allow_nan=False)
    assert json.loads(text)["intervals"]["f1"] == list(evaluation.intervals["f1"])


def test_one_group_or_a_missing_logit_is_refused():
    labels, logits, _ = predictions(posts=30)
    with pytest.raises(ValueError, match="at least 2 groups"):
        evaluate(labels, logits, ["u"] * 30, NAMES, 0)
    logits[3, 1] = math.nan
    with pytest.raises(ValueError, match="NaN"):
        evaluate(labels, logits, [str(row) for row in range(30)], NAMES, 0)


def test_f1_from_logits_is_f1_not_accuracy():
    labels = np.array([1, 1, 0, 0, 0, 0, 0, 0, 0, 0])
    logits = np.array([0.1, -0.1, 0.3, -1, -1, -1, -1, -1, -1, -1])
    assert metrics.f1_from_logits(labels, logits) == pytest.approx(0.5)  # accuracy would be .8
    assert metrics.f1_from_logits(labels, logits, threshold=0.45) == pytest.approx(0.8)
    with pytest.raises(ValueError, match="between 0 and 1"):
        metrics.f1_from_logits(labels, logits, threshold=1.0)


# ---- calibration, intervals -------------------------------------------------------------------------------------


def test_calibration_error():
    labels = np.array([0, 0, 0, 1] * 25, np.int8)
    assert expected_calibration_error(labels, np.full(100, 0.25)) == pytest.approx(0)
    assert expected_calibration_error(labels, np.full(100, 0.65)) == pytest.approx(0.4)
    assert expected_calibration_error(labels, labels.astype(float)) == 0
    assert math.isnan(expected_calibration_error(np.array([-1]), np.array([0.5])))


@given(labelled_probabilities(), st.integers(1, 12))
def test_calibration_error_stays_within_its_bounds(table, bins):
    labels, probabilities = table
    known = labels >= 0
    assume(known.any())
    error = expected_calibration_error(labels, probabilities, bins=bins)
    gap = probabilities[known] - labels[known]
    assert abs(gap.mean()) - 1e-12 <= error <= np.abs(gap).mean() + 1e-12
    assert expected_calibration_error(labels[::-1], probabilities[::-1], bins=bins) == pytest.approx(error)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_a_known_temperature_is_recovered(temperature):
    source = np.random.default_rng(0)
    logits = source.normal(0, 2, (4000, 5))
    labels = (source.random(logits.shape) < 1 / (1 + np.exp(-logits))).astype(np.int8)
    assert fit_temperature(labels, logits * temperature) == pytest.approx(temperature, rel=0.05)


def test_the_temperature_is_a_minimum_within_bounds():
    labels, logits = np.array([1, 0, 0, 1, -1]), np.array([2.0, -1.0, 1.0, 0.5, 9.0])
    best = fit_temperature(labels, logits)

    def loss(temperature):
        return np.logaddexp(0, np.where(labels == 1, -logits, logits)[:4] / temperature).mean()

    assert loss(best) <= min(loss(best * 1.001), loss(best / 1.001))
    assert fit_temperature(np.array([1, 0]), np.array([5.0, -5.0])) == pytest.approx(0.01)
    with pytest.raises(ValueError, match="nothing is labelled"):
        fit_temperature(np.array([-1]), np.array([1.0]))
    with pytest.raises(ValueError, match="NaN or infinite"):
        fit_temperature(np.array([1]), np.array([np.inf]))


def test_intervals_draw_whole_groups():
    groups = [f"g{number // 4}" for number in range(40)]
    drawn = []

    def statistic(rows):
        drawn.append(rows)
        return float(rows.mean())

    first = bootstrap_interval(statistic, groups, repeats=50, seed=1)
    for rows in drawn:
        assert len(rows) == 40
        assert (np.bincount(rows, minlength=40).reshape(10, 4) == np.bincount(rows, minlength=40)[::4, None]).all()
    assert bootstrap_interval(statistic, groups, repeats=50, seed=1) == first
    assert first[0] < 19.5 < first[1]


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 1000))
def test_intervals_of_independent_rows_match_the_normal(seed):
    values = np.random.default_rng(seed).normal(size=400)
    low, high = bootstrap_interval(
        lambda rows: float(values[rows].mean()), [str(row) for row in range(400)], repeats=400, seed=seed
    )
    expected = 2 * 1.96 * values.std() / 20
    assert high - low == pytest.approx(expected, rel=0.25)


def test_undefined_draws_do_not_count_and_invalid_arguments_are_refused():
    assert all(map(math.isnan, bootstrap_interval(lambda _: math.nan, ["a", "b"], repeats=5, seed=0)))
    with pytest.raises(ValueError, match="at least 2 groups"):
        bootstrap_interval(lambda _: 1.0, ["a", "a"], seed=0)
    with pytest.raises(ValueError, match="level"):
        bootstrap_interval(lambda _: 1.0, ["a", "b"], seed=0, level=95)


def test_importing_evaluation_does_not_import_scipy():
    """The import takes half a second, and only fitting a temperature needs it."""
    code = "import sys, sparse_evidence.core.evaluation; sys.exit('scipy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
