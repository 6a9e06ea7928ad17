"""The source "pairs": a table with one row per (post, criterion) pair, or one row per post and a column per criterion.

`.wide` reads the second kind.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

from ..errors import ConfigError, DataError, quote_value
from .columns import REQUIRED, WIDE, Field, is_name, lookalikes, quote_name
from .data import UNLABELLED, Corpus, Criterion, Evidence, note_duplicates
from .tables import (
    FirstLabels,
    FirstValues,
    Row,
    Table,
    criterion_in_words,
    find_passage,
    parse_label,
    read_table,
)
from .wide import WideReader

LONGEST_CRITERION = 100
"""Characters of a criterion's name, which is stored in the database and shown everywhere."""
_WORDS_OF_TEXT = 5
"""Names of criteria have fewer words on average."""


@dataclass(frozen=True)
class PairsSource:
    """Your own table: one row per post and criterion, or, if `criteria` is given, one row per post.

    Columns: post_id, post, criterion, label. Optional columns: criterion_text, group (the author of the post), evidence
    (a passage of the post, which the model `instance` learns from). Labels are 0 and 1, no and yes, or false and true.
    """

    source: Literal["pairs"] = "pairs"
    _: KW_ONLY
    path: str
    """CSV, TSV or Parquet file; a relative path starts at the folder of the configuration file."""
    columns: Mapping[Field, str] = field(default_factory=dict, hash=False)
    """Columns that have another name in the file: `{ post = "body", group = "author_id" }`. Empty: there is no such
    column, although one has a name like it."""
    criteria: Mapping[str, str] = field(default_factory=dict, hash=False)
    """For a wide table, with one row per post: the columns of labels, each with a sentence that describes its
    criterion. An empty cell is no label."""
    evidence: Mapping[str, str] = field(default_factory=dict, hash=False)
    """For a wide table: a column of labels, and the column that holds the passages which show this criterion."""

    def __post_init__(self) -> None:
        """Raise a `ConfigError` if the settings contradict each other."""
        problem = _contradiction(self.columns, self.criteria, self.evidence)
        if problem:
            raise ConfigError(problem)

    def load(self, base: Path) -> Corpus:
        """Return the table as a corpus; pairs without a row or a label are unlabelled.

        Args:
            base: folder from which a relative `path` is resolved.

        Raises:
            UserError: the file cannot be read.
            DataError: the file has mistakes; the message lists all of them.
        """
        if self.criteria:
            passages = self.evidence.values()
            table, columns = self._read(base, WIDE, ("post",), [*self.criteria, *passages])
            corpus = WideReader(table, columns, self.criteria, self.evidence).corpus()
        else:
            table, columns = self._read(base, get_args(Field), REQUIRED)
            corpus = _PairsReader(table, columns).corpus()
        return note_duplicates(corpus)

    def _read(
        self, base: Path, fields: Sequence[Field], required: Sequence[Field], more: Sequence[str] = ()
    ) -> tuple[Table, dict[Field, str]]:
        """Read the columns of the fields, and the columns `more`; also return the fields that the file has.

        It must have the required fields, and those that `columns` names. A column that the settings give to one field
        or criterion is not read as another field that has its name.
        """
        given = {*self.columns.values(), *more}
        named = {name: self.columns.get(name, name) for name in fields if name in self.columns or name not in given}
        named = {name: column for name, column in named.items() if column}
        must = [column for name, column in named.items() if name in required or name in self.columns]
        remedy = 'say in [data] which column holds what, such as columns = { post = "NAME" }'
        unsaid = [name for name in fields if name not in self.columns and name not in required]

        def check(names: Sequence[str]) -> list[str]:
            _check_shape(base / self.path, names, must)
            return _not_read([name for name in names if name not in {*named.values(), *more}], names, unsaid)

        table = read_table(
            Path(self.path), [*must, *more], list(named.values()), folder=base, remedy=remedy, check=check
        )
        return table, {name: column for name, column in named.items() if column in table.columns}


def _check_shape(path: Path, names: Sequence[str], required: Sequence[str]) -> None:
    """Raise a `DataError` if a table without criteria in the settings has one row per post."""
    missing: tuple[Field, ...] = ("criterion", "label")
    if "post" not in names or not set(missing) <= set(required):
        return
    if any(name in names or lookalikes(names, name) for name in missing):
        return
    kept = [name for field in WIDE for name in (field, *lookalikes(names, field)) if name in names and is_name(name)]
    melt = f".melt({kept[:20]!r}, var_name='criterion', value_name='label')"
    raise DataError(
        str(path),
        [
            "it has neither a column criterion nor a column label; if it has one row per post and a column of labels "
            "per criterion, name these columns in [data.criteria] (hpo init does so), or make one row per post and "
            f"criterion with pandas: {melt}"
        ],
    )


def _not_read(unread: Sequence[str], names: Sequence[str], fields: Sequence[Field]) -> list[str]:
    """Return a mistake for every field that the table lacks although a column that is not read looks like it."""
    problems = []
    for field_name in fields:
        found = [name for name in lookalikes(names, field_name) if name in unread]
        if found:
            quoted = " and ".join(map(quote_name, found[:3]))
            line = f"columns = {{ {field_name} = {_toml(found[0])} }}"
            problems.append(
                f"column {quoted} looks like {field_name}, but is not read: write {line} in [data], or "
                f'{{ {field_name} = "" }} if it is something else'
            )
    return problems


def _toml(name: str) -> str:
    """A name as a TOML string, `"NAME"` in place of one that may not be shown."""
    return json.dumps(name if is_name(name) else "NAME", ensure_ascii=False)


