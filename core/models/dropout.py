"""Dropout that is seeded for each fold, so a fold's draws do not depend on the folds it is stacked with."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..seeding import torch_generator


class FoldDropout(nn.Module):
    """Inverted dropout on `[folds, ...]` with one random generator per fold.

    If it is never reseeded, it draws from torch's global generator, as `nn.Dropout` does: for models trained by hand.
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate
        self._keys: list[tuple[int | str, ...]] = []
        self._generators: list[torch.Generator] = []

    def reseed(self, keys: Sequence[tuple[int | str, ...]]) -> None:
        """Seed the generators of the folds for the coming epoch, so that any epoch can be repeated alone."""
        self._keys = list(keys)
        self._generators = []

    def forward(self, x: Tensor) -> Tensor:
        """Zero a share `rate` of the entries and scale the others; the identity in evaluation mode."""
        if not self.training or self.rate == 0:
            return x
        if not self._keys:
            return functional.dropout(x, self.rate)
        if not self._generators:  # created on the device of the input: a GPU never waits for the host
            self._generators = [torch_generator(*key, device=x.device) for key in self._keys]
        draws = [torch.rand(x.shape[1:], generator=generator, device=x.device) for generator in self._generators]
        return x * ((torch.stack(draws) >= self.rate) / (1 - self.rate))
