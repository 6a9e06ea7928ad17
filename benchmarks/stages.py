"""What pruning saves and what it costs: curves of random candidates, replayed with other stages and percentiles.

    python -m benchmarks.stages studies/quickstart.toml [--candidates 80] [--splits 5] [--curves FILE.json]

Every candidate is trained to its last epoch on several splits of the posts into folds, each with a different seed. The
curves alone determine which epochs a study on one of the splits would have trained and which candidate it would have
selected. The value of the selected candidate is its mean over the other splits: the same posts, but folds and seeds
that the study has not seen. This is replayed for 100 studies of half of the candidates: first the default
configuration, then others drawn at random. The replayed studies have one worker, no warm-up, and random candidates
(those of TPE improve over time).
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import optuna

from benchmarks.resample import resample
from sparse_evidence.core.errors import NonFiniteLossError
from sparse_evidence.core.metrics import METRICS
from sparse_evidence.core.training.stopping import is_stale, projected_best
from sparse_evidence.hpo.running.pruning import pruning_threshold
from sparse_evidence.hpo.running.task import load_task
from sparse_evidence.hpo.study import space
from sparse_evidence.hpo.study.config import PrunerConfig
from sparse_evidence.hpo.study.definition import StudyDefinition, load

REPLAYS = 100
MEDIAN_STARTUP = 5
"""Complete trials that Optuna's MedianPruner waits for."""

Curves = npt.NDArray[np.float64]
"""Scores `[candidates, folds, epochs]` on one split."""


@dataclass(frozen=True)
class Outcome:
    """What a study trained and what it selected."""

    epochs: int
    """Epochs of single folds."""
    complete: int
    winner: int
    value: float


def train_candidates(definition: StudyDefinition, candidates: int, splits: int) -> list[Curves]:
    """Train the default configuration and random candidates on several splits, starting with the study's own."""
    original = load_task(definition)
    tasks = [original, *(resample(original, seed) for seed in range(11, 10 + splits))]
    source = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=1))
    source.enqueue_trial(space.default_parameters(definition))
    results: list[list[list[list[float]]]] = []
    while len(results) < candidates:
        trial = source.ask()
        candidate = space.suggest(definition, trial)
        unstopped = replace(candidate, training=replace(candidate.training, patience=candidate.training.epochs))
        curves = []
        try:
            for task in tasks:
                cv = task.cross_validation(unstopped, trial=trial.number + 1, stages=(task.folds.count,))
                curves.append([list(fold) for fold in zip(*(event.scores for event in cv.epochs()), strict=True)])
        except NonFiniteLossError:
            continue
        results.append(curves)
        print(f"{len(results)} of {candidates}: {np.mean(curves, (0, 1)).max():.3f}", file=sys.stderr)
    return list(np.array(results).swapaxes(0, 1))


class Replay:
    """A study on stored curves: stage after stage, then all folds train to the same epoch, as in a real study."""

    def __init__(self, stages: Sequence[int], pruner: PrunerConfig, patience: int) -> None:
        self.stages = stages
        self.pruner = pruner
        self.patience = patience
        self._peers: dict[int, list[float]] = {}

    def study(self, curves: Curves, order: Sequence[int]) -> Outcome:
        """Train the candidates in this order."""
        self._peers.clear()
        results = [self.candidate(curves[number]) for number in order]
        values = [value for _, value in results]
        return Outcome(
            epochs=sum(epochs for epochs, _ in results),
            complete=int(np.isfinite(values).sum()),
            winner=order[int(np.argmax(values))],
            value=max(values),
        )

    def candidate(self, scores: npt.NDArray[np.float64]) -> tuple[int, float]:
        """Return epochs (of single folds) and value of the next candidate; minus infinity if it is pruned."""
        longest, folds = scores.shape[1], 0
        ends: list[int] = []
        values: list[float] = []
        for size in self.stages:
            means = scores[folds : folds + size].mean(0).tolist()
            folds += size
            peers = self._peers.setdefault(folds, [])
            required = (
                -np.inf if self.pruner.name == "none" or folds == len(scores) else pruning_threshold(peers, self.pruner)
            )
            for end in range(1, longest + 1):
                stopped = end == longest or is_stale(means[:end], self.patience)
                best = max(means[:end]) if stopped else projected_best(means[:end], self.patience, longest=longest)
                pruned = self._mean([*values, best]) < required and (stopped or self.pruner.within_stages)
                if stopped or pruned:
                    break
            ends.append(end)
            values.append(max(means[:end]))
            peers.append(self._mean(values))
            if pruned:
                return int(np.dot(self.stages[: len(ends)], ends)), -np.inf
        return len(scores) * max(ends), float(scores[:, : max(ends)].mean(0).max())

    def _mean(self, values: Sequence[float]) -> float:
        return float(np.average(values, weights=self.stages[: len(values)]))


