"""Attributions: contributions are differences of real logits, and planted evidence ranks first."""

import numpy as np
import pytest
import torch

from sparse_evidence.core import explain
from sparse_evidence.core.config import (
    AbmilConfig,
    BCEConfig,
    CandidateConfig,
    InstanceConfig,
    IrisConfig,
    LinearConfig,
    RetrievalConfig,
    TrainingConfig,
)
from sparse_evidence.core.features.bags import ChunkBags
from sparse_evidence.core.features.embeddings import mean_embeddings
from sparse_evidence.core.features.views import EmbeddedCorpus
from sparse_evidence.core.models.iris import Iris
from sparse_evidence.core.models.linear import Linear
from sparse_evidence.core.splits import Folds
from sparse_evidence.core.training.stack import make_stack

DIM, POSTS, CRITERIA, CHUNKS = 24, 120, 2, 7
CONFIGS = [
    IrisConfig(hidden=16, num_queries=2, k_retrieved=2, dropout=0.0),
    AbmilConfig(hidden=16, dropout=0.0),
    InstanceConfig(hidden=16, dropout=0.0),
    LinearConfig(C=100.0),
    RetrievalConfig(top_k=2),
]


@pytest.fixture(scope="module")
def planted():
    """A corpus where a single chunk decides, and a mask of those chunks, bool [chunks, criteria]."""
    generator = np.random.default_rng(0)
    counts = generator.integers(1, CHUNKS + 1, POSTS)
    offsets = np.concatenate([[0], np.cumsum(counts)])
    embeddings = generator.standard_normal((counts.sum(), DIM)).astype(np.float32)
    embeddings[:, :CRITERIA] = 0
    labels = (generator.random((POSTS, CRITERIA)) < 0.4).astype(np.int8)
    evidence = np.zeros((len(embeddings), CRITERIA), dtype=bool)
    for post, criterion in zip(*np.nonzero(labels), strict=True):
        chunk = generator.integers(offsets[post], offsets[post + 1])
        embeddings[chunk, criterion] = 6.0
        evidence[chunk, criterion] = True
    embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)
    criteria = np.eye(CRITERIA, DIM, dtype=np.float32)
    return EmbeddedCorpus(embeddings, offsets, criteria, labels), evidence


@pytest.fixture(scope="module", params=CONFIGS, ids=lambda config: config.name)
def trained(request, planted):
    corpus, _ = planted
    folds = Folds(np.arange(POSTS) % 2, 2)
    candidate = CandidateConfig(request.param, TrainingConfig(batch_size=20, learning_rate=0.02), BCEConfig())
    stack = make_stack(corpus, folds, [0, 1], candidate, seed=0)
    for _ in range(stack.max_epochs or 20):
        stack.advance()
    return stack, folds


def test_contribution_is_the_logit_minus_the_logit_without_the_chunk(planted, trained):
    corpus, _ = planted
    stack, _ = trained
    posts = [np.array([5, 17, 2]), np.array([40, 5])]
    for fold, attribution in enumerate(explain.attribute(stack.model, corpus, posts)):
        np.testing.assert_array_equal(attribution.posts, posts[fold])
        np.testing.assert_allclose(attribution.logits, stack.predict(posts)[fold], rtol=1e-4, atol=1e-4)
        for row, post in enumerate(posts[fold]):
            chunks = np.arange(corpus.offsets[post], corpus.offsets[post + 1])
            np.testing.assert_array_equal(attribution.chunks[row, : len(chunks)], chunks)
            assert (attribution.chunks[row, len(chunks) :] == -1).all()
            assert np.isnan(attribution.contribution[row, :, len(chunks) :]).all()
            for position in range(len(chunks)):
                others = np.delete(chunks, position)
                expected = attribution.logits[row] - logits_of_chunks(stack.model, corpus, fold, others)
                np.testing.assert_allclose(attribution.contribution[row, :, position], expected, rtol=1e-3, atol=1e-3)


def logits_of_chunks(model, corpus, fold, rows):
    """Logits of a post that consists of these chunks."""
    if not len(rows):
        return model.bias[fold].detach().numpy()
    vectors, offsets = corpus.embeddings[rows], np.array([0, len(rows)])
    with torch.no_grad():
        if isinstance(model, Linear):
            means = torch.from_numpy(mean_embeddings(vectors, offsets)).expand(2, 1, -1)
            return model(means)[fold, 0].numpy()
        return model(ChunkBags(vectors, offsets).batch(np.zeros((2, 1), int)))[fold, 0].numpy()


def test_attention_sums_to_one(planted, trained):
    corpus, _ = planted
    for attribution in explain.attribute(trained[0].model, corpus, [np.arange(POSTS)] * 2):
        np.testing.assert_allclose(attribution.attention.sum(-1), 1.0, rtol=1e-4)
        assert (attribution.attention.swapaxes(1, 2)[attribution.chunks < 0] == 0).all()


