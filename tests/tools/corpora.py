"""Small embedded corpora made of arrays, and a small candidate: what the tests of core train on."""

import hashlib
from dataclasses import replace

import numpy as np
import torch

from sparse_evidence.core.config import CandidateConfig, ChunksConfig, FocalConfig, IrisConfig, TrainingConfig
from sparse_evidence.core.corpus.synthetic import generate
from sparse_evidence.core.features.chunks import chunk
from sparse_evidence.core.features.views import EmbeddedCorpus
from sparse_evidence.core.seeding import numpy_generator
from sparse_evidence.core.splits import Folds, kfold

IRIS = IrisConfig(num_queries=2, k_retrieved=3, hidden=8, dropout=0.3)
TRAINING = TrainingConfig(batch_size=8, learning_rate=1e-2, accumulation_steps=2, warmup_steps=3)


def candidate(model=IRIS, loss=None, **training):
    return CandidateConfig(model, replace(TRAINING, **training), loss or FocalConfig())


def assert_same_bits(left, right):
    assert type(left) is type(right) or isinstance(left, dict)
    if isinstance(left, dict):
        assert left.keys() == right.keys()
        for key in left:
            assert_same_bits(left[key], right[key])
    elif isinstance(left, (list, tuple)):
        assert len(left) == len(right)
        for a, b in zip(left, right, strict=True):
            assert_same_bits(a, b)
    elif isinstance(left, torch.Tensor):
        assert (left.dtype, left.shape) == (right.dtype, right.shape)
        torch.testing.assert_close(left.detach(), right.detach(), rtol=0, atol=0, equal_nan=True)
    elif isinstance(left, np.ndarray):
        assert np.array_equal(np.asarray(left), np.asarray(right), equal_nan=True)
    else:
        assert left == right or left != left


def unit(rows):
    return (rows / np.linalg.norm(rows, axis=-1, keepdims=True)).astype(np.float32)


def planted(posts=60, criteria=3, dim=12, seed=0, longest=9, unlabelled=0.0):
    """Random unit chunks, 1 to `longest` a post; a post that meets a criterion has one chunk close to it."""
    source = numpy_generator(seed, "planted")
    lengths = source.integers(1, longest + 1, posts)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    directions = unit(source.standard_normal((criteria, dim)))
    embeddings = unit(source.standard_normal((offsets[-1], dim)))
    labels = (source.random((posts, criteria)) < np.linspace(0.2, 0.4, criteria)).astype(np.int8)
    labels[: 2 * criteria] = np.tile(np.eye(criteria, dtype=np.int8), (2, 1))
    for post, criterion in np.argwhere(labels == 1):
        row = source.integers(offsets[post], offsets[post + 1])
        embeddings[row] = unit(directions[criterion] + 0.3 * embeddings[row])
    labels[source.random(labels.shape) < unlabelled] = -1
    return EmbeddedCorpus(embeddings, offsets, directions, labels)


def uneven(corpus, shares=(0.2, 0.3, 0.5), seed=0):
    """Folds of very different size, some posts in none of them."""
    posts = len(corpus.labels)
    ends = (np.cumsum(shares) * (posts - 4)).astype(int)
    assignment = np.full(posts, -1, dtype=np.int16)
    order = numpy_generator(seed, "uneven").permutation(posts - 4)
    for fold, part in enumerate(np.split(order, ends[:-1])):
        assignment[part] = fold
    return Folds(assignment, len(shares))


def words(texts, dim=64):
    """Unit vectors of texts: the sum of their words' random vectors, which are seeded by the words themselves."""
    known = {}

    def vector(word):
        if word not in known:
            seed = int.from_bytes(hashlib.sha256(word.encode()).digest()[:8], "big")
            known[word] = np.random.Generator(np.random.PCG64(seed)).standard_normal(dim)
        return known[word]

    return unit(np.stack([sum(vector(word.strip(".,!?")) for word in text.lower().split()) for text in texts]))


def synthetic(posts=240, criteria=3, folds=3, seed=0):
    """The generated posts of `sparse_evidence.core.corpus.synthetic` as bags of words, with three grouped folds."""
    corpus = generate(posts=posts, criteria=criteria, seed=seed, sentences_mean=6.0, min_positives=posts // 5)
    chunks = chunk(corpus.posts, ChunksConfig())
    texts = [criterion.text for criterion in corpus.criteria]
    embedded = EmbeddedCorpus(words(chunks.texts), chunks.offsets, words(texts), corpus.labels)
    names = [criterion.name for criterion in corpus.criteria]
    return embedded, kfold(corpus.groups, corpus.labels, folds, 0, criteria=names)


def with_post(corpus, post, chunks):
    """The same corpus with the chunks of one post replaced by others, `[any number, dim]`."""
    start, end = corpus.offsets[post], corpus.offsets[post + 1]
    embeddings = np.concatenate([corpus.embeddings[:start], chunks, corpus.embeddings[end:]])
    offsets = corpus.offsets.copy()
    offsets[post + 1 :] += len(chunks) - (end - start)
    return EmbeddedCorpus(embeddings, offsets, corpus.criteria, corpus.labels)
