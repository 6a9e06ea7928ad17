"""What every model is: a module over stacked folds, and the inputs it is called with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Protocol

import numpy as np
import numpy.typing as npt
from torch import Tensor, nn

from ..errors import ConfigError


class Inputs(Protocol):
    """The posts of a corpus in the form in which a model takes them."""

    lengths: npt.NDArray[np.int64]
    """[posts]: the length of each post; batches are cut from posts of similar length."""

    @property
    def max_posts_per_pass(self) -> int | None:
        """Posts of a fold that fit into memory in one forward and backward pass; None = a whole batch."""

    def batch(self, posts: npt.NDArray[np.int64]) -> Any:  # noqa: ANN401  (each model has its own batches)
        """The argument of the model's `forward` for the posts `[folds, width]`."""


class Model(nn.Module):
    """A module whose parameters all have a leading `folds` axis, or that holds a single fold."""

    stacked_folds: ClassVar[bool] = True
    warmup_epochs: int = 0

    def reseed(self, keys: Sequence[tuple[int | str, ...]]) -> None:
        """Seed the randomness of each fold for the coming epoch."""

    def penalty(self) -> Tensor:
        """The model's addition to the loss of each fold, `[folds]`."""
        raise NotImplementedError

    def parameter_groups(self, learning_rate: float) -> list[dict[str, Any]]:
        """The trained parameters as optimizer groups, with their learning rates."""
        return [{"params": list(self.parameters()), "lr": learning_rate}]


def enable_gradient_checkpointing(module: nn.Module) -> None:
    """Make a Hugging Face transformer recompute activations in the backward pass.

    Raises:
        ConfigError: the module cannot do it.
    """
    # transformers renames it in version 6
    enable = getattr(module, "activation_checkpointing_enable", getattr(module, "gradient_checkpointing_enable", None))
    if enable is None:
        raise ConfigError(f"gradient_checkpointing is on, but {type(module).__name__} cannot do it; transformers can")
    enable()
