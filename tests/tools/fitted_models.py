"""A small fitted model of real sentences, fitted in a second."""

from functools import cache
from pathlib import Path

from sparse_evidence.core.config import (
    DEFAULT_ENCODER,
    BCEConfig,
    CandidateConfig,
    ChunksConfig,
    LinearConfig,
    TrainingConfig,
)
from sparse_evidence.core.corpus.synthetic import generate
from sparse_evidence.core.features.chunks import chunk
from sparse_evidence.core.features.encoders import locate
from sparse_evidence.core.features.views import embed_corpus
from sparse_evidence.core.fitted import Recipe, fit
from sparse_evidence.core.fitted.fitting import Ground
from sparse_evidence.core.splits import kfold

CRITERIA = ["depressed_mood", "anhedonia"]


@cache
def linear_model():
    """A logistic regression for the criteria `CRITERIA`, of three folds."""
    corpus = generate(posts=90, criteria=2, seed=0, sentences_mean=4.0, min_positives=12)
    assert [criterion.name for criterion in corpus.criteria] == CRITERIA
    encoder = locate(DEFAULT_ENCODER)
    embedded, _ = embed_corpus(corpus, chunk(corpus.posts, ChunksConfig()), encoder)
    folds = kfold(corpus.groups, corpus.labels, 3, 0, criteria=CRITERIA)
    ground = Ground(corpus, folds, ChunksConfig(), lambda _: embedded, {DEFAULT_ENCODER: encoder}, "average_precision")
    recipe = Recipe(CandidateConfig(LinearConfig(), TrainingConfig(), BCEConfig()), seed=0, epochs=1)
    return fit([recipe], ground).model


def write_frame(frame, path: Path):
    """Write a data frame as the table that the suffix names; return its path."""
    if path.suffix == ".parquet":
        frame.to_parquet(path, index=False)
    else:
        frame.to_csv(path, index=False, sep="\t" if path.suffix == ".tsv" else ",")
    return path
