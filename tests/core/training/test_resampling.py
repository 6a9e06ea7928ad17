"""Fresh folds: the same posts and the same hold-out, split again with another seed."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparse_evidence.core.config import SplitConfig
from sparse_evidence.core.corpus.synthetic import SyntheticSource
from sparse_evidence.core.errors import SplitError
from sparse_evidence.core.splits import Folds, kfold, split
from sparse_evidence.core.training.resampling import fresh_folds, inner_folds, outer_folds

CORPUS = SyntheticSource(posts=240, criteria=3, sentences_mean=4.0, min_positives=30).load(Path())
NAMES = [criterion.name for criterion in CORPUS.criteria]
CONFIG = SplitConfig(folds=4, seed=5)
FOLDS = split(CORPUS.groups, CORPUS.labels, CONFIG, criteria=NAMES)


@given(st.integers(-(2**40), 2**40))
@settings(max_examples=15, deadline=None)
def test_the_holdout_stays_and_every_other_post_is_validated_once(seed):
    fresh = fresh_folds(CORPUS, FOLDS, seed)
    assert fresh.count == FOLDS.count
    np.testing.assert_array_equal(fresh.assignment == -1, FOLDS.assignment == -1)
    validated = np.concatenate([fresh.validation(fold) for fold in range(fresh.count)])
    np.testing.assert_array_equal(np.sort(validated), np.flatnonzero(FOLDS.assignment >= 0))


@pytest.mark.parametrize("seed", [101, 102, 103])
def test_groups_stay_whole_and_every_fold_has_both_classes(seed):
    fresh = fresh_folds(CORPUS, FOLDS, seed)
    for fold in range(fresh.count):
        train, validation = fresh.train(fold), fresh.validation(fold)
        assert not {CORPUS.groups[row] for row in train} & {CORPUS.groups[row] for row in validation}
        for column in range(3):
            assert set(CORPUS.labels[validation, column]) == {0, 1}


def test_positives_are_balanced():
    fresh = fresh_folds(CORPUS, FOLDS, 7)
    counts = np.array([CORPUS.labels[fresh.validation(fold)].sum(axis=0) for fold in range(4)])
    searched = CORPUS.labels[FOLDS.assignment >= 0].sum(axis=0)
    assert np.abs(counts - searched / 4).max() <= 3


def test_every_seed_gives_other_folds_and_the_same_seed_the_same():
    marks = {fresh_folds(CORPUS, FOLDS, seed).fingerprint(CORPUS.post_ids) for seed in range(100, 106)}
    assert len(marks) == 6
    assert FOLDS.fingerprint(CORPUS.post_ids) not in marks
    first, second = fresh_folds(CORPUS, FOLDS, 3), fresh_folds(CORPUS, FOLDS, 3)
    np.testing.assert_array_equal(first.assignment, second.assignment)


def test_the_seed_of_the_search_gives_its_own_folds():
    """A study's folds are those of its seed over all posts outside the hold-out."""
    np.testing.assert_array_equal(fresh_folds(CORPUS, FOLDS, CONFIG.seed).assignment, FOLDS.assignment)


def test_fresh_folds_depend_on_the_search_posts_alone():
    """Neither the texts nor the labels of the hold-out have an influence."""
    rows = np.flatnonzero(FOLDS.assignment >= 0)
    part = CORPUS.subset(rows)
    alone = kfold(part.groups, part.labels, 4, 11, criteria=NAMES)
    np.testing.assert_array_equal(fresh_folds(CORPUS, FOLDS, 11).assignment[rows], alone.assignment)


def test_fresh_folds_of_fresh_folds_depend_only_on_the_last_seed():
    twice = fresh_folds(CORPUS, fresh_folds(CORPUS, FOLDS, 1), 2)
    np.testing.assert_array_equal(twice.assignment, fresh_folds(CORPUS, FOLDS, 2).assignment)


def test_without_a_holdout_all_posts_are_split():
    whole = kfold(CORPUS.groups, CORPUS.labels, 3, 0, criteria=NAMES)
    assert (fresh_folds(CORPUS, whole, 1).assignment >= 0).all()


def test_posts_that_cannot_be_split_are_refused():
    small = CORPUS.subset(np.arange(6))
    with pytest.raises(SplitError, match="5 folds were requested, but the 6 posts"):
        fresh_folds(small, Folds(np.arange(6) % 5, 5), 0)


def test_folds_of_another_corpus_are_a_mistake_of_the_caller():
    with pytest.raises(AssertionError, match="other posts"):
        fresh_folds(CORPUS.subset(np.arange(20)), FOLDS, 0)


# --- nested cross-validation ------------------------------------------------------------------------------------------


def test_outer_folds_divide_the_posts_of_the_search():
    outer = outer_folds(CORPUS, FOLDS, 3, CONFIG.seed)
    assert outer.count == 3
    np.testing.assert_array_equal(outer.assignment == -1, FOLDS.assignment == -1)
    for fold in range(3):
        train, validation = outer.train(fold), outer.validation(fold)
        assert not {CORPUS.groups[row] for row in train} & {CORPUS.groups[row] for row in validation}
        assert all(set(CORPUS.labels[validation, column]) == {0, 1} for column in range(3))
    other = outer_folds(CORPUS, FOLDS, 3, CONFIG.seed + 1)
    assert (other.assignment != outer.assignment).any()


def test_the_posts_of_an_outer_fold_are_in_no_inner_fold():
    outer = outer_folds(CORPUS, FOLDS, 3, CONFIG.seed)
    seen = []
    for fold in range(3):
        inner = inner_folds(CORPUS, FOLDS, outer, fold, CONFIG.seed)
        assert inner.count == FOLDS.count
        assert (inner.assignment[outer.validation(fold)] == -1).all()
        np.testing.assert_array_equal(np.flatnonzero(inner.assignment >= 0), outer.train(fold))
        seen += np.flatnonzero((inner.assignment == -1) & (FOLDS.assignment >= 0)).tolist()
    assert sorted(seen) == np.flatnonzero(FOLDS.assignment >= 0).tolist(), "every post is left out once"


def test_folds_that_cannot_be_made_are_refused_in_a_sentence():
    with pytest.raises(SplitError, match="cannot be divided into 150 outer folds: 150 folds were requested"):
        outer_folds(CORPUS, FOLDS, 150, 0)
    few = Folds(np.where(np.arange(240) < 30, np.arange(240) % 4, -1), 4)
    outer = Folds(np.where(few.assignment >= 0, (CORPUS.labels[:, 0] == 1).astype(int), -1), 2)
    with pytest.raises(SplitError, match="without outer fold 2 of 2, the posts cannot be divided into the 4 folds of"):
        inner_folds(CORPUS, few, outer, 1, 0)
