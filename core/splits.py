"""Hold-out and k folds: groups stay whole, every criterion is balanced.

Whole groups (all posts of one author, for example) are assigned to parts so that each part gets its share of the posts
and of the positives and negatives of every criterion. The cost, minimised over all assignments of groups to parts, is

    Σ_part Σ_column (count − target)² / target,        target = share of the part × total of the column,

Pearson's χ² of the parts' counts. The columns are posts, positives and negatives of each criterion, so one post too
many weighs more for a rare criterion than for a common one. Shortage, the number of groups
that parts still lack in some column, takes precedence over this cost, because a fold without a positive cannot be
scored.

Groups are first assigned in order of rarity, each to the part that needs it most, which is the iterative
stratification of Sechidis, Tsoumakas and Vlahavas (ECML PKDD 2011) on the groups' count vectors. Then a local search
moves single groups and exchanges pairs of groups between parts until no step improves the cost. The result depends on
no hash, no name and no order of summation in a linear algebra library: targets and weights are rounded to binary
fractions, so sums are exact.
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

from .cache import remembered
from .config import SplitConfig
from .errors import ConfigError, SplitError, first, quote_value

Floats = NDArray[np.float64]
Index = NDArray[np.int64]
Labels = NDArray[np.int8]

_TARGET_STEP = 2.0**-6  # targets and weights are multiples of these: their products add up exactly in float64
_WEIGHT_STEP = 2.0**-20
_EXCHANGE_CANDIDATES = 256  # distinct count vectors per part that are tried in exchanges
_STARTS = 8  # initial orders that are tried; the best result is used


def partition(groups: Sequence[str], labels: Labels, shares: Sequence[float], seed: int) -> NDArray[np.int16]:
    """Assign whole groups to parts, each with its share of posts and of every criterion's positives and negatives.

    A pure function: the same arguments give the same parts on every machine. The seed only breaks ties between groups
    that are equally good to assign. Group names do not matter, only which posts share one: groups are numbered by their
    first post.

    Args:
        groups: the group of each post, [posts].
        labels: int8 [posts, criteria]: 1 positive, 0 negative, -1 not labelled.
        shares: the share of each part, positive; normalised to add up to 1.
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
    """Choose whole groups to hold out until the final evaluation.

    The search part keeps at least `keep` groups with a positive (and with a negative) of each criterion, if there are
    that many; only groups beyond that may go to the hold-out, which gets at least one of them if there is one.

    Args:
        groups: the group of each post, [posts].
        labels: int8 [posts, criteria]: 1 positive, 0 negative, -1 not labelled.
        share: share of the posts to hold out, 0 ≤ share < 1.
        seed: breaks ties.
        keep: minimum number of groups with each label of each criterion that stay out of the hold-out: usually the
            number of folds.

    Returns:
        bool [posts]: True = held out.

    Raises:
        SplitError: the share is out of range, or there are fewer than two groups to choose from.
    """
    if not 0 <= share < 1:
        raise SplitError(f"the share of the hold-out is {share}, but must be at least 0 and below 1")
    _criteria_count(groups, labels)
    if share == 0:
        return np.zeros(len(groups), dtype=np.bool_)
    group_count = len(set(groups))
    if group_count < 2:
        raise SplitError(
            f"all {len(groups)} posts are in one group, and groups are never split, so neither a hold-out nor folds "
            "are possible; assign unrelated posts to different groups"
        )
    _, sizes = _group_counts(groups, labels)
    available = (sizes > 0).sum(axis=0)
    kept = np.minimum(available, keep)
    need = np.stack([kept, np.minimum(available - kept, 1)]).astype(np.float64)
    need[:, 0] = 1  # both parts need posts
    part = _partition(groups, labels, [1 - share, share], seed, need)
    return np.asarray(part == 1, dtype=np.bool_)


@dataclass(frozen=True, eq=False)
class Folds:
    """The validation fold of each post."""

    assignment: NDArray[np.int16]
    """int16 [posts], -1 for posts in no fold (the hold-out); copied and made read-only."""
    count: int
    """Number of folds."""

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
        """Return the SHA-256 (hex) of the (post, fold) pairs sorted by post; the order of rows does not matter.

        Raises:
            ValueError: the number of ids differs from the number of posts, or two posts share an id.
        """
        if len(post_ids) != len(self.assignment):
            raise ValueError(f"{len(post_ids)} post ids were given for {len(self.assignment)} posts")
        pairs = sorted(zip(post_ids, self.assignment.tolist(), strict=True))
        if len({post_id for post_id, _ in pairs}) != len(pairs):
            raise ValueError("two posts share an id, so their folds cannot be distinguished; use unique post ids")
        return hashlib.sha256(json.dumps(pairs).encode()).hexdigest()

    def _check(self, fold: int) -> None:
        if not 0 <= fold < self.count:
            raise IndexError(f"fold {fold} was requested, but there are folds 0 to {self.count - 1}")


