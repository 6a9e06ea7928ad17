"""Named corpora: editorials (real, public), a table of pairs, the user's ReDSM5, and made-up posts."""

from __future__ import annotations

import hashlib
import io
import logging
import re
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterable
from dataclasses import KW_ONLY, dataclass, field, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import numpy.typing as npt
from annotated_types import Interval

from .. import cache
from ..errors import DataError, UserError
from . import synthetic
from .data import (
    DEPRESSION,
    UNLABELLED,
    Corpus,
    Criterion,
    Evidence,
    duplicates_across_groups,
)
from .tables import Row, Table, read_table, shown

_log = logging.getLogger(__name__)

_LABELS = {"0": 0, "0.0": 0, "false": 0, "1": 1, "1.0": 1, "true": 1}


@dataclass(frozen=True)
class EditorialsSource:
    """498 newspaper editorials whose sentences were rated by people; downloaded once from the package index."""

    source: Literal["editorials"] = "editorials"

    def load(self, base: Path) -> Corpus:  # noqa: ARG002 - all sources are loaded alike
        """Return the 498 editorials × 4 criteria, each met where some sentence is rated beyond a bound.

        Raises:
            UserError: when the table is not in the cache and cannot be downloaded.
        """
        table = cache.fetched(_TABLE, _TABLE_SHA256, _download)
        return _with_duplicates_noted(_editorials(table))


@dataclass(frozen=True)
class PairsSource:
    """A table with a row per post and criterion: post_id, post, criterion, label.

    Optional columns: criterion_text, group (who wrote the post), evidence (a passage of the post).
    """

    source: Literal["pairs"] = "pairs"
    _: KW_ONLY
    path: str
    """CSV, TSV or Parquet; relative to the study file."""

    def load(self, base: Path) -> Corpus:
        """Return the table as a corpus; pairs that have no row are unlabelled.

        Raises:
            UserError: when the file cannot be read.
            DataError: with every mistake in it.
        """
        table = read_table(
            base / self.path, ("post_id", "post", "criterion", "label"), ("criterion_text", "group", "evidence")
        )
        return _with_duplicates_noted(_Pairs(table).corpus())


@dataclass(frozen=True)
class Redsm5Source:
    """Your own copy of ReDSM5: posts, and a clinician's annotations of their sentences."""

    source: Literal["redsm5"] = "redsm5"
    posts: str = "redsm5_posts.csv"
    """Table with post_id, text and, if you have it, group; relative to the study file."""
    annotations: str = "redsm5_annotations.csv"
    """Table with post_id, sentence_text, DSM5_symptom and status."""

    def load(self, base: Path) -> Corpus:
        """Return all posts × the ten criteria; a post without an annotation of a criterion does not meet it.

        Raises:
            UserError: when a file cannot be read.
            DataError: with every mistake in both files.
        """
        posts = read_table(base / self.posts, ("post_id", "text"), ("group",))
        annotations = read_table(base / self.annotations, ("post_id", "sentence_text", "DSM5_symptom", "status"))
        return _with_duplicates_noted(_Redsm5(posts, annotations).corpus())


@dataclass(frozen=True)
class SyntheticSource:
    """Made-up posts with planted evidence, in the home case's shape; for tests, benchmarks and a first look."""

    source: Literal["synthetic"] = "synthetic"
    posts: Annotated[int, Interval(ge=20, le=1_000_000)] = 1484
    criteria: Annotated[int, Interval(ge=1, le=len(synthetic.TOPICS))] = 10
    seed: int = 0
    sentences_mean: Annotated[float, Interval(ge=3, le=200)] = 14.0
    """Mean sentences in a post; lengths run from 3 to about four times this."""
    min_positives: Annotated[int, Interval(ge=1)] = 10
    """Posts that meet a criterion, at least (but no more than half of the posts), so that small studies have folds."""

    def load(self, base: Path) -> Corpus:  # noqa: ARG002 - all sources are loaded alike
        """Return the corpus; the same fields give the same corpus on every machine."""
        return synthetic.generate(
            posts=self.posts,
            criteria=self.criteria,
            seed=self.seed,
            sentences_mean=self.sentences_mean,
            min_positives=self.min_positives,
        )


