"""Splits of many different groups, where only the best exchanges are tried."""

import numpy as np
import pytest

from sparse_evidence.core.splits import kfold, partition

GROUPS, CRITERIA = 700, 8


@pytest.fixture(scope="module")
def labels():
    """Almost every post has different labels, so each part has more kinds of groups than are tried."""
    source = np.random.default_rng(0)
    labels = source.choice((-1, 0, 1), (GROUPS, CRITERIA), p=(0.3, 0.5, 0.2)).astype(np.int8)
    assert len(np.unique(labels, axis=0)) > 2 * 256
    return labels


@pytest.mark.parametrize("shares", [(0.5, 0.5), (0.8, 0.2)])
def test_each_part_gets_its_share_of_every_class(shares, labels):
    part = partition([str(row) for row in range(GROUPS)], labels, shares, 0)
    for number, share in enumerate(shares):
        rows = part == number
        assert rows.sum() == pytest.approx(share * GROUPS, abs=1)
        for value in (0, 1):
            target = share * (labels == value).sum(axis=0)
            assert np.abs((labels[rows] == value).sum(axis=0) - target).max() <= 2


def test_the_folds_of_a_large_corpus_follow_from_the_labels_alone(labels):
    criteria = [f"c{column}" for column in range(CRITERIA)]
    first = kfold([f"user {row}" for row in range(GROUPS)], labels, 2, 3, criteria=criteria)
    second = kfold([f"{row * 7919 % 10007}" for row in range(GROUPS)], labels.copy(), 2, 3, criteria=criteria)
    np.testing.assert_array_equal(first.assignment, second.assignment)
