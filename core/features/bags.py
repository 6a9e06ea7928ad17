"""Posts as bags of chunk embeddings: the inputs of the embedding models, on the device that trains them.

A batch is a rectangle `[folds, width]` of post numbers, because the folds of a stage train as one batched model. A
single fold has `folds == 1`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from .embeddings import mean_embeddings

MAX_BAG_BYTES = 1 << 27
"""Memory for the bags of one fold in one training pass, if every post were as long as the longest of the corpus."""


@dataclass(frozen=True, eq=False)
class Bag:
    """The chunks of a rectangle of posts, padded to the longest post.

    `embeddings` float32 `[folds, width, length, dim]`; `present` bool `[folds, width, length]`, False where padded;
    `marks` bool `[folds, width, length, criteria]`, True where a chunk is marked as evidence, if the model asks for it.
    """

    embeddings: Tensor
    present: Tensor
    marks: Tensor | None = None

    def means(self) -> Tensor:
        """Mean embedding of each post, `[folds, width, dim]`; zero for a post without chunks."""
        folds, width, length, dim = self.embeddings.shape
        shares = self.present / self.present.sum(-1, keepdim=True).clamp(min=1)
        chunks = self.embeddings.view(folds * width, length, dim)
        return torch.bmm(shares.view(folds * width, 1, length), chunks).view(folds, width, dim)


class ChunkBags:
    """All chunk embeddings of a corpus on one device, batched as padded bags.

    Args:
        embeddings: float32 `[chunks, dim]`, chunks of a post next to each other.
        offsets: int64 `[posts + 1]`; post `i` owns rows `offsets[i]:offsets[i + 1]`, at least one.
        device: where the model trains; the embeddings move there once.
    """

    def __init__(
        self,
        embeddings: npt.NDArray[np.float32],
        offsets: npt.NDArray[np.int64],
        device: torch.device | str = "cpu",
    ) -> None:
        self.embeddings = torch.from_numpy(embeddings).to(device)
        self.offsets = torch.tensor(offsets, device=device)
        self.lengths = np.diff(offsets)
        """int64 [posts]: chunks per post; posts of similar length share a batch."""
        post_bytes = int(self.lengths.max()) * embeddings.shape[1] * embeddings.itemsize
        self.max_posts_per_pass: int | None = max(1, MAX_BAG_BYTES // post_bytes)
        """Posts of each fold in one forward and backward pass."""

    def batch(self, posts: npt.NDArray[np.int64]) -> Bag:
        """The bags of `posts` int64 `[folds, width]`."""
        return self.gather(*self.rows(posts))

    def rows(self, posts: npt.NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        """Numbers of the chunks of `posts`, int64 `[folds, width, length]`, and which of them are not padding."""
        length = int(self.lengths[posts].max())
        index = torch.from_numpy(posts).to(self.offsets.device, non_blocking=True)
        start = self.offsets[index]
        count = self.offsets[index + 1] - start
        step = torch.arange(length, device=start.device)
        present = step < count[..., None]
        # Padding points at the post's first chunk: any finite row will do, because its weight is exactly zero.
        return start[..., None] + step * present, present

    def gather(self, rows: Tensor, present: Tensor, marks: Tensor | None = None) -> Bag:
        """The bags of what `rows` returns."""
        flat = self.embeddings.index_select(0, rows.reshape(-1))
        return Bag(flat.view(*rows.shape, -1), present, marks)


class MarkedBags:
    """Bags with marks on the chunks that are evidence.

    Args:
        bags: the chunks.
        marks: bool `[chunks, criteria]`.
    """

    def __init__(self, bags: ChunkBags, marks: npt.NDArray[np.bool_]) -> None:
        self.bags = bags
        self.marks = torch.from_numpy(marks).to(bags.offsets.device)
        self.lengths = bags.lengths
        self.max_posts_per_pass = bags.max_posts_per_pass

    def batch(self, posts: npt.NDArray[np.int64]) -> Bag:
        """The bags of `posts` int64 `[folds, width]`, with their marks."""
        rows, present = self.bags.rows(posts)
        return self.bags.gather(rows, present, self.marks[rows] & present[..., None])


class MeanBags:
    """The mean chunk embedding of each post on one device: the inputs of a model without retrieval.

    The arguments are those of `ChunkBags`.
    """

    max_posts_per_pass: int | None = None
    """None: a whole batch fits."""

    def __init__(
        self, embeddings: npt.NDArray[np.float32], offsets: npt.NDArray[np.int64], device: torch.device | str = "cpu"
    ) -> None:
        self.means = torch.from_numpy(mean_embeddings(embeddings, offsets)).to(device)
        self.lengths = np.ones(len(offsets) - 1, dtype=np.int64)

    def batch(self, posts: npt.NDArray[np.int64]) -> Tensor:
        """The means of `posts` int64 `[folds, width]`, as float32 `[folds, width, dim]`."""
        return self.means[torch.from_numpy(posts).to(self.means.device, non_blocking=True)]
