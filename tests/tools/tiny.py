"""A tiny study without an encoder: synthetic vectors in which the first chunk of a positive post shows its criteria."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from sparse_evidence.core.features.chunks import chunk
from sparse_evidence.core.features.views import EmbeddedCorpus
from sparse_evidence.core.splits import split
from sparse_evidence.hpo.running.task import StudyTask
from sparse_evidence.hpo.study.definition import load

TOML = """
name = "tiny"
[data]
source = "synthetic"
posts = 60
criteria = 2
sentences_mean = 5
[split]
folds = 3
stages = [1, 1, 1]
holdout = 0.0
[search]
space = "file"
trials = 4
metric = "{metric}"
pruner = {{ name = "{pruner}", percentile = 50, within_stages = {within_stages} }}
[model]
name = "iris"
num_queries = 2
hidden = 4
[training]
epochs = {epochs}
patience = {patience}
learning_rate = {learning_rate}
"""


def task(
    folder: Path,
    *,
    epochs: int = 2,
    patience: int = 1,
    learning_rate: str | float = "{ low = 1e-3, high = 1e-1, log = true }",
    within_stages: str = "true",
    pruner: str = "same_folds",
    metric: str = "average_precision",
) -> StudyTask:
    """Write the study file into `folder` and prepare its data: 60 posts, 2 criteria, 3 folds, vectors of 8 numbers."""
    path = folder / "tiny.toml"
    settings = {"epochs": epochs, "patience": patience, "learning_rate": learning_rate, "within_stages": within_stages}
    settings |= {"metric": metric, "pruner": pruner}
    path.write_text(TOML.format(**settings), encoding="utf-8")
    definition = load(path, environ={})
    corpus = definition.data.load(folder)
    chunks = chunk(corpus.posts, definition.chunks)
    generator = np.random.default_rng(0)
    vectors = generator.normal(size=(len(chunks.texts), 8))
    criteria = np.eye(2, 8)
    for post, start in enumerate(chunks.offsets[:-1]):
        vectors[start] += 4 * (corpus.labels[post] == 1) @ criteria
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    folds = split(
        corpus.groups, corpus.labels, definition.split, criteria=[criterion.name for criterion in corpus.criteria]
    )
    embedded = EmbeddedCorpus(vectors.astype(np.float32), chunks.offsets, criteria.astype(np.float32), corpus.labels)
    return StudyTask(
        definition,
        corpus,
        chunks,
        folds,
        {("all-MiniLM-L6-v2", 1): embedded},
        {},
        texts=len(chunks.texts) + 2,
        computed=0,
    )
