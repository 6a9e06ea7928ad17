"""A fitted model: what a search has found, trained, calibrated and ready for posts that nobody has labelled."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from .. import metrics
from ..config import ChunksConfig, ModelConfig, reads_text
from ..corpus.data import Criterion
from ..features.chunks import Chunks, chunk, windows
from ..features.embeddings import Embedder
from ..features.encoders import Encoder
from ..features.lengths import within_all
from ..features.views import EmbeddedCorpus, Features, TextCorpus
from .member import Member

if TYPE_CHECKING:
    import pandas as pd

Floats = npt.NDArray[np.float64]
Index = npt.NDArray[np.int64]

POSTS_PER_PART = 256
"""Posts that are embedded and predicted together: memory does not grow with the number of posts."""
SENTENCES_PER_PASS = 4096
"""Sentences of the posts that are explained together, counted as if all were as long as the longest."""


@dataclass(frozen=True, eq=False)
class Explanation:
    """What a model says of one post, and which sentences speak for it."""

    probability: Floats
    """[criteria]: calibrated probability that the post meets the criterion."""
    decision: npt.NDArray[np.bool_]
    """[criteria]: the probability reaches the model's threshold; False for a post without text."""
    spans: Index
    """[sentences, 2]: `post[start:end]` is the sentence."""
    contribution: Floats
    """[sentences, criteria]: the logit minus the logit without the sentence, a mean over the models."""

    def evidence(self, criterion: int) -> tuple[int, int] | None:
        """Span of the sentence that speaks most for a criterion, met or not; None if the post has no text."""
        if not len(self.spans):
            return None
        start, end = self.spans[int(self.contribution[:, criterion].argmax())].tolist()
        return start, end


@dataclass(frozen=True, eq=False)
class Calibration:
    """Logits to probabilities: σ(slope · z + intercept) for each criterion (Platt, 1999)."""

    slope: Floats
    """[criteria], positive."""
    intercept: Floats
    """[criteria]"""

    def probabilities(self, logits: npt.NDArray[np.floating]) -> Floats:
        """Probabilities of logits `[..., criteria]`."""
        return metrics.sigmoid(self.logits(logits))

    def logits(self, logits: npt.NDArray[np.floating]) -> Floats:
        """The logits of these probabilities."""
        return np.asarray(self.slope * logits + self.intercept)