Source = EditorialsSource | PairsSource | Redsm5Source | SyntheticSource

SOURCES: dict[str, type[Source]] = {
    "editorials": EditorialsSource,
    "pairs": PairsSource,
    "redsm5": Redsm5Source,
    "synthetic": SyntheticSource,
}


# ---- editorials ----

_SDIST_SHA256 = "5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9"
_REQUIREMENT = f"vaderSentiment==3.3.2 --hash=sha256:{_SDIST_SHA256}\n"
_ARCHIVE = "vaderSentiment-3.3.2/additional_resources/hutto_ICWSM_2014.tar.gz"
_TABLE = "nytEditorialSnippets_GroundTruth.txt"
_TABLE_SHA256 = "7d8fbcce7dde5d716da53e78f4ef4be6b706e9ef1e1d51887e6d0ad4b69cc27e"
_DOWNLOAD_SECONDS = 300

_BOUNDS: tuple[tuple[Criterion, float], ...] = (
    (
        Criterion(
            "very_negative", "This is horrible, outrageous and cruel: people were killed, tortured or left to die."
        ),
        -2.0,
    ),
    (Criterion("negative", "This is bad and harmful: a failure, a crime, a danger, a loss that deserves blame."), -1.5),
    (Criterion("positive", "This is good and welcome: a success, a relief, help that deserves praise."), 1.5),
    (Criterion("very_positive", "This is wonderful, beautiful and inspiring: a triumph, a delight, a hero."), 2.0),
)
"""A criterion is met by a sentence whose mean rating (-4 to 4) lies beyond the bound, away from zero."""


def _download() -> bytes:
    """Return the table of rated sentences out of the package's source distribution; nothing else is kept."""
    _log.info("downloading the editorials (2.5 MB, once)")
    with tempfile.TemporaryDirectory(prefix="editorials-") as folder:
        requirements = Path(folder, "requirements.txt")
        requirements.write_text(_REQUIREMENT, encoding="utf-8")
        # pip knows the user's index, proxy and certificates, and checks the hash before it opens the archive.
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--retries", "1"]
        command += ["--no-input", "--no-deps", "--no-binary", "vaderSentiment", "--require-hashes"]
        command += ["--dest", folder, "--requirement", str(requirements)]
        try:
            done = subprocess.run(  # noqa: S603 - nothing in it comes from the user
                command,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                encoding="utf-8",
                errors="replace",
                check=False,
                timeout=_DOWNLOAD_SECONDS,
            )
        except subprocess.TimeoutExpired:
            raise _not_downloaded(f"no answer for {_DOWNLOAD_SECONDS} seconds") from None
        if done.returncode != 0:
            errors = [line for line in done.stderr.splitlines() if line.strip()]
            raise _not_downloaded(errors[-1].removeprefix("ERROR: ") if errors else f"pip exited {done.returncode}")
        archive = next(Path(folder).glob("*.tar.gz")).read_bytes()
        if hashlib.sha256(archive).hexdigest() != _SDIST_SHA256:
            raise _not_downloaded("the archive's SHA-256 differs")
        with (
            tarfile.open(fileobj=io.BytesIO(archive)) as outer,
            tarfile.open(fileobj=outer.extractfile(_ARCHIVE)) as inner,
        ):
            member = inner.extractfile(f"hutto_ICWSM_2014/{_TABLE}")
            assert member is not None, "the archive's hash was checked, so the table is in it"
            return member.read()


def _not_downloaded(reason: str) -> UserError:
    return UserError(
        f"the editorials could not be downloaded ({reason}); run this once where pip reaches a package index that has "
        f"vaderSentiment 3.3.2, or copy {_TABLE} from such a machine's cache into {cache.cache_dir()}"
    )


