"""How a search should choose: samplers, pruning and ensembles, replayed on stored trials and judged by unseen posts.

    python -m benchmarks.choices --repeats 0..3 --out trials/        run the trials, a file per repeat and sampler
    python -m benchmarks.choices --summary trials/                   replay every rule on them, and print tables

Every repeat is one draw of the film documents (`benchmarks.cases`): training documents for the search and a test set.
All trials of a repeat are trained on all folds, without pruning, and their fold models predict the test documents. A
rule sees only out-of-fold predictions and curves; what it chooses is worth what the same members score on the test
documents. So many rules can be compared on the same trials, in pairs.

* samplers: `TRIALS` trials of each, and the usual ensemble of them;
* ensembles: how many picks from how many of the best trials, with how many different members, against the best single
  trial and plain averages;
* pruning: which trials are trained to the end when all folds together may be trained as often as `TRIALS` whole trials
  need. A rule that prunes gets more trials for the same time.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import optuna
import torch

from benchmarks import cases
from benchmarks.truth import Ground, Judge, Member
from benchmarks.worth import TRIALS, number_range
from sparse_evidence.core import selection
from sparse_evidence.core.seeding import numpy_generator
from sparse_evidence.core.selection import Scorer
from sparse_evidence.hpo.running.pruning import pruning_threshold
from sparse_evidence.hpo.running.sampler import make_sampler
from sparse_evidence.hpo.running.task import StudyTask, load_task
from sparse_evidence.hpo.study import space
from sparse_evidence.hpo.study.config import PrunerConfig
from sparse_evidence.hpo.study.definition import load

CORPUS = "films"
SAMPLERS: dict[Literal["tpe", "random"], int] = {"tpe": TRIALS, "random": 2 * TRIALS}
"""Trials of each sampler; the random ones are also those that ensembles and pruning are replayed on."""
DRAWS = 20
"""Random orders of the random trials, each of which is one search."""
SIZES = ((10, 30, 10), (10, 10, 10), (20, 30, 20), (20, 30, 6), (20, 30, 5), (20, 30, 4), (20, 30, 3), (20, 30, 2))
"""(picks, pool, members) of the ensembles that are compared."""
AVERAGES = (5, 10, 20)
PERCENTILES = (25.0, 50.0, 75.0, 100.0)
"""Of the trials, how many are trained on all folds; 100: none is pruned."""

Floats = npt.NDArray[np.float32]
Choose = Callable[["Trials", Sequence[int]], list[int]]
"""(trials of a repeat, numbers of those that a search has run) to the members of what it exports."""


@dataclass(frozen=True, eq=False)
class Trials:
    """Trials of one repeat and sampler, each on all folds, in the order in which they were proposed."""

    out_of_fold: Floats
    """[trials, posts, criteria]: logits; NaN for the hold-out."""
    test: Floats
    """[trials, folds, test posts, criteria]: logits of every fold's model."""
    first_stage: Floats
    """[trials]: mean score of the folds of the first stage, each at its best epoch."""
    scorer: Scorer
    judge: Callable[[Sequence[Floats]], float]
    """Test logits of the members to what their mean is worth."""
    first_folds: int
    """Folds of the first stage."""

    def values(self) -> npt.NDArray[np.float64]:
        """Mean score over the folds of every trial, `[trials]`."""
        return np.array([self.scorer.value(logits) for logits in self.out_of_fold])

    def worth(self, members: Sequence[int]) -> float:
        """What the ensemble of these members is worth on the test posts."""
        return self.judge([self.test[member] for member in members])


# ---- the rules ------------------------------------------------------------------------------------------------------


def greedy(picks: int, pool: int, members: int, trials: Trials, run: Sequence[int]) -> list[int]:
    """The ensemble of `picks` picks among the `pool` best trials, as `selection.choose_members` makes it."""
    logits = [trials.out_of_fold[number] for number in run]
    folds = range(trials.scorer.folds.count)
    chosen = selection.choose_members(trials.scorer, logits, folds, pool=pool, picks=picks, members=members)
    return [run[member] for member in chosen]


