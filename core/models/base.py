"""The interface of all models: what training, cross-validation and explanations call."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from ..errors import ConfigError
from ..features.bags import Bag
from ..seeding import torch_generator


class Inputs(Protocol):
    """The posts of a corpus as inputs of one kind of model."""

    lengths: npt.NDArray[np.int64]
    """[posts]: size of each post (in chunks or tokens); posts of similar length share a batch."""

    @property
    def max_posts_per_pass(self) -> int | None:
        """Posts of each fold in one forward and backward pass; None = a whole batch."""

    def batch(self, posts: npt.NDArray[np.int64]) -> Any:  # noqa: ANN401  (each model has its own batches)
        """The argument of the model's `forward` for the posts `[folds, width]`."""


class Model(nn.Module, ABC):
    """A classifier of posts, for one fold or for several folds stacked into one module."""

    stacked_folds: ClassVar[bool] = True
    """Every parameter has a leading `folds` axis. If False, a module holds a single fold."""
    warmup_epochs: int = 0
    """Number of epochs at the start in which only a part of the model is trained."""

    bias: nn.Parameter
    """`[folds, criteria]`, or `[criteria]` if folds do not stack; starts at the prior log-odds."""

    @classmethod
    @abstractmethod
    def build(
        cls,
        config: Any,  # noqa: ANN401
        features: Any,  # noqa: ANN401
        prior: Tensor,
        *,
        seed: int,
        folds: Sequence[int],
        train: Sequence[npt.NDArray[np.int64]],
    ) -> Model:
        """Make the untrained model of a corpus.

        Args:
            config: the model's own configuration.
            features: what it trains on: an `EmbeddedCorpus` or a `TextCorpus`, as the registry says.
            prior: float32 `[folds, criteria]`, log-odds of each criterion in the fold's training part.
            seed: seed of the initial weights and of the dropout.
            folds: fold numbers. A fold starts at the same weights whichever folds it is stacked with.
            train: training posts of each fold; nothing else of the corpus may decide where the fold starts.
        """

    @abstractmethod
    def forward(self, batch: Any) -> Tensor:  # noqa: ANN401  (each model has its own batches)
        """Logits `[folds, width, criteria]` of a batch from the model's `Inputs`."""

    def reseed(self, keys: Sequence[tuple[int | str, ...]]) -> None:
        """Seed the randomness of each fold for the coming epoch; by default a model has none.

        Args:
            keys: one for each fold; its last part is the number of the epoch, from 0.
        """

    def penalty(self) -> Tensor:
        """What the model adds to the loss of each fold, `[folds]`; zeros by default."""
        return torch.zeros_like(self._fold_bias()[:, 0])

    def auxiliary_loss(self, targets: Tensor) -> Tensor | None:  # noqa: ARG002  (the default has none)
        """What the model adds to the mean loss of each fold on the batch that it was last called with, `[folds]`.

        Args:
            targets: labels of the batch `[folds, width, criteria]`; -1 is unlabelled or padding.

        Returns:
            None by default: nothing is added.
        """
        return None

    def parameter_groups(self, learning_rate: float) -> list[dict[str, Any]]:
        """The parameters that are trained, grouped by learning rate, as an optimizer takes them."""
        return [{"params": list(self.parameters()), "lr": learning_rate}]

    def chunk_logits(self, bag: Bag) -> Tensor:  # noqa: ARG002  (the default takes no bag)
        """Logits `[folds, width, criteria]` of posts given as bags of chunks; undefined for posts without a chunk.

        Raises:
            TypeError: the model does not read chunks.
        """
        raise TypeError(self._no_chunks())

    def attention(self, bag: Bag) -> Tensor:  # noqa: ARG002  (the default takes no bag)
        """Attention over the chunks `[folds, width, criteria, length]`, the mean over a criterion's queries.

        Raises:
            TypeError: the model does not read chunks.
        """
        raise TypeError(self._no_chunks())

    def empty_logits(self) -> Tensor:
        """Logits `[folds, 1, criteria]` of a post without any text: the bias."""
        return self._fold_bias()[:, None]

    def _fold_bias(self) -> Tensor:
        """The bias with its `folds` axis, `[folds, criteria]`."""
        return self.bias if self.stacked_folds else self.bias[None]

    def _no_chunks(self) -> str:
        return f"{type(self).__name__} does not read chunks; use explain.attribute_text for a transformer"

    def _stack_folds(
        self, start: Callable[[torch.Generator], dict[str, Tensor]], prior: Tensor, *, seed: int, folds: Sequence[int]
    ) -> None:
        """Register the initial weights of all folds, stacked, and `prior` as the bias.

        Args:
            start: draws the initial weights of one fold.
            prior: float32 `[folds, criteria]`.
            seed: seeds the weights, together with the fold number.
            folds: fold numbers; the weights of a fold do not depend on the folds it is stacked with.
        """
        starts = [start(torch_generator(seed, "model", fold)) for fold in folds]
        for name in starts[0]:
            self.register_parameter(name, nn.Parameter(torch.stack([weights[name] for weights in starts])))
        self.bias = nn.Parameter(prior.clone())


def normal(generator: torch.Generator, *shape: int, std: float) -> Tensor:
    """Normally distributed initial weights, float32 `shape`."""
    return torch.randn(*shape, generator=generator) * std


def join_models(models: Sequence[Model]) -> Model:
    """Join models along the `folds` axis: the folds of the first, then those of the second, and so on.

    Args:
        models: models of one class and configuration whose folds stack; the first becomes the result.
    """
    first, *others = models
    if others:
        states = [model.state_dict() for model in models]
        for name, tensor in first.state_dict(keep_vars=True).items():
            tensor.data = torch.cat([state[name] for state in states])
    return first


def enable_gradient_checkpointing(module: nn.Module, options: dict[str, Any] | None = None) -> None:
    """Make a transformer recompute activations in the backward pass instead of storing them.

    Args:
        module: a Hugging Face model.
        options: keyword arguments of `torch.utils.checkpoint.checkpoint`.

    Raises:
        ConfigError: the module does not support it.
    """
    # transformers renames it in version 6
    enable = getattr(module, "activation_checkpointing_enable", getattr(module, "gradient_checkpointing_enable", None))
    if enable is None:
        raise ConfigError(
            f"gradient_checkpointing is on, but {type(module).__name__} does not support it; use a Hugging Face "
            "transformer, or turn it off"
        )
    enable() if options is None else enable(options)
