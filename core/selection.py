"""What the trials of a search are worth together: the ensemble, values corrected for selection, and intervals.

Everything is computed from out-of-fold predictions. A search keeps its best trial because it was best on these folds,
so the trial's own score is too high. `leave_one_fold_out` corrects for that: whatever is chosen is chosen without the
fold on which it is scored.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from . import metrics
from .corpus.data import UNLABELLED
from .metrics import Floats, Index, Labels
from .seeding import numpy_generator
from .splits import Folds

Logits = npt.NDArray[np.floating]
"""Out-of-fold predictions `[posts, criteria]`; NaN for posts that were not predicted."""
Choose = Callable[["Scorer", Sequence[Logits], Sequence[int]], list[int]]
"""(scorer, predictions of each trial, folds to choose by) to the chosen trials, some more than once."""

POOL = 30
"""An ensemble is chosen among so many of the best trials; more of them overfit the choice."""
PICKS = 20
"""Members of an ensemble, counted as often as they were picked."""
MEMBERS = 6
"""At most so many different ones: each is trained on every fresh split and for every fold of the fitted model."""
BLOCKS = 200
"""At most so many parts of the posts are left out in turn for a standard error."""
MAX_NUMBERS = 1 << 22
"""At most so many scores are in memory at a time while blocks are left out."""
NORMAL_95 = 1.959964
"""Half the width of a 95 % interval, in standard errors."""


@dataclass(frozen=True)
class Estimate:
    """A value with its 95 % interval."""

    value: float
    low: float
    high: float

    @property
    def standard_error(self) -> float:
        """The standard error behind the interval."""
        return (self.high - self.low) / (2 * NORMAL_95)

    def of_score(self) -> Estimate:
        """The same with an interval within 0 and 1, where every metric lies; for a score, not for a difference."""
        return Estimate(self.value, max(self.low, 0.0), min(self.high, 1.0))


class Scorer:
    """Scores predictions on one set of folds, in the study's metric.

    Args:
        metric: a name in `metrics.METRICS`.
        labels: int8 `[posts, criteria]`, 1, 0 or -1 (unlabelled).
        folds: the folds that the predictions are from.
        blocks: int64 `[posts]` from `make_blocks`; needed for `without_blocks` only.
    """

    def __init__(self, metric: str, labels: Labels, folds: Folds, blocks: Index | None = None) -> None:
        self.metric = metrics.METRICS[metric]
        self.labels = labels
        self.folds = folds
        self.blocks = np.full(len(labels), -1) if blocks is None else blocks

    def folds_of(self, logits: Logits, folds: Sequence[int] | None = None) -> Floats:
        """The score of each fold, float64 `[folds]`; NaN for a fold that was not predicted."""
        chosen = range(self.folds.count) if folds is None else folds
        return np.array([self._score(logits, self.folds.validation(fold)) for fold in chosen])

    def value(self, logits: Logits, folds: Sequence[int] | None = None) -> float:
        """The mean score over all folds, or over some."""
        return float(np.mean(self.folds_of(logits, folds)))

    def values(self, stacked: npt.NDArray[np.floating], folds: Sequence[int]) -> Floats:
        """The mean score over some folds of several predictions `[n, posts, criteria]` at once, float64 `[n]`."""
        scores = np.zeros(len(stacked))
        for fold in folds:
            rows = self.folds.validation(fold)
            columns = metrics.sigmoid(stacked[:, rows]).transpose(1, 0, 2).reshape(len(rows), -1)
            labels = np.tile(self.labels[rows], len(stacked))
            of_criteria = self.metric.function(labels, columns).reshape(len(stacked), -1)
            scores += [metrics.mean_defined(criteria) for criteria in of_criteria]
        return scores / len(folds)

    def signed(self, values: npt.ArrayLike) -> Floats:
        """The values, negated if lower is better: then higher is always better."""
        return np.asarray(values, dtype=np.float64) * (1 if self.metric.higher_is_better else -1)

    def without_blocks(self, logits: Logits) -> Floats:
        """The mean score over the folds with each block of posts left out in turn, float64 `[blocks]`."""
        whole = self.folds_of(logits)
        left_out = np.full(int(self.blocks.max()) + 1, whole.sum())
        for fold in range(self.folds.count):
            rows = self.folds.validation(fold)
            for blocks in _parts(np.unique(self.blocks[rows]), len(rows) * self.labels.shape[1]):
                scores = self._scores_without(logits, rows, blocks)
                left_out[blocks] += np.where(np.isnan(scores), 0, scores - whole[fold])
        return np.asarray(left_out / self.folds.count)

    def _scores_without(self, logits: Logits, rows: Index, blocks: Index) -> Floats:
        """The scores of a fold without each of the blocks, in one pass: a column per block and criterion."""
        left_out = (self.blocks[rows, None] == blocks)[:, :, None]
        labels = np.where(left_out, np.int8(UNLABELLED), self.labels[rows, None])
        scores = np.broadcast_to(metrics.sigmoid(logits[rows])[:, None], labels.shape)
        columns = self.metric.function(labels.reshape(len(rows), -1), scores.reshape(len(rows), -1))
        criteria = columns.reshape(len(blocks), -1)
        # A criterion whose only positive is left out keeps its value: the others alone have another mean, which says
        # nothing about how much the posts matter.
        whole = self.metric.function(self.labels[rows], metrics.sigmoid(logits[rows]))
        criteria = np.where(np.isnan(criteria), whole, criteria)
        return np.array([metrics.mean_defined(values) for values in criteria])

    def _score(self, logits: Logits, rows: Index) -> float:
        if len(rows) == 0 or np.isnan(logits[rows]).any():
            return float("nan")
        scores = metrics.sigmoid(logits[rows])
        return metrics.mean_defined(self.metric.function(self.labels[rows], scores))


def _parts(blocks: Index, size: int) -> list[Index]:
    """Divide blocks, each of which takes `size` numbers, so that a part fits into memory."""
    return np.array_split(blocks, max(1, math.ceil(len(blocks) * size / MAX_NUMBERS)))


def mean_logits(predictions: Sequence[Logits] | Mapping[int, Logits], members: Sequence[int]) -> Floats:
    """The ensemble's prediction: the mean logit of its members, `[posts, criteria]`; a repeated one weighs more."""
    logits = [np.asarray(predictions[member], dtype=np.float64) for member in members]
    return np.asarray(np.mean(logits, axis=0))


