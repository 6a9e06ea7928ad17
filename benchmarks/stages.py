"""What giving up saves and what it loses: curves of random candidates, replayed under other stages and percentiles.

    python -m benchmarks.stages studies/quickstart.toml [--candidates 80] [--splits 5] [--curves FILE.json]

Every candidate is trained to its last epoch on every split of the posts into folds, each time with a seed of its own.
Which epochs a study on one of the splits would have trained, and which candidate it would have chosen, follows from the
curves alone; what the chosen one is worth is its mean over the other splits: the same posts, but folds and seeds that
the study has not seen. That is replayed for 100 studies of half of the candidates, drawn anew and in another order,
after the default configuration. They have one worker, no warm-up, and random candidates: TPE's become better with time.
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

from benchmarks.anew import anew
from sparse_evidence.core.errors import NonFiniteLossError
from sparse_evidence.core.metrics import METRICS
from sparse_evidence.core.training.stopping import is_stale, projected_best
from sparse_evidence.hpo.running.pruning import needed
from sparse_evidence.hpo.running.task import load_task
from sparse_evidence.hpo.study import space
from sparse_evidence.hpo.study.definition import PrunerConfig, StudyDefinition, load

REPLAYS = 100
MEDIAN_STARTUP = 5
"""Trials that Optuna's MedianPruner waits for."""

Curves = npt.NDArray[np.float64]
"""Scores `[candidates, folds, epochs]` on one split."""


@dataclass(frozen=True)
class Outcome:
    """What a study has trained, and what it has found."""

    epochs: int
    """Of one fold."""
    complete: int
    winner: int
    value: float


def trained(definition: StudyDefinition, candidates: int, splits: int) -> list[Curves]:
    """Curves of random candidates on several splits, the study's own first; the default configuration comes first."""
    own = load_task(definition)
    studies = [own, *(anew(own, seed) for seed in range(11, 10 + splits))]
    drawn = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=1))
    drawn.enqueue_trial(space.default_parameters(definition))
    found: list[list[list[list[float]]]] = []
    while len(found) < candidates:
        trial = drawn.ask()
        candidate = space.suggest(definition, trial)
        endless = replace(candidate, training=replace(candidate.training, patience=candidate.training.epochs))
        curves = []
        try:
            for study in studies:
                cv = study.cross_validation(endless, trial=trial.number + 1, stages=(study.folds.count,))
                curves.append([list(fold) for fold in zip(*(event.scores for event in cv.epochs()), strict=True)])
        except NonFiniteLossError:
            continue
        found.append(curves)
        print(f"{len(found)} of {candidates}: {np.mean(curves, (0, 1)).max():.3f}", file=sys.stderr)
    return list(np.array(found).swapaxes(0, 1))


class Replay:
    """A study on curves: stage after stage as `hpo.running.objective` does it, then the other folds catch up."""

    def __init__(self, stages: Sequence[int], pruner: PrunerConfig, patience: int) -> None:
        self.stages = stages
        self.pruner = pruner
        self.patience = patience
        self._peers: dict[int, list[float]] = {}

    def study(self, curves: Curves, order: Sequence[int]) -> Outcome:
        """Train the candidates in this order."""
        self._peers.clear()
        ends = [self.candidate(curves[number]) for number in order]
        values = [value for _, value in ends]
        return Outcome(
            epochs=sum(epochs for epochs, _ in ends),
            complete=int(np.isfinite(values).sum()),
            winner=order[int(np.argmax(values))],
            value=max(values),
        )

    def candidate(self, scores: npt.NDArray[np.float64]) -> tuple[int, float]:
        """Epochs (of one fold) and value of the next candidate; minus infinity if it is given up."""
        longest, folds = scores.shape[1], 0
        ends: list[int] = []
        values: list[float] = []
        for size in self.stages:
            means = scores[folds : folds + size].mean(0).tolist()
            folds += size
            known = self._peers.setdefault(folds, [])
            least = -np.inf if self.pruner.name == "none" or folds == len(scores) else needed(known, self.pruner)
            for end in range(1, longest + 1):
                stopped = end == longest or is_stale(means[:end], self.patience)
                ahead = projected_best(means[:end], self.patience, longest=longest) if not stopped else max(means[:end])
                hopeless = self._mean([*values, ahead]) < least and (stopped or self.pruner.within_stages)
                if stopped or hopeless:
                    break
            ends.append(end)
            values.append(max(means[:end]))
            known.append(self._mean(values))
            if hopeless:
                return int(np.dot(self.stages[: len(ends)], ends)), -np.inf
        return len(scores) * max(ends), float(scores[:, : max(ends)].mean(0).max())

    def _mean(self, values: Sequence[float]) -> float:
        return float(np.average(values, weights=self.stages[: len(values)]))


