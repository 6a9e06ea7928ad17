"""Folds and loaders over a user's own data frame: one row a (post, criterion) pair and its label, 1, 0 or -1."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
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
"""The columns of a batch's rows, as lists by name, to the model's keyword arguments."""

_WHERE = "the data frame"
_SHOWN = 3  # examples in a message


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
    (`core.splits.kfold`). A frame without a criterion column has one criterion; without a post column every row is a
    post of its own. Everything is checked when the function is called, before the first fold is asked for.

    Raises:
        DataError: a column is missing, a label is none of 1, 0 and -1, or a post has two labels for a criterion or is
            in two groups; all at once.
        SplitError: there are too few groups, or too few positives or negatives of a criterion.
    """
    _refuse_missing(df, label_column, group_column)
    post, posts = _numbers(df, post_column) if post_column in df else (np.arange(len(df)), len(df))
    criterion = df[criterion_column].astype(str) if criterion_column in df else pd.Series(label_column, index=df.index)
    column, names = pd.factorize(criterion.to_numpy())
    labels, groups = _labels(df, label_column), df[group_column].astype(str).to_numpy()
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
    """Batches of a data frame's rows for the `Trainer`, each with float32 "labels" `[batch]`.

    Args:
        df: the rows, such as `df.iloc[train]` of a fold.
        batch_size: rows per batch.
        post_ids: all posts in the order in which the model knows them. Numbers need no such list, nor does a
            categorical column, which knows its own order.
        criteria: all criteria, likewise.
        collate: what the model is to be called with. By default it is post and criterion numbers, "posts" and
            "criteria", int64 `[batch]`; for a model that reads text, something like
            `lambda rows: tokenizer(rows["criterion"], rows["post"], padding=True, return_tensors="pt")`.
        post_column: where the posts' ids are.
        criterion_column: where the criteria are.
        label_column: where the labels are: 1, 0, or -1 for not labelled.
        shuffle: in another order every epoch; the trainer seeds the order from its own seed and the epoch.
        seed: of the order in a loop without the trainer.
        num_workers: processes that collate ahead.

    Raises:
        DataError: a column is missing, a label is none of 1, 0 and -1, or an id is not in its list.
    """
    _refuse_missing(df, label_column)
    labels = torch.from_numpy(_labels(df, label_column).astype(np.float32))
    if collate is None:
        _refuse_missing(df, post_column, criterion_column)
        numbers = {
            "posts": torch.from_numpy(_known(df[post_column], post_ids, "post_ids")),
            "criteria": torch.from_numpy(_known(df[criterion_column], criteria, "criteria")),
        }

    def gather(rows: list[int]) -> dict[str, Any]:
        here = torch.tensor(rows, dtype=torch.int64)
        if collate is not None:
            part = df.iloc[rows]
            inputs: Mapping[str, Any] = collate({str(name): part[name].tolist() for name in part.columns})
        else:
            inputs = {name: column[here] for name, column in numbers.items()}
        return {**inputs, "labels": labels[here]}

    return DataLoader(
        range(len(df)),  # type: ignore[arg-type]  # a range is all that a map-style data set has to be
        batch_size=batch_size,
        shuffle=shuffle,
        collate_fn=gather,
        num_workers=num_workers,
        generator=torch_generator(seed, "loader"),
    )


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
    return [int(row) for row in np.flatnonzero(df[column].isna())[:_SHOWN]]


def _labels(df: pd.DataFrame, column: str) -> npt.NDArray[np.int8]:
    values = pd.to_numeric(df[column], errors="coerce").to_numpy(dtype=np.float64, na_value=np.nan)
    wrong = np.flatnonzero(~np.isin(values, (-1, 0, 1)))
    if wrong.size:
        shown = ", ".join(f"{df[column].iloc[row]!r} in row {row}" for row in wrong[:_SHOWN])
        raise DataError(_WHERE, [f"{wrong.size} of column {column!r} are none of 1, 0 and -1: {shown}"])
    return values.astype(np.int8)


def _numbers(df: pd.DataFrame, column: str) -> tuple[Rows, int]:
    """Number a column's values by first appearance: of each row, and how many there are."""
    codes, values = pd.factorize(df[column].astype(str).to_numpy())
    return codes.astype(np.int64), len(values)


def _contradictions(post: Rows, criterion: Rows, labels: npt.NDArray[np.int8], groups: npt.NDArray[Any]) -> list[str]:
    """Posts with two labels for one criterion, and posts in two groups."""
    frame = pd.DataFrame({"post": post, "criterion": criterion, "label": labels, "group": groups})
    two_labels = frame.groupby(["post", "criterion"])["label"].transform("nunique") > 1
    two_groups = frame.groupby("post")["group"].transform("nunique") > 1
    return [
        f"{what} {frame.loc[wrong, 'post'].nunique()} posts, first in row {int(np.argmax(wrong.to_numpy()))}"
        for what, wrong in (("two labels for one criterion in", two_labels), ("two groups for each of", two_groups))
        if wrong.any()
    ]


def _known(column: pd.Series[Any], order: Sequence[Any] | None, name: str) -> Rows:
    """The number of each row's value in `order`."""
    if order is not None:
        if not pd.Index(order).is_unique:
            raise DataError(_WHERE, [f"{name} has a name twice, so its order does not tell which number it has"])
        numbers = pd.Index(order).get_indexer(column)
    elif isinstance(column.dtype, pd.CategoricalDtype):
        numbers = column.cat.codes.to_numpy()
    elif pd.api.types.is_integer_dtype(column.dtype):
        numbers = column.to_numpy()
    else:
        raise DataError(
            _WHERE,
            [f"column {column.name!r} holds names, and only all rows together say which number each has; give {name}="],
        )
    unknown = np.flatnonzero(numbers < 0)
    if unknown.size:
        raise DataError(
            _WHERE, [f"{column.iloc[unknown[0]]!r} in row {unknown[0]} of {column.name!r} is not in {name}"]
        )
    return np.array(numbers, dtype=np.int64)