# ---- what is chosen -------------------------------------------------------------------------------------------------


def choose_best(scorer: Scorer, predictions: Sequence[Logits], folds: Sequence[int]) -> list[int]:
    """The one trial with the best mean over `folds`, the first if several are equal."""
    return [_ranking(scorer, predictions, folds)[0]]


def choose_members(
    scorer: Scorer,
    predictions: Sequence[Logits],
    folds: Sequence[int],
    *,
    pool: int = POOL,
    picks: int = PICKS,
    members: int = MEMBERS,
) -> list[int]:
    """The members of the ensemble: `picks` times the trial that improves the mean logit most.

    Greedy forward selection with replacement (Caruana, Niculescu-Mizil, Crew, Ksikes, ICML 2004) among the best `pool`
    trials. A trial that is picked more often weighs more; once there are `members` of them, further picks only change
    their weights. `benchmarks.choices` compares it with other rules.

    Args:
        scorer: scores predictions.
        predictions: of each trial, `[posts, criteria]`; all predict the posts of `folds`.
        folds: the folds to choose by.
        pool: how many of the best trials may be picked.
        picks: how many are picked.
        members: how many different ones, at most.

    Returns:
        Indices of `predictions`, `picks` of them, in the order of the picks.
    """
    best = _ranking(scorer, predictions, folds)[:pool]
    logits = np.stack([np.asarray(predictions[index], dtype=np.float64) for index in best])
    total = np.zeros_like(logits[0])
    picked: list[int] = []
    for count in range(1, picks + 1):
        known = sorted(set(picked))
        places = known if len(known) == members else range(len(best))
        values = scorer.values((total + logits[places]) / count, folds)
        picked.append(places[int(np.argmax(scorer.signed(values)))])
        total += logits[picked[-1]]
    return [best[place] for place in picked]


def _ranking(scorer: Scorer, predictions: Sequence[Logits], folds: Sequence[int]) -> list[int]:
    values = scorer.signed([scorer.value(logits, folds) for logits in predictions])
    return [int(index) for index in np.argsort(-values, kind="stable")]


# ---- how good it is -------------------------------------------------------------------------------------------------


