"""The folds of a solved model as a `Stack`: one epoch solves them all, and there is no other."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ..config import CandidateConfig
from ..errors import NonFiniteLossError
from ..features.views import Features
from ..models import Model, build_model
from ..models.solved import SolvedModel
from ..splits import Folds
from .batches import FoldLogits, Posts
from .engine import EpochEnd, translate_memory_errors


class SolvedStack:
    """Some folds of a solved model.

    Args:
        features: what the model reads, with the labels.
        folds: the training and the validation posts of every fold.
        fold_ids: numbers of the folds in this stack.
        candidate: the model; its training and its loss do not apply.
        seed: changes nothing.
        device: where the model predicts.
    """

    warmup_epochs = 0
    max_epochs: int | None = 1

    def __init__(
        self,
        features: Features,
        folds: Folds,
        fold_ids: Sequence[int],
        candidate: CandidateConfig,
        *,
        seed: int,
        device: torch.device | str = "cpu",
    ) -> None:
        self.fold_ids = tuple(fold_ids)
        self.epoch = 0
        """Epochs finished: 1 once the folds are solved."""
        self._labels = features.labels
        self._train = [folds.train(fold) for fold in self.fold_ids]
        self._validation = [folds.validation(fold) for fold in self.fold_ids]
        model, self.inputs = build_model(
            candidate.model, features, self._train, folds=self.fold_ids, seed=seed, device=device
        )
        assert isinstance(model, SolvedModel)
        self.model: SolvedModel = model

    @property
    def models(self) -> tuple[Model, ...]:
        """The one model of all folds."""
        return (self.model,)

    def advance(self) -> EpochEnd:
        """Solve every fold; the loss is the mean log-loss of the training posts.

        Raises:
            OutOfMemoryError: the inputs of a batch do not fit into memory.
        """
        with translate_memory_errors():
            self.model.solve(self._design, self._labels, self._train)
        self.epoch += 1
        return EpochEnd(self.epoch, self._losses(self.predict(self._train), self._train))

    @cached_property
    def _design(self) -> Tensor:
        """The inputs of every post of the corpus, `[posts, inputs]`; without labels, so the same for every fold."""
        return self.model.design_all(self.inputs)

    def validate(self) -> tuple[FoldLogits, tuple[float, ...]]:
        """Validation logits `[posts, criteria]` and mean validation log-loss of each fold.

        Raises:
            NonFiniteLossError: an embedding is NaN or infinite.
        """
        logits = self.predict(self._validation)
        if not all(np.isfinite(fold_logits).all() for fold_logits in logits):
            raise NonFiniteLossError
        return logits, self._losses(logits, self._validation)

    @torch.no_grad()
    def predict(self, posts: Sequence[Posts]) -> FoldLogits:
        """Logits `[posts, criteria]` of each fold for its own list of posts."""
        with translate_memory_errors():
            return [
                self.model.logits(self._design[torch.from_numpy(fold_posts).to(self._design.device)], fold)
                .cpu()
                .numpy()
                for fold, fold_posts in enumerate(posts)
            ]

    def _losses(self, logits: FoldLogits, posts: Sequence[Posts]) -> tuple[float, ...]:
        """Mean log-loss of each fold over its labelled pairs."""
        return tuple(
            _log_loss(fold_logits, self._labels[fold_posts])
            for fold_logits, fold_posts in zip(logits, posts, strict=True)
        )

    def state_dict(self) -> dict[str, Any]:
        """A snapshot from which `load_state_dict` continues bit for bit."""
        return {"epoch": self.epoch, "model": copy.deepcopy(dict(self.model.state_dict()))}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a state of `state_dict`."""
        self.epoch = state["epoch"]
        self.model.load_state_dict(state["model"])


def _log_loss(logits: npt.NDArray[np.float32], labels: npt.NDArray[np.int8]) -> float:
    """Mean over the labelled pairs, 0 if there is none."""
    known = labels >= 0
    losses = np.logaddexp(0, logits[known].astype(np.float64) * (1 - 2.0 * labels[known]))
    return float(losses.sum() / max(known.sum(), 1))
