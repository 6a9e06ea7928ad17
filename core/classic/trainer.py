"""Training one model by hand: validation, early stopping, half precision, checkpoints and progress bars.

The loop itself is `core.training.engine.Engine`, which cross-validation uses too. A `Trainer` adds what a user who
trains a single model wants around it. A run that was interrupted after any epoch continues from its checkpoint bit for
bit as if it had never stopped, even in another process.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau
from tqdm import tqdm

from ..errors import CheckpointError, ConfigError, NonFiniteLossError, check_choice
from ..models.base import enable_gradient_checkpointing
from ..seeding import seeded, stable_seed
from ..training.batches import as_batch
from ..training.engine import Engine, EpochEnd, LossFunction, translate_memory_errors
from ..training.state_file import load_state, save_state
from ..training.stopping import best_index, is_stale

MetricFunction = Callable[[npt.NDArray[Any], npt.NDArray[np.float32]], float]
"""(labels, logits) of all validation items to a number, labels first as in `core.metrics` and scikit-learn."""

_AMP_DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16}
_LOSSES = ("train_loss", "val_loss")
_ACCURACIES = ("train_acc", "val_acc")


@dataclass(frozen=True, eq=False)
class Evaluated:
    """The evaluation of a model on all items of a loader, in the loader's order."""

    loss: float
    """Mean over the labelled items."""
    logits: npt.NDArray[np.float32]
    labels: npt.NDArray[Any]
    metric: float | None
    accuracy: float
    """Share of the labelled items whose predicted class (positive from logit 0 on) is their label."""