def _editorials(table: bytes) -> Corpus:
    documents: dict[str, list[tuple[int, float, str]]] = {}
    for line in table.decode("utf-8").splitlines():
        name, mean_rating, text = line.split("\t")
        document, _, number = name.rpartition("_")
        documents.setdefault(document, []).append((int(number), float(mean_rating), text))
    posts, evidence = [], []
    labels = np.zeros((len(documents), len(_BOUNDS)), dtype=np.int8)
    for row, sentences in enumerate(documents.values()):
        start = 0
        for _, rating, sentence in sorted(sentences):
            for column, (_, bound) in enumerate(_BOUNDS):
                if rating < bound < 0 or rating > bound > 0:
                    labels[row, column] = 1
                    evidence.append(Evidence(row, column, start, start + len(sentence)))
            start += len(sentence) + 1
        posts.append("\n".join(sentence for _, _, sentence in sorted(sentences)))
    names = tuple(f"editorial-{document}" for document in documents)
    criteria = tuple(criterion for criterion, _ in _BOUNDS)
    return Corpus("editorials", names, tuple(posts), criteria, labels, groups=names, evidence=tuple(evidence))


# ---- what the tables have in common ----


@dataclass
class _FirstSeen:
    """The first value of every key, with its row; another value later is a problem."""

    what: str
    values: dict[str, tuple[str, int]] = field(default_factory=dict)

    def add(self, key: str, value: str, row: int, problems: list[str]) -> bool:
        """Return whether the key was seen before."""
        seen = key in self.values
        first, at = self.values.setdefault(key, (value, row))
        if first != value:
            problems.append(f"row {row}: {self.what.format(shown(key))} differs from row {at}")
        return seen

    def __getitem__(self, key: str) -> str:
        return self.values[key][0]


def _label(row: Row, column: str, problems: list[str]) -> int | None:
    value = _LABELS.get(row[column].lower())
    if value is None:
        # One word only: a longer value may be a post that slipped into the wrong column.
        told = shown(row[column], most_words=1)
        problems.append(f"row {row.number}: {column} is {told}; allowed are 0 and 1")
    return value


def _find(passage: str, post: str) -> tuple[int, int] | None:
    """Return where the passage stands in the post; whitespace may differ."""
    words = passage.split()
    if not words:
        return None
    start = post.find(passage)
    if start >= 0:
        return start, start + len(passage)
    match = re.search(r"\s+".join(map(re.escape, words)), post)
    return match.span() if match else None


def _evidence(found: Iterable[tuple[int, int, int, int]]) -> tuple[Evidence, ...]:
    return tuple(Evidence(*item) for item in sorted(set(found)))


def _with_duplicates_noted(corpus: Corpus) -> Corpus:
    pairs = duplicates_across_groups(corpus)
    if not pairs:
        return corpus
    first, second = (corpus.post_ids[row] for row in pairs[0])
    alike = len({row for pair in pairs for row in pair})
    note = f"{alike} posts share their text with a post of another group (for example {first} and {second})"
    return replace(corpus, notes=(*corpus.notes, note))


# ---- pairs ----


