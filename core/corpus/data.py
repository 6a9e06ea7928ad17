"""The corpus: posts, criteria, and labels that say which post meets which criterion."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import DataError, quote_value, shown_value

UNLABELLED = -1
"""The label of a (post, criterion) pair that was not annotated."""


@dataclass(frozen=True)
class Criterion:
    """A criterion that a post may meet."""

    name: str
    text: str
    """The criterion in words; its embedding initialises learned queries."""


@dataclass(frozen=True)
class Evidence:
    """A passage: characters `start:end` of post number `post` show that it meets criterion number `criterion`."""

    post: int
    criterion: int
    start: int
    end: int


@dataclass(frozen=True, eq=False, repr=False)
class Corpus:
    """Posts, criteria and labels; validated on creation, then immutable.

    Raises:
        DataError: the fields contradict each other; the message lists all inconsistencies.
    """

    name: str
    post_ids: tuple[str, ...]
    posts: tuple[str, ...]
    criteria: tuple[Criterion, ...]
    labels: npt.NDArray[np.int8]
    """int8 [posts, criteria]: 1 met, 0 not met, -1 not annotated (`UNLABELLED`)."""
    groups: tuple[str, ...]
    """One per post; all posts of a group are in the same fold."""
    evidence: tuple[Evidence, ...] = ()
    notes: tuple[str, ...] = ()
    """Remarks for users on how the data was interpreted."""

    def __post_init__(self) -> None:
        raw = np.asarray(self.labels)
        problems = _shape_problems(self, raw) or _value_problems(self, raw)
        if problems:
            raise DataError(f"corpus {self.name!r}", problems)
        labels = np.array(raw, dtype=np.int8, order="C")  # a copy, so that the caller cannot change it
        labels.setflags(write=False)
        object.__setattr__(self, "labels", labels)

    def __len__(self) -> int:
        return len(self.posts)

    def __repr__(self) -> str:
        # Without the posts: representations end up in logs and tracebacks.
        return (
            f"Corpus({self.name!r}, {len(self)} posts, {len(self.criteria)} criteria, {len(set(self.groups))} groups)"
        )

    def fingerprint(self, *, evidence: bool = False) -> str:
        """Return the SHA-256 (hex) of ids, texts, criteria, labels and groups; name and notes are ignored.

        Args:
            evidence: also include the evidence, for models that learn from it.
        """
        digest = hashlib.sha256(b"corpus-1")
        names = [criterion.name for criterion in self.criteria]
        texts = [criterion.text for criterion in self.criteria]
        for strings in (self.post_ids, self.posts, names, texts, self.groups):
            _add_strings(digest, strings)
        digest.update(self.labels.tobytes())  # the counts already determine its shape
        if evidence:
            for item in sorted((item.post, item.criterion, item.start, item.end) for item in self.evidence):
                digest.update(np.array(item, dtype=np.int64).tobytes())
        return digest.hexdigest()

    def subset(self, index: npt.ArrayLike) -> Corpus:
        """Return the posts at `index` (ints [n], each at most once, or bools [posts]), in that order.

        Raises:
            IndexError: an index is out of range, or a mask has the wrong shape.
        """
        chosen = np.asarray(index)
        if chosen.dtype == np.bool_:
            if chosen.shape != (len(self),):
                raise IndexError(f"a mask for {len(self)} posts has shape {chosen.shape}")
            chosen = np.flatnonzero(chosen)
        chosen = chosen.astype(np.int64)
        if chosen.ndim != 1 or ((chosen < 0) | (chosen >= len(self))).any():
            raise IndexError(f"an index is not in 0..{len(self) - 1}")
        rows = chosen.tolist()
        new_row = {old: new for new, old in enumerate(rows)}
        evidence = (replace(item, post=new_row[item.post]) for item in self.evidence if item.post in new_row)
        return replace(
            self,
            post_ids=tuple(self.post_ids[row] for row in rows),
            posts=tuple(self.posts[row] for row in rows),
            labels=self.labels[chosen],
            groups=tuple(self.groups[row] for row in rows),
            evidence=tuple(sorted(evidence, key=lambda item: (item.post, item.criterion, item.start, item.end))),
        )

    @property
    def positives(self) -> npt.NDArray[np.int64]:
        """Number of posts that meet each criterion, int64 [criteria]."""
        return np.asarray((self.labels == 1).sum(axis=0), dtype=np.int64)

    @property
    def prevalence(self) -> npt.NDArray[np.float64]:
        """Share of the labelled posts that meet each criterion, float64 [criteria]; NaN where none is labelled."""
        labelled = (self.labels != UNLABELLED).sum(axis=0)
        share = np.full(len(self.criteria), np.nan)
        np.divide(self.positives, labelled, out=share, where=labelled > 0)
        return share


def duplicates_across_groups(corpus: Corpus) -> list[tuple[int, int]]:
    """Return pairs (i, j), i < j, of posts with the same text in different groups: they would leak across folds.

    The comparison ignores case and whitespace. Every such post is in at least one pair.
    """
    rows_by_text: dict[str, list[int]] = {}
    for row, post in enumerate(corpus.posts):
        rows_by_text.setdefault(" ".join(post.split()).casefold(), []).append(row)
    pairs: set[tuple[int, int]] = set()
    for rows in rows_by_text.values():
        first = rows[0]
        # Two anchors suffice: the group of every post differs from that of one of them, and there are few pairs.
        other = next((row for row in rows if corpus.groups[row] != corpus.groups[first]), None)
        if other is None:
            continue
        for row in rows:
            anchor = first if corpus.groups[row] != corpus.groups[first] else other
            pairs.add((min(row, anchor), max(row, anchor)))
    return sorted(pairs)


def note_duplicates(corpus: Corpus) -> Corpus:
    """Return the corpus, with a note if texts occur in more than one group (`duplicates_across_groups`)."""
    pairs = duplicates_across_groups(corpus)
    if not pairs:
        return corpus
    first, second = (shown_value(corpus.post_ids[row]) for row in pairs[0])
    count = len({row for pair in pairs for row in pair})
    note = f"{count} posts share their text with a post of another group (for example {first} and {second})"
    return replace(corpus, notes=(*corpus.notes, note))


def _shape_problems(corpus: Corpus, labels: npt.NDArray[Any]) -> list[str]:
    posts = len(corpus.posts)
    problems = [
        f"{len(field)} {name} for {posts} posts"
        for name, field in (("post_ids", corpus.post_ids), ("groups", corpus.groups))
        if len(field) != posts
    ]
    if labels.shape != (posts, len(corpus.criteria)):
        problems.append(f"labels of shape {labels.shape} for {posts} posts and {len(corpus.criteria)} criteria")
    return problems


def _value_problems(corpus: Corpus, labels: npt.NDArray[Any]) -> list[str]:
    problems = [f"post id {quote_value(name)} occurs more than once" for name in _repeated(corpus.post_ids)]
    problems += [
        f"criterion {quote_value(name)} occurs more than once"
        for name in _repeated(item.name for item in corpus.criteria)
    ]
    if not np.isin(labels, (UNLABELLED, 0, 1)).all():
        problems.append("a label is neither 1 nor 0 nor -1 (unlabelled)")
    for item in corpus.evidence:
        if not (0 <= item.post < len(corpus.posts) and 0 <= item.criterion < len(corpus.criteria)):
            problems.append(f"evidence for post {item.post} and criterion {item.criterion}, which do not exist")
        elif not 0 <= item.start < item.end <= len(corpus.posts[item.post]):
            problems.append(
                f"evidence {item.start}:{item.end} lies outside post {quote_value(corpus.post_ids[item.post])}"
            )
    return problems


def _repeated(names: Iterable[str]) -> list[str]:
    counts: dict[str, int] = {}
    for name in names:
        counts[name] = counts.get(name, 0) + 1
    return [name for name, count in counts.items() if count > 1]


def _add_strings(digest: hashlib._Hash, strings: Sequence[str]) -> None:
    """Add the strings, each preceded by its length, so that no two lists of strings add the same bytes."""
    digest.update(len(strings).to_bytes(8, "big"))
    for string in strings:
        # JSON and Parquet can contain lone surrogates.
        encoded = string.encode("utf-8", "surrogatepass")
        digest.update(len(encoded).to_bytes(8, "big"))
        digest.update(encoded)
