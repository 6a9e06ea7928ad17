"""Dropout whose draws belong to a fold, whichever folds it is stacked with."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..seeding import torch_generator


class FoldDropout(nn.Module):
    """Inverted dropout on `[folds, ...]`, every fold with a generator of its own.

    Never reseeded, it draws from torch's own generator, as `nn.Dropout` does: a model trained by hand.
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate
        self._keys: list[tuple[int | str, ...]] = []
        self._generators: list[torch.Generator] = []

    def reseed(self, keys: Sequence[tuple[int | str, ...]]) -> None:
        """Seed the fold's generators for the coming epoch, so that an epoch can be repeated on its own."""
        self._keys = list(keys)
        self._generators = []

    def forward(self, x: Tensor) -> Tensor:
        """Zero a share `rate` of the entries and scale the rest; the identity in evaluation."""
        if not self.training or self.rate == 0:
            return x
        if not self._keys:
            return functional.dropout(x, self.rate)
        if not self._generators:  # drawn where it is needed: a GPU never waits for the host
            self._generators = [torch_generator(*key, device=x.device) for key in self._keys]
        draws = [torch.rand(x.shape[1:], generator=generator, device=x.device) for generator in self._generators]
        return x * ((torch.stack(draws) >= self.rate) / (1 - self.rate))
