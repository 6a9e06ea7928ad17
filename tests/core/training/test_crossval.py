"""Cross-validation: folds in lock-step and in stages, interrupted or not, give one stream of events."""

import dataclasses
import math
from dataclasses import replace

import numpy as np
import pytest
from corpora import IRIS, assert_same_bits, candidate, planted, uneven

from sparse_evidence.core import metrics
from sparse_evidence.core.config import AbmilConfig, BCEConfig, InstanceConfig, LinearConfig, RetrievalConfig
from sparse_evidence.core.features.views import EmbeddedCorpus
from sparse_evidence.core.training.crossval import CrossValidation, CvEpoch
from sparse_evidence.core.training.state_file import pack_state, unpack_state
from sparse_evidence.core.training.stopping import best_index, is_stale, projected_best

NAN = math.nan
NAMES = ("a", "b", "c")
CONFIG = candidate(epochs=8, patience=2, learning_rate=3e-2)


def crossval(stages=(1, 2), config=CONFIG, corpus=None, metric="average_precision", seed=0, fuse=True, fixed=None):
    corpus = corpus or planted()
    return CrossValidation(
        corpus,
        uneven(corpus),
        config,
        stages=stages,
        metric=metric,
        criteria=NAMES,
        seed=seed,
        device="cpu",
        fuse=fuse,
        fixed_epochs=fixed,
    )


# ---- the stop rule ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("means", "patience", "higher", "stale"),
    [
        ([], 1, True, False),
        ([0.5], 1, True, False),
        ([0.5, 0.6], 1, True, False),
        ([0.5, 0.4], 1, True, True),
        ([0.5, 0.5], 1, True, True),  # a tie is no improvement
        ([0.5, 0.4], 2, True, False),
        ([0.5, 0.4, 0.4], 2, True, True),
        ([0.5, 0.4, 0.6], 2, True, False),
        ([0.5, 0.4, 0.45], 2, True, True),  # better than before, not than the best
        ([0.5, 0.4, 0.3], 2, False, False),
        ([0.5, 0.6], 1, False, True),
        ([0.3, 0.4, 0.4], 2, False, True),
        ([NAN, 0.1], 1, True, False),
        ([0.1, NAN], 1, True, True),
        ([0.1, NAN, 0.2], 2, True, False),
        ([NAN, NAN, NAN], 2, True, True),  # never defined: nothing to wait for
        ([NAN, 0.4, 0.3], 2, False, False),
        ([0.3, NAN, NAN], 2, False, True),
    ],
)
def test_when_a_curve_is_stale(means, patience, higher, stale):
    assert is_stale(means, patience, higher_is_better=higher) is stale


@pytest.mark.parametrize(
    ("means", "higher", "best"),
    [
        ([0.1], True, 0),
        ([0.1, 0.3, 0.2], True, 1),
        ([0.3, 0.1, 0.3], True, 0),  # the earliest of equals
        ([0.3, 0.1, 0.1], False, 1),
        ([NAN, 0.1, NAN], True, 1),
        ([NAN, 0.1, NAN], False, 1),
        ([NAN, NAN], True, 0),
        ([-math.inf, NAN, 0.0], True, 2),
    ],
)
def test_best_index(means, higher, best):
    assert best_index(means, higher_is_better=higher) == best


@pytest.mark.parametrize(
    ("means", "patience", "longest", "higher", "expected"),
    [
        # the slope of the last two epochs, for four more
        ([0.1, 0.2, 0.3], 4, 99, True, 0.3 + 4 * 0.1),
        ([0.0, 0.2, 0.3, 0.3], 4, 99, True, 0.3 + 4 * 0.05),
        ([0.3, 0.1, 0.2, 0.2], 4, 99, True, 0.3),  # no new best: slope 0
        ([0.5, 0.4, 0.3], 4, 99, False, 0.3 - 4 * 0.1),
        # no further than the last epoch
        ([0.1, 0.2, 0.3], 4, 5, True, 0.3 + 2 * 0.1),
        ([0.1, 0.2, 0.3], 4, 3, True, 0.3),
        # an odd patience looks back over the larger half
        ([0.1, 0.2, 0.4, 0.4], 5, 99, True, 0.4 + 5 * 0.1),
        ([0.1, 0.2], 1, 99, True, 0.3),
        # too short to have a slope
        ([0.1, 0.2], 4, 99, True, math.inf),
        ([0.1], 1, 99, False, -math.inf),
        # undefined values have no slope, and are never best
        ([NAN, 0.1, 0.2], 4, 99, True, NAN),
        ([0.1, NAN, 0.2], 4, 99, True, 0.2 + 4 * 0.05),
    ],
)
def test_projected_best(means, patience, longest, higher, expected):
    value = projected_best(means, patience, longest=longest, higher_is_better=higher)
    assert value == pytest.approx(expected, nan_ok=True)


