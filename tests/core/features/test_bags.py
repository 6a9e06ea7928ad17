"""Bags hold exactly the chunks of their posts, and means are those of a loop."""

import numpy as np
import pytest
import torch
from corpora import planted
from hypothesis import given, settings
from hypothesis import strategies as st

from sparse_evidence.core.features.bags import (
    MAX_BAG_BYTES,
    Bag,
    ChunkBags,
    MarkedBags,
    MeanBags,
)
from sparse_evidence.core.features.device_bags import DeviceBags
from sparse_evidence.core.features.embeddings import mean_embeddings


@st.composite
def corpora(draw):
    """Embeddings `[chunks, dim]` and offsets `[posts + 1]` of one to eight posts."""
    lengths = draw(st.lists(st.integers(1, 7), min_size=1, max_size=8))
    generator = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    embeddings = generator.standard_normal((sum(lengths), draw(st.integers(1, 5)))).astype(np.float32)
    return embeddings, np.concatenate([[0], np.cumsum(lengths)])


@st.composite
def batches(draw):
    """A corpus and a rectangle `[folds, width]` of its posts, repetitions included."""
    embeddings, offsets = draw(corpora())
    folds, width = draw(st.integers(1, 3)), draw(st.integers(1, 6))
    post = st.integers(0, len(offsets) - 2)
    posts = draw(st.lists(post, min_size=folds * width, max_size=folds * width))
    return embeddings, offsets, np.array(posts).reshape(folds, width)


def chunks_of(embeddings, offsets, post):
    return embeddings[offsets[post] : offsets[post + 1]]


# ---- bags of chunks ---------------------------------------------------------------------------------------------


@settings(deadline=None)
@given(batches())
def test_a_bag_holds_the_chunks_of_its_posts_in_order(batch):
    embeddings, offsets, posts = batch
    bag = ChunkBags(embeddings, offsets).batch(posts)
    longest = max(len(chunks_of(embeddings, offsets, post)) for post in posts.flat)
    assert bag.embeddings.shape == (*posts.shape, longest, embeddings.shape[1])
    assert bag.present.shape == (*posts.shape, longest)
    for place, post in np.ndenumerate(posts):
        expected = chunks_of(embeddings, offsets, post)
        assert bag.present[place].tolist() == [position < len(expected) for position in range(longest)]
        np.testing.assert_array_equal(bag.embeddings[place][bag.present[place]], expected)


@settings(deadline=None)
@given(batches(), st.integers(1, 3))
def test_marks_belong_to_their_chunks(batch, criteria):
    embeddings, offsets, posts = batch
    marks = np.random.default_rng(0).random((len(embeddings), criteria)) < 0.5
    plain = ChunkBags(embeddings, offsets)
    bag = MarkedBags(plain, marks).batch(posts)
    assert torch.equal(bag.embeddings, plain.batch(posts).embeddings)
    for place, post in np.ndenumerate(posts):
        np.testing.assert_array_equal(bag.marks[place][bag.present[place]], chunks_of(marks, offsets, post))
        assert not bag.marks[place][~bag.present[place]].any()


@settings(deadline=None)
@given(batches())
def test_means_of_a_bag_are_those_of_its_present_chunks(batch):
    embeddings, offsets, posts = batch
    bag = ChunkBags(embeddings, offsets).batch(posts)
    for place, post in np.ndenumerate(posts):
        np.testing.assert_allclose(bag.means()[place], chunks_of(embeddings, offsets, post).mean(0), atol=1e-5)
    nothing = Bag(bag.embeddings, torch.zeros_like(bag.present))
    assert (nothing.means() == 0).all()


def test_the_last_post_of_a_corpus_can_be_padded():
    """Its padding must not point past the last chunk."""
    embeddings = np.eye(4, dtype=np.float32)
    bag = ChunkBags(embeddings, np.array([0, 3, 4])).batch(np.array([[1, 0]]))
    assert bag.present.tolist() == [[[True, False, False], [True, True, True]]]
    np.testing.assert_array_equal(bag.embeddings[0, 0, 0], embeddings[3])


