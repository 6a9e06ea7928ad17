"""The source "redsm5": posts, and clinicians' annotations of their sentences by the DSM-5 criteria of depression."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from ..errors import DataError, nearest, quote_value
from .columns import normal, quote_name
from .data import Corpus, Criterion, Evidence, note_duplicates
from .problems import RowProblems
from .tables import Row, Table, find_passage, parse_label, read_table

DEPRESSION: tuple[Criterion, ...] = (
    Criterion("depressed_mood", "Depressed mood: feeling sad, empty, hopeless or tearful for most of the day."),
    Criterion("anhedonia", "Loss of interest: nothing is fun any more, no pleasure in hobbies, friends or activities."),
    Criterion("appetite_change", "Change of appetite or weight: hardly eating, overeating, losing or gaining weight."),
    Criterion("sleep_issues", "Sleep problems: cannot fall asleep, wakes up at night, or sleeps far too much."),
    Criterion("psychomotor", "Slowed down or restless: moving and speaking slowly, or pacing and unable to sit still."),
    Criterion("fatigue", "Fatigue: tired and drained every day, no energy even for small tasks."),
    Criterion("worthlessness", "Feeling worthless or guilty: self-hatred, being a failure, a burden, to blame."),
    Criterion("cognitive_issues", "Trouble thinking: cannot concentrate, remember things or make decisions."),
    Criterion("suicidal_thoughts", "Thoughts of death or suicide: wishing to be dead, plans or attempts to end it."),
    Criterion("special_case", "Another sign that a clinician would note: a diagnosis, treatment, trauma or self-harm."),
)
"""The ten criteria of ReDSM5, A1 to A10."""

_SYMPTOMS = {criterion.name.upper(): column for column, criterion in enumerate(DEPRESSION)}
_POST_OF_USER = re.compile(r"s_(?P<user>.+)_[^_]+")


@dataclass(frozen=True)
class Redsm5Source:
    """Your own copy of ReDSM5: posts, and clinicians' annotations of their sentences."""

    source: Literal["redsm5"] = "redsm5"
    posts: str = "redsm5_posts.csv"
    """Table with post_id, text and optionally group; a relative path starts at the folder of the configuration file."""
    annotations: str = "redsm5_annotations.csv"
    """Table with post_id, sentence_text, DSM5_symptom and status; a relative path starts at the folder of the
    configuration file."""

    def load(self, base: Path) -> Corpus:
        """Return all posts × the ten criteria; a post without an annotation for a criterion does not meet it.

        Args:
            base: folder from which relative paths are resolved.

        Raises:
            UserError: a file cannot be read.
            DataError: the files have mistakes; the message lists all of them.
        """
        posts = read_table(Path(self.posts), ("post_id", "text"), ("group",), folder=base, check=_check_group)
        columns = ("post_id", "sentence_text", "DSM5_symptom", "status")
        annotations = read_table(Path(self.annotations), columns, folder=base)
        return note_duplicates(_Redsm5Reader(posts, annotations).corpus())


def _check_group(names: Sequence[str]) -> list[str]:
    """Return a mistake if the groups are in a column of another spelling, which would be ignored."""
    found = [name for name in names if normal(name).removesuffix("s") == "group" and "group" not in names]
    return [f"column {quote_name(name)} is not read; rename it to group" for name in found]