@dataclass(frozen=True, eq=False)
class FittedModel:
    """An ensemble that predicts new posts; from `fit` or `load_model`.

    Every fold has its own models. Their calibrated probabilities are averaged over the folds, as in scikit-learn's
    `CalibratedClassifierCV`: the calibration and the threshold were learned on out-of-fold predictions of these models.
    """

    criteria: tuple[Criterion, ...]
    chunks: ChunksConfig
    members: tuple[Member, ...]
    encoders: Mapping[str, Encoder]
    """By name, the encoders that the members read."""
    criteria_embeddings: Mapping[str, npt.NDArray[np.float32]]
    """By encoder, float32 `[criteria, dim]`."""
    calibration: Calibration
    prevalence: Floats
    """[criteria]: share of the labelled training posts that meet it; what is said of a post without text."""
    threshold: float
    """A post meets a criterion if its probability is at least this; the same for all criteria."""
    info: Mapping[str, Any] = field(default_factory=dict)
    """What is known of the model, as plain JSON: study, data, scores."""

    def with_info(self, info: Mapping[str, Any]) -> FittedModel:
        """The same model with other `info`."""
        return replace(self, info=info)

    def probabilities(self, posts: Sequence[str]) -> Floats:
        """Calibrated probabilities `[posts, criteria]`; those of a post without text are the prevalences."""
        parts = [self._probabilities(self._read(part)) for part in _parts(posts)]
        return np.concatenate([np.zeros((0, len(self.criteria))), *parts])

    def probabilities_of(self, features: Callable[[ModelConfig], Features]) -> Floats:
        """Calibrated probabilities `[posts, criteria]` of posts that are embedded already; each has text.

        Args:
            features: the posts as a model reads them.
        """
        return self._average([member.logits(features(member.candidate.model)) for member in self.members])

    def decide(self, posts: Sequence[str], probabilities: Floats) -> npt.NDArray[np.bool_]:
        """Decisions `[posts, criteria]` from `probabilities`; a post without text meets no criterion."""
        has_text = np.array([bool(post.strip()) for post in posts], dtype=np.bool_)
        return np.asarray((probabilities >= self.threshold) & has_text[:, None])

    def explain(self, posts: Sequence[str]) -> list[Explanation]:
        """Probabilities, decisions, and what every sentence contributes to them, of each post."""
        return [explanation for part in _parts(posts) for explanation in self._explain(self._read(part))]

    def predict(self, posts: Sequence[str] | pd.Series) -> pd.DataFrame:
        """Probability, decision and evidence of every post and criterion.

        Args:
            posts: texts; of a series, the index names the posts.

        Returns:
            One row per post and criterion, post after post: `post` (number or index), `criterion`, `probability`,
            `decision` (bool), `evidence` (the sentence that speaks most for the criterion, met or not), and its `start`
            and `end` in the post.
            A post without text has no evidence.
        """
        import pandas as pd

        texts = [str(post) for post in posts]
        index = posts.index if isinstance(posts, pd.Series) else range(len(texts))
        rows = []
        for name, text, explanation in zip(index, texts, self.explain(texts), strict=True):
            for column, criterion in enumerate(self.criteria):
                span = explanation.evidence(column)
                start, end = (None, None) if span is None else span
                evidence = None if span is None else text[start:end]
                decision, probability = bool(explanation.decision[column]), float(explanation.probability[column])
                rows.append((name, criterion.name, probability, decision, evidence, start, end))
        columns = ["post", "criterion", "probability", "decision", "evidence", "start", "end"]
        return pd.DataFrame(rows, columns=columns).astype({"start": "Int64", "end": "Int64"})

    # --- reading ------------------------------------------------------------------------------------------------------

    def features(self, posts: Sequence[str]) -> Posts:
        """The posts as the members read them; posts without text are left out. Nothing is cached."""
        return self._read(posts)

    def _sentences(self, texts: Sequence[str]) -> Chunks:
        """The single sentences of posts that have text, as the members read them."""
        read = [member.candidate.model.encoder for member in self.members if not reads_text(member.candidate.model)]
        encoders = [self.encoders[name] for name in dict.fromkeys(read)]
        return within_all(texts, chunk(texts, self.chunks), encoders)[0]

    def _read(self, posts: Sequence[str]) -> Posts:
        kept = np.flatnonzero([bool(post.strip()) for post in posts])
        texts = tuple(posts[row] for row in kept.tolist())
        sentences = self._sentences(texts)
        views: dict[tuple[str, int], EmbeddedCorpus] = {}
        features: list[Features] = []
        labels = np.full((len(texts), len(self.criteria)), -1, dtype=np.int8)
        for member in self.members if texts else ():
            model = member.candidate.model
            if reads_text(model):
                criteria = tuple(criterion.text for criterion in self.criteria)
                features.append(TextCorpus(texts, criteria, self.encoders[model.encoder], labels))
                continue
            view = (model.encoder, getattr(model, "window", 1))
            if view not in views:
                read = windows(texts, sentences, view[1])
                vectors = self._embedders[view[0]].embed(read.texts)
                views[view] = EmbeddedCorpus(vectors, read.offsets, self.criteria_embeddings[view[0]], labels)
            features.append(views[view])
        return Posts(len(posts), kept, sentences, tuple(features))

    @cached_property
    def _embedders(self) -> dict[str, Embedder]:
        return {name: Embedder(encoder, precision=self.chunks.precision) for name, encoder in self.encoders.items()}

    # --- predicting ---------------------------------------------------------------------------------------------------

    def _probabilities(self, posts: Posts) -> Floats:
        result = np.repeat(self.prevalence[None], posts.count, axis=0)
        if len(posts.kept):
            result[posts.kept] = self._average(
                [member.logits(features) for member, features in zip(self.members, posts.features, strict=True)]
            )
        return result

    def _average(self, logits: Sequence[npt.NDArray[np.floating]]) -> Floats:
        """Probabilities `[posts, criteria]` from the logits `[folds, posts, criteria]` of each member."""
        return np.asarray(self.calibration.probabilities(self._weighted(logits)).mean(0))

    def _weighted(self, logits: Sequence[npt.NDArray[np.floating]]) -> Floats:
        """The mean of the members' logits by their weights."""
        shares = [member.weight * part.astype(np.float64) for member, part in zip(self.members, logits, strict=True)]
        return np.asarray(np.sum(shares, axis=0))

    def _explain(self, posts: Posts) -> list[Explanation]:
        probabilities = self._probabilities(posts)
        nothing = np.zeros((0, 2), dtype=np.int64)
        spans, contributions = [nothing] * posts.count, [np.zeros((0, len(self.criteria)))] * posts.count
        counts = np.diff(posts.sentences.offsets)
        for rows in _similar_lengths(counts):
            pairs = [
                member.occluded(features, posts.sentences, rows)
                for member, features in zip(self.members, posts.features, strict=True)
            ]
            whole, without = (self._weighted([pair[part] for pair in pairs]) for part in (0, 1))
            contribution = (whole[..., None] - without).mean(0)  # [posts, criteria, length]
            for row, found in zip(rows.tolist(), contribution, strict=True):
                post, part = posts.kept[row], slice(*posts.sentences.offsets[row : row + 2].tolist())
                spans[post] = np.stack([posts.sentences.start[part], posts.sentences.end[part]], 1).astype(np.int64)
                contributions[post] = found[:, : counts[row]].T
        return [
            Explanation(probability, (probability >= self.threshold) & bool(len(post_spans)), post_spans, contribution)
            for probability, post_spans, contribution in zip(probabilities, spans, contributions, strict=True)
        ]


@dataclass(frozen=True, eq=False)
class Posts:
    """Some posts, as the members of a model read them."""

    count: int
    """All posts, those without text included."""
    kept: Index
    """[posts with text]: their numbers."""
    sentences: Chunks
    """Of the posts with text."""
    features: tuple[Features, ...]
    """For each member, the posts with text."""


def _parts(posts: Sequence[str]) -> Iterator[Sequence[str]]:
    for at in range(0, len(posts), POSTS_PER_PART):
        yield posts[at : at + POSTS_PER_PART]


def _similar_lengths(counts: Index) -> Iterator[Index]:
    """Numbers of posts in parts of similar length, from the shortest to the longest, that fit into memory."""
    order = np.argsort(counts, kind="stable")
    start = 0
    for end in range(1, len(order) + 1):
        if end == len(order) or (end - start + 1) * counts[order[end]] > SENTENCES_PER_PASS:
            yield order[start:end]
            start = end
