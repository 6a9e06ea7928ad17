"""The ensemble, values corrected for selection, and intervals: on predictions whose true worth is known."""

import math

import numpy as np
import pytest

from sparse_evidence.core import metrics, selection
from sparse_evidence.core.baselines import chance
from sparse_evidence.core.selection import Scorer
from sparse_evidence.core.splits import Folds

POSTS, CRITERIA, FOLDS = 400, 3, 5
GROUPS = [f"group {row // 2}" for row in range(POSTS)]
FOLDS_OF = Folds(np.arange(POSTS) // 2 % FOLDS, FOLDS)


def labels(seed=0):
    return (np.random.default_rng(seed).random((POSTS, CRITERIA)) < [0.1, 0.2, 0.4]).astype(np.int8)


def scorer(seed=0, metric="average_precision"):
    blocks = selection.make_blocks(GROUPS, np.ones(POSTS, dtype=np.bool_), seed=0)
    return Scorer(metric, labels(seed), FOLDS_OF, blocks)


def noise(count, seed=1):
    """Predictions that know nothing."""
    return list(np.random.default_rng(seed).standard_normal((count, POSTS, CRITERIA)))


def informed(count, strength, seed=1):
    """Predictions that know something, each with errors of its own."""
    return [strength * labels() + wrong for wrong in noise(count, seed)]


# --- scores -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("metric", ["average_precision", "auroc", "brier"])
def test_scores_are_those_of_the_metric_fold_by_fold(metric):
    logits, judge = informed(1, 1.0)[0], scorer(metric=metric)
    probabilities = 1 / (1 + np.exp(-logits))
    expected = [
        metrics.score(metric, labels()[FOLDS_OF.validation(fold)], probabilities[FOLDS_OF.validation(fold)])
        for fold in range(FOLDS)
    ]
    assert judge.folds_of(logits) == pytest.approx(expected)
    assert judge.value(logits) == pytest.approx(np.mean(expected))
    assert judge.value(logits, [1, 3]) == pytest.approx((expected[1] + expected[3]) / 2)


def test_a_fold_that_was_not_predicted_has_no_score():
    logits = informed(1, 1.0)[0]
    logits[FOLDS_OF.validation(4)] = np.nan
    scores = scorer().folds_of(logits)
    assert np.isnan(scores).tolist() == [False, False, False, False, True]


def test_leaving_out_a_block_equals_scoring_without_its_posts():
    logits, judge = informed(1, 1.0)[0], scorer()
    left_out = judge.without_blocks(logits)
    for block in (0, 17, 199):
        rest = Scorer(
            "average_precision", labels(), Folds(np.where(judge.blocks == block, -1, FOLDS_OF.assignment), FOLDS)
        )
        assert left_out[block] == pytest.approx(rest.value(logits))


def test_a_criterion_keeps_its_value_where_its_only_positive_is_left_out():
    """The mean over the other criteria would be another value, whatever the post is like."""
    rare = labels()
    rare[:, 0] = 0
    for fold in range(FOLDS):
        rare[FOLDS_OF.validation(fold)[0], 0] = 1
    blocks = selection.make_blocks(GROUPS, np.ones(POSTS, dtype=np.bool_), seed=0)
    judge = Scorer("average_precision", rare, FOLDS_OF, blocks)
    logits = 0.5 * rare + noise(1)[0]
    logits[:, 1:] += 5 * rare[:, 1:]  # the other criteria are predicted far better
    left_out = judge.without_blocks(logits)
    assert np.abs(left_out - judge.value(logits)).max() < 0.02


def test_blocks_are_whole_groups():
    included = np.arange(POSTS) >= 40
    blocks = selection.make_blocks(GROUPS, included, seed=3)
    assert (blocks[:40] == -1).all()
    assert set(blocks[40:].tolist()) == set(range((POSTS - 40) // 2))
    assert all(blocks[row] == blocks[row + 1] for row in range(40, POSTS, 2))
    many = selection.make_blocks([str(row) for row in range(1000)], np.ones(1000, dtype=np.bool_), seed=3)
    assert np.bincount(many).tolist() == [5] * selection.BLOCKS


# --- what is chosen ---------------------------------------------------------------------------------------------------


def test_the_best_trial_is_the_first_of_the_best():
    weak, strong = informed(3, 0.5), informed(1, 3.0)
    assert selection.choose_best(scorer(), [*weak, *strong, *strong], range(FOLDS)) == [3]


def test_an_ensemble_is_better_than_its_best_member_where_their_errors_differ():
    predictions, judge = informed(12, 0.8), scorer()
    members = selection.choose_members(judge, predictions, range(FOLDS))
    best = judge.value(predictions[selection.choose_best(judge, predictions, range(FOLDS))[0]])
    assert len(members) == selection.PICKS
    assert len(set(members)) > 3
    fresh = [np.asarray(p) for p in informed(12, 0.8, seed=2)]  # the same quality, other errors
    assert judge.value(selection.mean_logits(predictions, members)) > best + 0.1
    assert judge.value(selection.mean_logits(fresh, members)) > best + 0.05


def test_members_come_from_the_best_trials_only():
    predictions = [*noise(5), *informed(selection.POOL, 3.0)]
    assert min(selection.choose_members(scorer(), predictions, range(FOLDS))) >= 5


def test_an_ensemble_has_at_most_so_many_members_and_further_picks_weigh_them():
    predictions, judge = informed(12, 0.8), scorer()

    def picks(**limit):
        return selection.choose_members(judge, predictions, range(FOLDS), **limit)

    unlimited, limited = picks(members=selection.PICKS), picks(members=3)
    assert len(set(unlimited)) > selection.MEMBERS >= len(set(picks()))
    assert len(limited) == selection.PICKS
    members = list(dict.fromkeys(limited))
    assert len(members) == 3
    complete = limited.index(members[-1]) + 1
    assert limited[:complete] == unlimited[:complete]
    for count in range(complete, selection.PICKS):
        values = {m: judge.value(selection.mean_logits(predictions, [*limited[:count], m])) for m in members}
        assert values[limited[count]] == max(values.values())


def test_a_lower_brier_score_is_better():
    predictions = [np.where(labels() == 1, 2.0, -2.0), np.zeros((POSTS, CRITERIA))]
    judge = scorer(metric="brier")
    assert selection.choose_best(judge, predictions[::-1], range(FOLDS)) == [1]
    assert set(selection.choose_members(judge, predictions, range(FOLDS))) == {0}


def test_a_member_picked_twice_weighs_twice():
    first, second = noise(2)
    assert selection.mean_logits([first, second], [0, 0, 1]) == pytest.approx((2 * first + second) / 3)


# --- corrections ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("choose", [selection.choose_best, selection.choose_members])
def test_choosing_among_noise_is_worth_nothing(choose):
    """The value of what was chosen is far above chance, its corrected value is not."""
    raw, corrected, worth = [], [], []
    for seed in range(8):
        judge, predictions = scorer(seed), noise(25, seed=100 + seed)
        members = choose(judge, predictions, range(FOLDS))
        raw.append(judge.value(selection.mean_logits(predictions, members)))
        corrected.append(selection.leave_one_fold_out(judge, predictions, choose).mean())
        worth.append(chance(labels(seed), FOLDS_OF, "average_precision"))
    error = np.std(np.array(corrected) - worth, ddof=1) / math.sqrt(8)
    assert np.mean(raw) > np.mean(worth) + 0.03
    assert abs(np.mean(corrected) - np.mean(worth)) < 3 * error + 0.003


def test_pruning_bias_is_what_looking_at_a_fold_added():
    generator = np.random.default_rng(0)
    biases = []
    for _ in range(200):
        scores = generator.standard_normal((40, FOLDS))
        kept = np.argsort(-scores[:, :2].mean(axis=1))[:20]
        pruned = np.setdiff1d(np.arange(40), kept)
        scores[pruned, 2:] = np.nan
        biases.append(selection.pruning_bias(scores, 2, higher_is_better=True))
    expected = math.sqrt(2 / math.pi) / math.sqrt(2)  # half of the mean of the better half of N(0, 2) sums
    assert np.mean(biases, axis=0) == pytest.approx([expected, expected, 0, 0, 0], abs=0.03)


def test_a_single_first_fold_has_no_bias_that_could_be_measured():
    scores = np.random.default_rng(0).standard_normal((40, FOLDS))
    scores[scores[:, 0] < 0, 1:] = np.nan
    assert not selection.pruning_bias(scores, 1, higher_is_better=True).any()


def test_without_pruning_there_is_no_bias():
    assert not selection.pruning_bias(np.ones((4, FOLDS)), 2, higher_is_better=True).any()
    unfinished = np.full((4, FOLDS), np.nan)
    unfinished[:, :2] = 1
    assert not selection.pruning_bias(unfinished, 2, higher_is_better=True).any()


def test_epoch_flattery():
    """Fold 0 is best at the second epoch and fold 1 at the third; each would choose the other's."""
    curves = [[0.1, 0.9, 0.3], [0.1, 0.2, 0.7]]
    assert selection.epoch_flattery(curves, higher_is_better=True) == pytest.approx((0.9 + 0.2) / 2 - (0.3 + 0.2) / 2)
    assert selection.epoch_flattery([[-v for v in c] for c in curves], higher_is_better=False) == pytest.approx(-0.3)
    assert selection.epoch_flattery([[0.4], [0.6]], higher_is_better=True) == 0


# --- intervals --------------------------------------------------------------------------------------------------------


def test_the_jackknife_of_a_mean_is_its_classical_standard_error():
    values = np.random.default_rng(0).standard_normal(50)
    left_out = (values.sum() - values) / 49
    found = selection.estimate(values.mean(), left_out)
    assert found.value == pytest.approx(values.mean())
    assert found.standard_error == pytest.approx(values.std(ddof=1) / math.sqrt(50))
    assert (found.low + found.high) / 2 == pytest.approx(found.value)


def test_the_spread_over_splits_widens_the_interval():
    flat = np.full((4, 10), 0.5)
    found = selection.estimate([0.4, 0.5, 0.5, 0.6], flat)
    assert found.standard_error == pytest.approx(np.std([0.4, 0.5, 0.5, 0.6], ddof=1) / 2)


@pytest.mark.slow
def test_intervals_cover_the_true_value():
    """Average precision on many samples of posts, with predictions of the same quality each time."""
    covered, values = [], []
    for seed in range(100):
        judge = scorer(seed)
        logits = 1.0 * judge.labels + np.random.default_rng(1000 + seed).standard_normal((POSTS, CRITERIA))
        covered.append(selection.estimate(judge.value(logits), judge.without_blocks(logits)))
        values.append(covered[-1].value)
    truth = np.mean(values)
    assert 0.9 <= np.mean([found.low <= truth <= found.high for found in covered]) <= 1.0
    assert np.mean([found.standard_error for found in covered]) == pytest.approx(np.std(values, ddof=1), rel=0.25)


def test_the_interval_of_a_score_ends_where_scores_end():
    found = selection.Estimate(0.98, 0.95, 1.01)
    assert found.of_score() == selection.Estimate(0.98, 0.95, 1.0)
    assert selection.Estimate(0.02, -0.01, 0.05).of_score() == selection.Estimate(0.02, 0.0, 0.05)
