"""Real worker processes, and faults to inject into them.

A forked worker runs the command line, `hpo worker …`, from its first argument to its exit code. A *fault* wraps a
function in the worker's own process, to stop the worker exactly where a test wants to kill it, to slow it down, or to
raise an error; nothing in the product knows about tests.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
from processes import PROCESSES, hpo
from waiting import until

from sparse_evidence.core.errors import UserError
from sparse_evidence.hpo.database import connection, predictions, studies
from sparse_evidence.hpo.database.claims_sql import list_claims
from sparse_evidence.hpo.database.record import CONFIG, CURVES, CV, SEED

TINY = """
name = "{name}"
[data]
source = "synthetic"
posts = 60
criteria = 2
sentences_mean = 4
seed = {data_seed}
[split]
folds = 3
stages = [1, 2]
holdout = 0.0
seed = {fold_seed}
[search]
space = "file"
trials = {trials}
sampler = "random"
pruner = {{ name = "{pruner}" }}
[model]
name = "iris"
num_queries = 1
k_retrieved = {k}
hidden = 8
[training]
epochs = {epochs}
patience = {epochs}
batch_size = 16
learning_rate = {{ low = 1e-3, high = 3e-2, log = true }}

[confirm]
leaders = {leaders}
splits = {splits}

[service]
heartbeat_seconds = {heartbeat}
grace_seconds = {grace}
max_attempts = {attempts}
checkpoint_seconds = {checkpoint}
stall_seconds = {stall}
"""
DEFAULTS = {"name": "tiny", "data_seed": 0, "fold_seed": 0, "trials": 3, "pruner": "none", "k": 2, "epochs": 4,
            "leaders": 0, "splits": 2,
            "heartbeat": 0.3, "grace": 1.5, "attempts": 3, "checkpoint": 0, "stall": 60}  # fmt: skip


def tiny(folder: Path, **changes: Any) -> Path:
    """Write a minimal study with all features: three folds in two stages, no dropout, random search."""
    path = folder / "tiny.toml"
    path.write_text(TINY.format(**DEFAULTS | changes))
    return path


# ---- processes ------------------------------------------------------------------------------------------------------


def _main(arguments: list[str], environment: dict[str, str], log: str, folder: str, faults: list[Any]) -> None:
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(file, 1)
    os.dup2(file, 2)
    os.chdir(folder)
    os.environ.update(environment)
    sys.argv = ["hpo", *arguments]
    for fault in faults:
        fault.install()
    from sparse_evidence.hpo.cli.app import main

    main()


class Worker:
    """A process that runs an `hpo` command."""

    def __init__(self, folder: Path, url: str, *arguments: str, faults: Sequence[Any] = (), **environment: str) -> None:
        self.log = folder / f"log-{time.monotonic_ns()}.txt"
        variables = {"HPO_STORAGE": url, "OMP_NUM_THREADS": "1"} | environment
        arguments = arguments or ("worker", str(folder / "tiny.toml"), "--threads", "1")
        self.process = PROCESSES.Process(
            target=_main, args=(list(arguments), variables, str(self.log), str(folder), list(faults))
        )
        self.process.start()

    @property
    def pid(self) -> int:
        assert self.process.pid is not None
        return self.process.pid

    @property
    def output(self) -> str:
        return self.log.read_text() if self.log.exists() else ""

    def alive(self) -> bool:
        return self.process.is_alive()

    def send(self, number: int) -> None:
        os.kill(self.pid, number)

    def end(self, seconds: float = 60.0) -> int:
        """Wait for the end and return the exit code."""
        self.process.join(seconds)
        assert not self.process.is_alive(), f"it should have ended: {self.output}"
        assert self.process.exitcode is not None
        return self.process.exitcode

    def kill(self) -> None:
        self.process.kill()
        self.process.join()


@contextmanager
def running_workers(folder: Path, url: str, count: int, *arguments: str, **options: Any) -> Iterator[list[Worker]]:
    """Run `count` workers; those that are still alive at the end are killed."""
    workers = [Worker(folder, url, *arguments, **options) for _ in range(count)]
    try:
        yield workers
    finally:
        for worker in workers:
            worker.kill()


# ---- faults ---------------------------------------------------------------------------------------------------------

EPOCH = "sparse_evidence.core.training.stack:FoldStack.advance"
"""Trains all folds of a stage for one epoch."""
STEP = "sparse_evidence.core.training.engine:Engine._step"
"""One step of the optimizer."""


def _wrap(target: str, around: Callable[[Callable[..., Any]], Callable[..., Any]]) -> None:
    """Replace `module:attribute.path` in this process."""
    from importlib import import_module

    module, _, path = target.partition(":")
    owner: Any = import_module(module)
    *parents, name = path.split(".")
    for parent in parents:
        owner = getattr(owner, parent)
    setattr(owner, name, around(getattr(owner, name)))


@dataclass
class StopAt:
    """Stop forever at the `nth` call of a function, before or after it; the file `reached` shows that it happened."""

    target: str
    reached: Path
    nth: int = 1
    after: bool = False

    def install(self) -> None:
        calls = 0

        def around(function: Callable[..., Any]) -> Callable[..., Any]:
            def call(*args: Any, **kwargs: Any) -> Any:
                nonlocal calls
                calls += 1
                stops = calls == self.nth
                if stops and not self.after:
                    self._stop()
                result = function(*args, **kwargs)
                if stops:
                    self._stop()
                return result

            return call

        _wrap(self.target, around)

    def _stop(self) -> None:
        self.reached.touch()
        while True:
            signal.pause()


@dataclass
class StopInCheckpoint:
    """Stop forever when half of the `nth` checkpoint is on the disk."""

    reached: Path
    nth: int = 2

    def install(self) -> None:
        from sparse_evidence.hpo.running import artifacts

        write = artifacts._PrivateFolder.write
        calls = 0

        def half(store: Any, artifact: str, body: Any) -> None:
            nonlocal calls
            calls += 1
            if calls < self.nth:
                write(store, artifact, body)
                return
            content = body.read()
            (store._folder / artifact).write_bytes(content[: len(content) // 2])
            self.reached.touch()
            while True:
                signal.pause()

        artifacts._PrivateFolder.write = half  # type: ignore[method-assign]


@dataclass
class CountEpochs:
    """Count the epochs that a worker trains, in a file."""

    file: Path

    def install(self) -> None:
        def around(function: Callable[..., Any]) -> Callable[..., Any]:
            def call(*args: Any, **kwargs: Any) -> Any:
                with self.file.open("a") as file:
                    file.write("epoch\n")
                return function(*args, **kwargs)

            return call

        _wrap(EPOCH, around)

    @property
    def epochs(self) -> int:
        return len(self.file.read_text().splitlines()) if self.file.exists() else 0


@dataclass
class SlowEpochs:
    """Make every epoch take longer."""

    seconds: float

    def install(self) -> None:
        def around(function: Callable[..., Any]) -> Callable[..., Any]:
            def call(*args: Any, **kwargs: Any) -> Any:
                time.sleep(self.seconds)
                return function(*args, **kwargs)

            return call

        _wrap(EPOCH, around)


@dataclass
class KillOnTrial:
    """Kill the worker's process when it starts on this trial."""

    number: int

    def install(self) -> None:
        def around(function: Callable[..., Any]) -> Callable[..., Any]:
            def call(claim: Any, *args: Any, **kwargs: Any) -> Any:
                if claim.trial.number == self.number:
                    os.kill(os.getpid(), signal.SIGKILL)
                return function(claim, *args, **kwargs)

            return call

        _wrap("sparse_evidence.hpo.running.objective:run", around)


