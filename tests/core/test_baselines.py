"""Baselines: the exact score of chance, predictions that no validation post has a say in, and the choice of C."""

import itertools
import math

import numpy as np
import pytest
from corpora import planted
from sklearn.linear_model import LogisticRegression

from sparse_evidence.core import baselines, metrics
from sparse_evidence.core.features.embeddings import mean_embeddings
from sparse_evidence.core.features.views import EmbeddedCorpus
from sparse_evidence.core.splits import Folds, kfold

POSTS = 120
GROUPS = [f"author {post // 2}" for post in range(POSTS)]


@pytest.fixture(scope="module")
def corpus():
    return planted(posts=POSTS, unlabelled=0.1)


@pytest.fixture(scope="module")
def folds(corpus):
    return kfold(GROUPS, corpus.labels, 3, 0, criteria=["a", "b", "c"], include=np.arange(POSTS) >= 8)


# ---- chance -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("positives", "posts"), [(m, n) for n in range(1, 8) for m in range(1, n + 1)])
def test_the_expected_average_precision_is_the_mean_over_all_rankings(positives, posts):
    ranking = np.arange(posts, 0.0, -1)
    values = []
    for places in itertools.combinations(range(posts), positives):
        labels = np.zeros(posts, np.int8)
        labels[list(places)] = 1
        values.append(metrics.average_precision(labels, ranking))
    assert baselines.random_average_precision(positives, posts) == pytest.approx(np.mean(values))


def test_chance_is_the_mean_over_folds_and_criteria_with_a_positive():
    labels = np.array([[1, 0], [0, 0], [-1, 0], [1, 1], [1, 0], [0, 0], [0, 0]], np.int8)
    folds = Folds(np.array([0, 0, 0, 1, 1, 1, -1]), 2)
    first, second = baselines.random_average_precision(1, 2), baselines.random_average_precision(2, 3)
    expected = (first + (second + baselines.random_average_precision(1, 3)) / 2) / 2
    assert baselines.chance(labels, folds, "average_precision") == pytest.approx(expected)
    assert baselines.chance(labels, folds, "auroc") == 0.5
    assert math.isnan(baselines.random_average_precision(0, 5))


def test_chance_for_the_brier_score_is_the_training_prevalence():
    labels = np.array([[1], [0], [0], [0], [1], [1]], np.int8)
    folds = Folds(np.array([0, 0, 0, 1, 1, 1]), 2)
    first = (1 / 3 * (1 / 3) ** 2) + 2 / 3 * (2 / 3) ** 2  # a prevalence of 2/3 in training, of 1/3 in validation
    assert baselines.chance(labels, folds, "brier") == pytest.approx(first)


# ---- predictions ------------------------------------------------------------------------------------------------


def test_every_post_in_a_fold_is_predicted_and_no_other(corpus, folds):
    predictions = baselines.predict(corpus, GROUPS, folds, "average_precision")
    assert list(predictions) == ["linear", "retrieval", "zero_shot"]
    for predicted in predictions.values():
        assert predicted.dtype == np.float64
        assert np.isnan(predicted[:8]).all()
        assert np.isfinite(predicted[8:]).all()
    assert list(baselines.predict(corpus, GROUPS, folds, "brier")) == ["linear", "retrieval"]


def test_no_baseline_sees_the_labels_of_the_fold_it_predicts_or_of_the_holdout(corpus, folds):
    before = baselines.predict(corpus, GROUPS, folds, "average_precision")
    labels, rows = corpus.labels.copy(), folds.validation(1)
    labels[rows], labels[:8] = 1 - labels[rows].clip(0), 1
    changed = EmbeddedCorpus(corpus.embeddings, corpus.offsets, corpus.criteria, labels)
    after = baselines.predict(changed, GROUPS, folds, "average_precision")
    for name in before:
        np.testing.assert_array_equal(before[name][rows], after[name][rows])
    assert not np.array_equal(before["linear"][folds.validation(0)], after["linear"][folds.validation(0)])