class _Pairs:
    """The table of pairs, read row by row."""

    def __init__(self, table: Table) -> None:
        self.table = table
        self.problems = list(table.problems)
        self.posts = _FirstSeen("the text of post {}")
        self.groups = _FirstSeen("the group of post {}")
        self.texts = _FirstSeen("the text of criterion {}")
        self.criteria: dict[str, int] = {}
        self.rows: dict[str, int] = {}
        self.labels: dict[tuple[int, int], tuple[int, int]] = {}  # (post, criterion) -> label and the row it is in
        self.evidence: list[tuple[int, int, int, int]] = []
        self.merged = 0
        self.unused_evidence = 0

    def corpus(self) -> Corpus:
        for row in self.table.rows:
            self._read(row)
        if not self.table.rows and not self.problems:
            self.problems.append("it has no rows below the header")
        if self.problems:
            raise DataError(str(self.table.path), self.problems)
        labels = np.full((len(self.rows), len(self.criteria)), UNLABELLED, dtype=np.int8)
        for place, (label, _) in self.labels.items():
            labels[place] = label
        named = {
            name: self.texts[name] if name in self.texts.values else name.replace("_", " ") for name in self.criteria
        }
        return Corpus(
            name=self.table.path.stem,
            post_ids=tuple(self.rows),
            posts=tuple(self.posts[name] for name in self.rows),
            criteria=tuple(Criterion(name, text) for name, text in named.items()),
            labels=labels,
            groups=tuple(self.groups[name] if "group" in self.table.columns else name for name in self.rows),
            evidence=_evidence(self.evidence),
            notes=tuple(self._notes(labels)),
        )

    def _read(self, row: Row) -> None:
        needed = ["post_id", "post", "criterion"] + ["group"] * ("group" in self.table.columns)
        empty = [column for column in needed if not row[column]]
        self.problems += [f"row {row.number}: {column} is empty" for column in empty]
        label = _label(row, "label", self.problems)
        if empty:
            return
        post, criterion = row["post_id"], row["criterion"]
        self.posts.add(post, row.cells["post"], row.number, self.problems)
        if "group" in self.table.columns:
            self.groups.add(post, row["group"], row.number, self.problems)
        if row.cells.get("criterion_text", "").strip():
            self.texts.add(criterion, row["criterion_text"], row.number, self.problems)
        place = (self.rows.setdefault(post, len(self.rows)), self.criteria.setdefault(criterion, len(self.criteria)))
        if label is not None:
            self._judge(row, place, label)

    def _judge(self, row: Row, place: tuple[int, int], label: int) -> None:
        pair = f"post {shown(row['post_id'])} and criterion {shown(row['criterion'])}"
        if place in self.labels:
            first, at = self.labels[place]
            if first != label:
                self.problems.append(f"row {row.number}: {pair} have label {label} here, but {first} in row {at}")
            self.merged += first == label
        self.labels.setdefault(place, (label, row.number))
        passage = row.cells.get("evidence", "").strip()
        if not passage:
            return
        span = _find(passage, row.cells["post"])
        if span is None:
            self.problems.append(f"row {row.number}: the evidence is not a passage of post {shown(row['post_id'])}")
        elif label == 1:
            self.evidence.append((*place, *span))
        else:
            self.unused_evidence += 1

    def _notes(self, labels: npt.NDArray[np.int8]) -> list[str]:
        notes = []
        if self.merged:
            notes.append(f"{self.merged} rows that repeat the label of an earlier row were merged with it")
        if self.unused_evidence:
            notes.append(f"the evidence of {self.unused_evidence} rows with label 0 was left out")
        unlabelled = int((labels == UNLABELLED).sum())
        if unlabelled:
            notes.append(f"{unlabelled} of {labels.size} pairs have no row and are unlabelled")
        if "group" in self.table.columns:
            notes.append(f"{len(self.rows)} posts form {len({self.groups[name] for name in self.rows})} groups")
        else:
            notes.append("there is no column group, so each post is its own group")
        return notes


# ---- redsm5 ----

_SYMPTOMS = {criterion.name.upper(): column for column, criterion in enumerate(DEPRESSION)}
_POST_OF_USER = re.compile(r"s_(?P<user>.+)_[^_]+")


