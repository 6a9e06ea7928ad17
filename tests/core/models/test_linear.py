"""The linear model and the converged baseline: against formulas and an independent optimiser."""

import numpy as np
import pytest
import torch
from corpora import planted
from scipy.optimize import minimize

from sparse_evidence.core.config import LinearConfig
from sparse_evidence.core.features.bags import mean_embeddings
from sparse_evidence.core.models import build_model
from sparse_evidence.core.models.linear import Linear, fit_linear_baseline, linear_baseline
from sparse_evidence.core.splits import Folds


@pytest.fixture(scope="module")
def corpus():
    return planted(posts=90, unlabelled=0.1)


@pytest.fixture(scope="module")
def means(corpus):
    return mean_embeddings(corpus.embeddings, corpus.offsets)


FOLDS = Folds(np.arange(90) % 3, 3)
HELD_OUT = Folds(np.where(np.arange(90) < 6, -1, np.arange(90) % 3), 3)


def fitted_by_hand(rows, target):
    """Weights and intercept of ½‖w‖² + Σ log(1 + exp(−y z)), the intercept without a penalty, in float64."""
    sign = 2.0 * target - 1

    def loss(parameters):
        z = rows @ parameters[:-1] + parameters[-1]
        return 0.5 * parameters[:-1] @ parameters[:-1] + np.logaddexp(0, -sign * z).sum()

    optimum = minimize(loss, np.zeros(rows.shape[1] + 1), tol=1e-10)
    return optimum.x[:-1], optimum.x[-1]


# ---- the trained model ------------------------------------------------------------------------------------------


def test_an_untrained_model_predicts_the_prior_of_its_fold(corpus):
    train = [FOLDS.train(0), FOLDS.train(1)]
    model, inputs = build_model(LinearConfig(), corpus, train, folds=[0, 1], seed=0)
    logits = model(inputs.batch(np.array([[3, 4, 5], [6, 7, 8]])))
    for fold, part in enumerate(train):
        labels = corpus.labels[part]
        share = ((labels == 1).sum(0) + 0.5) / ((labels >= 0).sum(0) + 1)
        np.testing.assert_allclose(torch.sigmoid(logits[fold]).detach(), np.tile(share, (3, 1)), rtol=1e-5)


def noisy(corpus):
    model = Linear(corpus.embeddings.shape[1], torch.zeros(2, 3))
    with torch.no_grad():
        model.weight.normal_(generator=torch.Generator().manual_seed(0))
        model.bias.normal_(generator=torch.Generator().manual_seed(1))
    return model


def test_logits_are_those_of_each_folds_own_weights(corpus, means):
    model = noisy(corpus)
    posts = np.array([[0, 5], [9, 0]])
    logits = model(corpus.bags.means("cpu").batch(posts)).detach().numpy()
    for fold in (0, 1):
        weight, bias = model.weight[fold].detach().numpy(), model.bias[fold].detach().numpy()
        np.testing.assert_allclose(logits[fold], means[posts[fold]] @ weight + bias, atol=1e-5)


def test_chunk_logits_are_the_logits_of_the_mean(corpus):
    model, posts = noisy(corpus), np.arange(40).reshape(2, 20)
    bag = corpus.bags.chunks("cpu").batch(posts)
    torch.testing.assert_close(
        model.chunk_logits(bag), model(corpus.bags.means("cpu").batch(posts)), atol=1e-5, rtol=1e-4
    )


def test_attention_is_one_share_for_each_chunk(corpus):
    posts = np.arange(20)[None].repeat(2, 0)
    attention = noisy(corpus).attention(corpus.bags.chunks("cpu").batch(posts))
    for post, length in enumerate(np.diff(corpus.offsets)[:20]):
        torch.testing.assert_close(attention[:, post, :, :length], torch.full((2, 3, length), 1 / int(length)))
        assert (attention[:, post, :, length:] == 0).all()


# ---- the baseline -----------------------------------------------------------------------------------------------


def test_the_baseline_minimises_the_penalised_likelihood(corpus, means):
    model = fit_linear_baseline(means, corpus.labels, FOLDS)
    for fold in range(3):
        train = FOLDS.train(fold)
        for criterion in range(3):
            rows = train[corpus.labels[train, criterion] >= 0]
            weight, bias = fitted_by_hand(means[rows].astype(np.float64), corpus.labels[rows, criterion])
            np.testing.assert_allclose(model.weight[fold, :, criterion].detach(), weight, atol=5e-3)
            assert model.bias[fold, criterion].item() == pytest.approx(bias, abs=5e-3)


def test_probabilities_are_out_of_fold_and_nan_in_the_holdout(corpus, means):
    probabilities = linear_baseline(means, corpus.labels, HELD_OUT)
    model = fit_linear_baseline(means, corpus.labels, HELD_OUT)
    assert np.isnan(probabilities[:6]).all()
    for fold in range(3):
        rows = HELD_OUT.validation(fold)
        z = means[rows] @ model.weight[fold].detach().numpy() + model.bias[fold].detach().numpy()
        np.testing.assert_allclose(probabilities[rows], 1 / (1 + np.exp(-z)), atol=1e-6)


def test_neither_labels_nor_vectors_of_the_holdout_matter(corpus, means):
    labels, changed = corpus.labels.copy(), means.copy()
    labels[:6], changed[:6] = 1, 9.0
    np.testing.assert_array_equal(
        linear_baseline(changed, labels, HELD_OUT), linear_baseline(means, corpus.labels, HELD_OUT)
    )


def test_the_order_of_criteria_does_not_matter(corpus, means):
    order = [2, 0, 1]
    permuted = linear_baseline(means, np.ascontiguousarray(corpus.labels[:, order]), FOLDS)
    np.testing.assert_array_equal(permuted, linear_baseline(means, corpus.labels, FOLDS)[:, order])


@pytest.mark.parametrize(("label", "probability"), [(1, 1.0), (0, 0.0), (-1, 0.5)])
def test_a_criterion_with_a_single_class_gets_a_constant(label, probability, corpus, means):
    """Certain of the only class; undecided without any label. No other criterion changes."""
    labels = corpus.labels.copy()
    labels[:, 1] = label
    probabilities = linear_baseline(means, labels, FOLDS)
    assert (probabilities[:, 1] == probability).all()
    unchanged = linear_baseline(means, corpus.labels, FOLDS)
    np.testing.assert_array_equal(probabilities[:, [0, 2]], unchanged[:, [0, 2]])


def test_a_criterion_with_a_single_class_in_one_fold_is_fitted_in_the_others(corpus, means):
    labels = corpus.labels.copy()
    labels[FOLDS.train(0), 0] = np.minimum(labels[FOLDS.train(0), 0], 0)  # all positives are in fold 0
    labels[FOLDS.validation(0)[:5], 0] = 1
    probabilities = linear_baseline(means, labels, FOLDS)[:, 0]
    assert (probabilities[FOLDS.validation(0)] == 0).all()
    assert ((probabilities[FOLDS.train(0)] > 0) & (probabilities[FOLDS.train(0)] < 1)).all()
