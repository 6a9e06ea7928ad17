"""Posts as the sequences of token numbers that a transformer reads; every text is tokenised once per process.

A sequence is `[CLS] criterion [SEP] piece of the post [SEP]`, or without the criterion; which marks stand where is
learned from the tokenizer itself, so any encoder's own form is kept.
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
from .encoders import Encoder

Ids = npt.NDArray[np.int64]

HEAD_SHARE = 0.25
"""Share of what is read of a long post that is taken from its beginning, the rest from its end (128 and 382 of 510
tokens were best in Sun, Qiu, Xu and Huang, "How to Fine-Tune BERT for Text Classification?", CCL 2019)."""
_UNBOUNDED = 1_000_000


@dataclass(frozen=True, eq=False)
class Frame:
    """The marks around the one or two texts of a sequence, and the type of each part (BERT's segments)."""

    parts: tuple[Ids, ...]
    """Marks before, (between,) and after the texts."""
    types: tuple[int, ...]
    """Token type of the criterion's half and of the post's half (the last mark counts as post)."""

    @property
    def marks(self) -> int:
        """How many tokens of a sequence are marks."""
        return sum(map(len, self.parts))


@dataclass(frozen=True, eq=False)
class Vocabulary:
    """What is to be known of an encoder's tokenizer."""

    pad: int
    single: Frame
    pair: Frame
    longest: int
    """Tokens that the encoder can read at once."""


@dataclass(frozen=True, eq=False)
class TokenBatch:
    """The sequences of some posts, longest first.

    `ids` and `types` int64 `[sequences, length]`, `mask` bool `[sequences, length]`, False where padded; `owner` int64
    `[sequences]` is the (post, criterion) pair or the post, one of `rows`, that a sequence is part of; `back` int64
    `[width]` says which of the different posts stands at each place of the batch.
    """

    ids: Tensor
    types: Tensor
    mask: Tensor
    owner: Tensor
    rows: int
    back: Tensor


@lru_cache(maxsize=8)
def tokenised(encoder: Encoder, texts: tuple[str, ...]) -> tuple[Ids, ...]:
    """Token numbers of each text, without marks; the same texts are tokenised once per process."""
    found = _tokenizer(encoder)(list(texts), add_special_tokens=False, return_attention_mask=False, verbose=False)
    return tuple(np.asarray(ids, dtype=np.int64) for ids in found["input_ids"])


@lru_cache(maxsize=8)
def vocabulary(encoder: Encoder) -> Vocabulary:
    """Read off the tokenizer which marks it puts around one text and around two."""
    from transformers import AutoConfig

    tokenizer = _tokenizer(encoder)
    pad = tokenizer.pad_token_id
    positions = getattr(AutoConfig.from_pretrained(encoder.folder, local_files_only=True), "max_position_embeddings", 0)
    longest = min(tokenizer.model_max_length, positions or _UNBOUNDED, _UNBOUNDED)
    return Vocabulary(0 if pad is None else int(pad), _frame(tokenizer, 1), _frame(tokenizer, 2), longest)


@lru_cache(maxsize=8)
def _tokenizer(encoder: Encoder) -> Any:  # noqa: ANN401  (importing the class costs seconds)
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(encoder.folder, local_files_only=True, use_fast=True)


def _frame(tokenizer: Any, texts: int) -> Frame:  # noqa: ANN401
    """Encode a probe, and see what stands around its words."""
    probe = tokenizer(*["word"] * texts, return_token_type_ids=True)
    owners, ids = probe.sequence_ids(0), np.asarray(probe["input_ids"], dtype=np.int64)
    given = probe.get("token_type_ids") or [0] * len(ids)
    places = [[at for at, owner in enumerate(owners) if owner == text] for text in range(texts)]
    ends = [0, *(at for place in places for at in (place[0], place[-1] + 1)), len(ids)]
    parts = tuple(ids[ends[at] : ends[at + 1]] for at in range(0, len(ends), 2))
    return Frame(parts, tuple(int(given[place[0]]) for place in places))


def pieces(length: int, room: int, config: TokenConfig) -> list[Ids]:
    """Which tokens of a post of `length` tokens each of its sequences reads, where `room` fit into one."""
    if length <= room:
        return [np.arange(length)]
    if config.strategy == "head_tail":
        head = round(room * HEAD_SHARE)
        return [np.concatenate([np.arange(head), np.arange(length - room + head, length)])]
    step = min(config.stride, room)
    starts = range(0, length - room + step, step)
    # the last window ends with the post, and is as full as the others
    return [np.arange(min(start, length - room), min(start, length - room) + room) for start in starts]


class TokenPosts:
    """The sequences of all posts of a corpus, handed out in batches.

    Args:
        encoder: whose tokenizer is used.
        posts: the texts.
        criteria: the criteria's texts.
        config: what is read, and how long posts are cut.
        device: where training happens.

    Raises:
        ConfigError: `max_length` is more than the encoder reads at once, or leaves no room for the post.
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
        self.max_posts_per_pass = config.micro_batch
        self._vocabulary = vocabulary(encoder)
        self._posts = tokenised(encoder, tuple(posts))
        self._criteria = tokenised(encoder, tuple(criteria)) if config.reads == "pairs" else ()
        self._frame = self._vocabulary.pair if self._criteria else self._vocabulary.single
        room = self._room(config, encoder)
        self._pieces = [pieces(len(ids), room, config) for ids in self._posts]
        self.lengths: Ids = np.array([max(1, sum(map(len, found))) for found in self._pieces], dtype=np.int64)
        """int64 [posts]: tokens read of each post."""

    def _room(self, config: TokenConfig, encoder: Encoder) -> int:
        """Tokens of a post that fit into a sequence; the same for all criteria, so that they read the same windows."""
        longest = self._vocabulary.longest
        if config.max_length > longest:
            raise ConfigError(
                f"[model] max_length is {config.max_length}, but {encoder.name} reads {longest} tokens at once; "
                f'give at most {longest}, and strategy = "windows" reads longer posts whole'
            )
        taken = self._frame.marks + max(map(len, self._criteria), default=0)
        if config.max_length < taken + 8:
            raise ConfigError(
                f"[model] max_length is {config.max_length}, but the longest criterion and the encoder's marks take "
                f"{taken} tokens; give at least {taken + 8}, better several times that"
            )
        return config.max_length - taken

    def batch(self, posts: Ids) -> TokenBatch:
        """The sequences of `posts` int64 `[1, width]`; a post that occurs twice is read once."""
        assert posts.shape[0] == 1, "folds of this model do not stack"
        unique, back = np.unique(posts[0], return_inverse=True)
        found: list[tuple[Ids, int, int]] = []  # ids, where the post's half begins, owner
        per_post = max(1, len(self._criteria))
        for row, post in enumerate(unique):
            for piece in self._pieces[post]:
                text = self._posts[post][piece]
                found += [(*self._sequence(text, own), row * per_post + own) for own in range(per_post)]
        found.sort(key=lambda item: -len(item[0]))  # stable, so the order does not depend on anything else
        return self._padded(found, len(unique) * per_post, back)

    def _sequence(self, text: Ids, criterion: int) -> tuple[Ids, int]:
        marks = self._frame.parts
        if not self._criteria:
            return np.concatenate([marks[0], text, marks[1]]), 0
        first = np.concatenate([marks[0], self._criteria[criterion], marks[1]])
        return np.concatenate([first, text, marks[2]]), len(first)

    def _padded(self, found: Sequence[tuple[Ids, int, int]], rows: int, back: Ids) -> TokenBatch:
        length = max(len(ids) for ids, _, _ in found)
        ids = np.full((len(found), length), self._vocabulary.pad, dtype=np.int64)
        types = np.zeros_like(ids)
        for row, (sequence, half, _) in enumerate(found):
            ids[row, : len(sequence)] = sequence
            types[row, :half] = self._frame.types[0]
            types[row, half : len(sequence)] = self._frame.types[-1]
        count = np.array([len(sequence) for sequence, _, _ in found])
        owner = np.array([owner for _, _, owner in found], dtype=np.int64)

        def moved(array: npt.NDArray[Any]) -> Tensor:
            return torch.from_numpy(array).to(self.device)

        mask = np.arange(length) < count[:, None]
        return TokenBatch(moved(ids), moved(types), moved(mask), moved(owner), rows, moved(back.reshape(-1)))
