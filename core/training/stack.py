"""The folds of a stage: they advance together, and none knows of the others.

`FoldStack` holds them as one batched model; `FoldRow` holds a stack of one for each, where a model does not fuse. The
interface is the same, and `make_stack` chooses. Whichever folds share a stack, a fold sees the same batches, starts at
the same weights and draws the same dropout, so folds trained together, one after the other, or resumed agree (bit for
bit where the arithmetic is the same).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from .. import losses, models
from ..classic.trainer import EpochEnd, Trainer, linear_warmup
from ..config import CandidateConfig, TokenConfig
from ..errors import NonFiniteLossError
from ..features.views import Features
from ..models.token import Token
from ..seeding import numpy_generator, stable_seed
from ..splits import Folds
from .batches import Batch
from .optimizer import FoldAdamW

Posts = npt.NDArray[np.int64]

LENGTH_JITTER = 0.03
"""Batches hold posts of similar length, so little is padding; the order is blurred by this many log-units, so
that a post meets other company in every epoch."""
EVALUATION_POSTS = 64
"""Posts per batch where no gradient is kept, which makes room for four times as many as while training."""


class Stack(Protocol):
    """Some folds in training: what the cross-validation drives."""

    fold_ids: tuple[int, ...]

    warmup_epochs: int
    """Epochs at the beginning in which learning is held back."""

    @property
    def epoch(self) -> int:
        """Epochs finished."""

    def advance(self) -> EpochEnd:
        """Train every fold for one epoch."""

    def validate(self) -> tuple[list[npt.NDArray[np.float32]], tuple[float, ...]]:
        """Validation logits `[posts, criteria]` of each fold, and each fold's mean validation loss."""

    def predict(self, posts: Sequence[Posts]) -> list[npt.NDArray[np.float32]]:
        """Logits `[posts, criteria]` of each fold for its own list of posts."""

    def state_dict(self) -> dict[str, Any]:
        """What `load_state_dict` needs to go on to the same bits."""

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `state`."""


def make_stack(
    corpus: Features,
    folds: Folds,
    fold_ids: Sequence[int],
    candidate: CandidateConfig,
    *,
    seed: int,
    device: torch.device | str = "cpu",
    fuse: bool = True,
) -> Stack:
    """The folds `fold_ids` as one batched model where the model fuses, else as a row of models; see `FoldStack`.

    Without `fuse` it is a row in any case: slower, and what the fused folds are compared with.
    """
    if fuse and models.fuses_folds(candidate.model):
        return FoldStack(corpus, folds, fold_ids, candidate, seed=seed, device=device)
    return FoldRow([FoldStack(corpus, folds, [fold], candidate, seed=seed, device=device) for fold in fold_ids])


class FoldStack:
    """State of some folds in training, as one batched model.

    Args:
        corpus: what the model reads, and labels.
        folds: who trains and who validates.
        fold_ids: fold numbers of this stack.
        candidate: model, training and loss.
        seed: seed of weights, batches and dropout.
        device: where it trains.
        max_posts_per_pass: posts of a fold in one forward and backward pass; default: the limit of the inputs.
    """

    def __init__(
        self,
        corpus: Features,
        folds: Folds,
        fold_ids: Sequence[int],
        candidate: CandidateConfig,
        *,
        seed: int,
        device: torch.device | str = "cpu",
        max_posts_per_pass: int | None = None,
    ) -> None:
        self.fold_ids = tuple(fold_ids)
        self.seed = seed
        self.training = candidate.training
        self._train = [folds.train(fold) for fold in self.fold_ids]
        self._validation = [folds.validation(fold) for fold in self.fold_ids]
        # The shape of an epoch follows from the largest fold of all, in this stack or not: every fold takes the same
        # number of steps wherever it is stacked, and no fold has a short last batch.
        largest = max(len(folds.train(fold)) for fold in range(folds.count))
        self.steps = math.ceil(largest / (self.training.batch_size * self.training.accumulation_steps))
        self.width = math.ceil(largest / self.steps)
        self.warmup_epochs = math.ceil(self.training.warmup_steps / self.steps)
        if isinstance(candidate.model, TokenConfig):
            self.warmup_epochs = max(self.warmup_epochs, candidate.model.head_epochs)
        self._labels = torch.tensor(corpus.labels, device=device)
        self.model, self.inputs = models.build_model(
            candidate.model, corpus, self._train, folds=self.fold_ids, seed=seed, device=device
        )
        self._loss = losses.resolve(candidate.loss, [self._labels[part] for part in self._train])
        # An optimizer step reads all its posts at once, to the same gradient as batch after batch, in a fraction of the
        # operations; only what is too large for the memory is cut into pieces and put together by accumulation.
        self._max_posts = max_posts_per_pass or self.inputs.max_posts_per_pass
        self.pieces = math.ceil(self.width / (self._max_posts or self.width))
        rate, decay, limit = self.training.learning_rate, self.training.weight_decay, self.training.clip_norm
        optimizer: torch.optim.Optimizer
        if isinstance(self.model, Token):
            optimizer = torch.optim.AdamW(self.model.parameter_groups(rate), weight_decay=decay)
        else:  # which clips every fold on its own
            optimizer = FoldAdamW(self.model.parameters(), rate, weight_decay=decay, max_norm=limit)
        self.trainer = Trainer(
            self.model,
            optimizer,
            self._mean_loss,
            penalty=self.model.penalty,
            gradient_accumulation_steps=self.pieces,
            max_grad_norm=limit if isinstance(self.model, Token) else 0.0,
            scheduler=linear_warmup(optimizer, self.training.warmup_steps) if self.training.warmup_steps else None,
            read=self.inputs.batch,
            seed=stable_seed(seed, "trainer", *self.fold_ids),
            progress=False,
        )

    @property
    def epoch(self) -> int:
        """Epochs finished."""
        return self.trainer.epoch

    def advance(self) -> EpochEnd:
        """Train every fold for one epoch."""
        self.model.reseed([(self.seed, "dropout", fold, self.epoch) for fold in self.fold_ids])
        return self.trainer.advance(self._batches())

    def validate(self) -> tuple[list[npt.NDArray[np.float32]], tuple[float, ...]]:
        """Validation logits `[posts, criteria]` of each fold, and each fold's mean validation loss.

        Raises:
            NonFiniteLossError: the last step of the epoch left weights that predict nothing.
        """
        logits = self.predict(self._validation)
        if not all(np.isfinite(part).all() for part in logits):
            raise NonFiniteLossError
        padded, targets = _pad(logits, np.nan), _pad([self._labels[p].cpu().numpy() for p in self._validation], -1)
        device = self._labels.device
        loss = self._mean_loss(torch.from_numpy(np.nan_to_num(padded)).to(device), torch.from_numpy(targets).to(device))
        return logits, tuple(float(value) for value in loss)

    def predict(self, posts: Sequence[Posts]) -> list[npt.NDArray[np.float32]]:
        """Logits `[posts, criteria]` of each fold for its own list of posts."""
        length = max(map(len, posts))
        order = [np.argsort(self.inputs.lengths[part], kind="stable") for part in posts]
        # a short list is filled up with its own longest post; the surplus is cut off below
        rows = np.stack(
            [np.pad(part[o], (0, length - len(part)), mode="edge") for part, o in zip(posts, order, strict=True)]
        )
        at_once = min(EVALUATION_POSTS, 4 * (self._max_posts or EVALUATION_POSTS))
        chunks = [self.trainer.predict(rows[:, at : at + at_once]) for at in range(0, length, at_once)]
        ordered = torch.cat(chunks, dim=1).cpu().numpy()
        result = []
        for fold, (part, o) in enumerate(zip(posts, order, strict=True)):
            logits = np.empty((len(part), ordered.shape[-1]), dtype=np.float32)
            logits[o] = ordered[fold, : len(part)]
            result.append(logits)
        return result

    def state_dict(self) -> dict[str, Any]:
        """What `load_state_dict` needs to go on to the same bits."""
        return self.trainer.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `state`."""
        self.trainer.load_state_dict(state)

    def _mean_loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Mean loss of each fold `[folds]` over its labelled pairs; -1 marks what is unlabelled or padding."""
        labelled = targets >= 0
        elementwise = self._loss(logits, targets.clamp(min=0).to(logits.dtype)) * labelled
        return elementwise.sum((1, 2)) / labelled.sum((1, 2)).clamp(min=1)

    def _batches(self) -> Iterator[Batch]:
        """The batches of the coming epoch, whose inputs are numbers of posts `[folds, width]`."""
        plans = np.stack([self._plan(fold, part) for fold, part in zip(self.fold_ids, self._train, strict=True)])
        # Padding reads the first post of its own step, and counts nothing. A small fold may have steps without a post:
        # those read one of its first step.
        first = np.where(plans[:, :, :1] >= 0, plans[:, :, :1], plans[:, :1, :1])
        readable = np.where(plans >= 0, plans, first)
        targets = self._labels[torch.from_numpy(readable).to(self._labels.device, non_blocking=True)]
        targets[torch.from_numpy(plans < 0).to(self._labels.device, non_blocking=True)] = -1
        labelled = (targets >= 0).sum(3).float()
        for step in numpy_generator(self.seed, "steps", self.epoch).permutation(self.steps):
            for posts, known, weight in zip(
                np.array_split(readable[:, step], self.pieces, axis=1),
                targets[:, step].tensor_split(self.pieces, dim=1),
                labelled[:, step].tensor_split(self.pieces, dim=1),
                strict=True,
            ):
                yield Batch(posts, known, weight.sum(1))

    def _plan(self, fold: int, posts: Posts) -> npt.NDArray[np.int64]:
        """A fold's batches `[steps, width]` of the coming epoch; -1 fills up."""
        generator = numpy_generator(self.seed, "batches", fold, self.epoch)
        blurred = np.log(self.inputs.lengths[posts]) + LENGTH_JITTER * generator.standard_normal(len(posts))
        ordered = posts[np.argsort(blurred, kind="stable")]
        plan = np.full((self.steps, self.width), -1, dtype=np.int64)
        for step, part in enumerate(np.array_split(ordered, self.steps)):
            plan[step, : len(part)] = part
        return plan