def kfold(
    groups: Sequence[str],
    labels: Labels,
    folds: int,
    seed: int,
    *,
    criteria: Sequence[str],
    include: NDArray[np.bool_] | None = None,
) -> Folds:
    """Assign whole groups to folds of equal share; every fold has both classes of every criterion.

    Args:
        groups: the group of each post, [posts].
        labels: int8 [posts, criteria]: 1 positive, 0 negative, -1 not labelled.
        folds: number of folds, at least 2.
        seed: breaks ties.
        criteria: names of the columns of `labels`, for error messages.
        include: bool [posts]; excluded posts are in no fold (-1). None = all posts.

    Raises:
        SplitError: fewer groups than folds, a criterion whose positives or negatives are in fewer groups than folds,
            or a fold that would have none; the message names all criteria affected.
    """
    columns = _criteria_count(groups, labels)
    if len(criteria) != columns:
        raise SplitError(f"{len(criteria)} criteria are named, but the labels have {columns} columns")
    if folds < 2:
        raise SplitError(f"{folds} folds were requested, but at least 2 are needed to train on one and score another")
    rows = np.arange(len(groups)) if include is None else np.flatnonzero(np.asarray(include, dtype=np.bool_))
    included_groups, included_labels = [groups[row] for row in rows.tolist()], labels[rows]
    _check_group_counts(included_groups, included_labels, folds, criteria)
    part = partition(included_groups, included_labels, [1 / folds] * folds, seed)
    _check_classes(part, included_labels, folds, criteria)
    assignment = np.full(len(groups), -1, dtype=np.int16)
    assignment[rows] = part
    return Folds(assignment, folds)


def split(groups: Sequence[str], labels: Labels, config: SplitConfig, *, criteria: Sequence[str]) -> Folds:
    """Choose the hold-out (-1) and assign all other posts to folds, as configured.

    Args:
        groups: the group of each post, [posts].
        labels: int8 [posts, criteria]: 1 positive, 0 negative, -1 not labelled.
        config: number of folds, stages, share of the hold-out, seed.
        criteria: names of the columns of `labels`.

    Raises:
        ConfigError: the stages do not add up to the folds.
        SplitError: see `holdout_split` and `kfold`.
    """
    stages = config.stage_sizes()
    if sum(stages) != config.folds or min(stages) < 1:
        raise ConfigError(
            f"stages = {list(stages)} adds up to {sum(stages)} folds, but folds = {config.folds}; "
            "use positive stages that add up to folds, or omit stages"
        )
    held_out = holdout_split(groups, labels, config.holdout, config.seed, keep=config.folds)
    return kfold(groups, labels, config.folds, config.seed, criteria=criteria, include=~held_out)


def split_once(groups: Sequence[str], labels: Labels, config: SplitConfig, *, criteria: Sequence[str]) -> Folds:
    """`split`, but the folds of the same posts are kept in the cache: choosing them takes a while.

    Raises:
        ConfigError, SplitError: as `split`.
        UserError: the cache folder cannot be created.
    """
    numbers: dict[str, int] = {}  # names do not matter
    group = np.array([numbers.setdefault(name, len(numbers)) for name in groups], dtype=np.int64)
    arguments = (repr(config).encode(), repr(labels.shape).encode(), labels.tobytes(), group.tobytes())
    assignment = remembered(
        "folds", __file__, arguments, lambda: split(groups, labels, config, criteria=criteria).assignment
    )
    return Folds(assignment, config.folds)


# ---- checks -----------------------------------------------------------------------------------------------------


def _criteria_count(groups: Sequence[str], labels: Labels) -> int:
    if labels.ndim != 2 or len(groups) != len(labels):
        raise SplitError(f"labels must be [posts, criteria] for {len(groups)} posts, but have shape {labels.shape}")
    return int(labels.shape[1])


