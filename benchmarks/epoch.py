"""An epoch of all folds, fused and per fold, compared with a straightforward reference and bare matrix products."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import DataLoader

from benchmarks import reference
from benchmarks.timing import ratio, time_alternately
from sparse_evidence.core.config import (
    BCEConfig,
    CandidateConfig,
    ChunksConfig,
    IrisConfig,
    SplitConfig,
    TrainingConfig,
)
from sparse_evidence.core.corpus.synthetic import SyntheticSource
from sparse_evidence.core.features.chunks import chunk
from sparse_evidence.core.features.views import EmbeddedCorpus
from sparse_evidence.core.metrics import score
from sparse_evidence.core.models import prior_log_odds
from sparse_evidence.core.splits import Folds, split
from sparse_evidence.core.training.stack import Stack, make_stack

HOME_POSTS = 1484
DIM, CRITERIA, QUERIES = 384, 10, 8
FOLDS = 5
PUBLISHED = IrisConfig(num_queries=QUERIES, k_retrieved=4, similarities=0, mean_embedding=False)
"""The model that the reference has, too."""
CANDIDATE = CandidateConfig(PUBLISHED, TrainingConfig(), BCEConfig())


@dataclass(frozen=True, eq=False)
class Case:
    """A corpus of the shape of ReDSM5; its vectors are random, which does not affect timings."""

    corpus: EmbeddedCorpus
    folds: Folds


def case(posts: int) -> Case:
    """Synthetic posts with the lengths and label frequencies of ReDSM5."""
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


def fused(data: Case) -> Callable[[], None]:
    """Return our epoch: train and validate all folds as one model."""
    stack = make_stack(data.corpus, data.folds, range(FOLDS), CANDIDATE, seed=0)
    return lambda: _epoch(stack, data)


def plain(data: Case) -> Callable[[], None]:
    """Return our epoch with one model per fold."""
    stack = make_stack(data.corpus, data.folds, range(FOLDS), CANDIDATE, seed=0, fuse=False)
    return lambda: _epoch(stack, data)


def _epoch(stack: Stack, data: Case) -> None:
    stack.advance()
    logits, _ = stack.validate()
    for fold, part in zip(stack.fold_ids, logits, strict=True):
        score("average_precision", data.corpus.labels[data.folds.validation(fold)], part)


def reference_epoch(data: Case) -> Callable[[], None]:
    """Return the reference's epoch: one fold after another, pair by pair."""
    config, training = CANDIDATE.model, CANDIDATE.training
    assert isinstance(config, IrisConfig)
    runs = []
    for fold in range(FOLDS):
        train, validation = data.folds.train(fold), data.folds.validation(fold)
        prior = prior_log_odds(data.corpus.labels, [train])[0]
        model = reference.PairIris(config, torch.from_numpy(data.corpus.criteria), prior)
        optimizer = torch.optim.AdamW(model.parameters(), lr=training.learning_rate)
        batch = training.batch_size * CRITERIA
        train_pairs = reference.Pairs(data.corpus, train.tolist())
        loader = DataLoader(train_pairs, batch, shuffle=True, collate_fn=reference.collate)
        validation_pairs = reference.Pairs(data.corpus, validation.tolist())
        validation_loader = DataLoader(validation_pairs, batch, collate_fn=reference.collate)
        runs.append((model, optimizer, loader, validation_loader, data.corpus.labels[validation]))

    def epoch() -> None:
        for model, optimizer, loader, validation_loader, labels in runs:
            reference.train_epoch(model, optimizer, loader, torch.nn.BCEWithLogitsLoss())
            score("average_precision", labels, reference.predict(model, validation_loader, CRITERIA).numpy())

    return epoch


def bare_products(data: Case) -> Callable[[], None]:
    """Return only the matrix products of one epoch: forward and backward in training, forward in validation.

    Without padding, masks, top-k, softmax, optimizer and data movement; with the same batch shapes, so that caches are
    used alike.
    """
    config, training = CANDIDATE.model, CANDIDATE.training
    assert isinstance(config, IrisConfig)
    posts = len(data.corpus.labels)
    steps = int(np.ceil(posts * (FOLDS - 1) / FOLDS / training.batch_size))
    width = round(posts * (FOLDS - 1) / FOLDS / steps)
    length = len(data.corpus.embeddings) / posts
    train = _products(width, length, config.hidden)
    validate = _products(width, length, config.hidden)

    def epoch() -> None:
        for _ in range(steps):
            train(True)
        for _ in range(round(steps / (FOLDS - 1))):
            validate(False)

    return epoch


def _products(width: int, length: float, hidden: int) -> Callable[[bool], None]:
    """Return the products of `core.models.iris` on a batch of random numbers, optionally with those of its gradient."""
    queries, rows, chunks_per_post = CRITERIA * QUERIES, round(width * length), round(length)
    chunks = torch.randn(FOLDS, rows, DIM)
    projection, projected = torch.randn(FOLDS, DIM, queries + hidden), torch.randn(FOLDS, rows, queries + hidden)
    layer, values = torch.randn(FOLDS, hidden, hidden), torch.randn(FOLDS, rows, hidden)
    weights = torch.randn(FOLDS * width, chunks_per_post, queries)
    means = torch.randn(FOLDS * width, chunks_per_post, CRITERIA)
    of_posts = torch.randn(FOLDS * width, chunks_per_post, hidden)
    query_gradients = torch.randn(FOLDS * width, queries, hidden)
    criterion_gradients = torch.randn(FOLDS * width, CRITERIA, hidden)
    pooled = torch.randn(FOLDS, width * CRITERIA, hidden)

    def products(backward: bool) -> None:
        chunks @ projection
        values @ layer
        weights.mT @ of_posts
        means.mT @ of_posts
        pooled @ layer
        if backward:
            chunks.mT @ projected  # no gradient flows into frozen embeddings
            for inputs in (values, pooled):
                inputs @ layer.mT
                inputs.mT @ inputs
            for attention, gradients in ((weights, query_gradients), (means, criterion_gradients)):
                of_posts @ gradients.mT
                attention @ gradients

    return products


def measure() -> dict[str, float]:
    """The ratios, and the seconds behind them."""
    home = case(HOME_POSTS)
    ours = fused(home)
    products = time_alternately([bare_products(home), ours], 15)
    plain_seconds = time_alternately([ours, plain(home)], 7)
    # A call of the next two takes ten seconds: what is slow in a first one is little of that, and the median leaves it.
    reference_seconds = time_alternately([ours, reference_epoch(home)], 5, warm_up=False)
    large = case(10 * HOME_POSTS)
    products_10x = time_alternately([bare_products(large), fused(large)], 5, warm_up=False)
    return {
        "epoch.vs_reference": ratio(reference_seconds),
        "epoch.vs_matmul": ratio(products),
        "epoch.vs_matmul_10x": ratio(products_10x),
        "epoch.plain_vs_fused": ratio(plain_seconds),
        "epoch.growth_10x": float(np.median(products_10x[1]) / np.median(products[1])),
        "epoch.seconds": float(np.median(products[1])),
    }
