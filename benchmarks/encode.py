"""Embedding new texts: ours compared with `SentenceTransformer.encode`, on the same real sentences."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np

from benchmarks.timing import ratio, time_alternately
from sparse_evidence.core.config import ChunksConfig
from sparse_evidence.core.corpus.editorials import EditorialsSource
from sparse_evidence.core.features.chunks import chunk
from sparse_evidence.core.features.embeddings import embed, load_encoder
from sparse_evidence.core.features.encoders import locate

TEXTS = 1024


def measure() -> dict[str, float]:
    """How many times faster than `encode` with its defaults; both load their model, ours also writes its cache."""
    corpus = EditorialsSource().load(Path())
    texts = list(dict.fromkeys(chunk(corpus.posts, ChunksConfig()).texts))[:TEXTS]
    encoder = locate("all-MiniLM-L6-v2")

    def ours() -> np.ndarray:
        with tempfile.TemporaryDirectory() as folder:
            return embed(texts, encoder, root=Path(folder)).vectors

    def theirs() -> np.ndarray:
        return np.asarray(load_encoder(encoder, "cpu").encode(texts, show_progress_bar=False))

    assert np.abs(ours() - theirs()).max() < 1e-5
    return {"encode.vs_sentence_transformers": ratio(time_alternately([ours, theirs], 3))}
