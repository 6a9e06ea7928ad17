"""The only training loop of the project: an epoch and its optimizer steps, from top to bottom.

The engine knows one model, its optimizer and its loss; it knows nothing of folds, files, early stopping or progress
bars. A loss may have any shape: the loss of a single model is a scalar, the loss of folds stacked into one model is a
vector with one entry per fold, and the arithmetic is the same.

Every epoch seeds the global random generators from (seed, epoch) and restores them afterwards. A run that was
interrupted after any epoch therefore continues bit for bit as if it had never stopped, even in another process.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from ..errors import NonFiniteLossError, OutOfMemoryError
from ..seeding import seeded
from .batches import Batch, as_batch, logits_of, windows
from .optimizer import PlainUpdate, Update

LossFunction = Callable[[Tensor, Tensor], Tensor]
"""(float32 logits, targets) to the *mean* loss over the batch's labelled items, of any shape."""


@dataclass(frozen=True)
class EpochEnd:
    """The result of an epoch: epochs finished so far, and the mean training loss of each fold."""

    epoch: int
    train_loss: tuple[float, ...]


class Engine:
    """Trains a model epoch by epoch.

    Args:
        model: called with a batch's inputs, returns logits (see `core.training.batches`).
        optimizer: over the model's parameters.
        loss_fn: the mean loss of a batch.
        device: the device of the model; batches are moved there.
        batches_per_step: batches per optimizer step. The gradient of a step is that of the mean over all items of
            its batches, so it equals the gradient of one large batch, also in a last, shorter window.
        penalty: added to the loss once per optimizer step, of the loss's shape.
        auxiliary: added to the loss of every batch, of the loss's shape, given the batch's targets; called after the
            model. Like the penalty, it is not part of the reported loss. If it returns None, nothing is added.
        scheduler: a learning-rate schedule that advances with every optimizer step.
        gather: makes the model's inputs from a batch's, immediately before the model is called: large inputs are in
            memory for one batch at a time, not for a whole window.
        autocast: makes the context in which the model is called.
        update: default: `PlainUpdate`.
        seed: of the global random generators in every epoch.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        loss_fn: LossFunction,
        *,
        device: torch.device,
        batches_per_step: int = 1,
        penalty: Callable[[], Tensor] | None = None,
        auxiliary: Callable[[Tensor], Tensor | None] = lambda targets: None,  # noqa: ARG005
        scheduler: LRScheduler | None = None,
        gather: Callable[[Any], Any] = lambda inputs: inputs,
        autocast: Callable[[], AbstractContextManager[Any]] = nullcontext,
        update: Update | None = None,
        seed: int = 0,
    ) -> None:
        self.model = model
        self.optimizer = optimizer
        self.loss_fn = loss_fn
        self.device = device
        self.batches_per_step = batches_per_step
        self.penalty = penalty
        self.auxiliary = auxiliary
        self.scheduler = scheduler
        self.gather = gather
        self.autocast = autocast
        self.update = update or PlainUpdate(optimizer)
        self.seed = seed
        self.epoch = 0
        """Epochs finished."""

    def advance(self, batches: Iterable[Any]) -> EpochEnd:
        """Train one epoch over `batches`.

        Raises:
            NonFiniteLossError: the loss became NaN or infinite; the model is useless from then on.
            OutOfMemoryError: the model and a batch do not fit into memory.
            ValueError: there are no batches.
        """
        self.model.train()
        with seeded(self.seed, "epoch", self.epoch), translate_memory_errors():
            mean = self._epoch(as_batch(item, self.device) for item in batches)
        losses = tuple(mean.reshape(-1).tolist())  # the host waits for the device only here, once an epoch
        if not all(map(math.isfinite, losses)):
            raise NonFiniteLossError
        self.epoch += 1
        return EpochEnd(self.epoch, losses)

    def _epoch(self, batches: Iterable[Batch]) -> Tensor:
        """Train on every batch once; returns the mean loss over all labelled items, without the penalty."""
        total, weight = torch.zeros((), device=self.device), torch.zeros((), device=self.device)
        steps = 0
        for window in windows(batches, self.batches_per_step):
            window_weight = torch.stack([batch.weight for batch in window]).sum(0)
            total = total + self._step(window, window_weight) * window_weight
            weight = weight + window_weight
            steps += 1
        if steps == 0:
            raise ValueError("the loader has no batches: it is empty, or an iterator that was used up before")
        return total / weight.clamp(min=1)

    def _step(self, window: Sequence[Batch], window_weight: Tensor) -> Tensor:
        """One optimizer step over the batches of a window; returns their mean loss, without the penalty."""
        self.optimizer.zero_grad(set_to_none=True)
        mean = torch.zeros_like(window_weight, dtype=torch.float32)
        for batch in window:
            share = batch.weight / window_weight.clamp(min=1)
            loss = self.loss_fn(self.logits(batch), batch.targets) * share
            mean += loss.detach()
            auxiliary = self.auxiliary(batch.targets)
            if auxiliary is not None:
                loss = loss + auxiliary * share
            if self.penalty is not None and batch is window[-1]:
                loss = loss + self.penalty()
            self.update.backward(loss.sum())
        if self.update.step() and self.scheduler is not None:
            self.scheduler.step()
        return mean

    def logits(self, batch: Batch) -> Tensor:
        """The model's float32 logits of a batch, of the targets' shape."""
        with self.autocast():
            logits = logits_of(self.model, self.gather(batch.inputs))
        if logits.shape == (*batch.targets.shape, 1):  # one logit a row: a transformer with a single label
            logits = logits.squeeze(-1)
        return logits.float()  # in half precision, the loss would round away the contribution of a rare positive

    @torch.no_grad()
    def predict(self, inputs: Any) -> Tensor:  # noqa: ANN401
        """Float32 logits of one batch of inputs (on the engine's device), without dropout and without gradients."""
        self.model.eval()
        with translate_memory_errors(), self.autocast():
            return logits_of(self.model, self.gather(inputs)).float()

    def state_dict(self) -> dict[str, Any]:
        """The state between two epochs, by reference, like torch's own; copy it to keep it.

        It holds no state of random generators: every epoch seeds them.
        """
        return {
            "epoch": self.epoch,
            "model": dict(self.model.state_dict()),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": None if self.scheduler is None else self.scheduler.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore a state returned by `state_dict`."""
        self.epoch = state["epoch"]
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.scheduler is not None:
            self.scheduler.load_state_dict(state["scheduler"])


@contextmanager
def translate_memory_errors() -> Iterator[None]:
    """Turn the errors that torch and Python raise when memory runs out, on host or device, into `OutOfMemoryError`."""
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        # torch's CPU allocator raises a plain RuntimeError
        if isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error):
            reason = str(error).partition("\n")[0]
            raise OutOfMemoryError(f"{OutOfMemoryError.__doc__} ({reason})") from error
        raise