class _Redsm5:
    """The two ReDSM5 tables, read row by row."""

    def __init__(self, posts: Table, annotations: Table) -> None:
        self.tables = (posts, annotations)
        self.problems: list[str] = []
        self.notes: list[str] = []
        self.rows: dict[str, int] = {}
        self.texts: list[str] = []
        self.groups: list[str] = []
        self.evidence: list[tuple[int, int, int, int]] = []

    def corpus(self) -> Corpus:
        posts, annotations = self.tables
        self._collect(posts, self._posts(posts))
        labels, problems = self._annotations(annotations)
        self._collect(annotations, problems)
        if self.problems:
            raise DataError(f"ReDSM5 ({posts.path}, {annotations.path.name})", self.problems)
        groups = self._grouped("group" in posts.columns)
        return Corpus(
            name="redsm5",
            post_ids=tuple(self.rows),
            posts=tuple(self.texts),
            criteria=DEPRESSION,
            labels=labels,
            groups=groups,
            evidence=_evidence(self.evidence),
            notes=tuple(self.notes),
        )

    def _collect(self, table: Table, problems: list[str]) -> None:
        self.problems += [f"{table.path.name}: {problem}" for problem in (*table.problems, *problems)]

    def _posts(self, table: Table) -> list[str]:
        problems = [] if table.rows or table.problems else ["it has no rows below the header"]
        first: dict[str, int] = {}
        for row in table.rows:
            problems += [f"row {row.number}: {column} is empty" for column in row.cells if not row[column]]
            name = row["post_id"]
            if not name:
                continue
            if name in first:
                problems.append(f"row {row.number}: post {shown(name)} is in row {first[name]} already")
                continue
            first[name] = row.number
            self.rows[name] = len(self.rows)
            self.texts.append(row.cells["text"])
            self.groups.append(row["group"] if "group" in row.cells else name)
        return problems

    def _annotations(self, table: Table) -> tuple[npt.NDArray[np.int8], list[str]]:
        labels = np.zeros((len(self.rows), len(DEPRESSION)), dtype=np.int8)
        problems: list[str] = []
        statuses: dict[tuple[int, int, str], set[int]] = {}
        unlocated = repeated = 0
        for row in table.rows:
            judged = self._annotation(row, problems)
            if judged is None:
                continue
            post, column, status = judged
            sentence = row["sentence_text"]
            before = statuses.setdefault((post, column, sentence), set())
            repeated += status in before
            if status == 1 and status not in before:
                labels[post, column] = 1
                span = _find(sentence, self.texts[post])
                unlocated += span is None
                self.evidence += [(post, column, *span)] if span else []
            before.add(status)
        contradicted = sum(len(both) == 2 for both in statuses.values())
        self._note(repeated, "annotations that repeat an earlier one were merged with it")
        self._note(unlocated, "sentences of evidence were not found in their post and have no place in it")
        self._note(contradicted, "sentences have status 0 and 1 for the same symptom; 1 counts")
        return labels, problems

    def _note(self, count: int, what: str) -> None:
        if count:
            self.notes.append(f"{count} {what}")

    def _annotation(self, row: Row, problems: list[str]) -> tuple[int, int, int] | None:
        post, symptom = row["post_id"], row["DSM5_symptom"]
        if post not in self.rows:
            problems.append(f"row {row.number}: post {shown(post)} is not among the posts")
        if symptom.upper() not in _SYMPTOMS:
            close = get_close_matches(symptom.upper(), _SYMPTOMS, n=1)
            hint = f"did you mean {close[0]}?" if close else f"known are {', '.join(_SYMPTOMS)}"
            problems.append(f"row {row.number}: symptom {shown(symptom)} is unknown; {hint}")
        status = _label(row, "status", problems)
        if status is None or post not in self.rows or symptom.upper() not in _SYMPTOMS:
            return None
        return self.rows[post], _SYMPTOMS[symptom.upper()], status

    def _grouped(self, given: bool) -> tuple[str, ...]:
        """Group by the column `group`, else by the user in the post ids, else every post for itself."""
        groups = tuple(self.groups)
        users = [match["user"] for match in map(_POST_OF_USER.fullmatch, self.rows) if match]
        why = "by the column group"
        if not given and len(users) == len(self.rows):
            groups, why = tuple(users), "by the user in their ids (s_<user>_<post>)"
        elif not given:
            others = len(self.rows) - len(users)
            why = f"each its own, because {others} ids are not of the form s_<user>_<post> and there is no column group"
        self.notes.append(f"{len(groups)} posts form {len(set(groups))} groups, {why}")
        return groups