def test_warm_up_epochs_do_not_count_for_the_projection():
    means = [0.1, 0.1, 0.1, 0.1]
    assert [projected_best(means[:end], 2, longest=9, warmup=2) for end in (2, 3, 4)] == [math.inf, math.inf, 0.1]
    patient = replace(CONFIG, training=replace(CONFIG.training, epochs=9, patience=6, warmup_steps=9))
    cv = crossval((3,), patient)
    warmup = cv.stages[0].stack.warmup_epochs
    assert warmup > 1
    events = [(event.epoch, cv.projected_value()) for event in cv.epochs() if not event.stage_ended]
    assert [epoch for epoch, ahead in events if math.isinf(ahead)] == list(range(1, warmup + 4))
    assert len(events) > warmup + 3


# ---- the stream -------------------------------------------------------------------------------------------------


def test_stages_run_in_order_and_then_catch_up():
    cv = crossval((1, 1, 1))
    events = list(cv.epochs())
    first_pass = [event.stage for event in events[: 1 + max(i for i, e in enumerate(events) if e.stage_ended)]]
    assert first_pass == sorted(first_pass)  # stage after stage
    assert [event.stage for event in events if event.stage_ended] == [0, 1, 2]
    lengths = {stage: sum(event.stage == stage for event in events) for stage in range(3)}
    at_stop = {event.stage: event.epoch for event in events if event.stage_ended}
    assert len(set(at_stop.values())) > 1  # one stopped earlier and had to catch up
    assert set(lengths.values()) == {max(at_stop.values())}
    for stage in range(3):
        assert [event.epoch for event in events if event.stage == stage] == list(range(1, lengths[stage] + 1))
    assert list(cv.epochs()) == []
    assert {len(curve) for curves in cv.curves().values() for curve in curves} == set(lengths.values())


@pytest.mark.parametrize(
    "model",
    [IRIS, AbmilConfig(hidden=8, attention_hidden=4), InstanceConfig(hidden=8)],
    ids=lambda m: m.name,
)
def test_fused_folds_equal_folds_in_a_row(model):
    """Losses and scores of every epoch, and so every decision: when a stage stops, which epoch is best."""
    config = replace(CONFIG, model=model, training=replace(CONFIG.training, epochs=20))
    fused, plain = (crossval((1, 2), config, planted(unlabelled=0.1), fuse=fuse) for fuse in (True, False))
    ours, reference = list(fused.epochs()), list(plain.epochs())
    numbers = ("train_loss", "validation_loss", "scores")
    for event, expected in zip(ours, reference, strict=True):
        assert (event.stage, event.epoch, event.stage_ended) == (expected.stage, expected.epoch, expected.stage_ended)
        for name in numbers:
            assert getattr(event, name) == pytest.approx(getattr(expected, name), abs=1e-4), (event.epoch, name)
    assert len({event.epoch for event in ours if event.stage_ended}) == 2  # one stage stopped early, and caught up
    assert fused.summary().best_epoch == plain.summary().best_epoch
    assert fused.summary().threshold == pytest.approx(plain.summary().threshold, abs=1e-4)


def test_a_stage_stops_when_its_mean_is_stale():
    events = list(crossval((1, 2)).epochs())
    for stage in (0, 1):
        means = [event.mean for event in events if event.stage == stage]
        (stop,) = [event.epoch for event in events if event.stage == stage and event.stage_ended]
        assert stop == 8 or is_stale(means[:stop], 2)
        assert not any(is_stale(means[:epoch], 2) for epoch in range(stop))


def test_a_stage_stops_at_the_maximum_number_of_epochs():
    events = list(crossval((3,), replace(CONFIG, training=replace(CONFIG.training, epochs=2, patience=99))).epochs())
    assert [(event.epoch, event.stage_ended) for event in events] == [(1, False), (2, True)]


