"""The stack of a solved model: one epoch, bit-identical alone, together and resumed."""

import math

import numpy as np
import pytest
import torch
from corpora import assert_same_bits, candidate, planted, uneven

from sparse_evidence.core.config import LinearConfig, RetrievalConfig
from sparse_evidence.core.errors import NonFiniteLossError
from sparse_evidence.core.features.views import EmbeddedCorpus
from sparse_evidence.core.training.solved import SolvedStack
from sparse_evidence.core.training.stack import FoldStack, make_stack
from sparse_evidence.core.training.state_file import pack_state, unpack_state

MODELS = [LinearConfig(), RetrievalConfig(C=0.01)]
every_model = pytest.mark.parametrize("model", MODELS, ids=lambda model: model.name)


def stack(fold_ids, model, corpus=None, seed=0):
    corpus = corpus or planted(unlabelled=0.1)
    return make_stack(corpus, uneven(corpus), fold_ids, candidate(model), seed=seed)


def test_only_solved_models_get_a_solved_stack():
    assert isinstance(stack([0, 1], LinearConfig()), SolvedStack)
    trained = make_stack(planted(), uneven(planted()), [0], candidate(), seed=0)
    assert isinstance(trained, FoldStack)
    assert trained.max_epochs is None


@every_model
def test_folds_alone_and_with_another_seed_are_bit_identical(model):
    together = stack([0, 1, 2], model)
    end, (logits, losses) = together.advance(), together.validate()
    assert (end.epoch, together.epoch, together.max_epochs, together.warmup_epochs) == (1, 1, 1, 0)
    for fold in range(3):
        alone = stack([fold], model, seed=5)
        assert alone.advance().train_loss == (end.train_loss[fold],)
        alone_logits, alone_losses = alone.validate()
        np.testing.assert_array_equal(alone_logits[0], logits[fold])
        assert alone_losses == (losses[fold],)


@every_model
def test_predictions_are_those_of_the_model(model):
    corpus = planted(unlabelled=0.1)
    solved = stack([0, 1], model, corpus)
    solved.advance()
    posts = [np.array([7, 3, 50, 3]), np.array([1, 2, 3, 4])]
    with torch.no_grad():
        expected = solved.model(solved.inputs.batch(np.stack(posts))).numpy()
    np.testing.assert_allclose(solved.predict(posts), expected, atol=1e-4)
    assert solved.predict([posts[0][:2], posts[1]])[0].shape == (2, 3)


@every_model
def test_losses_are_mean_log_losses_of_labelled_pairs(model):
    corpus = planted(unlabelled=0.3)
    solved, folds = stack([0, 2], model, corpus), uneven(corpus)
    train_loss = solved.advance().train_loss
    logits, validation_loss = solved.validate()
    parts = ([folds.train(0), folds.train(2)], [folds.validation(0), folds.validation(2)])
    for posts, z, losses in zip(parts, (solved.predict(parts[0]), logits), (train_loss, validation_loss), strict=True):
        for fold in (0, 1):
            y = torch.from_numpy(corpus.labels[posts[fold]])
            known = y >= 0
            expected = torch.nn.functional.binary_cross_entropy_with_logits(
                torch.from_numpy(z[fold])[known], y[known].float()
            )
            assert losses[fold] == pytest.approx(expected.item(), abs=1e-5)


@every_model
def test_a_checkpoint_restores_the_solution(model):
    solved, resumed = stack([0, 1], model), stack([0, 1], model)
    solved.advance()
    before = solved.validate()
    resumed.load_state_dict(unpack_state(pack_state(solved.state_dict())))
    assert resumed.epoch == 1
    after = resumed.validate()
    assert after[1] == before[1]
    for left, right in zip(after[0], before[0], strict=True):
        np.testing.assert_array_equal(left, right)
    assert_same_bits(resumed.state_dict(), solved.state_dict())
    state = resumed.state_dict()
    resumed.model.bias.data.zero_()
    assert state["model"]["bias"].abs().min() > 0  # a snapshot


def test_a_criterion_without_a_positive_in_training_is_predicted():
    corpus = planted()
    labels = corpus.labels.copy()
    labels[:, 1] = 0
    labels[:, 2] = -1
    rare = EmbeddedCorpus(corpus.embeddings, corpus.offsets, corpus.criteria, labels)
    for model in MODELS:
        solved = stack([0, 1, 2], model, rare)
        assert all(map(math.isfinite, solved.advance().train_loss))
        for logits in solved.validate()[0]:
            assert (logits[:, 1] < -3).all()
            assert (logits[:, 2] == 0).all()


def test_embeddings_that_are_not_numbers_are_refused():
    corpus = planted()
    solved = stack([0], LinearConfig(), corpus)
    solved.advance()
    solved.model.weight.data[0, 0, 0] = torch.nan
    with pytest.raises(NonFiniteLossError):
        solved.validate()
