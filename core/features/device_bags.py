"""The embeddings of a corpus, and what models read of them on each device; torch is imported when a model asks."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    import torch

    from .bags import ChunkBags, MeanBags


class DeviceBags:
    """The bags of a corpus, loaded once for each device; they stay there as long as this object exists.

    Args:
        embeddings: float32 `[chunks, dim]`.
        offsets: int64 `[posts + 1]`.
    """

    def __init__(
        self,
        embeddings: npt.NDArray[np.float32],
        offsets: npt.NDArray[np.int64],
    ) -> None:
        self._embeddings, self._offsets = embeddings, offsets
        self._chunks: dict[torch.device, ChunkBags] = {}
        self._means: dict[torch.device, MeanBags] = {}

    def chunks(self, device: torch.device | str) -> ChunkBags:
        """All chunk embeddings on `device`."""
        from .bags import ChunkBags

        device = _full_name(device)
        if device not in self._chunks:
            self._chunks[device] = ChunkBags(self._embeddings, self._offsets, device)
        return self._chunks[device]

    def means(self, device: torch.device | str) -> MeanBags:
        """The mean embedding of each post on `device`."""
        from .bags import MeanBags

        device = _full_name(device)
        if device not in self._means:
            self._means[device] = MeanBags(self._embeddings, self._offsets, device)
        return self._means[device]


def _full_name(device: torch.device | str) -> torch.device:
    """The device with its index: "cuda" and "cuda:0" are the same."""
    import torch

    return torch.empty(0, device=device).device
