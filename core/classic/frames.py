"""Folds and loaders over a user's data frame: each row is a (post, criterion) pair with its label, 1, 0 or -1."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from torch.utils.data import DataLoader

from ..errors import DataError
from ..seeding import torch_generator
from ..splits import kfold

Rows = npt.NDArray[np.int64]
Collate = Callable[[dict[str, list[Any]]], Mapping[str, Any]]
"""From the columns of a batch's rows, as lists by name, to the model's keyword arguments."""

_WHERE = "the data frame"
_EXAMPLES = 3  # maximum number of rows that a message names


def create_kfold_splits(
    df: pd.DataFrame,
    n_folds: int = 5,
    group_column: str = "post_id",
    *,
    post_column: str = "post_id",
    criterion_column: str = "criterion",
    label_column: str = "label",
    seed: int = 0,
) -> Iterator[tuple[Rows, Rows]]:
    """Yield the training and the validation rows of each fold, for `df.iloc`.

    All rows of a group stay together, and every fold gets its share of every criterion's positives and negatives
    (`core.splits.kfold`). A frame without a criterion column has one criterion; without a post column every row is
    a different post. Everything is checked when the function is called, before the first fold is requested.

    Raises:
        DataError: a column is missing, a label is none of 1, 0 and -1, or a post has two labels for a criterion or is
            in two groups. The message lists all these mistakes.
        SplitError: there are too few groups, or too few positives or negatives of a criterion.
    """
    _refuse_missing(df, label_column, group_column)
    post, posts = _post_numbers(df, post_column) if post_column in df else (np.arange(len(df)), len(df))
    criterion = df[criterion_column].astype(str) if criterion_column in df else pd.Series(label_column, index=df.index)
    column, names = pd.factorize(criterion.to_numpy())
    labels, groups = _checked_labels(df, label_column), df[group_column].astype(str).to_numpy()
    problems = _contradictions(post, column, labels, groups)
    if problems:
        raise DataError(_WHERE, problems)
    table = np.full((posts, len(names)), -1, dtype=np.int8)
    table[post, column] = labels
    group_of_post = np.empty(posts, dtype=object)
    group_of_post[post] = groups
    folds = kfold(group_of_post.tolist(), table, n_folds, seed, criteria=[str(name) for name in names])
    fold_of_row = folds.assignment[post]
    return ((np.flatnonzero(fold_of_row != fold), np.flatnonzero(fold_of_row == fold)) for fold in range(n_folds))


def create_dataloader(
    df: pd.DataFrame,
    batch_size: int = 32,
    *,
    post_ids: Sequence[Any] | None = None,
    criteria: Sequence[Any] | None = None,
    collate: Collate | None = None,
    post_column: str = "post_id",
    criterion_column: str = "criterion",
    label_column: str = "label",
    shuffle: bool = False,
    seed: int = 0,
    num_workers: int = 0,
) -> DataLoader[int]:
    """Make batches of a data frame's rows for the `Trainer`, each with float32 "labels" `[batch]`.

    Args:
        df: the rows, such as `df.iloc[train]` of a fold.
        batch_size: rows per batch.
        post_ids: all posts in the model's order. A column of numbers needs no such list, nor does a categorical column,
            which defines an order.
        criteria: all criteria in the model's order; the same exceptions apply.
        collate: makes the model's arguments from the rows of a batch. Default: post and criterion numbers, "posts" and
            "criteria", int64 `[batch]`. For a model that takes text, something like
            `lambda rows: tokenizer(rows["criterion"], rows["post"], padding=True, return_tensors="pt")`.
        post_column: the column of post ids.
        criterion_column: the column of criteria.
        label_column: the column of labels: 1, 0, or -1 for not labelled.
        shuffle: a new order in every epoch; the trainer seeds it with its seed and the epoch.
        seed: seed of the order in a loop without the trainer.
        num_workers: processes that collate ahead.

    Raises:
        DataError: a column is missing, a label is none of 1, 0 and -1, or an id is not in its list.
    """
    _refuse_missing(df, label_column)
    labels = torch.from_numpy(_checked_labels(df, label_column).astype(np.float32))
    if collate is None:
        _refuse_missing(df, post_column, criterion_column)
        posts = torch.from_numpy(_numbered(df[post_column], post_ids, "post_ids"))
        numbers = {"posts": posts, "criteria": torch.from_numpy(_numbered(df[criterion_column], criteria, "criteria"))}
        inputs = partial(_select_numbers, numbers)
    else:
        inputs = partial(_collate_rows, df, collate)
    return DataLoader(
        range(len(df)),  # type: ignore[arg-type]  # a range has all that a map-style data set needs
        batch_size=batch_size,
        shuffle=shuffle,
        collate_fn=lambda rows: {**inputs(rows), "labels": labels[rows]},
        num_workers=num_workers,
        generator=torch_generator(seed, "loader"),
    )


def _select_numbers(numbers: Mapping[str, torch.Tensor], rows: list[int]) -> Mapping[str, Any]:
    return {name: column[rows] for name, column in numbers.items()}


def _collate_rows(df: pd.DataFrame, collate: Collate, rows: list[int]) -> Mapping[str, Any]:
    batch = df.iloc[rows]
    return collate({str(name): batch[name].tolist() for name in batch.columns})


def _refuse_missing(df: pd.DataFrame, *columns: str) -> None:
    missing = [
        f"there is no column {name!r} (it has {', '.join(map(str, df.columns))})" for name in columns if name not in df
    ]
    missing += [
        f"column {name!r} is empty in row {row}" for name in columns if name in df for row in _empty_rows(df, name)
    ]
    if missing:
        raise DataError(_WHERE, missing)


def _empty_rows(df: pd.DataFrame, column: str) -> list[int]:
    return [int(row) for row in np.flatnonzero(df[column].isna())[:_EXAMPLES]]


def _checked_labels(df: pd.DataFrame, column: str) -> npt.NDArray[np.int8]:
    values = pd.to_numeric(df[column], errors="coerce").to_numpy(dtype=np.float64, na_value=np.nan)
    invalid = np.flatnonzero(~np.isin(values, (-1, 0, 1)))
    if invalid.size:
        examples = ", ".join(f"{df[column].iloc[row]!r} in row {row}" for row in invalid[:_EXAMPLES])
        raise DataError(_WHERE, [f"{invalid.size} of column {column!r} are none of 1, 0 and -1: {examples}"])
    return values.astype(np.int8)


def _post_numbers(df: pd.DataFrame, column: str) -> tuple[Rows, int]:
    """The post of each row, numbered by first appearance, and the number of posts."""
    codes, values = pd.factorize(df[column].astype(str).to_numpy())
    return codes.astype(np.int64), len(values)


def _contradictions(post: Rows, criterion: Rows, labels: npt.NDArray[np.int8], groups: npt.NDArray[Any]) -> list[str]:
    """Posts with two labels for one criterion, and posts in two groups."""
    frame = pd.DataFrame({"post": post, "criterion": criterion, "label": labels, "group": groups})
    two_labels = frame.groupby(["post", "criterion"])["label"].transform("nunique") > 1
    two_groups = frame.groupby("post")["group"].transform("nunique") > 1
    return [
        f"{problem} {frame.loc[rows, 'post'].nunique()} posts, first in row {int(np.argmax(rows.to_numpy()))}"
        for problem, rows in (("two labels for one criterion in", two_labels), ("two groups for each of", two_groups))
        if rows.any()
    ]


def _numbered(column: pd.Series[Any], order: Sequence[Any] | None, name: str) -> Rows:
    """The number of each row's value in `order`."""
    if order is not None:
        if not pd.Index(order).is_unique:
            raise DataError(_WHERE, [f"{name} lists a name twice, so its number is ambiguous; list every name once"])
        numbers = pd.Index(order).get_indexer(column)
    elif isinstance(column.dtype, pd.CategoricalDtype):
        numbers = column.cat.codes.to_numpy()
    elif pd.api.types.is_integer_dtype(column.dtype):
        numbers = column.to_numpy()
    else:
        raise DataError(
            _WHERE,
            [
                f"column {column.name!r} holds names, and a part of the rows does not define their numbers; "
                f"give all of them in order as {name}="
            ],
        )
    unknown = np.flatnonzero(numbers < 0)
    if unknown.size:
        raise DataError(
            _WHERE, [f"{column.iloc[unknown[0]]!r} in row {unknown[0]} of {column.name!r} is not in {name}"]
        )
    return np.array(numbers, dtype=np.int64)
