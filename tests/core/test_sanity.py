"""What a search deceives itself with: labels without meaning, posts without meaning, floors that read nothing.

Made-up posts as bags of words: real words, planted evidence, decoys. A model has to find the sentence.
"""

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from corpora import synthetic

from sparse_evidence.core import metrics
from sparse_evidence.core.config import BCEConfig, CandidateConfig, IrisConfig, TrainingConfig
from sparse_evidence.core.features.views import EmbeddedCorpus
from sparse_evidence.core.seeding import numpy_generator
from sparse_evidence.core.training.crossval import CrossValidation

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


def test_it_learns_to_read():
    """Without this, every test below would hold for a model that does nothing."""
    corpus, folds, cv = trained()
    areas = metrics.auroc_per_criterion(corpus.labels, cv.summary().probabilities)
    assert (areas > 0.7).all(), areas
    floors = metrics.baselines(corpus.labels, folds.assignment)
    assert cv.summary().value > floors["mean_prevalence"] + 0.3


def test_posts_shuffled_within_a_criterion_are_worth_half():
    """Which post belongs to which label is shuffled for the evaluation: AUROC of a criterion about .5."""
    corpus, _, cv = trained()
    probabilities = cv.summary().probabilities
    source = numpy_generator("shuffled")
    areas = [metrics.auroc_per_criterion(corpus.labels, source.permuted(probabilities, axis=0)) for _ in range(20)]
    assert np.abs(np.mean(areas, axis=0) - 0.5).max() < 0.04


def test_a_post_read_in_the_place_of_another_is_worth_half():
    """The trained model itself reads other posts than the labels are of: nothing but the post carries the score."""
    corpus, folds, cv = trained()
    source = numpy_generator("swapped")
    areas = []
    for place, fold in enumerate(range(3)):
        rows = folds.validation(fold)
        for _ in range(5):
            posts = [folds.validation(other) for other in range(3)]
            posts[place] = source.permutation(rows)
            logits = cv._stages[0].stack.predict(posts)[place]
            areas.append(metrics.auroc_per_criterion(corpus.labels[rows], logits))
    assert np.abs(np.mean(areas, axis=0) - 0.5).max() < 0.06


def test_permuted_labels_are_worth_the_prevalence():
    """Trained on labels that mean nothing; averaged over permutations, as one alone is noisy."""
    corpus, folds = synthetic(posts=180)
    areas, precisions = [], []
    for seed in range(3):
        order = numpy_generator(seed, "permuted").permutation(len(corpus.labels))
        nonsense = EmbeddedCorpus(corpus.embeddings, corpus.offsets, corpus.criteria, corpus.labels[order])
        cv = finished(nonsense, folds)
        last = [np.concatenate([logits[place] for logits in cv._stages[0].logits[-1:]]) for place in range(3)]
        for fold, logits in enumerate(last):
            labels = nonsense.labels[folds.validation(fold)]
            areas.append(metrics.auroc_per_criterion(labels, logits))
            precisions.append(metrics.average_precision_per_criterion(labels, logits) - (labels == 1).mean(0))
    assert abs(np.mean(areas) - 0.5) < 0.05
    assert abs(np.mean(precisions)) < 0.06


def test_a_model_that_reads_nothing_scores_its_floor():
    """All posts made equal: per criterion nothing can be ranked, pooled it is the criterion-only floor."""
    corpus, folds = synthetic(posts=180)
    one = np.repeat(corpus.embeddings[:1], len(corpus.labels), axis=0)
    offsets = np.arange(len(corpus.labels) + 1)
    cv = finished(EmbeddedCorpus(one, offsets, corpus.criteria, corpus.labels), folds)
    probabilities = cv.summary().probabilities
    for fold in range(3):
        rows = folds.validation(fold)
        areas = metrics.auroc_per_criterion(corpus.labels[rows], probabilities[rows])
        np.testing.assert_allclose(areas, 0.5, atol=1e-6)
        prevalence = (corpus.labels[rows] == 1).mean(0)
        np.testing.assert_allclose(
            metrics.average_precision_per_criterion(corpus.labels[rows], probabilities[rows]), prevalence, atol=1e-6
        )
    floor = metrics.baselines(corpus.labels, folds.assignment)
    assert cv.summary().value == pytest.approx(floor["mean_prevalence"], abs=0.02)


def test_retrieving_everything_is_said():
    """k above the number of chunks: the model then reads whole posts, and the share of such posts is reported."""
    from sparse_evidence.core.config import ChunksConfig
    from sparse_evidence.core.features.chunks import chunk, share_within

    chunks = chunk(["One. Two. Three.", "One. Two.", "One."], ChunksConfig())
    assert [share_within(chunks, k) for k in (1, 2, 3)] == [pytest.approx(1 / 3), pytest.approx(2 / 3), 1.0]


def test_one_chunk_retrieved_teaches_the_queries_nothing():
    """Top-k has no gradient: with k = 1 the queries stay where they started (so is the method, it is no bug)."""
    corpus, folds = synthetic(posts=120)
    from sparse_evidence.core.training.stack import FoldStack

    quiet = replace(IRIS, k_retrieved=1, diversity_weight=0.0)
    plain = replace(CONFIG, model=quiet, training=replace(CONFIG.training, weight_decay=0.0))
    stack = FoldStack(corpus, folds, [0], plain, seed=0)
    before = stack.trainer.model.queries.detach().clone()
    for _ in range(3):
        stack.advance()
    assert (stack.trainer.model.queries - before).abs().max() < 1e-5
