"""Folds of a stack depend neither on each other nor on their validation posts, and resume bit for bit."""

import copy
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from corpora import IRIS, TRAINING, assert_same_bits, candidate, planted, uneven, unit

from sparse_evidence.core.config import (
    AbmilConfig,
    BCEConfig,
    FocalConfig,
    IrisConfig,
    LogitAdjustedConfig,
    WeightedBCEConfig,
)
from sparse_evidence.core.errors import NonFiniteLossError
from sparse_evidence.core.features.views import EmbeddedCorpus
from sparse_evidence.core.losses import focal
from sparse_evidence.core.seeding import numpy_generator
from sparse_evidence.core.splits import Folds
from sparse_evidence.core.training.stack import FoldRow, FoldStack
from sparse_evidence.core.training.state_file import pack_state, unpack_state


def stack(fold_ids, config=None, corpus=None, folds=None, seed=0, max_posts=None):
    corpus = corpus or planted()
    return FoldStack(
        corpus, folds or uneven(corpus), fold_ids, config or candidate(), seed=seed, max_posts_per_pass=max_posts
    )


def state_of(stack):
    """A copy of the complete state of a stack."""
    return copy.deepcopy(stack.state_dict())


IN_MEMORY = pytest.mark.parametrize("max_posts", [None, 2], ids=["whole steps", "two posts per pass"])
"""Whether a step is a single pass, or is cut into micro-batches whose gradients add up."""


# ---- fused and single folds -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "config",
    [
        candidate(),
        candidate(loss=WeightedBCEConfig(), accumulation_steps=3),
        candidate(IrisConfig(num_queries=1, k_retrieved=2, hidden=4, dropout=0.0), LogitAdjustedConfig()),
        candidate(AbmilConfig(hidden=8, attention_hidden=4), BCEConfig(), batch_size=1000),
        candidate(batch_size=1, accumulation_steps=1),  # steps for which the smaller folds have no post
    ],
    ids=["focal", "weighted", "adjusted", "abmil", "post by post"],
)
@IN_MEMORY
def test_fused_folds_equal_single_folds(config, max_posts):
    corpus = planted(unlabelled=0.1)
    together = stack([0, 1, 2], config, corpus, max_posts=max_posts)
    singles = [stack([fold], config, corpus, max_posts=max_posts) for fold in range(3)]
    for _ in range(5):
        end, (logits, losses) = together.advance(), together.validate()
        for fold, single in enumerate(singles):
            alone, (single_logits, single_loss) = single.advance(), single.validate()
            assert end.train_loss[fold] == pytest.approx(alone.train_loss[0], abs=1e-4)
            assert losses[fold] == pytest.approx(single_loss[0], abs=1e-4)
            np.testing.assert_allclose(logits[fold], single_logits[0], atol=1e-3)
    assert end.epoch == 5
    assert end.train_loss[0] != end.train_loss[1] != end.train_loss[2]


def test_folds_in_a_row_alone_and_resumed_are_bit_identical():
    """One model per fold: the arithmetic is the same, so the bits are (fused folds agree to 1e-4, above)."""
    corpus = planted()

    def row():
        return FoldRow([stack([fold], corpus=corpus) for fold in (0, 1)])

    together, half = row(), row()
    for _ in range(4):
        together.advance()
    for fold in (0, 1):
        alone = stack([fold], corpus=corpus)
        for _ in range(4):
            alone.advance()
        assert_same_bits(together.stacks[fold].state_dict(), alone.state_dict())
    half.advance()
    half.advance()
    resumed = row()
    resumed.load_state_dict(unpack_state(pack_state(half.state_dict())))
    assert [resumed.advance(), resumed.advance()][-1].epoch == 4
    assert_same_bits(unpack_state(pack_state(resumed.state_dict())), unpack_state(pack_state(together.state_dict())))


def test_an_exploding_fold_is_clipped_alone():
    """The loss of fold 0 is multiplied by a million; its gradient norm must not affect fold 1."""
    corpus, config = planted(), candidate(clip_norm=0.5)
    together, alone = stack([0, 1], config, corpus), stack([1], config, corpus)
    mean_loss = together.engine.loss_fn
    together.engine.loss_fn = lambda z, y: mean_loss(z, y) * torch.tensor([1e6, 1.0])
    for _ in range(2):
        together.advance()
        alone.advance()
    for name, value in alone.model.state_dict().items():
        torch.testing.assert_close(value[0], together.engine.model.state_dict()[name][1], atol=1e-4, rtol=1e-3)


# ---- validation posts -------------------------------------------------------------------------------------------


