"""Real worker processes, and ways to kill them, starve them and cut them off.

What runs in a forked worker is the command line, `hpo worker …`, from its first argument to its exit code. A *moment*
stops a worker exactly where a test wants it killed, by wrapping a function in the worker's own process; nothing in the
product knows about tests.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
from processes import PROCESSES

from sparse_evidence.core.errors import UserError
from sparse_evidence.hpo.database import connection, studies
from sparse_evidence.hpo.database.claims_sql import list_claims
from sparse_evidence.hpo.database.record import CONFIG, CURVES, CV

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

[service]
heartbeat_seconds = {heartbeat}
grace_seconds = {grace}
max_attempts = {attempts}
checkpoint_seconds = {checkpoint}
stall_seconds = {stall}
"""
FILLED = {"name": "tiny", "data_seed": 0, "fold_seed": 0, "trials": 3, "pruner": "none", "k": 2, "epochs": 4,
          "heartbeat": 0.3, "grace": 1.5, "attempts": 3, "checkpoint": 0, "stall": 60}  # fmt: skip


def tiny(folder: Path, **changes: Any) -> Path:
    """Write the smallest study that has everything: three folds in two stages, dropout off, random search."""
    path = folder / "tiny.toml"
    path.write_text(TINY.format(**FILLED | changes))
    return path


def until(condition: Callable[[], Any], seconds: float = 30.0, what: str = "it") -> Any:
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, f"waited {seconds} s in vain for {what}"
        time.sleep(0.02)
    return found


# ---- processes ------------------------------------------------------------------------------------------------------


def _main(arguments: list[str], environment: dict[str, str], log: str, folder: str, before: list[Any]) -> None:
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(file, 1)
    os.dup2(file, 2)
    os.chdir(folder)
    os.environ.update(environment)
    sys.argv = ["hpo", *arguments]
    for prepare in before:
        prepare.install()
    from sparse_evidence.hpo.cli.app import main

    main()


class Worker:
    """A process that runs an `hpo` command."""

    def __init__(self, folder: Path, url: str, *arguments: str, before: Any = (), **environment: str) -> None:
        self.log = folder / f"log-{time.monotonic_ns()}.txt"
        before = list(before) if isinstance(before, (list, tuple)) else [before]
        variables = {"HPO_STORAGE": url, "OMP_NUM_THREADS": "1"} | environment
        arguments = arguments or ("worker", str(folder / "tiny.toml"), "--threads", "1")
        self.process = PROCESSES.Process(
            target=_main, args=(list(arguments), variables, str(self.log), str(folder), before)
        )
        self.process.start()

    @property
    def pid(self) -> int:
        assert self.process.pid is not None
        return self.process.pid

    @property
    def said(self) -> str:
        return self.log.read_text() if self.log.exists() else ""

    def alive(self) -> bool:
        return self.process.is_alive()

    def send(self, number: int) -> None:
        os.kill(self.pid, number)

    def end(self, seconds: float = 60.0) -> int:
        """Wait for the end and return the exit code."""
        self.process.join(seconds)
        assert not self.process.is_alive(), f"it should have ended: {self.said}"
        assert self.process.exitcode is not None
        return self.process.exitcode

    def kill(self) -> None:
        self.process.kill()
        self.process.join()


@contextmanager
def crew(folder: Path, url: str, count: int, *arguments: str, **given: Any) -> Iterator[list[Worker]]:
    """Run `count` workers at once; whoever is left at the end is killed."""
    workers = [Worker(folder, url, *arguments, **given) for _ in range(count)]
    try:
        yield workers
    finally:
        for worker in workers:
            worker.kill()


# ---- moments --------------------------------------------------------------------------------------------------------


def _wrap(target: str, around: Callable[[Callable[..., Any]], Callable[..., Any]]) -> None:
    """Replace `module:attribute.path` in this process."""
    from importlib import import_module

    module, _, path = target.partition(":")
    owner: Any = import_module(f"sparse_evidence.{module}")
    *way, name = path.split(".")
    for part in way:
        owner = getattr(owner, part)
    setattr(owner, name, around(getattr(owner, name)))


@dataclass
class Moment:
    """Stop for good at the `nth` call of a function: before it, or after it; the file tells that it happened."""

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
                here = calls == self.nth
                if here and not self.after:
                    self._stop()
                result = function(*args, **kwargs)
                if here:
                    self._stop()
                return result

            return call

        _wrap(self.target, around)

    def _stop(self) -> None:
        self.reached.touch()
        while True:
            signal.pause()


