"""A study's data, ready to train on: what every worker loads before its first trial."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import version
from typing import Any

import numpy as np
import numpy.typing as npt

from sparse_evidence.core import baselines, metrics
from sparse_evidence.core.config import DEFAULT_ENCODER, CandidateConfig, ModelConfig
from sparse_evidence.core.corpus.data import Corpus
from sparse_evidence.core.features.chunks import Chunks, chunk
from sparse_evidence.core.features.encoders import Encoder, locate
from sparse_evidence.core.features.views import EmbeddedCorpus, Features, embed_corpus, text_corpus
from sparse_evidence.core.models import REGISTRY, reads_text
from sparse_evidence.core.seeding import stable_seed
from sparse_evidence.core.selection import Scorer, make_blocks
from sparse_evidence.core.splits import Folds, split
from sparse_evidence.core.training.crossval import CrossValidation
from sparse_evidence.core.training.resampling import fresh_folds

from .. import DISTRIBUTION
from ..study.definition import StudyDefinition
from ..study.fields import Choices, ParameterSpec

Progress = Callable[[str, int, int], None]
"""Called with (name of the activity, items done, total items)."""


@dataclass(frozen=True, eq=False)
class StudyTask:
    """A study's data, ready to train on; the same for every trial."""

    definition: StudyDefinition
    corpus: Corpus
    chunks: Chunks
    folds: Folds
    embedded: dict[str, EmbeddedCorpus]
    """By encoder name: for every encoder that the study may embed with, or for the default encoder if there is none
    (the baselines need embeddings)."""
    encoders: dict[str, Encoder]
    """By name, every encoder that the study may embed with or fine-tune."""
    texts: int
    """Chunks and criteria of the study, summed over its encoders."""
    computed: int
    """How many of them `load_task` embedded; the others were cached, or repeat another text."""

    @property
    def criteria(self) -> tuple[str, ...]:
        """The criteria's names, in column order."""
        return tuple(criterion.name for criterion in self.corpus.criteria)

    def identity(self) -> dict[str, Any]:
        """What must be identical for all workers of the study."""
        revisions = "\n".join(f"{name} {encoder.revision}" for name, encoder in sorted(self.encoders.items()))
        return {
            "definition": self.definition.canonical(),
            "definition_sha256": self.definition.sha256(),
            "data_sha256": self.corpus.fingerprint(),
            "folds_sha256": self.folds.fingerprint(self.corpus.post_ids),
            "encoders_sha256": hashlib.sha256(revisions.encode()).hexdigest(),
            "code": version(DISTRIBUTION),
        }

    def features(self, model: ModelConfig) -> Features:
        """The features that a model of the study trains on."""
        if reads_text(model):
            return text_corpus(self.corpus, self.encoders[model.encoder])
        return self.embedded[model.encoder]

    def baselines(self) -> dict[str, Any]:
        """The scores of the baselines on the study's folds in the study's metric; see `core.baselines.scores`."""
        metric = self.definition.search.metric
        return baselines.scores(self.baseline_predictions(), self.corpus.labels, self.folds, metric)

    def baseline_predictions(self) -> dict[str, npt.NDArray[np.float64]]:
        """Predictions `[posts, criteria]` of the baselines on the study's folds; see `core.baselines.predict`."""
        embedded = next(iter(self.embedded.values()))
        return baselines.predict(embedded, self.corpus.groups, self.folds, self.definition.search.metric)

    def scorer(self) -> Scorer:
        """Scores predictions on the study's folds, and without blocks of posts that are the same on every split."""
        included = self.folds.assignment >= 0
        blocks = make_blocks(self.corpus.groups, included, self.definition.search.seed)
        return Scorer(self.definition.search.metric, self.corpus.labels, self.folds, blocks)

    def cross_validation(
        self,
        candidate: CandidateConfig,
        *,
        trial: int | None = None,
        stages: Sequence[int] | None = None,
        device: str = "cpu",
    ) -> CrossValidation:
        """An untrained candidate, ready for cross-validation on the study's folds.

        Args:
            candidate: the configuration to train.
            trial: number of the trial, which seeds it (see `seed`); default: the study's seed itself.
            stages: how many folds each stage trains in lock-step; default: the study's.
            device: where it trains.
        """
        return CrossValidation(
            self.features(candidate.model),
            self.folds,
            candidate,
            stages=stages or self.definition.split.stage_sizes(),
            metric=self.definition.search.metric,
            criteria=self.criteria,
            seed=self.definition.search.seed if trial is None else self.seed(trial),
            device=device,
        )

    def on_split(self, split: int) -> StudyTask:
        """The same data on a fresh split, which is the same for all configurations that are confirmed on it.

        Raises:
            SplitError: the posts cannot be split again.
        """
        return replace(self, folds=fresh_folds(self.corpus, self.folds, self.confirm_seed(split)))

    def confirm_seed(self, split: int, trial: int | None = None) -> int:
        """The seed of a fresh split's folds, or of a trial that is trained again on that split."""
        return stable_seed(self.definition.search.seed, "confirm", split, *(() if trial is None else (trial,)))

    def confirmation(
        self, candidate: CandidateConfig, *, seed: int, epochs: int, device: str = "cpu"
    ) -> CrossValidation:
        """An untrained candidate, ready for training all folds together for a fixed number of epochs.

        Nothing stops early and no epoch is chosen, so the folds' scores choose nothing.
        """
        return CrossValidation(
            self.features(candidate.model),
            self.folds,
            candidate,
            stages=[self.folds.count],
            metric=self.definition.search.metric,
            criteria=self.criteria,
            seed=seed,
            device=device,
            fixed_epochs=epochs,
        )

    def seed(self, trial: int) -> int:
        """The seed of a trial's weights, batches and dropout.

        With one seed for all trials, the search would favor whatever suits that seed.
        """
        return stable_seed(self.definition.search.seed, "trial", trial)

    def score(self, probabilities: npt.NDArray[Any], fold: int) -> float:
        """The study's metric for predictions `[posts, criteria]`, on the validation posts of one fold."""
        rows = self.folds.validation(fold)
        return metrics.score(self.definition.search.metric, self.corpus.labels[rows], probabilities[rows])


