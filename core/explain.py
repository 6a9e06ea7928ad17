"""Attribute a decision to the chunks of its post, and measure attributions where the evidence is known.

There are two rankings of a post's chunks: by attention (the weight of a chunk in the model) and by contribution, the
logit with the chunk minus the logit without it (occlusion, Zeiler and Fergus, ECCV 2014). Attention alone need not
explain a decision (Jain and Wallace, NAACL 2019), so contribution is the one to show.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from .config import ModelConfig
from .features.bags import Bag
from .features.chunks import Chunks
from .features.device_bags import DeviceBags
from .features.retrieval import NOTHING, ChunkIndex, Hits
from .features.views import TextCorpus
from .models import Inputs, Model, make_inputs
from .models.iris import Iris

Floats = npt.NDArray[np.float32]
Index = npt.NDArray[np.int64]
Scalar = TypeVar("Scalar", bound=np.generic)
RankBy = Literal["contribution", "attention"]

POSTS_PER_PASS = 64


class ChunkEmbeddings(Protocol):
    """The embedded chunks of posts: an `EmbeddedCorpus`, or the `ChunkIndex` of a model trained by hand."""

    @property
    def embeddings(self) -> Floats:
        """float32 `[chunks, dim]`, chunks of a post next to each other."""

    @property
    def offsets(self) -> Index:
        """int64 `[posts + 1]`."""

    @property
    def bags(self) -> DeviceBags:
        """The embeddings on the devices where models train."""


@dataclass(frozen=True, eq=False)
class Attribution:
    """What the chunks of some posts contribute to their logits.

    `length` in the shapes is the number of chunks of the longest post.
    """

    posts: Index
    """[posts]: post numbers in the corpus."""
    logits: Floats
    """[posts, criteria]"""
    chunks: Index
    """[posts, length]: numbers of the post's chunks in the corpus, `NOTHING` after the last."""
    attention: Floats
    """[posts, criteria, length]: attention, the mean over the queries; adds up to 1; NaN if the model has none."""
    contribution: Floats
    """[posts, criteria, length]: logit minus the logit without the chunk; NaN where there is no chunk."""

    def ranking(self, by: RankBy = "contribution") -> Index:
        """Chunks of each post and criterion from the most important to the least, `[posts, criteria, length]`."""
        present = (self.chunks != NOTHING)[:, None]
        score = np.where(present, self.contribution if by == "contribution" else self.attention, -np.inf)
        order = np.argsort(-score, axis=-1, kind="stable")
        return np.take_along_axis(np.broadcast_to(self.chunks[:, None], score.shape), order, axis=-1)


@dataclass(frozen=True, eq=False)
class EvidenceHits:
    """Whether the top chunk is evidence, for each pair of a post and a criterion with known evidence."""

    posts: Index
    """[pairs]"""
    criteria: Index
    """[pairs]"""
    hit: npt.NDArray[np.bool_]
    """[pairs]: the top chunk is evidence."""
    chance: npt.NDArray[np.float64]
    """[pairs]: the probability that a random chunk of the post is evidence."""

    @property
    def rate(self) -> float:
        """Precision at 1; NaN if there is no pair."""
        return float(self.hit.mean()) if len(self.hit) else float("nan")

    @property
    def expected(self) -> float:
        """Precision at 1 of a random chunk; NaN if there is no pair."""
        return float(self.chance.mean()) if len(self.chance) else float("nan")


@dataclass(frozen=True, eq=False)
class Specialisation:
    """What the queries of each criterion retrieve, and whether they retrieve different chunks."""

    cosine: Floats
    """[criteria, queries, queries]: cosine similarity of the queries."""
    overlap: Floats
    """[criteria, queries, queries]: Jaccard similarity of the chunks that two queries retrieve, mean over the posts."""
    nearest: Hits
    """[criteria, queries, k]: the nearest chunks of the whole corpus."""

    @property
    def mean_overlap(self) -> Floats:
        """[criteria]: mean overlap of two different queries; NaN if there is only one query."""
        queries = self.overlap.shape[-1]
        if queries == 1:
            return np.full(len(self.overlap), np.nan, dtype=np.float32)
        off_diagonal = ~np.eye(queries, dtype=bool)
        return np.asarray(self.overlap[:, off_diagonal].mean(-1), dtype=np.float32)


# ---- attributing -------------------------------------------------------------------------------------------------


