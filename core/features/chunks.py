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

from ..cache import remembered
from ..config import ChunksConfig
from ..corpus.data import Corpus
from ..errors import DataError

_LINE = re.compile(r"[^\r\n\u2028\u2029]+")
_WORD = re.compile(r"\S+")
# Unicode's Sentence_Terminal below U+10000, without those of Latin text: `。`, `؟`, `।`, `።`, `។`, `။` and their like.
_NATIVE = (
    "\u0589\u061d-\u061f\u06d4\u0700-\u0702\u07f9\u0837\u0839\u083d\u083e\u0964\u0965\u104a\u104b\u1362\u1367\u1368\u166e"
    "\u1735\u1736\u17d4\u17d5\u1803\u1809\u1944\u1945\u1aa8-\u1aab\u1b4e\u1b4f\u1b5a\u1b5b\u1b5e\u1b5f\u1b7d-\u1b7f\u1c3b\u1c3c"
    "\u1c7e\u1c7f\u2cf9-\u2cfb\u2e2e\u2e3c\u3002\ua4ff\ua60e\ua60f\ua6f3\ua6f7\ua876\ua877\ua8ce\ua8cf\ua92f\ua9c8\ua9c9\uaa5d-\uaa5f"
    "\uaaf0\uaaf1\uabeb\ufe12\ufe15\ufe16\ufe52\ufe56\ufe57\uff01\uff0e\uff1f\uff61\u0f0d\u0f0e"
)
_LATIN = ".!?…‼‽⁇⁈⁉"
# Thai, Lao, Tibetan, Burmese, Khmer, Chinese and Japanese are written without blanks between sentences.
_UNSPACED = (
    "\u0e00-\u0fff\u1000-\u109f\u1780-\u17ff\u3000-\u312f\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\ua000-\ua4cf\uf900-\ufaff"
    "\uff00-\uffef\U00020000-\U0003ffff"
)
_CLOSERS = "\"'”’»)\\]*_」』）】》〉〕｣＂"
# The lookbehind keeps long runs of stops linear: a run is matched at its first stop only.
_STOP = re.compile(
    f"(?<![{_LATIN}{_NATIVE}])(?P<stops>[{_LATIN}{_NATIVE}]++)(?P<closers>[{_CLOSERS}]*+)(?P<blank>\\s*+)"
)
_ENDS_ANYWHERE = re.compile(f"[{_NATIVE}]")
_WITHOUT_BLANKS = re.compile(f"[{_UNSPACED}]")
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
    return from_spans(posts, spans)


def chunk_once(posts: Sequence[str], config: ChunksConfig) -> Chunks:
    """`chunk`, but the positions of the same posts' chunks are kept in the cache: finding them takes a while.

    Raises:
        DataError: as `chunk`.
        UserError: the cache folder cannot be created.
    """

    def positions() -> npt.NDArray[np.int32]:
        chunks = chunk(posts, config)
        return np.stack([chunks.post, chunks.start, chunks.end])

    arguments = (repr(config).encode(), *(post.encode("utf-8", "surrogatepass") for post in posts))
    post, start, end = remembered("chunks", __file__, arguments, positions)
    return _chunks(posts, post, start, end)


def from_spans(posts: Sequence[str], spans: Sequence[Sequence[tuple[int, int]]]) -> Chunks:
    """Return the chunks that start and end at these characters of each post; every post has at least one."""
    counts = np.array([len(post_spans) for post_spans in spans], dtype=np.int64)
    flat = np.array([span for post_spans in spans for span in post_spans], dtype=np.int32).reshape(-1, 2)
    post = np.repeat(np.arange(len(posts), dtype=np.int32), counts)
    return _chunks(posts, post, flat[:, 0].copy(), flat[:, 1].copy())


def _chunks(
    posts: Sequence[str], post: npt.NDArray[np.int32], start: npt.NDArray[np.int32], end: npt.NDArray[np.int32]
) -> Chunks:
    spans = zip(post.tolist(), start.tolist(), end.tolist(), strict=True)
    counts = np.bincount(post, minlength=len(posts))
    return Chunks(
        texts=tuple(posts[row][begin:stop] for row, begin, stop in spans),
        post=post,
        start=start,
        end=end,
        offsets=np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(counts, dtype=np.int64)]),
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
    return _chunks(posts, post, chunks.start[first], chunks.end[last])


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
    if _ENDS_ANYWHERE.search(stop["stops"]):
        return not (stop["stops"] == "．" and following.isdecimal())  # a decimal point in full width
    if not stop["blank"] and not _WITHOUT_BLANKS.match(following):
        return False
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