def test_linear_is_the_regression_with_the_c_that_is_best_inside_the_training_part(corpus, folds):
    """Everything again with scikit-learn, in loops."""
    means = mean_embeddings(corpus.embeddings, corpus.offsets).astype(np.float64)

    def fitted(strength, train, rows):
        columns = []
        for y in corpus.labels.T:
            known = train[y[train] >= 0]
            model = LogisticRegression(C=strength, tol=1e-8, max_iter=10_000).fit(means[known], y[known])
            columns.append(model.predict_proba(means[rows])[:, 1])
        return np.stack(columns, axis=1)

    predicted = baselines.predict(corpus, GROUPS, folds, "auroc")["linear"]
    chosen = set()
    for fold in range(3):
        inner = kfold(
            GROUPS, corpus.labels, 3, 0, criteria=["a", "b", "c"], include=np.isin(np.arange(POSTS), folds.train(fold))
        )
        values = []
        for strength in baselines.LINEAR_STRENGTHS:
            parts = [(inner.train(number), inner.validation(number)) for number in range(3)]
            scores = [metrics.score("auroc", corpus.labels[v], fitted(strength, t, v)) for t, v in parts]
            values.append(np.mean(scores))
        best = baselines.LINEAR_STRENGTHS[int(np.argmax(values))]
        chosen.add(best)
        rows = folds.validation(fold)
        np.testing.assert_allclose(predicted[rows], fitted(best, folds.train(fold), rows), atol=1e-4)
    assert chosen <= set(baselines.LINEAR_STRENGTHS)


def test_zero_shot_is_the_mean_of_the_three_nearest_chunks(corpus, folds):
    predicted = baselines.predict(corpus, GROUPS, folds, "auroc")["zero_shot"]
    for post in range(8, 40):
        cosines = corpus.embeddings[corpus.offsets[post] : corpus.offsets[post + 1]] @ corpus.criteria.T
        highest = -np.sort(-cosines, axis=0)[:3]
        highest = np.concatenate([highest, np.repeat(highest[-1:], 3 - len(highest), axis=0)])
        np.testing.assert_allclose(predicted[post], highest.mean(0), atol=1e-5)


def test_reading_the_chunks_beats_the_mean_and_chance_where_one_chunk_decides(corpus, folds):
    predictions = baselines.predict(corpus, GROUPS, folds, "average_precision")
    values = baselines.scores(predictions, corpus.labels, folds, "average_precision")
    assert values["retrieval"] > values["linear"] > values["chance"] + 0.1
    assert values["zero_shot"] > values["chance"] + 0.2


def test_rare_criteria_and_few_groups_have_baselines_too():
    """A positive in fewer groups than inner folds; a training part of fewer groups than that; one class."""
    corpus = planted(posts=24)
    labels = corpus.labels.copy()
    labels[:, 0] = 0
    labels[[3, 14], 0] = 1
    labels[:, 2] = 0
    rare = EmbeddedCorpus(corpus.embeddings, corpus.offsets, corpus.criteria, labels)
    folds = Folds(np.arange(24) // 12, 2)
    for groups in ([str(post) for post in range(24)], [str(post // 6) for post in range(24)]):
        for metric in ("average_precision", "auroc", "brier"):
            for name, predicted in baselines.predict(rare, groups, folds, metric).items():
                assert np.isfinite(predicted).all(), name
                if name != "zero_shot":
                    assert (predicted[:, 2] < 0.1).all()


# ---- scores -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("metric", list(metrics.METRICS))
def test_scores_are_means_over_the_folds(metric, corpus, folds):
    predictions = baselines.predict(corpus, GROUPS, folds, metric)
    values = baselines.scores(predictions, corpus.labels, folds, metric)
    for name, predicted in predictions.items():
        for fold, value in enumerate(values[f"{name}_folds"]):
            rows = folds.validation(fold)
            assert value == metrics.score(metric, corpus.labels[rows], predicted[rows])
        assert values[name] == pytest.approx(np.mean(values[f"{name}_folds"]))
    assert values["chance"] == baselines.chance(corpus.labels, folds, metric)
    assert metrics.baselines(corpus.labels, folds.assignment).items() <= values.items()