def _contradiction(
    columns: Mapping[Field, str], criteria: Mapping[str, str], evidence: Mapping[str, str]
) -> str | None:
    """Describe the first contradiction between the settings; None if there is none."""
    if evidence and not criteria:
        return "evidence is for wide tables: give criteria, too, or name the column with columns = { evidence = ... }"
    strange = [name for name in evidence if name not in criteria]
    if strange:
        return f"evidence names {quote_value(strange[0])}, which is not among the criteria"
    pairwise = [name for name in columns if name not in WIDE]
    if criteria and pairwise:
        return (
            f"columns names {pairwise[0]}, which a wide table (with criteria) does not have; remove it, or remove "
            "criteria for a table with one row per post and criterion"
        )
    needed = [name for name in (("post",) if criteria else REQUIRED) if columns.get(name) == ""]
    if needed:
        return f"columns says that there is no {needed[0]}, but a table needs one; name its column"
    columns = {name: column for name, column in columns.items() if column}
    used: dict[str, str] = {}
    given: list[tuple[str, str]] = [(name, columns.get(name, name)) for name in (("post",) if criteria else REQUIRED)]
    given += [*columns.items(), *((f"criterion {quote_value(name)}", name) for name in criteria)]
    given += [(f"the evidence of {quote_value(name)}", column) for name, column in evidence.items()]
    for what, column in given:
        if used.setdefault(column, what) != what:
            return f"column {quote_value(column)} is given for {used[column]} and for {what}; a column is one thing"
    return None


class _PairsReader:
    """Turns the rows of the table into a corpus and collects the problems.

    Args:
        table: the rows.
        columns: the column of every field that the table has.
    """

    def __init__(self, table: Table, columns: Mapping[Field, str]) -> None:
        self.table = table
        self.columns = columns
        self.problems = table.problems
        self.posts = FirstValues("the text", "post")
        self.groups = FirstValues("the group", "post")
        self.texts = FirstValues("the text", "criterion")
        self.post_numbers: dict[str, int] = {}
        self.criterion_numbers: dict[str, int] = {}
        self.labels = FirstLabels()
        self.evidence: set[tuple[int, int, int, int]] = set()
        self.merged = 0
        self.ignored_evidence = 0

    def corpus(self) -> Corpus:
        for row in self.table.rows:
            self._add(row)
        if self._is_swapped():
            swapped = f"columns {self.columns['post']} and {self.columns['criterion']} seem to be swapped"
            raise DataError(str(self.table.path), [f"{swapped}: the criteria are longer than the posts"])
        if self.problems:
            raise DataError(str(self.table.path), self.problems.entries())
        if not self.table.rows:
            raise DataError(str(self.table.path), ["it has no rows below the header"])
        labels = np.full((len(self.post_numbers), len(self.criterion_numbers)), UNLABELLED, dtype=np.int8)
        for post, criterion, label in self.labels:
            labels[self.post_numbers[post], self.criterion_numbers[criterion]] = label
        grouped = "group" in self.columns
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

    def _is_swapped(self) -> bool:
        """Whether the criteria look like texts, and the posts do not. Names that are texts may not be shown."""
        words = [len(name.split()) for name in self.criterion_numbers]
        if not words or sum(words) / len(words) < _WORDS_OF_TEXT:
            return False
        post, criterion = self.columns["post"], self.columns["criterion"]
        return sum(len(row[criterion]) for row in self.table.rows) > sum(len(row[post]) for row in self.table.rows)

    def _criterion_text(self, name: str) -> str:
        return self.texts[name] if name in self.texts else criterion_in_words(name)

    def _add(self, row: Row) -> None:
        needed: tuple[Field, ...] = ("post_id", "post", "criterion", "group")
        empty = [self.columns[name] for name in needed if name in self.columns and not row[self.columns[name]]]
        for column in empty:
            self.problems.add(row.number, f"{column} is empty")
        label = parse_label(row, self.columns["label"], self.problems)
        if empty:
            return
        post, criterion = row[self.columns["post_id"]], row[self.columns["criterion"]]
        if len(criterion) > LONGEST_CRITERION:
            self.problems.add(
                row.number,
                f"{self.columns['criterion']} is longer than {LONGEST_CRITERION} characters",
                remedy="a criterion has a short name; are the columns of posts and criteria swapped?",
            )
        self.posts.add(post, self._text(row, "post"), row.number, self.problems)
        if "group" in self.columns:
            self.groups.add(post, row[self.columns["group"]], row.number, self.problems)
        criterion_text = self._text(row, "criterion_text").strip()
        if criterion_text:
            self.texts.add(criterion, criterion_text, row.number, self.problems)
        post_number = self.post_numbers.setdefault(post, len(self.post_numbers))
        criterion_number = self.criterion_numbers.setdefault(criterion, len(self.criterion_numbers))
        if label is not None:
            self.merged += self.labels.add(post, criterion, label, row.number, self.problems)
            self._add_evidence(row, (post_number, criterion_number), label)

    def _text(self, row: Row, name: Field) -> str:
        """Return the cell as it is; empty if the table has no such column."""
        return row.cells[self.columns[name]] if name in self.columns else ""

    def _add_evidence(self, row: Row, pair: tuple[int, int], label: int) -> None:
        passage = self._text(row, "evidence").strip()
        if not passage:
            return
        span = find_passage(passage, self._text(row, "post"))
        if span is None:
            post = quote_value(row[self.columns["post_id"]])
            self.problems.add(
                row.number, f"the evidence is not a passage of post {post}", many="the evidence is not in its post"
            )
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
        if "group" in self.columns:
            groups = {self.groups[post] for post in self.post_numbers}
            notes.append(f"{len(self.post_numbers)} posts form {len(groups)} groups")
        else:
            notes.append("there is no column group, so each post is its own group")
        return notes