@dataclass
class HalfWritten:
    """Stop for good when half of a checkpoint is on the disk."""

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
class Counted:
    """Count the epochs that a worker trains."""

    file: Path

    def install(self) -> None:
        def around(function: Callable[..., Any]) -> Callable[..., Any]:
            def call(*args: Any, **kwargs: Any) -> Any:
                with self.file.open("a") as file:
                    file.write("epoch\n")
                return function(*args, **kwargs)

            return call

        _wrap("core.training.stack:FoldStack.advance", around)

    @property
    def epochs(self) -> int:
        return len(self.file.read_text().splitlines()) if self.file.exists() else 0


@dataclass
class Slow:
    """Make every epoch take longer."""

    seconds: float

    def install(self) -> None:
        def around(function: Callable[..., Any]) -> Callable[..., Any]:
            def call(*args: Any, **kwargs: Any) -> Any:
                time.sleep(self.seconds)
                return function(*args, **kwargs)

            return call

        _wrap("core.training.stack:FoldStack.advance", around)


@dataclass
class Poison:
    """The process of every worker that trains this trial is killed."""

    number: int

    def install(self) -> None:
        def around(function: Callable[..., Any]) -> Callable[..., Any]:
            def call(claim: Any, *args: Any, **kwargs: Any) -> Any:
                if claim.trial.number == self.number:
                    os.kill(os.getpid(), signal.SIGKILL)
                return function(claim, *args, **kwargs)

            return call

        _wrap("hpo.running.objective:run", around)


@dataclass
class Raising:
    """Training a trial raises an exception, as many times as asked."""

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

        _wrap("core.training.stack:FoldStack.advance", around)


# ---- what is in the database ----------------------------------------------------------------------------------------


def study_of(url: str, name: str = "tiny") -> optuna.Study:
    return studies.load_study(connection.open_storage(url), name)


def started(url: str, seconds: float = 120) -> optuna.Study:
    """The study, as soon as a worker has made it."""
    opened = connection.open_storage(url)

    def known() -> optuna.Study | None:
        with suppress(UserError):
            return studies.load_study(opened, "tiny")
        return None

    found: optuna.Study = until(known, seconds, "the study")
    return found


def at_work(url: str, ready: Callable[[list[dict[str, Any]]], Any], seconds: float = 120) -> optuna.Study:
    """The study, as soon as the rows of those who hold a trial are as they should be."""
    study = started(url, seconds)
    until(lambda: ready(list_claims(connection.engine_of(study), study)), seconds, "workers at work")
    return study


def outcomes(study: optuna.Study) -> dict[int, str]:
    """Everything that a trial left behind, to the bit, by number."""
    return {
        trial.number: json.dumps(
            [trial.state.name, trial.value, trial.params, sorted(trial.intermediate_values.items()),
             *(trial.user_attrs.get(key) for key in (CONFIG, CURVES, CV))],
            sort_keys=True,
        )
        for trial in study.get_trials(deepcopy=False)
    }  # fmt: skip


def artifacts(folder: Path) -> list[Path]:
    return list((folder / ".hpo" / "artifacts").glob("*"))


# ---- networks -------------------------------------------------------------------------------------------------------


class Proxy:
    """TCP in front of a Postgres: passes bytes on, until it is told to cut all connections and refuse new ones."""

    def __init__(self, target: Path) -> None:
        self._target = str(target)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._pairs: set[tuple[socket.socket, socket.socket]] = set()
        self._lock = threading.Lock()
        self._over = False
        threading.Thread(target=self._accept, args=(self._listener,), daemon=True).start()

    def cut(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        with self._lock:
            pairs = list(self._pairs)
        for pair in pairs:
            for end in pair:
                with suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)

    def restore(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", self.port))
        threading.Thread(target=self._accept, args=(self._listener,), daemon=True).start()

    def close(self) -> None:
        self.cut()

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                client, _ = listener.accept()
                server = socket.socket(socket.AF_UNIX)
                server.connect(self._target)
            except OSError:
                return
            pair = (client, server)
            with self._lock:
                self._pairs.add(pair)
            for source, sink in (pair, pair[::-1]):
                threading.Thread(target=self._pump, args=(source, sink, pair), daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket, pair: tuple[socket.socket, socket.socket]) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                sink.sendall(data)
        for end in pair:
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()
        with self._lock:
            self._pairs.discard(pair)


def command(folder: Path, url: str, *arguments: str, **environment: str) -> subprocess.Popen[str]:
    """Start `python -m sparse_evidence.hpo …` as a shell would."""
    return subprocess.Popen(
        [sys.executable, "-m", "sparse_evidence.hpo", *arguments],
        cwd=folder,
        env=os.environ | {"HPO_STORAGE": url, "OMP_NUM_THREADS": "1"} | environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