def test_a_fold_never_depends_on_its_validation_posts():
    corpus = planted()
    folds = uneven(corpus)
    locked = [*folds.validation(1), *np.flatnonzero(folds.assignment < 0)]
    source = numpy_generator("garbage")
    lengths = np.diff(corpus.offsets)
    parts = [
        unit(source.standard_normal((source.integers(1, 30), 12))) if post in locked else corpus.embeddings[start:end]
        for post, (start, end) in enumerate(zip(corpus.offsets[:-1], corpus.offsets[1:], strict=True))
    ]
    labels = corpus.labels.copy()
    labels[locked] = source.integers(0, 2, labels[locked].shape)
    offsets = np.concatenate([[0], np.cumsum([len(part) for part in parts])])
    changed = EmbeddedCorpus(np.concatenate(parts), offsets, corpus.criteria, labels)
    assert not np.array_equal(lengths, np.diff(offsets))
    for loss in (FocalConfig(), LogitAdjustedConfig(), WeightedBCEConfig()):
        runs = [stack([1], candidate(loss=loss), data, folds) for data in (corpus, changed)]
        ends = [[run.advance() for _ in range(3)] for run in runs]
        assert ends[0] == ends[1]
        assert_same_bits(state_of(runs[0]), state_of(runs[1]))


def test_validation_does_not_affect_training():
    looking, blind = stack([0]), stack([0])
    for _ in range(3):
        looking.advance()
        looking.validate()
        blind.advance()
    assert_same_bits(state_of(looking), state_of(blind))


def test_predictions_belong_to_the_requested_posts():
    """In the requested order; neither the lengths of the posts nor the lists of other folds matter."""
    trained = stack([0, 1])
    trained.advance()
    posts = [np.array([7, 3, 50, 3]), np.arange(30)[::-1]]
    together = trained.predict(posts)
    for fold in (0, 1):
        for position, post in enumerate(posts[fold]):
            one = trained.predict([np.array([post]), np.array([post])])[fold][0]
            np.testing.assert_allclose(together[fold][position], one, atol=1e-5)


def test_the_validation_loss_is_the_mean_over_labelled_pairs():
    corpus = planted(unlabelled=0.3)
    folds = uneven(corpus)
    trained = stack([0, 2], candidate(loss=FocalConfig(gamma=1.5, alpha=0.3)), corpus, folds)
    trained.advance()
    logits, losses = trained.validate()
    for fold, z, loss in zip((0, 2), logits, losses, strict=True):
        y = corpus.labels[folds.validation(fold)]
        values = focal(torch.from_numpy(z), torch.from_numpy(y), gamma=1.5, alpha=0.3).numpy()
        assert loss == pytest.approx(values[y >= 0].mean(), rel=1e-5)


# ---- the epoch --------------------------------------------------------------------------------------------------


def test_every_training_post_is_seen_once_per_epoch():
    trained = stack([0, 2])
    seen, pairs = [[], []], 0
    for batch in trained.batches():
        pairs = pairs + batch.weight
        for position in (0, 1):
            seen[position].extend(batch.inputs[position])
    folds = uneven(planted())
    for position, fold in enumerate((0, 2)):
        assert set(seen[position]) == set(folds.train(fold))
        assert pairs[position] == 3 * len(folds.train(fold))


def test_batches_are_composed_differently_in_every_epoch():
    trained = stack([0])
    plans = []
    for _ in range(2):
        plans.append({tuple(sorted(set(batch.inputs[0].tolist()))) for batch in trained.batches()})
        trained.advance()
    assert len(plans[0] & plans[1]) <= 1


def test_accumulated_batches_are_one_batch_if_they_fit_into_memory():
    accumulated = candidate(IRIS, accumulation_steps=2, batch_size=16)
    together, large = stack([0], accumulated), stack([0], candidate(IRIS, accumulation_steps=1, batch_size=32))
    assert (together.steps, together.micro_batches) == (2, 1)
    apart = stack([0], accumulated, max_posts=1)
    assert (apart.steps, apart.micro_batches) == (2, apart.width)
    ends = [trained.advance().train_loss for trained in (together, large, apart)]
    assert ends[0] == ends[1]
    assert ends[2] == pytest.approx(ends[0], abs=1e-5)
    assert [t.engine.optimizer.state_dict()["steps"] for t in (together, large, apart)] == [2, 2, 2]


def test_unlabelled_pairs_do_not_change_the_weights():
    """The head of a criterion without any label does not change."""
    corpus = planted()
    labels = corpus.labels.copy()
    labels[:, 2] = -1
    blind = EmbeddedCorpus(corpus.embeddings, corpus.offsets, corpus.criteria, labels)
    trained = stack([0], candidate(loss=BCEConfig(), weight_decay=0.0), blind)
    trained.advance()
    assert trained.model.head[0, 2].abs().max() == 0
    assert trained.model.head[0, :2].abs().min() > 0


