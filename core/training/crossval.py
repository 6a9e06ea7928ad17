"""A cross-validation as a stream of frozen events, stage by stage.

The folds of a stage advance epoch by epoch in lock-step, and their mean score is the early-stopping signal. The
consumer of the stream decides how to act on an event: stop, prune, report, draw. All folds share one best epoch, the
one with the best mean over *all* folds, and every number of the summary is taken at that epoch. With a fixed number of
epochs nothing stops early, and every number is taken at the last epoch: none is chosen by its score, so no other epoch
is scored.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from .. import metrics
from ..config import CandidateConfig
from ..features.views import Features
from ..splits import Folds
from .batches import FoldLogits
from .stack import Stack, make_stack
from .stopping import best_index, is_stale, projected_best


@dataclass(frozen=True)
class CvEpoch:
    """The result of one epoch of one stage. Tuples have one entry per fold of the stage."""

    stage: int
    folds: tuple[int, ...]
    epoch: int
    """Epochs that these folds have trained, from 1."""
    train_loss: tuple[float, ...]
    validation_loss: tuple[float, ...]
    """NaN, as the scores are, if the epoch is not scored: with a fixed number of epochs, all but the last."""
    scores: tuple[float, ...]
    stage_ended: bool
    """True for the epoch after which the stage stopped; never while a stopped stage catches up."""

    @property
    def mean(self) -> float:
        """Mean score of the stage's folds."""
        return float(np.mean(self.scores))


@dataclass(frozen=True, eq=False)
class CvSummary:
    """A finished cross-validation; every number is taken at its best epoch."""

    value: float
    """Mean over the folds of the mean over the criteria."""
    folds: tuple[float, ...]
    std: float
    """Standard deviation over the folds (n - 1)."""
    best_epoch: int
    epochs: int
    threshold: float
    """The one threshold that maximises F1 on the pooled out-of-fold predictions."""
    report: metrics.Report
    probabilities: npt.NDArray[np.float32]
    """Out-of-fold probabilities `[posts, criteria]`; NaN for posts in no fold."""


class Stage:
    """One stage: a stack of folds, and the results of its epochs so far."""

    def __init__(self, number: int, stack: Stack) -> None:
        self.number = number
        self.stack = stack
        self.curve: list[CvEpoch] = []
        self.logits: list[FoldLogits] = []
        """Validation logits of every epoch; empty for one that is not scored."""
        self.ended = False

    @property
    def means(self) -> list[float]:
        """Mean score of every epoch."""
        return [event.mean for event in self.curve]