@pytest.mark.parametrize("model", [LinearConfig(), RetrievalConfig(C=0.01)], ids=lambda m: m.name)
def test_a_solved_model_has_one_epoch_whatever_the_training_says(model):
    """And the same one with any number of epochs, seed, loss or stages."""
    ours = crossval((1, 2), replace(CONFIG, model=model))
    events = list(ours.epochs())
    assert [(event.stage, event.epoch, event.stage_ended) for event in events] == [(0, 1, True), (1, 1, True)]
    assert ours.value_so_far() == ours.projected_value() == pytest.approx(ours.summary().value)
    assert (ours.summary().best_epoch, ours.summary().epochs) == (1, 1)
    other = crossval((3,), candidate(model, BCEConfig(), epochs=1, learning_rate=1.0), seed=9)
    list(other.epochs())
    np.testing.assert_array_equal(ours.summary().probabilities, other.summary().probabilities)


def test_events_are_frozen_numbers():
    event = next(crossval((2, 1)).epochs())
    assert event.folds == (0, 1)
    for name in ("train_loss", "validation_loss", "scores"):
        assert [type(value) for value in getattr(event, name)] == [float, float]
    with pytest.raises(dataclasses.FrozenInstanceError):
        event.epoch = 7
    assert event == dataclasses.replace(event)


def test_scores_are_the_metric_on_the_validation_posts():
    corpus = planted(unlabelled=0.1)
    cv = crossval((3,), corpus=corpus)
    events = list(cv.epochs())
    summary = cv.summary()
    best = events[summary.best_epoch - 1]
    for fold in range(3):
        rows = cv.folds.validation(fold)
        expected = metrics.score("average_precision", corpus.labels[rows], summary.probabilities[rows])
        assert best.scores[fold] == pytest.approx(expected, abs=1e-6) == pytest.approx(summary.folds[fold], abs=1e-6)


def test_value_so_far_takes_each_stage_at_its_best_epoch():
    cv = crossval((1, 2))
    assert cv.folds_begun == 0
    reports = [(cv.folds_begun, cv.value_so_far()) for event in cv.epochs() if event.stage_ended]
    means = {stage: [e.mean for e in crossval_events(stage)] for stage in (0, 1)}
    assert reports[0] == (1, pytest.approx(max(means[0])))
    # the first stage catches up later, which can only raise its value
    assert reports[1][0] == 3
    assert reports[1][1] == pytest.approx((max(means[0]) + 2 * max(means[1])) / 3)


def test_projected_value_extrapolates_the_stage_in_training():
    cv = crossval((1, 2))
    means: dict[int, list[float]] = {0: [], 1: []}
    for event in cv.epochs():
        means[event.stage].append(event.mean)
        ahead = [
            max(curve) if stage < event.stage or event.stage_ended else projected_best(curve, 2, longest=8, warmup=1)
            for stage, curve in means.items()
            if curve
        ]
        assert cv.folds_begun == (1, 3)[event.stage]
        assert cv.value_so_far() == pytest.approx(
            np.average([max(c) for c in means.values() if c], weights=(1, 2)[: len(ahead)])
        )
        assert cv.projected_value() == pytest.approx(np.average(ahead, weights=(1, 2)[: len(ahead)]))
        if event.stage == 1 and event.stage_ended:
            assert cv.projected_value() == cv.value_so_far()
            break


def crossval_events(stage):
    """The events of a stage up to its stop."""
    events = [event for event in crossval((1, 2)).epochs() if event.stage == stage]
    return events[: 1 + next(i for i, event in enumerate(events) if event.stage_ended)]


# ---- stages, interruptions --------------------------------------------------------------------------------------


@pytest.mark.parametrize("stages", [(1, 1, 1), (2, 1), (1, 2)])
def test_the_curve_of_a_fold_does_not_depend_on_its_stage(stages):
    """Without early stopping, every fold has the same curve in any stage."""
    patient = replace(CONFIG, training=replace(CONFIG.training, epochs=4, patience=99))
    together, cut = crossval((3,), patient), crossval(stages, patient)
    list(together.epochs())
    list(cut.epochs())
    for name, curves in together.curves().items():
        np.testing.assert_allclose(curves, cut.curves()[name], atol=1e-4)
    np.testing.assert_allclose(together.summary().probabilities, cut.summary().probabilities, atol=1e-4)
    assert together.summary().best_epoch == cut.summary().best_epoch