def by_median(curves: Curves, order: Sequence[int], patience: int) -> Outcome:
    """Replay `benchmarks.script`: fold after fold, `MedianPruner` every epoch, value = mean of the folds' best."""
    complete: list[npt.NDArray[np.float64]] = []  # reports of complete trials, NaN after a fold had stopped
    epochs = 0
    values: list[float] = []
    for scores in curves[order]:
        reports, best, value = np.full(scores.shape, np.nan), -np.inf, np.nan
        for fold, epoch in _fold_after_fold(scores, patience):
            epochs += 1
            reports[fold, epoch] = scores[fold, epoch]
            best = max(best, scores[fold, epoch])
            rivals = [peer[fold, epoch] for peer in complete if not np.isnan(peer[fold, epoch])]
            if len(complete) >= MEDIAN_STARTUP and rivals and best < np.median(rivals):
                break
        else:
            complete.append(reports)
            value = float(np.nanmax(reports, axis=1).mean())
        values.append(value)
    winner = int(np.nanargmax(values))
    return Outcome(epochs, len(complete), order[winner], values[winner])


def _fold_after_fold(scores: npt.NDArray[np.float64], patience: int) -> Iterator[tuple[int, int]]:
    """Yield (fold, epoch) in the order of training: one fold after another, each until it is stale."""
    for fold, curve in enumerate(scores):
        for epoch in range(len(curve)):
            yield fold, epoch
            if is_stale(curve[: epoch + 1].tolist(), patience):
                break


def rows(splits: Sequence[Curves], patience: int) -> Iterator[str]:
    """Yield the lines of a Markdown table."""
    candidates, folds, _ = splits[0].shape
    trials, others = candidates // 2, np.arange(1, candidates)
    orders = [
        [0, *np.random.default_rng(number).choice(others, trials - 1, replace=False).tolist()]
        for number in range(REPLAYS)
    ]
    unpruned_study = Replay((folds,), PrunerConfig(name="none"), patience)
    values = np.array(
        [[unpruned_study.candidate(scores)[1] for scores in curves] for curves in splits]
    )  # [splits, candidates]

    def measured(study: Callable[[Curves, list[int]], Outcome], length: int = trials) -> npt.NDArray[np.float64]:
        """Return epochs, complete trials, searched and re-scored value `[splits, 4]`: means over a split's studies."""
        return np.array([
            np.mean([
                (outcome.epochs, outcome.complete, outcome.value, np.delete(values[:, outcome.winner], split).mean())
                for outcome in (study(curves, order[:length]) for order in orders)
            ], axis=0)
            for split, curves in enumerate(splits)
        ])  # fmt: skip

    unpruned = measured(unpruned_study.study)

    def row(setting: str, means: npt.NDArray[np.float64], length: int = trials) -> str:
        epochs, complete, _, _ = means.mean(0)
        loss, rescored_loss = (unpruned - means)[:, 2:].T
        error = rescored_loss.std(ddof=1) / np.sqrt(len(splits))
        return (
            f"| {setting} | {epochs / length:.1f} | {epochs / unpruned[:, 0].mean():.2f} | {complete:.1f} "
            f"| {loss.mean():.4f} | {rescored_loss.mean():.4f} ± {error:.4f} |"
        )

    yield "| stages | percentile | within stages | epochs per trial | share | complete | loss | loss re-scored |"
    yield "|---|---|---|---|---|---|---|---|"
    yield row(f"{folds} | – | –", unpruned)
    for length in (trials // 2, trials // 4):
        yield row(f"{folds}, {length} trials | – | –", measured(unpruned_study.study, length), length)
    yield row("MedianPruner | – | –", measured(lambda curves, order: by_median(curves, order, patience)))
    for stages in ((2, folds - 2), (1, folds - 1), (1, 1, folds - 2)):
        for percentile in (50, 25, 15):
            for within in (False, True):
                pruner = PrunerConfig(percentile=percentile, within_stages=within)
                setting = f"{', '.join(map(str, stages))} | {percentile} | {'yes' if within else 'no'}"
                yield row(setting, measured(Replay(stages, pruner, patience).study))
    correlation = np.corrcoef(values)[np.triu_indices(len(values), k=1)].mean()
    yield f"\nThe correlation of the candidates' values between two splits is {correlation:.2f}."


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", type=Path)
    parser.add_argument("--candidates", type=int, default=80)
    parser.add_argument("--splits", type=int, default=5)
    parser.add_argument("--curves", type=Path, help="file for the curves: written if missing, else read")
    arguments = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    definition = load(arguments.study)
    if not METRICS[definition.search.metric].higher_is_better:
        parser.error(f"lower values of {definition.search.metric} are better; replays support only metrics to maximise")
    file: Path | None = arguments.curves
    if file is not None and file.exists():
        stored = json.loads(file.read_text())
        if stored["study"] != definition.name:
            parser.error(f"{file} has the curves of {stored['study']}, not of {definition.name}")
        splits = [np.array(curves) for curves in stored["curves"]]
    else:
        splits = train_candidates(definition, arguments.candidates, arguments.splits)
        if file is not None:
            file.write_text(json.dumps({"study": definition.name, "curves": [curves.tolist() for curves in splits]}))
    default = space.suggest(definition, optuna.trial.FixedTrial(space.default_parameters(definition)))
    print(*rows(splits, default.training.patience), sep="\n")


if __name__ == "__main__":
    main()
