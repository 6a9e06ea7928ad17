"""(a) An epoch of all folds: fused and plain, against a plainly written reference and against bare matrix products."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import DataLoader

from benchmarks import reference
from benchmarks.turns import by_turns, ratio
from sparse_evidence.core.config import (
    BCEConfig,
    CandidateConfig,
    ChunksConfig,
    IrisConfig,
    SplitConfig,
    TrainingConfig,
)
from sparse_evidence.core.corpus.sources import SyntheticSource
from sparse_evidence.core.features.chunks import chunk
from sparse_evidence.core.metrics import score
from sparse_evidence.core.models import EmbeddedCorpus, prior_log_odds
from sparse_evidence.core.splits import Folds, split
from sparse_evidence.core.training.stack import Stack, make_stack

HOME_POSTS = 1484
DIM, CRITERIA, QUERIES = 384, 10, 8
FOLDS = 5
CANDIDATE = CandidateConfig(IrisConfig(num_queries=QUERIES, k_retrieved=4), TrainingConfig(), BCEConfig())


@dataclass(frozen=True, eq=False)
class Case:
    """A corpus of the home case's shape; the vectors are random, which no timing depends on."""

    corpus: EmbeddedCorpus
    folds: Folds


def case(posts: int) -> Case:
    """Synthetic posts of the home case's lengths and labels, at any size."""
    corpus = SyntheticSource(posts=posts, criteria=CRITERIA).load(Path())
    offsets = chunk(corpus.posts, ChunksConfig()).offsets
    generator = np.random.default_rng(0)

    def unit(rows: int) -> np.ndarray:
        vectors = generator.standard_normal((rows, DIM), dtype=np.float32)
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        return vectors

    embedded = EmbeddedCorpus(unit(int(offsets[-1])), offsets, unit(CRITERIA), corpus.labels)
    names = [criterion.name for criterion in corpus.criteria]
    return Case(embedded, split(corpus.groups, corpus.labels, SplitConfig(folds=FOLDS, holdout=0), criteria=names))


def fused(given: Case) -> Callable[[], None]:
    """Our epoch: train and validate all folds as one model."""
    stack = make_stack(given.corpus, given.folds, range(FOLDS), CANDIDATE, seed=0)
    return lambda: _epoch(stack, given)


def plain(given: Case) -> Callable[[], None]:
    """Our epoch with a model per fold."""
    stack = make_stack(given.corpus, given.folds, range(FOLDS), CANDIDATE, seed=0, fuse=False)
    return lambda: _epoch(stack, given)


def _epoch(stack: Stack, given: Case) -> None:
    stack.advance()
    logits, _ = stack.validate()
    for fold, part in zip(stack.fold_ids, logits, strict=True):
        score("average_precision", given.corpus.labels[given.folds.validation(fold)], part)


def written_plainly(given: Case) -> Callable[[], None]:
    """The reference's epoch: fold after fold, pair by pair."""
    config, training = CANDIDATE.model, CANDIDATE.training
    assert isinstance(config, IrisConfig)
    runs = []
    for fold in range(FOLDS):
        train, validation = given.folds.train(fold), given.folds.validation(fold)
        prior = prior_log_odds(given.corpus.labels, [train])[0]
        model = reference.PairIris(config, torch.from_numpy(given.corpus.criteria), prior)
        optimizer = torch.optim.AdamW(model.parameters(), lr=training.learning_rate)
        pairs = reference.Pairs(given.corpus, train.tolist())
        batch = training.batch_size * CRITERIA
        loader = DataLoader(pairs, batch, shuffle=True, collate_fn=reference.collate)
        held = DataLoader(reference.Pairs(given.corpus, validation.tolist()), batch, collate_fn=reference.collate)
        runs.append((model, optimizer, loader, held, given.corpus.labels[validation]))

    def epoch() -> None:
        for model, optimizer, loader, held, labels in runs:
            reference.train_epoch(model, optimizer, loader, torch.nn.BCEWithLogitsLoss())
            score("average_precision", labels, reference.predict(model, held, CRITERIA).numpy())

    return epoch


def bare_products(given: Case) -> Callable[[], None]:
    """Nothing but the model's matrix products of one epoch: forward and backward in training, forward in validation.

    Without padding, masks, top-k, softmax, optimizer and data movement; same batch shapes, so the same cache sizes.
    """
    config, training = CANDIDATE.model, CANDIDATE.training
    assert isinstance(config, IrisConfig)
    posts = len(given.corpus.labels)
    steps = int(np.ceil(posts * (FOLDS - 1) / FOLDS / training.batch_size))
    width = round(posts * (FOLDS - 1) / FOLDS / steps)
    length = len(given.corpus.embeddings) / posts
    train = _products(width, length, config.hidden)
    held = _products(width, length, config.hidden)

    def epoch() -> None:
        for _ in range(steps):
            train(True)
        for _ in range(round(steps / (FOLDS - 1))):
            held(False)

    return epoch


def _products(width: int, length: float, hidden: int) -> Callable[[bool], None]:
    """The products of `core.models.iris` on one batch of random numbers; with or without those of the gradient."""
    reads, rows, each = CRITERIA * QUERIES, round(width * length), round(length)
    chunks = torch.randn(FOLDS, rows, DIM)
    projection, projected = torch.randn(FOLDS, DIM, reads + hidden), torch.randn(FOLDS, rows, reads + hidden)
    layer, values = torch.randn(FOLDS, hidden, hidden), torch.randn(FOLDS, rows, hidden)
    weights, means = torch.randn(FOLDS * width, each, reads), torch.randn(FOLDS * width, each, CRITERIA)
    of_posts = torch.randn(FOLDS * width, each, hidden)
    inner, read = torch.randn(FOLDS * width, reads, hidden), torch.randn(FOLDS * width, CRITERIA, hidden)
    pooled = torch.randn(FOLDS, width * CRITERIA, hidden)

    def products(backward: bool) -> None:
        chunks @ projection
        values @ layer
        weights.mT @ of_posts
        means.mT @ of_posts
        pooled @ layer
        if backward:
            chunks.mT @ projected  # no gradient flows into frozen embeddings
            for given in (values, pooled):
                given @ layer.mT
                given.mT @ given
            for attention, found in ((weights, inner), (means, read)):
                of_posts @ found.mT
                attention @ found

    return products


def measure() -> dict[str, float]:
    """The ratios, and the seconds they come from."""
    home = case(HOME_POSTS)
    ours = fused(home)
    products = by_turns([bare_products(home), ours], 15)
    single = by_turns([ours, plain(home)], 7)
    theirs = by_turns([ours, written_plainly(home)], 5)
    large = case(10 * HOME_POSTS)
    products_10x = by_turns([bare_products(large), fused(large)], 5)
    return {
        "epoch.vs_reference": ratio(theirs),
        "epoch.vs_matmul": ratio(products),
        "epoch.vs_matmul_10x": ratio(products_10x),
        "epoch.plain_vs_fused": ratio(single),
        "epoch.growth_10x": float(np.median(products_10x[1]) / np.median(products[1])),
        "epoch.seconds": float(np.median(products[1])),
    }