def test_resuming_after_any_epoch_is_bit_identical():
    """A new object after every epoch, through the checkpoint format: the same events, bit for bit."""
    undisturbed = crossval((1, 1, 1))
    whole = list(undisturbed.epochs())
    assert len(whole) > sum(event.stage_ended for event in whole) * 2
    events, state = [], None
    while True:
        cv = crossval((1, 1, 1))
        if state is not None:
            cv.load_state_dict(state)
        event = next(cv.epochs(), None)
        if event is None:
            break
        events.append(event)
        state = unpack_state(pack_state(cv.state_dict()))
    assert events == whole
    assert_same_bits(state, undisturbed.state_dict())
    left, right = cv.summary(), undisturbed.summary()
    assert (left.value, left.folds, left.threshold, left.report) == (
        right.value,
        right.folds,
        right.threshold,
        right.report,
    )
    np.testing.assert_array_equal(left.probabilities, right.probabilities)


def test_a_loaded_state_restores_the_events():
    cv = crossval((3,))
    event = next(cv.epochs())
    other = crossval((3,))
    other.load_state_dict(cv.state_dict())
    (restored,) = other.stages[0].curve
    assert isinstance(restored, CvEpoch)
    assert restored == event


def test_equal_seeds_repeat_and_other_seeds_differ():
    runs = [list(crossval((3,), seed=seed).epochs()) for seed in (0, 0, 1)]
    assert runs[0] == runs[1] != runs[2]


# ---- the summary ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("metric", ["average_precision", "brier"])
def test_the_summary_is_taken_at_the_best_epoch_of_the_mean_curve(metric):
    cv = crossval((1, 2), metric=metric)
    list(cv.epochs())
    summary = cv.summary()
    curve = np.array(cv.curves()["scores"])
    best = curve.mean(0).max() if metric == "average_precision" else curve.mean(0).min()
    assert summary.value == pytest.approx(best)
    assert curve.mean(0)[summary.best_epoch - 1] == summary.value
    assert summary.folds == tuple(curve[:, summary.best_epoch - 1])
    assert summary.std == pytest.approx(np.std(summary.folds, ddof=1))
    assert summary.epochs == curve.shape[1]


def test_out_of_fold_predictions_cover_exactly_the_folds():
    cv = crossval((1, 2))
    list(cv.epochs())
    summary = cv.summary()
    scored = cv.folds.assignment >= 0
    assert np.isfinite(summary.probabilities[scored]).all()
    assert np.isnan(summary.probabilities[~scored]).all()
    labels = cv.labels[scored]
    assert summary.threshold == metrics.best_threshold(labels, summary.probabilities[scored])
    assert summary.report.pooled["positives"] == (labels == 1).sum()


def test_held_out_posts_do_not_affect_any_number():
    """The arrays of the corpus contain the hold-out; no number may depend on it."""
    corpus = planted()
    locked = uneven(corpus).assignment < 0
    assert locked.sum() == 4
    labels = corpus.labels.copy()
    labels[locked] = 1 - labels[locked]
    embeddings = corpus.embeddings.copy()
    for post in np.flatnonzero(locked):
        embeddings[corpus.offsets[post] : corpus.offsets[post + 1]] *= -1
    changed = EmbeddedCorpus(embeddings, corpus.offsets, corpus.criteria, labels)
    runs = [crossval((1, 2), corpus=data) for data in (corpus, changed)]
    assert list(runs[0].epochs()) == list(runs[1].epochs())
    np.testing.assert_array_equal(runs[0].summary().probabilities, runs[1].summary().probabilities)


def test_an_undefined_score_stays_nan_and_stops_no_fold():
    """A fold of unlabelled posts has no score; the others continue, and its NaN does not become 0."""
    corpus = planted()
    folds = uneven(corpus)
    labels = corpus.labels.copy()
    labels[folds.validation(0)] = -1
    blank = EmbeddedCorpus(corpus.embeddings, corpus.offsets, corpus.criteria, labels)
    cv = crossval((3,), candidate(IRIS, epochs=2), corpus=blank)
    event = next(cv.epochs())
    assert math.isnan(event.scores[0])
    assert math.isnan(event.mean)
    assert all(0 < score <= 1 for score in event.scores[1:])