def attribute(model: Model, corpus: ChunkEmbeddings, posts: Sequence[Index]) -> list[Attribution]:
    """Attribute the logits of each fold's posts to their chunks.

    Args:
        model: a model that reads chunks, stacked over folds or with a single fold; it runs in evaluation mode.
        corpus: the embeddings.
        posts: one list of post numbers for each fold, none empty.

    Returns:
        One attribution for each fold, in the order of its posts.

    Raises:
        TypeError: the model does not read chunks.
    """
    bags = corpus.bags.chunks(next(model.parameters()).device)
    width = max(map(len, posts))
    rows = np.stack([np.pad(part, (0, width - len(part)), mode="edge") for part in posts])
    length = int(np.diff(corpus.offsets)[rows].max())
    was_training = model.training
    model.eval()
    with torch.no_grad():
        parts = [
            _attribute_batch(model, bags.batch(rows[:, at : at + POSTS_PER_PASS]), length)
            for at in range(0, width, POSTS_PER_PASS)
        ]
    model.train(was_training)
    logits, attention, contribution = (np.concatenate(arrays, axis=1) for arrays in zip(*parts, strict=True))
    return [
        Attribution(
            np.asarray(part),
            logits[fold, : len(part)],
            _chunk_numbers(corpus.offsets, np.asarray(part), length),
            attention[fold, : len(part)],
            contribution[fold, : len(part)],
        )
        for fold, part in enumerate(posts)
    ]


def _attribute_batch(model: Model, bag: Bag, length: int) -> tuple[Floats, Floats, Floats]:
    """Logits `[folds, width, criteria]`, attention and contributions `[folds, width, criteria, length]` of a batch."""
    attention = model.attention(bag)
    logits, without = occlude(model, bag, bag.present.sum(-1))
    contribution = logits[..., None] - without
    padding = (0, length - attention.shape[-1])
    return (
        logits.cpu().numpy(),
        functional.pad(attention, padding).cpu().numpy(),
        functional.pad(contribution, padding, value=torch.nan).cpu().numpy(),
    )


def occlude(model: Model, bag: Bag, sentences: Tensor, *, window: int = 1) -> tuple[Tensor, Tensor]:
    """Predict posts whole, and without each of their sentences.

    A post without a sentence is the post without every chunk that the sentence is in.

    Args:
        model: a model that reads chunks, in evaluation mode.
        bag: the posts.
        sentences: int64, number of sentences of each post, `[width]` or `[folds, width]`.
        window: consecutive sentences in a chunk; a shorter post is one chunk.

    Returns:
        Logits `[folds, width, criteria]`, and those without each sentence `[folds, width, criteria, length]`, where
        `length` is the number of sentences of the longest post; NaN where a post has fewer.

    Raises:
        TypeError: the model does not read chunks.
    """
    logits = model.chunk_logits(bag)
    chunk = torch.arange(bag.present.shape[-1], device=bag.present.device)
    without = []
    for sentence in range(int(sentences.max())):
        # of a post that is shorter than the window, the only chunk holds every sentence
        first = torch.clamp(bag.present.sum(-1, keepdim=True) - 1, max=max(0, sentence - window + 1))
        present = bag.present & ((chunk < first) | (chunk > sentence))
        occluded = torch.where(
            present.any(-1, keepdim=True), model.chunk_logits(Bag(bag.embeddings, present)), model.empty_logits()
        )
        exists = (sentence < sentences).to(logits.device)[..., None]
        without.append(torch.where(exists, occluded, torch.nan))
    return logits, torch.stack(without, dim=-1)


def attribute_text(
    model: Model,
    corpus: TextCorpus,
    config: ModelConfig,
    chunks: Chunks,
    posts: Index,
    *,
    batch_size: int = POSTS_PER_PASS,
) -> Attribution:
    """Attribute the logits of posts to their chunks, for a model that reads text.

    Each chunk is cut from the text in turn, so a post is predicted once for each of its chunks. The model has no
    attention over chunks: `attention` is NaN.

    Args:
        model: a model of a single fold that reads text.
        corpus: the texts.
        config: the model's configuration.
        chunks: the chunks of all posts of the corpus.
        posts: numbers of the posts to explain, `[posts]`.
        batch_size: texts in one forward pass.

    Raises:
        ConfigError: the encoder does not support the configuration.
        TypeError: the configuration is that of a model on embeddings.
    """
    counts = np.diff(chunks.offsets)[posts]
    numbers = _chunk_numbers(chunks.offsets, posts, int(counts.max()))
    texts = [corpus.posts[post] for post in posts]
    for post, post_chunks in zip(posts, numbers, strict=True):
        text = corpus.posts[post]
        texts += [text[: chunks.start[c]] + text[chunks.end[c] :] for c in post_chunks[post_chunks != NOTHING]]
    occluded = TextCorpus(tuple(texts), corpus.criteria, corpus.encoder, corpus.labels)
    predicted = _predict(model, make_inputs(config, occluded, model.bias.device), batch_size)
    logits, without = predicted[: len(posts)], predicted[len(posts) :]
    contribution = np.full((len(posts), logits.shape[1], numbers.shape[1]), np.nan, dtype=np.float32)
    rows, columns = np.nonzero(numbers != NOTHING)
    contribution[rows, :, columns] = logits[rows] - without
    return Attribution(posts, logits, numbers, np.full_like(contribution, np.nan), contribution)


