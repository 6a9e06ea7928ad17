"""The index against brute force; a post's retrieval never leaves the post; copies across groups are found."""

import numpy as np
import pytest

from sparse_evidence.core.features.retrieval import NOTHING, ChunkIndex, near_duplicates

DIM = 16


@pytest.fixture(scope="module")
def index():
    generator = np.random.default_rng(0)
    counts = generator.integers(1, 8, 30)
    embeddings = generator.standard_normal((counts.sum(), DIM)).astype(np.float32)
    embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)
    return ChunkIndex(embeddings, np.concatenate([[0], np.cumsum(counts)]))


@pytest.fixture(scope="module")
def queries():
    return np.random.default_rng(1).standard_normal((5, DIM)).astype(np.float32)


def test_search_of_the_corpus_is_exact(index, queries):
    hits = index.search(queries, 7)
    similarity = queries @ index.embeddings.T
    np.testing.assert_array_equal(hits.chunks, np.argsort(-similarity, axis=1)[:, :7])
    np.testing.assert_allclose(hits.similarity, -np.sort(-similarity, axis=1)[:, :7], rtol=1e-5)
    assert hits.found.all()


def test_search_within_posts_is_exact_and_stays_there(index, queries):
    posts = np.array([3, 0, 29, 3])
    hits = index.within(queries, posts, 4)
    assert hits.chunks.shape == (4, 5, 4)
    for place, post in enumerate(posts):
        rows = np.arange(index.offsets[post], index.offsets[post + 1])
        order = rows[np.argsort(-(queries @ index.embeddings[rows].T), axis=1)][:, :4]
        count = order.shape[1]
        np.testing.assert_array_equal(hits.chunks[place, :, :count], order)
        assert (hits.chunks[place, :, count:] == NOTHING).all()
        assert np.isneginf(hits.similarity[place, :, count:]).all()
    owner = index.post_of(hits.chunks)
    assert (owner == posts[:, None, None])[hits.found].all()
    assert (owner[~hits.found] == NOTHING).all()


def test_k_above_the_number_of_chunks(index, queries):
    hits = index.search(queries, len(index) + 3)
    assert hits.found.sum(axis=1).tolist() == [len(index)] * 5
    assert np.isneginf(index.within(queries, [0], 50).similarity[0, :, -1]).all()


def test_a_gpu_that_faiss_cannot_use_is_no_reason_to_fail(index, queries, caplog):
    with caplog.at_level("INFO"):
        other = ChunkIndex(index.embeddings, index.offsets, use_gpu=True)
    np.testing.assert_array_equal(other.search(queries, 3).chunks, index.search(queries, 3).chunks)


def test_near_duplicates_across_groups_only():
    generator = np.random.default_rng(2)
    posts = [generator.standard_normal((6, 64)).astype(np.float32) for _ in range(12)]
    posts[7] = posts[2] + 0.02 * generator.standard_normal((6, 64)).astype(np.float32)  # a changed word here and there
    posts[9] = posts[4][::-1]  # the same sentences in another order, by the same author
    posts[11] = posts[0]
    offsets = np.arange(0, 73, 6)
    groups = [str(row) for row in range(12)]
    groups[9] = groups[4]
    found = near_duplicates(np.concatenate(posts), offsets, groups)
    assert [(pair.first, pair.second) for pair in found] == [(0, 11), (2, 7)]
    assert found[0].similarity == pytest.approx(1.0, abs=1e-5)
    assert near_duplicates(np.concatenate(posts), offsets, ["one"] * 12) == []
