"""One member of a fitted model: the trained models of all folds of one configuration, on posts they have never seen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from ..config import CandidateConfig, is_solved
from ..explain import attribute_text, occlude
from ..features.chunks import Chunks
from ..features.views import Features, TextCorpus
from ..models import Model, make_inputs
from ..training.stack import average_seeds

Floats = npt.NDArray[np.float32]
Index = npt.NDArray[np.int64]

POSTS_PER_PASS = 64


@dataclass(frozen=True, eq=False)
class Member:
    """A configuration, trained on every fold."""

    candidate: CandidateConfig
    models: tuple[Model, ...]
    """The models of every fold and seed: all folds of the first seed, then those of the second, and so on. A model
    that stacks its folds is one module for all of them."""
    weight: float
    """Share of the ensemble; the weights of all members add up to 1."""
    trial: int | None
    """Number of the trial that it was found by; None for a baseline."""
    seed: int
    epochs: int
    """Epochs that it was trained."""

    @property
    def seeds(self) -> int:
        """Models of every fold; one if they are solved."""
        return 1 if is_solved(self.candidate.model) else self.candidate.training.seeds

    def logits(self, features: Features) -> Floats:
        """Logits `[folds, posts, criteria]` of all posts of `features`."""
        inputs = make_inputs(self.candidate.model, features)
        order = np.argsort(inputs.lengths, kind="stable")
        width = min(POSTS_PER_PASS, inputs.max_posts_per_pass or POSTS_PER_PASS)
        rows: list[Floats] = []
        for model in self.models:
            folds = len(model.empty_logits())
            with torch.no_grad():
                parts = [
                    model(inputs.batch(np.tile(order[at : at + width], (folds, 1))))
                    for at in range(0, len(order), width)
                ]
            by_length = torch.cat(parts, dim=1).float().numpy()
            unsorted = np.empty_like(by_length)
            unsorted[:, order] = by_length
            rows += list(unsorted)
        return self._average(rows)

    def occluded(self, features: Features, sentences: Chunks, posts: Index) -> tuple[Floats, Floats]:
        """Logits of some posts, `[folds, posts, criteria]`, and without each sentence, `[..., criteria, length]`.

        `length` is the number of sentences of the longest of these posts; NaN where a post has fewer.

        Args:
            features: all posts, as this member reads them.
            sentences: the single sentences of all posts.
            posts: numbers of the posts, `[posts]`.
        """
        if isinstance(features, TextCorpus):
            return self._cut_from_text(features, sentences, posts)
        counts = np.diff(sentences.offsets)[posts]
        bags, window = features.bags.chunks("cpu"), getattr(self.candidate.model, "window", 1)
        whole: list[Floats] = []
        without: list[Floats] = []
        for model in self.models:
            folds = len(model.empty_logits())
            with torch.no_grad():
                bag = bags.batch(np.tile(posts, (folds, 1)))
                logits, occluded = occlude(model, bag, torch.from_numpy(counts), window=window)
            whole += list(logits.numpy())
            without += list(occluded.numpy())
        return self._average(whole), self._average(without)

    def _cut_from_text(self, features: TextCorpus, sentences: Chunks, posts: Index) -> tuple[Floats, Floats]:
        found = [attribute_text(model, features, self.candidate.model, sentences, posts) for model in self.models]
        whole = [attribution.logits for attribution in found]
        without = [attribution.logits[..., None] - attribution.contribution for attribution in found]
        return self._average(whole), self._average(without)

    def _average(self, rows: Sequence[Floats]) -> Floats:
        return np.stack(average_seeds(list(rows), self.seeds))
