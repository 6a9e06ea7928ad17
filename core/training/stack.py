"""The folds of a stage: they advance together, and no fold depends on another.

A `FoldStack` trains its folds as one batched model; a `FoldRow` holds one stack per fold, for models that cannot be
batched over folds; a `SolvedStack` solves its folds. All have the interface `Stack`, and `make_stack` chooses. The
batches, initial weights and dropout of a fold do not depend on the other folds of its stack. Folds therefore give the
same results whether they train together, one after the other, or after an interruption (bit for bit where the
arithmetic is the same).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ..config import CandidateConfig
from ..errors import NonFiniteLossError
from ..features.views import Features
from ..losses import make_loss
from ..models import build_model, fuses_folds, is_solved
from ..seeding import numpy_generator, stable_seed
from ..splits import Folds
from .batches import Batch
from .engine import Engine, EpochEnd
from .optimizer import linear_warmup, make_optimizer
from .solved import SolvedStack

Posts = npt.NDArray[np.int64]
FoldLogits = list[npt.NDArray[np.float32]]
"""One array `[posts, criteria]` per fold."""

LENGTH_JITTER = 0.03
"""Batches hold posts of similar length, so that there is little padding. Before posts are sorted, their log length gets
Gaussian noise of this standard deviation, so that every epoch groups them differently."""
EVALUATION_POSTS = 64
"""Posts per batch without gradients, which leaves memory for four times as many posts as in training."""


class Stack(Protocol):
    """Some folds in training, as the cross-validation drives them."""

    fold_ids: tuple[int, ...]

    warmup_epochs: int
    """Number of epochs at the beginning in which a warm-up slows learning down."""
    max_epochs: int | None
    """The epoch after which nothing changes any more: 1 for solved models. None: there is none."""

    @property
    def epoch(self) -> int:
        """Epochs finished."""

    def advance(self) -> EpochEnd:
        """Train every fold for one epoch."""

    def validate(self) -> tuple[FoldLogits, tuple[float, ...]]:
        """Validation logits `[posts, criteria]` and mean validation loss of each fold."""

    def predict(self, posts: Sequence[Posts]) -> FoldLogits:
        """Logits `[posts, criteria]` of each fold for its own list of posts."""

    def state_dict(self) -> dict[str, Any]:
        """A snapshot from which `load_state_dict` continues bit for bit."""

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a state of `state_dict`."""


def make_stack(
    features: Features,
    folds: Folds,
    fold_ids: Sequence[int],
    candidate: CandidateConfig,
    *,
    seed: int,
    device: torch.device | str = "cpu",
    fuse: bool = True,
) -> Stack:
    """Build the folds `fold_ids` as one batched model if the model allows it, else as a row of models.

    A model that is solved rather than trained gets a `SolvedStack`.

    The arguments are those of `FoldStack`. Without `fuse` the result is always a row: slower, and the reference that
    fused folds are compared with.
    """
    if is_solved(candidate.model):
        return SolvedStack(features, folds, fold_ids, candidate, seed=seed, device=device)
    if fuse and fuses_folds(candidate.model):
        return FoldStack(features, folds, fold_ids, candidate, seed=seed, device=device)
    return FoldRow([FoldStack(features, folds, [fold], candidate, seed=seed, device=device) for fold in fold_ids])


