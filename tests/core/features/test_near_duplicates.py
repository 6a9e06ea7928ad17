"""Near-duplicate posts and searches within posts, against loops over all pairs."""

import numpy as np
import pytest
from corpora import planted, unit
from hypothesis import given, settings
from hypothesis import strategies as st

from sparse_evidence.core.features.retrieval import NOTHING, ChunkIndex, NearDuplicate, merge_groups, near_duplicates


@st.composite
def corpora(draw):
    """Posts of one to three chunks, many of which are almost copies of another, with groups."""
    source = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    posts: list[np.ndarray] = []
    for _ in range(draw(st.integers(2, 12))):
        if posts and source.random() < 0.5:
            original = posts[source.integers(len(posts))]
            posts.append(original + source.choice((0.0, 0.05, 0.3)) * source.standard_normal(original.shape))
        else:
            posts.append(source.standard_normal((source.integers(1, 4), 8)))
    groups = [str(group) for group in source.integers(0, 4, len(posts))]
    offsets = np.concatenate([[0], np.cumsum([len(post) for post in posts])])
    return np.concatenate(posts).astype(np.float32), offsets, groups


def cosines(embeddings, offsets):
    means = unit(np.stack([part.mean(0) for part in np.split(embeddings, offsets[1:-1])]))
    return means @ means.T


@settings(deadline=None)
@given(corpora(), st.sampled_from([0.9, 0.98, 0.999]))
def test_every_pair_above_the_threshold_is_reported_once_most_similar_first(corpus, threshold):
    embeddings, offsets, groups = corpus
    similarity = cosines(embeddings, offsets)
    pairs = near_duplicates(embeddings, offsets, groups, threshold=threshold)
    reported = {(pair.first, pair.second): pair.similarity for pair in pairs}
    assert len(reported) == len(pairs)
    for i, j in zip(*np.triu_indices(len(groups), 1), strict=True):
        if abs(similarity[i, j] - threshold) > 1e-5:  # closer than that, rounding decides
            assert ((i, j) in reported) is bool(similarity[i, j] > threshold and groups[i] != groups[j])
    assert all(value == pytest.approx(similarity[pair], abs=1e-5) for pair, value in reported.items())
    assert [pair.similarity for pair in pairs] == sorted(reported.values(), reverse=True)


def test_pairs_of_equal_similarity_are_in_the_order_of_their_posts():
    vectors = np.repeat(np.eye(2, dtype=np.float32), 3, axis=0)
    pairs = near_duplicates(vectors, np.arange(7), list("abcdef"))
    assert [(pair.first, pair.second) for pair in pairs] == [(0, 1), (0, 2), (1, 2), (3, 4), (3, 5), (4, 5)]


def test_a_post_whose_chunks_cancel_out_is_like_no_other():
    """Its mean has no direction; it must not become NaN and match everything."""
    embeddings = np.array([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, 1.0]], dtype=np.float32)
    pairs = near_duplicates(embeddings, np.array([0, 2, 3, 4]), ["a", "b", "c"])
    assert [(pair.first, pair.second) for pair in pairs] == [(1, 2)]


def test_groups_that_share_near_duplicates_become_one():
    groups = ["d", "c", "b", "a", "e", "d"]
    assert merge_groups(groups, []) == tuple(groups)
    chain = [NearDuplicate(2, 3, 0.99), NearDuplicate(1, 2, 0.99)]
    assert merge_groups(groups, chain) == ("d", "c", "c", "c", "e", "d")
    assert merge_groups(groups, [*chain, NearDuplicate(3, 5, 1.0)]) == ("d", "d", "d", "d", "e", "d")


@settings(deadline=None)
@given(corpora(), st.randoms())
def test_merged_groups_share_no_near_duplicates_and_stay_whole(corpus, order):
    embeddings, offsets, groups = corpus
    pairs = near_duplicates(embeddings, offsets, groups)
    merged = merge_groups(groups, pairs)
    assert near_duplicates(embeddings, offsets, merged) == []
    assert len(set(zip(groups, merged, strict=True))) == len(set(groups))  # no group is split
    assert set(merged) <= set(groups)
    joined = [set(part) for part in {(groups[pair.first], groups[pair.second]) for pair in pairs}]
    while any(a & b for a in joined for b in joined if a is not b):  # components, the slow way
        a, b = next((a, b) for a in joined for b in joined if a is not b and a & b)
        joined = [part for part in joined if part is not a and part is not b] + [a | b]
    alone = set(groups) - set().union(*joined)
    assert len(set(merged)) == len(joined) + len(alone)
    shuffled = order.sample(pairs, len(pairs))
    assert merge_groups(groups, shuffled) == merged


@settings(deadline=None, max_examples=30)
@given(corpora(), st.integers(1, 6), st.integers(0, 99))
def test_the_hits_of_a_post_do_not_depend_on_other_posts(corpus, k, seed):
    embeddings, offsets, _ = corpus
    queries = np.random.default_rng(seed).standard_normal((3, 8)).astype(np.float32)
    index = ChunkIndex(embeddings, offsets)
    posts = np.arange(len(offsets) - 1)
    together = index.within(queries, posts, k)
    for post in posts:
        rows = embeddings[offsets[post] : offsets[post + 1]]
        alone = ChunkIndex(rows, np.array([0, len(rows)])).within(queries, [0], k)
        chunks = np.where(alone.chunks[0] == NOTHING, NOTHING, alone.chunks[0] + offsets[post])
        np.testing.assert_array_equal(together.chunks[post], chunks)
        np.testing.assert_array_equal(together.similarity[post], alone.similarity[0])


def test_the_index_reads_arrays_of_any_layout():
    """Of another type, or a view of every second row: the hits are those of a plain copy."""
    corpus = planted(posts=20)
    queries = corpus.criteria
    expected = ChunkIndex(corpus.embeddings, corpus.offsets).search(queries, 5)
    strided = np.repeat(corpus.embeddings, 2, axis=0)[::2]
    for embeddings in (corpus.embeddings.astype(np.float64), strided, np.asfortranarray(corpus.embeddings)):
        index = ChunkIndex(embeddings, corpus.offsets.astype(np.int32))
        np.testing.assert_array_equal(index.search(queries.astype(np.float64), 5).chunks, expected.chunks)
        assert (index.embeddings.dtype, index.offsets.dtype) == (np.float32, np.int64)
        bag = index.bags.chunks("cpu").batch(np.array([[3]]))
        np.testing.assert_array_equal(bag.embeddings, corpus.bags.chunks("cpu").batch(np.array([[3]])).embeddings)


def test_every_chunk_belongs_to_the_post_that_it_is_from():
    corpus = planted(posts=20)
    index = ChunkIndex(corpus.embeddings, corpus.offsets)
    assert len(index) == corpus.offsets[-1]
    chunks = np.arange(-1, len(index))
    expected = [NOTHING, *np.repeat(np.arange(20), np.diff(corpus.offsets))]
    assert index.post_of(chunks).tolist() == expected
    assert index.post_of(chunks[:3].reshape(3, 1)).shape == (3, 1)
