"""A corpus checks itself, hashes itself, and hands out parts of itself."""

from dataclasses import replace

import numpy as np
import pytest

from sparse_evidence.core.corpus.data import (
    DEPRESSION,
    UNLABELLED,
    Corpus,
    Criterion,
    Evidence,
    duplicates_across_groups,
)
from sparse_evidence.core.errors import DataError

# Studies store fingerprints, so they stay.
PINNED = "7fae85ac4aab"


def make(**changes):
    given = {
        "name": "tiny",
        "post_ids": ("a", "b", "c"),
        "posts": ("One. Two.", "Three.", "Four!"),
        "criteria": (Criterion("x", "is x"), Criterion("y", "is y")),
        "labels": np.array([[1, 0], [0, UNLABELLED], [1, UNLABELLED]]),
        "groups": ("g", "g", "h"),
        "evidence": (Evidence(0, 0, 0, 4), Evidence(2, 0, 0, 5)),
    }
    return Corpus(**{**given, **changes})


def test_labels_are_small_read_only_and_our_own():
    theirs = np.zeros((3, 2), dtype=np.int64)
    corpus = make(labels=theirs)
    theirs[0, 0] = 1
    assert corpus.labels.dtype == np.int8
    assert corpus.labels.sum() == 0
    with pytest.raises(ValueError, match="read-only"):
        corpus.labels[0, 0] = 1


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"post_ids": ("a", "b")}, "2 post_ids for 3 posts"),
        ({"groups": ("g",)}, "1 groups for 3 posts"),
        ({"labels": np.zeros((2, 3))}, "labels of shape (2, 3) for 3 posts and 2 criteria"),
        ({"labels": np.full((3, 2), 2)}, "neither 1 nor 0 nor -1"),
        ({"labels": np.full((3, 2), 257)}, "neither 1 nor 0 nor -1"),
        ({"labels": np.full((3, 2), np.nan)}, "neither 1 nor 0 nor -1"),
        ({"post_ids": ("a", "b", "a")}, "post id 'a' occurs more than once"),
        ({"criteria": (Criterion("x", "1"), Criterion("x", "2"))}, "criterion 'x' occurs more than once"),
        ({"evidence": (Evidence(3, 0, 0, 1),)}, "evidence for post 3 and criterion 0"),
        ({"evidence": (Evidence(0, 0, 4, 99),)}, "evidence 4:99 lies outside post 'a'"),
        ({"evidence": (Evidence(0, 0, 4, 4),)}, "evidence 4:4 lies outside"),
    ],
)
def test_what_does_not_fit_is_refused(changes, expected):
    with pytest.raises(DataError) as refused:
        make(**changes)
    assert expected in str(refused.value)


def test_every_mistake_is_told_at_once():
    with pytest.raises(DataError) as refused:
        make(post_ids=("a", "a", "a"), labels=np.full((3, 2), 7))
    assert len(refused.value.problems) == 2


@pytest.mark.parametrize(
    "changes",
    [
        {"post_ids": ("a", "b", "d")},
        {"posts": ("One. Two.", "Three.", "Four?")},
        {"posts": ("One. Two.T", "hree.", "Four!"), "evidence": ()},
        {"criteria": (Criterion("x", "is x"), Criterion("z", "is y"))},
        {"criteria": (Criterion("x", "is x"), Criterion("y", "is z"))},
        {"labels": np.array([[1, 0], [0, 0], [1, UNLABELLED]])},
        {"groups": ("g", "h", "h")},
    ],
)
def test_the_fingerprint_sees_everything_that_is_learned_from(changes):
    assert make(**changes).fingerprint() != make().fingerprint()


def test_the_fingerprint_ignores_name_notes_and_evidence():
    assert make(name="other", notes=("hello",), evidence=()).fingerprint() == make().fingerprint()
    assert make().fingerprint()[:12] == PINNED


def test_a_subset_takes_its_evidence_along():
    part = make().subset(np.array([2, 0]))
    assert part.post_ids == ("c", "a")
    assert part.labels.tolist() == [[1, UNLABELLED], [1, 0]]
    assert part.evidence == (Evidence(0, 0, 0, 5), Evidence(1, 0, 0, 4))
    assert part.criteria == make().criteria
    assert make().subset(np.array([True, False, True])).post_ids == ("a", "c")
    assert len(make().subset([])) == 0


@pytest.mark.parametrize("index", [[3], [-1], [[0, 1]], [True, False]])
def test_a_subset_of_posts_that_do_not_exist_is_refused(index):
    with pytest.raises(IndexError):
        make().subset(np.array(index))


def test_no_representation_shows_a_post():
    assert repr(make()) == "Corpus('tiny', 3 posts, 2 criteria, 2 groups)"


def test_prevalence_counts_judged_posts_only_and_nan_means_none():
    corpus = make()
    assert corpus.positives.tolist() == [2, 0]
    np.testing.assert_allclose(corpus.prevalence, [2 / 3, 0])
    nobody = replace(corpus, labels=np.full((3, 2), UNLABELLED))
    assert np.isnan(nobody.prevalence).all()


def test_duplicates_are_found_across_groups_only():
    corpus = Corpus(
        name="copies",
        post_ids=tuple("abcdef"),
        posts=("I am so tired.", "i am  so\ntired.", "I am so tired.", "Other.", "Other.", "I am so tired!"),
        criteria=(),
        labels=np.zeros((6, 0)),
        groups=("g", "g", "h", "g", "g", "h"),
    )
    assert duplicates_across_groups(corpus) == [(0, 2), (1, 2)]


def test_the_home_case_has_ten_criteria():
    assert len({criterion.name for criterion in DEPRESSION}) == 10