def test_warm_up_counts_optimizer_steps():
    trained = stack([0], candidate(warmup_steps=9, accumulation_steps=1, batch_size=16))
    rate = TRAINING.learning_rate
    for epoch in (1, 2, 3, 4):
        trained.advance()
        expected = min(1.0, (3 * epoch + 1) / 10)  # three steps an epoch; the next step's rate
        assert trained.engine.optimizer.param_groups[0]["lr"] == pytest.approx(rate * expected)


@pytest.mark.parametrize(("steps", "epochs"), [(0, 0), (1, 1), (3, 1), (9, 3), (10, 4)])
def test_warm_up_in_epochs(steps, epochs):
    trained = stack([0], candidate(warmup_steps=steps, accumulation_steps=1, batch_size=16))
    assert (trained.steps, trained.warmup_epochs) == (3, epochs)
    assert FoldRow([trained]).warmup_epochs == epochs


def test_the_penalty_reaches_the_gradient():
    """At the start the head is zero, so only the penalty has a gradient for the queries."""
    gradients = {}
    for weight in (0.0, 0.5):
        model = replace(IRIS, diversity_weight=weight)
        one_step = stack([0], candidate(model, clip_norm=0.0, batch_size=1000, learning_rate=1e-12))
        one_step.advance()
        gradients[weight] = one_step.model.queries.grad.clone()
    assert gradients[0.0].abs().max() == 0
    queries = stack([0]).model.queries.detach().clone().requires_grad_()
    normed = queries / queries.norm(dim=-1, keepdim=True)
    (0.5 * (normed @ normed.mT - torch.eye(2)).square().sum((-1, -2)).mean()).backward()
    torch.testing.assert_close(gradients[0.5], queries.grad, atol=1e-6, rtol=1e-4)


# ---- resumed, repeated, diverged --------------------------------------------------------------------------------


@IN_MEMORY
@pytest.mark.parametrize("interrupted", [1, 3])
def test_resuming_is_bit_identical(interrupted, max_posts):
    undisturbed = stack([0, 1], max_posts=max_posts)
    whole = [(undisturbed.advance(), undisturbed.validate()[1]) for _ in range(5)]
    first = stack([0, 1], max_posts=max_posts)
    for _ in range(interrupted):
        first.advance()
    second = stack([0, 1], max_posts=max_posts)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    assert second.epoch == interrupted
    remaining = [(second.advance(), second.validate()[1]) for _ in range(5 - interrupted)]
    assert remaining == whole[interrupted:]
    assert_same_bits(state_of(second), state_of(undisturbed))


def test_state_dict_is_a_snapshot():
    trained = stack([0])
    trained.advance()
    state = trained.state_dict()
    before = copy.deepcopy(state)
    trained.advance()
    assert_same_bits(state, before)


def test_equal_seeds_repeat_and_other_seeds_differ():
    runs = {name: stack([0], seed=seed) for name, seed in (("a", 0), ("b", 0), ("c", 1))}
    ends = {name: [run.advance() for _ in range(2)] for name, run in runs.items()}
    assert ends["a"] == ends["b"] != ends["c"]


def test_divergence_raises():
    broken = stack(
        [0], candidate(AbmilConfig(hidden=8, attention_hidden=4), clip_norm=0.0, learning_rate=1e36, warmup_steps=0)
    )
    with pytest.raises(NonFiniteLossError, match="learning rate"):
        [(broken.advance(), broken.validate()) for _ in range(5)]


def test_divergence_in_the_last_step_of_an_epoch_raises():
    """All losses of the epoch were finite; the weights after its last step are not."""
    broken = stack([0], candidate(batch_size=1000, clip_norm=0.0, learning_rate=1e36, warmup_steps=0))
    broken.advance()
    with pytest.raises(NonFiniteLossError):
        broken.validate()


def test_the_largest_fold_sets_the_number_of_steps():
    corpus = planted()
    folds = uneven(corpus)
    largest = max(len(folds.train(fold)) for fold in range(3))
    posts = TRAINING.batch_size * TRAINING.accumulation_steps
    assert {stack([fold], None, corpus, folds).steps for fold in range(3)} == {math.ceil(largest / posts)}


def test_a_batch_may_be_larger_than_a_fold():
    corpus = planted(posts=14)
    tiny = stack([0], candidate(batch_size=64), corpus, Folds(np.arange(14) % 2, 2))
    assert tiny.steps == 1
    assert math.isfinite(tiny.advance().train_loss[0])
