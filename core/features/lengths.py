"""Chunks that are longer than an encoder reads: it would drop what is beyond its window, so they are cut."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from .chunks import Chunks, from_spans
from .encoders import Encoder, loading

_UNLIMITED = 1_000_000
"""Tokenizers without a limit have a number above this one in their configuration."""


@dataclass(frozen=True)
class Cut:
    """What `within` cut for one encoder."""

    encoder: str
    window: int
    """Tokens that the encoder reads."""
    chunks: int
    """Chunks that were longer."""
    pieces: int
    """What they were cut into."""

    def __str__(self) -> str:
        """A sentence for users."""
        chunks = f"{self.chunks:,} chunk{' is' if self.chunks == 1 else 's are'}"
        return f"{chunks} longer than the {self.window} tokens that {self.encoder} reads, and cut into {self.pieces:,}"


def within(posts: Sequence[str], chunks: Chunks, encoder: Encoder) -> tuple[Chunks, Cut | None]:
    """Return the chunks, with those that are longer than the encoder reads cut; and what was cut, if anything was.

    They are cut at the last blank that fits, or at the last character where there is no blank. An encoder that has no
    limit, or no tokenizer of its own (`tokenizer.json`), cuts nothing.

    Args:
        posts: the texts that `chunks` was made from.
        chunks: single sentences, from `chunks.chunk`.
        encoder: from `encoders.locate`.

    Raises:
        EncoderError: the encoder's tokenizer cannot be read.
    """
    window = _window(encoder.folder)
    if window is None:
        return chunks, None
    spans: list[list[tuple[int, int]]] = [[] for _ in posts]
    cut = made = 0
    for text, post, start in zip(chunks.texts, chunks.post.tolist(), chunks.start.tolist(), strict=True):
        pieces = _pieces(encoder, text, window)
        if len(pieces) > 1:
            cut, made = cut + 1, made + len(pieces)
        spans[post] += [(start + first, start + last) for first, last in pieces]
    if not cut:
        return chunks, None
    return from_spans(posts, spans), Cut(encoder.name, window, cut, made)


def within_all(posts: Sequence[str], chunks: Chunks, encoders: Sequence[Encoder]) -> tuple[Chunks, list[Cut]]:
    """`within` for one encoder after the other, so that every one of them reads all of every chunk."""
    cuts = []
    for encoder in encoders:
        chunks, cut = within(posts, chunks, encoder)
        cuts += [cut] if cut is not None else []
    return chunks, cuts


def _pieces(encoder: Encoder, text: str, window: int) -> list[tuple[int, int]]:
    """Spans of the pieces of a text; the whole of it if it fits."""
    if len(text.encode("utf-8", "surrogatepass")) <= window - 2:  # a token is at least a byte, and two are special
        return [(0, len(text))]
    tokenizer = _tokenizer(encoder)
    if tokenizer is None:
        return [(0, len(text))]
    room = window - tokenizer.num_special_tokens_to_add(False)
    starts = np.array([start for start, _ in tokenizer.encode(text, add_special_tokens=False).offsets])
    return list(_cut(text, starts, room))


def _cut(text: str, starts: Any, room: int) -> Iterator[tuple[int, int]]:  # noqa: ANN401 - an array of integers
    """Yield spans without outer blanks, each of at most `room` tokens, whose first characters are at `starts`."""
    begin, token = 0, 0
    while len(starts) - token > room:
        end = max(int(starts[token + room]), begin + 1)
        blank = max((at for at in range(begin + 1, end) if text[at].isspace()), default=None)
        end = end if blank is None else blank + 1
        yield from _trimmed(text, begin, end)
        begin, token = end, int(np.searchsorted(starts, end))
    yield from _trimmed(text, begin, len(text))


def _trimmed(text: str, start: int, end: int) -> Iterator[tuple[int, int]]:
    piece = text[start:end]
    if piece.strip():
        start += len(piece) - len(piece.lstrip())
        yield start, start + len(piece.strip())


@lru_cache(maxsize=8)
def _window(folder: Path) -> int | None:
    """Tokens that an encoder reads, those at the ends included; None if there is no limit."""
    limits = [
        _setting(folder, "sentence_bert_config.json", "max_seq_length"),
        _setting(folder, "tokenizer_config.json", "model_max_length"),
    ]
    limit = next((limit for limit in limits if limit is not None), None)
    return limit if limit is not None and limit < _UNLIMITED else None


def _setting(folder: Path, file: str, key: str) -> int | None:
    """A number in a file of the encoder, which may be in the folder of its first module."""
    for path in sorted(folder.rglob(file)):
        try:
            value = json.loads(path.read_text(encoding="utf-8")).get(key)
        except (OSError, ValueError, AttributeError):
            continue
        if isinstance(value, (int, float)) and value > 0:
            return int(value)
    return None


@lru_cache(maxsize=8)
def _tokenizer(encoder: Encoder) -> Any:  # noqa: ANN401 - a class of tokenizers, which has no types
    """The encoder's tokenizer without its limits; None if it has none that can be read without transformers."""
    from tokenizers import Tokenizer

    path = next(iter(sorted(encoder.folder.rglob("tokenizer.json"))), None)
    if path is None:
        return None
    with loading(encoder):
        tokenizer = Tokenizer.from_file(str(path))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer
