"""Several seeds per fold: models that train side by side, independent of each other, and are averaged."""

import copy
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from corpora import IRIS, assert_same_bits, candidate, planted, uneven

from sparse_evidence.core.config import AbmilConfig, InstanceConfig, LinearConfig, TokenConfig
from sparse_evidence.core.features.encoders import locate
from sparse_evidence.core.features.views import TextCorpus
from sparse_evidence.core.models import build_model, join_models
from sparse_evidence.core.splits import Folds
from sparse_evidence.core.training.crossval import CrossValidation
from sparse_evidence.core.training.stack import FoldRow, FoldStack, average_seeds, make_stack, model_seeds
from sparse_evidence.core.training.state_file import pack_state, unpack_state

MODELS = [IRIS, AbmilConfig(hidden=8, attention_hidden=4), InstanceConfig(hidden=8), LinearConfig()]
every_model = pytest.mark.parametrize("model", MODELS, ids=lambda model: model.name)


def stack(fold_ids=(0, 1, 2), alone=None, model=IRIS, corpus=None, seed=0, **training):
    corpus = corpus or planted()
    return FoldStack(corpus, uneven(corpus), fold_ids, candidate(model, **training), seed=seed, seeds=alone)


def crossval(seeds, *, fuse=True, **training):
    corpus = planted()
    config = candidate(seeds=seeds, epochs=5, patience=2, **training)
    return CrossValidation(
        corpus, uneven(corpus), config, stages=(1, 2), metric="average_precision", criteria="abc", seed=4, fuse=fuse
    )


def mean_probability(logits):
    return np.mean([1 / (1 + np.exp(-z.astype(np.float64))) for z in logits], axis=0)


def test_the_first_seed_is_the_trials_own_and_the_others_differ():
    assert model_seeds(7, 1) == [7]
    assert model_seeds(7, 3)[:2] == model_seeds(7, 2)
    assert len({*model_seeds(7, 4), *model_seeds(8, 4)}) == 8


@every_model
def test_three_seeds_equal_the_mean_of_three_runs(model):
    together = stack(model=model, seeds=3)
    alone = [stack(alone=[seed], model=model) for seed in model_seeds(0, 3)]
    for _ in range(3):
        end, (logits, losses) = together.advance(), together.validate()
        ends, results = [one.advance() for one in alone], [one.validate() for one in alone]
        for fold in range(3):
            expected = mean_probability([result[0][fold] for result in results])
            np.testing.assert_allclose(mean_probability([logits[fold]]), expected, atol=1e-4)
            assert end.train_loss[fold] == pytest.approx(np.mean([e.train_loss[fold] for e in ends]), abs=1e-4)
            assert losses[fold] == pytest.approx(np.mean([result[1][fold] for result in results]), abs=1e-4)
    if model.name != "linear":  # which has no random start
        assert not np.allclose(*[result[0][0] for result in results[:2]])


def test_a_single_seed_is_todays_model():
    plain = stack()
    one = stack(alone=[0], seeds=3)
    for _ in range(2):
        assert plain.advance() == one.advance()
    assert_same_bits(plain.state_dict(), one.state_dict())


def test_models_do_not_depend_on_each_other():
    together, other = (stack([0, 1], alone=seeds) for seeds in ([0, 5, 9], [0, 7, 9]))
    for _ in range(2):
        together.advance()
        other.advance()
    for name, weights in together.model.state_dict().items():
        theirs = other.model.state_dict()[name]
        torch.testing.assert_close(weights[[0, 1, 4, 5]], theirs[[0, 1, 4, 5]], atol=1e-5, rtol=1e-4)
    assert not torch.allclose(together.model.queries[2], other.model.queries[2])


def test_fused_seeds_equal_seeds_in_a_row():
    fused, plain = crossval(2), crossval(2, fuse=False)
    assert isinstance(plain.stages[1].stack, FoldRow)
    for event, expected in zip(fused.epochs(), plain.epochs(), strict=True):
        assert (event.stage, event.epoch, event.folds) == (expected.stage, expected.epoch, expected.folds)
        for name in ("train_loss", "validation_loss", "scores"):
            assert getattr(event, name) == pytest.approx(getattr(expected, name), abs=1e-4)
    np.testing.assert_allclose(fused.summary().probabilities, plain.summary().probabilities, atol=1e-4)


