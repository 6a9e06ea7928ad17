"""New folds of the same posts: fresh ones to score a chosen configuration on, and outer ones around a search."""

from __future__ import annotations

from contextlib import suppress

import numpy as np

from ..corpus.data import Corpus
from ..errors import SplitError
from ..seeding import stable_seed
from ..splits import Folds, kfold

ATTEMPTS = 20
"""Seeds that are tried: not every one finds folds with both classes of every criterion."""


def fresh_folds(corpus: Corpus, folds: Folds, seed: int, *, count: int | None = None) -> Folds:
    """Return folds of the same search posts with another seed; the hold-out stays as it is.

    A search picks the configuration that happens to suit its folds, so its score on them is optimistic. Scores on fresh
    folds, with other initial weights, are less so; but the posts are the same, so they are still no substitute for the
    hold-out.

    Args:
        corpus: the posts that `folds` splits.
        folds: the folds of the search; posts with -1 (the hold-out) are in no fresh fold either.
        seed: seed of the fresh folds; the seed of `folds` reproduces `folds`. If it finds no folds, others that follow
            from it are tried.
        count: how many folds; default: as many as `folds`.

    Returns:
        The folds, with whole groups and both classes of every criterion in each.

    Raises:
        SplitError: the posts cannot be split into that many folds.
    """
    assert len(folds.assignment) == len(corpus), "the folds are of other posts"
    for attempt in range(1, ATTEMPTS):
        with suppress(SplitError):
            return _split_again(corpus, folds, seed, count)
        seed = stable_seed(seed, attempt)
    return _split_again(corpus, folds, seed, count)


def outer_folds(corpus: Corpus, folds: Folds, count: int, seed: int) -> Folds:
    """Divide the posts of a search into the outer folds of a nested cross-validation; the hold-out stays out.

    Args:
        corpus: the posts.
        folds: the folds of the search.
        count: how many outer folds.
        seed: the seed of `folds`; that of the outer folds follows from it.

    Raises:
        SplitError: the posts cannot be divided into that many folds.
    """
    try:
        return fresh_folds(corpus, folds, stable_seed(seed, "outer folds"), count=count)
    except SplitError as error:
        raise SplitError(f"the posts of the search cannot be divided into {count} outer folds: {error}") from None


def inner_folds(corpus: Corpus, folds: Folds, outer: Folds, fold: int, seed: int) -> Folds:
    """Folds like those of a search, of all its posts but those of an outer fold.

    Args:
        corpus: the posts.
        folds: the folds of the search.
        outer: from `outer_folds`.
        fold: the outer fold whose posts are in no inner fold (-1), counted from 0.
        seed: the seed of `folds`.

    Raises:
        SplitError: the posts that are left cannot be divided into as many folds as `folds`.
    """
    left = Folds(np.where(outer.assignment == fold, -1, folds.assignment), folds.count)
    try:
        return fresh_folds(corpus, left, seed)
    except SplitError as error:
        raise SplitError(
            f"without outer fold {fold + 1} of {outer.count}, the posts cannot be divided into the {folds.count} folds "
            f"of the search: {error}"
        ) from None


def _split_again(corpus: Corpus, folds: Folds, seed: int, count: int | None) -> Folds:
    return kfold(
        corpus.groups,
        corpus.labels,
        count or folds.count,
        seed,
        criteria=[criterion.name for criterion in corpus.criteria],
        include=folds.assignment >= 0,
    )
