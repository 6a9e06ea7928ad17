"""The training loop of the project: one model, one epoch at a time.

The trainer knows nothing of folds, files or studies. A loss may have any shape: a single model's loss is a scalar,
the loss of folds stacked into one model is a vector with one entry per fold, and the arithmetic below is the same.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from core.errors import NonFiniteLossError


@dataclass(frozen=True, eq=False)
class Batch:
    """One batch: what the model reads, what it should say, and how much it counts.

    `weight` is the number of labelled items behind the batch's mean loss, with the shape of the loss.
    """

    inputs: Any
    targets: Tensor
    weight: Tensor


@dataclass(frozen=True)
class EpochEnd:
    """What is known when an epoch has ended: epochs finished so far, and the mean training loss of each fold."""

    epoch: int
    train_loss: tuple[float, ...]


class Clip(Protocol):
    """Limits the gradient norm in place."""

    def __call__(self, parameters: Sequence[nn.Parameter], max_norm: float) -> None:
        """Scale the gradients of `parameters` so that their norm is at most `max_norm`."""


def clip_whole(parameters: Sequence[nn.Parameter], max_norm: float) -> None:
    """Clip by the norm over all parameters: one model."""
    nn.utils.clip_grad_norm_(parameters, max_norm)


def clip_each_fold(parameters: Sequence[nn.Parameter], max_norm: float) -> None:
    """Clip every fold by its own norm: parameters `[folds, ...]` are independent models."""
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    norm = torch.stack([gradient.flatten(1).square().sum(1) for gradient in gradients]).sum(0).sqrt()
    scale = (max_norm / norm.clamp(min=1e-12)).clamp(max=1.0)
    for gradient in gradients:
        gradient.mul_(scale.view(-1, *[1] * (gradient.dim() - 1)))


class Trainer:
    """Trains a model epoch by epoch.

    Args:
        model: called with a batch's `inputs`, returns logits.
        optimizer: over the model's parameters.
        loss_fn: (logits, targets) to the *mean* loss over the batch's labelled items, of any shape.
        penalty: added to the loss once per optimizer step, of the loss's shape.
        accumulation_steps: batches per optimizer step. The gradient of a step is that of the mean over all items of
            its batches, so it equals one large batch, also in a last, shorter window.
        clip_norm: largest gradient norm; 0 switches clipping off.
        clip: what the norm is taken over.
        scheduler: advanced after every optimizer step.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        loss_fn: Callable[[Tensor, Tensor], Tensor],
        *,
        penalty: Callable[[], Tensor] | None = None,
        accumulation_steps: int = 1,
        clip_norm: float = 1.0,
        clip: Clip = clip_whole,
        scheduler: LRScheduler | None = None,
    ) -> None:
        self.model = model
        self.optimizer = optimizer
        self.loss_fn = loss_fn
        self.penalty = penalty
        self.accumulation_steps = accumulation_steps
        self.clip_norm = clip_norm
        self.clip = clip
        self.scheduler = scheduler
        self.epoch = 0
        self._parameters = [p for group in optimizer.param_groups for p in group["params"]]

    def advance(self, batches: Iterable[Batch]) -> EpochEnd:
        """Train one epoch over `batches`.

        Raises:
            NonFiniteLossError: the loss became NaN or infinite; the model is then of no use.
        """
        self.model.train()
        total: Tensor | float = 0.0
        weight: Tensor | float = 0.0
        for window in windows(batches, self.accumulation_steps):
            window_weight = torch.stack([batch.weight for batch in window]).sum(0)
            total = total + self._step(window, window_weight) * window_weight
            weight = weight + window_weight
        self.epoch += 1
        mean = torch.as_tensor(total) / torch.as_tensor(weight).clamp(min=1)
        losses = tuple(float(value) for value in mean.reshape(-1))  # the epoch's only wait for the device
        if not all(map(_finite, losses)):
            raise NonFiniteLossError
        return EpochEnd(self.epoch, losses)

    def _step(self, window: Sequence[Batch], window_weight: Tensor) -> Tensor:
        """One optimizer step over the window; returns its mean loss, without the penalty."""
        self.optimizer.zero_grad(set_to_none=True)
        mean = torch.zeros_like(window_weight, dtype=torch.float32)
        for batch in window:
            share = batch.weight / window_weight.clamp(min=1)
            loss = self.loss_fn(self.model(batch.inputs), batch.targets) * share
            loss.sum().backward()
            mean += loss.detach()
        if self.penalty is not None and (penalty := self.penalty().sum()).requires_grad:
            penalty.backward()
        if self.clip_norm > 0:
            self.clip(self._parameters, self.clip_norm)
        self.optimizer.step()
        if self.scheduler is not None:
            self.scheduler.step()
        return mean

    @torch.no_grad()
    def predict(self, inputs: Any) -> Tensor:  # noqa: ANN401
        """Logits of one batch of inputs, without dropout and without gradients."""
        self.model.eval()
        return self.model(inputs)  # type: ignore[no-any-return]

    def state_dict(self) -> dict[str, Any]:
        """A snapshot of everything `load_state_dict` needs to go on as if nothing had happened."""
        return copy.deepcopy(
            {
                "epoch": self.epoch,
                "model": self.model.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "scheduler": None if self.scheduler is None else self.scheduler.state_dict(),
            }
        )

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `state`."""
        self.epoch = state["epoch"]
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.scheduler is not None:
            self.scheduler.load_state_dict(state["scheduler"])


def windows(batches: Iterable[Batch], size: int) -> Iterator[list[Batch]]:
    """Cut `batches` into lists of `size`; the last may be shorter."""
    iterator = iter(batches)
    while window := list(islice(iterator, size)):
        yield window


def _finite(value: float) -> bool:
    return value - value == 0.0
