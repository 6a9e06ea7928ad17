"""What a model read of a post, and what its decision hangs on; measured where the evidence is known.

Two rankings of a post's chunks: by attention (what the model looked at) and by contribution, the logit with the chunk
minus the logit without it (what the decision hangs on: occlusion, Zeiler and Fergus, ECCV 2014). Attention alone need
not explain a decision (Jain and Wallace, NAACL 2019), so contribution is the one to show.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional

from .config import TokenConfig
from .features.bags import Bag, ChunkBags
from .features.chunks import Chunks
from .features.retrieval import NOTHING, ChunkIndex, Hits
from .models import TextCorpus, make_inputs
from .models.abmil import Abmil
from .models.iris import Iris
from .models.linear import Linear
from .models.token import Token
from .splits import Folds

Floats = npt.NDArray[np.float32]
Index = npt.NDArray[np.int64]
Ranked = Literal["contribution", "attention"]

POSTS = 64
"""Posts per forward pass."""


class Embeddings(Protocol):
    """Chunks of posts: an `EmbeddedCorpus`, or the `ChunkIndex` of a model trained by hand."""

    @property
    def embeddings(self) -> Floats:
        """float32 `[chunks, dim]`, chunks of a post next to each other."""

    @property
    def offsets(self) -> Index:
        """int64 `[posts + 1]`."""


@dataclass(frozen=True, eq=False)
class Reading:
    """How some posts were read, one entry a post in `posts` int64 `[posts]`.

    `length` is the number of chunks of the longest of them.
    """

    posts: Index
    logits: Floats
    """[posts, criteria]"""
    chunks: Index
    """[posts, length]: numbers of the post's chunks in the corpus, `NOTHING` where it has no more."""
    attention: Floats
    """[posts, criteria, length]: share of the attention, the mean over the queries; adds up to 1, NaN if unknown."""
    contribution: Floats
    """[posts, criteria, length]: logit minus the logit without the chunk; NaN where there is none."""

    def ranking(self, by: Ranked = "contribution") -> Index:
        """Chunks of each post and criterion from the most important to the least, `[posts, criteria, length]`."""
        found = (self.chunks != NOTHING)[:, None]
        score = np.where(found, getattr(self, by), -np.inf)
        order = np.argsort(-score, axis=-1, kind="stable")
        return np.take_along_axis(np.broadcast_to(self.chunks[:, None], score.shape), order, axis=-1)


@dataclass(frozen=True, eq=False)
class EvidenceHits:
    """How often the top chunk is evidence, over all pairs of a post that meets a criterion and evidence for it."""

    posts: Index
    """[pairs]"""
    criteria: Index
    """[pairs]"""
    hit: npt.NDArray[np.bool_]
    """[pairs]: the top chunk is evidence."""
    chance: npt.NDArray[np.float64]
    """[pairs]: the probability that a chunk drawn at random is."""

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
    """What the queries of each criterion look for, and whether they look for different things."""

    cosine: Floats
    """[criteria, queries, queries]: similarity of the queries themselves."""
    overlap: Floats
    """[criteria, queries, queries]: Jaccard similarity of what two queries retrieve of a post, mean over the posts."""
    found: Hits
    """[criteria, queries, k]: the nearest chunks of the whole corpus."""

    @property
    def mean_overlap(self) -> Floats:
        """[criteria]: mean overlap of two different queries; NaN where there is one query."""
        queries = self.overlap.shape[-1]
        if queries == 1:
            return np.full(len(self.overlap), np.nan, dtype=np.float32)
        off = ~np.eye(queries, dtype=bool)
        return np.asarray(self.overlap[:, off].mean(-1), dtype=np.float32)


# ---- reading -----------------------------------------------------------------------------------------------------


