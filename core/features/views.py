"""A corpus as model inputs: the embeddings of its chunks, or its texts."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from ..config import Precision
from ..corpus.data import Corpus
from ..errors import shown_value
from .chunks import Chunks, evidence_mask
from .device_bags import DeviceBags
from .embeddings import Progress, embed
from .encoders import Encoder
from .retrieval import merge_groups, near_duplicates


@dataclass(frozen=True, eq=False, repr=False)
class EmbeddedCorpus:
    """The features of the embedding models."""

    embeddings: npt.NDArray[np.float32]
    """float32 `[chunks, dim]`, chunks of a post next to each other."""
    offsets: npt.NDArray[np.int64]
    """int64 `[posts + 1]`; post `i` owns rows `offsets[i]:offsets[i + 1]`."""
    criteria: npt.NDArray[np.float32]
    """float32 `[criteria, dim]`: embeddings of the criteria's texts."""
    labels: npt.NDArray[np.int8]
    """int8 `[posts, criteria]`: 1, 0 or -1 (unlabelled)."""
    evidence: npt.NDArray[np.bool_] | None = None
    """bool `[chunks, criteria]`: the chunk is marked as evidence for the criterion. None: nothing is known."""
    bags: DeviceBags = field(init=False)
    """The embeddings on the devices where models train; loaded once, however many models use them."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "bags", DeviceBags(self.embeddings, self.offsets))


@dataclass(frozen=True, eq=False, repr=False)
class TextCorpus:
    """The features of models that tokenise the texts themselves."""

    posts: tuple[str, ...]
    criteria: tuple[str, ...]
    encoder: Encoder
    """The pretrained weights that are fine-tuned."""
    labels: npt.NDArray[np.int8]
    """int8 `[posts, criteria]`: 1, 0 or -1 (unlabelled)."""


_NAMED_PAIRS = 3

Features = EmbeddedCorpus | TextCorpus
"""What a model trains on; `config.reads_text` says which of the two a configuration needs."""


def select(features: Features, posts: npt.NDArray[np.int64]) -> Features:
    """The features of some posts, in the order of `posts` (int64, numbers of posts)."""
    labels = features.labels[posts]
    if isinstance(features, TextCorpus):
        return replace(features, posts=tuple(features.posts[post] for post in posts.tolist()), labels=labels)
    starts, counts = features.offsets[posts], np.diff(features.offsets)[posts]
    offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    chunks = np.arange(offsets[-1]) + np.repeat(starts - offsets[:-1], counts)
    evidence = None if features.evidence is None else features.evidence[chunks]
    return replace(features, embeddings=features.embeddings[chunks], offsets=offsets, labels=labels, evidence=evidence)


def embed_corpus(
    corpus: Corpus,
    chunks: Chunks,
    encoder: Encoder,
    *,
    device: str = "cpu",
    precision: Precision = "float32",
    progress: Progress | None = None,
) -> tuple[EmbeddedCorpus, int]:
    """Embed the chunks of a corpus and the texts of its criteria.

    Args:
        corpus: posts, criteria and labels.
        chunks: the chunks of its posts, from `chunks.chunk`.
        encoder: from `encoders.locate`.
        device: where the encoder runs if some texts are not in the cache.
        precision: of the encoder's arithmetic.
        progress: called with (texts done, texts to do) while the chunks are embedded.

    Returns:
        The features, and how many texts were embedded rather than taken from the cache.

    Raises:
        UserError: the cache cannot be written.
    """
    embedded = embed(chunks.texts, encoder, device=device, precision=precision, progress=progress)
    criteria = embed(_criteria_texts(corpus), encoder, device=device, precision=precision)
    evidence = evidence_mask(corpus, chunks) if corpus.evidence else None
    features = EmbeddedCorpus(embedded.vectors, chunks.offsets, criteria.vectors, corpus.labels, evidence)
    return features, embedded.computed + criteria.computed


def merge_near_duplicates(corpus: Corpus, embedded: EmbeddedCorpus) -> Corpus:
    """Return the corpus with one group in place of groups that share near-duplicate posts, and a note that says so.

    Other notes stay as they are: they speak of the groups in the data.

    Args:
        corpus: posts and their groups.
        embedded: the same posts, embedded.
    """
    pairs = near_duplicates(embedded.embeddings, embedded.offsets, corpus.groups)
    groups = merge_groups(corpus.groups, pairs)
    posts = len({post for pair in pairs for post in (pair.first, pair.second)})
    named = [
        " and ".join(shown_value(corpus.post_ids[post]) for post in (pair.first, pair.second))
        for pair in pairs[:_NAMED_PAIRS]
    ]
    example = f" ({', '.join(named)}{', …' if len(pairs) > len(named) else ''})" if named else ""
    note = (
        f"merge_near_duplicates: {posts} posts are near-duplicates of a post of another group{example}; "
        f"{len(set(corpus.groups))} groups became {len(set(groups))}"
    )
    return replace(corpus, groups=groups, notes=(*corpus.notes, note))


def text_corpus(corpus: Corpus, encoder: Encoder) -> TextCorpus:
    """The texts of a corpus, with the encoder to fine-tune on them."""
    return TextCorpus(corpus.posts, _criteria_texts(corpus), encoder, corpus.labels)


def _criteria_texts(corpus: Corpus) -> tuple[str, ...]:
    return tuple(criterion.text for criterion in corpus.criteria)
