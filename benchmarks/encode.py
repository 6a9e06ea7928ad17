"""(b) Embedding new texts: ours against `SentenceTransformer.encode`, on the same real sentences."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import numpy as np

from core.chunks import chunk
from core.config import ChunksConfig
from core.embeddings import embed, load_encoder
from core.encoders import locate
from core.sources import EditorialsSource

TEXTS = 1024


def measure(rounds: int = 3) -> dict[str, float]:
    """Times faster than `encode` with its defaults; both load their model, ours also writes its cache."""
    corpus = EditorialsSource().load(Path())
    texts = list(dict.fromkeys(chunk(corpus.posts, ChunksConfig()).texts))[:TEXTS]
    encoder = locate("all-MiniLM-L6-v2")
    ratios = []
    load_encoder(encoder, "cpu")  # importing it costs seconds, once
    for _ in range(rounds):
        started = time.perf_counter()
        theirs = load_encoder(encoder, "cpu").encode(texts, show_progress_bar=False)
        middle = time.perf_counter()
        with tempfile.TemporaryDirectory() as folder:
            ours = embed(texts, encoder, root=Path(folder)).vectors
            ratios.append((middle - started) / (time.perf_counter() - middle))
            assert np.abs(ours - theirs).max() < 1e-5
    return {"encode.vs_sentence_transformers": float(np.median(ratios))}
