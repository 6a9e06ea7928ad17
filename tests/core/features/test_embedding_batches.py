"""The work of the frozen encoder: which texts share a batch and a pack, in whatever order they are given.

The encoder is a transformer of two layers, so the size of a batch is a number of padded tokens.
"""

import math
from dataclasses import replace

import numpy as np
import pytest

from sparse_evidence.core.features.embeddings import BATCH_TOKENS, PACK_TEXTS, embed
from sparse_evidence.core.features.encoders import locate

BUDGET = BATCH_TOKENS["cpu"]


@pytest.fixture(scope="module")
def encoder(tiny_encoder):
    return locate(str(tiny_encoder))


def texts_of(count, longest=60, seed=0):
    """Different texts of 2 to `longest` + 1 words, each word a token."""
    generator = np.random.default_rng(seed)
    texts = set()
    while len(texts) < count:
        texts.add(" ".join(f"w{word}" for word in generator.integers(0, 30, generator.integers(2, longest + 2))))
    return sorted(texts)


def batch_sizes(texts, encoder, root, **options):
    """The number of texts in each pass through the encoder, from its progress."""
    done = [0]
    embed(texts, encoder, root=root, progress=lambda count, _: done.append(count), **options)
    return np.diff(done).tolist()


def test_a_batch_holds_similar_lengths_within_the_token_budget(encoder, tmp_path):
    texts = texts_of(200)
    sizes = batch_sizes(texts, encoder, tmp_path)
    lengths = sorted((len(text.split()) + 2 for text in texts), reverse=True)  # [CLS] and [SEP]
    at = 0
    for size in sizes:
        longest = lengths[at]  # the longest texts come first, so that too large a batch fails early
        assert size * longest <= BUDGET
        at += size
        assert at == len(texts) or (size + 1) * longest > BUDGET  # and no batch is smaller than it could be
    assert at == len(texts)
    assert len(set(sizes)) > 2


@pytest.mark.parametrize(("batch_size", "expected"), [(1, [1] * 9), (4, [4, 4, 1]), (100, [9])])
def test_a_batch_size_limits_the_texts_of_a_pass(batch_size, expected, encoder, tmp_path):
    assert batch_sizes(texts_of(9, longest=5), encoder, tmp_path, batch_size=batch_size) == expected


def test_a_long_text_counts_with_the_tokens_that_the_encoder_accepts(encoder, tmp_path):
    texts = [f"w1 {'w2 ' * (500 + number)}" for number in range(2 * BUDGET // 64)]
    assert batch_sizes(texts, encoder, tmp_path) == [BUDGET // 64] * 2


def test_batches_change_no_vector(encoder, tmp_path):
    texts = texts_of(60)
    together = embed(texts, encoder, root=tmp_path / "a").vectors
    one_by_one = embed(texts, encoder, root=tmp_path / "b", batch_size=1).vectors
    np.testing.assert_allclose(together, one_by_one, atol=1e-5)
    assert (np.abs(together @ together.T - np.eye(60)).max(0) < 1 - 1e-4).all()  # different texts, different vectors


def test_the_same_texts_in_any_order_get_the_same_bits(encoder, tmp_path):
    """They form the same batches and the same packs, so two machines can share a cache."""
    texts = texts_of(80)
    order = np.random.default_rng(1).permutation(80)
    first = embed(texts, encoder, root=tmp_path / "a").vectors
    second = embed([texts[row] for row in order], encoder, root=tmp_path / "b").vectors
    np.testing.assert_array_equal(second, first[order])
    packs = [{path.name: path.read_bytes() for path in (tmp_path / root).rglob("pack-*")} for root in "ab"]
    assert packs[0] == packs[1]


def test_many_texts_are_written_pack_by_pack(encoder, tmp_path):
    """An interrupted run loses one pack at most; the progress counts on across them."""
    texts = texts_of(2 * PACK_TEXTS + 5, longest=4)
    calls = []
    embedded = embed(texts, encoder, root=tmp_path, progress=lambda done, total: calls.append((done, total)))
    assert len(list(tmp_path.rglob("pack-*"))) == 3
    assert {total for _, total in calls} == {len(texts)}
    done = [count for count, _ in calls]
    assert done == sorted(set(done))
    assert {PACK_TEXTS, 2 * PACK_TEXTS, len(texts)} <= set(done)
    assert len(calls) >= math.ceil(len(texts) * 4 / BUDGET)
    rows = [0, PACK_TEXTS, -1]
    alone = embed([texts[row] for row in rows], encoder, root=tmp_path)
    assert alone.computed == 0
    np.testing.assert_array_equal(alone.vectors, embedded.vectors[rows])


def test_a_long_name_of_an_encoder_fits_into_a_file_name(encoder, tmp_path):
    names = ["/folder" * 60 + "/one", "/folder" * 60 + "/two", "ü" * 300]
    for name in names:
        assert embed(["w1 w2"], replace(encoder, name=name), root=tmp_path).computed == 1
    assert len(list((tmp_path / "embeddings").iterdir())) == len(names)
