"""All folds of a cross-validation, stage by stage, as a stream of frozen events.

The folds of a stage advance epoch by epoch together, and their mean score is the early-stopping signal. Who consumes
the stream decides what follows from an event: stop, prune, report, draw. There is one epoch for all: the one whose
mean over *all* folds is best, and every number of the summary is of that epoch.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from .. import metrics
from ..config import CandidateConfig
from ..features.views import Features
from ..splits import Folds
from .stack import Stack, make_stack
from .stopping import best_index, is_stale, projected_best


@dataclass(frozen=True)
class CvEpoch:
    """The end of one epoch of one stage. Tuples have one entry per fold of the stage."""

    stage: int
    folds: tuple[int, ...]
    epoch: int
    """Epochs that these folds have trained, from 1."""
    train_loss: tuple[float, ...]
    validation_loss: tuple[float, ...]
    scores: tuple[float, ...]
    stage_ended: bool
    """This was the epoch after which the stage stopped (never set while catching up)."""

    @property
    def mean(self) -> float:
        """Mean score of the stage's folds."""
        return float(np.mean(self.scores))


@dataclass(frozen=True, eq=False)
class CvSummary:
    """A finished cross-validation, everything at its best epoch."""

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
    """Out-of-fold probabilities `[posts, criteria]`; NaN for posts of no fold."""


class _Stage:
    """One stage: a stack of folds and the curve it has drawn so far."""

    def __init__(self, number: int, stack: Stack) -> None:
        self.number = number
        self.stack = stack
        self.curve: list[CvEpoch] = []
        self.logits: list[list[npt.NDArray[np.float32]]] = []  # per epoch, per fold: [posts, criteria]
        self.ended = False

    @property
    def means(self) -> list[float]:
        return [event.mean for event in self.curve]


