"""The models, behind one interface: `build_model` gives a module and what it reads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ..config import (
    AbmilConfig,
    EmbeddingModelConfig,
    IrisConfig,
    LinearConfig,
    ModelConfig,
    TokenConfig,
)
from ..features.bags import ChunkBags, MeanBags
from ..features.encoders import Encoder
from ..features.tokens import TokenPosts
from .abmil import Abmil
from .base import Inputs, Model
from .iris import Iris
from .linear import Linear
from .token import Token


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


@dataclass(frozen=True, eq=False, repr=False)
class TextCorpus:
    """A corpus as the models see it that read text themselves.

    `posts` and `criteria` are texts, `encoder` is what is fine-tuned, `labels` int8 `[posts, criteria]` with 1, 0 or -1
    (unlabelled).
    """

    posts: tuple[str, ...]
    criteria: tuple[str, ...]
    encoder: Encoder
    labels: npt.NDArray[np.int8]


Features = EmbeddedCorpus | TextCorpus
"""What a model may be trained on: which of the two, its configuration says (`reads_text`)."""


def reads_text(config: ModelConfig) -> bool:
    """Does this model read the posts themselves (`TextCorpus`), or their embeddings (`EmbeddedCorpus`)?"""
    return isinstance(config, TokenConfig)


def fuses_folds(config: ModelConfig) -> bool:
    """Can several folds train as one batched model?"""
    return isinstance(config, EmbeddingModelConfig)


def prior_log_odds(labels: npt.NDArray[np.int8], train: Sequence[npt.NDArray[np.int64]]) -> Tensor:
    """Log-odds of each criterion in each training part, float32 `[folds, criteria]`, smoothed by half a post."""
    known = np.stack([(labels[part] >= 0).sum(0) for part in train]) + 1.0
    positive = np.stack([(labels[part] == 1).sum(0) for part in train]) + 0.5
    return torch.from_numpy(np.log(positive / (known - positive)).astype(np.float32))


def build_model(
    config: ModelConfig,
    corpus: Features,
    train: Sequence[npt.NDArray[np.int64]],
    *,
    folds: Sequence[int],
    seed: int,
    device: torch.device | str = "cpu",
) -> tuple[Model, Inputs]:
    """The model of `folds`, stacked, and what it reads.

    The module is a `Model`, the rest of what it is called with comes from its `Inputs`.

    Args:
        config: which model.
        corpus: what it reads of the posts, and the labels.
        train: training posts of each fold; priors are taken from these alone.
        folds: fold numbers, which the initial weights depend on; a single one where folds do not fuse.
        seed: seed of the study.
        device: where it will train.

    Raises:
        ConfigError: the encoder cannot do what the configuration asks for.
    """
    prior = prior_log_odds(corpus.labels, train)
    inputs = make_inputs(config, corpus, device)
    model: Model
    match config, corpus:
        case IrisConfig(), EmbeddedCorpus():
            model = Iris(config, torch.from_numpy(corpus.criteria), prior, seed=seed, folds=folds)
        case AbmilConfig(), EmbeddedCorpus():
            model = Abmil(config, corpus.embeddings.shape[1], prior, seed=seed, folds=folds)
        case LinearConfig(), EmbeddedCorpus():
            model = Linear(corpus.embeddings.shape[1], prior)
        case TokenConfig(), TextCorpus():
            (fold,) = folds
            model = Token(config, corpus.encoder, prior, seed=seed, fold=fold)
        case _:
            raise TypeError(f"{config.name} does not read a {type(corpus).__name__}")
    return model.to(device), inputs


def make_inputs(config: ModelConfig, corpus: Features, device: torch.device | str = "cpu") -> Inputs:
    """What the model reads of a corpus: that it trains on, or one that it is to predict.

    Embeddings are moved to a device once, whatever number of models read them there.
    """
    match config, corpus:
        case IrisConfig() | AbmilConfig(), EmbeddedCorpus():
            return _resident(corpus, ChunkBags, device)
        case LinearConfig(), EmbeddedCorpus():
            return _resident(corpus, MeanBags, device)
        case TokenConfig(), TextCorpus():
            return TokenPosts(corpus.encoder, corpus.posts, corpus.criteria, config, device)
    raise TypeError(f"{config.name} does not read a {type(corpus).__name__}")


_RESIDENT: WeakKeyDictionary[EmbeddedCorpus, dict[tuple[type, str], ChunkBags | MeanBags]] = WeakKeyDictionary()
"""What lies on a device, for as long as its corpus is in use."""


def _resident(corpus: EmbeddedCorpus, kind: type[ChunkBags | MeanBags], device: torch.device | str) -> Inputs:
    kept = _RESIDENT.setdefault(corpus, {})
    place = (kind, str(device))
    if place not in kept:
        kept[place] = kind(corpus.embeddings, corpus.offsets, device)
    return kept[place]
