"""Posts as bags of chunk embeddings: what the embedding models read, resident on one device.

Every batch is a rectangle `[folds, width]` of post numbers, because the folds of a stage train as one batched
model; a single fold is simply `folds == 1`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

MOST_BYTES = 1 << 27
"""Largest bag of a fold while training, if all its posts were as long as the longest of the corpus."""


@dataclass(frozen=True, eq=False)
class Bag:
    """The chunks of a rectangle of posts, padded to the longest.

    `embeddings` float32 `[folds, width, length, dim]`; `present` bool `[folds, width, length]`, False where padded.
    """

    embeddings: Tensor
    present: Tensor


class ChunkBags:
    """All chunk embeddings of a corpus, handed out as padded bags.

    Args:
        embeddings: float32 `[chunks, dim]`, chunks of a post next to each other.
        offsets: int64 `[posts + 1]`; post `i` owns rows `offsets[i]:offsets[i + 1]`, at least one.
        device: where training happens; the embeddings are moved there once.
    """

    def __init__(
        self, embeddings: npt.NDArray[np.float32], offsets: npt.NDArray[np.int64], device: torch.device | str = "cpu"
    ) -> None:
        self.embeddings = torch.from_numpy(embeddings).to(device)
        self.offsets = torch.tensor(offsets, device=device)
        self.lengths = np.diff(offsets)
        """int64 [posts]: chunks per post; batches are cut from posts of similar length."""
        self.max_posts_per_pass = max(
            1, MOST_BYTES // (int(self.lengths.max()) * embeddings.shape[1] * embeddings.itemsize)
        )
        """Posts that are in memory at once while training, of each fold."""

    def batch(self, posts: npt.NDArray[np.int64]) -> Bag:
        """The bags of `posts` int64 `[folds, width]`."""
        length = int(self.lengths[posts].max())
        index = torch.from_numpy(posts).to(self.offsets.device, non_blocking=True)
        start = self.offsets[index]
        count = self.offsets[index + 1] - start
        step = torch.arange(length, device=start.device)
        present = step < count[..., None]
        # A padded place points at its post's first chunk: any finite row will do, its weight is exactly zero.
        rows = start[..., None] + step * present
        folds, width = posts.shape
        flat = self.embeddings.index_select(0, rows.reshape(-1))
        return Bag(flat.view(folds, width, length, -1), present)


class MeanBags:
    """The mean chunk embedding of each post: all that a model without retrieval sees."""

    def __init__(
        self, embeddings: npt.NDArray[np.float32], offsets: npt.NDArray[np.int64], device: torch.device | str = "cpu"
    ) -> None:
        self.means = torch.from_numpy(mean_embeddings(embeddings, offsets)).to(device)
        self.lengths = np.ones(len(offsets) - 1, dtype=np.int64)
        self.max_posts_per_pass = None

    def batch(self, posts: npt.NDArray[np.int64]) -> Tensor:
        """The means of `posts` int64 `[folds, width]`, as float32 `[folds, width, dim]`."""
        return self.means[torch.from_numpy(posts).to(self.means.device, non_blocking=True)]


def mean_embeddings(embeddings: npt.NDArray[np.float32], offsets: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
    """Mean of each post's chunk embeddings: `[chunks, dim]` and `[posts + 1]` to float32 `[posts, dim]`."""
    sums = np.add.reduceat(embeddings, offsets[:-1], axis=0, dtype=np.float32)
    return np.asarray(sums / np.diff(offsets)[:, None], dtype=np.float32)
