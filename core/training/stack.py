"""The folds of a stage: they advance together, and no fold depends on another.

A `FoldStack` trains its folds as one batched model; a `FoldRow` holds one stack per fold, for models that cannot be
batched over folds; a `SolvedStack` solves its folds. All have the interface `Stack`, and `make_stack` chooses. The
batches, initial weights and dropout of a fold do not depend on the other folds of its stack. Folds therefore give the
same results whether they train together, one after the other, or after an interruption (bit for bit where the
arithmetic is the same).

With `[training] seeds` above 1, every fold has several models with different seeds, which train side by side and do
not depend on each other either. What a stack returns is their mean.
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
from torch.nn import functional

from ..config import CandidateConfig, is_solved
from ..errors import NonFiniteLossError
from ..features.views import Features
from ..losses import make_loss
from ..models import Model, build_model, fuses_folds, join_models
from ..seeding import numpy_generator, stable_seed
from ..splits import Folds
from .batches import Batch, FoldLogits, Posts
from .engine import Engine, EpochEnd
from .optimizer import linear_warmup, make_optimizer
from .solved import SolvedStack

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

    @property
    def models(self) -> tuple[Model, ...]:
        """The models of all folds of the first seed, then of the second, and so on; one if its folds are stacked."""

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
    seeds = model_seeds(seed, candidate.training.seeds)
    if fuse and fuses_folds(candidate.model):
        return FoldStack(features, folds, fold_ids, candidate, seed=seed, seeds=seeds, device=device)
    return FoldRow(
        [
            FoldStack(features, folds, [fold], candidate, seed=seed, seeds=[model_seed], device=device)
            for model_seed in seeds
            for fold in fold_ids
        ],
        seeds=len(seeds),
    )


def model_seeds(seed: int, count: int) -> list[int]:
    """The seeds of the `count` models of a fold; the first is `seed` itself."""
    return [seed, *(stable_seed(seed, "seeds", number) for number in range(1, count))]


class FoldStack:
    """Some folds in training, as one batched model.

    Args:
        features: what the model trains on, with the labels.
        folds: the training and the validation posts of every fold.
        fold_ids: numbers of the folds in this stack.
        candidate: model, training and loss.
        seed: seed of weights, batches and dropout.
        seeds: seeds of the models of every fold; default: as many as `training.seeds` says. The order of an epoch's
            steps follows from `seed` for all of them, so that batches of similar length train at the same time.
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
        seeds: Sequence[int] | None = None,
        device: torch.device | str = "cpu",
        max_posts_per_pass: int | None = None,
    ) -> None:
        training = candidate.training
        self.fold_ids = tuple(fold_ids)
        self.seed = seed
        seeds = seeds or model_seeds(seed, training.seeds)
        self._seeds = len(seeds)
        self._rows = [(model_seed, fold) for model_seed in seeds for fold in self.fold_ids]
        self._train = [folds.train(fold) for _, fold in self._rows]
        self._validation = [folds.validation(fold) for fold in self.fold_ids]
        # The largest fold of all, in this stack or not, sets the shape of an epoch: the number of steps of a fold does
        # not depend on its stack, and no fold has a short last batch.
        largest = max(len(folds.train(fold)) for fold in range(folds.count))
        self.steps = math.ceil(largest / (training.batch_size * training.accumulation_steps))
        self.width = math.ceil(largest / self.steps)
        self._labels = torch.tensor(features.labels, device=device)
        train = self._train[: len(self.fold_ids)]
        built = [
            build_model(candidate.model, features, train, folds=self.fold_ids, seed=model_seed, device=device)
            for model_seed in seeds
        ]
        self.model, self.inputs = join_models([model for model, _ in built]), built[0][1]
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
            auxiliary=self.model.auxiliary_loss,
            scheduler=linear_warmup(optimizer, training.warmup_steps) if training.warmup_steps else None,
            gather=self.inputs.batch,
            seed=stable_seed(seed, "trainer", *self.fold_ids),
        )

    @property
    def epoch(self) -> int:
        """Epochs finished."""
        return self.engine.epoch

    @property
    def models(self) -> tuple[Model, ...]:
        """The one model of all folds and seeds."""
        return (self.model,)

    def advance(self) -> EpochEnd:
        """Train every fold for one epoch.

        Raises:
            NonFiniteLossError: the loss of a fold became NaN or infinite.
            OutOfMemoryError: the model and a batch do not fit into memory.
        """
        self.model.reseed([(model_seed, "dropout", fold, self.epoch) for model_seed, fold in self._rows])
        end = self.engine.advance(self.batches())
        return replace(end, train_loss=mean_over_seeds(end.train_loss, self._seeds))

    def validate(self) -> tuple[FoldLogits, tuple[float, ...]]:
        """Validation logits `[posts, criteria]` and mean validation loss of each fold.

        Raises:
            NonFiniteLossError: the last step of the epoch left weights whose predictions are NaN or infinite.
        """
        logits = self._predict(self._validation)
        if not all(np.isfinite(fold_logits).all() for fold_logits in logits):
            raise NonFiniteLossError
        padded = _pad(logits, np.nan)
        targets = _pad([self._labels[posts].cpu().numpy() for posts in self._validation] * self._seeds, -1)
        device = self._labels.device
        loss = self.mean_loss(torch.from_numpy(np.nan_to_num(padded)).to(device), torch.from_numpy(targets).to(device))
        losses = tuple(float(value) for value in loss)
        return average_seeds(logits, self._seeds), mean_over_seeds(losses, self._seeds)

    def predict(self, posts: Sequence[Posts]) -> FoldLogits:
        """Logits `[posts, criteria]` of each fold for its own list of posts."""
        return average_seeds(self._predict(posts), self._seeds)

    def _predict(self, fold_posts: Sequence[Posts]) -> FoldLogits:
        """Logits `[posts, criteria]` of each model of each fold, one list of posts for each fold."""
        posts = list(fold_posts) * self._seeds
        length = max(map(len, posts))
        orders = [np.argsort(self.inputs.lengths[row_posts], kind="stable") for row_posts in posts]
        # a short list is padded with its longest post; the padding is cut off below
        rows = np.stack(
            [
                np.pad(row_posts[order], (0, length - len(row_posts)), mode="edge")
                for row_posts, order in zip(posts, orders, strict=True)
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
        """The micro-batches of the coming epoch in order; inputs are numbers of posts `[seeds * folds, width]`."""
        plans = np.stack([self._plan(*row, posts) for row, posts in zip(self._rows, self._train, strict=True)])
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

    def _plan(self, seed: int, fold: int, posts: Posts) -> npt.NDArray[np.int64]:
        """The posts of every step `[steps, width]` of the coming epoch of one model of a fold; -1 is padding."""
        generator = numpy_generator(seed, "batches", fold, self.epoch)
        jittered = np.log(self.inputs.lengths[posts]) + LENGTH_JITTER * generator.standard_normal(len(posts))
        by_length = posts[np.argsort(jittered, kind="stable")]
        plan = np.full((self.steps, self.width), -1, dtype=np.int64)
        for step, step_posts in enumerate(np.array_split(by_length, self.steps)):
            plan[step, : len(step_posts)] = step_posts
        return plan


class FoldRow:
    """Folds of a model that cannot be batched over folds: one stack per fold, trained one after the other.

    Args:
        stacks: stacks of one fold and one seed that have finished the same number of epochs; all folds of the first
            seed, then those of the second, and so on.
        seeds: number of seeds of every fold.
    """

    max_epochs: int | None = None

    def __init__(self, stacks: Sequence[FoldStack], *, seeds: int = 1) -> None:
        self.stacks = tuple(stacks)
        self.seeds = seeds
        self.fold_ids = tuple(fold for stack in self.stacks[: len(stacks) // seeds] for fold in stack.fold_ids)
        self.warmup_epochs = self.stacks[0].warmup_epochs

    @property
    def epoch(self) -> int:
        """Epochs finished."""
        return self.stacks[0].epoch

    @property
    def models(self) -> tuple[Model, ...]:
        """The models of all folds of the first seed, then of the second, and so on."""
        return tuple(model for stack in self.stacks for model in stack.models)

    def advance(self) -> EpochEnd:
        """Train every fold for one epoch, in order."""
        ends = [stack.advance() for stack in self.stacks]
        losses = tuple(loss for end in ends for loss in end.train_loss)
        return replace(ends[0], train_loss=mean_over_seeds(losses, self.seeds))

    def validate(self) -> tuple[FoldLogits, tuple[float, ...]]:
        """Validation logits `[posts, criteria]` and mean validation loss of each fold."""
        results = [stack.validate() for stack in self.stacks]
        logits = average_seeds([logits[0] for logits, _ in results], self.seeds)
        return logits, mean_over_seeds([loss[0] for _, loss in results], self.seeds)

    def predict(self, posts: Sequence[Posts]) -> FoldLogits:
        """Logits `[posts, criteria]` of each fold for its own list of posts."""
        repeated = list(posts) * self.seeds
        logits = [stack.predict([row_posts])[0] for stack, row_posts in zip(self.stacks, repeated, strict=True)]
        return average_seeds(logits, self.seeds)

    def state_dict(self) -> dict[str, Any]:
        """A snapshot from which `load_state_dict` continues bit for bit."""
        return {"row": [stack.state_dict() for stack in self.stacks]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a state of `state_dict`."""
        for stack, stack_state in zip(self.stacks, state["row"], strict=True):
            stack.load_state_dict(stack_state)


def average_seeds(logits: FoldLogits, seeds: int) -> FoldLogits:
    """Average the probabilities of a fold's models, as logits: one array for each fold.

    The logit of a mean probability is log mean σ(z) − log mean σ(−z), which is finite for every finite z.

    Args:
        logits: `[posts, criteria]` of all folds of the first seed, then of the second, and so on.
        seeds: how many each fold has; a single one is returned as it is.
    """
    if seeds == 1:
        return logits
    folds = len(logits) // seeds
    averages = []
    for fold in range(folds):
        z = torch.from_numpy(np.stack(logits[fold::folds])).double()
        positive, negative = (torch.logsumexp(functional.logsigmoid(signed), dim=0) for signed in (z, -z))
        averages.append((positive - negative).float().numpy())
    return averages


def mean_over_seeds(losses: Sequence[float], seeds: int) -> tuple[float, ...]:
    """Mean loss of each fold over its models; the order is that of `average_seeds`."""
    folds = len(losses) // seeds
    return tuple(sum(losses[fold::folds]) / seeds for fold in range(folds))


def _pad(arrays: Sequence[npt.NDArray[Any]], fill: float) -> npt.NDArray[Any]:
    """Stack `[posts, criteria]` arrays of unequal length to `[folds, longest, criteria]`."""
    longest = max(map(len, arrays))
    return np.stack([np.pad(a, ((0, longest - len(a)), (0, 0)), constant_values=fill) for a in arrays])