class _Redsm5Reader:
    """Turns the rows of the two tables into a corpus and collects the problems."""

    def __init__(self, posts: Table, annotations: Table) -> None:
        self.tables = (posts, annotations)
        self.problems: list[str] = []
        self.notes: list[str] = []
        self.post_numbers: dict[str, int] = {}
        self.texts: list[str] = []
        self.groups: list[str] = []
        self.evidence: set[tuple[int, int, int, int]] = set()

    def corpus(self) -> Corpus:
        posts, annotations = self.tables
        self._add_posts(posts)
        labels = self._add_annotations(annotations)
        for table in (posts, annotations):
            self._collect(table)
        if self.problems:
            raise DataError(f"ReDSM5 ({posts.path}, {annotations.path.name})", self.problems)
        groups = self._choose_groups(has_column="group" in posts.columns)
        return Corpus(
            name="redsm5",
            post_ids=tuple(self.post_numbers),
            posts=tuple(self.texts),
            criteria=DEPRESSION,
            labels=labels,
            groups=groups,
            evidence=tuple(Evidence(*item) for item in sorted(self.evidence)),
            notes=tuple(self.notes),
        )

    def _collect(self, table: Table) -> None:
        self.problems += [f"{table.path.name}: {problem}" for problem in table.problems.entries()]

    def _add_posts(self, table: Table) -> None:
        """Add all posts."""
        if not table.rows and not table.problems:
            self.problems.append(f"{table.path.name}: it has no rows below the header")
        first_rows: dict[str, int] = {}
        for row in table.rows:
            for column in row.cells:
                if not row[column]:
                    table.problems.add(row.number, f"{column} is empty")
            post = row["post_id"]
            if not post:
                continue
            if post in first_rows:
                table.problems.add(
                    row.number,
                    f"post {quote_value(post)} is already in row {first_rows[post]}",
                    many="a post is already in an earlier row",
                )
                continue
            first_rows[post] = row.number
            self.post_numbers[post] = len(self.post_numbers)
            self.texts.append(row.cells["text"])
            self.groups.append(row["group"] if "group" in row.cells else post)

    def _add_annotations(self, table: Table) -> npt.NDArray[np.int8]:
        """Add the evidence and the notes; return the labels [posts, criteria]."""
        labels = np.zeros((len(self.post_numbers), len(DEPRESSION)), dtype=np.int8)
        statuses: dict[tuple[int, int, str], set[int]] = {}
        unlocated = repeated = 0
        for row in table.rows:
            annotation = self._parse_annotation(row, table.problems)
            if annotation is None:
                continue
            post, column, status = annotation
            sentence = row["sentence_text"]
            earlier = statuses.setdefault((post, column, sentence), set())
            repeated += status in earlier
            if status == 1 and status not in earlier:
                labels[post, column] = 1
                span = find_passage(sentence, self.texts[post])
                unlocated += span is None
                self.evidence |= {(post, column, *span)} if span else set()
            earlier.add(status)
        contradicted = sum(len(both) == 2 for both in statuses.values())
        self._note(repeated, "annotations that repeat an earlier one were merged with it")
        self._note(unlocated, "sentences of evidence do not occur in their post, so their position is unknown")
        self._note(contradicted, "sentences have status 0 and 1 for the same symptom; 1 counts")
        return labels

    def _note(self, count: int, what: str) -> None:
        if count:
            self.notes.append(f"{count} {what}")

    def _parse_annotation(self, row: Row, problems: RowProblems) -> tuple[int, int, int] | None:
        """Return post number, criterion number and status; None, with the problems added, if one of them is wrong."""
        post, symptom = row["post_id"], row["DSM5_symptom"]
        if post not in self.post_numbers:
            problems.add(row.number, "post {} is not among the posts", value=quote_value(post))
        if symptom.upper() not in _SYMPTOMS:
            close = nearest(symptom.upper(), _SYMPTOMS)
            hint = f"did you mean {close}?" if close else f"allowed: {', '.join(_SYMPTOMS)}"
            problems.add(row.number, "symptom {} is unknown", value=quote_value(symptom), remedy=hint)
        status = parse_label(row, "status", problems)
        if status is None or post not in self.post_numbers or symptom.upper() not in _SYMPTOMS:
            return None
        return self.post_numbers[post], _SYMPTOMS[symptom.upper()], status

    def _choose_groups(self, *, has_column: bool) -> tuple[str, ...]:
        """Group by the column `group`, else by the user in the post ids, else each post is its own group."""
        groups = tuple(self.groups)
        users = [match["user"] for match in map(_POST_OF_USER.fullmatch, self.post_numbers) if match]
        reason = "by the column group"
        if not has_column and len(users) == len(self.post_numbers):
            groups, reason = tuple(users), "by the user in their ids (s_<user>_<post>)"
        elif not has_column:
            others = len(self.post_numbers) - len(users)
            reason = (
                f"one per post, because {others} ids do not have the form s_<user>_<post> and there is no column group"
            )
        self.notes.append(f"{len(groups)} posts form {len(set(groups))} groups, {reason}")
        return groups