def test_the_names_in_a_checkpoint_are_part_of_its_format():
    """Existing checkpoints have these keys, so they must not follow renames of an event's fields."""
    cv = crossval((3,))
    event = next(cv.epochs())
    (stage,) = cv.state_dict()["stages"]
    assert stage.keys() == {"stack", "curve", "logits", "ended"}
    assert stage["curve"] == [
        {
            "stage": 0,
            "folds": (0, 1, 2),
            "epoch": 1,
            "train_loss": event.train_loss,
            "validation_loss": event.validation_loss,
            "scores": event.scores,
            "stage_ended": False,
        }
    ]


# ---- predictions, and a fixed number of epochs ------------------------------------------------------------------


def probabilities(logits):
    return 1 / (1 + np.exp(-logits.astype(np.float64)))


def test_predictions_are_those_of_the_value_at_any_time():
    """After every epoch, the score of the predictions of each fold begun is what `value_so_far` takes."""
    cv = crossval((1, 1, 1))
    assert np.isnan(cv.predictions()).all()
    catching_up = False
    for _ in cv.epochs():
        predictions = cv.predictions()
        begun = range(cv.folds_begun)
        predicted = np.isin(cv.folds.assignment, begun)
        np.testing.assert_array_equal(np.isnan(predictions), ~predicted[:, None].repeat(3, 1))
        if cv._next() is not None:
            scores = [
                metrics.score("average_precision", cv.labels[rows], probabilities(predictions[rows]))
                for rows in map(cv.folds.validation, begun)
            ]
            assert np.mean(scores) == pytest.approx(cv.value_so_far(), abs=1e-9)
        catching_up |= all(stage.ended for stage in cv.stages)
    assert catching_up


def test_predictions_of_a_finished_cross_validation_are_those_of_the_summary():
    cv = crossval((1, 2), seed=2)
    list(cv.epochs())
    summary = cv.summary()
    assert {best_index(stage.means, higher_is_better=True) + 1 for stage in cv.stages} != {summary.best_epoch}
    np.testing.assert_allclose(probabilities(cv.predictions()), summary.probabilities, rtol=1e-5)
    assert cv.predictions().dtype == np.float32


def test_a_fixed_number_of_epochs_repeats_an_earlier_run_at_its_best_epoch():
    """The same bits in the same stages: nothing about an epoch depends on the epochs after it."""
    stopped = crossval((1, 2), seed=1)
    list(stopped.epochs())
    expected = stopped.summary()
    assert expected.best_epoch < expected.epochs
    fixed = crossval((1, 2), seed=1, fixed=expected.best_epoch)
    list(fixed.epochs())
    summary = fixed.summary()
    assert (summary.value, summary.folds, summary.best_epoch, summary.epochs) == (
        expected.value,
        expected.folds,
        expected.best_epoch,
        expected.best_epoch,
    )
    np.testing.assert_array_equal(fixed.predictions(), stopped.predictions())


def test_a_fixed_number_of_epochs_ignores_patience_and_the_maximum_and_takes_the_last_epoch():
    """More epochs than `training.epochs`, and than patience allows; every stage trains all of them."""
    cv = crossval((1, 2), fixed=11)
    events = list(cv.epochs())
    assert [(event.stage, event.epoch) for event in events] == [(s, e) for s in (0, 1) for e in range(1, 12)]
    assert [(event.stage, event.epoch) for event in events if event.stage_ended] == [(0, 11), (1, 11)]
    free = crossval((1, 2), config=candidate(epochs=11, patience=11, learning_rate=3e-2))
    list(free.epochs())
    summary, curve = cv.summary(), np.array(free.curves()["scores"])
    assert curve.mean(0).argmax() != 10, "the last epoch must not be the best for this test to prove anything"
    assert (summary.best_epoch, summary.epochs) == (11, 11)
    assert summary.folds == tuple(curve[:, -1])
    assert summary.value == curve.mean(0)[-1] == pytest.approx(cv.value_so_far())
    for fold in range(3):
        rows = cv.folds.validation(fold)
        score = metrics.score("average_precision", cv.labels[rows], probabilities(cv.predictions()[rows]))
        assert score == pytest.approx(curve[fold, -1], abs=1e-9)


def test_of_a_fixed_number_of_epochs_only_the_last_is_scored():
    """What is not used is not computed; the losses of training are there for every epoch."""
    cv = crossval((3,), fixed=4)
    events = list(cv.epochs())
    assert [np.isnan(event.scores).all() for event in events] == [True, True, True, False]
    assert [np.isnan(event.validation_loss).all() for event in events] == [True, True, True, False]
    assert np.isfinite([event.train_loss for event in events]).all()
