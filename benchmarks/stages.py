"""What giving up saves and what it loses: curves of random candidates, replayed under other stages and percentiles.

    python -m benchmarks.stages studies/quickstart.toml [--candidates 80] [--splits 5] [--curves FILE.json]

Every candidate is trained to its last epoch on every split of the posts into folds, each time with a seed of its own.
Which epochs a study on one of the splits would have trained, and which candidate it would have chosen, follows from the
curves alone; what the chosen one is worth is its mean over the other splits, which the study has not seen. That is
replayed for 100 studies of half of the candidates, drawn anew and in another order, after the default configuration.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import optuna

from benchmarks.anew import cross_validation, folds_anew
from core.errors import NonFiniteLossError
from core.seeding import stable_seed
from core.stopping import is_stale, prospect
from hpo import space
from hpo.definition import PrunerConfig, load
from hpo.preparation import prepare
from hpo.pruning import needed

REPLAYS = 100

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


def trained(study: Path, candidates: int, splits: int) -> list[Curves]:
    """Curves of random candidates on several splits, the study's own first; the default configuration comes first."""
    definition = load(study)
    prepared = prepare(definition)
    seeds = [0, *range(11, 10 + splits)]
    folds = [folds_anew(prepared, seed) if seed else prepared.folds for seed in seeds]
    drawn = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=1))
    drawn.enqueue_trial(space.default_parameters(definition))
    found: list[list[list[list[float]]]] = []
    while len(found) < candidates:
        trial = drawn.ask()
        candidate = space.suggest(definition, trial)
        endless = replace(candidate, training=replace(candidate.training, patience=candidate.training.epochs))
        curves = []
        try:
            for seed, each in zip(seeds, folds, strict=True):
                cv = cross_validation(prepared, each, endless, stable_seed(seed, "trial", trial.number + 1))
                curves.append([list(fold) for fold in zip(*(event.scores for event in cv.epochs()), strict=True)])
        except NonFiniteLossError:
            continue
        found.append(curves)
        print(f"{len(found)} of {candidates}: {np.mean(curves, (0, 1)).max():.3f}", file=sys.stderr)
    return list(np.array(found).swapaxes(0, 1))


@dataclass
class Replay:
    """A study on curves: stage after stage as `hpo.objective` does it, then the other folds catch up."""

    stages: Sequence[int]
    pruner: PrunerConfig
    patience: int

    def study(self, curves: Curves, order: Sequence[int]) -> Outcome:
        """Train the candidates in this order."""
        self.peers: dict[int, list[float]] = {}
        ends = [self._candidate(curves[number]) for number in order]
        values = [value for _, value in ends]
        return Outcome(
            epochs=sum(epochs for epochs, _ in ends),
            complete=int(np.isfinite(values).sum()),
            winner=order[int(np.argmax(values))],
            value=max(values),
        )

    def _candidate(self, scores: npt.NDArray[np.float64]) -> tuple[int, float]:
        """Epochs (of one fold) and value of a candidate; minus infinity if it is given up."""
        longest, ends, values, folds = scores.shape[1], [], [], 0
        for size in self.stages:
            means = scores[folds : folds + size].mean(0).tolist()
            folds += size
            known = self.peers.setdefault(folds, [])
            least = -np.inf if self.pruner.name == "none" or folds == len(scores) else needed(known, self.pruner)
            for end in range(1, longest + 1):
                stopped = end == longest or is_stale(means[:end], self.patience)
                ahead = prospect(means[:end], self.patience, longest=longest) if not stopped else max(means[:end])
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


def rows(splits: Sequence[Curves], patience: int) -> Iterator[str]:
    """Lines of a Markdown table."""
    candidates, folds, _ = splits[0].shape
    trials, others = candidates // 2, np.arange(1, candidates)
    orders = [
        [0, *np.random.default_rng(number).choice(others, trials - 1, replace=False).tolist()]
        for number in range(REPLAYS)
    ]
    best = np.array([curves.mean(1).max(1) for curves in splits])  # [splits, candidates]

    def measured(stages: Sequence[int], pruner: PrunerConfig, length: int = trials) -> npt.NDArray[np.float64]:
        """Mean epochs, complete trials, value in the search and anew."""
        outcomes = [
            (outcome.epochs, outcome.complete, outcome.value, np.delete(best[:, outcome.winner], split).mean())
            for split, curves in enumerate(splits)
            for outcome in (Replay(stages, pruner, patience).study(curves, order[:length]) for order in orders)
        ]
        return np.mean(outcomes, 0)

    yield "| stages | percentile | within stages | epochs a trial | of all | complete | lost | lost anew |"
    yield "|---|---|---|---|---|---|---|---|"
    never = PrunerConfig(name="none")
    whole = measured((folds,), never)
    yield f"| {folds} | – | – | {whole[0] / trials:.1f} | 1 | {trials} | | |"

    def row(words: str, found: npt.NDArray[np.float64]) -> str:
        lost = whole[2:] - found[2:]
        return (
            f"| {words} | {found[0] / trials:.1f} | {found[0] / whole[0]:.2f} | {found[1]:.1f} "
            f"| {lost[0]:.4f} | {lost[1]:.4f} |"
        )

    for part in (0.5, 0.25):
        length = round(part * trials)
        yield row(f"{folds}, {length} trials | – | –", measured((folds,), never, length))
    for stages in ((2, folds - 2), (1, folds - 1), (1, 1, folds - 2)):
        for percentile in (50, 33, 25, 15):
            for within in (False, True):
                found = measured(stages, PrunerConfig(percentile=percentile, within_stages=within))
                yield row(f"{', '.join(map(str, stages))} | {percentile} | {'yes' if within else 'no'}", found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", type=Path)
    parser.add_argument("--candidates", type=int, default=80)
    parser.add_argument("--splits", type=int, default=5)
    parser.add_argument("--patience", type=int, default=6)
    parser.add_argument("--curves", type=Path, help="written once, then read")
    arguments = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    if arguments.curves and arguments.curves.exists():
        splits = [np.array(curves) for curves in json.loads(arguments.curves.read_text())]
    else:
        splits = trained(arguments.study, arguments.candidates, arguments.splits)
        if arguments.curves:
            arguments.curves.write_text(json.dumps([curves.tolist() for curves in splits]))
    print(*rows(splits, arguments.patience), sep="\n")


if __name__ == "__main__":
    main()
