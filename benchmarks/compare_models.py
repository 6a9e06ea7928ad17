"""All models on the editorials: the same folds, one Markdown table, intervals over groups.

    python -m benchmarks.compare_models              # all models; most of the time is for token
    python -m benchmarks.compare_models --no-token   # under a minute on one core
    python -m benchmarks.compare_models --no-token --data synthetic

Every model is trained with its default configuration (`core.config`), token with that of studies/token_smoke.toml, and
with plain binary cross-entropy. As in a study, it is evaluated at the epoch with the best mean over the folds. The
hold-out is not used.
"""

from __future__ import annotations

import argparse
import copy
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
import numpy.typing as npt
import torch

from sparse_evidence.core import baselines, evaluation, explain, metrics
from sparse_evidence.core.config import (
    AbmilConfig,
    BCEConfig,
    CandidateConfig,
    ChunksConfig,
    InstanceConfig,
    IrisConfig,
    LinearConfig,
    RetrievalConfig,
    SplitConfig,
    TokenConfig,
    TrainingConfig,
)
from sparse_evidence.core.corpus.data import Corpus
from sparse_evidence.core.corpus.editorials import EditorialsSource
from sparse_evidence.core.corpus.synthetic import SyntheticSource
from sparse_evidence.core.features.chunks import Chunks, chunk, evidence_mask
from sparse_evidence.core.features.encoders import locate
from sparse_evidence.core.features.views import EmbeddedCorpus, Features, TextCorpus, embed_corpus, text_corpus
from sparse_evidence.core.splits import Folds, split
from sparse_evidence.core.training.solved import SolvedStack
from sparse_evidence.core.training.stack import FoldRow, FoldStack, make_stack
from sparse_evidence.core.training.stopping import best_index, is_stale

METRIC = "average_precision"
ROOT = Path(__file__).parents[1]
Probabilities = npt.NDArray[np.floating]


@dataclass(frozen=True, eq=False)
class Data:
    """A corpus, its features, its folds and its evidence."""

    corpus: Corpus
    chunks: Chunks
    embedded: EmbeddedCorpus
    folds: Folds
    evidence: npt.NDArray[np.bool_]
    """[chunks, criteria]: the chunk is evidence for the criterion."""

    def text(self, encoder: str) -> TextCorpus:
        return text_corpus(self.corpus, locate(encoder))


@dataclass(frozen=True, eq=False)
class Row:
    """A row of the table."""

    name: str
    probabilities: Probabilities
    attribution: explain.Attribution
    seconds: float
    epoch: int | None


SOURCES: dict[str, EditorialsSource | SyntheticSource] = {
    "editorials": EditorialsSource(),
    "synthetic": SyntheticSource(posts=500, criteria=4),
}


def load_data(source: str) -> Data:
    corpus = SOURCES[source].load(ROOT)
    chunks = chunk(corpus.posts, ChunksConfig())
    embedded, _ = embed_corpus(corpus, chunks, locate(IrisConfig().encoder))
    folds = split(corpus.groups, corpus.labels, SplitConfig(), criteria=[c.name for c in corpus.criteria])
    return Data(corpus, chunks, embedded, folds, evidence_mask(corpus, chunks))


def value(data: Data, probabilities: Probabilities, rows: npt.NDArray[np.int64] | None = None) -> float:
    """Return the metric of a study on the posts `rows`: mean over folds of the mean over criteria."""
    rows = np.flatnonzero(data.folds.assignment >= 0) if rows is None else rows
    fold_of_row = data.folds.assignment[rows]
    parts = [rows[fold_of_row == fold] for fold in range(data.folds.count)]
    return float(np.mean([metrics.score(METRIC, data.corpus.labels[part], probabilities[part]) for part in parts]))


def train(
    candidate: CandidateConfig, features: Features, data: Data
) -> tuple[list[FoldStack | SolvedStack], Probabilities, int]:
    """Train all folds together until they are stale; return stacks, out-of-fold predictions and epoch of the best."""
    stack = make_stack(features, data.folds, range(data.folds.count), candidate, seed=0)
    stacks: list[FoldStack | SolvedStack] = (
        [*stack.stacks] if isinstance(stack, FoldRow) else [cast("FoldStack | SolvedStack", stack)]
    )
    epochs = stack.max_epochs or candidate.training.epochs
    curve: list[float] = []
    best: Probabilities = np.full(data.corpus.labels.shape, np.nan)
    best_states: list[dict[str, torch.Tensor]] = []
    while len(curve) < epochs and not is_stale(curve, candidate.training.patience):
        stack.advance()
        probabilities = np.full_like(best, np.nan)
        for fold, logits in enumerate(stack.validate()[0]):
            probabilities[data.folds.validation(fold)] = torch.sigmoid(torch.from_numpy(logits)).numpy()
        curve.append(value(data, probabilities))
        print(f"{candidate.model.name} epoch {len(curve)}: {curve[-1]:.3f}", file=sys.stderr)
        if best_index(curve) == len(curve) - 1:
            best = probabilities
            best_states = [copy.deepcopy(trained.model.state_dict()) for trained in stacks]
    for trained, state in zip(stacks, best_states, strict=True):
        trained.model.load_state_dict(state)
    return stacks, best, best_index(curve) + 1


