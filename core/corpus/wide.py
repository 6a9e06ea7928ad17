"""A wide table: one row per post, one column of labels per criterion. A part of the source "pairs"."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from ..errors import DataError, quote_value
from .columns import Field
from .data import UNLABELLED, Corpus, Criterion, Evidence
from .tables import Row, Table, criterion_in_words, find_passage, parse_label

MISSING = ("", "na", "n/a", "nan")
"""Cells without a label, in lower case: what spreadsheets, R and pandas write where a value is missing."""


class WideReader:
    """Turns the rows of a wide table into a corpus and collects the problems.

    Args:
        table: the rows.
        columns: the columns of `post_id`, `post` and `group`, as far as the table has them.
        criteria: the columns of labels, each with the criterion's text.
        evidence: for some of the columns of labels, the column of passages.
    """

    def __init__(
        self, table: Table, columns: Mapping[Field, str], criteria: Mapping[str, str], evidence: Mapping[str, str]
    ) -> None:
        self.table, self.columns, self.criteria, self.passages = table, columns, criteria, evidence
        self.problems = table.problems
        self.rows_of: dict[str, int] = {}  # post id: the row it is in
        self.posts: list[str] = []
        self.groups: list[str] = []
        self.labels: list[list[int]] = []
        self.evidence: list[Evidence] = []
        self.ignored_evidence = 0
        self.unlabelled_posts = 0

    def corpus(self) -> Corpus:
        """Return the corpus.

        Raises:
            DataError: with every mistake in the rows.
        """
        for row in self.table.rows:
            self._add(row)
        if self.problems:
            raise DataError(str(self.table.path), self.problems.entries())
        if not self.rows_of:
            empty = "it has no rows with a label" if self.table.rows else "it has no rows below the header"
            raise DataError(str(self.table.path), [empty])
        return Corpus(
            name=self.table.path.stem,
            post_ids=tuple(self.rows_of),
            posts=tuple(self.posts),
            criteria=tuple(
                Criterion(name, text.strip() or criterion_in_words(name)) for name, text in self.criteria.items()
            ),
            labels=np.array(self.labels, dtype=np.int8),
            groups=tuple(self.groups),
            evidence=tuple(self.evidence),
            notes=tuple(self._notes()),
        )

    def _add(self, row: Row) -> None:
        empty = [column for column in self.columns.values() if not row[column]]
        for column in empty:
            self.problems.add(row.number, f"{column} is empty")
        labels = [self._label(row, column) for column in self.criteria]
        if empty:
            return
        post_id = row[self.columns["post_id"]] if "post_id" in self.columns else f"row-{row.number}"
        if post_id in self.rows_of:
            self.problems.add(
                row.number,
                f"post {quote_value(post_id)} is also in row {self.rows_of[post_id]}",
                many="a post is also in an earlier row",
                remedy="a table with a column per criterion has one row per post",
            )
            return
        if all(label == UNLABELLED for label in labels):
            self.unlabelled_posts += 1
            return
        self.rows_of[post_id] = row.number
        self.posts.append(row.cells[self.columns["post"]])
        self.groups.append(row[self.columns["group"]] if "group" in self.columns else post_id)
        self.labels.append(labels)
        for number, column in enumerate(self.criteria):
            if column in self.passages:
                self._add_evidence(row, number, labels[number], self.passages[column])

    def _label(self, row: Row, column: str) -> int:
        """Return the label of a cell; a cell that holds none counts as unlabelled, with the problem collected."""
        if row[column].lower() in MISSING:
            return UNLABELLED
        label = parse_label(row, column, self.problems)
        return UNLABELLED if label is None else label

    def _add_evidence(self, row: Row, criterion: int, label: int, column: str) -> None:
        passage, post = row[column], row.cells[self.columns["post"]]
        if passage.lower() in MISSING:
            return
        span = find_passage(passage, post)
        if span is None:
            self.problems.add(row.number, f"{column} is not a passage of the post")
        elif label == 1:
            self.evidence.append(Evidence(len(self.posts) - 1, criterion, *span))
        else:
            self.ignored_evidence += 1

    def _notes(self) -> list[str]:
        notes = []
        if self.unlabelled_posts:
            notes.append(f"{self.unlabelled_posts} posts without any label were left out")
        if self.ignored_evidence:
            notes.append(f"the evidence of {self.ignored_evidence} cells without a positive label was ignored")
        cells = [label for labels in self.labels for label in labels]
        unlabelled = cells.count(UNLABELLED)
        if unlabelled:
            notes.append(f"{unlabelled} of {len(cells)} pairs have an empty cell and are unlabelled")
        if "group" in self.columns:
            notes.append(f"{len(self.posts)} posts form {len(set(self.groups))} groups")
        else:
            notes.append("there is no column group, so each post is its own group")
        return notes
