"""Whether the sentence that a fitted model shows is evidence, where the evidence is known."""

from __future__ import annotations

import numpy as np

from ..corpus.data import Corpus
from ..explain import EvidenceHits
from ..features.chunks import evidence_mask, from_spans
from .model import FittedModel


def evidence_hits(model: FittedModel, corpus: Corpus) -> EvidenceHits:
    """Check the sentence that contributes most, for all pairs that are labelled positive and have known evidence.

    Args:
        model: its criteria are those of the corpus, in the same order.
        corpus: posts with labels and evidence.

    Returns:
        A result whose `posts` are numbers of `corpus`; `rate` is the precision at 1.
    """
    assert [criterion.name for criterion in model.criteria] == [criterion.name for criterion in corpus.criteria]
    posts = sorted({item.post for item in corpus.evidence if corpus.labels[item.post, item.criterion] == 1})
    shown = corpus.subset(posts)
    explanations = model.explain(shown.posts)
    sentences = from_spans(shown.posts, [explanation.spans.tolist() for explanation in explanations])
    mask = evidence_mask(shown, sentences)
    found: list[tuple[int, int, bool, float]] = []
    for row, explanation in enumerate(explanations):
        truth = mask[sentences.offsets[row] : sentences.offsets[row + 1]]  # [sentences, criteria]
        for criterion in np.flatnonzero((shown.labels[row] == 1) & truth.any(0)).tolist():
            top = int(explanation.contribution[:, criterion].argmax())
            found.append((posts[row], criterion, bool(truth[top, criterion]), float(truth[:, criterion].mean())))
    return EvidenceHits(
        np.array([each[0] for each in found], dtype=np.int64),
        np.array([each[1] for each in found], dtype=np.int64),
        np.array([each[2] for each in found], dtype=np.bool_),
        np.array([each[3] for each in found], dtype=np.float64),
    )
