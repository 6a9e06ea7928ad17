"""Scaling to two workers on real trials and to 64 on trials that only sleep; memory and start-up of a worker."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import datetime
from pathlib import Path

import optuna

from benchmarks.service import databases
from benchmarks.timing import time_alternately
from benchmarks.variants import write_variant
from sparse_evidence.hpo.database.connection import engine_of, open_storage
from sparse_evidence.hpo.database.studies import open_study
from sparse_evidence.hpo.running.slots import usable_cores
from sparse_evidence.hpo.study.definition import load

SLEEP_SECONDS = 2.0
SLEEPERS = 64
ROUNDS = 5
TRIALS = 16
HOME = Path(__file__).with_name("home.toml")


def _study(folder: Path, name: str, trials: int, **training: str) -> Path:
    """Write a study of the size of ReDSM5 with equal work in every trial: random points, no pruning, fixed epochs."""
    changes = {
        "": {"name": f'"{name}"'},
        "search": {"trials": str(trials), "sampler": '"random"', "pruner": '{ name = "none" }'},
        "training": {"epochs": "4", "patience": "4", **training},
    }
    return write_variant(HOME, folder / f"{name}.toml", changes)


def workers_2() -> dict[str, float]:
    """Trials per second of two workers relative to one, without start-up; each worker has one thread."""
    pace = {}
    with databases() as fresh, tempfile.TemporaryDirectory() as folder:
        for count in (1, 2):
            path = _study(Path(folder), f"scaling_{count}", TRIALS)
            url = fresh(path.stem)
            command = [sys.executable, "-m", "sparse_evidence.hpo", "worker", str(path), "--threads", "1"]
            environment = {**os.environ, "HPO_STORAGE": url, "OMP_NUM_THREADS": "1"}
            running = [subprocess.Popen(command, env=environment) for _ in range(count)]
            assert [process.wait() for process in running] == [0] * count
            trials = optuna.load_study(study_name=path.stem, storage=url).trials
            ends = sorted(trial.datetime_complete for trial in trials if trial.datetime_complete)[count - 1 :]
            # from the first end, when all workers have started, to the last
            pace[count] = (len(ends) - 1) / (ends[-1] - ends[0]).total_seconds()
    return {"scaling.workers_2": pace[2] / pace[1]}


def sleeping_64() -> dict[str, float]:
    """Share of the ideal throughput that 64 workers lose when a trial is two seconds of sleep."""
    with databases() as fresh:
        url = fresh("sleepers")
        definition = load(Path(__file__).with_name("service.toml"))
        identity = {
            "definition": definition.canonical(), "definition_sha256": definition.sha256(), "data_sha256": "",
            "folds_sha256": "", "code": "",
        }  # fmt: skip
        study = open_study(open_storage(url), "sleepers", direction="maximize", identity=identity)
        engine_of(study).dispose()
        trials = SLEEPERS * (ROUNDS + 2)
        command = [sys.executable, "-m", "benchmarks.sleeper", url, str(SLEEPERS), str(trials), str(SLEEP_SECONDS)]
        subprocess.run(command, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
        ends = sorted(trial.datetime_complete for trial in study.trials if trial.datetime_complete)
        # in the first two rounds, sessions and statements are new
        warm = ends[2 * SLEEPERS - 1 :]
        achieved = (len(warm) - 1) / (warm[-1] - warm[0]).total_seconds()
    return {"scaling.sleeping_64_loss": 1 - achieved / (SLEEPERS / SLEEP_SECONDS)}


def memory() -> dict[str, float]:
    """Peak resident memory of one worker on a study of the size of ReDSM5, in GiB; shared pages are counted in full.

    An optimizer step uses 256 posts of each fold, the maximum in studies/redsm5_iris.toml.
    """
    with databases() as fresh, tempfile.TemporaryDirectory() as folder:
        path = _study(Path(folder), "memory", 2, batch_size="64", accumulation_steps="4")
        environment = {**os.environ, "HPO_STORAGE": fresh("memory")}
        code = (
            "import resource, subprocess, sys;"
            "subprocess.run(sys.argv[1:], check=True);"
            "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)"
        )
        command = [sys.executable, "-c", code, sys.executable, "-m", "sparse_evidence.hpo"]
        command += ["worker", str(path), "--threads", "1"]
        output = subprocess.run(command, check=True, env=environment, capture_output=True, text=True).stdout
    kibibytes = int(output.split()[-1])
    return {"memory.worker_gib": kibibytes / 2**20}


def startup(rounds: int = 5) -> dict[str, float]:
    """Seconds that `hpo --help` takes, and that another worker takes to join a finished study and leave it."""
    with databases() as fresh, tempfile.TemporaryDirectory() as folder:
        path = _study(Path(folder), "startup", 1)
        environment = {**os.environ, "HPO_STORAGE": fresh("startup")}

        def hpo(*arguments: str) -> None:
            command = [sys.executable, "-m", "sparse_evidence.hpo", *arguments]
            subprocess.run(command, check=True, env=environment, stdout=subprocess.DEVNULL)

        # the worker's warm-up call, which is not counted, runs the study
        runs = [lambda: hpo("--help"), lambda: hpo("worker", str(path), "--threads", "1")]
        help_seconds, worker_seconds = map(statistics.median, time_alternately(runs, rounds))
    return {"startup.help_seconds": help_seconds, "startup.worker_seconds": worker_seconds}


def first_trial(rounds: int = 3) -> dict[str, float]:
    """Seconds from `hpo run`, on a study that exists, to the start of its next trial."""
    with databases() as fresh, tempfile.TemporaryDirectory() as folder:
        path, url = _study(Path(folder), "first", 1, epochs="1", patience="1"), fresh("first")
        command = [sys.executable, "-m", "sparse_evidence.hpo", "run", str(path), "--workers", "1", "--force"]
        command += ["--out", f"{folder}/best.json"]
        seconds = []
        for trials in range(1, rounds + 2):
            started = datetime.now()
            subprocess.run(
                [*command, "--trials", str(trials)], check=True, env={**os.environ, "HPO_STORAGE": url},
                stdout=subprocess.DEVNULL,
            )  # fmt: skip
            newest = optuna.load_study(study_name="first", storage=url).trials[-1]
            assert newest.datetime_start is not None
            seconds.append((newest.datetime_start - started).total_seconds())
    return {"startup.first_trial_seconds": statistics.median(seconds[1:])}  # the first run creates the study


def measure() -> dict[str, float]:
    """All figures of this module."""
    assert usable_cores() >= 2, "two workers need two cores"
    started = time.perf_counter()
    figures = workers_2() | sleeping_64() | memory() | startup() | first_trial()
    return figures | {"scaling.seconds": time.perf_counter() - started}
