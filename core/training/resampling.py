"""New folds of the same posts, to score a chosen configuration on splits that its search has not seen."""

from __future__ import annotations

from contextlib import suppress

from ..corpus.data import Corpus
from ..errors import SplitError
from ..seeding import stable_seed
from ..splits import Folds, kfold

ATTEMPTS = 20
"""Seeds that are tried: not every one finds folds with both classes of every criterion."""


def fresh_folds(corpus: Corpus, folds: Folds, seed: int) -> Folds:
    """Return folds of the same search posts with another seed; the hold-out stays as it is.

    A search picks the configuration that happens to suit its folds, so its score on them is optimistic. Scores on fresh
    folds, with other initial weights, are less so; but the posts are the same, so they are still no substitute for the
    hold-out.

    Args:
        corpus: the posts that `folds` splits.
        folds: the folds of the search; posts with -1 (the hold-out) are in no fresh fold either.
        seed: seed of the fresh folds; the seed of `folds` reproduces `folds`. If it finds no folds, others that follow
            from it are tried.

    Returns:
        The same number of folds, with whole groups and both classes of every criterion in each.

    Raises:
        SplitError: the posts cannot be split into that many folds.
    """
    assert len(folds.assignment) == len(corpus), "the folds are of other posts"
    for attempt in range(1, ATTEMPTS):
        with suppress(SplitError):
            return _split_again(corpus, folds, seed)
        seed = stable_seed(seed, attempt)
    return _split_again(corpus, folds, seed)


def _split_again(corpus: Corpus, folds: Folds, seed: int) -> Folds:
    return kfold(
        corpus.groups,
        corpus.labels,
        folds.count,
        seed,
        criteria=[criterion.name for criterion in corpus.criteria],
        include=folds.assignment >= 0,
    )