def average(count: int, trials: Trials, run: Sequence[int]) -> list[int]:
    """The best trials, all with the same weight."""
    values = trials.scorer.signed([trials.scorer.value(trials.out_of_fold[number]) for number in run])
    return [run[index] for index in np.argsort(-values, kind="stable")[:count]]


def size_text(picks: int, pool: int, members: int) -> str:
    """A size of ensembles in words; it has as many members as picks if none is picked twice."""
    limit = "" if members >= picks else f", at most {members} members"
    return f"{picks} picks of the best {pool}{limit}"


RULES: dict[str, Choose] = {
    "best single trial": partial(average, 1),
    **{f"average of the best {count}": partial(average, count) for count in AVERAGES},
    **{size_text(*size): partial(greedy, *size) for size in SIZES},
}
USUAL = size_text(selection.PICKS, selection.POOL, selection.MEMBERS)


def survivors(trials: Trials, order: Sequence[int], percentile: float, budget: int) -> list[int]:
    """The trials that are trained to the end when trials run in `order` until `budget` folds have been trained."""
    folds, first = trials.scorer.folds.count, trials.first_folds
    rule = PrunerConfig(percentile=percentile)
    whole: list[int] = []
    peers: list[float] = []
    for number in order:
        if budget < folds:
            break
        value = float(trials.first_stage[number])
        pruned = percentile < 100 and value < pruning_threshold(peers, rule)
        peers.append(value)
        budget -= first if pruned else folds
        if not pruned:
            whole.append(number)
    return whole


# ---- replay ---------------------------------------------------------------------------------------------------------


def replay(repeats: Sequence[Mapping[str, Trials]]) -> dict[str, dict[str, list[float]]]:
    """Return for every table, rule and repeat what the rule's choice is worth, a mean over the draws."""
    tables: dict[str, dict[str, list[float]]] = {"sampler": {}, "ensemble": {}, "pruning": {}}
    usual = RULES[USUAL]
    for number, samplers in enumerate(repeats):
        found = samplers["random"]
        orders = [
            numpy_generator("orders", number, draw).permutation(len(found.test)).tolist() for draw in range(DRAWS)
        ]
        for name, trials in samplers.items():
            runs = [range(TRIALS)] if name != "random" else [order[:TRIALS] for order in orders]
            for kind, rule in (("ensemble", usual), ("best single", RULES["best single trial"])):
                _add(tables["sampler"], f"{name}: {kind}", trials, (rule(trials, list(run)) for run in runs))
        for name, rule in RULES.items():
            _add(tables["ensemble"], name, found, (rule(found, order[:TRIALS]) for order in orders))
        budget = TRIALS * found.scorer.folds.count
        for percentile in PERCENTILES:
            runs = [survivors(found, order, percentile, budget) for order in orders]
            _add(tables["pruning"], f"best {percentile:.0f} %", found, (usual(found, run) for run in runs))
    return tables


def _add(table: dict[str, list[float]], name: str, trials: Trials, chosen: Iterable[Sequence[int]]) -> None:
    table.setdefault(name, []).append(float(np.mean([trials.worth(members) for members in chosen])))


def markdown(title: str, table: Mapping[str, Sequence[float]], reference: str) -> list[str]:
    """Return the lines of a table: mean worth, and the paired difference to a reference with its standard error."""
    lines = [f"| {title} | true worth | minus {reference} |", "|---|---|---|"]
    base = np.array(table[reference])
    for name, values in table.items():
        gains = np.array(values) - base
        error = gains.std(ddof=1) / len(gains) ** 0.5 if len(gains) > 1 else float("nan")
        difference = "" if name == reference else f"{gains.mean():+.4f} ± {error:.4f}"
        lines.append(f"| {name} | {np.mean(values):.4f} | {difference} |")
    return lines


# ---- trials ---------------------------------------------------------------------------------------------------------


def prepare(repeat: int, folder: Path) -> tuple[StudyTask, Ground, Judge]:
    """The data of a repeat, and a judge whose folds are those of the search."""
    case = cases.make_case(CORPUS, repeat, folder, trials=TRIALS)
    task = load_task(load(case.study))
    ground = Ground(task, cases.embed_test(case))
    return task, ground, Judge(ground, repeat, folds=task.folds)


