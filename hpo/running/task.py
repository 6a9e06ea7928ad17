"""A study's data, ready to train on: what every worker loads before its first trial."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import numpy.typing as npt

from sparse_evidence.core import metrics
from sparse_evidence.core.config import (
    DEFAULT_ENCODER,
    READ_TEXT,
    CandidateConfig,
    EmbeddingModelConfig,
    ModelConfig,
    reads_text,
)
from sparse_evidence.core.corpus.data import Corpus
from sparse_evidence.core.features.chunks import Chunks, chunk_once, windows
from sparse_evidence.core.features.encoders import Encoder, locate
from sparse_evidence.core.features.lengths import within_all
from sparse_evidence.core.features.views import (
    EmbeddedCorpus,
    Features,
    embed_corpus,
    merge_near_duplicates,
    text_corpus,
)
from sparse_evidence.core.seeding import stable_seed
from sparse_evidence.core.splits import Folds, split_once
from sparse_evidence.core.training.resampling import fresh_folds, inner_folds, outer_folds

from ..distribution import DISTRIBUTION
from ..study import space
from ..study.config import OuterFold
from ..study.definition import StudyDefinition
from ..study.fields import Choices, ParameterSpec, Range

# Torch is imported by what computes: a process that only loads the data does without.
if TYPE_CHECKING:
    from sparse_evidence.core.training.crossval import CrossValidation

Progress = Callable[[str, int, int], None]
"""Called with (name of the activity, items done, total items)."""
View = tuple[str, int]
"""An encoder's name, and how many consecutive sentences a chunk is."""