class CrossValidation:
    """State of one candidate's cross-validation.

    Args:
        features: what the model trains on, with the labels.
        folds: all folds, including their training posts.
        candidate: model, training and loss.
        stages: number of folds of each stage; they add up to the number of folds.
        metric: a name in `metrics.METRICS`.
        criteria: the criteria's names, for the report.
        seed: seed of weights, batches and dropout.
        device: the device of the training.
        fuse: train the folds of a stage as one batched model if the model allows it.
        fixed_epochs: train exactly so many epochs and take every number at the last one; default: early stopping, and
            every number at the best epoch.
    """

    def __init__(
        self,
        features: Features,
        folds: Folds,
        candidate: CandidateConfig,
        *,
        stages: Sequence[int],
        metric: str,
        criteria: Sequence[str],
        seed: int,
        device: torch.device | str = "cpu",
        fuse: bool = True,
        fixed_epochs: int | None = None,
    ) -> None:
        assert sum(stages) == folds.count
        assert fixed_epochs is None or fixed_epochs >= 1
        self.labels = features.labels
        self.folds = folds
        self.training = candidate.training
        self.metric = metrics.METRICS[metric]
        self.criteria = tuple(criteria)
        self.seed = seed
        self.fixed_epochs = fixed_epochs
        fold_ends = np.cumsum(stages)
        self.stages = tuple(
            Stage(
                number,
                make_stack(features, folds, range(end - size, end), candidate, seed=seed, device=device, fuse=fuse),
            )
            for number, (size, end) in enumerate(zip(stages, map(int, fold_ends), strict=True))
        )
        longest = fixed_epochs or candidate.training.epochs
        self.longest = min(longest, self.stages[0].stack.max_epochs or longest)
        """Epochs after which a stage stops at the latest; models that are solved have one."""

    def epochs(self) -> Generator[CvEpoch]:
        """The remaining epochs, each computed when it is requested.

        Raises:
            NonFiniteLossError: a fold diverged.
        """
        while (stage := self._next()) is not None:
            yield self._advance(stage)

    def _next(self) -> Stage | None:
        """The stage that trains next, None at the end. It follows from the curves, so a resumed run picks the same."""
        for stage in self.stages:
            if not stage.ended:
                return stage
        # All folds share one best epoch: stages that stopped earlier catch up, so that the mean curve is complete.
        longest = max(len(stage.curve) for stage in self.stages)
        return next((stage for stage in self.stages if len(stage.curve) < longest), None)

    def _advance(self, stage: Stage) -> CvEpoch:
        epoch_end = stage.stack.advance()
        if self.fixed_epochs is None or epoch_end.epoch == self.longest:
            logits, validation_loss, scores = self._validate(stage)
        else:
            unknown = (math.nan,) * len(stage.stack.fold_ids)
            logits, validation_loss, scores = [], unknown, unknown
        means = [*stage.means, float(np.mean(scores))]
        stops_now = not stage.ended and (
            len(means) >= self.longest
            or (
                self.fixed_epochs is None
                and is_stale(means, self.training.patience, higher_is_better=self.metric.higher_is_better)
            )
        )
        event = CvEpoch(
            stage.number,
            stage.stack.fold_ids,
            epoch_end.epoch,
            epoch_end.train_loss,
            validation_loss,
            scores,
            stage_ended=stops_now,
        )
        stage.curve.append(event)
        stage.logits.append(logits)
        stage.ended = stage.ended or stops_now
        return event

    def _validate(self, stage: Stage) -> tuple[FoldLogits, tuple[float, ...], tuple[float, ...]]:
        """Validation logits, losses and scores of the folds of a stage as they are now."""
        logits, losses = stage.stack.validate()
        scores = tuple(
            metrics.score(self.metric.name, self.labels[self.folds.validation(fold)], _probabilities(fold_logits))
            for fold, fold_logits in zip(stage.stack.fold_ids, logits, strict=True)
        )
        return logits, losses, scores

    @property
    def folds_begun(self) -> int:
        """Number of folds in the stages that have trained at least one epoch."""
        return sum(len(stage.stack.fold_ids) for stage in self.stages if stage.curve)

    def value_so_far(self) -> float:
        """Mean score of the folds started so far, each at the best epoch of its stage."""
        return self._mean_of([self._best(stage) for stage in self.stages if stage.curve])

    def projected_value(self) -> float:
        """`value_so_far` extrapolated to the end of the stage in training; see `stopping.projected_best`.

        Once the stage has stopped, it equals `value_so_far`.
        """
        begun = [stage for stage in self.stages if stage.curve]
        return self._mean_of([self._best(stage) if stage.ended else self._projected_best(stage) for stage in begun])

    def _best(self, stage: Stage) -> float:
        return stage.means[self._best_index(stage.means)]

    def _best_index(self, means: Sequence[float]) -> int:
        """Index of the epoch at which every number is taken: the best one, or the last of a fixed number."""
        if self.fixed_epochs is not None:
            return len(means) - 1
        return best_index(means, higher_is_better=self.metric.higher_is_better)

    def _projected_best(self, stage: Stage) -> float:
        return projected_best(
            stage.means,
            self.training.patience,
            longest=self.longest,
            warmup=stage.stack.warmup_epochs,
            higher_is_better=self.metric.higher_is_better,
        )

    def _mean_of(self, values: Sequence[float]) -> float:
        """Mean over the folds of the first stages, from one value per stage."""
        return float(np.average(values, weights=[len(stage.stack.fold_ids) for stage in self.stages[: len(values)]]))

    def curves(self) -> dict[str, list[list[float]]]:
        """Scores and losses of every epoch, by name: `[folds][epochs]`."""
        return {
            name: [
                [getattr(event, name)[position] for event in stage.curve]
                for stage in self.stages
                for position in range(len(stage.stack.fold_ids))
            ]
            for name in ("scores", "train_loss", "validation_loss")
        }

    def predictions(self) -> npt.NDArray[np.float32]:
        """Out-of-fold logits `[posts, criteria]` of the folds scored; NaN for all other posts.

        Each stage is taken at its best epoch so far, as `value_so_far` takes it. Once the cross-validation is
        finished, all folds are taken at the best epoch of the summary.
        """
        predictions = np.full(self.labels.shape, np.nan, dtype=np.float32)
        shared = self._best_index(self._mean_curve()) if self._next() is None else None
        for stage in self.stages:
            if stage.curve:
                epoch = self._best_index(stage.means) if shared is None else shared
                if not stage.logits[epoch]:
                    continue  # not scored yet
                for fold, logits in zip(stage.stack.fold_ids, stage.logits[epoch], strict=True):
                    predictions[self.folds.validation(fold)] = logits
        return predictions

    def _mean_curve(self) -> list[float]:
        """Mean score over all folds of every epoch, once all stages have trained equally many."""
        means: list[float] = np.array(self.curves()["scores"]).mean(0).tolist()
        return means

    def summary(self) -> CvSummary:
        """The finished cross-validation at the best epoch of its mean curve, or at the last of a fixed number."""
        assert self._next() is None, "the stream of epochs has not been exhausted"
        curve = np.array(self.curves()["scores"])  # [folds, epochs]
        means = self._mean_curve()
        best = self._best_index(means)
        probabilities = np.full(self.labels.shape, np.nan, dtype=np.float32)
        for stage in self.stages:
            for fold, logits in zip(stage.stack.fold_ids, stage.logits[best], strict=True):
                probabilities[self.folds.validation(fold)] = _probabilities(logits)
        scored = self.folds.assignment >= 0
        labels = self.labels[scored]
        threshold = metrics.best_threshold(labels, probabilities[scored])
        return CvSummary(
            value=means[best],
            folds=tuple(curve[:, best].tolist()),
            std=float(curve[:, best].std(ddof=1)),
            best_epoch=best + 1,
            epochs=len(means),
            threshold=threshold,
            report=metrics.report(labels, probabilities[scored], threshold, self.criteria),
            probabilities=probabilities,
        )

    def state_dict(self) -> dict[str, Any]:
        """A snapshot between two epochs, from which `load_state_dict` continues bit for bit."""
        return {
            "stages": [
                {
                    "stack": stage.stack.state_dict(),
                    "curve": [_event_to_dict(event) for event in stage.curve],
                    "logits": [list(epoch) for epoch in stage.logits],
                    "ended": stage.ended,
                }
                for stage in self.stages
            ]
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore a state returned by `state_dict`."""
        for stage, saved in zip(self.stages, state["stages"], strict=True):
            stage.stack.load_state_dict(saved["stack"])
            stage.curve = [_event_from_dict(event) for event in saved["curve"]]
            stage.logits = [list(epoch) for epoch in saved["logits"]]
            stage.ended = saved["ended"]


def _event_to_dict(event: CvEpoch) -> dict[str, Any]:
    """An event as stored in a checkpoint. The keys belong to the file format and do not follow renames of fields."""
    return {
        "stage": event.stage,
        "folds": event.folds,
        "epoch": event.epoch,
        "train_loss": event.train_loss,
        "validation_loss": event.validation_loss,
        "scores": event.scores,
        "stage_ended": event.stage_ended,
    }


def _event_from_dict(state: Mapping[str, Any]) -> CvEpoch:
    return CvEpoch(
        stage=state["stage"],
        folds=state["folds"],
        epoch=state["epoch"],
        train_loss=state["train_loss"],
        validation_loss=state["validation_loss"],
        scores=state["scores"],
        stage_ended=state["stage_ended"],
    )


def _probabilities(logits: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    return np.asarray(torch.sigmoid(torch.from_numpy(logits)).numpy(), dtype=np.float32)