def collect(repeat: int, sampler: Literal["tpe", "random"], out: Path) -> None:
    """Run the trials of a repeat and store their predictions in `out`."""
    torch.set_num_threads(1)
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    with tempfile.TemporaryDirectory() as name:
        task, _, judge = prepare(repeat, Path(name))
    study = optuna.create_study(direction="maximize", sampler=make_sampler(sampler, repeat))
    study.enqueue_trial(space.default_parameters(task.definition))
    parts: dict[str, list[Any]] = {"out_of_fold": [], "test": [], "first_stage": []}

    def objective(trial: optuna.Trial) -> float:
        candidate = space.suggest(task.definition, trial)
        cv = task.cross_validation(candidate, trial=trial.number)
        for _ in cv.epochs():
            pass
        summary = cv.summary()
        tested = judge.train(Member(trial.number, candidate, summary.best_epoch), seed=task.seed(trial.number))
        first = np.array(cv.curves()["scores"][: task.definition.split.stage_sizes()[0]])
        parts["out_of_fold"].append(cv.predictions())
        parts["test"].append(np.stack(tested).astype(np.float16))
        parts["first_stage"].append(first.mean(0).max())
        return summary.value

    study.optimize(objective, n_trials=SAMPLERS[sampler])
    temporary = out.with_suffix(".partial")
    with temporary.open("wb") as file:
        np.savez_compressed(file, allow_pickle=False, **{key: np.stack(values) for key, values in parts.items()})
    temporary.rename(out)


def read(repeat: int, folder: Path) -> dict[str, Trials]:
    """The stored trials of a repeat, by sampler."""
    with tempfile.TemporaryDirectory() as name:
        task, _, judge = prepare(repeat, Path(name))
    scorer = Scorer("average_precision", task.corpus.labels, task.folds)

    def worth(members: Sequence[Floats]) -> float:
        return judge.score(list(np.mean(members, axis=0, dtype=np.float32)))[0]

    first = task.definition.split.stage_sizes()[0]
    found: dict[str, Trials] = {}
    for sampler in SAMPLERS:
        with np.load(path(folder, repeat, sampler), allow_pickle=False) as stored:
            arrays = (stored["out_of_fold"], stored["test"], stored["first_stage"])
        found[sampler] = Trials(*arrays, scorer, worth, first)
    return found


def path(folder: Path, repeat: int, sampler: str) -> Path:
    """Where the trials of a repeat and sampler are stored."""
    return folder / f"{CORPUS}-{repeat}-{sampler}.npz"


def main() -> None:
    """Run trials, or replay the rules on those that are stored."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.choices")
    parser.add_argument("--repeats", type=number_range, default=range(4), metavar="A..B", help="both included")
    parser.add_argument("--out", type=Path, default=Path("trials"), metavar="FOLDER")
    parser.add_argument("--summary", type=Path, metavar="FOLDER", help="replay the rules on stored trials, and stop")
    options = parser.parse_args()
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    if options.summary is None:
        options.out.mkdir(parents=True, exist_ok=True)
        for repeat in options.repeats:
            for sampler in SAMPLERS:
                if not path(options.out, repeat, sampler).exists():
                    collect(repeat, sampler, path(options.out, repeat, sampler))
    folder = options.summary or options.out
    complete = [repeat for repeat in range(100) if all(path(folder, repeat, sampler).exists() for sampler in SAMPLERS)]
    tables = replay([read(repeat, folder) for repeat in complete])
    print(f"{len(complete)} repeats of {CORPUS}", end="\n\n")
    print(*markdown("sampler", tables["sampler"], "random: ensemble"), sep="\n", end="\n\n")
    print(*markdown("ensemble", tables["ensemble"], USUAL), sep="\n", end="\n\n")
    print(*markdown("trained to the end", tables["pruning"], "best 100 %"), sep="\n")


if __name__ == "__main__":
    main()