class Trainer:
    """Trains a model epoch by epoch.

    Args:
        model: called with a batch's inputs, returns logits (see `core.training.batches`).
        optimizer: over the model's parameters.
        loss_fn: (logits in float32, targets) to the *mean* loss over the batch's labelled items, of any shape.
        device: the device of model, loss and batches; default: the model's.
        gradient_accumulation_steps: batches per optimizer step. The gradient of a step is that of the mean over all
            items of its batches, so it equals the gradient of one large batch, also in a last, shorter window.
        use_amp: forward passes under autocast.
        amp_dtype: "bfloat16", or "float16" with gradient scaling.
        max_grad_norm: largest gradient norm; 0 or None = no clipping.
        penalty: added to the loss once per optimizer step, of the loss's shape; default: the model's `penalty` method
            if it has one.
        scheduler: any torch schedule. `ReduceLROnPlateau` follows the monitored value of `train`.
        scheduler_interval: whether it advances after every optimizer "step" or "epoch".
        early_stopping_patience: `train` ends when the monitored value has not improved for this many epochs.
        early_stopping_metric: the monitored value: "train_loss", "val_loss" ("loss" for short), "train_acc", "val_acc"
            or the metric's name. Default: the metric if there is one, else the validation loss, else the training loss.
        checkpoint_dir: folder for the checkpoints of `train`.
        save: the "best" epoch only, as best.safetensors, or "every" epoch, as epoch-0001.safetensors and so on.
        gradient_checkpointing: make the model (a Hugging Face transformer) recompute activations instead of storing
            them.
        seed: seed of dropout and of the order of the batches.
        progress: show progress bars; default: only if standard error is a terminal.

    Raises:
        ConfigError: an argument is out of range, or the model does not support gradient checkpointing.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        loss_fn: LossFunction,
        *,
        device: torch.device | str | None = None,
        gradient_accumulation_steps: int = 1,
        use_amp: bool = False,
        amp_dtype: Literal["bfloat16", "float16"] = "bfloat16",
        max_grad_norm: float | None = 1.0,
        penalty: Callable[[], Tensor] | None = None,
        scheduler: LRScheduler | None = None,
        scheduler_interval: Literal["step", "epoch"] = "step",
        early_stopping_patience: int | None = None,
        early_stopping_metric: str | None = None,
        checkpoint_dir: Path | str | None = None,
        save: Literal["best", "every"] = "best",
        gradient_checkpointing: bool = False,
        seed: int = 0,
        progress: bool | None = None,
    ) -> None:
        _check_minimum("gradient_accumulation_steps", gradient_accumulation_steps, 1)
        _check_minimum("early_stopping_patience", early_stopping_patience, 1)
        check_choice("amp_dtype", amp_dtype, _AMP_DTYPES)
        check_choice("scheduler_interval", scheduler_interval, ("step", "epoch"))
        check_choice("save", save, ("best", "every"))
        self.model = model
        self.optimizer = optimizer
        self.loss_fn = loss_fn
        self.device = torch.device(device) if device is not None else _device_of(model)
        self.amp_dtype = _AMP_DTYPES[amp_dtype] if use_amp else None
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.amp_dtype is torch.float16)
        self.scheduler = scheduler
        self.scheduler_interval = "epoch" if isinstance(scheduler, ReduceLROnPlateau) else scheduler_interval
        self.early_stopping_patience = early_stopping_patience
        self.early_stopping_metric = early_stopping_metric
        self.checkpoint_dir = None if checkpoint_dir is None else Path(checkpoint_dir)
        self.save = save
        self.seed = seed
        self.progress = progress
        self.history: dict[str, list[float]] = {}
        self._monitor = ("train_loss", False)  # name, higher is better
        # what the current epoch has produced so far
        self._logits: list[Tensor] = []
        self._labels: list[Tensor] = []
        self._running_loss: _RunningLoss | None = None
        if gradient_checkpointing:
            enable_gradient_checkpointing(model)
        model.to(self.device)
        if isinstance(loss_fn, nn.Module):  # its class weights are tensors on a device
            loss_fn.to(self.device)
        self.engine = self._make_engine(gradient_accumulation_steps, max_grad_norm or 0.0, penalty)

    def _make_engine(self, batches_per_step: int, max_norm: float, penalty: Callable[[], Tensor] | None) -> Engine:
        return Engine(
            self.model,
            self.optimizer,
            self._training_loss,
            device=self.device,
            batches_per_step=batches_per_step,
            penalty=penalty if penalty is not None else getattr(self.model, "penalty", None),
            scheduler=self.scheduler if self.scheduler_interval == "step" else None,
            autocast=self._autocast,
            update=_ScaledUpdate(self.optimizer, self.scaler, max_norm),
            seed=self.seed,
        )

    # ---- one epoch ----------------------------------------------------------------------------------------------

    @property
    def epoch(self) -> int:
        """Epochs finished."""
        return self.engine.epoch

    def advance(self, batches: Iterable[Any]) -> EpochEnd:
        """Train one epoch over `batches`.

        Raises:
            NonFiniteLossError: the loss became NaN or infinite; the model is useless from then on.
            OutOfMemoryError: the model and a batch do not fit into memory.
            ValueError: there are no batches.
        """
        self._logits, self._labels = [], []
        with closing(self._training_batches(batches)) as items:
            end = self.engine.advance(items)
        if self.scheduler_interval == "epoch" and not isinstance(self.scheduler, ReduceLROnPlateau | None):
            self.scheduler.step()
        return end

    def train_epoch(self, loader: Iterable[Any]) -> float:
        """Train one epoch and return its mean loss; raises what `advance` raises."""
        (loss,) = self.advance(loader).train_loss
        return loss

    @torch.no_grad()
    def evaluate(self, loader: Iterable[Any], metric_fn: MetricFunction | None = None) -> Evaluated:
        """Measure the model on a loader's items, without dropout and without gradients.

        Raises:
            NonFiniteLossError: the loss is NaN or infinite.
            OutOfMemoryError: the model and a batch do not fit into memory.
            ValueError: there are no batches.
        """
        self.model.eval()
        total = weight = 0.0
        logits: list[Tensor] = []
        labels: list[Tensor] = []
        with seeded(self.seed, "evaluation"), translate_memory_errors():
            for batch in (as_batch(item, self.device) for item in loader):
                logits.append(self.engine.logits(batch))
                labels.append(batch.targets)
                total += float(self.loss_fn(logits[-1], labels[-1]) * batch.weight)
                weight += float(batch.weight)
        if not logits:
            raise ValueError("the loader has no batches: it is empty, or an iterator that was used up before")
        if not math.isfinite(total):
            raise NonFiniteLossError
        z, y = torch.cat(logits).cpu().numpy(), torch.cat(labels).cpu().numpy()
        metric = None if metric_fn is None else float(metric_fn(y, z))
        return Evaluated(total / max(weight, 1.0), z, y, metric, _accuracy(logits, labels))

    def predict(self, inputs: Any) -> Tensor:  # noqa: ANN401
        """Float32 logits of one batch of inputs (on the trainer's device), without dropout and without gradients."""
        return self.engine.predict(inputs)

    def _training_loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """The loss of a batch. Stores the logits for the accuracy: counting once per epoch is cheaper."""
        loss = self.loss_fn(logits, targets)
        self._logits.append(logits.detach())
        self._labels.append(targets)
        if self._running_loss is not None:
            self._running_loss.add(loss.detach(), targets)
        return loss

    def _autocast(self) -> AbstractContextManager[Any]:
        return torch.autocast(self.device.type, self.amp_dtype, enabled=self.amp_dtype is not None)

    def _training_batches(self, loader: Iterable[Any]) -> Generator[Any]:
        """The loader's items in this epoch's order, with a progress bar."""
        _reseed_loader(loader, stable_seed(self.seed, "loader", self.epoch), self.epoch)
        with self._bar(loader, f"epoch {self.epoch + 1}") as bar:
            self._running_loss = None if bar.disable else _RunningLoss()
            for item in bar:
                yield item
                if self._running_loss is not None:
                    bar.set_postfix(train_loss=f"{self._running_loss.mean():.4f}", refresh=False)

    # ---- many epochs --------------------------------------------------------------------------------------------

    def train(
        self,
        train_loader: Iterable[Any],
        val_loader: Iterable[Any] | None = None,
        num_epochs: int = 10,
        metric_fn: MetricFunction | None = None,
        metric_name: str = "f1",
        *,
        higher_is_better: bool = True,
    ) -> dict[str, list[float]]:
        """Train until `num_epochs` are done or the monitored value has stopped improving.

        The model is left as it is after the last epoch; `load_checkpoint(best_checkpoint)` restores its best epoch.

        Args:
            train_loader: the training items, iterated once per epoch.
            val_loader: the items to evaluate after every epoch.
            num_epochs: total number, including those before a checkpoint that was loaded.
            metric_fn: (labels, logits) of all validation items to a number.
            metric_name: the metric's name in the history.
            higher_is_better: the direction of the metric; lower losses and higher accuracies are always better.

        Returns:
            By name, one value per epoch: "train_loss", "train_acc" and "learning_rate"; with a `val_loader` also
            "val_loss", "val_acc" and the metric. An accuracy is the share (0 to 1) of the labelled items whose
            predicted class (positive from logit 0 on) is their label; NaN if it is not defined.

        Raises:
            ConfigError: the monitored name is not measured, or the metric has no items to be measured on.
            NonFiniteLossError: the loss became NaN or infinite.
            OutOfMemoryError: the model and a batch do not fit into memory.
            ValueError: a loader has no batches.
        """
        metric = None if metric_fn is None else metric_name
        self._monitor = self._monitored(metric, higher_is_better, validates=val_loader is not None)
        with self._bar(None, "training", total=num_epochs, initial=self.epoch) as bar:
            while self.epoch < num_epochs and not self._stale():
                measured = {
                    "train_loss": self.train_epoch(train_loader),
                    "train_acc": _accuracy(self._logits, self._labels),
                }
                if val_loader is not None:
                    evaluated = self.evaluate(val_loader, metric_fn)
                    measured |= {"val_loss": evaluated.loss, "val_acc": evaluated.accuracy}
                    if evaluated.metric is not None:
                        measured[metric_name] = evaluated.metric
                self._record(measured)
                bar.update()
                bar.set_postfix({name: f"{value:.4f}" for name, value in measured.items()})
        return copy.deepcopy(self.history)

    @property
    def best_epoch(self) -> int:
        """The epoch (from 1) whose monitored value is best so far; 0 before `train` has measured any."""
        name, higher = self._monitor
        values = self.history.get(name, [])
        return self.epoch - len(values) + 1 + best_index(values, higher_is_better=higher) if values else 0

    @property
    def best_checkpoint(self) -> Path | None:
        """The file of the best epoch's checkpoint; None without `checkpoint_dir` or before the first epoch."""
        if self.checkpoint_dir is None or not self.best_epoch:
            return None
        return self.checkpoint_dir / self._checkpoint_name(self.best_epoch)

    def _checkpoint_name(self, epoch: int) -> str:
        return "best.safetensors" if self.save == "best" else f"epoch-{epoch:04d}.safetensors"

    def _monitored(self, metric: str | None, higher_is_better: bool, *, validates: bool) -> tuple[str, bool]:
        """The monitored name, and whether higher is better."""
        if metric is not None and (not validates or metric in {*_LOSSES, *_ACCURACIES, "learning_rate"}):
            raise ConfigError(
                f"the metric '{metric}' needs a val_loader to be measured on, and a name other than that of a loss, an "
                "accuracy or the learning rate"
            )
        losses, accuracies = (_LOSSES, _ACCURACIES) if validates else (_LOSSES[:1], _ACCURACIES[:1])
        name = self.early_stopping_metric or (losses[-1] if metric is None else metric)
        name = losses[-1] if name == "loss" else name
        measured = [*losses, *accuracies, *([] if metric is None else [metric])]
        if name not in measured:
            raise ConfigError(f"early_stopping_metric is '{name}', but the measured values are {', '.join(measured)}")
        if self.history and self.history.keys() != {*measured, "learning_rate"}:
            raise ConfigError(
                f"this run has measured {', '.join(self.history)} so far; continue with the same metric and loaders"
            )
        return name, name in _ACCURACIES or (higher_is_better and name not in _LOSSES)

    def _stale(self) -> bool:
        name, higher = self._monitor
        values = self.history.get(name, [])
        patience = self.early_stopping_patience
        return patience is not None and is_stale(values, patience, higher_is_better=higher)

    def _record(self, measured: Mapping[str, float]) -> None:
        """Add an epoch to the history, advance a plateau schedule, save a checkpoint."""
        rate = float(self.optimizer.param_groups[0]["lr"])
        for name, value in {**measured, "learning_rate": rate}.items():
            self.history.setdefault(name, []).append(value)
        if isinstance(self.scheduler, ReduceLROnPlateau):
            self.scheduler.step(measured[self._monitor[0]])
        if self.checkpoint_dir is not None and (self.save == "every" or self.best_epoch == self.epoch):
            self.save_checkpoint(self.checkpoint_dir / self._checkpoint_name(self.epoch))

    def _bar(self, batches: Iterable[Any] | None, title: str, **options: int) -> tqdm[Any]:
        """A progress bar. It is hidden if `progress` is false, and by default if standard error is not a terminal."""
        hidden = None if self.progress is None else not self.progress
        return tqdm(batches, desc=title, disable=hidden, leave=batches is None, **options)

    # ---- checkpoints --------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """A snapshot between two epochs, from which `load_state_dict` continues bit for bit.

        It holds no state of random generators: every epoch seeds them.
        """
        return copy.deepcopy(self._state())

    def _state(self) -> dict[str, Any]:
        return {
            **self.engine.state_dict(),
            "scheduler": None if self.scheduler is None else self.scheduler.state_dict(),
            "scaler": self.scaler.state_dict(),
            "history": self.history,
            "monitor": self._monitor,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore a state returned by `state_dict`."""
        self.engine.load_state_dict(state)
        if self.scheduler is not None:
            self.scheduler.load_state_dict(state["scheduler"])
        self.scaler.load_state_dict(state["scaler"])
        self.history = copy.deepcopy(state["history"])
        self._monitor = state["monitor"]

    def save_checkpoint(self, path: Path | str) -> None:
        """Write the complete state to one file, atomically."""
        save_state(path, self._state())

    def load_checkpoint(self, path: Path | str) -> None:
        """Continue from a file of `save_checkpoint`, in this process or another, bit for bit.

        Raises:
            CheckpointError: the file is missing, damaged, or of another model, optimizer or schedule.
        """
        state = load_state(path)
        try:
            self.load_state_dict(state)
        except (RuntimeError, ValueError, LookupError, TypeError, AttributeError) as error:
            raise CheckpointError(
                f"the checkpoint {path} is of another model, optimizer or schedule: {error}"
            ) from error


class _ScaledUpdate:
    """An update with gradient scaling (for float16) and clipping by the norm of all gradients together."""

    def __init__(self, optimizer: Optimizer, scaler: torch.amp.GradScaler, max_norm: float) -> None:
        self._optimizer = optimizer
        self._scaler = scaler
        self._max_norm = max_norm
        self._parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]

    def backward(self, loss: Tensor) -> None:
        """Add the scaled gradient of a scalar loss to the parameters' gradients."""
        self._scaler.scale(loss).backward()

    def step(self) -> bool:
        """Unscale, clip, step; False if float16 overflowed: the scale was halved, and the weights did not change."""
        if self._max_norm > 0:
            self._scaler.unscale_(self._optimizer)
            nn.utils.clip_grad_norm_(self._parameters, self._max_norm)
        scale = self._scaler.get_scale()
        self._scaler.step(self._optimizer)
        self._scaler.update()
        return self._scaler.get_scale() >= scale


