"""Embedding new texts: ours compared with `SentenceTransformer.encode`, on sentences of the size of ReDSM5."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np

from benchmarks.timing import ratio, time_alternately
from sparse_evidence.core.config import ChunksConfig, Precision
from sparse_evidence.core.corpus.synthetic import SyntheticSource
from sparse_evidence.core.features.chunks import chunk
from sparse_evidence.core.features.embeddings import embed, load_encoder
from sparse_evidence.core.features.encoders import locate

TEXTS = 1024


def measure() -> dict[str, float]:
    """How many times faster than `encode` with its defaults; all load their model, ours also writes its cache.

    `bfloat16` is worth it only on a CPU that has it: `results.json` names the machine of every part.
    """
    corpus = SyntheticSource().load(Path())
    texts = list(dict.fromkeys(chunk(corpus.posts, ChunksConfig()).texts))[:TEXTS]
    encoder = locate("all-MiniLM-L6-v2")

    def ours(precision: Precision = "float32") -> np.ndarray:
        with tempfile.TemporaryDirectory() as folder:
            return np.array(embed(texts, encoder, precision=precision, root=Path(folder)).vectors)

    def theirs() -> np.ndarray:
        return np.asarray(load_encoder(encoder, "cpu").encode(texts, show_progress_bar=False))

    exact = theirs()
    assert np.abs(ours() - exact).max() < 1e-5
    cosines = (ours("bfloat16") * exact).sum(1)
    # each has been called once by now
    fast, plain, yardstick = time_alternately([lambda: ours("bfloat16"), ours, theirs], 3, warm_up=False)
    return {
        "encode.vs_sentence_transformers": ratio([plain, yardstick]),
        "encode.bfloat16_vs_sentence_transformers": ratio([fast, yardstick]),
        "encode.bfloat16_cosine": float(cosines.min()),
    }
