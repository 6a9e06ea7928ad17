"""IRIS, ABMIL, linear and token on the editorials: same folds, one Markdown table, intervals over groups.

    python -m benchmarks.compare_models              # all models; token takes most of the time
    python -m benchmarks.compare_models --no-token   # under a minute on one core
    python -m benchmarks.compare_models --no-token --data synthetic

Every model is trained with its default configuration (`core.config`), token with that of studies/token_smoke.toml,
against plain binary cross-entropy, and taken at the best epoch of the mean over the folds, as a study does. The
hold-out stays locked.
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

from sparse_evidence.core import explain, metrics
from sparse_evidence.core.config import (
    AbmilConfig,
    BCEConfig,
    CandidateConfig,
    ChunksConfig,
    IrisConfig,
    LinearConfig,
    SplitConfig,
    TokenConfig,
    TrainingConfig,
)
from sparse_evidence.core.corpus.data import Corpus
from sparse_evidence.core.corpus.sources import EditorialsSource, SyntheticSource
from sparse_evidence.core.features.bags import mean_embeddings
from sparse_evidence.core.features.chunks import Chunks, chunk, evidence_mask
from sparse_evidence.core.features.embeddings import embed
from sparse_evidence.core.features.encoders import locate
from sparse_evidence.core.models import EmbeddedCorpus, Features, TextCorpus
from sparse_evidence.core.models.linear import fit_linear_baseline, linear_baseline
from sparse_evidence.core.splits import Folds, split
from sparse_evidence.core.training.stack import FoldRow, FoldStack, make_stack
from sparse_evidence.core.training.stopping import best_index, is_stale

METRIC = "average_precision"
ROOT = Path(__file__).parents[1]
Probabilities = npt.NDArray[np.floating]


@dataclass(frozen=True, eq=False)
class Data:
    corpus: Corpus
    chunks: Chunks
    embedded: EmbeddedCorpus
    folds: Folds
    evidence: npt.NDArray[np.bool_]

    @property
    def means(self) -> npt.NDArray[np.float32]:
        return mean_embeddings(self.embedded.embeddings, self.embedded.offsets)

    def text(self, encoder: str) -> TextCorpus:
        criteria = tuple(criterion.text for criterion in self.corpus.criteria)
        return TextCorpus(self.corpus.posts, criteria, locate(encoder), self.corpus.labels)


@dataclass(frozen=True, eq=False)
class Row:
    """A line of the table."""

    name: str
    probabilities: Probabilities
    reading: explain.Reading
    seconds: float
    epoch: int | None


SOURCES: dict[str, EditorialsSource | SyntheticSource] = {
    "editorials": EditorialsSource(),
    "synthetic": SyntheticSource(posts=500, criteria=4),
}


def load_task(source: str) -> Data:
    corpus = SOURCES[source].load(ROOT)
    chunks = chunk(corpus.posts, ChunksConfig())
    encoder = locate(IrisConfig().encoder)
    criteria = embed([criterion.text for criterion in corpus.criteria], encoder).vectors
    embedded = EmbeddedCorpus(embed(chunks.texts, encoder).vectors, chunks.offsets, criteria, corpus.labels)
    folds = split(corpus.groups, corpus.labels, SplitConfig(), criteria=[c.name for c in corpus.criteria])
    return Data(corpus, chunks, embedded, folds, evidence_mask(corpus, chunks))


def value(data: Data, probabilities: Probabilities, rows: npt.NDArray[np.int64] | None = None) -> float:
    """The metric of a study: mean over folds of the mean over criteria, of the posts `rows`."""
    rows = np.flatnonzero(data.folds.assignment >= 0) if rows is None else rows
    of = data.folds.assignment[rows]
    parts = [rows[of == fold] for fold in range(data.folds.count)]
    return float(np.mean([metrics.score(METRIC, data.corpus.labels[part], probabilities[part]) for part in parts]))


def trained(candidate: CandidateConfig, readable: Features, data: Data) -> tuple[list[FoldStack], Probabilities, int]:
    """All folds in lock-step until they are stale; back at their best epoch: stacks, out-of-fold predictions, epoch."""
    stack = make_stack(readable, data.folds, range(data.folds.count), candidate, seed=0)
    members = list(stack.stacks) if isinstance(stack, FoldRow) else [cast("FoldStack", stack)]
    curve: list[float] = []
    found: Probabilities = np.full(data.corpus.labels.shape, np.nan)
    kept: list[dict[str, torch.Tensor]] = []
    while len(curve) < candidate.training.epochs and not is_stale(curve, candidate.training.patience):
        stack.advance()
        probabilities = np.full_like(found, np.nan)
        for fold, logits in enumerate(stack.validate()[0]):
            probabilities[data.folds.validation(fold)] = torch.sigmoid(torch.from_numpy(logits)).numpy()
        curve.append(value(data, probabilities))
        print(f"{candidate.model.name} epoch {len(curve)}: {curve[-1]:.3f}", file=sys.stderr)
        if best_index(curve) == len(curve) - 1:
            found = probabilities
            kept = [copy.deepcopy(member.trainer.model.state_dict()) for member in members]
    for member, state in zip(members, kept, strict=True):
        member.trainer.model.load_state_dict(state)
    return members, found, best_index(curve) + 1


def compared(name: str, candidate: CandidateConfig, data: Data) -> Row:
    started = time.perf_counter()
    config = candidate.model
    text = data.text(config.encoder) if isinstance(config, TokenConfig) else None
    members, probabilities, epoch = trained(candidate, text or data.embedded, data)
    seconds = time.perf_counter() - started
    validation = [data.folds.validation(fold) for fold in range(data.folds.count)]
    if text is not None and isinstance(config, TokenConfig):
        # cutting every sentence from every post is slow: only posts that count are read again
        counting = [posts[(data.corpus.labels[posts] == 1).any(1)] for posts in validation]
        readings = [
            explain.read_text(member.trainer.model, text, config, data.chunks, posts)  # type: ignore[arg-type]
            for member, posts in zip(members, counting, strict=True)
        ]
    else:
        readings = explain.read(members[0].trainer.model, data.embedded, validation)
    return Row(name, probabilities, explain.joined(readings), seconds, epoch)


def floor(data: Data) -> Row:
    started = time.perf_counter()
    probabilities = linear_baseline(data.means, data.embedded.labels, data.folds)
    model = fit_linear_baseline(data.means, data.embedded.labels, data.folds)
    validation = [data.folds.validation(fold) for fold in range(data.folds.count)]
    reading = explain.joined(explain.read(model, data.embedded, validation))
    return Row("linear floor", probabilities, reading, time.perf_counter() - started, None)


def line(row: Row, base: Row, data: Data, repeats: int) -> str:
    """A line of the table, with intervals over groups."""
    rows = np.flatnonzero(data.folds.assignment >= 0)
    labels, probabilities = data.corpus.labels, row.probabilities
    threshold = metrics.best_threshold(labels[rows], probabilities[rows])
    hits = explain.evidence_hits(row.reading, data.evidence, labels)
    looked = explain.evidence_hits(row.reading, data.evidence, labels, by="attention")
    attends = row.name in {"abmil", "iris"}

    def f1(chosen: npt.NDArray[np.int64]) -> float:
        return float(metrics.f1(metrics.confusion(labels[chosen], probabilities[chosen], threshold).pooled())[0])

    def above(chosen: npt.NDArray[np.int64]) -> float:
        return value(data, probabilities, chosen) - value(data, base.probabilities, chosen)

    def interval(statistic: Callable[[npt.NDArray[np.int64]], float], posts: npt.NDArray[np.int64], sign: str) -> str:
        groups = [data.corpus.groups[post] for post in posts]
        low, high = metrics.bootstrap_interval(statistic, groups, repeats=repeats, seed=0)
        return f"({low:{sign}.2f} to {high:{sign}.2f})"

    difference = f"{above(rows):+.3f} {interval(lambda chosen: above(rows[chosen]), rows, '+')}"
    return (
        f"| {row.name} | {value(data, probabilities):.3f} | {'' if row is base else difference} "
        f"| {f1(rows):.3f} {interval(lambda chosen: f1(rows[chosen]), rows, '')} "
        f"| {hits.rate:.2f} {interval(lambda chosen: float(hits.hit[chosen].mean()), hits.posts, '')} "
        f"| {f'{looked.rate:.2f}' if attends else ''} | {row.epoch or ''} | {row.seconds:.0f} s |"
    )


def token_candidate() -> CandidateConfig:
    from optuna.trial import FixedTrial

    from sparse_evidence.hpo.study import space
    from sparse_evidence.hpo.study.definition import load

    definition = load(ROOT / "studies" / "token_smoke.toml", environ={})
    return space.suggest(definition, FixedTrial(space.default_parameters(definition)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--no-token", action="store_true", help="leave out the fine-tuned transformer")
    parser.add_argument("--repeats", type=int, default=1000, help="bootstrap draws behind each interval")
    parser.add_argument("--data", choices=SOURCES, default="editorials")
    arguments = parser.parse_args()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "0")) or torch.get_num_threads())
    data = load_task(arguments.data)
    candidates = {
        name: CandidateConfig(config, TrainingConfig(), BCEConfig())
        for name, config in (("linear", LinearConfig()), ("abmil", AbmilConfig()), ("iris", IrisConfig()))
    }
    if not arguments.no_token:
        candidates["token"] = token_candidate()
    table = [floor(data), *(compared(name, candidate, data) for name, candidate in candidates.items())]

    scored = data.folds.assignment >= 0
    floors = metrics.baselines(data.corpus.labels, data.folds.assignment)
    chance = explain.evidence_hits(table[0].reading, data.evidence, data.corpus.labels)
    print(
        f"{scored.sum()} posts of {arguments.data}, {len(data.corpus.criteria)} criteria, {data.folds.count} folds, "
        f"out-of-fold; in brackets the 95 % interval over groups; {len(chance.hit)} pairs with known evidence."
    )
    print()
    print("| model | average precision | above the floor | F1 | evidence | by attention | epochs | training |")
    print("|---|---|---|---|---|---|---|---|")
    print(
        f"| never reads a post | {floors['mean_prevalence']:.3f} | | {floors['criterion_only_f1']:.3f} "
        f"| {chance.expected:.2f} | | | |"
    )
    for row in table:
        print(line(row, table[0], data, arguments.repeats))


if __name__ == "__main__":
    main()
