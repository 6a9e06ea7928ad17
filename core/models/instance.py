"""instance: a score for every sentence and criterion, pooled over the post.

The scores are pooled by log-mean-exp, (1/r) log mean exp(r s), between the mean (r → 0) and the maximum (r → ∞) of a
post's sentences: Pinheiro and Collobert, "From Image-level to Pixel-level Labeling with Convolutional Networks" (CVPR
2015). All folds of a stage live in one module: every parameter has a leading `folds` axis.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional

from ..config import InstanceConfig
from ..features.bags import Bag
from ..features.views import EmbeddedCorpus
from .base import Model, normal
from .dropout import FoldDropout
from .standard import Standard

LINEAR_WEIGHT = 4.0
"""Factor of the linear part: the entries of unit vectors are small, so its weights would learn slowly."""


class Instance(Model):
    """Chunk → small network, linear part, similarities → score per criterion → log-mean-exp over the post → logit.

    s = headᵀ ReLU(W x + b) + Lᵀ x + Sᵀ z, where z are the standardised cosines of the chunk with the texts of all
    criteria. L and S start at zero.

    Args:
        config: width, dropout, sharpness, and what enters the score and the loss.
        criteria: float32 `[criteria, dim]`, embeddings of the criteria's texts.
        prior: float32 `[folds, criteria]`, log-odds of each criterion in the fold's training part.
        seed: seeds the initial weights, together with the fold number.
        folds: fold numbers; the initial weights of a fold do not depend on the folds it is stacked with.
    """

    weight: nn.Parameter
    weight_bias: nn.Parameter
    head: nn.Parameter
    linear: nn.Parameter
    similarity_head: nn.Parameter
    texts: Tensor
    evidence_scale: Tensor

    def __init__(
        self, config: InstanceConfig, criteria: Tensor, prior: Tensor, *, seed: int, folds: Sequence[int]
    ) -> None:
        super().__init__()
        self.config = config
        self.criteria, self.dim = criteria.shape
        self._stack_folds(self._start, prior, seed=seed, folds=folds)
        if config.similarities:
            # given by the corpus: neither trained nor part of the state
            self.register_buffer("texts", functional.normalize(criteria, dim=-1), persistent=False)
            self.standard = Standard(len(folds), self.criteria)
        if config.evidence_weight:
            self.register_buffer("evidence_scale", torch.zeros(len(folds)))
        self.dropout = FoldDropout(config.dropout)
        self._marked: tuple[Tensor, Bag] | None = None
        """Scores and bag of the last training pass, until `auxiliary_loss`."""

    @classmethod
    def build(
        cls,
        config: InstanceConfig,
        features: EmbeddedCorpus,
        prior: Tensor,
        *,
        seed: int,
        folds: Sequence[int],
        train: Sequence[npt.NDArray[np.int64]],
    ) -> Instance:
        """The model for a corpus; the other arguments are those of the class and of `Model.build`."""
        model = cls(config, torch.from_numpy(features.criteria), prior, seed=seed, folds=folds)
        if config.similarities:
            model._standardise(features, train)
        if config.evidence_weight:
            model._scale_evidence(features, train)
        return model

    def _start(self, generator: torch.Generator) -> dict[str, Tensor]:
        """The initial weights of one fold."""
        width = self.config.hidden
        weights = {
            "weight": normal(generator, self.dim, width, std=1.0),  # unit vectors in, unit variance out
            "weight_bias": torch.zeros(width),
            "head": normal(generator, width, self.criteria, std=0.1 / math.sqrt(width)),
            "linear": torch.zeros(self.dim, self.criteria),
        }
        if self.config.similarities:
            weights["similarity_head"] = torch.zeros(self.criteria, self.criteria)
        return weights

    def _standardise(self, features: EmbeddedCorpus, train: Sequence[npt.NDArray[np.int64]]) -> None:
        """Compute the constants of the similarities from the chunks of each fold's training posts."""
        cosines = torch.from_numpy(features.embeddings) @ self.texts.mT
        lengths = np.diff(features.offsets)
        for fold, posts in enumerate(train):
            chosen = np.zeros(len(lengths), dtype=np.bool_)
            chosen[posts] = True
            self.standard.fit(fold, cosines[torch.from_numpy(np.repeat(chosen, lengths))])

    def _scale_evidence(self, features: EmbeddedCorpus, train: Sequence[npt.NDArray[np.int64]]) -> None:
        """Compute the factor that turns sums over the marked pairs of a batch into a mean over those of a fold."""
        if features.evidence is None or not features.evidence.any():
            return
        marked = np.logical_or.reduceat(features.evidence, features.offsets[:-1], axis=0) & (features.labels == 1)
        sentences = np.diff(features.offsets)[:, None] * marked
        for fold, posts in enumerate(train):
            count, labelled = int(sentences[posts].sum()), int((features.labels[posts] >= 0).sum())
            self.evidence_scale[fold] = self.config.evidence_weight * labelled / count if count else 0.0

    def forward(self, bag: Bag) -> Tensor:
        """Logits `[folds, width, criteria]` of a bag of posts."""
        scores = self._scores(bag)
        if self.training and bag.marks is not None:
            self._marked = scores, bag
        sharpness = self.config.sharpness
        present = (scores * sharpness).masked_fill(~bag.present[..., None], -math.inf)
        counts = bag.present.sum(-1, keepdim=True).clamp(min=1)
        return (torch.logsumexp(present, dim=2) - counts.log()) / sharpness + self.bias[:, None]

    def _scores(self, bag: Bag) -> Tensor:
        """Scores of the chunks, without the bias, `[folds, width, length, criteria]`."""
        folds, width, length, dim = bag.embeddings.shape
        # hidden features, linear part and cosines in one matrix product over the chunks
        parts: list[Tensor] = [self.weight, self.linear]
        if self.config.similarities:
            parts.append(self.texts.mT.expand(folds, -1, -1))
        chunks = bag.embeddings.view(folds, width * length, dim)
        hidden, linear, *cosines = torch.bmm(chunks, torch.cat(parts, dim=-1)).split(
            [part.shape[-1] for part in parts], dim=-1
        )
        features = torch.relu(hidden + self.weight_bias[:, None])
        if self.training and self.config.dropout:
            # One draw per post, for all its chunks: the number of draws must not depend on the longest post of a batch,
            # which may be another fold's.
            kept = self.dropout(features.new_ones(folds, width, 1, features.shape[-1]))
            features = (features.view(folds, width, length, -1) * kept).view(folds, width * length, -1)
        scores = torch.baddbmm(linear, features, self.head, beta=LINEAR_WEIGHT)
        if cosines:
            scores = torch.baddbmm(scores, self.standard(cosines[0]), self.similarity_head)
        return scores.view(folds, width, length, -1)

    def auxiliary_loss(self, targets: Tensor) -> Tensor | None:
        """Weighted cross-entropy of the scores against the marks, for the last batch that was passed, `[folds]`.

        It counts the chunks of posts that meet a criterion and have marked chunks for it. Weighted by the labelled
        pairs of each batch, as the loss is, its mean over an epoch is `evidence_weight` times the mean over these
        chunks.
        """
        if self._marked is None:
            return None
        (scores, bag), self._marked = self._marked, None
        assert bag.marks is not None
        counted = bag.present[..., None] & (bag.marks.any(2) & (targets == 1))[:, :, None]
        loss = functional.binary_cross_entropy_with_logits(
            scores + self.bias[:, None, None], bag.marks.to(scores.dtype), reduction="none"
        )
        labelled = (targets >= 0).sum((1, 2)).clamp(min=1)
        return (loss * counted).sum((1, 2, 3)) * self.evidence_scale / labelled

    def chunk_logits(self, bag: Bag) -> Tensor:
        """Logits `[folds, width, criteria]`, as `forward`."""
        return self(bag)  # type: ignore[no-any-return]

    def attention(self, bag: Bag) -> Tensor:
        """Attention `[folds, width, criteria, length]`: softmax of r s, the share of a chunk in the pooled score."""
        scores = (self._scores(bag) * self.config.sharpness).masked_fill(~bag.present[..., None], -math.inf)
        return torch.softmax(scores, dim=2).transpose(2, 3)

    def reseed(self, keys: Sequence[tuple[int | str, ...]]) -> None:
        """Seed the dropout of each fold for the coming epoch."""
        self.dropout.reseed(keys)