def _check_group_counts(groups: Sequence[str], labels: Labels, folds: int, criteria: Sequence[str]) -> None:
    posts, group_count = len(groups), len(set(groups))
    if group_count < 2:
        raise SplitError(
            f"the {posts} posts to split are in {'one group' if posts else 'no group'}, and groups are never split; "
            "assign posts by different authors to different groups, or remove the group column"
        )
    if folds > group_count:
        raise SplitError(
            f"{folds} folds were requested, but the {posts} posts to split are in {group_count} groups, and groups "
            f"are never split; set folds to at most {group_count}"
        )
    _, sizes = _group_counts(groups, labels)
    totals, spread = sizes.sum(axis=0).astype(int), (sizes > 0).sum(axis=0)
    rare: list[str] = []
    fewest = folds
    for column, name in enumerate(criteria):
        for kind, index in (("positive", 1 + column), ("negative", 1 + len(criteria) + column)):
            if spread[index] < folds:
                fewest = min(fewest, int(spread[index]))
                posts_of_kind, groups_of_kind = _plural(totals[index], f"{kind} post"), _plural(spread[index], "group")
                rare.append(f"criterion {quote_value(name)} has {posts_of_kind} in {groups_of_kind}")
    if rare:
        remedy = f"set folds to at most {fewest}, or remove " if fewest > 1 else "remove "
        rare_criteria = "that criterion" if len(rare) == 1 else "those criteria"
        raise SplitError(
            f"among the {posts} posts to split, {first(rare)}, fewer than {folds} folds, and every fold needs "
            f"both classes; {remedy}{rare_criteria}, or label more posts"
        )


