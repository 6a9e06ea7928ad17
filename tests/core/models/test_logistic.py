"""The solver: against scikit-learn, against its own conditions of optimality, and where a problem is extreme."""

import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import expit
from sklearn.linear_model import LogisticRegression

from sparse_evidence.core.models.logistic import Solution, solve, solve_path
from sparse_evidence.core.seeding import numpy_generator

SHAPES = [(60, 200), (200, 60), (80, 80), (300, 1)]
shapes = pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: f"{shape[0]} rows of {shape[1]}")


def problem(rows, features, criteria=3, unlabelled=0.0, seed=0):
    """Rows off the origin and on different scales, rare to common positives that depend on them."""
    source = numpy_generator(seed, "logistic")
    x = source.standard_normal((rows, features)) * source.uniform(0.1, 2, features) + 1.5
    weights = source.standard_normal((features, criteria)) / np.sqrt(features)
    noisy = (x - x.mean(0)) @ weights + source.standard_normal((rows, criteria))
    labels = (noisy > np.quantile(noisy, np.linspace(0.5, 0.95, criteria), axis=0).diagonal()).astype(np.int8)
    labels[source.random(labels.shape) < unlabelled] = -1
    return x, labels


def probabilities(solution, rows):
    return expit(solution.logits(rows))


def gradient(solution, x, y, strength):
    """The gradient of the objective by the weights and the intercept of one criterion, from its formula."""
    known = y >= 0
    sign = 2.0 * y[known] - 1
    pull = strength * sign * expit(-sign * solution.logits(x)[known, 0])
    return np.append(solution.weight[:, 0] - x[known].T @ pull, pull.sum())


@shapes
@pytest.mark.parametrize("strength", [0.001, 1.0, 100.0])
@pytest.mark.parametrize("unlabelled", [0.0, 0.3])
def test_probabilities_are_those_of_scikit_learn(shape, strength, unlabelled):
    x, labels = problem(*shape, unlabelled=unlabelled)
    ours = probabilities(solve(x, labels, strength), x)
    for criterion, y in enumerate(labels.T):
        known = y >= 0
        reference = LogisticRegression(C=strength, tol=1e-10, max_iter=10_000, solver="newton-cg")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # its line search reports that it cannot improve any more
            reference.fit(x[known], y[known])
        np.testing.assert_allclose(ours[:, criterion], reference.predict_proba(x)[:, 1], atol=1e-6)


@settings(deadline=None, max_examples=60)
@given(
    st.integers(0, 999), st.integers(2, 30), st.integers(1, 30),
    st.sampled_from([1e-6, 0.1, 10.0, 1e4]), st.sampled_from([1e-4, 1.0, 100.0]),
)  # fmt: skip
def test_at_the_solution_the_gradient_is_zero(seed, rows, features, strength, scale):
    x, labels = problem(rows, features, criteria=1, seed=seed)
    x *= scale
    labels[0], labels[1] = 0, 1
    solution = solve(x, labels, strength)
    size = 1 + np.abs(solution.weight).max() + strength * np.abs(x).sum()
    assert np.abs(gradient(solution, x, labels[:, 0], strength)).max() < 1e-6 * size


@pytest.mark.parametrize("strength", [1.0, 1e3, 1e8])
@shapes
def test_separable_rows_and_a_single_positive_are_solved(shape, strength):
    """Without a penalty there would be no solution; plain Newton steps diverge."""
    x, labels = problem(*shape, criteria=2)
    labels[:, 0] = x[:, 0] > np.median(x[:, 0])
    labels[:, 1] = 0
    labels[7, 1] = 1
    solution = solve(x, labels, strength)
    assert np.isfinite(solution.weight).all()
    assert np.isfinite(solution.bias).all()
    for criterion in range(2):
        alone = Solution(solution.weight[:, [criterion]], solution.bias[[criterion]])
        size = 1 + np.abs(alone.weight).max()
        assert np.abs(gradient(alone, x, labels[:, criterion], strength)).max() < 1e-6 * size


@pytest.mark.parametrize(
    ("labels", "expected"),
    [([1, 1, 1], 3.5 / 4), ([0, 0, 0], 0.5 / 4), ([-1, -1, 1], 1.5 / 2), ([-1, -1, -1], 0.5)],
)
def test_a_criterion_of_one_class_predicts_it_as_its_smoothed_prior(labels, expected):
    """And leaves the other criteria alone."""
    x, other = problem(3, 5, criteria=1)
    other[:, 0] = [0, 1, 1]
    both = solve(x, np.stack([labels, other[:, 0]], axis=1).astype(np.int8), 10.0)
    np.testing.assert_allclose(probabilities(both, x)[:, 0], expected)
    np.testing.assert_allclose(both.weight[:, [1]], solve(x, other, 10.0).weight, atol=1e-9)


def test_unlabelled_rows_do_not_count():
    x, labels = problem(90, 40, unlabelled=0.4)
    changed = x.copy()
    y = labels[:, 1]
    changed[y < 0] = 50.0
    together, alone = solve(x, labels, 3.0), solve(x[y >= 0], labels[y >= 0][:, [1]], 3.0)
    np.testing.assert_allclose(together.weight[:, 1], alone.weight[:, 0], atol=1e-8)
    np.testing.assert_allclose(solve(changed, labels, 3.0).weight[:, 1], alone.weight[:, 0], atol=1e-8)


@shapes
def test_a_path_has_the_solutions_of_its_parts(shape):
    x, labels = problem(*shape, unlabelled=0.1)
    strengths = [0.01, 1.0, 30.0, 0.1]
    for strength, solution in zip(strengths, solve_path(x, labels, strengths), strict=True):
        alone = solve(x, labels, strength)
        np.testing.assert_allclose(probabilities(solution, x), probabilities(alone, x), atol=1e-8)


def test_features_that_are_constant_or_repeated_do_no_harm():
    x, labels = problem(50, 4)
    repeated = np.concatenate([x, np.full((50, 1), 7.0), x], axis=1)
    doubled, single = solve(repeated, labels, 1.0), solve(x, labels, 2.0)  # two halves of a weight cost half as much
    np.testing.assert_allclose(probabilities(doubled, repeated), probabilities(single, x), atol=1e-8)
    constant = solve(np.ones((50, 3)), labels, 1.0)
    np.testing.assert_allclose(probabilities(constant, np.ones((1, 3)))[0], labels.mean(0), atol=1e-8)