@dataclass
class RaiseInEpochs:
    """Raise an exception in the first epochs."""

    error: type[BaseException]
    times: int = 1

    def install(self) -> None:
        left = self.times

        def around(function: Callable[..., Any]) -> Callable[..., Any]:
            def call(*args: Any, **kwargs: Any) -> Any:
                nonlocal left
                left -= 1
                if left >= 0:
                    raise self.error
                return function(*args, **kwargs)

            return call

        _wrap(EPOCH, around)


# ---- the database ---------------------------------------------------------------------------------------------------


def study_of(url: str, name: str = "tiny") -> optuna.Study:
    return studies.load_study(connection.open_storage(url), name)


def started(url: str, seconds: float = 120) -> optuna.Study:
    """The study, as soon as a worker has created it."""
    opened = connection.open_storage(url)

    def known() -> optuna.Study | None:
        with suppress(UserError):
            return studies.load_study(opened, "tiny")
        return None

    study: optuna.Study = until(known, seconds, "the study")
    return study


def at_work(url: str, ready: Callable[[list[dict[str, Any]]], Any], seconds: float = 120) -> optuna.Study:
    """The study, as soon as its claims satisfy `ready`."""
    study = started(url, seconds)
    until(lambda: ready(list_claims(connection.engine_of(study), study)), seconds, "workers at work")
    return study


def outcomes(study: optuna.Study) -> dict[int, str]:
    """Everything that is stored for each trial, predictions included, exactly, by trial number."""
    logits = {number: array.tolist() for number, array in predictions.load(study).items()}
    return {
        trial.number: json.dumps(
            [trial.state.name, trial.value, trial.params, sorted(trial.intermediate_values.items()),
             *(trial.user_attrs.get(key) for key in (CONFIG, SEED, CURVES, CV)), logits.get(trial.number)],
            sort_keys=True,
        )
        for trial in study.get_trials(deepcopy=False)
    }  # fmt: skip


def artifacts(folder: Path) -> list[Path]:
    return list((folder / ".hpo" / "artifacts").glob("*"))


def command(folder: Path, url: str, *arguments: str, new: bool = False, **environment: str) -> subprocess.Popen[str]:
    """Start `hpo …`; with `new` in a new Python, as a shell does."""
    return hpo(
        *arguments,
        new=new,
        cwd=folder,
        env={"HPO_STORAGE": url, "OMP_NUM_THREADS": "1"} | environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