def test_padding_is_finite():
    """A weight of zero times an infinite row would be NaN, so padding repeats a chunk of the same post."""
    embeddings = np.array([[np.inf], [1.0], [2.0], [3.0]], dtype=np.float32)
    bag = ChunkBags(embeddings, np.array([0, 1, 2, 4])).batch(np.array([[1, 2]]))
    assert bag.embeddings.isfinite().all()
    assert bag.embeddings[0, 0].flatten().tolist() == [1.0, 1.0]


@pytest.mark.parametrize("longest", [1, 300, 4000])
def test_a_pass_is_limited_by_the_memory_for_the_longest_post(longest):
    dim = 512
    bags = ChunkBags(np.zeros((longest + 1, dim), dtype=np.float32), np.array([0, 1, 1 + longest]))
    post_bytes = longest * dim * 4
    assert bags.max_posts_per_pass * post_bytes <= MAX_BAG_BYTES < (bags.max_posts_per_pass + 1) * post_bytes


def test_a_post_that_exceeds_the_memory_limit_still_gets_a_pass():
    chunks = MAX_BAG_BYTES // 4 + 1
    embeddings = np.empty((chunks, 1), dtype=np.float32)  # never touched, so it takes no memory
    assert ChunkBags(embeddings, np.array([0, chunks])).max_posts_per_pass == 1


def test_lengths_are_the_chunks_of_each_post():
    corpus = planted(posts=10)
    assert ChunkBags(corpus.embeddings, corpus.offsets).lengths.tolist() == np.diff(corpus.offsets).tolist()


# ---- means ------------------------------------------------------------------------------------------------------


@settings(deadline=None)
@given(corpora())
def test_means_equal_a_loop_over_the_posts(corpus):
    embeddings, offsets = corpus
    means = mean_embeddings(embeddings, offsets)
    expected = [chunks_of(embeddings, offsets, post).astype(np.float64).mean(0) for post in range(len(offsets) - 1)]
    assert means.dtype == np.float32
    np.testing.assert_allclose(means, expected, atol=1e-5)


@settings(deadline=None)
@given(batches())
def test_a_batch_of_means_has_the_shape_of_its_posts(batch):
    embeddings, offsets, posts = batch
    bags = MeanBags(embeddings, offsets)
    np.testing.assert_array_equal(bags.batch(posts), mean_embeddings(embeddings, offsets)[posts])


def test_posts_have_equal_length_as_means():
    """Only the number of posts counts: batches need not group posts by length, and any number fits."""
    corpus = planted(posts=10)
    bags = MeanBags(corpus.embeddings, corpus.offsets)
    assert bags.lengths.tolist() == [1] * 10
    assert bags.max_posts_per_pass is None


def test_means_are_float32_for_any_input():
    embeddings = np.array([[1.0], [2.0], [4.0]])
    means = mean_embeddings(embeddings, np.array([0, 2, 3]))
    assert (means.dtype, means.tolist()) == (np.float32, [[1.5], [4.0]])


# ---- one copy for each device -----------------------------------------------------------------------------------


def test_each_device_has_one_copy_whatever_it_is_called():
    corpus = planted(posts=10)
    bags = DeviceBags(corpus.embeddings, corpus.offsets)
    for load in (bags.chunks, bags.means):
        assert load("cpu") is load(torch.device("cpu"))
        assert load("cpu") is not load("meta")
        assert load("meta") is load(torch.device("meta"))
    assert bags.chunks("meta").embeddings.device.type == bags.means("meta").means.device.type == "meta"


def test_embeddings_on_the_cpu_share_the_memory_of_the_array():
    """The memory-mapped vectors of a machine's workers stay one copy."""
    corpus = planted(posts=10)
    loaded = corpus.bags.chunks("cpu").embeddings
    assert loaded.data_ptr() == corpus.embeddings.ctypes.data
