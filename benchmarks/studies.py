"""Whole studies of 40 trials compared with the same study as a plain Optuna script, including start-up.

Both search the settings of IRIS as published, the only model that the script has, and nothing is confirmed: what is
compared is how fast a search of the same configurations is. Both use the same corpus, folds, embeddings (computed
beforehand) and machine, with two processes each. Both winners are then scored on the same fresh folds with fresh seeds.
The result of a search also depends on luck, so a study that takes only minutes is repeated with other search seeds,
ours and the script in alternation; seconds and values are then means.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import optuna

from benchmarks.resample import resample
from benchmarks.service import databases
from benchmarks.variants import write_variant
from sparse_evidence.core.config import CandidateConfig
from sparse_evidence.core.features.views import EmbeddedCorpus
from sparse_evidence.hpo.running.task import StudyTask, load_task
from sparse_evidence.hpo.study import space
from sparse_evidence.hpo.study.definition import StudyDefinition, load

STUDIES = {"home": Path(__file__).with_name("home.toml"), "editorials": Path(__file__).with_name("script.toml")}
SEARCHES = {"home": (0,), "editorials": (0, 1, 2, 3, 4, 5)}
"""Seeds of the searches."""
PROCESSES = 2
FRESH_SEEDS = (101, 102, 103, 104, 105)


def measure(names: tuple[str, ...] = ("home", "editorials")) -> dict[str, float]:
    """How many times faster than the script, and the re-scored value minus the script's."""
    figures: dict[str, float] = {}
    for name in names:
        task = load_task(load(STUDIES[name]))
        seconds, values = np.zeros(2), np.zeros(2)  # ours, the script's
        for seed in SEARCHES[name]:
            with databases() as fresh, tempfile.TemporaryDirectory() as folder:
                path = STUDIES[name]
                variant = write_variant(path, Path(folder) / path.name, {"search": {"seed": str(seed)}})
                definition = load(variant)
                out, limit = Path(folder) / "best.json", ("--trials", str(definition.search.trials))
                ours = run_hpo(definition.path, fresh("ours"), out).seconds
                script, study = run_script(definition, task, fresh("script"), Path(folder), limit)
                winners = (
                    space.from_dict(json.loads(out.read_text())["config"]),
                    space.suggest(definition, study.best_trial),
                )
            seconds += [ours, script.seconds]
            values += [rescored(task, winner) for winner in winners]
            print(f"{name}, seed {seed}: {ours:.1f} and {script.seconds:.1f} s", file=sys.stderr)
        ours_seconds, script_seconds = map(float, seconds / len(SEARCHES[name]))
        ours_value, script_value = map(float, values / len(SEARCHES[name]))
        figures |= {
            f"study.{name}_vs_script": script_seconds / ours_seconds,
            f"study.{name}_minus_script": ours_value - script_value,
            f"study.{name}_seconds": ours_seconds,
            f"study.{name}_script_seconds": script_seconds,
            f"study.{name}_rescored": ours_value,
        }
    return figures


@dataclass(frozen=True)
class Cost:
    """What processes took from their start to their end, start-up included."""

    seconds: float
    cpu_seconds: float
    """Of all their cores, without the database server; unlike seconds, the same on a busy machine."""


def _cost(run: Callable[[], object]) -> Cost:
    started, before = time.perf_counter(), _cpu_of_children()
    run()
    return Cost(time.perf_counter() - started, _cpu_of_children() - before)


def _cpu_of_children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)  # of those that have ended, and of their children
    return used.ru_utime + used.ru_stime


def run_hpo(path: Path, url: str, out: Path, *, workers: int = PROCESSES) -> Cost:
    """Run a study file with `hpo run` in the database at `url`, which writes `out`; returns what it took."""
    command = [sys.executable, "-m", "sparse_evidence.hpo", "run", str(path)]
    command += ["--workers", str(workers), "--out", str(out)]
    environment = {**os.environ, "HPO_STORAGE": url}
    return _cost(lambda: subprocess.run(command, check=True, env=environment, stdout=subprocess.DEVNULL))


def run_script(
    definition: StudyDefinition,
    task: StudyTask,
    url: str,
    folder: Path,
    limit: tuple[str, str],
    *,
    workers: int = PROCESSES,
) -> tuple[Cost, optuna.Study]:
    """Run the plain script; returns what it took, and its study.

    Args:
        definition: what it searches.
        task: the data, embedded, with folds.
        url: an empty database.
        folder: where the embeddings are written.
        limit: `("--trials", N)` or `("--cpu-seconds", S)`, of each process.
        workers: number of processes.
    """
    default = space.default_parameters(definition)
    corpus = task.features(space.suggest(definition, optuna.trial.FixedTrial(default)).model)
    assert isinstance(corpus, EmbeddedCorpus)
    file = folder / "embeddings.npz"
    np.savez(
        file, embeddings=corpus.embeddings, offsets=corpus.offsets, criteria=corpus.criteria, labels=corpus.labels,
        assignment=task.folds.assignment,
    )  # fmt: skip
    storage = optuna.storages.RDBStorage(url)
    study = optuna.create_study(storage=storage, study_name="script", direction="maximize")
    study.enqueue_trial(default)  # both searches begin with it
    command = [sys.executable, "-m", "benchmarks.script", str(definition.path), url, "script", str(file)]

    def run() -> None:
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        processes = [subprocess.Popen([*command, str(worker), *limit], env=environment) for worker in range(workers)]
        assert [process.wait() for process in processes] == [0] * workers

    return _cost(run), study


def rescored(task: StudyTask, candidate: CandidateConfig) -> float:
    """Return the mean score over fresh folds and seeds, which neither search has seen."""
    values = []
    for seed in FRESH_SEEDS:
        cv = resample(task, seed).cross_validation(candidate, stages=(task.folds.count,))
        for _ in cv.epochs():
            pass
        values.append(cv.summary().value)
    return float(np.mean(values))
