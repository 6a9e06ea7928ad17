"""A corpus: posts, criteria, and which post meets which criterion."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import DataError

UNLABELLED = -1
"""The label of a pair that nobody judged."""


@dataclass(frozen=True)
class Criterion:
    """What a post may meet."""

    name: str
    text: str
    """The criterion in words; learned queries start at its embedding."""


@dataclass(frozen=True)
class Evidence:
    """The characters `start:end` of post number `post` show that it meets criterion number `criterion`."""

    post: int
    criterion: int
    start: int
    end: int


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
"""The home case's ten criteria, A1 to A10."""


@dataclass(frozen=True, eq=False, repr=False)
class Corpus:
    """Posts, criteria and labels that fit together; checked once, then never changed.

    Raises:
        DataError: with everything that does not fit.
    """

    name: str
    post_ids: tuple[str, ...]
    posts: tuple[str, ...]
    criteria: tuple[Criterion, ...]
    labels: npt.NDArray[np.int8]
    """[posts, criteria]: 1 met, 0 not met, -1 nobody judged (`UNLABELLED`)."""
    groups: tuple[str, ...]
    """One per post; the posts of a group never straddle folds."""
    evidence: tuple[Evidence, ...] = ()
    notes: tuple[str, ...] = ()
    """What the reader did to the data, in sentences."""

    def __post_init__(self) -> None:
        given = np.asarray(self.labels)
        problems = _shape_problems(self, given) or _value_problems(self, given)
        if problems:
            raise DataError(f"corpus {self.name!r}", problems)
        labels = np.array(given, dtype=np.int8, order="C")  # our own copy, so that nobody else can write to it
        labels.setflags(write=False)
        object.__setattr__(self, "labels", labels)

    def __len__(self) -> int:
        return len(self.posts)

    def __repr__(self) -> str:
        # Never the posts: representations end up in logs and tracebacks.
        return (
            f"Corpus({self.name!r}, {len(self)} posts, {len(self.criteria)} criteria, {len(set(self.groups))} groups)"
        )

    def fingerprint(self) -> str:
        """SHA-256 (hex) of ids, texts, criteria, labels and groups; name, notes and evidence do not count."""
        digest = hashlib.sha256(b"corpus-1")
        names = [criterion.name for criterion in self.criteria]
        texts = [criterion.text for criterion in self.criteria]
        for strings in (self.post_ids, self.posts, names, texts, self.groups):
            _add_strings(digest, strings)
        digest.update(self.labels.tobytes())  # its shape is fixed by the counts before it
        return digest.hexdigest()

    def subset(self, index: npt.ArrayLike) -> Corpus:
        """Return the posts at `index` (ints [n], each at most once, or bools [posts]), in that order.

        Raises:
            IndexError: when an index is not that of a post.
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
        moved = {old: new for new, old in enumerate(rows)}
        kept = (replace(item, post=moved[item.post]) for item in self.evidence if item.post in moved)
        return replace(
            self,
            post_ids=tuple(self.post_ids[row] for row in rows),
            posts=tuple(self.posts[row] for row in rows),
            labels=self.labels[chosen],
            groups=tuple(self.groups[row] for row in rows),
            evidence=tuple(sorted(kept, key=lambda item: (item.post, item.criterion, item.start, item.end))),
        )

    @property
    def positives(self) -> npt.NDArray[np.int64]:
        """Posts that meet each criterion, [criteria]."""
        return np.asarray((self.labels == 1).sum(axis=0), dtype=np.int64)

    @property
    def prevalence(self) -> npt.NDArray[np.float64]:
        """Share of the judged posts that meet each criterion, [criteria]; NaN where none was judged."""
        judged = (self.labels != UNLABELLED).sum(axis=0)
        share = np.full(len(self.criteria), np.nan)
        np.divide(self.positives, judged, out=share, where=judged > 0)
        return share


def duplicates_across_groups(corpus: Corpus) -> list[tuple[int, int]]:
    """Pairs (i, j), i < j, of posts with the same text in different groups: folds would leak through them.

    Texts are compared without regard to case and whitespace. Every such post is in at least one pair.
    """
    alike: dict[str, list[int]] = {}
    for row, post in enumerate(corpus.posts):
        alike.setdefault(" ".join(post.split()).casefold(), []).append(row)
    pairs: set[tuple[int, int]] = set()
    for rows in alike.values():
        first = rows[0]
        # Two anchors are enough: every post differs in its group from one of them, and the pairs stay few.
        other = next((row for row in rows if corpus.groups[row] != corpus.groups[first]), None)
        if other is None:
            continue
        for row in rows:
            anchor = first if corpus.groups[row] != corpus.groups[first] else other
            pairs.add((min(row, anchor), max(row, anchor)))
    return sorted(pairs)


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
    problems = [f"post id {name!r} occurs more than once" for name in _repeated(corpus.post_ids)]
    problems += [
        f"criterion {name!r} occurs more than once" for name in _repeated(item.name for item in corpus.criteria)
    ]
    if not np.isin(labels, (UNLABELLED, 0, 1)).all():
        problems.append("a label is neither 1 nor 0 nor -1 (unlabelled)")
    for item in corpus.evidence:
        if not (0 <= item.post < len(corpus.posts) and 0 <= item.criterion < len(corpus.criteria)):
            problems.append(f"evidence for post {item.post} and criterion {item.criterion}, which do not exist")
        elif not 0 <= item.start < item.end <= len(corpus.posts[item.post]):
            problems.append(f"evidence {item.start}:{item.end} lies outside post {corpus.post_ids[item.post]!r}")
    return problems


def _repeated(names: Iterable[str]) -> list[str]:
    counts: dict[str, int] = {}
    for name in names:
        counts[name] = counts.get(name, 0) + 1
    return [name for name, count in counts.items() if count > 1]


def _add_strings(digest: hashlib._Hash, strings: Sequence[str]) -> None:
    """Count and lengths go in front, so that no two lists of strings feed the same bytes."""
    digest.update(len(strings).to_bytes(8, "big"))
    for string in strings:
        # Half a surrogate pair can come out of JSON or Parquet; it is no reason to fail.
        encoded = string.encode("utf-8", "surrogatepass")
        digest.update(len(encoded).to_bytes(8, "big"))
        digest.update(encoded)