@dataclass(frozen=True, eq=False)
class StudyTask:
    """A study's data, ready to train on; the same for every trial."""

    definition: StudyDefinition
    corpus: Corpus
    chunks: Chunks
    """Single sentences, whatever windows the models use."""
    folds: Folds
    embedded: dict[View, EmbeddedCorpus]
    """For every encoder and window that an embedding model of the study may choose, those of the default configuration
    first; for the default encoder and single sentences if there is none (the baselines need embeddings)."""
    encoders: dict[str, Encoder]
    """By name, every encoder that the study may embed with or fine-tune."""
    texts: int
    """Chunks and criteria of the study, summed over its encoders and windows."""
    computed: int
    """How many of them `load_task` embedded; the others were cached, or repeat another text."""
    cuts: tuple[str, ...] = ()
    """Which chunks were longer than an encoder reads, and cut, in a sentence per encoder."""
    _fresh: dict[int, Folds] = field(default_factory=dict, init=False)
    """The folds of the fresh splits so far: dividing the posts takes as long as a tenth of a small trial."""

    @property
    def criteria(self) -> tuple[str, ...]:
        """The criteria's names, in column order."""
        return tuple(criterion.name for criterion in self.corpus.criteria)

    @property
    def notes(self) -> tuple[str, ...]:
        """What a user should know of what is searched, and of how the data were read, in a sentence each."""
        return (*space.notes(self.definition), *self.corpus.notes, *self.cuts)

    def identity(self) -> dict[str, Any]:
        """What must be identical for all workers of the study."""
        revisions = "\n".join(f"{name} {encoder.revision}" for name, encoder in sorted(self.encoders.items()))
        return {
            "definition": self.definition.canonical(),
            "definition_sha256": self.definition.sha256(),
            "data_sha256": self.corpus.fingerprint(evidence=self._learns_from_evidence()),
            "folds_sha256": self.folds.fingerprint(self.corpus.post_ids),
            "encoders_sha256": hashlib.sha256(revisions.encode()).hexdigest(),
            "code": version(DISTRIBUTION),
        }

    def _learns_from_evidence(self) -> bool:
        """True if some model of the study may train on marked passages: then they are part of its data."""
        return any(alternative.specs.get("evidence_weight", 0.0) != 0.0 for alternative in self.definition.model)

    def features(self, model: ModelConfig) -> Features:
        """The features that a model of the study trains on."""
        if reads_text(model):
            return text_corpus(self.corpus, self.encoders[model.encoder])
        embedding = cast("EmbeddingModelConfig", model)
        return self.embedded[embedding.encoder, embedding.window]

    def baselines(self) -> dict[str, Any]:
        """The scores of the baselines on the study's folds in the study's metric; see `core.baselines.scores`."""
        return self.scored_baselines()[0]

    def scored_baselines(self) -> tuple[dict[str, Any], dict[str, npt.NDArray[np.float32]]]:
        """The scores of the baselines, and the logits `[posts, criteria]` of those that read the posts."""
        from sparse_evidence.core import baselines

        embedded, metric = next(iter(self.embedded.values())), self.definition.search.metric
        predictions = baselines.predict(embedded, self.corpus.groups, self.folds, metric)
        scores = baselines.scores(predictions, self.corpus.labels, self.folds, metric)
        return scores, {name: baselines.as_logits(name, predicted) for name, predicted in predictions.items()}

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
        seed = self.definition.search.seed if trial is None else self.seed(trial)
        return self._untrained(candidate, stages or self.definition.split.stage_sizes(), seed, device)

    def on_split(self, split: int) -> StudyTask:
        """The same data on a fresh split, which is the same for all configurations that are confirmed on it.

        Raises:
            SplitError: the posts cannot be split again.
        """
        if split not in self._fresh:
            self._fresh[split] = fresh_folds(self.corpus, self.folds, self.confirm_seed(split))
        return replace(self, folds=self._fresh[split])

    def outer_folds(self, count: int) -> Folds:
        """The posts of the search, divided into the outer folds of a nested cross-validation.

        Raises:
            SplitError: the posts cannot be divided into that many folds.
        """
        return outer_folds(self.corpus, self.folds, count, self.definition.split.seed)

    def on_outer_fold(self, outer: Folds, number: int) -> StudyTask:
        """The child study that leaves out an outer fold (counted from 1), as `load_task` loads it.

        Raises:
            SplitError: the posts that are left cannot be divided into the study's folds.
        """
        definition = self.definition.on_outer_fold(OuterFold(number, outer.count))
        folds = inner_folds(self.corpus, self.folds, outer, number - 1, definition.split.seed)
        return replace(self, definition=definition, folds=folds)

    def confirm_seed(self, split: int, trial: int | None = None) -> int:
        """The seed of a fresh split's folds, or of a trial that is trained again on that split."""
        return stable_seed(self.definition.search.seed, "confirm", split, *(() if trial is None else (trial,)))

    def confirmation(
        self, candidate: CandidateConfig, *, seed: int, epochs: int, device: str = "cpu"
    ) -> CrossValidation:
        """An untrained candidate, ready for training all folds together for a fixed number of epochs.

        Nothing stops early and no epoch is chosen, so the folds' scores choose nothing.
        """
        return self._untrained(candidate, [self.folds.count], seed, device, epochs)

    def _untrained(
        self,
        candidate: CandidateConfig,
        stages: Sequence[int],
        seed: int,
        device: str,
        fixed_epochs: int | None = None,
    ) -> CrossValidation:
        from sparse_evidence.core.training.crossval import CrossValidation

        return CrossValidation(
            self.features(candidate.model),
            self.folds,
            candidate,
            stages=stages,
            metric=self.definition.search.metric,
            criteria=self.criteria,
            seed=seed,
            device=device,
            fixed_epochs=fixed_epochs,
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


def default_device() -> str:
    """Where a process trains: on the GPU that it sees, or else on the CPU."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def load_task(definition: StudyDefinition, *, device: str = "cpu", progress: Progress | None = None) -> StudyTask:
    """Load, check, split and embed the study's data; texts embedded before come from the cache.

    Raises:
        UserError: data, folds or encoder cannot be used; the message says why.
    """
    folder = definition.path.parent
    encoders = {name: locate(name, folder) for name in encoder_names(definition)}
    corpus = definition.data.load(folder)
    folds = _split(corpus, definition)  # before the embedding, which may take long
    # the baselines need embeddings even if no model of the study does
    views = embedded_views(definition) or [(DEFAULT_ENCODER, 1)]
    embedders = {name: encoders.get(name) or locate(name, folder) for name, _ in views}
    chunks, cuts = within_all(corpus.posts, chunk_once(corpus.posts, definition.chunks), list(embedders.values()))
    embedded: dict[View, EmbeddedCorpus] = {}
    texts = computed = 0
    for name, window in views:
        windowed = windows(corpus.posts, chunks, window)
        embedded[name, window], count = embed_corpus(
            corpus,
            windowed,
            embedders[name],
            device=device,
            precision=definition.chunks.precision,
            progress=_embedding_progress(progress, embedders[name].name, window),
        )
        texts += len(windowed) + len(corpus.criteria)
        computed += count
    if definition.split.merge_near_duplicates:
        corpus = merge_near_duplicates(corpus, embedded[views[0]])
        folds = _split(corpus, definition)
    return StudyTask(definition, corpus, chunks, folds, embedded, encoders, texts, computed, tuple(map(str, cuts)))


def _split(corpus: Corpus, definition: StudyDefinition) -> Folds:
    criteria = [criterion.name for criterion in corpus.criteria]
    folds = split_once(corpus.groups, corpus.labels, definition.split, criteria=criteria)
    if (fold := definition.outer_fold) is None:
        return folds
    outer = outer_folds(corpus, folds, fold.count, definition.split.seed)
    return inner_folds(corpus, folds, outer, fold.number - 1, definition.split.seed)


def _embedding_progress(progress: Progress | None, encoder: str, window: int) -> Callable[[int, int], None] | None:
    several = f", {window} sentences together" if window > 1 else ""
    return None if progress is None else partial(progress, f"embedding with {encoder}{several}")


def encoder_names(definition: StudyDefinition) -> list[str]:
    """Every encoder that the study may embed with or fine-tune, without duplicates, the default first."""
    names = (str(name) for alternative in definition.model for name in _values(alternative.specs["encoder"]))
    return list(dict.fromkeys(names))


def embedded_views(definition: StudyDefinition) -> list[View]:
    """Every encoder and window that an embedding model of the study may choose, each once, the default first."""
    return list(
        dict.fromkeys(
            (str(encoder), int(str(window)))
            for alternative in definition.model
            if alternative.name not in READ_TEXT
            for encoder in _values(alternative.specs["encoder"])
            for window in _values(alternative.specs["window"])
        )
    )


def _values(spec: ParameterSpec) -> list[object]:
    """Every value of a setting that takes few of them, without duplicates, the default first."""
    if isinstance(spec, Choices):
        return list(dict.fromkeys([spec.default, *spec.values]))
    if isinstance(spec, Range):
        steps = range(int(spec.low), int(spec.high) + 1, int(spec.step or 1))
        return list(dict.fromkeys([int(spec.default or spec.low), *steps]))
    return [spec]
