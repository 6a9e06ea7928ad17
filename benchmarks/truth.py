"""What configurations are truly worth: their scores on posts, or on splits, that their search has not seen.

A cross-validated average precision is a mean over validation folds of some 80 posts. It lies above that of the same
models on thousands of posts, because the average precision of a random ranking falls with the number of posts. So that
both are the same quantity, the models judged here are fold models too, trained on four fifths of the searched posts,
and test posts are scored in parts of the size of a validation fold.

Nothing is chosen on the posts that score: every configuration trains as many epochs as its search found best.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from sparse_evidence.core import metrics
from sparse_evidence.core.baselines import Baselines
from sparse_evidence.core.config import DEFAULT_ENCODER, CandidateConfig, ModelConfig
from sparse_evidence.core.features.views import EmbeddedCorpus
from sparse_evidence.core.seeding import numpy_generator, stable_seed
from sparse_evidence.core.splits import Folds
from sparse_evidence.core.training.crossval import CrossValidation
from sparse_evidence.core.training.resampling import fresh_folds
from sparse_evidence.hpo.running.task import StudyTask

METRIC = "average_precision"

Rows = npt.NDArray[np.int64]
Labels = npt.NDArray[np.int8]
Judged = list[npt.NDArray[np.floating]]
"""Logits `[posts, criteria]` of every fold's model for the posts that judge it."""


@dataclass(frozen=True)
class Member:
    """A configuration of an ensemble, or a single one."""

    number: int
    """Seeds its weights, as the number of a trial does, so that no two members begin alike."""
    candidate: CandidateConfig
    epochs: int
    """How many epochs it trains."""


@dataclass(frozen=True)
class Worth:
    """True scores."""

    value: float
    """At the size of a validation fold: the mean over splits, folds and parts."""
    test: float | None
    """On the whole test set; None without one."""
    splits: tuple[float, ...]
    """`value` of every split."""


class Ground:
    """The posts of a study, and the test posts after them.

    Args:
        task: the study's data and folds.
        test: posts that the search has not seen; None: the models of a split are judged on its validation posts.
    """

    def __init__(self, task: StudyTask, test: EmbeddedCorpus | None) -> None:
        self.task, self.test = task, test
        self.labels = task.corpus.labels if test is None else np.concatenate([task.corpus.labels, test.labels])
        self._joined: dict[int, EmbeddedCorpus] = {}

    def features(self, model: ModelConfig) -> EmbeddedCorpus:
        """What a model trains on and predicts."""
        features = self.task.features(model)
        assert isinstance(features, EmbeddedCorpus), "models that read texts cannot be judged here"
        if self.test is None:
            return features
        single = (model.encoder, getattr(model, "window", 1)) == (DEFAULT_ENCODER, 1)
        assert single, "test posts are embedded as single sentences by the default encoder"
        if id(features) not in self._joined:
            self._joined[id(features)] = join(features, self.test)
        return self._joined[id(features)]


def join(first: EmbeddedCorpus, second: EmbeddedCorpus) -> EmbeddedCorpus:
    """Return the posts of one corpus, then those of the other, with the criteria and the evidence of the first."""
    evidence = first.evidence
    if evidence is not None:
        evidence = np.pad(evidence, ((0, len(second.embeddings)), (0, 0)))
    return EmbeddedCorpus(
        np.concatenate([first.embeddings, second.embeddings]),
        np.concatenate([first.offsets, second.offsets[1:] + first.offsets[-1]]),
        first.criteria,
        np.concatenate([first.labels, second.labels]),
        evidence,
    )


def true_worth(
    ground: Ground, ensembles: Mapping[str, Sequence[Member]], *, splits: int, seed: int
) -> dict[str, Worth]:
    """Judge ensembles and the baselines on the same fresh splits; the hold-out stays out.

    Args:
        ground: the posts.
        ensembles: by name, the members whose logits are averaged; one member for a single configuration, and one that
            is listed more often weighs more.
        splits: number of fresh splits; each has fresh weights, too.
        seed: seed of the splits.
    """
    values: dict[str, list[tuple[float, float]]] = {}
    some_model = next(iter(ensembles.values()))[0].candidate.model
    for split in range(splits):
        judge = Judge(ground, stable_seed(seed, "worth", split))
        distinct = dict.fromkeys(member for members in ensembles.values() for member in members)
        logits = {member: judge.train(member) for member in distinct}
        judged = {name: mean_logits([logits[member] for member in members]) for name, members in ensembles.items()}
        for name, predictions in (judged | judge.baselines(some_model)).items():
            values.setdefault(name, []).append(judge.score(predictions))
    result = {}
    for name, pairs in values.items():
        same_size, whole = zip(*pairs, strict=True)
        result[name] = Worth(float(np.mean(same_size)), float(np.mean(whole)) if ground.test else None, same_size)
    return result


