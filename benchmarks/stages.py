"""What pruning saves and what it loses: curves of random candidates, replayed under other stages and percentiles.

    python -m benchmarks.stages studies/quickstart.toml [--candidates 80] [--curves FILE.json]

Every candidate is trained once, all folds, without stopping, each with a seed of its own. Which epochs a study would
have trained of them, and which candidate it would have chosen, follows from the curves alone. That is replayed for 100
studies of half of the candidates each, drawn anew and in another order, after the default configuration.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import optuna

from core.errors import NonFiniteLossError
from core.stopping import is_stale
from hpo import space
from hpo.definition import PrunerConfig, load
from hpo.preparation import prepare
from hpo.pruning import is_hopeless

REPLAYS = 100

Curves = npt.NDArray[np.float64]  # [candidates, folds, epochs]


def trained(study: Path, candidates: int) -> Curves:
    """The scores of every fold and epoch of random candidates, the default configuration first."""
    definition = load(study)
    prepared = prepare(definition)
    drawn = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=1))
    drawn.enqueue_trial(space.default_parameters(definition))
    found = []
    while len(found) < candidates:
        candidate = space.suggest(definition, drawn.ask())
        endless = replace(candidate, training=replace(candidate.training, patience=candidate.training.epochs))
        cv = prepared.cross_validation(endless, trial=len(found), stages=(prepared.folds.count,))
        try:
            events = list(cv.epochs())
        except NonFiniteLossError:
            continue
        found.append(np.array([event.scores for event in events]).T)
        print(f"{len(found)} of {candidates}: {found[-1].mean(0).max():.3f}", file=sys.stderr)
    return np.array(found)


def replayed(
    curves: Curves, order: Sequence[int], stages: Sequence[int], pruner: PrunerConfig, patience: int
) -> tuple[int, float]:
    """Epochs (of one fold) trained, and the best value of a candidate that finished."""
    peers: dict[int, list[float]] = {}
    epochs, best = 0, -np.inf
    for scores in curves[order]:
        trained_epochs, value = _candidate(scores, stages, pruner, patience, peers)
        epochs += trained_epochs
        best = max(best, value)
    return epochs, best


def _candidate(
    scores: npt.NDArray[np.float64],
    stages: Sequence[int],
    pruner: PrunerConfig,
    patience: int,
    peers: dict[int, list[float]],
) -> tuple[int, float]:
    """As `hpo.objective` does it: stage after stage, compared on the same folds, then the others catch up."""
    ends, values, finished = [], [], 0
    for size in stages:
        means = scores[finished : finished + size].mean(0)
        ends.append(next(end for end in range(1, len(means) + 1) if _stops(means[:end], len(means), patience)))
        values.append(means[: ends[-1]].max())
        finished += size
        if finished == len(scores):
            continue
        value, known = float(np.average(values, weights=stages[: len(values)])), peers.setdefault(finished, [])
        given_up = is_hopeless(
            value,
            known,
            percentile=pruner.percentile,
            startup_trials=pruner.startup_trials,
            higher_is_better=True,
        )
        known.append(value)
        if given_up:
            return int(np.dot(stages[: len(ends)], ends)), -np.inf
    return len(scores) * max(ends), float(scores[:, : max(ends)].mean(0).max())


def _stops(means: npt.NDArray[np.float64], longest: int, patience: int) -> bool:
    return len(means) == longest or is_stale(means.tolist(), patience)


def rows(curves: Curves, patience: int) -> Iterator[str]:
    """Lines of a Markdown table."""
    folds = curves.shape[1]
    others, trials = np.arange(1, len(curves)), len(curves) // 2
    studies = [
        [0, *np.random.default_rng(number).choice(others, trials - 1, replace=False).tolist()]
        for number in range(REPLAYS)
    ]
    unpruned = np.array([replayed(curves, study, (folds,), PrunerConfig(), patience) for study in studies])
    plain = unpruned[:, 0].mean()
    yield "| stages | percentile | startup trials | epochs a trial | of unpruned | best kept | lost |"
    yield "|---|---|---|---|---|---|---|"
    yield f"| {folds} | – | – | {plain / trials:.1f} | 1 | | |"
    default = PrunerConfig().startup_trials
    plans = ((2, folds - 2), (1, folds - 1), (1, 1, folds - 2), (1,) * folds)
    tried = [(stages, percentile, default) for stages in plans for percentile in (50, 33, 25)]
    tried += [((1, 1, folds - 2), 33, startup) for startup in (5, 3, 2)]
    for stages, percentile, startup in tried:
        pruner = PrunerConfig(percentile=percentile, startup_trials=startup)
        found = np.array([replayed(curves, study, stages, pruner, patience) for study in studies])
        cost, lost = found[:, 0].mean(), unpruned[:, 1] - found[:, 1]
        words = ", ".join(map(str, stages))
        yield (
            f"| {words} | {percentile} | {startup} | {cost / trials:.1f} | {cost / plain:.2f} "
            f"| {(lost < 1e-9).mean():.2f} | {lost.mean():.4f} |"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", type=Path)
    parser.add_argument("--candidates", type=int, default=80)
    parser.add_argument("--patience", type=int, default=6)
    parser.add_argument("--curves", type=Path, help="written once, then read")
    arguments = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    if arguments.curves and arguments.curves.exists():
        curves = np.array(json.loads(arguments.curves.read_text()))
    else:
        curves = trained(arguments.study, arguments.candidates)
        if arguments.curves:
            arguments.curves.write_text(json.dumps(curves.tolist()))
    print(*rows(curves, arguments.patience), sep="\n")


if __name__ == "__main__":
    main()