class FoldRow:
    """Folds of a model that does not fuse: a stack of one for each, an epoch of one after an epoch of the other.

    Args:
        stacks: each with one fold; all stand at the same epoch.
    """

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

    def validate(self) -> tuple[list[npt.NDArray[np.float32]], tuple[float, ...]]:
        """Validation logits `[posts, criteria]` of each fold, and each fold's mean validation loss."""
        found = [stack.validate() for stack in self.stacks]
        return [logits[0] for logits, _ in found], tuple(loss[0] for _, loss in found)

    def predict(self, posts: Sequence[Posts]) -> list[npt.NDArray[np.float32]]:
        """Logits `[posts, criteria]` of each fold for its own list of posts."""
        return [stack.predict([part])[0] for stack, part in zip(self.stacks, posts, strict=True)]

    def state_dict(self) -> dict[str, Any]:
        """What `load_state_dict` needs to go on to the same bits."""
        return {"row": [stack.state_dict() for stack in self.stacks]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `state`."""
        for stack, saved in zip(self.stacks, state["row"], strict=True):
            stack.load_state_dict(saved)


def _pad(parts: Sequence[npt.NDArray[Any]], fill: float) -> npt.NDArray[Any]:
    """Stack `[posts, criteria]` arrays of unequal length to `[folds, most posts, criteria]`."""
    longest = max(map(len, parts))
    return np.stack([np.pad(p, ((0, longest - len(p)), (0, 0)), constant_values=fill) for p in parts])