def mean_logits(members: Sequence[Judged]) -> Judged:
    """The mean over the members, fold by fold."""
    return [np.mean(fold, axis=0) for fold in zip(*members, strict=True)]


class Judge:
    """One fresh split of the searched posts, and the posts that judge the models of its folds.

    Args:
        ground: the posts.
        seed: seed of the split, of weights, and of the parts of the test set.
        folds: the split itself; default: a fresh one.
    """

    def __init__(self, ground: Ground, seed: int, *, folds: Folds | None = None) -> None:
        self._ground, self._seed = ground, seed
        task, test = ground.task, ground.test
        split = folds or fresh_folds(task.corpus, task.folds, seed)
        posts, extra = len(task.corpus), 0 if test is None else len(test.labels)
        self.folds = Folds(np.pad(split.assignment, (0, extra), constant_values=-1), split.count)
        self.sizes = [len(split.validation(fold)) for fold in range(split.count)]
        """Validation posts of each fold."""
        self.rows: list[Rows] = [
            np.arange(posts, posts + extra) if extra else split.validation(fold) for fold in range(split.count)
        ]
        """The posts that judge each fold's model."""

    def train(self, member: Member, *, seed: int | None = None) -> Judged:
        """Train the folds for exactly as many epochs as the member says, and predict the posts that judge them.

        Args:
            member: the configuration.
            seed: of its weights; default: one of this split and the member's number.
        """
        cv = CrossValidation(
            self._ground.features(member.candidate.model),
            self.folds,
            member.candidate,
            stages=(self.folds.count,),
            metric=METRIC,
            criteria=self._ground.task.criteria,
            seed=stable_seed(self._seed, "trial", member.number) if seed is None else seed,
            fixed_epochs=member.epochs,
        )
        for _ in cv.epochs():
            pass
        (stage,) = cv.stages
        return list(stage.stack.predict(self.rows))

    def baselines(self, model: ModelConfig) -> dict[str, Judged]:
        """The baselines by name, on the features of `model`."""
        corpus = self._ground.task.corpus
        baselines = Baselines(self._ground.features(model), corpus.groups, METRIC)
        by_fold = [baselines.predict(self.folds.train(fold), rows) for fold, rows in enumerate(self.rows)]
        chance = numpy_generator(self._seed, "chance")
        for predictions, rows in zip(by_fold, self.rows, strict=True):
            predictions["chance"] = chance.random((len(rows), len(corpus.criteria)))
        return {name: [predictions[name] for predictions in by_fold] for name in by_fold[0]}

    def score(self, predictions: Judged) -> tuple[float, float]:
        """Mean over the folds of the score at the size of a validation fold, and of that on all posts that judge."""
        labels = self._ground.labels
        same_size, whole = [], []
        for fold, (rows, logits) in enumerate(zip(self.rows, predictions, strict=True)):
            same_size.append(score_parts(labels[rows], logits, self.sizes[fold], self._seed + fold))
            whole.append(metrics.score(METRIC, labels[rows], logits))
        return float(np.mean(same_size)), float(np.mean(whole))


def score_parts(labels: Labels, scores: npt.NDArray[np.floating], size: int, seed: int) -> float:
    """Mean score of random parts of about `size` posts that cover all posts once.

    Like folds, parts are balanced: posts with the same labels are spread evenly over them.

    Args:
        labels: `[posts, criteria]`.
        scores: `[posts, criteria]`.
        size: posts per part; with as many or more than there are, everything is one part.
        seed: draws the parts.
    """
    part = deal(labels, max(1, round(len(labels) / size)), seed)
    parts = [part == number for number in range(part.max() + 1)]
    return float(np.mean([metrics.score(METRIC, labels[rows], scores[rows]) for rows in parts]))


def deal(labels: Labels, parts: int, seed: int) -> Rows:
    """The part of each post, 0 to `parts - 1`: posts in the order of their labels, the rarest first, dealt in turn."""
    generator = numpy_generator(seed, "parts")
    by_frequency = np.argsort(-(labels == 1).sum(0), kind="stable")
    order = np.lexsort((generator.random(len(labels)), *labels[:, by_frequency].T))
    part = np.empty(len(labels), dtype=np.int64)
    part[order] = (np.arange(len(labels)) + generator.integers(parts)) % parts
    return part
