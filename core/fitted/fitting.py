"""Train what a search has found: every member on all folds, then one calibration and one threshold for the ensemble."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, CancelledError, ThreadPoolExecutor, wait
from dataclasses import dataclass
from functools import partial
from threading import Event

import numpy as np
import numpy.typing as npt
import torch

from .. import metrics
from ..config import CandidateConfig, ChunksConfig, ModelConfig, reads_text
from ..corpus.data import Corpus
from ..features.encoders import Encoder
from ..features.views import EmbeddedCorpus, Features
from ..models import Model
from ..models.logistic import solve
from ..seeding import seeded
from ..splits import Folds
from ..training.crossval import CrossValidation
from ..training.stack import Stack, make_stack
from .member import Member
from .model import Calibration, FittedModel

Floats = npt.NDArray[np.float64]
Trained = tuple[npt.NDArray[np.float32], tuple[Model, ...]]
"""Out-of-fold logits `[posts, criteria]` of a member, and the models that predict."""

CALIBRATION_STRENGTH = 100.0
"""C of the regression that calibrates: nearly none, only so that it has a solution where logits separate perfectly."""
MIN_SLOPE = 1e-3
"""A criterion whose logits say nothing, or the opposite, keeps its ranking but gets the prevalence as probability."""


@dataclass(frozen=True)
class Recipe:
    """What to train: a member of the ensemble."""

    candidate: CandidateConfig
    seed: int
    """Seed of weights, batches and dropout."""
    epochs: int
    weight: float = 1.0
    """Relative to the other members."""
    trial: int | None = None
    """Number of the trial that it is from; None for a baseline."""


@dataclass(frozen=True, eq=False)
class Ground:
    """What members are trained on."""

    corpus: Corpus
    folds: Folds
    chunks: ChunksConfig
    features: Callable[[ModelConfig], Features]
    """The corpus as a model reads it."""
    encoders: Mapping[str, Encoder]
    """By name, at least those of the members."""
    metric: str
    """A name in `metrics.METRICS`."""


@dataclass(frozen=True, eq=False)
class Fit:
    """A fitted model and the predictions that calibrated it."""

    model: FittedModel
    logits: Floats
    """[posts, criteria]: out-of-fold logits of the ensemble, not calibrated; NaN for posts in no fold."""


def fit(
    recipes: Sequence[Recipe],
    ground: Ground,
    *,
    single: bool = False,
    device: str = "cpu",
) -> Fit:
    """Train an ensemble.

    Args:
        recipes: at least one.
        ground: the posts, and the folds that the recipes were found on.
        single: one model of every member, trained on all posts that are in a fold, instead of the models of the folds.
            The folds are trained as well: only out-of-fold predictions can calibrate.
        device: where it trains; the fitted model is on the CPU.

    Returns:
        The model. The same arguments give the same bits on the same machine.

    Raises:
        NonFiniteLossError: a member diverged.
    """
    total = sum(recipe.weight for recipe in recipes)
    members, logits = [], np.zeros(ground.corpus.labels.shape)
    for recipe, (out_of_fold, models) in zip(recipes, _train(recipes, ground, single, device), strict=True):
        logits += recipe.weight / total * out_of_fold
        members.append(
            Member(recipe.candidate, models, recipe.weight / total, recipe.trial, recipe.seed, recipe.epochs)
        )
    scored = ground.folds.assignment >= 0
    labels = ground.corpus.labels[scored]
    calibration = calibrate(labels, logits[scored])
    threshold = metrics.best_threshold(labels, calibration.probabilities(logits[scored]))
    names = {recipe.candidate.model.encoder for recipe in recipes}
    model = FittedModel(
        ground.corpus.criteria,
        ground.chunks,
        tuple(members),
        {name: ground.encoders[name] for name in sorted(names)},
        dict(_criteria_embeddings(recipes, ground)),
        calibration,
        (np.sum(labels == 1, axis=0) + 0.5) / (np.sum(labels >= 0, axis=0) + 1.0),
        threshold,
    )
    return Fit(model, logits)


def calibrate(labels: npt.NDArray[np.int8], logits: npt.NDArray[np.floating]) -> Calibration:
    """Fit the slope and the intercept of each criterion by logistic regression on its logits (Platt, 1999).

    Args:
        labels: int8 `[posts, criteria]`: 1, 0 or -1 (unlabelled).
        logits: `[posts, criteria]`, of models that have not seen these posts.
    """
    slopes, intercepts = [], []
    for column in range(labels.shape[1]):
        solution = solve(logits[:, [column]].astype(np.float64), labels[:, [column]], CALIBRATION_STRENGTH)
        slope, intercept = float(solution.weight[0, 0]), float(solution.bias[0])
        if slope < MIN_SLOPE:
            known = labels[:, column] >= 0
            share = (np.sum(labels[known, column]) + 0.5) / (known.sum() + 1.0)
            slope, intercept = MIN_SLOPE, float(np.log(share / (1 - share)) - MIN_SLOPE * logits[known, column].mean())
        slopes.append(slope)
        intercepts.append(intercept)
    return Calibration(np.array(slopes), np.array(intercepts))


def _train(recipes: Sequence[Recipe], ground: Ground, single: bool, device: str) -> list[Trained]:
    """Train the members, on a CPU side by side: that takes less time than with all cores for one after the other.

    If a member reads text, they train one after the other: its dropout draws from the global random generator.
    """
    threads, stopped = torch.get_num_threads(), Event()
    side_by_side = min(threads, len(recipes))
    train = partial(_train_one, ground=ground, single=single, device=device, stopped=stopped)
    if side_by_side == 1 or device != "cpu" or any(reads_text(recipe.candidate.model) for recipe in recipes):
        return [train(recipe) for recipe in recipes]
    torch.set_num_threads(threads // side_by_side)
    try:
        # Every epoch seeds the global generators and restores them, which threads do to each other's state. No model
        # here draws from them; in the end they are as they were.
        with seeded("side by side"), ThreadPoolExecutor(side_by_side) as pool:
            members = [pool.submit(train, recipe) for recipe in recipes]
            try:
                ended = wait(members, return_when=FIRST_EXCEPTION).done
            finally:  # nobody waits for the others if one diverges or the user has had enough
                stopped.set()
                pool.shutdown(wait=False, cancel_futures=True)
            for member in ended:
                member.result()
            return [member.result() for member in members]
    finally:
        torch.set_num_threads(threads)


def _train_one(recipe: Recipe, *, ground: Ground, single: bool, device: str, stopped: Event) -> Trained:
    cv = CrossValidation(
        ground.features(recipe.candidate.model),
        ground.folds,
        recipe.candidate,
        stages=[ground.folds.count],
        metric=ground.metric,
        criteria=[criterion.name for criterion in ground.corpus.criteria],
        seed=recipe.seed,
        device=device,
        fixed_epochs=recipe.epochs,
    )
    for _ in cv.epochs():
        if stopped.is_set():
            raise CancelledError
    models = _refit(recipe, ground, device, stopped) if single else cv.stages[0].stack.models
    return cv.predictions(), _on_cpu(models)


def _refit(recipe: Recipe, ground: Ground, device: str, stopped: Event) -> tuple[Model, ...]:
    """The model of one fold that trains on every post in a fold: an epoch has as many steps per post as before."""
    everything = Folds(np.where(ground.folds.assignment >= 0, 1, -1), 2)  # fold 0 validates nothing
    stack: Stack = make_stack(
        ground.features(recipe.candidate.model), everything, [0], recipe.candidate, seed=recipe.seed, device=device
    )
    for _ in range(min(recipe.epochs, stack.max_epochs or recipe.epochs)):
        if stopped.is_set():
            raise CancelledError
        stack.advance()
    return stack.models


def _on_cpu(models: Sequence[Model]) -> tuple[Model, ...]:
    return tuple(model.to("cpu").eval().requires_grad_(requires_grad=False) for model in models)


def _criteria_embeddings(recipes: Sequence[Recipe], ground: Ground) -> Iterator[tuple[str, npt.NDArray[np.float32]]]:
    for recipe in recipes:
        features = ground.features(recipe.candidate.model)
        if isinstance(features, EmbeddedCorpus):
            yield recipe.candidate.model.encoder, np.array(features.criteria)
