"""Posts as token sequences for a transformer; every text is tokenised once per process.

A sequence is `[CLS] criterion [SEP] window of the post [SEP]`, or the same without the criterion. The special tokens
and their positions come from the tokenizer, so every encoder gets its own format.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ..config import TokenConfig
from ..errors import ConfigError
from .encoders import Encoder, loading

Ids = npt.NDArray[np.int64]

HEAD_SHARE = 0.25
"""Share of a truncated post that is taken from its beginning; the remainder is its end (128 and 382 of 510 tokens were
best in Sun, Qiu, Xu and Huang, "How to Fine-Tune BERT for Text Classification?", CCL 2019)."""
MIN_POST_TOKENS = 8
"""Minimum number of tokens for the post beside the longest criterion."""
_UNBOUNDED = 1_000_000


@dataclass(frozen=True, eq=False)
class SpecialTokens:
    """The template of a sequence: the special tokens around its one or two texts, and the type of each text."""

    parts: tuple[Ids, ...]
    """Special tokens before, between (of two texts) and after the texts."""
    types: tuple[int, ...]
    """Token type (BERT's segment) of each text and the special tokens that follow it."""

    @property
    def count(self) -> int:
        """Special tokens in a sequence."""
        return sum(map(len, self.parts))


@dataclass(frozen=True, eq=False)
class Vocabulary:
    """An encoder's sequence format: special tokens and length limit."""

    pad: int
    """The padding token."""
    single: SpecialTokens
    pair: SpecialTokens
    max_length: int
    """Longest sequence that the encoder accepts, in tokens."""


@dataclass(frozen=True, eq=False)
class TokenBatch:
    """The sequences of a batch of posts, longest first."""

    ids: Tensor
    """int64 `[sequences, length]`."""
    types: Tensor
    """int64 `[sequences, length]`: token types."""
    mask: Tensor
    """bool `[sequences, length]`: False where padded."""
    segment_ids: Tensor
    """int64 `[sequences]`: the (post, criterion) pair, or the post, that a sequence is a window of."""
    segments: int
    """Number of those pairs or posts."""
    inverse: Tensor
    """int64 `[width]`: index of each post of the batch among the distinct posts."""


@lru_cache(maxsize=8)
def tokenise(encoder: Encoder, texts: tuple[str, ...]) -> tuple[Ids, ...]:
    """Token numbers of each text, without special tokens; cached, so that equal arguments are tokenised once."""
    encoded = _tokenizer(encoder)(list(texts), add_special_tokens=False, return_attention_mask=False, verbose=False)
    return tuple(np.asarray(ids, dtype=np.int64) for ids in encoded["input_ids"])


@lru_cache(maxsize=8)
def vocabulary(encoder: Encoder) -> Vocabulary:
    """Read the special tokens and the length limit of an encoder from its tokenizer and its configuration."""
    from transformers import AutoConfig

    tokenizer = _tokenizer(encoder)
    pad = tokenizer.pad_token_id
    with loading(encoder):
        config = AutoConfig.from_pretrained(encoder.folder, local_files_only=True)
    positions = getattr(config, "max_position_embeddings", 0)
    max_length = min(tokenizer.model_max_length, positions or _UNBOUNDED, _UNBOUNDED)
    return Vocabulary(
        0 if pad is None else int(pad), _special_tokens(tokenizer, 1), _special_tokens(tokenizer, 2), max_length
    )


@lru_cache(maxsize=8)
def _tokenizer(encoder: Encoder) -> Any:  # noqa: ANN401  (importing the class costs seconds)
    from transformers import AutoTokenizer

    with loading(encoder):
        return AutoTokenizer.from_pretrained(encoder.folder, local_files_only=True, use_fast=True)


def _special_tokens(tokenizer: Any, texts: int) -> SpecialTokens:  # noqa: ANN401
    """The template of a sequence of one or two `texts`: the tokens that the tokenizer adds around a probe of words."""
    probe = tokenizer(*["word"] * texts, return_token_type_ids=True)
    text_ids, ids = probe.sequence_ids(0), np.asarray(probe["input_ids"], dtype=np.int64)
    types = probe.get("token_type_ids") or [0] * len(ids)
    positions = [[at for at, text_id in enumerate(text_ids) if text_id == text] for text in range(texts)]
    bounds = [0, *(at for span in positions for at in (span[0], span[-1] + 1)), len(ids)]
    parts = tuple(ids[bounds[at] : bounds[at + 1]] for at in range(0, len(bounds), 2))
    return SpecialTokens(parts, tuple(int(types[span[0]]) for span in positions))


def windows(length: int, budget: int, config: TokenConfig) -> list[Ids]:
    """Positions of the tokens in each window of a post of `length` tokens, at most `budget` tokens a window."""
    if length <= budget:
        return [np.arange(length)]
    if config.strategy == "head_tail":
        head = round(budget * HEAD_SHARE)
        return [np.concatenate([np.arange(head), np.arange(length - budget + head, length)])]
    step = min(config.stride, budget)
    starts = range(0, length - budget + step, step)
    # the last window ends with the post, and is as full as the others
    return [np.arange(min(start, length - budget), min(start, length - budget) + budget) for start in starts]


@dataclass(frozen=True, eq=False)
class _Sequence:
    """One sequence of a batch before padding."""

    ids: Ids
    post_start: int
    """Index of the first token of the post."""
    segment_id: int


class TokenPosts:
    """The sequences of all posts of a corpus, in batches.

    Args:
        encoder: the encoder whose tokenizer is used.
        posts: the texts.
        criteria: the criteria's texts.
        config: the model: what a sequence contains, and how long posts are cut.
        device: where the model trains.

    Raises:
        ConfigError: `max_length` is more than the encoder accepts, or leaves no tokens for the post.
    """

    def __init__(
        self,
        encoder: Encoder,
        posts: Sequence[str],
        criteria: Sequence[str],
        config: TokenConfig,
        device: torch.device | str = "cpu",
    ) -> None:
        self.device = device
        self.max_posts_per_pass: int | None = config.micro_batch
        self._vocabulary = vocabulary(encoder)
        self._posts = tokenise(encoder, tuple(posts))
        self._criteria = tokenise(encoder, tuple(criteria)) if config.reads == "pairs" else ()
        self._template = self._vocabulary.pair if self._criteria else self._vocabulary.single
        budget = self._budget(config, encoder)
        self._windows = [windows(len(ids), budget, config) for ids in self._posts]
        self.lengths: Ids = np.array([max(1, sum(map(len, parts))) for parts in self._windows], dtype=np.int64)
        """int64 [posts]: tokens in all windows of a post."""

    def _budget(self, config: TokenConfig, encoder: Encoder) -> int:
        """Tokens of a post that fit into a sequence; the same for all criteria, so that they share their windows."""
        max_length = self._vocabulary.max_length
        if config.max_length > max_length:
            raise ConfigError(
                f"max_length is {config.max_length}, but {encoder.name} reads {max_length} tokens at most; "
                f'give at most {max_length}; strategy = "windows" reads longer posts window by window'
            )
        reserved = self._template.count + max(map(len, self._criteria), default=0)
        if config.max_length < reserved + MIN_POST_TOKENS:
            raise ConfigError(
                f"max_length is {config.max_length}, but the longest criterion and the encoder's special tokens take "
                f"{reserved} tokens; give at least {reserved + MIN_POST_TOKENS}, better several times that"
            )
        return config.max_length - reserved

    def batch(self, posts: Ids) -> TokenBatch:
        """The sequences of `posts` int64 `[1, width]`; a post that occurs twice is encoded once."""
        assert posts.shape[0] == 1, "folds of this model do not stack"
        unique, inverse = np.unique(posts[0], return_inverse=True)
        per_post = max(1, len(self._criteria))
        sequences = [
            self._sequence(self._posts[post][window], criterion, row * per_post + criterion)
            for row, post in enumerate(unique)
            for window in self._windows[post]
            for criterion in range(per_post)
        ]
        sequences.sort(key=lambda sequence: -len(sequence.ids))  # stable: the order depends on nothing else
        return self._padded(sequences, len(unique) * per_post, inverse)

    def _sequence(self, text: Ids, criterion: int, segment_id: int) -> _Sequence:
        special = self._template.parts
        if not self._criteria:
            return _Sequence(np.concatenate([special[0], text, special[1]]), 0, segment_id)
        first = np.concatenate([special[0], self._criteria[criterion], special[1]])
        return _Sequence(np.concatenate([first, text, special[2]]), len(first), segment_id)

    def _padded(self, sequences: Sequence[_Sequence], segments: int, inverse: Ids) -> TokenBatch:
        lengths = np.array([len(sequence.ids) for sequence in sequences])
        ids = np.full((len(sequences), lengths.max()), self._vocabulary.pad, dtype=np.int64)
        types = np.zeros_like(ids)
        for row, sequence in enumerate(sequences):
            ids[row, : lengths[row]] = sequence.ids
            types[row, : sequence.post_start] = self._template.types[0]
            types[row, sequence.post_start : lengths[row]] = self._template.types[-1]
        mask = np.arange(lengths.max()) < lengths[:, None]
        segment_ids = np.array([sequence.segment_id for sequence in sequences], dtype=np.int64)
        return TokenBatch(
            self._on_device(ids),
            self._on_device(types),
            self._on_device(mask),
            self._on_device(segment_ids),
            segments,
            self._on_device(inverse.reshape(-1)),
        )

    def _on_device(self, array: npt.NDArray[Any]) -> Tensor:
        return torch.from_numpy(array).to(self.device)