class CrossValidation:
    """State of one candidate's cross-validation.

    Args:
        corpus: what the model reads, and labels.
        folds: the folds of the study.
        candidate: what is trained.
        stages: numbers of folds trained in lock-step, in order; they add up to the folds.
        metric: a name in `metrics.METRICS`.
        criteria: the criteria's names, for the report.
        seed: seed of weights, batches and dropout.
        device: where it trains.
        fuse: train the folds of a stage as one batched model where the model allows it.
    """

    def __init__(
        self,
        corpus: Features,
        folds: Folds,
        candidate: CandidateConfig,
        *,
        stages: Sequence[int],
        metric: str,
        criteria: Sequence[str],
        seed: int,
        device: torch.device | str = "cpu",
        fuse: bool = True,
    ) -> None:
        assert sum(stages) == folds.count
        self.corpus = corpus
        self.folds = folds
        self.training = candidate.training
        self.metric = metrics.METRICS[metric]
        self.criteria = tuple(criteria)
        ends = np.cumsum(stages)
        self._stages = [
            _Stage(
                number,
                make_stack(corpus, folds, range(end - size, end), candidate, seed=seed, device=device, fuse=fuse),
            )
            for number, (size, end) in enumerate(zip(stages, map(int, ends), strict=True))
        ]

    def epochs(self) -> Generator[CvEpoch]:
        """The epochs that are still to come, each computed when it is asked for.

        Raises:
            NonFiniteLossError: a fold diverged.
        """
        while (stage := self._next()) is not None:
            yield self._advance(stage)

    def _next(self) -> _Stage | None:
        """Whose turn it is follows from the curves alone, so a resumed run goes on where it was."""
        for stage in self._stages:
            if not stage.ended:
                return stage
        # One epoch for all: folds that ran fewer epochs catch up, so that the mean curve is complete.
        longest = max(len(stage.curve) for stage in self._stages)
        return next((stage for stage in self._stages if len(stage.curve) < longest), None)

    def _advance(self, stage: _Stage) -> CvEpoch:
        end = stage.stack.advance()
        logits, validation_loss = stage.stack.validate()
        scores = tuple(
            metrics.score(self.metric.name, self.corpus.labels[self.folds.validation(fold)], _sigmoid(part))
            for fold, part in zip(stage.stack.fold_ids, logits, strict=True)
        )
        means = [*stage.means, float(np.mean(scores))]
        stops = not stage.ended and (
            len(means) >= self.training.epochs
            or is_stale(means, self.training.patience, higher_is_better=self.metric.higher_is_better)
        )
        event = CvEpoch(
            stage.number, stage.stack.fold_ids, end.epoch, end.train_loss, validation_loss, scores, stage_ended=stops
        )
        stage.curve.append(event)
        stage.logits.append(logits)
        stage.ended = stage.ended or stops
        return event

    @property
    def folds_begun(self) -> int:
        """Folds of the stages that have trained an epoch."""
        return sum(len(stage.stack.fold_ids) for stage in self._stages if stage.curve)

    def value_so_far(self) -> float:
        """Mean score of the folds begun, each at the best epoch of its own stage."""
        return self._mean_of([self._best(stage) for stage in self._stages if stage.curve])

    def projected_value(self) -> float:
        """What `value_so_far` may become by the end of the stage in training: see `stopping.projected_best`.

        Once the stage has stopped it is the value itself.
        """
        begun = [stage for stage in self._stages if stage.curve]
        return self._mean_of([self._best(stage) if stage.ended else self._projected_best(stage) for stage in begun])

    def _best(self, stage: _Stage) -> float:
        return stage.means[best_index(stage.means, higher_is_better=self.metric.higher_is_better)]

    def _projected_best(self, stage: _Stage) -> float:
        return projected_best(
            stage.means,
            self.training.patience,
            longest=self.training.epochs,
            warmup=stage.stack.warmup_epochs,
            higher_is_better=self.metric.higher_is_better,
        )

    def _mean_of(self, values: Sequence[float]) -> float:
        """Mean over the folds of the first stages, from a value of each stage."""
        return float(np.average(values, weights=[len(stage.stack.fold_ids) for stage in self._stages[: len(values)]]))

    def curves(self) -> dict[str, list[list[float]]]:
        """Everything that was measured, by name: `[folds][epochs]`."""
        return {
            name: [
                [getattr(event, name)[place] for event in stage.curve]
                for stage in self._stages
                for place in range(len(stage.stack.fold_ids))
            ]
            for name in ("scores", "train_loss", "validation_loss")
        }

    def summary(self) -> CvSummary:
        """The finished cross-validation at the best epoch of its mean curve."""
        assert self._next() is None, "the stream of epochs has not been exhausted"
        curve = np.array(self.curves()["scores"])  # [folds, epochs]
        means = curve.mean(0).tolist()
        best = best_index(means, higher_is_better=self.metric.higher_is_better)
        probabilities = np.full(self.corpus.labels.shape, np.nan, dtype=np.float32)
        for stage in self._stages:
            for fold, logits in zip(stage.stack.fold_ids, stage.logits[best], strict=True):
                probabilities[self.folds.validation(fold)] = _sigmoid(logits)
        scored = self.folds.assignment >= 0
        labels = self.corpus.labels[scored]
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
        """What `load_state_dict` needs to go on to the same bits; taken between two epochs."""
        return {
            "stages": [
                {
                    "stack": stage.stack.state_dict(),
                    "curve": [asdict(event) for event in stage.curve],
                    "logits": [list(epoch) for epoch in stage.logits],
                    "ended": stage.ended,
                }
                for stage in self._stages
            ]
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `state`."""
        for stage, saved in zip(self._stages, state["stages"], strict=True):
            stage.stack.load_state_dict(saved["stack"])
            stage.curve = [CvEpoch(**event) for event in saved["curve"]]
            stage.logits = [list(epoch) for epoch in saved["logits"]]
            stage.ended = saved["ended"]


def _sigmoid(logits: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    return np.asarray(torch.sigmoid(torch.from_numpy(logits)).numpy(), dtype=np.float32)