def _predict(model: Model, inputs: Inputs, batch_size: int) -> Floats:
    """Logits `[posts, criteria]` of all posts of `inputs`, from a model of a single fold."""
    order = np.argsort(inputs.lengths, kind="stable")
    model.eval()
    with torch.no_grad():
        parts = [model(inputs.batch(order[at : at + batch_size][None]))[0] for at in range(0, len(order), batch_size)]
    ordered = torch.cat(parts).float().cpu().numpy()
    logits = np.empty_like(ordered)
    logits[order] = ordered
    return logits


def _chunk_numbers(offsets: Index, posts: Index, length: int) -> Index:
    """Chunk numbers of each post, `[posts, length]`, padded with `NOTHING`."""
    numbers = offsets[posts][:, None] + np.arange(length)
    return np.where(numbers < offsets[posts + 1][:, None], numbers, NOTHING)


def concatenate(attributions: Sequence[Attribution]) -> Attribution:
    """Combine attributions, e.g. the out-of-fold attributions of all folds, in the order of their posts."""
    length = max(attribution.chunks.shape[-1] for attribution in attributions)
    posts = np.concatenate([attribution.posts for attribution in attributions])
    order = np.argsort(posts, kind="stable")
    return Attribution(
        posts[order],
        np.concatenate([attribution.logits for attribution in attributions])[order],
        _padded([attribution.chunks for attribution in attributions], length, NOTHING)[order],
        _padded([attribution.attention for attribution in attributions], length, 0)[order],
        _padded([attribution.contribution for attribution in attributions], length, np.nan)[order],
    )


def _padded(arrays: Sequence[npt.NDArray[Scalar]], length: int, fill: float) -> npt.NDArray[Scalar]:
    """Concatenate arrays `[posts, ..., chunks]`, the last axis padded to `length`."""
    pads = [[(0, 0)] * (array.ndim - 1) + [(0, length - array.shape[-1])] for array in arrays]
    return np.concatenate([np.pad(a, pad, constant_values=fill) for a, pad in zip(arrays, pads, strict=True)])


# ---- measuring ---------------------------------------------------------------------------------------------------


def evidence_hits(
    attribution: Attribution,
    evidence: npt.NDArray[np.bool_],
    labels: npt.NDArray[np.int8],
    *,
    by: RankBy = "contribution",
) -> EvidenceHits:
    """Check whether the top chunk is evidence, for all pairs that are labelled positive and have known evidence.

    Args:
        attribution: of the posts to measure.
        evidence: bool `[chunks, criteria]`, from `core.features.chunks.evidence_mask`.
        labels: int8 `[posts, criteria]` of the whole corpus.
        by: the ranking of the chunks.
    """
    present = attribution.chunks != NOTHING
    truth = evidence[attribution.chunks] & present[..., None]  # [posts, length, criteria]
    rows, criteria = np.nonzero((labels[attribution.posts] == 1) & truth.any(1))
    top = attribution.ranking(by)[rows, criteria, 0]
    chance = truth.sum(1)[rows, criteria] / present.sum(1)[rows]
    return EvidenceHits(attribution.posts[rows], criteria, evidence[top, criteria], chance)


def specialisation(model: Iris, corpus: ChunkEmbeddings, posts: Index, *, fold: int = 0, k: int = 10) -> Specialisation:
    """Measure what the queries of one fold retrieve.

    Args:
        model: an IRIS, stacked over folds or with a single fold.
        corpus: the embeddings; `nearest` searches all of them.
        posts: the posts over which the overlap is averaged.
        fold: the fold's position in the stack.
        k: number of nearest chunks for each query.
    """
    queries = functional.normalize(model.queries[fold].detach(), dim=-1)  # [criteria, queries, dim]
    bags = corpus.bags.chunks(queries.device)
    overlaps = []
    with torch.no_grad():
        for at in range(0, len(posts), POSTS_PER_PASS):
            stacked = np.repeat(posts[None, at : at + POSTS_PER_PASS], len(model.queries), axis=0)
            weights = model.attend(bags.batch(stacked))[0][fold]
            overlaps.append(_jaccard(weights.unflatten(1, queries.shape[:2]) > 0))
    flat = queries.flatten(0, 1).cpu().numpy()
    hits = ChunkIndex(corpus.embeddings, corpus.offsets).search(flat, k)
    shape = (*queries.shape[:2], k)
    return Specialisation(
        (queries @ queries.mT).cpu().numpy(),
        torch.cat(overlaps).mean(0).cpu().numpy(),
        Hits(hits.chunks.reshape(shape), hits.similarity.reshape(shape)),
    )


def _jaccard(retrieved: Tensor) -> Tensor:
    """Jaccard similarity `[..., queries, queries]` of non-empty sets, given as bools `[..., queries, chunks]`."""
    sets = retrieved.float()
    intersection = sets @ sets.mT
    size = sets.sum(-1)
    return intersection / (size[..., :, None] + size[..., None, :] - intersection)