def compare(name: str, candidate: CandidateConfig, data: Data) -> Row:
    started = time.perf_counter()
    config = candidate.model
    text = data.text(config.encoder) if isinstance(config, TokenConfig) else None
    stacks, probabilities, epoch = train(candidate, text or data.embedded, data)
    seconds = time.perf_counter() - started
    validation = [data.folds.validation(fold) for fold in range(data.folds.count)]
    if text is not None and isinstance(config, TokenConfig):
        # removing every sentence from every post is slow, so only posts with a positive label are explained
        positive = [posts[(data.corpus.labels[posts] == 1).any(1)] for posts in validation]
        attributions = [
            explain.attribute_text(trained.model, text, config, data.chunks, posts)
            for trained, posts in zip(stacks, positive, strict=True)
        ]
    else:
        attributions = explain.attribute(stacks[0].model, data.embedded, validation)
    return Row(name, probabilities, explain.concatenate(attributions), seconds, epoch)


def line(row: Row, reference: Row, data: Data, repeats: int) -> str:
    """Return a line of the table, with intervals over groups."""
    rows = np.flatnonzero(data.folds.assignment >= 0)
    labels, probabilities = data.corpus.labels, row.probabilities
    threshold = metrics.best_threshold(labels[rows], probabilities[rows])
    hits = explain.evidence_hits(row.attribution, data.evidence, labels)
    attention_hits = explain.evidence_hits(row.attribution, data.evidence, labels, by="attention")
    attends = row.name in {"retrieval", "abmil", "iris", "instance"}

    def f1(posts: npt.NDArray[np.int64]) -> float:
        return float(metrics.f1(metrics.confusion(labels[posts], probabilities[posts], threshold).pooled())[0])

    def gain(posts: npt.NDArray[np.int64]) -> float:
        return value(data, probabilities, posts) - value(data, reference.probabilities, posts)

    def interval(statistic: Callable[[npt.NDArray[np.int64]], float], posts: npt.NDArray[np.int64], sign: str) -> str:
        groups = [data.corpus.groups[post] for post in posts]
        low, high = evaluation.bootstrap_interval(statistic, groups, repeats=repeats, seed=0)
        return f"({low:{sign}.2f} to {high:{sign}.2f})"

    difference = f"{gain(rows):+.3f} {interval(lambda drawn: gain(rows[drawn]), rows, '+')}"
    return (
        f"| {row.name} | {value(data, probabilities):.3f} | {'' if row is reference else difference} "
        f"| {f1(rows):.3f} {interval(lambda drawn: f1(rows[drawn]), rows, '')} "
        f"| {hits.rate:.2f} {interval(lambda drawn: float(hits.hit[drawn].mean()), hits.posts, '')} "
        f"| {f'{attention_hits.rate:.2f}' if attends else ''} | {row.epoch or ''} | {row.seconds:.0f} s |"
    )


def token_candidate() -> CandidateConfig:
    from optuna.trial import FixedTrial

    from sparse_evidence.hpo.study import space
    from sparse_evidence.hpo.study.definition import load

    definition = load(ROOT / "studies" / "token_smoke.toml", environ={})
    return space.suggest(definition, FixedTrial(space.default_parameters(definition)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--no-token", action="store_true", help="without the fine-tuned transformer")
    parser.add_argument("--repeats", type=int, default=1000, help="bootstrap draws per interval")
    parser.add_argument("--data", choices=SOURCES, default="editorials")
    arguments = parser.parse_args()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "0")) or torch.get_num_threads())
    data = load_data(arguments.data)
    candidates = {
        name: CandidateConfig(config, TrainingConfig(), BCEConfig())
        for name, config in (
            ("linear", LinearConfig()),
            ("retrieval", RetrievalConfig()),
            ("abmil", AbmilConfig()),
            ("iris", IrisConfig()),
            ("instance", InstanceConfig()),
        )
    }
    if not arguments.no_token:
        candidates["token"] = token_candidate()
    table = [compare(name, candidate, data) for name, candidate in candidates.items()]

    scored = data.folds.assignment >= 0
    without_text = metrics.baselines(data.corpus.labels, data.folds.assignment)
    chance = baselines.chance(data.corpus.labels, data.folds, METRIC)
    hits = explain.evidence_hits(table[0].attribution, data.evidence, data.corpus.labels)
    print(
        f"{scored.sum()} posts of {arguments.data}, {len(data.corpus.criteria)} criteria, {data.folds.count} folds, "
        f"out-of-fold; 95 % intervals over groups in parentheses; {len(hits.hit)} pairs with annotated evidence."
    )
    print()
    print("| model | average precision | gain over linear | F1 | evidence | by attention | epochs | training |")
    print("|---|---|---|---|---|---|---|---|")
    print(
        f"| without the text | {chance:.3f} | | {without_text['criterion_only_f1']:.3f} | {hits.expected:.2f} | | | |"
    )
    for row in table:
        print(line(row, table[0], data, arguments.repeats))


if __name__ == "__main__":
    main()
