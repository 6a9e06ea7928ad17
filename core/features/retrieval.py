"""A FAISS index over chunks: search in a post or in the whole corpus, and near-duplicate posts.

Similarities are exact inner products: cosines, because `core.features.embeddings` returns unit vectors.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from .device_bags import DeviceBags
from .embeddings import mean_embeddings

logger = logging.getLogger(__name__)

Floats = npt.NDArray[np.float32]
Index = npt.NDArray[np.int64]

NEAR_DUPLICATE = 0.98
"""Minimum cosine of the mean embeddings of two posts that count as near-duplicates."""
NOTHING = -1
"""Stands for a missing chunk number where a post has fewer chunks than requested."""


@dataclass(frozen=True, eq=False)
class Hits:
    """The chunks nearest to each query, nearest first.

    `chunks` int64 `[..., k]` are rows of the embeddings, `NOTHING` where fewer than k exist; `similarity` float32
    `[..., k]`, -inf there.
    """

    chunks: Index
    similarity: Floats

    @property
    def present(self) -> npt.NDArray[np.bool_]:
        """[..., k]: False where `chunks` is `NOTHING`."""
        return np.asarray(self.chunks != NOTHING)


@dataclass(frozen=True)
class NearDuplicate:
    """Two posts of different groups with almost the same text: `first` < `second`, and the cosine of their means."""

    first: int
    second: int
    similarity: float


class ChunkIndex:
    """A search index over the chunks of a corpus; it contains vectors only, no text and no label.

    Args:
        embeddings: float32 `[chunks, dim]`, chunks of a post next to each other.
        offsets: int64 `[posts + 1]`; post `i` owns rows `offsets[i]:offsets[i + 1]`, at least one.
        use_gpu: keep the corpus-wide index on the GPU, if the installed FAISS supports it.
    """

    def __init__(self, embeddings: Floats, offsets: Index, *, use_gpu: bool = False) -> None:
        self.embeddings = np.ascontiguousarray(embeddings, dtype=np.float32)
        self.offsets = np.asarray(offsets, dtype=np.int64)
        self.bags = DeviceBags(self.embeddings, self.offsets)
        """The same embeddings as model inputs."""
        self._index = _flat_index(self.embeddings, use_gpu=use_gpu)

    def __len__(self) -> int:
        return len(self.embeddings)

    def search(self, queries: Floats, k: int) -> Hits:
        """The `k` nearest chunks of the whole corpus for each query `[queries, dim]`: `[queries, k]`."""
        similarity, chunks = self._index.search(np.ascontiguousarray(queries, dtype=np.float32), k)
        return Hits(chunks, similarity)

    def within(self, queries: Floats, posts: Sequence[int] | Index, k: int) -> Hits:
        """The `k` nearest chunks within each post, for each query `[queries, dim]`: `[posts, queries, k]`.

        A query never sees another post's chunks, so a prediction depends on its own post only.
        """
        import faiss

        queries = np.ascontiguousarray(queries, dtype=np.float32)
        shape = (len(posts), len(queries), k)
        chunks, similarity = np.full(shape, NOTHING, dtype=np.int64), np.full(shape, -np.inf, dtype=np.float32)
        for row, post in enumerate(posts):
            start, end = self.offsets[post], self.offsets[post + 1]
            count = min(k, int(end - start))
            scores, hits = faiss.knn(queries, self.embeddings[start:end], count, metric=faiss.METRIC_INNER_PRODUCT)
            chunks[row, :, :count], similarity[row, :, :count] = hits + start, scores
        return Hits(chunks, similarity)

    def post_of(self, chunks: Index) -> Index:
        """Number of the post that each chunk belongs to; `NOTHING` stays `NOTHING`."""
        posts = np.searchsorted(self.offsets, chunks, side="right") - 1
        return np.where(chunks == NOTHING, NOTHING, posts)


def near_duplicates(
    embeddings: Floats, offsets: Index, groups: Sequence[str], *, threshold: float = NEAR_DUPLICATE
) -> list[NearDuplicate]:
    """Pairs of posts in different groups whose mean embeddings are almost parallel; they could leak across folds.

    Finds posts with identical text and copies with a changed word or line. Posts that merely share a topic stay well
    below the threshold, unless they are very short.

    Args:
        embeddings: float32 `[chunks, dim]`.
        offsets: int64 `[posts + 1]`.
        groups: the group of each post.
        threshold: minimum cosine of two near-duplicates.

    Returns:
        The most similar pairs first.
    """
    means = mean_embeddings(np.asarray(embeddings, dtype=np.float32), offsets)
    means /= np.maximum(np.linalg.norm(means, axis=1, keepdims=True), np.finfo(np.float32).tiny)
    limits, similarity, second = _flat_index(means, use_gpu=False).range_search(means, threshold)
    first = np.repeat(np.arange(len(means)), np.diff(limits.astype(np.int64)))
    pairs = [
        NearDuplicate(i, j, score)
        for i, j, score in zip(first.tolist(), second.tolist(), similarity.tolist(), strict=True)
        if i < j and groups[i] != groups[j]
    ]
    return sorted(pairs, key=lambda pair: (-pair.similarity, pair.first, pair.second))


def merge_groups(groups: Sequence[str], pairs: Iterable[NearDuplicate]) -> tuple[str, ...]:
    """Return the group of each post after groups that share near-duplicates have become one, `[posts]`.

    The merged group has the name of that one of its groups whose first post comes first. A chain of near-duplicates
    joins all its groups.
    """
    root = {group: group for group in groups}

    def find(group: str) -> str:
        while root[group] != group:
            root[group] = root[root[group]]  # halves the path for the next search
            group = root[group]
        return group

    order = {group: number for number, group in enumerate(root)}
    for pair in pairs:
        first, second = sorted((find(groups[pair.first]), find(groups[pair.second])), key=order.__getitem__)
        root[second] = first
    return tuple(find(group) for group in groups)


def _flat_index(vectors: Floats, *, use_gpu: bool) -> Any:  # noqa: ANN401  (importing FAISS costs a second)
    import faiss

    index: Any = faiss.IndexFlatIP(vectors.shape[1])
    if use_gpu:
        if hasattr(faiss, "StandardGpuResources"):
            index = faiss.index_cpu_to_gpu(faiss.StandardGpuResources(), 0, index)
        else:
            logger.info("the installed FAISS has no GPU support; the index stays on the CPU, with the same results")
    index.add(vectors)
    return index
