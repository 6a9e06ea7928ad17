"""The source "pairs": a table with one row per (post, criterion) pair."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from ..errors import DataError
from .data import UNLABELLED, Corpus, Criterion, Evidence, note_duplicates
from .tables import FirstValues, Row, Table, find_passage, parse_label, quote_value, read_table


@dataclass(frozen=True)
class PairsSource:
    """A table with one row per post and criterion: post_id, post, criterion, label.

    Optional columns: criterion_text, group (the author of the post), evidence (a passage of the post, which the model
    `instance` learns from).
    """

    source: Literal["pairs"] = "pairs"
    _: KW_ONLY
    path: str
    """CSV, TSV or Parquet file; a relative path starts at the folder of the configuration file."""

    def load(self, base: Path) -> Corpus:
        """Return the table as a corpus; pairs without a row are unlabelled.

        Args:
            base: folder from which a relative `path` is resolved.

        Raises:
            UserError: the file cannot be read.
            DataError: the file has mistakes; the message lists all of them.
        """
        required = ("post_id", "post", "criterion", "label")
        table = read_table(Path(self.path), required, ("criterion_text", "group", "evidence"), folder=base)
        return note_duplicates(_PairsReader(table).corpus())


class _PairsReader:
    """Turns the rows of the table into a corpus and collects the problems."""

    def __init__(self, table: Table) -> None:
        self.table = table
        self.problems = list(table.problems)
        self.posts = FirstValues("the text of post {}")
        self.groups = FirstValues("the group of post {}")
        self.texts = FirstValues("the text of criterion {}")
        self.post_numbers: dict[str, int] = {}
        self.criterion_numbers: dict[str, int] = {}
        self.labels: dict[tuple[int, int], tuple[int, int]] = {}  # (post, criterion): label and the row it is in
        self.evidence: set[tuple[int, int, int, int]] = set()
        self.merged = 0
        self.ignored_evidence = 0

    def corpus(self) -> Corpus:
        for row in self.table.rows:
            self._add(row)
        if not self.table.rows and not self.problems:
            self.problems.append("it has no rows below the header")
        if self.problems:
            raise DataError(str(self.table.path), self.problems)
        labels = np.full((len(self.post_numbers), len(self.criterion_numbers)), UNLABELLED, dtype=np.int8)
        for pair, (label, _) in self.labels.items():
            labels[pair] = label
        grouped = "group" in self.table.columns
        return Corpus(
            name=self.table.path.stem,
            post_ids=tuple(self.post_numbers),
            posts=tuple(self.posts[post] for post in self.post_numbers),
            criteria=tuple(Criterion(name, self._criterion_text(name)) for name in self.criterion_numbers),
            labels=labels,
            groups=tuple(self.groups[post] if grouped else post for post in self.post_numbers),
            evidence=tuple(Evidence(*item) for item in sorted(self.evidence)),
            notes=tuple(self._notes(labels)),
        )

    def _criterion_text(self, name: str) -> str:
        return self.texts[name] if name in self.texts else name.replace("_", " ")

    def _add(self, row: Row) -> None:
        needed = ["post_id", "post", "criterion"] + ["group"] * ("group" in self.table.columns)
        empty = [column for column in needed if not row[column]]
        self.problems += [f"row {row.number}: {column} is empty" for column in empty]
        label = parse_label(row, "label", self.problems)
        if empty:
            return
        post, criterion = row["post_id"], row["criterion"]
        self.posts.add(post, row.cells["post"], row.number, self.problems)
        if "group" in self.table.columns:
            self.groups.add(post, row["group"], row.number, self.problems)
        if row.cells.get("criterion_text", "").strip():
            self.texts.add(criterion, row["criterion_text"], row.number, self.problems)
        post_number = self.post_numbers.setdefault(post, len(self.post_numbers))
        criterion_number = self.criterion_numbers.setdefault(criterion, len(self.criterion_numbers))
        if label is not None:
            self._add_label(row, (post_number, criterion_number), label)
            self._add_evidence(row, (post_number, criterion_number), label)

    def _add_label(self, row: Row, pair: tuple[int, int], label: int) -> None:
        if pair in self.labels:
            first, first_row = self.labels[pair]
            if first != label:
                name = f"post {quote_value(row['post_id'])} and criterion {quote_value(row['criterion'])}"
                self.problems.append(
                    f"row {row.number}: {name} have label {label}, but label {first} in row {first_row}"
                )
            self.merged += first == label
        self.labels.setdefault(pair, (label, row.number))

    def _add_evidence(self, row: Row, pair: tuple[int, int], label: int) -> None:
        passage = row.cells.get("evidence", "").strip()
        if not passage:
            return
        span = find_passage(passage, row.cells["post"])
        if span is None:
            post = quote_value(row["post_id"])
            self.problems.append(f"row {row.number}: the evidence is not a passage of post {post}")
        elif label == 1:
            self.evidence.add((*pair, *span))
        else:
            self.ignored_evidence += 1

    def _notes(self, labels: npt.NDArray[np.int8]) -> list[str]:
        notes = []
        if self.merged:
            notes.append(f"{self.merged} rows that repeat the label of an earlier row were merged with it")
        if self.ignored_evidence:
            notes.append(f"the evidence of {self.ignored_evidence} rows with label 0 was ignored")
        unlabelled = int((labels == UNLABELLED).sum())
        if unlabelled:
            notes.append(f"{unlabelled} of {labels.size} pairs have no row and are unlabelled")
        if "group" in self.table.columns:
            groups = {self.groups[post] for post in self.post_numbers}
            notes.append(f"{len(self.post_numbers)} posts form {len(groups)} groups")
        else:
            notes.append("there is no column group, so each post is its own group")
        return notes
