"""What the queries of a fitted model's IRIS members look for: the sentences nearest to each, and their overlap."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..explain import specialisation
from ..features.chunks import windows
from ..features.views import EmbeddedCorpus
from ..models.iris import Iris
from .model import FittedModel

Index = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Queries:
    """The queries of one member, from the model of its first fold and seed: those of other folds look alike.

    `k` in the shapes is the number of sentences, fewer than requested if the posts have fewer.
    """

    member: int
    """Number of the member in `FittedModel.members`."""
    post: Index
    """[criteria, queries, k]: numbers of the posts that the nearest sentences are in, the nearest first."""
    span: Index
    """[criteria, queries, k, 2]: `post[start:end]` is the sentence, or the sentences of a window."""
    similarity: npt.NDArray[np.float32]
    """[criteria, queries, k]: their cosines with the query."""
    overlap: npt.NDArray[np.float32]
    """[criteria, queries, queries]: Jaccard similarity of what two queries retrieve in a post, mean over the posts."""


def nearest_sentences(model: FittedModel, posts: Sequence[str], k: int) -> Iterator[Queries]:
    """The sentences of some posts that are nearest to each query, for every IRIS member of a model.

    Args:
        model: a fitted model; other members than IRIS have no queries and are left out.
        posts: texts; those without text are left out.
        k: number of sentences for each query.
    """
    if not any(isinstance(member.models[0], Iris) for member in model.members):
        return
    read = model.features(posts)
    texts = [posts[row] for row in read.kept.tolist()]
    for number, (member, features) in enumerate(zip(model.members, read.features, strict=bool(texts))):
        network = member.models[0]
        if not isinstance(network, Iris) or not isinstance(features, EmbeddedCorpus):
            continue
        chunks = windows(texts, read.sentences, network.config.window)
        found = specialisation(network, features, np.arange(len(texts)), k=min(k, len(chunks)))
        hits = found.nearest.chunks
        span = np.stack([chunks.start[hits], chunks.end[hits]], axis=-1).astype(np.int64)
        yield Queries(number, read.kept[chunks.post[hits]], span, found.nearest.similarity, found.overlap)
