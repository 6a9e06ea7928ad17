"""The retrieval model: its inputs against a loop over posts, its solution against scikit-learn."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from corpora import planted, unit
from sklearn.linear_model import LogisticRegression

from sparse_evidence.core.config import RetrievalConfig
from sparse_evidence.core.features.views import EmbeddedCorpus
from sparse_evidence.core.models import build_model

TRAIN = [np.arange(40), np.arange(20, 60)]
CONFIGS = [RetrievalConfig(C=0.5), RetrievalConfig(top_k=1, C=0.5), RetrievalConfig(pooling="mean", top_k=5, C=0.5)]
every_config = pytest.mark.parametrize("config", CONFIGS, ids=["three", "one", "mean of five"])


@pytest.fixture(scope="module")
def corpus():
    return planted(unlabelled=0.1)


def slow_inputs(corpus, config):
    """Post by post: unit mean embedding, the highest cosines of each criterion or their mean, the mean cosines."""
    rows = []
    for start, end in zip(corpus.offsets[:-1], corpus.offsets[1:], strict=True):
        chunks = corpus.embeddings[start:end].astype(np.float64)
        cosines = chunks @ (corpus.criteria / np.linalg.norm(corpus.criteria, axis=1, keepdims=True)).T
        highest = -np.sort(-cosines, axis=0)[: config.top_k]
        highest = np.concatenate([highest, np.repeat(highest[-1:], config.top_k - len(highest), axis=0)])
        pooled = highest.ravel() if config.pooling == "each" else highest.mean(0)
        rows.append(np.concatenate([unit(chunks.mean(0)), pooled, cosines.mean(0)]))
    return np.array(rows)


def solved(config, corpus, train=None):
    train = train or TRAIN
    model, inputs = build_model(config, corpus, train, folds=range(len(train)), seed=0)
    model.solve(model.design_all(inputs), corpus.labels, train)
    return model.eval(), inputs


@every_config
def test_the_inputs_are_the_mean_and_the_nearest_similarities(config, corpus):
    assert np.diff(corpus.offsets).min() == 1  # some posts have fewer chunks than k
    model, inputs = solved(config, corpus)
    np.testing.assert_allclose(model.design_all(inputs), slow_inputs(corpus, config), atol=1e-5)


@every_config
def test_logits_are_a_logistic_regression_on_inputs_standardised_on_the_training_part(config, corpus):
    model, inputs = solved(config, corpus)
    raw = slow_inputs(corpus, config)
    with torch.no_grad():
        logits = model(inputs.batch(np.arange(60)[None].repeat(2, 0))).numpy()
    for fold, part in enumerate(TRAIN):
        x = (raw - raw[part].mean(0)) / raw[part].std(0)
        x[:, corpus.embeddings.shape[1] :] *= config.similarity_weight
        for criterion in range(3):
            rows = part[corpus.labels[part, criterion] >= 0]
            reference = LogisticRegression(C=config.C, tol=1e-10, max_iter=10_000)
            reference.fit(x[rows], corpus.labels[rows, criterion])
            np.testing.assert_allclose(logits[fold, :, criterion], reference.decision_function(x), atol=2e-3)


def test_a_zero_weight_leaves_the_similarities_out(corpus):
    model, _ = solved(RetrievalConfig(similarity_weight=0.0, C=1.0), corpus)
    dim = corpus.embeddings.shape[1]
    assert model.weight[:, :dim].abs().min() > 0
    assert model.weight[:, dim:].abs().max() == 0


def test_all_criteria_see_all_similarities(corpus):
    model, _ = solved(RetrievalConfig(C=1.0), corpus)
    assert model.weight[:, corpus.embeddings.shape[1] :].abs().min() > 0


def test_an_input_that_is_constant_in_training_has_no_influence(corpus):
    """However far a validation post is from it: its deviation is no unit."""
    embeddings = corpus.embeddings.copy()
    embeddings[:, 0] = 0
    embeddings[corpus.offsets[50] : corpus.offsets[51], 0] = 1.0
    flat = EmbeddedCorpus(embeddings, corpus.offsets, np.eye(3, 12, 1, dtype=np.float32), corpus.labels)
    model, inputs = solved(RetrievalConfig(C=1.0), flat, [np.arange(40)])
    assert model.factor[0, 0] == 0
    with torch.no_grad():
        assert model(inputs.batch(np.array([[50]]))).abs().max() < 100


def test_a_fold_depends_on_its_training_posts_only(corpus):
    labels, embeddings = corpus.labels.copy(), corpus.embeddings.copy()
    labels[40:] = 1
    embeddings[corpus.offsets[40] :] *= -1
    changed = EmbeddedCorpus(embeddings, corpus.offsets, corpus.criteria, labels)
    for name, value in solved(RetrievalConfig(), corpus, TRAIN[:1])[0].state_dict().items():
        assert torch.equal(solved(RetrievalConfig(), changed, TRAIN[:1])[0].state_dict()[name], value), name


@every_config
def test_attention_is_the_share_of_the_nearest_similarities(config, corpus):
    model, inputs = solved(config, corpus)
    posts = np.arange(30)[None].repeat(2, 0)
    attention = model.attention(inputs.batch(posts)).numpy()
    np.testing.assert_allclose(attention.sum(-1), 1, atol=1e-6)
    for post in range(30):
        chunks = corpus.embeddings[corpus.offsets[post] : corpus.offsets[post + 1]]
        assert (attention[:, post, :, len(chunks) :] == 0).all()
        for criterion in range(3):
            nearest = np.argsort(-chunks @ corpus.criteria[criterion])[: config.top_k]
            expected = np.zeros(len(chunks))
            expected[nearest] = 1 / config.top_k
            expected[nearest[-1]] += (config.top_k - len(nearest)) / config.top_k  # the last repeats
            np.testing.assert_allclose(attention[:, post, criterion, : len(chunks)], [expected] * 2, atol=1e-6)


def test_pooling_one_similarity_is_the_similarity(corpus):
    each, mean = (solved(replace(RetrievalConfig(top_k=1), pooling=pooling), corpus)[0] for pooling in ("each", "mean"))
    torch.testing.assert_close(each.weight, mean.weight)
