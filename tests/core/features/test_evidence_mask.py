"""Which chunks count as evidence, against a count of characters."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from sparse_evidence.core.config import ChunksConfig
from sparse_evidence.core.corpus.data import Corpus, Criterion, Evidence
from sparse_evidence.core.corpus.synthetic import generate
from sparse_evidence.core.features.chunks import chunk, evidence_mask

SENTENCES = st.lists(st.sampled_from(["No.", "I slept.", "It was a long day.", "Why?"]), min_size=1, max_size=5)


def corpus_of(posts, evidence, criteria=2):
    names = [f"c{number}" for number in range(criteria)]
    return Corpus(
        name="corpus",
        post_ids=tuple(map(str, range(len(posts)))),
        posts=tuple(posts),
        criteria=tuple(Criterion(name, name) for name in names),
        labels=np.ones((len(posts), criteria), dtype=np.int8),
        groups=tuple(map(str, range(len(posts)))),
        evidence=tuple(evidence),
    )


@st.composite
def annotated(draw):
    """Posts of a few sentences, with evidence anywhere in them, passages that overlap included."""
    posts = [" ".join(draw(SENTENCES)) for _ in range(draw(st.integers(1, 3)))]
    evidence = []
    for _ in range(draw(st.integers(0, 5))):
        post = draw(st.integers(0, len(posts) - 1))
        start = draw(st.integers(0, len(posts[post]) - 1))
        end = draw(st.integers(start + 1, len(posts[post])))
        evidence.append(Evidence(post, draw(st.integers(0, 1)), start, end))
    return corpus_of(posts, evidence)


@settings(deadline=None)
@given(annotated())
def test_a_chunk_is_evidence_if_half_of_it_or_of_the_passage_is_shared(corpus):
    chunks = chunk(corpus.posts, ChunksConfig())
    mask = evidence_mask(corpus, chunks)
    for row in range(len(chunks)):
        characters = set(range(chunks.start[row], chunks.end[row]))
        for criterion in (0, 1):
            passages = [
                set(range(item.start, item.end))
                for item in corpus.evidence
                if (item.post, item.criterion) == (chunks.post[row], criterion)
            ]
            expected = any(2 * len(characters & p) >= min(len(characters), len(p)) for p in passages)
            assert mask[row, criterion] == expected


@settings(deadline=None)
@given(annotated())
def test_more_evidence_never_unmarks_a_chunk(corpus):
    chunks = chunk(corpus.posts, ChunksConfig())
    whole = evidence_mask(corpus, chunks)
    for item in corpus.evidence:
        alone = evidence_mask(corpus_of(corpus.posts, [item]), chunks)
        assert (whole | ~alone).all()


def test_the_evidence_of_a_generated_corpus_is_found_in_every_positive_post():
    corpus = generate(posts=60, criteria=3, seed=1, sentences_mean=6.0, min_positives=8)
    chunks = chunk(corpus.posts, ChunksConfig())
    mask = evidence_mask(corpus, chunks)
    marked = np.stack([mask[chunks.post == post].any(0) for post in range(60)])
    np.testing.assert_array_equal(marked, corpus.labels == 1)
