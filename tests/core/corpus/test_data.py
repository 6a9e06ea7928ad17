"""The corpus: validation, fingerprint, subsets, and texts that occur in two groups."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparse_evidence.core.corpus.data import (
    UNLABELLED,
    Corpus,
    Criterion,
    Evidence,
    duplicates_across_groups,
    note_duplicates,
)
from sparse_evidence.core.errors import DataError

# Studies store fingerprints, so they must not change.
PINNED = "7fae85ac4aab"


def make(**changes):
    defaults = {
        "name": "tiny",
        "post_ids": ("a", "b", "c"),
        "posts": ("One. Two.", "Three.", "Four!"),
        "criteria": (Criterion("x", "is x"), Criterion("y", "is y")),
        "labels": np.array([[1, 0], [0, UNLABELLED], [1, UNLABELLED]]),
        "groups": ("g", "g", "h"),
        "evidence": (Evidence(0, 0, 0, 4), Evidence(2, 0, 0, 5)),
    }
    return Corpus(**{**defaults, **changes})


def test_labels_are_a_read_only_copy_of_small_integers():
    original = np.zeros((3, 2), dtype=np.int64)
    corpus = make(labels=original)
    original[0, 0] = 1
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
def test_inconsistent_data_is_refused(changes, expected):
    with pytest.raises(DataError) as refused:
        make(**changes)
    assert expected in str(refused.value)


def test_all_inconsistencies_are_reported_together():
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
def test_the_fingerprint_depends_on_everything_that_a_model_learns_from(changes):
    assert make(**changes).fingerprint() != make().fingerprint()


def test_the_fingerprint_ignores_name_notes_and_evidence():
    assert make(name="other", notes=("hello",), evidence=()).fingerprint() == make().fingerprint()
    assert make().fingerprint()[:12] == PINNED


def test_the_fingerprint_depends_on_the_evidence_of_models_that_learn_from_it():
    marked, other = make(), make(evidence=make().evidence[:1])
    assert len({marked.fingerprint(), *(corpus.fingerprint(evidence=True) for corpus in (marked, other))}) == 3
    reordered = make(evidence=make().evidence[::-1])
    assert reordered.fingerprint(evidence=True) == marked.fingerprint(evidence=True)
    assert make(evidence=()).fingerprint(evidence=True)[:12] == PINNED


def test_a_subset_keeps_its_evidence():
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


def test_the_representation_shows_no_post():
    assert repr(make()) == "Corpus('tiny', 3 posts, 2 criteria, 2 groups)"


def test_prevalence_is_over_labelled_posts_and_nan_without_any():
    corpus = make()
    assert corpus.positives.tolist() == [2, 0]
    np.testing.assert_allclose(corpus.prevalence, [2 / 3, 0])
    unlabelled = replace(corpus, labels=np.full((3, 2), UNLABELLED))
    assert np.isnan(unlabelled.prevalence).all()


def test_duplicates_count_only_across_groups():
    corpus = Corpus(
        name="copies",
        post_ids=tuple("abcdef"),
        posts=("I am so tired.", "i am  so\ntired.", "I am so tired.", "Other.", "Other.", "I am so tired!"),
        criteria=(),
        labels=np.zeros((6, 0)),
        groups=("g", "g", "h", "g", "g", "h"),
    )
    assert duplicates_across_groups(corpus) == [(0, 2), (1, 2)]


def copies(posts, groups):
    names = tuple(f"p{number}" for number in range(len(posts)))
    return Corpus("copies", names, posts, (), np.zeros((len(posts), 0)), groups)


TEXTS = st.lists(st.tuples(st.sampled_from(["a", "A", " a", "b", "c"]), st.sampled_from("ghi")), min_size=1, max_size=9)


@given(TEXTS)
def test_the_duplicates_are_exactly_the_posts_with_a_copy_in_another_group(table):
    posts, groups = zip(*table, strict=True)
    pairs = duplicates_across_groups(copies(posts, groups))
    assert pairs == sorted(set(pairs))
    plain = [post.strip().lower() for post in posts]
    for left, right in pairs:
        assert left < right
        assert plain[left] == plain[right]
        assert groups[left] != groups[right]
    expected = {
        row
        for row in range(len(posts))
        for other in range(len(posts))
        if plain[row] == plain[other] and groups[row] != groups[other]
    }
    assert {row for pair in pairs for row in pair} == expected


def test_duplicates_are_noted_after_the_other_notes():
    corpus = replace(copies(("Same.", "same. ", "Other."), ("g", "h", "i")), notes=("first",))
    assert note_duplicates(corpus).notes == (
        "first",
        "2 posts share their text with a post of another group (for example p0 and p1)",
    )
    assert note_duplicates(corpus).fingerprint() == corpus.fingerprint()


def test_a_corpus_without_duplicates_stays_as_it_is():
    corpus = copies(("Same.", "Other."), ("g", "h"))
    assert note_duplicates(corpus) is corpus


@given(st.lists(st.integers(0, 2), unique=True), st.lists(st.integers(0, 2), unique=True))
def test_a_subset_of_a_subset_is_a_subset(first, second):
    corpus, second = make(), [row for row in second if row < len(first)]
    twice = corpus.subset(np.array(first, int)).subset(np.array(second, int))
    once = corpus.subset(np.array([first[row] for row in second], int))
    assert twice.fingerprint() == once.fingerprint()
    assert twice.evidence == once.evidence


def test_a_subset_of_all_posts_is_the_same_corpus():
    corpus = make()
    whole = corpus.subset(np.ones(3, bool))
    assert whole.fingerprint() == corpus.fingerprint()
    assert (whole.name, whole.evidence, whole.notes) == (corpus.name, corpus.evidence, corpus.notes)
    assert not whole.labels.flags.writeable


def test_a_repeated_index_is_refused():
    with pytest.raises(DataError, match="post id 'a' occurs more than once"):
        make().subset([0, 0])


def test_text_with_half_a_surrogate_pair_has_a_fingerprint():
    broken = make(posts=("One. Two.", "Three.", "Four\ud83d"))
    assert broken.fingerprint() != make().fingerprint()


def test_a_corpus_may_be_empty():
    empty = Corpus("empty", (), (), (), np.zeros((0, 0)), ())
    assert len(empty) == 0
    assert empty.prevalence.shape == (0,)
    assert duplicates_across_groups(empty) == []
