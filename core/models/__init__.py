"""The models, behind one interface: `build` gives a module and what it reads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from core.bags import ChunkBags, MeanBags
from core.config import IrisConfig, LinearConfig, ModelConfig
from core.models.iris import Iris
from core.models.linear import Linear


class Inputs(Protocol):
    """What a model reads of the posts."""

    lengths: npt.NDArray[np.int64]
    """[posts]: how much there is to read of a post; batches are cut from posts of similar length."""

    def batch(self, posts: npt.NDArray[np.int64]) -> Any:  # noqa: ANN401  (each model knows its own batches)
        """What the model's `forward` takes for the posts `[folds, width]`."""


class Model(Protocol):
    """A module whose parameters all have a leading `folds` axis."""

    def forward(self, batch: Any) -> Tensor:  # noqa: ANN401
        """Logits `[folds, width, criteria]`."""

    def reseed(self, keys: Sequence[tuple[int | str, ...]]) -> None:
        """Seed the randomness of each fold for the coming epoch."""

    def penalty(self) -> Tensor:
        """What the model adds to the loss of each fold, `[folds]`."""


@dataclass(frozen=True, eq=False)
class EmbeddedCorpus:
    """A corpus as the embedding models see it.

    `embeddings` float32 `[chunks, dim]`, `offsets` int64 `[posts + 1]`, `criteria` float32 `[criteria, dim]` (the
    embeddings of the criteria's texts), `labels` int8 `[posts, criteria]` with 1, 0 or -1 (unlabelled).
    """

    embeddings: npt.NDArray[np.float32]
    offsets: npt.NDArray[np.int64]
    criteria: npt.NDArray[np.float32]
    labels: npt.NDArray[np.int8]


def prior_log_odds(labels: npt.NDArray[np.int8], train: Sequence[npt.NDArray[np.int64]]) -> Tensor:
    """Log-odds of each criterion in each training part, float32 `[folds, criteria]`, smoothed by half a post."""
    known = np.stack([(labels[part] >= 0).sum(0) for part in train]) + 1.0
    positive = np.stack([(labels[part] == 1).sum(0) for part in train]) + 0.5
    return torch.from_numpy(np.log(positive / (known - positive)).astype(np.float32))


def build(
    config: ModelConfig,
    corpus: EmbeddedCorpus,
    train: Sequence[npt.NDArray[np.int64]],
    *,
    folds: Sequence[int],
    seed: int,
    device: torch.device | str = "cpu",
) -> tuple[nn.Module, Inputs]:
    """The model of `folds`, stacked, and what it reads.

    Args:
        config: which model.
        corpus: embeddings and labels.
        train: training posts of each fold; priors are taken from these alone.
        folds: fold numbers, which the initial weights depend on.
        seed: seed of the study.
        device: where it will train.
    """
    prior = prior_log_odds(corpus.labels, train)
    match config:
        case IrisConfig():
            criteria = torch.from_numpy(corpus.criteria)
            model: nn.Module = Iris(config, criteria, prior, seed=seed, folds=folds)
            inputs: Inputs = ChunkBags(corpus.embeddings, corpus.offsets, device)
        case LinearConfig():
            model = Linear(corpus.embeddings.shape[1], prior)
            inputs = MeanBags(corpus.embeddings, corpus.offsets, device)
    return model.to(device), inputs