def load_task(definition: StudyDefinition, *, device: str = "cpu", progress: Progress | None = None) -> StudyTask:
    """Load, check, split and embed the study's data; texts embedded before come from the cache.

    Raises:
        UserError: data, folds or encoder cannot be used; the message says why.
    """
    folder = definition.path.parent
    encoders = {name: locate(name, folder) for name in encoder_names(definition)}
    corpus = definition.data.load(folder)
    chunks = chunk(corpus.posts, definition.chunks)
    criteria = [criterion.name for criterion in corpus.criteria]
    folds = split(corpus.groups, corpus.labels, definition.split, criteria=criteria)
    # the baselines need embeddings even if no model of the study does
    names = encoder_names(definition, fine_tuned=False) or [DEFAULT_ENCODER]
    embedders = {name: encoders.get(name) or locate(name, folder) for name in names}
    embedded, computed = _embed(corpus, chunks, embedders, device, progress)
    texts = (len(chunks.texts) + len(corpus.criteria)) * len(embedded)
    return StudyTask(definition, corpus, chunks, folds, embedded, encoders, texts, computed)


def _embed(
    corpus: Corpus, chunks: Chunks, encoders: dict[str, Encoder], device: str, progress: Progress | None
) -> tuple[dict[str, EmbeddedCorpus], int]:
    """The corpus embedded with every encoder, and how many texts were computed."""
    embedded: dict[str, EmbeddedCorpus] = {}
    computed = 0
    for name, encoder in encoders.items():
        report = None if progress is None else partial(progress, f"embedding with {encoder.name}")
        embedded[name], count = embed_corpus(corpus, chunks, encoder, device=device, progress=report)
        computed += count
    return embedded, computed


def encoder_names(definition: StudyDefinition, *, fine_tuned: bool = True) -> list[str]:
    """Every encoder that the study may choose, without duplicates, the default first; fine-tuned ones are optional."""
    names: dict[str, None] = {}
    for alternative in definition.model:
        if not fine_tuned and REGISTRY[alternative.name].reads_text:
            continue
        spec: ParameterSpec = alternative.specs["encoder"]
        values = [spec.default, *spec.values] if isinstance(spec, Choices) else [spec]
        names.update((str(value), None) for value in values)
    return list(names)
