"""What the queries of a fitted IRIS look for: the nearest sentences, compared with every cosine, and their overlap."""

import numpy as np
import pytest

from sparse_evidence.core.config import (
    DEFAULT_ENCODER,
    BCEConfig,
    CandidateConfig,
    ChunksConfig,
    IrisConfig,
    RetrievalConfig,
    TrainingConfig,
)
from sparse_evidence.core.corpus.synthetic import SyntheticSource
from sparse_evidence.core.features.chunks import chunk, windows
from sparse_evidence.core.features.encoders import locate
from sparse_evidence.core.features.views import embed_corpus
from sparse_evidence.core.fitted import Recipe, fit
from sparse_evidence.core.fitted.fitting import Ground
from sparse_evidence.core.fitted.queries import nearest_sentences
from sparse_evidence.core.splits import kfold

TRAINING = TrainingConfig(epochs=5, batch_size=16, learning_rate=1e-2)


def recipe(model):
    return Recipe(CandidateConfig(model, TRAINING, BCEConfig()), 7, 3)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return SyntheticSource(posts=60, criteria=2, sentences_mean=5).load(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def model(corpus):
    encoder, sentences = locate(DEFAULT_ENCODER), chunk(corpus.posts, ChunksConfig())
    views = {window: embed_corpus(corpus, windows(corpus.posts, sentences, window), encoder)[0] for window in (1, 2)}
    names = [criterion.name for criterion in corpus.criteria]
    folds = kfold(corpus.groups, corpus.labels, 2, 0, criteria=names)
    encoders = {DEFAULT_ENCODER: encoder}
    ground = Ground(corpus, folds, ChunksConfig(), lambda m: views[m.window], encoders, "average_precision")
    members = [RetrievalConfig(), IrisConfig(hidden=8, num_queries=3), IrisConfig(hidden=8, num_queries=1, window=2)]
    return fit([recipe(member) for member in members], ground).model


def test_the_nearest_sentences_are_those_with_the_highest_cosine(model, corpus):
    posts = ["", *corpus.posts[:6]]  # a post without text does not shift the others
    read = model.features(posts)
    for found, window in zip(nearest_sentences(model, posts, 4), (1, 2), strict=True):
        queries = model.members[found.member].models[0].queries[0].detach().numpy()
        unit = queries / np.linalg.norm(queries, axis=-1, keepdims=True)
        cosines = unit @ read.features[found.member].embeddings.T  # [criteria, queries, chunks]
        assert found.similarity.shape == (2, len(queries[0]), 4)
        assert np.allclose(found.similarity, -np.sort(-cosines)[..., :4], atol=1e-5)
        texts = windows(posts[1:], read.sentences, window).texts
        for criterion, query in np.ndindex(cosines.shape[:2]):
            post, (start, end) = found.post[criterion, query, 0], found.span[criterion, query, 0]
            assert posts[post][start:end] == texts[int(cosines[criterion, query].argmax())]


def test_overlap_is_a_symmetric_share(model, corpus):
    several, single = (found.overlap for found in nearest_sentences(model, corpus.posts[:6], 4))
    assert several.shape == (2, 3, 3)
    assert np.allclose(several, several.transpose(0, 2, 1))
    assert np.allclose(np.diagonal(several, axis1=1, axis2=2), 1)
    assert ((several > 0) & (several <= 1.000001)).all()
    assert single.shape == (2, 1, 1)


def test_there_are_no_more_sentences_than_the_posts_have(model):
    several, single = nearest_sentences(model, ["I slept badly. It rained."], 9)
    assert several.post.shape == (2, 3, 2)
    assert single.post.shape == (2, 1, 1)
    assert list(nearest_sentences(model, ["", " "], 9)) == []