def leave_one_fold_out(
    scorer: Scorer, predictions: Sequence[Logits], choose: Choose, *, pruning: Floats | None = None
) -> Floats:
    """The score of each fold, by what `choose` chooses without it, float64 `[folds]`.

    The mean over the folds estimates what a choice made like this is worth, without the optimism of scoring on the
    folds that chose.

    Args:
        scorer: scores predictions.
        predictions: of each complete trial.
        choose: `choose_best` or `choose_members`.
        pruning: from `pruning_bias`, subtracted.
    """
    everything = range(scorer.folds.count)
    scores = np.empty(scorer.folds.count)
    for fold in everything:
        chosen = choose(scorer, predictions, [other for other in everything if other != fold])
        scores[fold] = scorer.folds_of(mean_logits(predictions, chosen), [fold])[0]
    return scores if pruning is None else scores - pruning


def pruning_bias(scores: Floats, first_folds: int, *, higher_is_better: bool) -> Floats:
    """How much pruning raised the mean score of the trials that it left, by fold, float64 `[folds]`.

    The trials left after the first stage were left because they scored well on its folds, so their scores there are
    too high. The rule is replayed: without fold f, as many trials would have been left by the other folds of the stage.
    The difference between the mean scores on f of the two sets is what looking at f added. With a single fold in the
    first stage nothing is left to replay the rule by, and the bias is taken to be 0.

    Args:
        scores: float64 `[trials, folds]`, NaN where a trial was not trained.
        first_folds: number of folds of the first stage.
        higher_is_better: the metric's direction.
    """
    bias = np.zeros(scores.shape[1])
    started = scores[~np.isnan(scores[:, :first_folds]).any(axis=1)]
    kept = ~np.isnan(started).any(axis=1)
    if first_folds == 1 or kept.all() or not kept.any():
        return bias
    sign = 1 if higher_is_better else -1
    for fold in range(first_folds):
        others = [other for other in range(first_folds) if other != fold]
        order = np.argsort(-sign * started[:, others].mean(axis=1), kind="stable")
        replayed = started[order[: int(kept.sum())], fold]
        bias[fold] = started[kept, fold].mean() - replayed.mean()
    return bias


def epoch_flattery(curves: Sequence[Sequence[float]], *, higher_is_better: bool) -> float:
    """How much a value gains from taking the epoch that is best on the folds that score it.

    The value takes one epoch for all folds, the best of their mean curve. Without that choice a fold's score would be
    the one at the epoch that the other folds choose; the result is the difference of the two means.

    Args:
        curves: scores `[folds][epochs]`.
        higher_is_better: the metric's direction.
    """
    scores = np.array(curves, dtype=np.float64)
    sign = 1 if higher_is_better else -1
    best = int(np.argmax(sign * scores.mean(axis=0)))
    others = (scores.sum(axis=0) - scores) / max(len(scores) - 1, 1)
    chosen = np.argmax(sign * others, axis=1)
    return float((scores[:, best] - scores[np.arange(len(scores)), chosen]).mean())


def make_blocks(groups: Sequence[str], included: npt.NDArray[np.bool_], seed: int) -> Index:
    """Divide the posts into at most `BLOCKS` blocks of whole groups, int64 `[posts]`; -1 for posts not included.

    The blocks do not depend on folds, so values on several splits of the same posts can leave out the same block.
    """
    names = sorted({groups[row] for row in np.flatnonzero(included).tolist()})
    shuffled = numpy_generator(seed, "blocks").permutation(len(names))
    block_of = {names[place]: rank % BLOCKS for rank, place in enumerate(shuffled.tolist())}
    return np.array(
        [block_of[group] if keep else -1 for group, keep in zip(groups, included.tolist(), strict=True)], dtype=np.int64
    )


def estimate(values: npt.ArrayLike, left_out: npt.ArrayLike) -> Estimate:
    """The mean of a value over splits of the same posts, with a 95 % interval.

    The variance has two parts: the posts, by the jackknife over blocks of groups (Efron and Tibshirani, "An
    Introduction to the Bootstrap", 1993, chapter 11), and, with several splits, the splits and seeds. For the
    difference of two configurations, pass the differences on the same splits and the same blocks.

    Args:
        values: one value per split, `[splits]`.
        left_out: the same values with each block left out, `[splits, blocks]` from `Scorer.without_blocks`.
    """
    values, left_out = np.atleast_1d(np.asarray(values, dtype=np.float64)), np.atleast_2d(left_out)
    means = left_out.mean(axis=0)
    blocks = len(means)
    variance = (blocks - 1) / blocks * float(((means - means.mean()) ** 2).sum())
    if len(values) > 1:
        variance += float(values.var(ddof=1)) / len(values)
    half = NORMAL_95 * variance**0.5
    value = float(values.mean())
    return Estimate(value, value - half, value + half)
