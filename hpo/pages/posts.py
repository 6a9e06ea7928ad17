"""Which posts a page shows: those of a table, or those that the model was trained on; never the hold-out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from sparse_evidence.core.corpus.columns import Field, candidates
from sparse_evidence.core.corpus.data import UNLABELLED
from sparse_evidence.core.corpus.tables import FirstValues, Table, parse_label, read_table
from sparse_evidence.core.errors import DataError, UserError
from sparse_evidence.core.fitted import FittedModel

from ..errors import RefusedError
from ..running.task import Progress, load_task
from ..study.definition import load

LIMIT = 200
"""Posts on a page, unless more are asked for."""


@dataclass(frozen=True, eq=False)
class ShownPosts:
    """Posts to explain, and what is known of them."""

    names: tuple[str, ...]
    texts: tuple[str, ...] = field(repr=False)  # representations end up in logs and tracebacks
    labels: npt.NDArray[np.int8] | None
    """int8 `[posts, criteria]`: 1, 0 or -1 (unlabelled); None if nothing is labelled."""
    total: int
    """Posts that they were chosen from."""
    source: str
    """Name of the table, or of the study."""
    trained: bool
    """Whether the model was trained on them."""


def posts_of_table(path: Path, model: FittedModel, limit: int = LIMIT) -> ShownPosts:
    """The posts of a table, each once; at most `limit`, evenly spread over the table.

    Args:
        path: CSV, TSV or Parquet with a column `post`, or a name like it. Optional: `post_id`, or a name like it;
            `criterion` and `label`, which are shown beside the model's decision.
        model: whose criteria are shown.
        limit: at least 1.

    Raises:
        UserError: the file cannot be read.
        DataError: it has mistakes; the message lists them.
    """
    table = read_table(path, (), None)
    column, id_column = _column(table, "post"), _column(table, "post_id")
    if column is None:
        raise DataError(str(path), ["column post is missing; name the column of the posts so"])
    problems, texts, columns = list(table.problems), FirstValues("the text of post {}"), set(table.columns)
    known = {criterion.name: column for column, criterion in enumerate(model.criteria)}
    numbers: dict[str, int] = {}
    labels: dict[tuple[int, int], int] = {}
    for row in table.rows:
        name = row[id_column] if id_column else row.cells[column]
        if id_column and not name:
            problems.append(f"row {row.number}: {id_column} is empty")
            continue
        texts.add(name, row.cells[column], row.number, problems)
        number = numbers.setdefault(name, len(numbers))
        if {"criterion", "label"} <= columns and row["label"] and row["criterion"] in known:
            label = parse_label(row, "label", problems)
            labels[number, known[row["criterion"]]] = UNLABELLED if label is None else label
    if not numbers and not problems:
        problems.append("it has no rows below the header")
    if problems:
        raise DataError(str(path), problems)
    names = tuple(numbers) if id_column else tuple(str(number + 1) for number in range(len(numbers)))
    matrix = np.full((len(numbers), len(known)), UNLABELLED, dtype=np.int8)
    for pair, value in labels.items():
        matrix[pair] = value
    posts = tuple(texts[name] for name in numbers)
    return _spread(names, posts, matrix if labels else None, limit, path.name, trained=False)


def _column(table: Table, field: Field) -> str | None:
    found = candidates(table.columns, field)
    return found[0] if found else None


def posts_of_study(
    model: FittedModel, folder: Path, limit: int = LIMIT, progress: Progress | None = None
) -> ShownPosts:
    """The posts that a model was trained on; at most `limit`, evenly spread over them.

    Args:
        model: a fitted model, which names its study file.
        folder: the folder that the model was loaded from.
        limit: at least 1.
        progress: called while posts are embedded that are not in the cache.

    Raises:
        UserError: the study file or its data are not here any more, or cannot be read.
        RefusedError: they are not those that the model was trained on, so nobody knows which posts are the hold-out.
    """
    named = model.info.get("study_file")
    file = None if named is None else folder.resolve() / str(named)
    if file is None or not file.is_file():
        missing = "names no study file" if file is None else f"was trained by {file.name}, which is not where it was"
        raise UserError(f"the model {folder} {missing}; give a table of posts: hpo explain {folder} posts.csv")
    task = load_task(load(file), progress=progress)
    identity = task.identity()
    if any(model.info.get(key) != identity[key] for key in ("data_sha256", "folds_sha256")):
        raise RefusedError(
            f"the posts of {file} are not those that the model {folder} was trained on: posts, labels or folds differ; "
            f"restore them, or give a table of posts: hpo explain {folder} posts.csv"
        )
    shown = task.corpus.subset(task.folds.assignment >= 0)
    return _spread(shown.post_ids, shown.posts, shown.labels, limit, str(model.info["study"]), trained=True)


def _spread(
    names: Sequence[str],
    posts: Sequence[str],
    labels: npt.NDArray[np.int8] | None,
    limit: int,
    source: str,
    *,
    trained: bool,
) -> ShownPosts:
    rows = np.linspace(0, len(names) - 1, min(limit, len(names))).round().astype(int).tolist()
    chosen = tuple(names[row] for row in rows), tuple(posts[row] for row in rows)
    return ShownPosts(*chosen, None if labels is None else labels[rows], len(names), source, trained)
