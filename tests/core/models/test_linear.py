"""The linear model: logits of the mean embedding, solved as scikit-learn solves it."""

import numpy as np
import pytest
import torch
from corpora import planted
from sklearn.linear_model import LogisticRegression

from sparse_evidence.core.config import LinearConfig
from sparse_evidence.core.features.embeddings import mean_embeddings
from sparse_evidence.core.models import build_model
from sparse_evidence.core.models.linear import Linear
from sparse_evidence.core.splits import Folds


@pytest.fixture(scope="module")
def corpus():
    return planted(posts=90, unlabelled=0.1)


@pytest.fixture(scope="module")
def means(corpus):
    return mean_embeddings(corpus.embeddings, corpus.offsets)


FOLDS = Folds(np.arange(90) % 3, 3)


def test_an_unsolved_model_predicts_the_prior_of_its_fold(corpus):
    train = [FOLDS.train(0), FOLDS.train(1)]
    model, inputs = build_model(LinearConfig(), corpus, train, folds=[0, 1], seed=0)
    logits = model(inputs.batch(np.array([[3, 4, 5], [6, 7, 8]])))
    for fold, part in enumerate(train):
        labels = corpus.labels[part]
        share = ((labels == 1).sum(0) + 0.5) / ((labels >= 0).sum(0) + 1)
        np.testing.assert_allclose(torch.sigmoid(logits[fold]).detach(), np.tile(share, (3, 1)), rtol=1e-5)


def noisy(corpus):
    model = Linear(1.0, corpus.embeddings.shape[1], torch.zeros(2, 3))
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


def test_each_fold_is_solved_on_its_own_training_posts(corpus, means):
    train = [FOLDS.train(0), FOLDS.train(2)]
    model, inputs = build_model(LinearConfig(C=20.0), corpus, train, folds=[0, 2], seed=0)
    model.solve(model.design_all(inputs), corpus.labels, train)
    for fold, part in enumerate(train):
        for criterion in range(3):
            rows = part[corpus.labels[part, criterion] >= 0]
            reference = LogisticRegression(C=20.0, tol=1e-10, max_iter=10_000)
            reference.fit(means[rows].astype(np.float64), corpus.labels[rows, criterion])
            np.testing.assert_allclose(model.weight[fold, :, criterion].detach(), reference.coef_[0], atol=1e-3)
            assert model.bias[fold, criterion].item() == pytest.approx(reference.intercept_[0], abs=1e-3)
