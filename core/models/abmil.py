"""ABMIL: gated attention over all chunks of a post, the control that shows whether retrieval adds anything.

Ilse, Tomczak and Welling, "Attention-based Deep Multiple Instance Learning" (ICML 2018), with the gated attention of
its equation 9, made criterion-conditioned: every criterion has attention weights of its own. All folds of a stage live
in one module: every parameter has a leading `folds` axis.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..config import AbmilConfig
from ..features.bags import Bag
from ..seeding import torch_generator
from .base import Model
from .dropout import FoldDropout


class Abmil(Model):
    """Chunk features → gated attention over all chunks → one logit per criterion.

    Args:
        config: widths.
        dim: width of the embeddings.
        prior: float32 `[folds, criteria]`, log-odds of each criterion in the fold's training part.
        seed: seed of the study.
        folds: fold numbers; fold `f` starts at the same weights whichever folds it is stacked with.
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
        starts = [self._start(torch_generator(seed, "model", fold)) for fold in folds]
        for name in starts[0]:
            self.register_parameter(name, nn.Parameter(torch.stack([start[name] for start in starts])))
        self.bias = nn.Parameter(prior.clone())
        self.dropout = FoldDropout(config.dropout)

    def _start(self, generator: torch.Generator) -> dict[str, Tensor]:
        """The initial weights of one fold."""
        width, attention = self.config.hidden, self.config.attention_hidden

        def normal(*shape: int, std: float) -> Tensor:
            return torch.randn(*shape, generator=generator) * std

        return {
            "value": normal(self.dim, width, std=1.0),  # unit vectors in, unit variance out
            "value_bias": torch.zeros(width),
            "gated": normal(width, 2 * attention, std=1 / math.sqrt(width)),  # V and U side by side
            "gated_bias": torch.zeros(2 * attention),
            "score": normal(attention, self.criteria, std=1 / math.sqrt(attention)),
            "head": torch.zeros(self.criteria, width),
        }

    def forward(self, bag: Bag) -> Tensor:
        """Logits `[folds, width, criteria]` of a bag of posts."""
        weights, features = self.attend(bag)
        read: Tensor = self.dropout(weights @ features)  # [folds, width, criteria, hidden]
        return (read * self.head[:, None]).sum(-1) + self.bias[:, None]

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

    def reseed(self, keys: Sequence[tuple[int | str, ...]]) -> None:
        """Seed the dropout of each fold for the coming epoch."""
        self.dropout.reseed(keys)

    def penalty(self) -> Tensor:
        """No penalty: zeros `[folds]`."""
        return torch.zeros_like(self.bias[:, 0])