class FoldStack:
    """Some folds in training, as one batched model.

    Args:
        features: what the model trains on, with the labels.
        folds: the training and the validation posts of every fold.
        fold_ids: numbers of the folds in this stack.
        candidate: model, training and loss.
        seed: seed of weights, batches and dropout.
        device: the device of the training.
        max_posts_per_pass: posts of a fold that fit into memory in one forward and backward pass; default: the
            model's own limit.
    """

    max_epochs: int | None = None

    def __init__(
        self,
        features: Features,
        folds: Folds,
        fold_ids: Sequence[int],
        candidate: CandidateConfig,
        *,
        seed: int,
        device: torch.device | str = "cpu",
        max_posts_per_pass: int | None = None,
    ) -> None:
        training = candidate.training
        self.fold_ids = tuple(fold_ids)
        self.seed = seed
        self._train = [folds.train(fold) for fold in self.fold_ids]
        self._validation = [folds.validation(fold) for fold in self.fold_ids]
        # The largest fold of all, in this stack or not, sets the shape of an epoch: the number of steps of a fold does
        # not depend on its stack, and no fold has a short last batch.
        largest = max(len(folds.train(fold)) for fold in range(folds.count))
        self.steps = math.ceil(largest / (training.batch_size * training.accumulation_steps))
        self.width = math.ceil(largest / self.steps)
        self._labels = torch.tensor(features.labels, device=device)
        self.model, self.inputs = build_model(
            candidate.model, features, self._train, folds=self.fold_ids, seed=seed, device=device
        )
        self.warmup_epochs = max(math.ceil(training.warmup_steps / self.steps), self.model.warmup_epochs)
        self._loss = make_loss(candidate.loss, [self._labels[posts] for posts in self._train])
        # An optimizer step takes all its posts in one pass: the same gradient as batch after batch, in a fraction of
        # the operations. Only a step that does not fit into memory is cut into micro-batches, whose gradients add up.
        self._max_posts = max_posts_per_pass or self.inputs.max_posts_per_pass
        self.micro_batches = math.ceil(self.width / (self._max_posts or self.width))
        optimizer = make_optimizer(self.model, training)
        self.engine = Engine(
            self.model,
            optimizer,
            self.mean_loss,
            device=torch.device(device),
            batches_per_step=self.micro_batches,
            penalty=self.model.penalty,
            scheduler=linear_warmup(optimizer, training.warmup_steps) if training.warmup_steps else None,
            gather=self.inputs.batch,
            seed=stable_seed(seed, "trainer", *self.fold_ids),
        )

    @property
    def epoch(self) -> int:
        """Epochs finished."""
        return self.engine.epoch

    def advance(self) -> EpochEnd:
        """Train every fold for one epoch.

        Raises:
            NonFiniteLossError: the loss of a fold became NaN or infinite.
            OutOfMemoryError: the model and a batch do not fit into memory.
        """
        self.model.reseed([(self.seed, "dropout", fold, self.epoch) for fold in self.fold_ids])
        return self.engine.advance(self.batches())

    def validate(self) -> tuple[FoldLogits, tuple[float, ...]]:
        """Validation logits `[posts, criteria]` and mean validation loss of each fold.

        Raises:
            NonFiniteLossError: the last step of the epoch left weights whose predictions are NaN or infinite.
        """
        logits = self.predict(self._validation)
        if not all(np.isfinite(fold_logits).all() for fold_logits in logits):
            raise NonFiniteLossError
        padded = _pad(logits, np.nan)
        targets = _pad([self._labels[posts].cpu().numpy() for posts in self._validation], -1)
        device = self._labels.device
        loss = self.mean_loss(torch.from_numpy(np.nan_to_num(padded)).to(device), torch.from_numpy(targets).to(device))
        return logits, tuple(float(value) for value in loss)

    def predict(self, posts: Sequence[Posts]) -> FoldLogits:
        """Logits `[posts, criteria]` of each fold for its own list of posts."""
        length = max(map(len, posts))
        orders = [np.argsort(self.inputs.lengths[fold_posts], kind="stable") for fold_posts in posts]
        # a short list is padded with its longest post; the padding is cut off below
        rows = np.stack(
            [
                np.pad(fold_posts[order], (0, length - len(fold_posts)), mode="edge")
                for fold_posts, order in zip(posts, orders, strict=True)
            ]
        )
        width = min(EVALUATION_POSTS, 4 * (self._max_posts or EVALUATION_POSTS))
        columns = [self.engine.predict(rows[:, start : start + width]) for start in range(0, length, width)]
        by_length = torch.cat(columns, dim=1).cpu().numpy()
        result = []
        for fold_logits, order in zip(by_length, orders, strict=True):
            logits = np.empty((len(order), by_length.shape[-1]), dtype=np.float32)
            logits[order] = fold_logits[: len(order)]
            result.append(logits)
        return result

    def state_dict(self) -> dict[str, Any]:
        """A snapshot from which `load_state_dict` continues bit for bit."""
        return copy.deepcopy(self.engine.state_dict())

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a state of `state_dict`."""
        self.engine.load_state_dict(state)

    def mean_loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Mean loss of each fold `[folds]` over its labelled pairs; a target of -1 is unlabelled or padding."""
        labelled = targets >= 0
        elementwise = self._loss(logits, targets.clamp(min=0).to(logits.dtype)) * labelled
        return elementwise.sum((1, 2)) / labelled.sum((1, 2)).clamp(min=1)

    def batches(self) -> Iterator[Batch]:
        """The micro-batches of the coming epoch in order; inputs are numbers of posts `[folds, width]`."""
        plans = np.stack([self._plan(fold, posts) for fold, posts in zip(self.fold_ids, self._train, strict=True)])
        # Padding points at the first post of its own step, and does not count. A small fold may have steps without a
        # post: their padding points at a post of its first step.
        first = np.where(plans[:, :, :1] >= 0, plans[:, :, :1], plans[:, :1, :1])
        padded = np.where(plans >= 0, plans, first)
        targets = self._labels[torch.from_numpy(padded).to(self._labels.device, non_blocking=True)]
        targets[torch.from_numpy(plans < 0).to(self._labels.device, non_blocking=True)] = -1
        labelled = (targets >= 0).sum(3).float()
        for step in numpy_generator(self.seed, "steps", self.epoch).permutation(self.steps):
            for posts, micro_targets, weight in zip(
                np.array_split(padded[:, step], self.micro_batches, axis=1),
                targets[:, step].tensor_split(self.micro_batches, dim=1),
                labelled[:, step].tensor_split(self.micro_batches, dim=1),
                strict=True,
            ):
                yield Batch(posts, micro_targets, weight.sum(1))

    def _plan(self, fold: int, posts: Posts) -> npt.NDArray[np.int64]:
        """The posts of every step `[steps, width]` of a fold's coming epoch; -1 is padding."""
        generator = numpy_generator(self.seed, "batches", fold, self.epoch)
        jittered = np.log(self.inputs.lengths[posts]) + LENGTH_JITTER * generator.standard_normal(len(posts))
        by_length = posts[np.argsort(jittered, kind="stable")]
        plan = np.full((self.steps, self.width), -1, dtype=np.int64)
        for step, step_posts in enumerate(np.array_split(by_length, self.steps)):
            plan[step, : len(step_posts)] = step_posts
        return plan