def read(model: nn.Module, corpus: Embeddings, posts: Sequence[Index]) -> list[Reading]:
    """How each fold of a model reads its own list of posts.

    Args:
        model: `Iris`, `Abmil` or `Linear`, stacked over folds or alone (one fold); it is read in evaluation mode.
        corpus: the embeddings.
        posts: one list of post numbers a fold, as `FoldStack.predict` takes them; none may be empty.

    Returns:
        One reading a fold, posts in the order given.
    """
    parameter = next(model.parameters())
    bags = ChunkBags(corpus.embeddings, corpus.offsets, parameter.device)
    width = max(map(len, posts))
    rows = np.stack([np.pad(part, (0, width - len(part)), mode="edge") for part in posts])
    length = int(np.diff(corpus.offsets)[rows].max())
    was_training = model.training
    model.eval()
    with torch.no_grad():
        parts = [_read_batch(model, bags.batch(rows[:, at : at + POSTS]), length) for at in range(0, width, POSTS)]
    model.train(was_training)
    logits, attention, contribution = (np.concatenate(found, axis=1) for found in zip(*parts, strict=True))
    return [
        Reading(
            np.asarray(part),
            logits[fold, : len(part)],
            _chunks_of(corpus.offsets, np.asarray(part), length),
            attention[fold, : len(part)],
            contribution[fold, : len(part)],
        )
        for fold, part in enumerate(posts)
    ]


def read_text(
    model: Token, corpus: TextCorpus, config: TokenConfig, chunks: Chunks, posts: Index, *, batch: int = POSTS
) -> Reading:
    """How a fine-tuned transformer reads posts: each of their chunks is cut from the text in turn.

    That is one reading of the post for each of its chunks. There is no attention over chunks: it is NaN.
    """
    counts = np.diff(chunks.offsets)[posts]
    numbers = _chunks_of(chunks.offsets, posts, int(counts.max()))
    texts = [corpus.posts[post] for post in posts]
    for post, own in zip(posts, numbers, strict=True):
        text = corpus.posts[post]
        texts += [text[: chunks.start[c]] + text[chunks.end[c] :] for c in own[own != NOTHING]]
    altered = TextCorpus(tuple(texts), corpus.criteria, corpus.encoder, corpus.labels)
    inputs = make_inputs(config, altered, model.bias.device)
    order = np.argsort(inputs.lengths, kind="stable")
    model.eval()
    with torch.no_grad():
        parts = [model(inputs.batch(order[at : at + batch][None]))[0] for at in range(0, len(order), batch)]
    found = np.empty((len(texts), corpus.labels.shape[1]), dtype=np.float32)
    found[order] = torch.cat(parts).float().cpu().numpy()
    logits, without = found[: len(posts)], found[len(posts) :]
    contribution = np.full((len(posts), logits.shape[1], numbers.shape[1]), np.nan, dtype=np.float32)
    row, place = np.nonzero(numbers != NOTHING)
    contribution[row, :, place] = logits[row] - without
    return Reading(posts, logits, numbers, np.full_like(contribution, np.nan), contribution)


def _read_batch(model: nn.Module, bag: Bag, length: int) -> tuple[Floats, Floats, Floats]:
    """Logits, attention and contributions of one batch, `[folds, width, criteria(, length)]`."""
    logits = _logits(model, bag)
    attention = _attention(model, bag)
    contribution = torch.full_like(attention, torch.nan)
    for place in range(bag.present.shape[-1]):
        present = bag.present.clone()
        present[..., place] = False
        without = torch.where(present.any(-1, keepdim=True), _logits(model, Bag(bag.embeddings, present)), _bias(model))
        here = bag.present[..., place, None]
        contribution[..., place] = torch.where(here, logits - without, torch.nan)
    missing = (0, length - attention.shape[-1])
    return (
        logits.cpu().numpy(),
        functional.pad(attention, missing).cpu().numpy(),
        functional.pad(contribution, missing, value=torch.nan).cpu().numpy(),
    )


def _logits(model: nn.Module, bag: Bag) -> Tensor:
    """Logits `[folds, width, criteria]`; of no chunk at all they mean nothing."""
    if isinstance(model, Linear):
        present = bag.present[..., None]
        return model((bag.embeddings * present).sum(2) / present.sum(2).clamp(min=1))  # type: ignore[no-any-return]
    return model(bag)  # type: ignore[no-any-return]


