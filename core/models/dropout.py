"""Dropout that is seeded for each fold, so a fold's draws do not depend on the folds it is stacked with."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..seeding import torch_generator

DRAWS = 1 << 16
"""A draw has so many values; the rate is rounded to a multiple of 1 / DRAWS."""


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
        return x * self._kept(x).to(x.dtype).div_(1 - self.rate)

    def _kept(self, x: Tensor) -> Tensor:
        """Which entries are kept, bool like `x`. A random number of 64 bits is four draws, because it takes long."""
        *rows, entries = x.shape
        numbers = torch.empty(*rows, math.ceil(entries / 4), dtype=torch.int64, device=x.device)
        for of_fold, generator in zip(numbers, self._generators, strict=True):
            of_fold.random_(-(2**63), None, generator=generator)
        draws = numbers.view(torch.int16)[..., :entries]
        return draws >= min(round(self.rate * DRAWS), DRAWS - 1) - DRAWS // 2