class FoldRow:
    """Folds of a model that cannot be batched over folds: one stack per fold, trained one after the other.

    Args:
        stacks: stacks of one fold that have finished the same number of epochs.
    """

    max_epochs: int | None = None

    def __init__(self, stacks: Sequence[FoldStack]) -> None:
        self.stacks = tuple(stacks)
        self.fold_ids = tuple(fold for stack in self.stacks for fold in stack.fold_ids)
        self.warmup_epochs = self.stacks[0].warmup_epochs

    @property
    def epoch(self) -> int:
        """Epochs finished."""
        return self.stacks[0].epoch

    def advance(self) -> EpochEnd:
        """Train every fold for one epoch, in order."""
        ends = [stack.advance() for stack in self.stacks]
        return replace(ends[0], train_loss=tuple(loss for end in ends for loss in end.train_loss))

    def validate(self) -> tuple[FoldLogits, tuple[float, ...]]:
        """Validation logits `[posts, criteria]` and mean validation loss of each fold."""
        results = [stack.validate() for stack in self.stacks]
        return [logits[0] for logits, _ in results], tuple(loss[0] for _, loss in results)

    def predict(self, posts: Sequence[Posts]) -> FoldLogits:
        """Logits `[posts, criteria]` of each fold for its own list of posts."""
        return [stack.predict([fold_posts])[0] for stack, fold_posts in zip(self.stacks, posts, strict=True)]

    def state_dict(self) -> dict[str, Any]:
        """A snapshot from which `load_state_dict` continues bit for bit."""
        return {"row": [stack.state_dict() for stack in self.stacks]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a state of `state_dict`."""
        for stack, stack_state in zip(self.stacks, state["row"], strict=True):
            stack.load_state_dict(stack_state)


def _pad(arrays: Sequence[npt.NDArray[Any]], fill: float) -> npt.NDArray[Any]:
    """Stack `[posts, criteria]` arrays of unequal length to `[folds, longest, criteria]`."""
    longest = max(map(len, arrays))
    return np.stack([np.pad(a, ((0, longest - len(a)), (0, 0)), constant_values=fill) for a in arrays])