def _attention(model: nn.Module, bag: Bag) -> Tensor:
    """Attention `[folds, width, criteria, length]`, the mean over a criterion's queries."""
    match model:
        case Iris():
            of_queries, _ = model.attend(bag)  # [folds, width, criteria * queries, length]
            return torch.stack(of_queries.split(model.config.num_queries, dim=2), dim=2).mean(3)
        case Abmil():
            weights, _ = model.attend(bag)
            return weights
        case Linear():
            even = bag.present / bag.present.sum(-1, keepdim=True)
            return even[:, :, None].expand(-1, -1, model.bias.shape[1], -1).contiguous()
    raise TypeError(f"{type(model).__name__} does not read chunks; use read_text for a transformer")


def _bias(model: nn.Module) -> Tensor:
    """What the model says of a post without a single chunk: its bias, `[folds, 1, criteria]`."""
    bias: Tensor = model.bias  # type: ignore[assignment]
    return bias[:, None]


def _chunks_of(offsets: Index, posts: Index, length: int) -> Index:
    """Chunk numbers of each post, `[posts, length]`, filled up with `NOTHING`."""
    numbers = offsets[posts][:, None] + np.arange(length)
    return np.where(numbers < offsets[posts + 1][:, None], numbers, NOTHING)


def joined(readings: Sequence[Reading], folds: Folds | None = None) -> Reading:
    """Several readings as one, e.g. the out-of-fold readings of all folds; with `folds`, of posts in folds only."""
    length = max(reading.chunks.shape[-1] for reading in readings)

    def together(name: str, fill: float) -> npt.NDArray[np.generic]:
        arrays = [getattr(reading, name) for reading in readings]
        pads = [[(0, 0)] * (array.ndim - 1) + [(0, length - array.shape[-1])] for array in arrays]
        return np.concatenate([np.pad(a, pad, constant_values=fill) for a, pad in zip(arrays, pads, strict=True)])

    posts = np.concatenate([reading.posts for reading in readings])
    order = np.argsort(posts, kind="stable")
    if folds is not None:
        order = order[folds.assignment[posts[order]] >= 0]
    return Reading(
        posts[order],
        np.concatenate([reading.logits for reading in readings])[order],
        np.asarray(together("chunks", NOTHING)[order], dtype=np.int64),
        np.asarray(together("attention", 0)[order], dtype=np.float32),
        np.asarray(together("contribution", np.nan)[order], dtype=np.float32),
    )


# ---- measuring ---------------------------------------------------------------------------------------------------


def evidence_hits(
    reading: Reading,
    evidence: npt.NDArray[np.bool_],
    labels: npt.NDArray[np.int8],
    *,
    by: Ranked = "contribution",
) -> EvidenceHits:
    """Is the top chunk evidence? Over all pairs that are labelled positive and have known evidence.

    Args:
        reading: of the posts in question.
        evidence: bool `[chunks, criteria]`, as `core.features.chunks.evidence_mask` gives it.
        labels: int8 `[posts, criteria]` of the whole corpus.
        by: which ranking.
    """
    real = reading.chunks != NOTHING
    truth = evidence[reading.chunks] & real[..., None]  # [posts, length, criteria]
    rows, criteria = np.nonzero((labels[reading.posts] == 1) & truth.any(1))
    top = reading.ranking(by)[rows, criteria, 0]
    chance = truth.sum(1)[rows, criteria] / real.sum(1)[rows]
    return EvidenceHits(reading.posts[rows], criteria, evidence[top, criteria], chance)


def specialisation(model: Iris, corpus: Embeddings, posts: Index, *, fold: int = 0, k: int = 10) -> Specialisation:
    """What the queries of one fold look for.

    Args:
        model: stacked or alone.
        corpus: the embeddings; `found` is looked for in all of it.
        posts: over which the overlap is averaged.
        fold: the fold's place in the stack.
        k: chunks to find for each query.
    """
    queries = functional.normalize(model.queries[fold].detach(), dim=-1)  # [criteria, queries, dim]
    bags = ChunkBags(corpus.embeddings, corpus.offsets, queries.device)
    overlaps = []
    with torch.no_grad():
        for at in range(0, len(posts), POSTS):
            stacked = np.repeat(posts[None, at : at + POSTS], len(model.queries), axis=0)
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
    """Overlap `[..., queries, queries]` of sets, given as bools `[..., queries, chunks]`; none is empty."""
    sets = retrieved.float()
    both = sets @ sets.mT
    size = sets.sum(-1)
    return both / (size[..., :, None] + size[..., None, :] - both)
