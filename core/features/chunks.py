"""Cut posts into chunks: sentences, each with its position in the post.

The splitter is our own, because libraries do not promise that every character of a post is in exactly one chunk, at a
known position. Locating evidence needs both.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from ..config import ChunksConfig
from ..corpus.data import Corpus
from ..errors import DataError

_LINE = re.compile(r"[^\r\n]+")
_WORD = re.compile(r"\S+")
# The lookbehind keeps long runs of stops linear: a run is matched at its first stop only.
_STOP = re.compile(r"""(?<![.!?…])(?P<stops>[.!?…]++)(?P<closers>["'”’»)\]*_]*+)\s+""")
_DOTTED = re.compile(r"(?:[^\W\d_]\.)+[^\W\d_]")

# A full stop after these never ends a sentence: something always follows.
_TITLES = frozenset(
    ("mr", "mrs", "ms", "mx", "dr", "prof", "st", "gen", "gov", "lt", "sgt", "capt", "vs", "cf", "eg", "ie", "viz")
)
# A full stop after these ends a sentence only if the next word is capitalised.
_SHORT = frozenset(
    ("etc", "approx", "inc", "co", "corp", "ltd", "jr", "sr", "dept", "min", "max", "hr", "hrs", "a.m", "p.m")
)
_MONTHS = frozenset(("jan", "feb", "apr", "jun", "jul", "aug", "sept", "oct", "nov", "dec"))
_LONGEST_ABBREVIATION = 12


@dataclass(frozen=True, eq=False)
class Chunks:
    """The chunks of all posts, post after post, in reading order."""

    texts: tuple[str, ...] = field(repr=False)  # representations end up in logs and tracebacks
    post: npt.NDArray[np.int32]
    """[chunks]: number of the post that the chunk is from."""
    start: npt.NDArray[np.int32]
    """[chunks]: `posts[post][start:end]` is the chunk's text."""
    end: npt.NDArray[np.int32]
    offsets: npt.NDArray[np.int64]
    """[posts + 1]: the chunks of post i are `offsets[i]:offsets[i + 1]`, at least one."""

    def __post_init__(self) -> None:
        assert len(self.texts) == len(self.post) == len(self.start) == len(self.end) == self.offsets[-1]
        for array in (self.post, self.start, self.end, self.offsets):
            array.setflags(write=False)

    def __len__(self) -> int:
        return len(self.texts)


def chunk(posts: Sequence[str], config: ChunksConfig) -> Chunks:
    """Split every post into sentences, and sentences longer than `config.max_words` words into pieces.

    Every character that is not whitespace is in exactly one chunk.

    Raises:
        DataError: naming (by number, from 0) the posts that have no text.
    """
    spans = [[span for start, end in _sentences(post) for span in _cut(post, start, end, config)] for post in posts]
    empty = [f"post number {row} has no text" for row, post_spans in enumerate(spans) if not post_spans]
    if empty:
        raise DataError("the corpus", empty)
    counts = np.array([len(post_spans) for post_spans in spans], dtype=np.int64)
    flat = np.array([span for post_spans in spans for span in post_spans], dtype=np.int32).reshape(-1, 2)
    return Chunks(
        texts=tuple(
            post[start:end] for post, post_spans in zip(posts, spans, strict=True) for start, end in post_spans
        ),
        post=np.repeat(np.arange(len(posts), dtype=np.int32), counts),
        start=flat[:, 0].copy(),
        end=flat[:, 1].copy(),
        offsets=np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(counts)]),
    )


