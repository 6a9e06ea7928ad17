"""ABMIL: gated attention over all chunks of a post, the control that shows whether retrieval adds anything.

Ilse, Tomczak and Welling, "Attention-based Deep Multiple Instance Learning" (ICML 2018), with the gated attention of
its equation 9, made criterion-conditioned: every criterion has its own attention weights. All folds of a stage live in
one module: every parameter has a leading `folds` axis.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from ..config import AbmilConfig
from ..features.bags import Bag
from ..features.views import EmbeddedCorpus
from .base import Model, normal
from .dropout import FoldDropout


class Abmil(Model):
    """Chunk features → gated attention over all chunks → one logit per criterion.

    Args:
        config: widths and dropout.
        dim: width of the embeddings.
        prior: float32 `[folds, criteria]`, log-odds of each criterion in the fold's training part.
        seed: seeds the initial weights, together with the fold number.
        folds: fold numbers; the initial weights of a fold do not depend on the folds it is stacked with.
    """

    value: nn.Parameter
    value_bias: nn.Parameter
    gated: nn.Parameter
    gated_bias: nn.Parameter
    score: nn.Parameter
    head: nn.Parameter

    def __init__(self, config: AbmilConfig, dim: int, prior: Tensor, *, seed: int, folds: Sequence[int]) -> None:
        super().__init__()
        self.config = config
        self.dim, self.criteria = dim, prior.shape[1]
        self._stack_folds(self._start, prior, seed=seed, folds=folds)
        self.dropout = FoldDropout(config.dropout)

    @classmethod
    def build(
        cls,
        config: AbmilConfig,
        features: EmbeddedCorpus,
        prior: Tensor,
        *,
        seed: int,
        folds: Sequence[int],
        train: Sequence[npt.NDArray[np.int64]],  # noqa: ARG003  (its start does not depend on the posts)
    ) -> Abmil:
        """The model for a corpus; the other arguments are those of the class."""
        return cls(config, features.embeddings.shape[1], prior, seed=seed, folds=folds)

    def _start(self, generator: torch.Generator) -> dict[str, Tensor]:
        """The initial weights of one fold."""
        width, attention = self.config.hidden, self.config.attention_hidden
        return {
            "value": normal(generator, self.dim, width, std=1.0),  # unit vectors in, unit variance out
            "value_bias": torch.zeros(width),
            "gated": normal(generator, width, 2 * attention, std=1 / math.sqrt(width)),  # V and U side by side
            "gated_bias": torch.zeros(2 * attention),
            "score": normal(generator, attention, self.criteria, std=1 / math.sqrt(attention)),
            "head": torch.zeros(self.criteria, width),
        }

    def forward(self, bag: Bag) -> Tensor:
        """Logits `[folds, width, criteria]` of a bag of posts."""
        weights, features = self.attend(bag)
        pooled: Tensor = self.dropout(weights @ features)  # [folds, width, criteria, hidden]
        return (pooled * self.head[:, None]).sum(-1) + self.bias[:, None]

    def attend(self, bag: Bag) -> tuple[Tensor, Tensor]:
        """Attention `[folds, width, criteria, length]`, zero where padded, and features `[..., length, hidden]`.

        a = softmax over the chunks of wᵀ (tanh(V h) ⊙ σ(U h)), one w for each criterion.
        """
        folds, width, length, dim = bag.embeddings.shape
        flat = bag.embeddings.view(folds, width * length, dim)
        features = torch.relu(torch.baddbmm(self.value_bias[:, None], flat, self.value))
        tanh, gate = torch.baddbmm(self.gated_bias[:, None], features, self.gated).chunk(2, dim=-1)
        scores = (torch.tanh(tanh) * torch.sigmoid(gate)) @ self.score  # [folds, width * length, criteria]
        scores = scores.view(folds, width, length, -1).transpose(2, 3).masked_fill(~bag.present[:, :, None], -math.inf)
        return torch.softmax(scores, dim=-1), features.view(folds, width, length, -1)

    def chunk_logits(self, bag: Bag) -> Tensor:
        """Logits `[folds, width, criteria]`, as `forward`."""
        return self(bag)  # type: ignore[no-any-return]

    def attention(self, bag: Bag) -> Tensor:
        """Attention `[folds, width, criteria, length]`, zero where padded."""
        return self.attend(bag)[0]

    def reseed(self, keys: Sequence[tuple[int | str, ...]]) -> None:
        """Seed the dropout of each fold for the coming epoch."""
        self.dropout.reseed(keys)
