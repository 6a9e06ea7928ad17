"""Out-of-fold predictions, pooled once, measured in every way, ready for JSON."""

import json
import math

import numpy as np
import pytest

from sparse_evidence.core import metrics
from sparse_evidence.core.evaluation import evaluate
from sparse_evidence.core.seeding import numpy_generator

NAMES = ("a", "b", "c")


def predictions(posts=300, sharpness=1.0, seed=0):
    """Labels drawn from the very probabilities that the logits are, made `sharpness` times too sure."""
    source = numpy_generator(seed, "evaluation")
    logits = source.standard_normal((posts, 3)) * 1.5 - 1.5
    labels = (source.random((posts, 3)) < 1 / (1 + np.exp(-logits))).astype(np.int8)
    return labels, logits * sharpness, [f"u{post // 3}" for post in range(posts)]


def test_it_is_the_metrics_at_one_threshold():
    labels, logits, groups = predictions()
    labels[::11, 0] = -1
    found = evaluate(labels, logits, groups, NAMES, 0, repeats=50)
    p = 1 / (1 + np.exp(-logits))
    assert found.threshold == pytest.approx(metrics.best_threshold(labels, p))
    report = metrics.report(labels, p, found.threshold, NAMES)
    assert found.per_criterion.keys() == set(NAMES)
    for name in NAMES:
        assert found.per_criterion[name] == pytest.approx(report.per_criterion[name])
    assert found.pooled["f1"] == pytest.approx(report.pooled["f1"])
    assert found.pooled["mean_average_precision"] == pytest.approx(metrics.score("average_precision", labels, p))
    assert (found.posts, found.groups) == (300, 100)


def test_intervals_hold_what_they_are_of_and_draw_groups():
    labels, logits, groups = predictions()
    found = evaluate(labels, logits, groups, NAMES, 0, repeats=200)
    assert found.intervals.keys() <= found.pooled.keys()
    for name, (low, high) in found.intervals.items():
        assert low < found.pooled[name] < high, name
    for name, (low, high) in found.per_criterion_intervals.items():
        assert low < found.per_criterion[name]["average_precision"] < high
    chosen = labels.ravel() >= 0
    alone = metrics.bootstrap_interval(
        lambda rows: metrics.auroc(labels[rows].ravel()[chosen], logits[rows].ravel()), groups, repeats=200, seed=0
    )
    assert found.intervals["auroc"] == pytest.approx(alone)
    assert evaluate(labels, logits, groups, NAMES, 0, repeats=200) == found
    assert evaluate(labels, logits, groups, NAMES, 1, repeats=200).intervals != found.intervals


def test_posts_of_one_group_widen_the_interval():
    labels, logits, _ = predictions(posts=100)
    labels, logits = np.repeat(labels, 4, axis=0), np.repeat(logits, 4, axis=0)
    widths = []
    for groups in ([f"{row}" for row in range(400)], [f"{row // 4}" for row in range(400)]):
        low, high = evaluate(labels, logits, groups, NAMES, 0, repeats=200).intervals["average_precision"]
        widths.append(high - low)
    assert widths[1] > 1.5 * widths[0]


@pytest.mark.parametrize("sharpness", [1.0, 3.0])
def test_calibration_finds_how_much_too_sure(sharpness):
    labels, logits, groups = predictions(posts=2000, sharpness=sharpness)
    found = evaluate(labels, logits, groups, NAMES, 0, repeats=1).calibration
    assert found.temperature == pytest.approx(sharpness, rel=0.1)
    assert found.ece_scaled < 0.03
    assert (found.ece > 0.1) is (sharpness == 3.0)
    assert found.brier_scaled <= found.brier + 1e-3


def test_posts_of_no_fold_are_left_out():
    labels, logits, groups = predictions()
    longer = np.concatenate([labels, np.ones((5, 3), np.int8)])
    unknown = np.concatenate([logits, np.full((5, 3), math.nan)])
    found = evaluate(longer, unknown, [*groups, *["new"] * 5], NAMES, 0, repeats=20)
    assert found == evaluate(labels, logits, groups, NAMES, 0, repeats=20)


def test_what_is_not_defined_is_none_and_json_can_hold_it():
    labels, logits, groups = predictions(posts=60)
    labels[:, 1] = 0
    found = evaluate(labels, logits, groups, NAMES, 0, repeats=20)
    assert found.per_criterion["b"]["average_precision"] is None
    assert found.per_criterion_intervals["b"] is None
    text = json.dumps(found.to_dict(), allow_nan=False)
    assert json.loads(text)["intervals"]["f1"] == list(found.intervals["f1"])


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
