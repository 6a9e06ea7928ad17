"""One worker process per slot: started, listened to, stopped."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO

STOP_SECONDS = 60.0
"""How long a worker may take to end its epoch and hand its trial back."""


def usable_cores() -> int:
    """Cores that this process may use, which can be fewer than the machine has."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class Workers:
    """`hpo worker` processes that share one study; their words come back line by line.

    Args:
        study: the study file.
        url: the storage; it travels in the environment, because an argument can be read by every user.
        trials: the budget.
        count: number of processes.
        say: called with every line that a worker writes.
    """

    def __init__(self, study: Path, url: str, *, trials: int, count: int, say: Callable[[str], None]) -> None:
        threads = max(1, usable_cores() // count)
        self._processes: list[subprocess.Popen[str]] = []
        self._listeners: list[threading.Thread] = []
        for slot in range(count):
            command = [sys.executable, "-m", "hpo", "worker", str(study), "--trials", str(trials)]
            command += ["--slot", str(slot), "--threads", str(threads)]
            process = subprocess.Popen(  # noqa: S603 (our own command line)
                command,
                env={**os.environ, "HPO_STORAGE": url, "OMP_NUM_THREADS": str(threads)},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
                start_new_session=True,  # Ctrl-C reaches us alone; we pass on one SIGTERM
            )
            self._processes.append(process)
            assert process.stdout is not None
            listener = threading.Thread(target=_listen, args=(process.stdout, say), daemon=True)
            listener.start()
            self._listeners.append(listener)

    def alive(self) -> int:
        """Processes that still run."""
        return sum(process.poll() is None for process in self._processes)

    def exit_codes(self) -> Sequence[int]:
        """Exit codes of those that have ended."""
        return [process.returncode for process in self._processes if process.poll() is not None]

    def stop(self) -> None:
        """Ask every worker to hand its trial back, and wait until they have ended."""
        for process in self._processes:
            if process.poll() is None:
                process.terminate()
        for process in self._processes:
            try:
                process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        for listener in self._listeners:
            listener.join(timeout=5)


def _listen(stream: IO[str], say: Callable[[str], None]) -> None:
    for line in stream:
        if line.strip():
            say(line.rstrip())
    stream.close()
