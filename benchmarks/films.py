"""Documents assembled from rated sentences of film reviews, with as many test documents as one likes.

The sentences come from the same archive as the editorials. A document is a few sentences of different reviews; it
meets a criterion if one of them is rated beyond the criterion's bound. No sentence is in a training document and in a
test document, so what a search reports can be held against what its models score on text they have never seen.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from sparse_evidence.core.corpus.data import Corpus, Criterion, Evidence
from sparse_evidence.core.corpus.editorials import EditorialsSource, rated_sentences
from sparse_evidence.core.seeding import numpy_generator

TABLE = "movieReviewSnippets_GroundTruth.txt"
TABLE_SHA256 = "c8293b0d942e90e223ea2c0955d969040d1a1be514a978b9af0698940bd13350"
BOUNDS: tuple[tuple[Criterion, float], ...] = (
    (Criterion("terrible", "This film is terrible: a painful, insulting waste of time that I hated."), -3.0),
    (Criterion("bad", "This film is bad: dull, weak, a failure that disappoints."), -2.5),
    (Criterion("good", "This film is good: it works, it entertains, well worth seeing."), 2.5),
    (Criterion("wonderful", "This film is a wonderful, brilliant masterpiece that I loved."), 3.0),
)
"""A sentence meets a criterion if its mean rating (-4 to 4) lies beyond the bound, away from zero."""

Integers = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Sentences:
    """Rated sentences, no two with the same text."""

    texts: tuple[str, ...]
    ratings: npt.NDArray[np.float64]
    """Mean rating of each, -4 to 4."""


def sentences() -> Sentences:
    """Return the rated sentences; of the two texts that appear twice, the first.

    Raises:
        UserError: the table is not in the cache and cannot be downloaded.
    """
    ratings: dict[str, float] = {}
    for line in rated_sentences(TABLE, TABLE_SHA256).decode("utf-8").split("\n"):
        if line.strip():
            _, rating, text = line.split("\t")
            ratings.setdefault(text.strip(), float(rating))
    return Sentences(tuple(ratings), np.array(list(ratings.values())))


def editorial_lengths() -> Integers:
    """Return the number of sentences of every editorial.

    Raises:
        UserError: see `EditorialsSource.load`.
    """
    return np.array([post.count("\n") + 1 for post in EditorialsSource().load(Path()).posts])


def assemble(pool: Sentences, lengths: npt.ArrayLike, *, seed: int, training: int, test: int) -> tuple[Corpus, Corpus]:
    """Return training and test documents; the same arguments give the same documents.

    Both kinds are from one population: the sentences are divided so that every range of ratings between two bounds has
    the same share in both parts. Divided at random, half of the sentences would go to the training documents, and where
    these are lucky the others are unlucky, so that the same model scores differently. Training documents share no
    sentence. Test documents are drawn from the sentences that are left, each without
    repetition, so that a sentence is in several of them.

    Args:
        pool: the sentences.
        lengths: numbers of sentences, from which that of each document is drawn.
        seed: of all draws.
        training: number of training documents.
        test: number of test documents.
    """
    lengths = np.asarray(lengths)
    generator = numpy_generator(seed, "films")
    ends = np.cumsum(generator.choice(lengths, training))
    used, rest = _divide(pool.ratings, int(ends[-1]), generator)
    assert len(rest) >= lengths.max(), "the training documents leave too few sentences"
    training_documents = np.split(used, ends[:-1])
    test_documents = [generator.choice(rest, length, replace=False) for length in generator.choice(lengths, test)]
    return _corpus(pool, training_documents, "film"), _corpus(pool, test_documents, "test-film")


def _divide(ratings: npt.NDArray[np.float64], size: int, generator: np.random.Generator) -> tuple[Integers, Integers]:
    """Divide the sentences into `size` and the others, in random order, with the same shares of every rating range."""
    ranges = np.digitize(ratings, sorted(bound for _, bound in BOUNDS))
    shuffled = generator.permutation(len(ratings))
    by_range = [shuffled[ranges[shuffled] == number] for number in range(len(BOUNDS) + 1)]
    # the place of a sentence within its range, from 0 to 1: the lowest places go to the first part
    place = np.concatenate([(np.arange(len(part)) + 0.5) / max(len(part), 1) for part in by_range])
    order = np.concatenate(by_range)[np.argsort(place, kind="stable")]
    return generator.permutation(order[:size]), generator.permutation(order[size:])


def _corpus(pool: Sentences, documents: list[Integers], name: str) -> Corpus:
    labels = np.zeros((len(documents), len(BOUNDS)), dtype=np.int8)
    evidence, posts = [], []
    for post, document in enumerate(documents):
        start = 0
        for sentence in document.tolist():
            text, rating = pool.texts[sentence], pool.ratings[sentence]
            for column, (_, bound) in enumerate(BOUNDS):
                if rating < bound < 0 or rating > bound > 0:
                    labels[post, column] = 1
                    evidence.append(Evidence(post, column, start, start + len(text)))
            start += len(text) + 1
        posts.append("\n".join(pool.texts[sentence] for sentence in document.tolist()))
    post_ids = tuple(f"{name}-{number}" for number in range(len(documents)))
    criteria = tuple(criterion for criterion, _ in BOUNDS)
    return Corpus("films", post_ids, tuple(posts), criteria, labels, groups=post_ids, evidence=tuple(evidence))