def test_a_ranking_contains_every_chunk_once(planted, trained):
    corpus, _ = planted
    attribution = explain.attribute(trained[0].model, corpus, [np.arange(POSTS)] * 2)[0]
    ranking = attribution.ranking()
    for row in range(POSTS):
        for criterion in range(CRITERIA):
            assert sorted(ranking[row, criterion]) == sorted(attribution.chunks[row])
            contribution = attribution.contribution[row, criterion]
            assert contribution[attribution.chunks[row] == ranking[row, criterion, 0]] == np.nanmax(contribution)


def test_evidence_ranks_first_in_validation_posts(planted, trained):
    corpus, evidence = planted
    stack, folds = trained
    attributions = explain.attribute(stack.model, corpus, [folds.validation(fold) for fold in range(2)])
    attribution = explain.concatenate(attributions)
    np.testing.assert_array_equal(attribution.posts, np.arange(POSTS))
    hits = explain.evidence_hits(attribution, evidence, corpus.labels)
    assert len(hits.hit) == corpus.labels.sum()
    assert hits.rate > (0.7 if isinstance(stack.model, Linear) else 0.9)
    counts = np.diff(corpus.offsets)[np.nonzero(corpus.labels)[0]]
    assert hits.expected == pytest.approx(np.mean(1 / counts))
    assert hits.expected < 0.5
    by_attention = explain.evidence_hits(attribution, evidence, corpus.labels, by="attention")
    if not isinstance(stack.model, Linear):  # whose attention is uniform
        assert by_attention.rate > hits.expected


def test_without_evidence_the_rates_are_nan(planted, trained):
    corpus, evidence = planted
    attribution = explain.attribute(trained[0].model, corpus, [np.arange(4)] * 2)[0]
    hits = explain.evidence_hits(attribution, np.zeros_like(evidence), corpus.labels)
    assert np.isnan(hits.rate)
    assert np.isnan(hits.expected)


def test_the_ranking_of_linear_is_that_of_chunk_times_weight(planted):
    corpus, evidence = planted
    folds = Folds(np.arange(POSTS) % 2, 2)
    stack = make_stack(
        corpus, folds, [0, 1], CandidateConfig(LinearConfig(C=100.0), TrainingConfig(), BCEConfig()), seed=0
    )
    stack.advance()
    validation = [folds.validation(fold) for fold in range(2)]
    attribution = explain.concatenate(explain.attribute(stack.model, corpus, validation))
    weight = stack.model.weight.detach().numpy()
    for post in (3, 8, 90):
        chunks = np.arange(corpus.offsets[post], corpus.offsets[post + 1])
        score = corpus.embeddings[chunks] @ weight[folds.assignment[post], :, 0]
        np.testing.assert_array_equal(attribution.ranking()[post, 0, : len(chunks)], chunks[np.argsort(-score)])
    assert explain.evidence_hits(attribution, evidence, corpus.labels).rate > 0.9


def test_specialisation_distinguishes_equal_from_different_queries(planted):
    corpus, _ = planted
    config = IrisConfig(hidden=8, num_queries=3, k_retrieved=2, query_noise=0.0)
    model = Iris(config, torch.from_numpy(corpus.criteria), torch.zeros(2, CRITERIA), seed=0, folds=[0, 1])
    posts = np.flatnonzero(np.diff(corpus.offsets) > 3)
    equal = explain.specialisation(model, corpus, posts, fold=1, k=5)
    np.testing.assert_allclose(equal.overlap, 1.0)
    np.testing.assert_allclose(equal.cosine, 1.0, rtol=1e-5)
    with torch.no_grad():
        model.queries[1] = torch.eye(DIM)[10]
        model.queries[1, :, 1] *= -1
    different = explain.specialisation(model, corpus, posts, fold=1, k=5)
    assert (different.overlap[:, 0, 1] == 0).all()
    assert (different.overlap[:, 0, 2] == 1).all()
    np.testing.assert_allclose(different.mean_overlap, (different.overlap.sum((1, 2)) - 3) / 6, rtol=1e-5)
    assert different.nearest.chunks.shape == (CRITERIA, 3, 5)
    best = np.argsort(-corpus.embeddings[:, 10])[:5]
    np.testing.assert_array_equal(different.nearest.chunks[0, 0], best)
    assert not set(different.nearest.chunks[0, 0]) & set(different.nearest.chunks[0, 1])


def test_a_single_query_has_no_overlap(planted):
    corpus, _ = planted
    config = IrisConfig(hidden=8, num_queries=1)
    model = Iris(config, torch.from_numpy(corpus.criteria), torch.zeros(1, CRITERIA), seed=0, folds=[0])
    assert np.isnan(explain.specialisation(model, corpus, np.arange(9)).mean_overlap).all()
