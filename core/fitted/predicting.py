"""Predictions for a table that may be larger than memory: read, predicted and written in parts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..corpus.columns import candidates, post_column
from ..corpus.parts import Part, Source
from ..corpus.problems import RowProblems
from ..corpus.writing import Column, Sink
from ..errors import DataError, UserError, nearest, quote_value
from .model import Explanation, FittedModel

Span = tuple[int, int] | None


@dataclass(frozen=True)
class Options:
    """What is predicted, and how it is written."""

    column: str | None = None
    """The column of the posts; None: the one that is called so, or the only one whose name resembles it."""
    long: bool = False
    """A row per post and criterion, instead of columns for every criterion."""
    evidence: bool = True
    """The sentence that speaks most for each criterion, too; without it prediction is much faster."""
    prefix: str = ""
    """Before the names of the columns that are added."""


@dataclass(frozen=True, eq=False)
class _Found:
    """What a model says of some posts."""

    probability: npt.NDArray[np.float64]
    """[posts, criteria]"""
    decision: npt.NDArray[np.bool_]
    """[posts, criteria]"""
    texts: Sequence[str]
    spans: Sequence[Sequence[Span]] | None
    """[posts][criteria]: the sentence that contributes most; None if it was not asked for."""

    def columns(self, start: str, posts: Sequence[int], criteria: Sequence[int]) -> list[Column]:
        """The columns of rows that are each about a post and a criterion; their names begin with `start`."""
        pairs = list(zip(posts, criteria, strict=True))
        columns = [
            Column(f"{start}probability", "number", self.probability[posts, criteria].tolist()),
            Column(f"{start}decision", "flag", self.decision[posts, criteria].astype(int).tolist()),
        ]
        if self.spans is None:
            return columns
        spans = [self.spans[post][criterion] for post, criterion in pairs]
        passages = [
            None if span is None else self.texts[post][span[0] : span[1]]
            for post, span in zip(posts, spans, strict=True)
        ]
        return [
            *columns,
            Column(f"{start}evidence", "text", passages),
            Column(f"{start}start", "integer", [None if span is None else span[0] for span in spans]),
            Column(f"{start}end", "integer", [None if span is None else span[1] for span in spans]),
        ]


def predict_table(
    model: FittedModel,
    source: Source,
    sink: Sink,
    options: Options,
    progress: Callable[[int, float | None], None] | None = None,
) -> int:
    """Write every row of a table again, with what the model says of its post. Memory does not grow with the rows.

    For every criterion the columns `NAME.probability`, `NAME.decision` (1 or 0), `NAME.evidence` (a sentence),
    `NAME.start` and `NAME.end` are added. A table with the columns `post_id` and `criterion` has a criterion in each
    row: the columns are called `probability` and so on then, as with `Options.long`.

    Args:
        model: predicts.
        source: the table, from `open_table`.
        sink: what is written to, from `create_table`.
        options: see there.
        progress: called after each part with the rows done, and which share of the table that is, 0 to 1.

    Returns:
        The number of rows read.

    Raises:
        UserError: the table already has a row per criterion, and `Options.long` asks for it.
        DataError: a column is missing or exists already, a criterion is unknown, or a row cannot be read.
    """
    post, criterion = find_columns(model, source, options)
    rows = 0
    for part in source.parts():
        texts = part.cells(post)
        unique = {text: number for number, text in enumerate(dict.fromkeys(texts))}
        found = _predict(model, list(unique), options)
        posts = [unique[text] for text in texts]
        if criterion is not None:
            added = found.columns(options.prefix, posts, _criteria(model, source, part, criterion))
        elif options.long:
            added = _long_columns(model, found, posts, options.prefix)
        else:
            added = [
                column
                for number, one in enumerate(model.criteria)
                for column in found.columns(f"{options.prefix}{one.name}.", posts, [number] * len(posts))
            ]
        sink.write(part, added, len(model.criteria) if options.long else 1)
        rows += len(texts)
        if progress is not None:
            progress(rows, source.share)
    return rows


@dataclass(frozen=True)
class Met:
    """A criterion that a post meets, as the model sees it."""

    criterion: str
    probability: float
    evidence: str | None
    """The sentence that contributes most; None if the post has no text."""


def met(model: FittedModel, source: Source, options: Options) -> Iterator[tuple[str, list[Met]]]:
    """Yield each post of a table with the criteria that it meets, the most probable first.

    A post is named by its `post_id`, or else by its row. A post that follows itself, as in a table with a row per post
    and criterion, is yielded once.

    Raises:
        UserError, DataError: as `predict_table`.
    """
    post, _ = find_columns(model, source, options)
    names = [name.strip() for name in source.columns]
    known = candidates(names, "post_id")
    last: tuple[str | None, str] | None = None
    for part in source.parts():
        labels = part.cells(names.index(known[0])) if known else [f"row {number}" for number in part.numbers]
        texts = part.cells(post)
        for label, text, found in zip(labels, texts, model.explain(texts), strict=True):
            this = (label if known else None, text)  # without ids, posts with the same text are the same
            if this != last:
                yield label, _met(model, text, found)
            last = this


def _met(model: FittedModel, text: str, found: Explanation) -> list[Met]:
    order = [column for column in np.argsort(-found.probability).tolist() if found.decision[column]]
    spans = [found.evidence(column) for column in order]
    return [
        Met(
            model.criteria[column].name,
            float(found.probability[column]),
            None if span is None else text[span[0] : span[1]],
        )
        for column, span in zip(order, spans, strict=True)
    ]


def find_columns(model: FittedModel, source: Source, options: Options) -> tuple[int, int | None]:
    """Return the numbers of the columns of posts and of criteria; None if the rows are about no criterion.

    Raises:
        UserError, DataError: as `predict_table`.
    """
    names = [name.strip() for name in source.columns]
    remedy = "name the column of the posts with --column NAME"
    post = names.index(post_column(source.where, names, options.column, remedy=remedy))
    criterion = names.index("criterion") if {"post_id", "criterion"} <= set(names) else None
    if criterion is not None and options.long:
        raise UserError(f"{source.where} has a row per post and criterion already; leave out --long")
    parts = ["probability", "decision", *(["evidence", "start", "end"] if options.evidence else [])]
    if criterion is None and not options.long:
        parts = [f"{one.name}.{part}" for one in model.criteria for part in parts]
    new = [options.prefix + part for part in (["criterion"] if options.long else []) + parts]
    taken = [quote_value(name) for name in new if name in names]
    if taken:
        raise DataError(
            source.where,
            [f"it already has {', '.join(taken)}; give the new columns other names, such as --prefix predicted_"],
        )
    return post, criterion


def _criteria(model: FittedModel, source: Source, part: Part, column: int) -> list[int]:
    """The numbers of the criteria in a column, `[rows]`."""
    known = {one.name: number for number, one in enumerate(model.criteria)}
    names = [cell.strip() for cell in part.cells(column)]
    problems = RowProblems()
    for number, name in zip(part.numbers, names, strict=True):
        if name not in known:
            close = nearest(name, known)
            hint = f"did you mean {close!r}?" if close else f"it has: {', '.join(known)}"
            problems.add(number, "the model has no criterion {}", value=quote_value(name), remedy=hint)
    if problems:
        raise DataError(source.where, problems.entries())
    return [known[name] for name in names]


def _predict(model: FittedModel, texts: Sequence[str], options: Options) -> _Found:
    if not options.evidence:
        probability = model.probabilities(texts)
        return _Found(probability, model.decide(texts, probability), texts, None)
    found = model.explain(texts)
    spans = [[each.evidence(criterion) for criterion in range(len(model.criteria))] for each in found]
    probability = np.array([each.probability for each in found])
    return _Found(probability, np.array([each.decision for each in found]), texts, spans)


def _long_columns(model: FittedModel, found: _Found, posts: Sequence[int], prefix: str) -> list[Column]:
    criteria = list(range(len(model.criteria))) * len(posts)
    repeated = [post for post in posts for _ in model.criteria]
    names = Column(f"{prefix}criterion", "text", [model.criteria[number].name for number in criteria])
    return [names, *found.columns(prefix, repeated, criteria)]