def _plural(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def _check_classes(part: NDArray[np.int16], labels: Labels, folds: int, criteria: Sequence[str]) -> None:
    missing = [
        f"fold {fold} has no {kind} post of criterion {quote_value(name)}"
        for column, name in enumerate(criteria)
        for kind, value in (("positive", 1), ("negative", 0))
        for fold in range(folds)
        if not np.any(labels[part == fold, column] == value)
    ]
    if missing:
        raise SplitError(f"{first(missing)}; use fewer than {folds} folds, another seed, or smaller groups")


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
    """See `partition`; each part must get `need` [parts, columns] groups with a nonzero count in the column."""
    part_shares = np.asarray(shares, dtype=np.float64)
    if part_shares.size == 0 or not np.all(np.isfinite(part_shares)) or np.any(part_shares <= 0):
        raise SplitError(f"shares must be positive numbers, but are {list(shares)}")
    group, counts = _group_counts(groups, labels)
    if len(counts) < len(part_shares):
        raise SplitError(f"{len(part_shares)} parts were requested, but there are only {len(counts)} groups")
    present = counts.sum(axis=0) > 0
    counts, need = counts[:, present], need[:, present]
    source = np.random.PCG64(seed % 2**64)  # raw draws are the same in every version of numpy
    results: list[tuple[tuple[float, float], Index]] = []
    for _ in range(_STARTS):
        search = _LocalSearch(counts, part_shares / part_shares.sum(), need)
        search.assign(np.argsort(source.random_raw(len(counts)), kind="stable"))
        search.improve()
        results.append((search.cost(), search.part))
    _, part = min(results, key=operator.itemgetter(0))  # the first of the best
    return part[group].astype(np.int16)


class _LocalSearch:
    """An assignment of groups to parts and the sums that its cost is computed from.

    `part` int64 [groups] is the assignment, -1 for groups not yet assigned. Per part and column, both [parts, columns]:
    `excess` = count − target, and `group_counts` = number of groups with a nonzero count.
    """

    def __init__(self, counts: Floats, shares: Floats, need: Floats) -> None:
        target = shares[:, None] * counts.sum(axis=0)
        self.target = np.maximum(np.round(target / _TARGET_STEP), 1) * _TARGET_STEP
        self.weight = np.maximum(np.round(1 / self.target / _WEIGHT_STEP), 1) * _WEIGHT_STEP
        self.counts, self.nonzero, self.need = counts, (counts > 0).astype(np.float64), need
        self.squares = counts**2 @ self.weight.T  # [groups, parts]
        self.kind = np.unique(counts, axis=0, return_inverse=True)[1].reshape(-1)  # same counts, same kind
        self.part = np.full(len(counts), -1, dtype=np.int64)
        self.excess = -self.target.copy()
        self.group_counts = np.zeros_like(self.target)

    def cost(self) -> tuple[float, float]:
        """Return what is minimised: the number of groups that parts still need, then χ²."""
        shortage = np.maximum(self.need - self.group_counts, 0).sum()
        return float(shortage), math.fsum((self.excess**2 * self.weight).ravel().tolist())

    def assign(self, order: Index) -> None:
        """Assign all groups, starting with those that hold the largest share of any column; `order` breaks ties."""
        rarity = (self.counts / self.counts.sum(axis=0)).max(axis=1)
        for group in order[np.argsort(-rarity[order], kind="stable")]:
            cost = (2 * self.excess * self.weight) @ self.counts[group] + self.squares[group]
            needed = (self.group_counts < self.need) @ self.nonzero[group]
            self._put(int(group), int(np.argmin(np.where(needed == needed.max(), cost, np.inf))))

    def improve(self) -> None:
        """Move and exchange groups until no single step helps."""
        while self._best_move() or self._best_exchanges():
            pass

    def _put(self, group: int, part: int) -> None:
        previous = self.part[group]
        if previous >= 0:
            self.excess[previous] -= self.counts[group]
            self.group_counts[previous] -= self.nonzero[group]
        self.part[group] = part
        self.excess[part] += self.counts[group]
        self.group_counts[part] += self.nonzero[group]

    def _cost_changes(self, rows: Index | slice, parts: Sequence[int] | slice) -> tuple[Floats, Floats]:
        """Return the changes of the cost when groups leave and when they join parts, both [2, rows, parts].

        The first axis separates shortage and χ²: a single number for both would round χ², and a step whose
        only gain is a rounding error could repeat forever.
        """
        linear = self.counts[rows] @ (2 * self.excess * self.weight)[parts].T
        squares, nonzero = self.squares[rows][:, parts], self.nonzero[rows]
        group_counts, need = self.group_counts[parts], self.need[parts]
        lacking, just_enough = group_counts < need, group_counts <= need
        leave = np.stack([nonzero @ just_enough.T.astype(np.float64), squares - linear])
        join = np.stack([-(nonzero @ lacking.T.astype(np.float64)), squares + linear])
        return leave, join

    def _best_move(self) -> bool:
        """Make the single move that improves the cost most; return whether there was one."""
        leave, join = self._cost_changes(slice(None), slice(None))
        groups = np.arange(len(self.part))
        change = leave[:, groups, self.part][:, :, None] + join
        change[:, groups, self.part] = 0
        best = _best(change)
        if best is not None:
            self._put(*best)
        return best is not None

    def _best_exchanges(self) -> bool:
        """Make, for every two parts, the exchange of two groups that improves the cost most; return whether any did."""
        exchanged = [self._best_exchange(a, b) for a, b in itertools.combinations(range(len(self.target)), 2)]
        return any(exchanged)

    def _best_exchange(self, a: int, b: int) -> bool:
        from_a, change_a = self._candidates(a, b)
        from_b, change_b = self._candidates(b, a)
        if not (from_a.size and from_b.size):
            return False
        change = change_a[:, :, None] + change_b[:, None]
        tight = (self.group_counts == self.need)[[a, b]].sum(axis=0)
        # columns in which both groups count are unaffected
        change[0] -= (self.nonzero[from_a] * tight) @ self.nonzero[from_b].T
        change[1] -= 2 * (self.counts[from_a] * (self.weight[a] + self.weight[b])) @ self.counts[from_b].T
        best = _best(change)
        if best is not None:
            self._put(int(from_a[best[0]]), b)
            self._put(int(from_b[best[1]]), a)
        return best is not None

    def _candidates(self, part: int, other: int) -> tuple[Index, Floats]:
        """Return one group of each kind in `part`, and the cost change of moving it to `other`, [2, groups].

        If there are many, only those with the lowest cost changes.
        """
        members = np.flatnonzero(self.part == part)
        members = members[np.sort(np.unique(self.kind[members], return_index=True)[1])]
        leave, join = self._cost_changes(members, [part, other])
        change = leave[:, :, 0] + join[:, :, 1]
        if len(members) > _EXCHANGE_CANDIDATES:
            lowest = np.lexsort((change[1], change[0]))[:_EXCHANGE_CANDIDATES]
            members, change = members[lowest], change[:, lowest]
        return members, change


def _best(change: Floats) -> tuple[int, int] | None:
    """Return row and column of the best change in [2, rows, columns], shortage before χ²; None if none improves."""
    shortage, imbalance = change
    lowest = shortage.min()
    imbalance = np.where(shortage == lowest, imbalance, np.inf)
    row, column = divmod(int(np.argmin(imbalance)), imbalance.shape[1])
    improves = lowest < 0 or (lowest == 0 and imbalance[row, column] < -_WEIGHT_STEP)
    return (row, column) if improves else None
