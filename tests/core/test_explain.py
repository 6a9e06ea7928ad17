"""Explanations: contributions are differences of real logits, and evidence is found where it was put."""

import numpy as np
import pytest
import torch

from sparse_evidence.core import explain
from sparse_evidence.core.config import (
    AbmilConfig,
    BCEConfig,
    CandidateConfig,
    IrisConfig,
    LinearConfig,
    TrainingConfig,
)
from sparse_evidence.core.features.bags import ChunkBags, mean_embeddings
from sparse_evidence.core.models import EmbeddedCorpus
from sparse_evidence.core.models.iris import Iris
from sparse_evidence.core.models.linear import Linear, fit_linear_baseline
from sparse_evidence.core.splits import Folds
from sparse_evidence.core.training.stack import FoldStack

DIM, POSTS, CRITERIA, CHUNKS = 24, 120, 2, 7
CONFIGS = [
    IrisConfig(hidden=16, num_queries=2, k_retrieved=2, dropout=0.0),
    AbmilConfig(hidden=16, dropout=0.0),
    LinearConfig(),
]


@pytest.fixture(scope="module")
def planted():
    """A corpus where one chunk, and nothing else, decides; and which chunk that is, bool [chunks, criteria]."""
    generator = np.random.default_rng(0)
    counts = generator.integers(1, CHUNKS + 1, POSTS)
    offsets = np.concatenate([[0], np.cumsum(counts)])
    embeddings = generator.standard_normal((counts.sum(), DIM)).astype(np.float32)
    embeddings[:, :CRITERIA] = 0
    labels = (generator.random((POSTS, CRITERIA)) < 0.4).astype(np.int8)
    evidence = np.zeros((len(embeddings), CRITERIA), dtype=bool)
    for post, criterion in zip(*np.nonzero(labels), strict=True):
        place = generator.integers(offsets[post], offsets[post + 1])
        embeddings[place, criterion] = 6.0
        evidence[place, criterion] = True
    embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)
    criteria = np.eye(CRITERIA, DIM, dtype=np.float32)
    return EmbeddedCorpus(embeddings, offsets, criteria, labels), evidence


@pytest.fixture(scope="module", params=CONFIGS, ids=lambda config: config.name)
def trained(request, planted):
    corpus, _ = planted
    folds = Folds(np.arange(POSTS) % 2, 2)
    candidate = CandidateConfig(request.param, TrainingConfig(batch_size=20, learning_rate=0.02), BCEConfig())
    stack = FoldStack(corpus, folds, [0, 1], candidate, seed=0)
    for _ in range(20):
        stack.advance()
    return stack, folds


def test_contribution_is_the_logit_less_the_logit_without_the_chunk(planted, trained):
    corpus, _ = planted
    stack, _ = trained
    posts = [np.array([5, 17, 2]), np.array([40, 5])]
    readings = explain.read(stack.model, corpus, posts)
    for fold, reading in enumerate(readings):
        np.testing.assert_array_equal(reading.posts, posts[fold])
        np.testing.assert_allclose(reading.logits, stack.predict(posts)[fold], rtol=1e-4, atol=1e-4)
        for row, post in enumerate(posts[fold]):
            own = np.arange(corpus.offsets[post], corpus.offsets[post + 1])
            np.testing.assert_array_equal(reading.chunks[row, : len(own)], own)
            assert (reading.chunks[row, len(own) :] == -1).all()
            assert np.isnan(reading.contribution[row, :, len(own) :]).all()
            for place in range(len(own)):
                expected = reading.logits[row] - without(stack, corpus, fold, np.delete(own, place))
                np.testing.assert_allclose(reading.contribution[row, :, place], expected, rtol=1e-3, atol=1e-3)


def without(stack, corpus, fold, rows):
    """Logits of a post that has these chunks alone."""
    model = stack.model
    if not len(rows):
        return model.bias[fold].detach().numpy()
    vectors, offsets = corpus.embeddings[rows], np.array([0, len(rows)])
    alone = EmbeddedCorpus(vectors, offsets, corpus.criteria, corpus.labels[:1])
    with torch.no_grad():
        if hasattr(model, "weight"):
            means = torch.from_numpy(mean_embeddings(vectors, offsets)).expand(2, 1, -1)
            return model(means)[fold, 0].numpy()
        return model(ChunkBags(alone.embeddings, alone.offsets).batch(np.zeros((2, 1), int)))[fold, 0].numpy()


def test_attention_adds_up_to_one(planted, trained):
    corpus, _ = planted
    for reading in explain.read(trained[0].model, corpus, [np.arange(POSTS)] * 2):
        np.testing.assert_allclose(reading.attention.sum(-1), 1.0, rtol=1e-4)
        assert (reading.attention.swapaxes(1, 2)[reading.chunks < 0] == 0).all()


