"""The registry of models: a new model needs a module, an entry in `REGISTRY` and a configuration in `core.config`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ..config import (
    AbmilConfig,
    InstanceConfig,
    IrisConfig,
    LinearConfig,
    ModelConfig,
    RetrievalConfig,
    TokenConfig,
)
from ..features.bags import ChunkBags, MarkedBags, MeanBags
from ..features.tokens import TokenPosts
from ..features.views import EmbeddedCorpus, Features, TextCorpus
from .abmil import Abmil
from .base import Inputs, Model
from .instance import Instance
from .iris import Iris
from .linear import Linear
from .retrieval import Retrieval
from .token import Token

Device = torch.device | str


@dataclass(frozen=True)
class ModelEntry:
    """One kind of model: its classes, and how its inputs are made."""

    config: type[ModelConfig]
    model: type[Model]
    features: type[Features]
    inputs: Callable[[Any, Any, Device], Inputs]
    """(config, features, device) to the model's inputs."""

    @property
    def fuses_folds(self) -> bool:
        """True if several folds can train as one batched model."""
        return self.model.stacked_folds


def _chunk_bags(_: ModelConfig, features: EmbeddedCorpus, device: Device) -> ChunkBags:
    return features.bags.chunks(device)


def _marked_bags(config: InstanceConfig, features: EmbeddedCorpus, device: Device) -> ChunkBags | MarkedBags:
    bags = features.bags.chunks(device)
    if not config.evidence_weight or features.evidence is None:
        return bags
    return MarkedBags(bags, features.evidence)


def _mean_bags(_: ModelConfig, features: EmbeddedCorpus, device: Device) -> MeanBags:
    return features.bags.means(device)


def _token_posts(config: TokenConfig, features: TextCorpus, device: Device) -> TokenPosts:
    return TokenPosts(features.encoder, features.posts, features.criteria, config, device)


REGISTRY = {
    "iris": ModelEntry(IrisConfig, Iris, EmbeddedCorpus, _chunk_bags),
    "abmil": ModelEntry(AbmilConfig, Abmil, EmbeddedCorpus, _chunk_bags),
    "instance": ModelEntry(InstanceConfig, Instance, EmbeddedCorpus, _marked_bags),
    "linear": ModelEntry(LinearConfig, Linear, EmbeddedCorpus, _mean_bags),
    "retrieval": ModelEntry(RetrievalConfig, Retrieval, EmbeddedCorpus, _chunk_bags),
    "token": ModelEntry(TokenConfig, Token, TextCorpus, _token_posts),
}
"""Every model by the `name` of its configuration."""


def fuses_folds(config: ModelConfig) -> bool:
    """True if several folds of this model can train as one batched model."""
    return REGISTRY[config.name].fuses_folds


def prior_log_odds(labels: npt.NDArray[np.int8], train: Sequence[npt.NDArray[np.int64]]) -> Tensor:
    """Log-odds of each criterion in each training part, float32 `[folds, criteria]`, smoothed by half a post.

    Args:
        labels: 1, 0 or -1 (unlabelled), `[posts, criteria]`.
        train: training posts of each fold.
    """
    labelled = np.stack([(labels[part] >= 0).sum(0) for part in train]) + 1.0
    positive = np.stack([(labels[part] == 1).sum(0) for part in train]) + 0.5
    return torch.from_numpy(np.log(positive / (labelled - positive)).astype(np.float32))


def build_model(
    config: ModelConfig,
    features: Features,
    train: Sequence[npt.NDArray[np.int64]],
    *,
    folds: Sequence[int],
    seed: int,
    device: Device = "cpu",
) -> tuple[Model, Inputs]:
    """Build the untrained model of `folds`, stacked, and its inputs.

    Args:
        config: the model's configuration.
        features: what it trains on, with the labels.
        train: training posts of each fold; priors and standardisation are computed from these alone.
        folds: fold numbers, which seed the initial weights; a single one where folds do not fuse.
        seed: seed of the initial weights and of the dropout.
        device: where it trains.

    Raises:
        ConfigError: the encoder does not support the configuration.
        TypeError: the model trains on another kind of features.
    """
    prior = prior_log_odds(features.labels, train)
    inputs = make_inputs(config, features, device)
    model = REGISTRY[config.name].model.build(config, features, prior, seed=seed, folds=folds, train=train)
    return model.to(device), inputs


def make_inputs(config: ModelConfig, features: Features, device: Device = "cpu") -> Inputs:
    """Make the inputs of a model from the corpus that it trains on, or from one that it predicts.

    Embeddings are loaded onto a device once, however many models use them there.

    Raises:
        ConfigError: the encoder does not support the configuration.
        TypeError: the model takes another kind of features.
    """
    entry = REGISTRY[config.name]
    if not isinstance(features, entry.features):
        raise TypeError(
            f"{config.name} takes features of type {entry.features.__name__}, not {type(features).__name__}"
        )
    return entry.inputs(config, features, device)
