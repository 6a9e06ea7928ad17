"""The plan of an epoch: which posts share a step, in which order, for which fold."""

import numpy as np
import pytest
from corpora import candidate, planted, uneven

from sparse_evidence.core.config import IrisConfig
from sparse_evidence.core.training.stack import FoldStack

CORPUS = planted(posts=300, longest=40, unlabelled=0.1)
FOLDS = uneven(CORPUS)
LENGTHS = np.diff(CORPUS.offsets)


def stack(fold_ids, *, seed=0, max_posts=None, **training):
    settings = {"batch_size": 10, "accumulation_steps": 1, "warmup_steps": 0, **training}
    config = candidate(IrisConfig(num_queries=1, hidden=2), **settings)
    return FoldStack(CORPUS, FOLDS, fold_ids, config, seed=seed, max_posts_per_pass=max_posts)


def steps_of(stacked, position=0):
    """The posts of every step of the coming epoch for one fold, in order."""
    micro_batches = [(batch.inputs[position], batch.targets[position]) for batch in stacked.batches()]
    per_step = [
        micro_batches[at : at + stacked.micro_batches] for at in range(0, len(micro_batches), stacked.micro_batches)
    ]
    return [np.unique(np.concatenate([posts for posts, _ in step])) for step in per_step]


@pytest.mark.parametrize("fold", range(3))
def test_a_fold_sees_the_same_steps_in_any_stack(fold):
    alone = steps_of(stack([fold]))
    for fold_ids in ([0, 1, 2], [2, 1, 0], sorted({fold, (fold + 1) % 3})):
        together = steps_of(stack(fold_ids), list(fold_ids).index(fold))
        assert [posts.tolist() for posts in together] == [posts.tolist() for posts in alone]


def test_posts_of_a_step_have_similar_length():
    """Padding to the longest post of a step costs little; posts in random order would cost twice as much."""
    steps = steps_of(stack([0]))
    padded = sum(len(posts) * LENGTHS[posts].max() for posts in steps)
    total = sum(LENGTHS[posts].sum() for posts in steps)
    assert padded < 1.25 * total
    order = np.random.default_rng(0).permutation(np.concatenate(steps))
    shuffled = np.array_split(order, len(steps))
    assert sum(len(posts) * LENGTHS[posts].max() for posts in shuffled) > 1.6 * total


def test_steps_are_in_random_order_of_length():
    """Training on short posts first and long ones last, epoch after epoch, would be a curriculum."""
    stacked, orders = stack([0]), []
    for _ in range(2):
        orders.append(np.array([LENGTHS[posts].mean() for posts in steps_of(stacked)]))
        stacked.advance()
    for lengths in orders:
        assert abs(np.corrcoef(lengths, np.arange(len(lengths)))[0, 1]) < 0.7
    assert not np.allclose(orders[0], orders[1])


def test_the_plan_follows_from_seed_and_epoch():
    first, second = stack([0, 1]), stack([0, 1])
    first.advance()
    assert [p.tolist() for p in steps_of(first)] != [p.tolist() for p in steps_of(second)]
    second.advance()
    assert [p.tolist() for p in steps_of(first)] == [p.tolist() for p in steps_of(second)]
    assert [p.tolist() for p in steps_of(stack([0], seed=1))] != [p.tolist() for p in steps_of(stack([0]))]


@pytest.mark.parametrize("max_posts", [1, 3, 7, None])
def test_micro_batches_split_a_step_and_change_neither_posts_nor_weights(max_posts):
    whole, split = stack([0, 2]), stack([0, 2], max_posts=max_posts)
    for position in (0, 1):
        assert [p.tolist() for p in steps_of(split, position)] == [p.tolist() for p in steps_of(whole, position)]
    sizes = [batch.inputs.shape[1] for batch in split.batches()]
    assert max(sizes) <= (max_posts or split.width)
    assert sum(sizes) == split.steps * split.width
    assert sum(batch.weight for batch in split.batches()).tolist() == [
        float((CORPUS.labels[FOLDS.train(fold)] >= 0).sum()) for fold in (0, 2)
    ]


def test_targets_are_the_labels_of_their_posts_and_count_once():
    """Padding repeats a post of the fold without a target, so that it has no loss."""
    for batch in stack([0, 1]).batches():
        for position in (0, 1):
            posts, targets = batch.inputs[position], batch.targets[position].numpy()
            counted = (targets >= 0).any(1)
            assert len(set(posts[counted])) == counted.sum()
            for post, row in zip(posts[counted], targets[counted], strict=True):
                np.testing.assert_array_equal(row, CORPUS.labels[post])
            assert batch.weight[position] == (targets >= 0).sum()
            assert set(posts) <= set(FOLDS.train(position))


@pytest.mark.parametrize(("batch_size", "accumulation_steps"), [(10, 1), (5, 2), (1, 10)])
def test_a_step_has_the_posts_of_all_its_batches(batch_size, accumulation_steps):
    stacked = stack([0], batch_size=batch_size, accumulation_steps=accumulation_steps)
    assert [p.tolist() for p in steps_of(stacked)] == [p.tolist() for p in steps_of(stack([0]))]


def test_predictions_do_not_depend_on_the_size_of_a_pass():
    """More posts than a pass without gradients holds, of every length."""
    posts = np.random.default_rng(0).permutation(300)
    predictions = []
    for max_posts in (None, 1, 5):
        trained = stack([0], max_posts=max_posts, batch_size=50)
        trained.advance()
        predictions.append(trained.predict([posts])[0])
        for position in (0, 150, 299):
            alone = trained.predict([posts[[position]]])[0][0]
            np.testing.assert_allclose(predictions[-1][position], alone, atol=1e-5)
    for other in predictions[1:]:
        np.testing.assert_allclose(other, predictions[0], atol=1e-3)
