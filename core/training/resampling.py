"""New folds of the same posts, to score a chosen configuration on splits that its search has not seen."""

from __future__ import annotations

from ..corpus.data import Corpus
from ..splits import Folds, kfold


def fresh_folds(corpus: Corpus, folds: Folds, seed: int) -> Folds:
    """Return folds of the same search posts with another seed; the hold-out stays as it is.

    A search picks the configuration that happens to suit its folds, so its score on them is optimistic. Scores on fresh
    folds, with other initial weights, are less so; but the posts are the same, so they are still no substitute for the
    hold-out.

    Args:
        corpus: the posts that `folds` splits.
        folds: the folds of the search; posts with -1 (the hold-out) are in no fresh fold either.
        seed: seed of the fresh folds; the seed of `folds` reproduces `folds`.

    Returns:
        The same number of folds, with whole groups and both classes of every criterion in each.

    Raises:
        SplitError: the posts cannot be split into that many folds.
    """
    assert len(folds.assignment) == len(corpus), "the folds are of other posts"
    return kfold(
        corpus.groups,
        corpus.labels,
        folds.count,
        seed,
        criteria=[criterion.name for criterion in corpus.criteria],
        include=folds.assignment >= 0,
    )
