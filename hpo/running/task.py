"""What every worker of a study has before its first trial: corpus, folds, embeddings, floors, fingerprints."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import numpy as np
import numpy.typing as npt

from sparse_evidence.core import metrics
from sparse_evidence.core.config import DEFAULT_ENCODER, MODELS, CandidateConfig, ModelConfig
from sparse_evidence.core.corpus.data import Corpus
from sparse_evidence.core.features.bags import mean_embeddings
from sparse_evidence.core.features.chunks import Chunks, chunk
from sparse_evidence.core.features.embeddings import embed
from sparse_evidence.core.features.encoders import Encoder, locate
from sparse_evidence.core.models import EmbeddedCorpus, Features, TextCorpus, reads_text
from sparse_evidence.core.models.linear import linear_baseline
from sparse_evidence.core.seeding import stable_seed
from sparse_evidence.core.splits import Folds, split
from sparse_evidence.core.training.crossval import CrossValidation

from ..study.definition import StudyDefinition
from ..study.fields import Choices, ParameterSpec

DISTRIBUTION = "sparse-evidence-hpo"

Progress = Callable[[str, int, int], None]
"""Called with (what is going on, done, to do)."""


@dataclass(frozen=True, eq=False)
class StudyTask:
    """A study's data, ready to train on; the same for every trial."""

    definition: StudyDefinition
    corpus: Corpus
    chunks: Chunks
    folds: Folds
    embedded: dict[str, EmbeddedCorpus]
    """By encoder name, one for each that the study may choose to embed with; the default one if there is none."""
    encoders: dict[str, Encoder]
    """By name, every encoder that the study may choose, to embed with or to fine-tune."""
    texts: int
    """Chunks and criteria of the study, over all its encoders."""
    computed: int
    """How many of them had to be embedded just now; the rest was in the cache, or is the same text again."""

    @property
    def criteria(self) -> tuple[str, ...]:
        """The criteria's names, in column order."""
        return tuple(criterion.name for criterion in self.corpus.criteria)

    @property
    def embedding(self) -> str:
        """How much there was to embed, in words."""
        return f"{self.texts} texts, {self.computed} embedded now, {self.texts - self.computed} known or repeated"

    def identity(self) -> dict[str, Any]:
        """What all workers of the study must have in common."""
        revisions = "\n".join(f"{name} {encoder.revision}" for name, encoder in sorted(self.encoders.items()))
        return {
            "definition": self.definition.canonical(),
            "definition_sha256": self.definition.sha256(),
            "data_sha256": self.corpus.fingerprint(),
            "folds_sha256": self.folds.fingerprint(self.corpus.post_ids),
            "encoders_sha256": hashlib.sha256(revisions.encode()).hexdigest(),
            "code": version(DISTRIBUTION),
        }

    def readable(self, model: ModelConfig) -> Features:
        """What a model of the study reads of the posts: their text, or their embeddings."""
        if not reads_text(model):
            return self.embedded[model.encoder]
        criteria = tuple(criterion.text for criterion in self.corpus.criteria)
        return TextCorpus(self.corpus.posts, criteria, self.encoders[model.encoder], self.corpus.labels)

    def baselines(self) -> dict[str, Any]:
        """What must be beaten, on the very folds of the study.

        `linear` and `linear_folds` are the study's metric of a logistic regression on mean embeddings; the others
        need no reading of the text at all (`core.metrics.baselines`).
        """
        first = next(iter(self.embedded.values()))
        probabilities = linear_baseline(mean_embeddings(first.embeddings, first.offsets), first.labels, self.folds)
        per_fold = [self.score(probabilities, fold) for fold in range(self.folds.count)]
        return {
            "linear": float(np.mean(per_fold)),
            "linear_folds": per_fold,
            **metrics.baselines(self.corpus.labels, self.folds.assignment),
        }

    def cross_validation(
        self,
        candidate: CandidateConfig,
        *,
        trial: int | None = None,
        stages: Sequence[int] | None = None,
        device: str = "cpu",
    ) -> CrossValidation:
        """A candidate at its start, on the study's folds.

        Args:
            candidate: what is trained.
            trial: whose seed it is trained with: all trials share the folds, but initial weights and the order of
                batches are each trial's own, or a search finds what the one seed happens to favour. Left out, the
                study's seed itself.
            stages: folds trained in lock-step, in order; left out, the study's own.
            device: where it trains.
        """
        seed = self.definition.search.seed
        return CrossValidation(
            self.readable(candidate.model),
            self.folds,
            candidate,
            stages=stages or self.definition.split.stage_sizes(),
            metric=self.definition.search.metric,
            criteria=self.criteria,
            seed=seed if trial is None else stable_seed(seed, "trial", trial),
            device=device,
        )

    def score(self, probabilities: npt.NDArray[Any], fold: int) -> float:
        """The study's metric on one fold's validation posts, of predictions `[posts, criteria]`."""
        rows = self.folds.validation(fold)
        return metrics.score(self.definition.search.metric, self.corpus.labels[rows], probabilities[rows])


def load_task(definition: StudyDefinition, *, device: str = "cpu", progress: Progress | None = None) -> StudyTask:
    """Load, check, split and embed; whatever was embedded before comes from the cache.

    Raises:
        UserError: data, folds or encoder cannot be used; the message says why.
    """
    tell = progress or (lambda *_: None)
    encoders = {name: locate(name, definition.path.parent) for name in encoder_names(definition)}
    corpus = definition.data.load(definition.path.parent)
    chunks = chunk(corpus.posts, definition.chunks)
    criteria = [criterion.name for criterion in corpus.criteria]
    folds = split(corpus.groups, corpus.labels, definition.split, criteria=criteria)
    embedded: dict[str, EmbeddedCorpus] = {}
    computed = 0
    # the floors need embeddings even where no model of the study reads them
    for name in encoder_names(definition, fine_tuned=False) or [DEFAULT_ENCODER]:
        encoder = encoders.get(name) or locate(name, definition.path.parent)
        embedded[name], new = _embed(corpus, chunks, encoder, device, tell)
        computed += new
    texts = (len(chunks.texts) + len(corpus.criteria)) * len(embedded)
    return StudyTask(definition, corpus, chunks, folds, embedded, encoders, texts, computed)


def _embed(corpus: Corpus, chunks: Chunks, encoder: Encoder, device: str, tell: Progress) -> tuple[EmbeddedCorpus, int]:
    what = f"embedding with {encoder.name}"
    of_chunks = embed(chunks.texts, encoder, device=device, progress=lambda done, all_: tell(what, done, all_))
    of_criteria = embed([criterion.text for criterion in corpus.criteria], encoder, device=device)
    whole = EmbeddedCorpus(of_chunks.vectors, chunks.offsets, of_criteria.vectors, corpus.labels)
    return whole, of_chunks.computed + of_criteria.computed


def encoder_names(definition: StudyDefinition, *, fine_tuned: bool = True) -> list[str]:
    """Every encoder that the study may choose, each once, the default first; with or without those it fine-tunes."""
    names: dict[str, None] = {}
    for alternative in definition.model:
        if not fine_tuned and reads_text(MODELS[alternative.name]()):
            continue
        spec: ParameterSpec = alternative.specs["encoder"]
        values = [spec.default, *spec.values] if isinstance(spec, Choices) else [spec]
        names.update((str(value), None) for value in values)
    return list(names)
