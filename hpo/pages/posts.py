"""Which posts a page shows: those of a table, or those that the model was trained on; never the hold-out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from sparse_evidence.core.corpus.columns import candidates, post_column
from sparse_evidence.core.corpus.data import UNLABELLED
from sparse_evidence.core.corpus.problems import RowProblems
from sparse_evidence.core.corpus.tables import FirstLabels, FirstValues, Row, parse_label, read_table
from sparse_evidence.core.errors import DataError, quote_value
from sparse_evidence.core.fitted import FittedModel

from ..errors import RefusedError
from ..results.best import named_study_file
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
    notes: tuple[str, ...] = ()
    """What was left out, for users."""


def posts_of_table(path: Path, model: FittedModel, limit: int = LIMIT) -> ShownPosts:
    """The posts of a table, each once; at most `limit`, evenly spread over the table.

    Args:
        path: CSV, TSV or Parquet with a column `post`, or a name like it. Optional: `post_id`, or a name like it;
            `criterion` and `label`, which are shown beside the model's decision.
        model: whose criteria are shown.
        limit: at least 1.

    Raises:
        UserError: the file cannot be read.
        DataError: it has mistakes; the message lists them. Labels that contradict each other are some.
    """
    table = read_table(path, (), None)
    column = post_column(str(path), table.columns, remedy="call the column of the posts post")
    id_column = next(iter(candidates(table.columns, "post_id")), None)
    problems, texts = table.problems, FirstValues("the text", "post")
    labelled = FirstLabels() if {"criterion", "label"} <= set(table.columns) else None
    for row in table.rows:
        name = row[id_column] if id_column else row.cells[column]
        if id_column and not name:
            problems.add(row.number, f"{id_column} is empty")
            continue
        texts.add(name, row.cells[column], row.number, problems)
        if labelled is not None and row["label"]:
            _add_label(labelled, name, row, problems)
    numbers = {name: number for number, name in enumerate(texts)}
    if problems or not numbers:
        raise DataError(str(path), problems.entries() or ["it has no rows below the header"])
    names = tuple(numbers) if id_column else tuple(str(number + 1) for number in range(len(numbers)))
    posts = tuple(texts[name] for name in numbers)
    labels, unknown = _matrix(labelled or (), numbers, model)
    notes = (f"the model does not know {', '.join(unknown[:20])}; their labels were left out",) if unknown else ()
    return replace(_spread(names, posts, labels, limit, path.name, trained=False), notes=notes)


def _add_label(labelled: FirstLabels, post: str, row: Row, problems: RowProblems) -> None:
    """Add the label of a row to those of the rows before it."""
    label = parse_label(row, "label", problems)
    if not row["criterion"]:
        problems.add(row.number, "criterion is empty")
    elif label is not None:
        labelled.add(post, row["criterion"], label, row.number, problems)


def _matrix(
    labelled: Iterable[tuple[str, str, int]], numbers: Mapping[str, int], model: FittedModel
) -> tuple[npt.NDArray[np.int8] | None, list[str]]:
    """The labels of posts as an int8 matrix `[posts, criteria]`, and the criteria that the model does not know."""
    known = {criterion.name: column for column, criterion in enumerate(model.criteria)}
    matrix = np.full((len(numbers), len(known)), UNLABELLED, dtype=np.int8)
    unknown: dict[str, None] = {}
    for post, criterion, label in labelled:
        if criterion in known:
            matrix[numbers[post], known[criterion]] = label
        else:
            unknown[quote_value(criterion)] = None
    return matrix if (matrix != UNLABELLED).any() else None, list(unknown)


def posts_of_study(
    model: FittedModel,
    folder: Path,
    limit: int = LIMIT,
    progress: Progress | None = None,
    study: Path | None = None,
) -> ShownPosts:
    """The posts that a model was trained on; at most `limit`, evenly spread over them.

    Args:
        model: a fitted model.
        folder: the folder that the model was loaded from.
        limit: at least 1.
        progress: called while posts are embedded that are not in the cache.
        study: the study file; default: the one that the model names.

    Raises:
        UserError: the study file or its data are not here any more, or cannot be read.
        RefusedError: they are not those that the model was trained on, so nobody knows which posts are the hold-out.
    """
    instead = f"give a table of posts: hpo explain {folder} posts.csv"
    file = study or named_study_file(model.info, folder, f"the model {folder}", f"give it with --study, or {instead}")
    task = load_task(load(file), progress=progress)
    identity = task.identity()
    if any(model.info.get(key) != identity[key] for key in ("data_sha256", "folds_sha256")):
        raise RefusedError(
            f"the posts of {file} are not those that the model {folder} was trained on: posts, labels or folds differ; "
            f"restore them, or {instead}"
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
