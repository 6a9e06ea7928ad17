"""The training loop of the project: one model, one epoch at a time, with two faces.

`advance` trains one epoch and says what is known when it has ended: the stream that cross-validation stands on.
`train` is a loop over the same `advance` for people who train one model by hand, with validation, early stopping,
checkpoints and a progress bar. The trainer knows nothing of folds, files of data or studies. A loss may have any
shape: a single model's loss is a scalar, the loss of folds stacked into one model is a vector with one entry per
fold, and the arithmetic is the same.

Every epoch seeds the global generators (and the loader's own) from (seed, epoch) and restores them afterwards, so a
run that was interrupted after any epoch goes on to the same bits, in whatever process.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, ReduceLROnPlateau
from tqdm import tqdm

from ..errors import CheckpointError, ConfigError, NonFiniteLossError, OutOfMemoryError
from ..seeding import seeded, stable_seed
from ..training.batches import Batch, as_batch, logits_of
from ..training.state_file import load_state, save_state
from ..training.stopping import best_index, is_stale

MetricFunction = Callable[[npt.NDArray[Any], npt.NDArray[np.float32]], float]
"""(labels, logits) of all validation items to a number, labels first as in `core.metrics` and scikit-learn."""

_AMP_DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16}
_LOSSES = ("train_loss", "val_loss")


@dataclass(frozen=True)
class EpochEnd:
    """What is known when an epoch has ended: epochs finished so far, and the mean training loss of each fold."""

    epoch: int
    train_loss: tuple[float, ...]


@dataclass(frozen=True, eq=False)
class Evaluated:
    """A model on a loader's items, in the loader's order."""

    loss: float
    """Mean over the labelled items."""
    logits: npt.NDArray[np.float32]
    labels: npt.NDArray[Any]
    metric: float | None


def linear_warmup(optimizer: Optimizer, steps: int) -> LambdaLR:
    """A schedule that raises the learning rate linearly over the first `steps` optimizer steps, then keeps it."""
    return LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / (steps + 1)))


def _as_it_is(inputs: Any) -> Any:  # noqa: ANN401
    return inputs


class Trainer:
    """Trains a model epoch by epoch.

    Args:
        model: called with a batch's inputs, returns logits (`core.training.batches` has the protocol).
        optimizer: over the model's parameters.
        loss_fn: (logits in float32, targets) to the *mean* loss over the batch's labelled items, of any shape.
        device: where model, loss and batches are moved; by default where the model is.
        gradient_accumulation_steps: batches per optimizer step. The gradient of a step is that of the mean over all
            items of its batches, so it equals one large batch, also in a last, shorter window.
        use_amp: forward passes under autocast.
        amp_dtype: "bfloat16", or "float16" with gradient scaling.
        max_grad_norm: largest gradient norm; 0 or None switches clipping off.
        penalty: added to the loss once per optimizer step, of the loss's shape; by default the model's own `penalty`
            method if it has one.
        scheduler: any torch schedule. `ReduceLROnPlateau` follows the monitored value of `train`.
        scheduler_interval: whether it advances after every optimizer "step" or "epoch".
        early_stopping_patience: `train` ends when the monitored value has not improved for this many epochs.
        early_stopping_metric: what is monitored: "train_loss", "val_loss" ("loss" for short) or the metric's name. By
            default the metric if there is one, else the validation loss, else the training loss.
        checkpoint_dir: where `train` keeps checkpoints.
        save: the "best" epoch only, as best.safetensors, or "every" epoch, as epoch-0001.safetensors and so on.
        gradient_checkpointing: ask the model (a Hugging Face transformer) to recompute instead of keeping activations.
        read: makes the model's inputs of a batch's, each time the model is called; what is large is then in memory for
            one batch at a time, not for a whole window.
        seed: of dropout and of the order of the batches.
        progress: show bars; by default only when standard error is a terminal.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        loss_fn: Callable[[Tensor, Tensor], Tensor],
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
        read: Callable[[Any], Any] = _as_it_is,
        seed: int = 0,
        progress: bool | None = None,
    ) -> None:
        _check("gradient_accumulation_steps", gradient_accumulation_steps, 1)
        _check("early_stopping_patience", early_stopping_patience, 1)
        _choose("amp_dtype", amp_dtype, _AMP_DTYPES)
        _choose("scheduler_interval", scheduler_interval, ("step", "epoch"))
        _choose("save", save, ("best", "every"))
        self.model = model
        self.optimizer = optimizer
        self.loss_fn = loss_fn
        self.device = torch.device(device) if device is not None else _device_of(model)
        self.gradient_accumulation_steps = gradient_accumulation_steps
        self.amp_dtype = _AMP_DTYPES[amp_dtype] if use_amp else None
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.amp_dtype is torch.float16)
        self.max_grad_norm = max_grad_norm or 0.0
        self.penalty = penalty if penalty is not None else getattr(model, "penalty", None)
        self.scheduler = scheduler
        self.scheduler_interval = "epoch" if isinstance(scheduler, ReduceLROnPlateau) else scheduler_interval
        self.early_stopping_patience = early_stopping_patience
        self.early_stopping_metric = early_stopping_metric
        self.checkpoint_dir = None if checkpoint_dir is None else Path(checkpoint_dir)
        self.save = save
        self.read = read
        self.seed = seed
        self.progress = progress
        self.epoch = 0
        self.history: dict[str, list[float]] = {}
        self._monitor = ("train_loss", False)  # name, higher is better
        self._parameters = [p for group in optimizer.param_groups for p in group["params"]]
        if gradient_checkpointing:
            _enable_gradient_checkpointing(model)
        model.to(self.device)
        if isinstance(loss_fn, nn.Module):  # its class weights are tensors, too
            loss_fn.to(self.device)

    # ---- the stream ---------------------------------------------------------------------------------------------

    def advance(self, batches: Iterable[Any]) -> EpochEnd:
        """Train one epoch over `batches`.

        Raises:
            NonFiniteLossError: the loss became NaN or infinite; the model is then of no use.
            OutOfMemoryError: model and batch do not fit.
        """
        self.model.train()
        with seeded(self.seed, "epoch", self.epoch), _memory_errors_named():
            _reseed_loader(batches, stable_seed(self.seed, "loader", self.epoch), self.epoch)
            mean = self._epoch(batches)
        losses = tuple(mean.reshape(-1).tolist())  # the epoch's only wait for the device
        if not all(map(_finite, losses)):
            raise NonFiniteLossError
        self.epoch += 1
        if self.scheduler_interval == "epoch" and not isinstance(self.scheduler, ReduceLROnPlateau | None):
            self.scheduler.step()
        return EpochEnd(self.epoch, losses)

    def _epoch(self, batches: Iterable[Any]) -> Tensor:
        """Go through the batches once; returns their mean loss."""
        total, weight = torch.zeros((), device=self.device), torch.zeros((), device=self.device)
        steps = 0
        with self._bar(batches, f"epoch {self.epoch + 1}") as bar:
            items = (as_batch(item, self.device) for item in bar)
            for window in windows(items, self.gradient_accumulation_steps):
                window_weight = torch.stack([batch.weight for batch in window]).sum(0)
                mean = self._step(window, window_weight)
                total = total + mean * window_weight
                weight = weight + window_weight
                steps += 1
                if not bar.disable:
                    bar.set_postfix(train_loss=f"{float((total / weight.clamp(min=1)).mean()):.4f}", refresh=False)
        if steps == 0:
            raise ValueError("the loader has no batches: it is empty, or an iterator that was used up before")
        return total / weight.clamp(min=1)

    def _step(self, window: Sequence[Batch], window_weight: Tensor) -> Tensor:
        """One optimizer step over the window; returns its mean loss, without the penalty."""
        self.optimizer.zero_grad(set_to_none=True)
        mean = torch.zeros_like(window_weight, dtype=torch.float32)
        for batch in window:
            share = batch.weight / window_weight.clamp(min=1)
            loss = self.loss_fn(self._logits(batch), batch.targets) * share
            mean += loss.detach()
            if self.penalty is not None and batch is window[-1]:
                loss = loss + self.penalty()
            self.scaler.scale(loss.sum()).backward()
        self._update()
        return mean

    def _update(self) -> None:
        """Clip, step the optimizer, and the schedule with it."""
        if self.max_grad_norm > 0:
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self._parameters, self.max_grad_norm)
        scale = self.scaler.get_scale()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        skipped = self.scaler.get_scale() < scale  # float16 overflowed: the scale was halved, nothing was learned
        if self.scheduler is not None and self.scheduler_interval == "step" and not skipped:
            self.scheduler.step()

    def _logits(self, batch: Batch) -> Tensor:
        with torch.autocast(self.device.type, self.amp_dtype, enabled=self.amp_dtype is not None):
            logits = logits_of(self.model, self.read(batch.inputs))
        if logits.shape == (*batch.targets.shape, 1):  # one logit a row, as a transformer with one label has it
            logits = logits.squeeze(-1)
        return logits.float()  # a loss in half precision would lose what a rare positive has to say

    @torch.no_grad()
    def predict(self, inputs: Any) -> Tensor:  # noqa: ANN401
        """Logits of one batch of inputs (on the trainer's device), without dropout and without gradients."""
        self.model.eval()
        with _memory_errors_named(), torch.autocast(self.device.type, self.amp_dtype, enabled=bool(self.amp_dtype)):
            return logits_of(self.model, self.read(inputs)).float()

    # ---- by hand ------------------------------------------------------------------------------------------------

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

        The model is left as it is after the last epoch; `load_checkpoint(best_checkpoint)` takes it back to its best.

        Args:
            train_loader: what is trained on, once an epoch.
            val_loader: what is evaluated after every epoch.
            num_epochs: in all, those before a checkpoint that was loaded included.
            metric_fn: (labels, logits) of all validation items to a number.
            metric_name: what the metric is called in the history.
            higher_is_better: the direction of the metric; losses are always better when lower.

        Returns:
            By name, one value an epoch: "train_loss", "val_loss" and the metric as far as they are measured, and
            "learning_rate".

        Raises:
            ConfigError: the monitored name is not measured, or a metric has nothing to be measured on.
            NonFiniteLossError: the loss became NaN or infinite.
            OutOfMemoryError: model and batch do not fit.
        """
        metric = None if metric_fn is None else metric_name
        self._monitor = self._monitored(metric, higher_is_better, validates=val_loader is not None)
        with self._bar(None, "training", total=num_epochs, initial=self.epoch) as bar:
            while self.epoch < num_epochs and not self._stale():
                measured = {"train_loss": self.train_epoch(train_loader)}
                if val_loader is not None:
                    found = self.evaluate(val_loader, metric_fn)
                    measured["val_loss"] = found.loss
                    if found.metric is not None:
                        measured[metric_name] = found.metric
                self._record(measured)
                bar.update()
                bar.set_postfix({name: f"{value:.4f}" for name, value in measured.items()})
        return copy.deepcopy(self.history)

    def train_epoch(self, loader: Iterable[Any]) -> float:
        """Train one epoch; returns its mean loss."""
        (loss,) = self.advance(loader).train_loss
        return loss

    @torch.no_grad()
    def evaluate(self, loader: Iterable[Any], metric_fn: MetricFunction | None = None) -> Evaluated:
        """Mean loss, logits and the metric on a loader's items, without dropout and without gradients.

        Raises:
            NonFiniteLossError: the loss is NaN or infinite.
            OutOfMemoryError: model and batch do not fit.
        """
        self.model.eval()
        total = weight = 0.0
        logits: list[Tensor] = []
        labels: list[Tensor] = []
        with seeded(self.seed, "evaluation"), _memory_errors_named():
            for batch in (as_batch(item, self.device) for item in loader):
                logits.append(self._logits(batch))
                labels.append(batch.targets)
                total += float(self.loss_fn(logits[-1], labels[-1]) * batch.weight)
                weight += float(batch.weight)
        if not logits:
            raise ValueError("the loader has no batches: it is empty, or an iterator that was used up before")
        if not _finite(total):
            raise NonFiniteLossError
        said, true = torch.cat(logits).cpu().numpy(), torch.cat(labels).cpu().numpy()
        return Evaluated(
            total / max(weight, 1.0), said, true, None if metric_fn is None else float(metric_fn(true, said))
        )

    @property
    def best_epoch(self) -> int:
        """The epoch (from 1) whose monitored value is best so far; 0 before `train` has measured any."""
        name, higher = self._monitor
        values = self.history.get(name, [])
        return self.epoch - len(values) + 1 + best_index(values, higher_is_better=higher) if values else 0

    @property
    def best_checkpoint(self) -> Path | None:
        """Where the best epoch's checkpoint is, if checkpoints are kept."""
        if self.checkpoint_dir is None or not self.best_epoch:
            return None
        return self.checkpoint_dir / self._checkpoint_name(self.best_epoch)

    def _checkpoint_name(self, epoch: int) -> str:
        return "best.safetensors" if self.save == "best" else f"epoch-{epoch:04d}.safetensors"

    def _monitored(self, metric: str | None, higher_is_better: bool, *, validates: bool) -> tuple[str, bool]:
        """What is monitored, and whether higher is better."""
        if metric is not None and (not validates or metric in _LOSSES or metric == "learning_rate"):
            raise ConfigError(
                f"the metric '{metric}' needs a val_loader to be measured on, and a name other than a loss's"
            )
        measured = [*_LOSSES[: 1 + validates], *([] if metric is None else [metric])]
        name = self.early_stopping_metric or measured[-1]
        name = measured[int(validates)] if name == "loss" else name
        if name not in measured:
            raise ConfigError(f"early_stopping_metric is '{name}', but what is measured is {', '.join(measured)}")
        if self.history and self.history.keys() != {*measured, "learning_rate"}:
            raise ConfigError(
                f"this run has measured {', '.join(self.history)} so far; go on with the same metric and loaders"
            )
        return name, higher_is_better and name not in _LOSSES

    def _stale(self) -> bool:
        name, higher = self._monitor
        values = self.history.get(name, [])
        patience = self.early_stopping_patience
        return patience is not None and is_stale(values, patience, higher_is_better=higher)

    def _record(self, measured: Mapping[str, float]) -> None:
        """Add an epoch to the history, let a plateau schedule see it, keep a checkpoint."""
        rate = float(self.optimizer.param_groups[0]["lr"])
        for name, value in {**measured, "learning_rate": rate}.items():
            self.history.setdefault(name, []).append(value)
        if isinstance(self.scheduler, ReduceLROnPlateau):
            self.scheduler.step(measured[self._monitor[0]])
        if self.checkpoint_dir is not None and (self.save == "every" or self.best_epoch == self.epoch):
            self.save_checkpoint(self.checkpoint_dir / self._checkpoint_name(self.epoch))

    def _bar(self, batches: Iterable[Any] | None, title: str, **options: int) -> tqdm[Any]:
        """A progress bar; silent unless asked for, or by default unless standard error is a terminal."""
        silent = None if self.progress is None else not self.progress
        return tqdm(batches, desc=title, disable=silent, leave=batches is None, **options)

    # ---- states -------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """A snapshot of everything `load_state_dict` needs to go on as if nothing had happened.

        There is no state of random generators in it: each epoch seeds its own.
        """
        return copy.deepcopy(self._state())

    def _state(self) -> dict[str, Any]:
        return {
            "epoch": self.epoch,
            "model": dict(self.model.state_dict()),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": None if self.scheduler is None else self.scheduler.state_dict(),
            "scaler": self.scaler.state_dict(),
            "history": self.history,
            "monitor": self._monitor,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `state`."""
        self.epoch = state["epoch"]
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.scheduler is not None:
            self.scheduler.load_state_dict(state["scheduler"])
        self.scaler.load_state_dict(state["scaler"])
        self.history = copy.deepcopy(state["history"])
        self._monitor = state["monitor"]

    def save_checkpoint(self, path: Path | str) -> None:
        """Write everything that a resumed run needs to one file, at once or not at all."""
        save_state(path, self._state())

    def load_checkpoint(self, path: Path | str) -> None:
        """Go on from what `save_checkpoint` wrote, in this process or another, to the same bits.

        Raises:
            CheckpointError: there is no such file, it is damaged, or it is of another model or optimizer.
        """
        state = load_state(path)
        try:
            self.load_state_dict(state)
        except (RuntimeError, ValueError, KeyError, TypeError) as error:
            raise CheckpointError(
                f"the checkpoint {path} is of another model, optimizer or schedule: {error}"
            ) from error