def test_ranking_names_every_chunk_once(planted, trained):
    corpus, _ = planted
    reading = explain.read(trained[0].model, corpus, [np.arange(POSTS)] * 2)[0]
    ranking = reading.ranking()
    for row in range(POSTS):
        for criterion in range(CRITERIA):
            assert sorted(ranking[row, criterion]) == sorted(reading.chunks[row])
            own = reading.contribution[row, criterion]
            assert own[reading.chunks[row] == ranking[row, criterion, 0]] == np.nanmax(own)


def test_the_evidence_comes_first_in_posts_never_trained_on(planted, trained):
    corpus, evidence = planted
    stack, folds = trained
    readings = explain.read(stack.model, corpus, [folds.validation(fold) for fold in range(2)])
    reading = explain.joined(readings)
    np.testing.assert_array_equal(reading.posts, np.arange(POSTS))
    hits = explain.evidence_hits(reading, evidence, corpus.labels)
    assert len(hits.hit) == corpus.labels.sum()
    assert hits.rate > (0.7 if isinstance(stack.model, Linear) else 0.9)
    counts = np.diff(corpus.offsets)[np.nonzero(corpus.labels)[0]]
    assert hits.expected == pytest.approx(np.mean(1 / counts))
    assert hits.expected < 0.5
    by_attention = explain.evidence_hits(reading, evidence, corpus.labels, by="attention")
    if not isinstance(stack.model, Linear):  # it looks at everything alike
        assert by_attention.rate > hits.expected


def test_no_pair_with_evidence_is_no_number(planted, trained):
    corpus, evidence = planted
    reading = explain.read(trained[0].model, corpus, [np.arange(4)] * 2)[0]
    hits = explain.evidence_hits(reading, np.zeros_like(evidence), corpus.labels)
    assert np.isnan(hits.rate)
    assert np.isnan(hits.expected)


def test_the_floor_can_be_read_like_any_model(planted):
    corpus, evidence = planted
    folds = Folds(np.arange(POSTS) % 2, 2)
    means = mean_embeddings(corpus.embeddings, corpus.offsets)
    model = fit_linear_baseline(means, corpus.labels, folds)
    reading = explain.joined(explain.read(model, corpus, [folds.validation(fold) for fold in range(2)]))
    # within a post the order is that of chunk embedding · weight
    weight = model.weight.detach().numpy()
    for post in (3, 8, 90):
        own = np.arange(corpus.offsets[post], corpus.offsets[post + 1])
        score = corpus.embeddings[own] @ weight[folds.assignment[post], :, 0]
        np.testing.assert_array_equal(reading.ranking()[post, 0, : len(own)], own[np.argsort(-score)])
    assert explain.evidence_hits(reading, evidence, corpus.labels).rate > 0.9


def test_specialisation_tells_equal_queries_from_different_ones(planted):
    corpus, _ = planted
    config = IrisConfig(hidden=8, num_queries=3, k_retrieved=2, query_noise=0.0)
    model = Iris(config, torch.from_numpy(corpus.criteria), torch.zeros(2, CRITERIA), seed=0, folds=[0, 1])
    posts = np.flatnonzero(np.diff(corpus.offsets) > 3)
    same = explain.specialisation(model, corpus, posts, fold=1, k=5)
    np.testing.assert_allclose(same.overlap, 1.0)
    np.testing.assert_allclose(same.cosine, 1.0, rtol=1e-5)
    with torch.no_grad():
        model.queries[1] = torch.eye(DIM)[10]
        model.queries[1, :, 1] *= -1
    apart = explain.specialisation(model, corpus, posts, fold=1, k=5)
    assert (apart.overlap[:, 0, 1] == 0).all()
    assert (apart.overlap[:, 0, 2] == 1).all()
    np.testing.assert_allclose(apart.mean_overlap, (apart.overlap.sum((1, 2)) - 3) / 6, rtol=1e-5)
    assert apart.found.chunks.shape == (CRITERIA, 3, 5)
    best = np.argsort(-corpus.embeddings[:, 10])[:5]
    np.testing.assert_array_equal(apart.found.chunks[0, 0], best)
    assert not set(apart.found.chunks[0, 0]) & set(apart.found.chunks[0, 1])


def test_one_query_overlaps_with_no_other(planted):
    corpus, _ = planted
    config = IrisConfig(hidden=8, num_queries=1)
    model = Iris(config, torch.from_numpy(corpus.criteria), torch.zeros(1, CRITERIA), seed=0, folds=[0])
    assert np.isnan(explain.specialisation(model, corpus, np.arange(9)).mean_overlap).all()
