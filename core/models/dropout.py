"""Dropout whose draws belong to a fold, whichever folds it is stacked with."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from core.seeding import torch_generator


class FoldDropout(nn.Module):
    """Inverted dropout on `[folds, ...]`, every fold with a generator of its own.

    Never reseeded, it draws from torch's own generator, as `nn.Dropout` does: a model trained by hand.
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate
        self._generators: list[torch.Generator] = []

    def reseed(self, keys: Sequence[tuple[int | str, ...]]) -> None:
        """Seed the fold's generators for the coming epoch, so that an epoch can be repeated on its own."""
        self._generators = [torch_generator(*key) for key in keys]

    def forward(self, x: Tensor) -> Tensor:
        """Zero a share `rate` of the entries and scale the rest; the identity in evaluation."""
        if not self.training or self.rate == 0:
            return x
        if not self._generators:
            return functional.dropout(x, self.rate)
        draws = torch.stack([torch.rand(x.shape[1:], generator=generator) for generator in self._generators])
        return x * (draws.to(x.device) >= self.rate).to(x.dtype) / (1 - self.rate)