def by_median(curves: Curves, order: Sequence[int], patience: int) -> Outcome:
    """As `benchmarks.script`: fold after fold, `MedianPruner` every epoch; its value is the mean of the folds' best."""
    complete: list[npt.NDArray[np.float64]] = []  # reports of complete trials, NaN where it had stopped
    epochs = 0
    values: list[float] = []
    for scores in curves[order]:
        reports, best, value = np.full(scores.shape, np.nan), -np.inf, np.nan
        for fold, epoch in _fold_after_fold(scores, patience):
            epochs += 1
            reports[fold, epoch] = scores[fold, epoch]
            best = max(best, scores[fold, epoch])
            rivals = [each[fold, epoch] for each in complete if not np.isnan(each[fold, epoch])]
            if len(complete) >= MEDIAN_STARTUP and rivals and best < np.median(rivals):
                break
        else:
            complete.append(reports)
            value = float(np.nanmax(reports, axis=1).mean())
        values.append(value)
    winner = int(np.nanargmax(values))
    return Outcome(epochs, len(complete), order[winner], values[winner])


def _fold_after_fold(scores: npt.NDArray[np.float64], patience: int) -> Iterator[tuple[int, int]]:
    """Folds and epochs, as they are trained one after the other, each until it is stale."""
    for fold, curve in enumerate(scores):
        for epoch in range(len(curve)):
            yield fold, epoch
            if is_stale(curve[: epoch + 1].tolist(), patience):
                break


def rows(splits: Sequence[Curves], patience: int) -> Iterator[str]:
    """Lines of a Markdown table."""
    candidates, folds, _ = splits[0].shape
    trials, others = candidates // 2, np.arange(1, candidates)
    orders = [
        [0, *np.random.default_rng(number).choice(others, trials - 1, replace=False).tolist()]
        for number in range(REPLAYS)
    ]
    never = Replay((folds,), PrunerConfig(name="none"), patience)
    worth = np.array([[never.candidate(scores)[1] for scores in curves] for curves in splits])  # [splits, candidates]

    def measured(study: Callable[[Curves, list[int]], Outcome], length: int = trials) -> npt.NDArray[np.float64]:
        """Epochs, complete trials, value in the search and anew: means of each split's studies `[splits, 4]`."""
        return np.array([
            np.mean([
                (outcome.epochs, outcome.complete, outcome.value, np.delete(worth[:, outcome.winner], split).mean())
                for outcome in (study(curves, order[:length]) for order in orders)
            ], axis=0)
            for split, curves in enumerate(splits)
        ])  # fmt: skip

    whole = measured(never.study)

    def row(words: str, found: npt.NDArray[np.float64], length: int = trials) -> str:
        epochs, complete, _, _ = found.mean(0)
        lost, anew = (whole - found)[:, 2:].T
        error = anew.std(ddof=1) / np.sqrt(len(splits))
        return (
            f"| {words} | {epochs / length:.1f} | {epochs / whole[:, 0].mean():.2f} | {complete:.1f} "
            f"| {lost.mean():.4f} | {anew.mean():.4f} ± {error:.4f} |"
        )

    yield "| stages | percentile | within stages | epochs a trial | of all | complete | lost | lost anew |"
    yield "|---|---|---|---|---|---|---|---|"
    yield row(f"{folds} | – | –", whole)
    for length in (trials // 2, trials // 4):
        yield row(f"{folds}, {length} trials | – | –", measured(never.study, length), length)
    yield row("MedianPruner | – | –", measured(lambda curves, order: by_median(curves, order, patience)))
    for stages in ((2, folds - 2), (1, folds - 1), (1, 1, folds - 2)):
        for percentile in (50, 25, 15):
            for within in (False, True):
                pruner = PrunerConfig(percentile=percentile, within_stages=within)
                words = f"{', '.join(map(str, stages))} | {percentile} | {'yes' if within else 'no'}"
                yield row(words, measured(Replay(stages, pruner, patience).study))
    likeness = np.corrcoef(worth)[np.triu_indices(len(worth), k=1)].mean()
    yield f"\nA candidate's values on two splits correlate by {likeness:.2f}."


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", type=Path)
    parser.add_argument("--candidates", type=int, default=80)
    parser.add_argument("--splits", type=int, default=5)
    parser.add_argument("--curves", type=Path, help="written once, then read")
    arguments = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    definition = load(arguments.study)
    if not METRICS[definition.search.metric].higher_is_better:
        parser.error(f"{definition.search.metric} is better when lower; replays know only the other direction")
    file: Path | None = arguments.curves
    if file is not None and file.exists():
        stored = json.loads(file.read_text())
        if stored["study"] != definition.name:
            parser.error(f"{file} has the curves of {stored['study']}, not of {definition.name}")
        splits = [np.array(curves) for curves in stored["curves"]]
    else:
        splits = trained(definition, arguments.candidates, arguments.splits)
        if file is not None:
            file.write_text(json.dumps({"study": definition.name, "curves": [curves.tolist() for curves in splits]}))
    default = space.suggest(definition, optuna.trial.FixedTrial(space.default_parameters(definition)))
    print(*rows(splits, default.training.patience), sep="\n")


if __name__ == "__main__":
    main()
