"""Hold-out and k folds: groups stay whole, every criterion is balanced; pure functions and their fingerprint.

Whole groups (all posts of one author, say) are dealt to parts so that each part gets its share of the posts, of the
positives and of the negatives of every criterion. What is minimised, over all assignments of groups to parts, is

    Σ_part Σ_column (count − target)² / target,        target = share of the part × total of the column,

Pearson's χ² of the parts' counts; the columns are posts, positives and negatives of each criterion, so a post too
many of a rare criterion weighs more than one of a common criterion. Before that comes, as long as any is left, the
number of (part, column) that have nothing at all: a fold without a positive cannot be scored.

Groups are dealt rarest criterion first to the part that wants them most, which is the iterative stratification of
Sechidis, Tsoumakas and Vlahavas (ECML PKDD 2011) on the groups' count vectors, then single groups are moved and pairs
of groups exchanged between parts until neither helps. Nothing depends on hashes, names or the order in which a linear
algebra library adds: targets and weights are rounded to binary fractions, so the sums are exact.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import operator
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .config import SplitConfig
from .errors import ConfigError, SplitError

Floats = NDArray[np.float64]
Index = NDArray[np.int64]
Labels = NDArray[np.int8]

_TARGET_STEP = 2.0**-6  # targets and weights are multiples of these: their products add up exactly in float64
_WEIGHT_STEP = 2.0**-20
_EXCHANGE_CANDIDATES = 256  # different count vectors of a part that are tried in exchanges
_STARTS = 8  # orders of dealing that are tried; the best result counts


def partition(groups: Sequence[str], labels: Labels, shares: Sequence[float], seed: int) -> NDArray[np.int16]:
    """Assign whole groups to parts, each with its share of posts and of every criterion's positives and negatives.

    A pure function: the same arguments give the same parts on every machine. The seed orders groups that are equally
    good to take; group names matter only in that equal names are one group (groups are known by their first post).

    Args:
        groups: the group of each post, [posts].
        labels: int8 [posts, criteria]: 1 positive, 0 negative, -1 not labelled.
        shares: what each part should get, positive; they are divided by their sum.
        seed: breaks ties.

    Returns:
        int16 [posts]: the part of each post, 0 to `len(shares) - 1`.

    Raises:
        SplitError: shapes differ, a share is not positive, or there are more parts than groups.
    """
    need = np.ones((len(shares), 1 + 2 * _criteria_count(groups, labels)))
    return _partition(groups, labels, shares, seed, need)


def holdout_split(
    groups: Sequence[str], labels: Labels, share: float, seed: int, *, keep: int = 1
) -> NDArray[np.bool_]:
    """Choose the whole groups that are locked away until the final evaluation.

    The search part keeps at least `keep` groups with a positive (and with a negative) of each criterion where there
    are that many; only what is left over may go to the hold-out, which gets at least one where it can.

    Args:
        groups: the group of each post, [posts].
        labels: int8 [posts, criteria]: 1 positive, 0 negative, -1 not labelled.
        share: share of the posts to lock away, 0 ≤ share < 1; with 0 nothing is.
        seed: breaks ties.
        keep: groups of each kind that the search needs: the number of folds that are to come.

    Returns:
        bool [posts]: True = locked away.

    Raises:
        SplitError: the share is out of range, or there are fewer than two groups to choose from.
    """
    if not 0 <= share < 1:
        raise SplitError(f"the hold-out's share is {share}, but must be at least 0 and below 1")
    _criteria_count(groups, labels)
    if share == 0:
        return np.zeros(len(groups), dtype=np.bool_)
    group_count = len(set(groups))
    if group_count < 2:
        raise SplitError(
            f"all {len(groups)} posts are in one group, and a group is never torn apart, so there can be neither a "
            "hold-out nor folds; give posts that do not belong together different groups"
        )
    _, sizes = _group_counts(groups, labels)
    available = (sizes > 0).sum(axis=0)
    search = np.minimum(available, keep)
    need = np.stack([search, np.minimum(available - search, 1)]).astype(np.float64)
    need[:, 0] = 1  # neither part is empty
    part = _partition(groups, labels, [1 - share, share], seed, need)
    return np.asarray(part == 1, dtype=np.bool_)


@dataclass(frozen=True, eq=False)
class Folds:
    """Which fold validates each post.

    `assignment` is int16 [posts], -1 for posts in no fold (the hold-out); it is copied and made read-only.
    """

    assignment: NDArray[np.int16]
    count: int

    def __post_init__(self) -> None:
        assignment = np.array(self.assignment, dtype=np.int16)
        assert assignment.ndim == 1
        assert assignment.size == 0 or (assignment.min() >= -1 and assignment.max() < self.count)
        assignment.flags.writeable = False
        object.__setattr__(self, "assignment", assignment)

    def train(self, fold: int) -> Index:
        """Return int64 [rows]: the posts of every other fold, in order."""
        self._check(fold)
        return np.flatnonzero((self.assignment >= 0) & (self.assignment != fold))

    def validation(self, fold: int) -> Index:
        """Return int64 [rows]: the posts of this fold, in order."""
        self._check(fold)
        return np.flatnonzero(self.assignment == fold)

    def fingerprint(self, post_ids: Sequence[str]) -> str:
        """Return the SHA-256 of the (post, fold) pairs sorted by post; the order of the rows does not matter.

        Raises:
            ValueError: the number of ids differs from the number of posts, or two posts share an id.
        """
        if len(post_ids) != len(self.assignment):
            raise ValueError(f"{len(post_ids)} post ids were given for {len(self.assignment)} posts")
        pairs = sorted(zip(post_ids, self.assignment.tolist(), strict=True))
        if len({post_id for post_id, _ in pairs}) != len(pairs):
            raise ValueError("two posts share an id, so folds cannot be told apart; give each post an id of its own")
        return hashlib.sha256(json.dumps(pairs).encode()).hexdigest()

    def _check(self, fold: int) -> None:
        if not 0 <= fold < self.count:
            raise IndexError(f"fold {fold} was asked for, but there are folds 0 to {self.count - 1}")


def kfold(
    groups: Sequence[str],
    labels: Labels,
    folds: int,
    seed: int,
    *,
    criteria: Sequence[str],
    include: NDArray[np.bool_] | None = None,
) -> Folds:
    """Deal whole groups to `folds` folds of equal share; every fold has both classes of every criterion.

    Args:
        groups: the group of each post, [posts].
        labels: int8 [posts, criteria]: 1 positive, 0 negative, -1 not labelled.
        folds: how many, at least 2.
        seed: breaks ties.
        criteria: names of the columns of `labels`, for what is said when it cannot be done.
        include: bool [posts]; posts left out are in no fold (-1). None = all.

    Raises:
        SplitError: fewer groups than folds, a criterion whose positives or negatives lie in fewer groups than
            folds, or a fold that would have none; all criteria concerned are named.
    """
    columns = _criteria_count(groups, labels)
    if len(criteria) != columns:
        raise SplitError(f"{len(criteria)} criteria are named, but the labels have {columns} columns")
    if folds < 2:
        raise SplitError(f"{folds} folds were asked for, but at least 2 are needed to train on one and score another")
    chosen = np.arange(len(groups)) if include is None else np.flatnonzero(np.asarray(include, dtype=np.bool_))
    some_groups, some_labels = [groups[row] for row in chosen.tolist()], labels[chosen]
    _refuse_too_few(some_groups, some_labels, folds, criteria)
    part = partition(some_groups, some_labels, [1 / folds] * folds, seed)
    _refuse_one_class(part, some_labels, folds, criteria)
    assignment = np.full(len(groups), -1, dtype=np.int16)
    assignment[chosen] = part
    return Folds(assignment, folds)


def split(groups: Sequence[str], labels: Labels, config: SplitConfig, *, criteria: Sequence[str]) -> Folds:
    """Lock the hold-out away (-1) and deal the rest to folds, as the configuration says.

    Args:
        groups: the group of each post, [posts].
        labels: int8 [posts, criteria]: 1 positive, 0 negative, -1 not labelled.
        config: folds, stages, share of the hold-out, seed.
        criteria: names of the columns of `labels`.

    Raises:
        ConfigError: the stages do not add up to the folds.
        SplitError: as `holdout_split` and `kfold` say.
    """
    stages = config.stage_sizes()
    if sum(stages) != config.folds or min(stages) < 1:
        raise ConfigError(
            f"split.stages = {list(stages)} adds up to {sum(stages)} folds, but split.folds = {config.folds}; "
            "make the stages positive and add up to folds, or leave stages out"
        )
    locked = holdout_split(groups, labels, config.holdout, config.seed, keep=config.folds)
    return kfold(groups, labels, config.folds, config.seed, criteria=criteria, include=~locked)


# ---- what cannot be split ---------------------------------------------------------------------------------------


def _criteria_count(groups: Sequence[str], labels: Labels) -> int:
    if labels.ndim != 2 or len(groups) != len(labels):
        raise SplitError(f"labels must be [posts, criteria] for {len(groups)} posts, but have shape {labels.shape}")
    return int(labels.shape[1])


def _refuse_too_few(groups: Sequence[str], labels: Labels, folds: int, criteria: Sequence[str]) -> None:
    posts, group_count = len(groups), len(set(groups))
    if group_count < 2:
        raise SplitError(
            f"the {posts} posts to split are in {'one group' if posts else 'no group'}, which never straddles folds; "
            "give posts by different authors different groups, or leave the group column out"
        )
    if folds > group_count:
        raise SplitError(
            f"{folds} folds were asked for, but the {posts} posts to split are in {group_count} groups, and a group "
            f"never straddles folds; set folds to at most {group_count}"
        )
    _, sizes = _group_counts(groups, labels)
    totals, spread = sizes.sum(axis=0).astype(int), (sizes > 0).sum(axis=0)
    short: list[str] = []
    fewest = folds
    for column, name in enumerate(criteria):
        for kind, at in (("positive", 1 + column), ("negative", 1 + len(criteria) + column)):
            if spread[at] < folds:
                fewest = min(fewest, int(spread[at]))
                short.append(
                    f"criterion '{name}' has {_plural(totals[at], f'{kind} post')} in {_plural(spread[at], 'group')}"
                )
    if short:
        remedy = f"set folds to at most {fewest}, or leave " if fewest > 1 else "leave "
        these = "that criterion" if len(short) == 1 else "those criteria"
        raise SplitError(
            f"among the {posts} posts to split, {'; '.join(short)}, fewer than {folds} folds, and every fold needs "
            f"both classes; {remedy}{these} out, or label more posts"
        )


def _plural(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def _refuse_one_class(part: NDArray[np.int16], labels: Labels, folds: int, criteria: Sequence[str]) -> None:
    missing = [
        f"fold {fold} has no {kind} post of criterion '{name}'"
        for column, name in enumerate(criteria)
        for kind, value in (("positive", 1), ("negative", 0))
        for fold in range(folds)
        if not np.any(labels[part == fold, column] == value)
    ]
    if missing:
        raise SplitError(f"{'; '.join(missing)}; use fewer than {folds} folds, another seed, or smaller groups")


# ---- the algorithm ----------------------------------------------------------------------------------------------


def _group_counts(groups: Sequence[str], labels: Labels) -> tuple[Index, Floats]:
    """Return each post's group, int64 [posts], and each group's counts, [groups, 1 + 2 criteria].

    Groups are numbered by first appearance; the columns are posts, positives and negatives of every criterion.
    """
    numbers: dict[str, int] = {}
    group = np.fromiter((numbers.setdefault(name, len(numbers)) for name in groups), np.int64, len(groups))
    ones = np.ones((len(groups), 1))
    per_post = np.concatenate([ones, labels == 1, labels == 0], axis=1)
    counts = np.zeros((len(numbers), per_post.shape[1]))
    np.add.at(counts, group, per_post)
    return group, counts


def _partition(
    groups: Sequence[str], labels: Labels, shares: Sequence[float], seed: int, need: Floats
) -> NDArray[np.int16]:
    """Partition with `need` [parts, columns]: how many groups that have some of a column each part must get."""
    wanted = np.asarray(shares, dtype=np.float64)
    if wanted.size == 0 or not np.all(np.isfinite(wanted)) or np.any(wanted <= 0):
        raise SplitError(f"shares must be positive numbers, but are {list(shares)}")
    group, counts = _group_counts(groups, labels)
    if len(counts) < len(wanted):
        raise SplitError(f"{len(wanted)} parts were asked for, but there are {len(counts)} groups to share out")
    present = counts.sum(axis=0) > 0
    counts, need = counts[:, present], need[:, present]
    source = np.random.PCG64(seed % 2**64)  # raw draws: the same in every version of numpy
    found: list[tuple[tuple[float, float], Index]] = []
    for _ in range(_STARTS):
        dealing = _Dealing(counts, wanted / wanted.sum(), need)
        dealing.deal(np.argsort(source.random_raw(len(counts)), kind="stable"))
        dealing.improve()
        found.append((dealing.objective(), dealing.part))
    _, part = min(found, key=operator.itemgetter(0))  # the first of the best
    return part[group].astype(np.int16)


class _Dealing:
    """Groups being dealt to parts: who is where, and what follows from it.

    `part` int64 [groups]; `excess` = count − target and `having` = groups that have some, both [parts, columns].
    """

    def __init__(self, counts: Floats, shares: Floats, need: Floats) -> None:
        target = shares[:, None] * counts.sum(axis=0)
        self.target = np.maximum(np.round(target / _TARGET_STEP), 1) * _TARGET_STEP
        self.weight = np.maximum(np.round(1 / self.target / _WEIGHT_STEP), 1) * _WEIGHT_STEP
        self.counts, self.has, self.need = counts, (counts > 0).astype(np.float64), need
        self.squares = counts**2 @ self.weight.T  # [groups, parts]
        self.kind = np.unique(counts, axis=0, return_inverse=True)[1].reshape(-1)  # equal counts, equal kind
        self.part = np.full(len(counts), -1, dtype=np.int64)
        self.excess = -self.target.copy()
        self.having = np.zeros_like(self.target)

    def objective(self) -> tuple[float, float]:
        """Return what is minimised: how many groups parts still need, then χ²."""
        shortage = np.maximum(self.need - self.having, 0).sum()
        return float(shortage), math.fsum((self.excess**2 * self.weight).ravel().tolist())

    def deal(self, order: Index) -> None:
        """Deal all groups, rarest first: those that hold the largest share of any column; ties in `order`."""
        rarity = (self.counts / self.counts.sum(axis=0)).max(axis=1)
        for group in order[np.argsort(-rarity[order], kind="stable")]:
            pull = (2 * self.excess * self.weight) @ self.counts[group] + self.squares[group]
            wanted = (self.having < self.need) @ self.has[group]
            self._put(int(group), int(np.argmin(np.where(wanted == wanted.max(), pull, np.inf))))

    def improve(self) -> None:
        """Move and exchange groups until no single step helps."""
        while self._best_move() or self._best_exchanges():
            pass

    def _put(self, group: int, part: int) -> None:
        was = self.part[group]
        if was >= 0:
            self.excess[was] -= self.counts[group]
            self.having[was] -= self.has[group]
        self.part[group] = part
        self.excess[part] += self.counts[group]
        self.having[part] += self.has[group]

    def _prices(self, rows: Index | slice, parts: Sequence[int] | slice) -> tuple[Floats, Floats]:
        """Return what the objective gains when groups leave and when they join parts, both [2, rows, parts].

        Shortage and χ² stay apart on the first axis: one number for both would round χ² off, and a step that helps
        only by rounding can be taken for ever.
        """
        linear = self.counts[rows] @ (2 * self.excess * self.weight)[parts].T
        squares, has = self.squares[rows][:, parts], self.has[rows]
        lacking, just_enough = self.having[parts] < self.need[parts], self.having[parts] <= self.need[parts]
        leave = np.stack([has @ just_enough.T.astype(np.float64), squares - linear])
        join = np.stack([-(has @ lacking.T.astype(np.float64)), squares + linear])
        return leave, join

    def _best_move(self) -> bool:
        """Make the one move that helps most; say whether there was one."""
        leave, join = self._prices(slice(None), slice(None))
        every = np.arange(len(self.part))
        change = leave[:, every, self.part][:, :, None] + join
        change[:, every, self.part] = 0
        best = _best(change)
        if best is not None:
            self._put(*best)
        return best is not None

    def _best_exchanges(self) -> bool:
        """Make, for every two parts, the exchange of two groups that helps most; say whether there was one."""
        exchanged = [self._best_exchange(a, b) for a, b in itertools.combinations(range(len(self.target)), 2)]
        return any(exchanged)

    def _best_exchange(self, a: int, b: int) -> bool:
        ours, our_price = self._candidates(a, b)
        theirs, their_price = self._candidates(b, a)
        if not (ours.size and theirs.size):
            return False
        change = our_price[:, :, None] + their_price[:, None]
        tight = (self.having == self.need)[[a, b]].sum(axis=0)
        change[0] -= (self.has[ours] * tight) @ self.has[theirs].T  # what both groups have stays where it is
        change[1] -= 2 * (self.counts[ours] * (self.weight[a] + self.weight[b])) @ self.counts[theirs].T
        best = _best(change)
        if best is not None:
            self._put(int(ours[best[0]]), b)
            self._put(int(theirs[best[1]]), a)
        return best is not None

    def _candidates(self, part: int, other: int) -> tuple[Index, Floats]:
        """Return one group of each kind in a part and its price of moving to the other, [2, groups].

        The cheapest if there are many.
        """
        members = np.flatnonzero(self.part == part)
        members = members[np.sort(np.unique(self.kind[members], return_index=True)[1])]
        leave, join = self._prices(members, [part, other])
        price = leave[:, :, 0] + join[:, :, 1]
        if len(members) > _EXCHANGE_CANDIDATES:
            cheapest = np.lexsort((price[1], price[0]))[:_EXCHANGE_CANDIDATES]
            members, price = members[cheapest], price[:, cheapest]
        return members, price


def _best(change: Floats) -> tuple[int, int] | None:
    """Return row and column of the change [2, rows, columns] that helps most, shortage first; None if none helps."""
    shortage, imbalance = change
    least = shortage.min()
    imbalance = np.where(shortage == least, imbalance, np.inf)
    row, column = divmod(int(np.argmin(imbalance)), imbalance.shape[1])
    helps = least < 0 or (least == 0 and imbalance[row, column] < -_WEIGHT_STEP)
    return (row, column) if helps else None
