"""One worker process per slot: started, listened to, stopped. None outlives us, however we end."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from types import TracebackType
from typing import IO, Self

from hpo.worker import STOP_ON_EOF

STOP_SECONDS = 60.0
"""How long a worker may take to end its epoch and hand its trial back."""


def usable_cores() -> int:
    """Cores that this process may use, which can be fewer than the machine has."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class Workers(AbstractContextManager["Workers"]):
    """`hpo worker` processes that share one study; leaving the context hands their trials back and ends them.

    Args:
        study: the study file.
        url: the storage; it travels in the environment, because an argument can be read by every user.
        trials: the budget.
        count: number of processes.
        say: called with every line that a worker writes.
    """

    def __init__(self, study: Path, url: str, *, trials: int, count: int, say: Callable[[str], None]) -> None:
        self._say = say
        self._crew: list[_Process] = []
        threads = max(1, usable_cores() // count)
        for slot in range(count):
            arguments = ["worker", str(study), "--trials", str(trials), "--slot", str(slot), "--threads", str(threads)]
            self._crew.append(_Process(arguments, url, threads, say))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self.stop()

    def alive(self) -> int:
        """Processes that still run; a failure among the others is told once."""
        running = sum(worker.code() is None for worker in self._crew)
        for slot, worker in enumerate(self._crew):
            if worker.code() and not worker.told:
                worker.told = True
                rest = f"; {running} still at work" if running else ""
                self._say(f"worker {slot} {_ending(worker.code())}{rest}")
        return running

    def failure(self) -> tuple[int, str]:
        """An exit code and the words for workers that are gone before the work was: each one's end and last line."""
        ends = {f"{_ending(worker.code())}{worker.last_words()}": worker.code() for worker in self._crew}
        told = "; ".join(f"a worker {words}" for words in ends)
        return max((code for code in ends.values() if code and code > 0), default=1), told

    def stop(self) -> None:
        """Ask every worker to hand its trial back and wait until they have ended; interrupted, end them at once."""
        try:
            for worker in self._crew:
                worker.ask_to_stop()
            for worker in self._crew:
                worker.wait(STOP_SECONDS)
        finally:
            for worker in self._crew:
                worker.kill()


class _Process:
    """One worker. It reads the end of its standard input as "stop", so it stops when we are gone without a word."""

    def __init__(self, arguments: list[str], url: str, threads: int, say: Callable[[str], None]) -> None:
        self.told = False
        self._last = ""
        self._process = subprocess.Popen(  # noqa: S603 (our own command line)
            [sys.executable, "-m", "hpo", *arguments],
            env={**os.environ, "HPO_STORAGE": url, "OMP_NUM_THREADS": str(threads), STOP_ON_EOF: "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,  # Ctrl-C reaches us alone; we pass on one SIGTERM
        )
        assert self._process.stdout is not None
        self._listener = threading.Thread(target=self._listen, args=(self._process.stdout, say), daemon=True)
        self._listener.start()

    def _listen(self, stream: IO[str], say: Callable[[str], None]) -> None:
        for line in stream:
            if line.strip():
                self._last = line.strip()
                say(line.rstrip())
        stream.close()

    def code(self) -> int | None:
        return self._process.poll()

    def last_words(self) -> str:
        """What it wrote last, ready to be appended to how it ended."""
        self._listener.join(timeout=1)
        return f" ({self._last.removeprefix('hpo: ')})" if self._last else ""

    def ask_to_stop(self) -> None:
        if self.code() is None:
            self._process.terminate()

    def wait(self, seconds: float) -> None:
        try:
            self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            return

    def kill(self) -> None:
        if self.code() is None:
            self._process.kill()
        self._process.wait()
        self._listener.join(timeout=5)
        if self._process.stdin is not None:
            self._process.stdin.close()


def _ending(code: int | None) -> str:
    if code is not None and code < 0:
        return f"was killed by signal {-code}" + (" (often: out of memory)" if code == -9 else "")
    return f"ended with exit code {code}"