def windows(posts: Sequence[str], chunks: Chunks, window: int) -> Chunks:
    """Return the chunks of which each is `window` consecutive chunks of a post, with what is between them.

    A post of n chunks has n - window + 1 of them, in reading order; one of fewer chunks than `window` has one, the
    whole of it. `windows(posts, chunks, 1)` is `chunks` itself.

    Args:
        posts: the texts that `chunks` was made from.
        chunks: single sentences, from `chunk`.
        window: at least 1.
    """
    assert window >= 1
    assert len(chunks.offsets) == len(posts) + 1, "these are the chunks of other posts"
    if window == 1:
        return chunks
    lengths = np.diff(chunks.offsets)
    counts = np.maximum(lengths - window + 1, 1)
    offsets = np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(counts)])
    post = np.repeat(np.arange(len(posts), dtype=np.int32), counts)
    first = np.arange(len(post)) - offsets[post] + chunks.offsets[post]
    last = first + np.minimum(lengths, window)[post] - 1
    start, end = chunks.start[first], chunks.end[last]
    spans = zip(post.tolist(), start.tolist(), end.tolist(), strict=True)
    texts = tuple(posts[row][begin:stop] for row, begin, stop in spans)
    return Chunks(texts, post, start, end, offsets)


def evidence_mask(corpus: Corpus, chunks: Chunks) -> npt.NDArray[np.bool_]:
    """Bool `[chunks, criteria]`: the chunk overlaps evidence by at least half of the shorter of the two."""
    assert len(chunks.offsets) == len(corpus) + 1, "these are the chunks of another corpus"
    mask = np.zeros((len(chunks), len(corpus.criteria)), dtype=np.bool_)
    for item in corpus.evidence:
        rows = slice(int(chunks.offsets[item.post]), int(chunks.offsets[item.post + 1]))
        start, end = chunks.start[rows], chunks.end[rows]
        shared = np.minimum(end, item.end) - np.maximum(start, item.start)
        shorter = np.minimum(end - start, item.end - item.start)
        mask[rows, item.criterion] |= 2 * shared >= shorter
    return mask


def share_within(chunks: Chunks, k: int) -> float:
    """Share of posts (0 to 1) with at most `k` chunks: retrieving `k` returns all of them. NaN without posts."""
    counts = np.diff(chunks.offsets)
    return float((counts <= k).mean()) if len(counts) else float("nan")


def _sentences(post: str) -> Iterator[tuple[int, int]]:
    """Spans of the sentences of a post; a line break always ends one. Spans may hold whitespace only."""
    for line in _LINE.finditer(post):
        start = line.start()
        for stop in _STOP.finditer(post, line.start(), line.end()):
            if _ends_sentence(post, start, stop):
                yield start, stop.end()
                start = stop.end()
        yield start, line.end()


def _ends_sentence(post: str, start: int, stop: re.Match[str]) -> bool:
    following = post[stop.end() : stop.end() + 1]
    lower_case = following.islower()
    stops, closed = stop["stops"], bool(stop["closers"])
    if stops != ".":
        # '"Why?" she asked' and 'I was ... tired' continue; a bare ! or ? always ends a sentence
        return not (lower_case and (closed or stops.endswith((".", "…"))))
    if closed:
        return not lower_case
    head = post[max(start, stop.start() - _LONGEST_ABBREVIATION) : stop.start()]
    word = (head.split() or [""])[-1].lstrip("\"'“‘«([{*_")
    if word.isdigit() and len(word) <= 2 and not post[start : stop.start() - len(word)].strip():
        return False  # the number of a list item
    if word.lower() in _SHORT | _MONTHS:
        return following.isupper()
    initial = len(word) == 1 and word.isupper() and word != "I"
    return not (initial or word.lower() in _TITLES or _DOTTED.fullmatch(word))


def _cut(post: str, start: int, end: int, config: ChunksConfig) -> Iterator[tuple[int, int]]:
    """Yield the span without outer whitespace, in pieces of at most `max_words` words."""
    word_spans = [match.span() for match in _WORD.finditer(post, start, end)]
    for first in range(0, len(word_spans), config.max_words):
        last = min(first + config.max_words, len(word_spans)) - 1
        yield word_spans[first][0], word_spans[last][1]
