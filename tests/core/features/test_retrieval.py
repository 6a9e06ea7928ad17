"""The index against brute force; retrieval within a post stays in the post; copies across groups are found."""

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


def test_searching_the_corpus_is_exact(index, queries):
    hits = index.search(queries, 7)
    similarity = queries @ index.embeddings.T
    np.testing.assert_array_equal(hits.chunks, np.argsort(-similarity, axis=1)[:, :7])
    np.testing.assert_allclose(hits.similarity, -np.sort(-similarity, axis=1)[:, :7], rtol=1e-5)
    assert hits.present.all()


def test_searching_within_posts_is_exact_and_stays_within_them(index, queries):
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
    post_of = index.post_of(hits.chunks)
    assert (post_of == posts[:, None, None])[hits.present].all()
    assert (post_of[~hits.present] == NOTHING).all()


def test_k_may_exceed_the_number_of_chunks(index, queries):
    hits = index.search(queries, len(index) + 3)
    assert hits.present.sum(axis=1).tolist() == [len(index)] * 5
    assert np.isneginf(index.within(queries, [0], 50).similarity[0, :, -1]).all()


def test_the_index_stays_on_the_cpu_if_faiss_has_no_gpu_support(index, queries, caplog):
    with caplog.at_level("INFO"):
        other = ChunkIndex(index.embeddings, index.offsets, use_gpu=True)
    np.testing.assert_array_equal(other.search(queries, 3).chunks, index.search(queries, 3).chunks)


def test_near_duplicates_are_reported_across_groups_only():
    generator = np.random.default_rng(2)
    posts = [generator.standard_normal((6, 64)).astype(np.float32) for _ in range(12)]
    posts[7] = posts[2] + 0.02 * generator.standard_normal((6, 64)).astype(np.float32)  # a changed word here and there
    posts[9] = posts[4][::-1]  # the same sentences in another order, by the same author
    posts[11] = posts[0]
    offsets = np.arange(0, 73, 6)
    groups = [str(row) for row in range(12)]
    groups[9] = groups[4]
    pairs = near_duplicates(np.concatenate(posts), offsets, groups)
    assert [(pair.first, pair.second) for pair in pairs] == [(0, 11), (2, 7)]
    assert pairs[0].similarity == pytest.approx(1.0, abs=1e-5)
    assert near_duplicates(np.concatenate(posts), offsets, ["one"] * 12) == []