def windows(batches: Iterable[Batch], size: int) -> Iterator[list[Batch]]:
    """Cut `batches` into lists of `size`; the last may be shorter."""
    iterator = iter(batches)
    while window := list(islice(iterator, size)):
        yield window


def _finite(value: float) -> bool:
    return value - value == 0.0


def _check(name: str, value: int | None, least: int) -> None:
    if value is not None and value < least:
        raise ConfigError(f"{name} is {value!r}, but must be {least} or more")


def _choose(name: str, value: str, allowed: Collection[str]) -> None:
    if value not in allowed:
        raise ConfigError(f"{name} is {value!r}, but must be {' or '.join(allowed)}")


def _device_of(model: nn.Module) -> torch.device:
    parameter = next(model.parameters(), None)
    return torch.device("cpu") if parameter is None else parameter.device


def _enable_gradient_checkpointing(model: nn.Module) -> None:
    # transformers renames it in version 6
    enable = getattr(model, "activation_checkpointing_enable", getattr(model, "gradient_checkpointing_enable", None))
    if enable is None:
        raise ConfigError(f"gradient_checkpointing is on, but {type(model).__name__} cannot do it; transformers can")
    enable()


def _reseed_loader(loader: Any, seed: int, epoch: int) -> None:  # noqa: ANN401
    """Make the order of a loader's batches follow from the epoch, also where it has generators of its own."""
    sampler = getattr(loader, "sampler", None)
    for holder in (loader, sampler, getattr(loader, "batch_sampler", None)):
        generator = getattr(holder, "generator", None)
        if isinstance(generator, torch.Generator):
            generator.manual_seed(seed)
    set_epoch = getattr(sampler, "set_epoch", None)  # torch's DistributedSampler, and who follows its manner
    if set_epoch is not None:
        set_epoch(epoch)


@contextmanager
def _memory_errors_named() -> Iterator[None]:
    """Whatever the device calls it, running out of memory is an `OutOfMemoryError`."""
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        # torch's CPU allocator has no error class of its own
        if isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error):
            reason = str(error).partition("\n")[0]
            raise OutOfMemoryError(f"{OutOfMemoryError.__doc__} ({reason})") from error
        raise
