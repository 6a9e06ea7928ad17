"""Sanity checks: shuffled labels, swapped posts or identical posts must score no better than chance.

The posts are synthetic bags of words with planted evidence and decoys; a model has to find the sentence.
"""

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from corpora import synthetic

from sparse_evidence.core import metrics
from sparse_evidence.core.config import BCEConfig, CandidateConfig, ChunksConfig, IrisConfig, TrainingConfig
from sparse_evidence.core.features.chunks import chunk, share_within
from sparse_evidence.core.features.views import EmbeddedCorpus
from sparse_evidence.core.seeding import numpy_generator
from sparse_evidence.core.training.crossval import CrossValidation
from sparse_evidence.core.training.stack import FoldStack

IRIS = IrisConfig(num_queries=2, k_retrieved=3, hidden=16)
CONFIG = CandidateConfig(IRIS, TrainingConfig(epochs=12, patience=12, learning_rate=1e-2), BCEConfig())


def finished(corpus, folds):
    names = [f"c{number}" for number in range(corpus.labels.shape[1])]
    cv = CrossValidation(
        corpus, folds, CONFIG, stages=(3,), metric="average_precision", criteria=names, seed=0, device="cpu"
    )
    for _ in cv.epochs():
        pass
    return cv


@cache
def trained():
    corpus, folds = synthetic()
    return corpus, folds, finished(corpus, folds)


def test_the_model_learns():
    """Otherwise every test below would pass for a model that does nothing."""
    corpus, folds, cv = trained()
    areas = metrics.auroc_per_criterion(corpus.labels, cv.summary().probabilities)
    assert (areas > 0.7).all(), areas
    baselines = metrics.baselines(corpus.labels, folds.assignment)
    assert cv.summary().value > baselines["mean_prevalence"] + 0.3


def test_shuffled_predictions_have_an_auroc_of_one_half():
    """Predictions are shuffled among the posts of a criterion, so its AUROC is about .5."""
    corpus, _, cv = trained()
    probabilities = cv.summary().probabilities
    source = numpy_generator("shuffled")
    areas = [metrics.auroc_per_criterion(corpus.labels, source.permuted(probabilities, axis=0)) for _ in range(20)]
    assert np.abs(np.mean(areas, axis=0) - 0.5).max() < 0.04


def test_predictions_for_swapped_posts_have_an_auroc_of_one_half():
    """The trained model predicts other posts than the labels belong to: only the post itself carries the score."""
    corpus, folds, cv = trained()
    source = numpy_generator("swapped")
    areas = []
    for fold in range(3):
        rows = folds.validation(fold)
        for _ in range(5):
            posts = [folds.validation(other) for other in range(3)]
            posts[fold] = source.permutation(rows)
            logits = cv.stages[0].stack.predict(posts)[fold]
            areas.append(metrics.auroc_per_criterion(corpus.labels[rows], logits))
    assert np.abs(np.mean(areas, axis=0) - 0.5).max() < 0.06


def test_training_on_permuted_labels_scores_the_prevalence():
    """The model trains on permuted labels; the mean over several permutations, as a single one is noisy."""
    corpus, folds = synthetic(posts=180)
    areas, precisions = [], []
    for seed in range(3):
        order = numpy_generator(seed, "permuted").permutation(len(corpus.labels))
        permuted = EmbeddedCorpus(corpus.embeddings, corpus.offsets, corpus.criteria, corpus.labels[order])
        cv = finished(permuted, folds)
        for fold, logits in enumerate(cv.stages[0].logits[-1]):
            labels = permuted.labels[folds.validation(fold)]
            areas.append(metrics.auroc_per_criterion(labels, logits))
            precisions.append(metrics.average_precision_per_criterion(labels, logits) - (labels == 1).mean(0))
    assert abs(np.mean(areas) - 0.5) < 0.05
    assert abs(np.mean(precisions)) < 0.06


def test_identical_posts_score_the_baseline():
    """Identical posts cannot be ranked within a criterion; pooled, the score is that of the criterion-only baseline."""
    corpus, folds = synthetic(posts=180)
    one = np.repeat(corpus.embeddings[:1], len(corpus.labels), axis=0)
    offsets = np.arange(len(corpus.labels) + 1)
    cv = finished(EmbeddedCorpus(one, offsets, corpus.criteria, corpus.labels), folds)
    # equal posts at different places of a batch may differ in the last bit
    probabilities = cv.summary().probabilities.round(6)
    for fold in range(3):
        rows = folds.validation(fold)
        areas = metrics.auroc_per_criterion(corpus.labels[rows], probabilities[rows])
        np.testing.assert_allclose(areas, 0.5, atol=1e-6)
        prevalence = (corpus.labels[rows] == 1).mean(0)
        np.testing.assert_allclose(
            metrics.average_precision_per_criterion(corpus.labels[rows], probabilities[rows]), prevalence, atol=1e-6
        )
    baselines = metrics.baselines(corpus.labels, folds.assignment)
    assert cv.summary().value == pytest.approx(baselines["mean_prevalence"], abs=0.02)


def test_the_share_of_posts_within_k_chunks_is_known():
    """With k above its number of chunks, a post is retrieved completely; the share of such posts is reported."""
    chunks = chunk(["One. Two. Three.", "One. Two.", "One."], ChunksConfig())
    assert [share_within(chunks, k) for k in (1, 2, 3)] == [pytest.approx(1 / 3), pytest.approx(2 / 3), 1.0]


def test_queries_do_not_learn_from_a_single_retrieved_chunk():
    """Top-k has no gradient, so with k = 1 the queries of IRIS as published do not change (it is the method)."""
    corpus, folds = synthetic(posts=120)
    quiet = replace(IRIS, k_retrieved=1, diversity_weight=0.0, similarities=0)
    plain = replace(CONFIG, model=quiet, training=replace(CONFIG.training, weight_decay=0.0))
    stack = FoldStack(corpus, folds, [0], plain, seed=0)
    before = stack.model.queries.detach().clone()
    for _ in range(3):
        stack.advance()
    assert (stack.model.queries - before).abs().max() < 1e-5