def test_resuming_several_seeds_is_bit_identical():
    undisturbed = crossval(3)
    whole = list(undisturbed.epochs())
    events, state = [], None
    while True:
        cv = crossval(3)
        if state is not None:
            cv.load_state_dict(state)
        event = next(cv.epochs(), None)
        if event is None:
            break
        events.append(event)
        state = unpack_state(pack_state(cv.state_dict()))
    assert events == whole
    assert_same_bits(state, undisturbed.state_dict())


def test_averaged_predictions_belong_to_the_requested_posts():
    trained = stack([0, 1], seeds=2)
    trained.advance()
    posts = [np.array([7, 3, 50, 3]), np.arange(30)[::-1]]
    together = trained.predict(posts)
    assert [len(logits) for logits in together] == [4, 30]
    alone = [stack([0, 1], alone=[seed]) for seed in model_seeds(0, 2)]
    for one in alone:
        one.advance()
    for fold in (0, 1):
        expected = mean_probability([one.predict(posts)[fold] for one in alone])
        np.testing.assert_allclose(mean_probability([together[fold]]), expected, atol=1e-4)


def test_seeds_in_micro_batches_equal_whole_steps():
    whole = stack([0, 1], seeds=2)
    corpus = planted()
    cut = FoldStack(corpus, uneven(corpus), [0, 1], candidate(IRIS, seeds=2), seed=0, max_posts_per_pass=2)
    for _ in range(3):
        whole.advance()
        cut.advance()
    for left, right in zip(whole.validate()[0], cut.validate()[0], strict=True):
        np.testing.assert_allclose(left, right, atol=1e-3)


def test_a_model_of_text_has_a_row_of_seeds(tiny_encoder):
    posts = tuple(f"w{number} w{(number * 7) % 30}. w{(number * 3) % 30}." for number in range(24))
    labels = np.stack([np.arange(24) % 2, np.arange(24) // 12], 1).astype(np.int8)
    corpus = TextCorpus(posts, ("w0 w1", "w2"), locate(str(tiny_encoder)), labels)
    folds = Folds(np.arange(24) % 3, 3)
    model = TokenConfig(max_length=24, head_epochs=0)
    both = make_stack(corpus, folds, [0, 2], candidate(model, seeds=2), seed=0)
    alone = [
        [FoldStack(corpus, folds, [fold], candidate(model), seed=0, seeds=[number]) for fold in (0, 2)]
        for number in model_seeds(0, 2)
    ]
    assert both.fold_ids == (0, 2)
    both.advance()
    for row in alone:
        for one in row:
            one.advance()
    logits, losses = both.validate()
    predicted = both.predict([folds.validation(0), folds.validation(2)])
    for position in (0, 1):
        results = [row[position].validate() for row in alone]
        expected = mean_probability([result[0][0] for result in results])
        assert losses[position] == pytest.approx(np.mean([result[1][0] for result in results]))
        for averaged in (logits, predicted):
            np.testing.assert_allclose(mean_probability([averaged[position]]), expected, atol=1e-6)
    resumed = make_stack(corpus, folds, [0, 2], candidate(model, seeds=2), seed=0)
    resumed.load_state_dict(copy.deepcopy(both.state_dict()))
    assert resumed.advance() == both.advance()


def test_the_logit_of_a_mean_probability_is_finite_and_exact():
    rows = [np.array([[800.0, -800.0, 0.0, 3.0]], dtype=np.float32), np.array([[900.0, -900.0, 0.0, -1.0]], np.float32)]
    (averaged,) = average_seeds(rows, 2)
    assert averaged.dtype == np.float32
    mean = (1 / (1 + math.exp(-3)) + 1 / (1 + math.exp(1))) / 2
    np.testing.assert_allclose(averaged[0, 2:], [0, math.log(mean / (1 - mean))], atol=1e-6)
    assert averaged[0, 0] == pytest.approx(800 + math.log(2))
    assert averaged[0, 1] == pytest.approx(-800 - math.log(2))
    assert average_seeds(rows, 1) is rows


@every_model
def test_joined_models_predict_what_each_of_them_does(model):
    corpus, train = planted(), [np.arange(30), np.arange(20, 60)]
    config = replace(model)
    made = [build_model(config, corpus, train, folds=[0, 1], seed=seed) for seed in (3, 4)]
    posts = np.arange(12).reshape(2, 6)
    for number, (one, _) in enumerate(made):
        with torch.no_grad():
            one.bias.add_(number)
    expected = torch.cat([one.eval()(inputs.batch(posts)) for one, inputs in made])
    joined = join_models([one for one, _ in made])
    assert {len(value) for value in joined.state_dict().values()} == {4}
    torch.testing.assert_close(joined(made[0][1].batch(np.tile(posts, (2, 1)))), expected)