class _RunningLoss:
    """Mean loss of an epoch so far, over the labelled items; for a progress bar."""

    def __init__(self) -> None:
        self._total = self._items = 0.0

    def add(self, loss: Tensor, targets: Tensor) -> None:
        items = float((targets >= 0).sum())
        self._total += float(loss.mean()) * items
        self._items += items

    def mean(self) -> float:
        return self._total / max(self._items, 1.0)


def _accuracy(logits: Sequence[Tensor], labels: Sequence[Tensor]) -> float:
    """Share of the labelled items of all batches whose predicted class is their label.

    NaN without labelled items, and for logits of another shape than the labels (one logit per class).
    """
    if any(z.shape != y.shape for z, y in zip(logits, labels, strict=True)):
        return math.nan
    z, y = (torch.cat([batch.flatten() for batch in batches]) for batches in (logits, labels))
    labelled = int((y >= 0).sum())
    correct = int(((z >= 0).to(y.dtype) == y).sum())
    return correct / labelled if labelled else math.nan


def _check_minimum(name: str, value: int | None, minimum: int) -> None:
    if value is not None and value < minimum:
        raise ConfigError(f"{name} is {value!r}, but must be {minimum} or more")


def _device_of(model: nn.Module) -> torch.device:
    parameter = next(model.parameters(), None)
    return torch.device("cpu") if parameter is None else parameter.device


def _reseed_loader(loader: Any, seed: int, epoch: int) -> None:  # noqa: ANN401
    """Make the order of a loader's batches depend on the epoch alone, even if it has its own generators."""
    sampler = getattr(loader, "sampler", None)
    for source in (loader, sampler, getattr(loader, "batch_sampler", None)):
        generator = getattr(source, "generator", None)
        if isinstance(generator, torch.Generator):
            generator.manual_seed(seed)
    set_epoch = getattr(sampler, "set_epoch", None)  # torch's DistributedSampler, and samplers with its interface
    if set_epoch is not None:
        set_epoch(epoch)
