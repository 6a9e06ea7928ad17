"""Logistic regression on the mean chunk embedding of a post: what is possible without locating evidence."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from torch import Tensor

from ..config import LinearConfig
from ..features.bags import Bag
from ..features.views import EmbeddedCorpus
from .solved import SolvedModel


class Linear(SolvedModel):
    """One logit per criterion from the mean embedding, as it is.

    The arguments are those of `SolvedModel`; the inputs are the coordinates of the mean embedding.
    """

    @classmethod
    def build(
        cls,
        config: LinearConfig,
        features: EmbeddedCorpus,
        prior: Tensor,
        *,
        seed: int,  # noqa: ARG003  (the solution has no randomness)
        folds: Sequence[int],  # noqa: ARG003
        train: Sequence[npt.NDArray[np.int64]],  # noqa: ARG003
    ) -> Linear:
        """The model for a corpus."""
        return cls(config.C, features.embeddings.shape[1], prior)

    def design(self, batch: Tensor) -> Tensor:
        """The mean embeddings `[folds, width, dim]`, which are the batch itself."""
        return batch

    def chunk_logits(self, bag: Bag) -> Tensor:
        """Logits `[folds, width, criteria]` of the mean of each post's chunks."""
        return self(bag.means())  # type: ignore[no-any-return]

    def attention(self, bag: Bag) -> Tensor:
        """Attention `[folds, width, criteria, length]`: every chunk of a post counts the same."""
        uniform = bag.present / bag.present.sum(-1, keepdim=True)
        return uniform[:, :, None].expand(-1, -1, self.bias.shape[1], -1).contiguous()
