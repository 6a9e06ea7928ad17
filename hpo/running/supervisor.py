"""A pool of worker processes, one per slot: it starts them, prints their output, restarts crashed ones and stops them.

No worker outlives the pool: if this process is killed, its workers see EOF on standard input and stop.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from types import TracebackType
from typing import IO, Self

from ..database.connection import RETRY_SECONDS
from ..database.retry import Backoff
from ..errors import Exit
from .position import Position, PositionFile
from .signals import STOP_ON_EOF, STOP_SECONDS
from .slots import Slot

RESTART_PAUSES = Backoff(shortest=1.0, longest=60.0, jitter=0.2)
"""Between the crashes of a worker and its restarts."""
HEALTHY_SECONDS = 60.0
"""After running for this long, a crash is not counted as consecutive: the slot's next pause is short again."""
MAX_CRASHES = 10
"""A slot is abandoned after more consecutive crashes than this, all of them within `HEALTHY_SECONDS` of the start."""

_FINAL = {Exit.DONE, Exit.USAGE, Exit.REFUSED, Exit.INTERRUPTED}
"""Exit codes after which a restart would only repeat the outcome; for `Exit.STORAGE` that is so after a while."""
_RESTART_IMMEDIATELY = {Exit.MEMORY, Exit.STALLED}
"""Exit codes with which a worker requests a fresh process."""

STUDY_NOTE = "HPO_STUDY_NOTE"
"""Environment variable: the file in which the workers of a pool note the key of their study."""

PrintLine = Callable[[str], None]


class WorkerPool(AbstractContextManager["WorkerPool"]):
    """Processes of `hpo worker` that share one study; leaving the context stops them, and they release their trials.

    Args:
        study: the study file.
        url: the database; passed in the environment, because all users of the machine can read arguments.
        trials: the budget.
        slots: one process is started for each.
        print_line: called with every line that a worker writes, and with a line for every crash or restart; None: the
            workers are held, which means that they only load their libraries, until `release`.
        artifacts: where checkpoints are stored; default: from the workers' environment.
        environment: further variables of the workers.
        confirm_only: the workers do no trials of the search.
    """

    def __init__(
        self,
        study: Path,
        url: str,
        *,
        trials: int,
        slots: Sequence[Slot],
        print_line: PrintLine | None,
        artifacts: str | None = None,
        environment: Mapping[str, str] | None = None,
        confirm_only: bool = False,
    ) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="hpo-pool-")
        self._note = Path(self._folder.name) / "study"
        self._note.touch()
        arguments = ["worker", str(study), "--trials", str(trials), *(["--confirm-only"] if confirm_only else [])]
        variables = {
            "HPO_STORAGE": url,
            STUDY_NOTE: str(self._note),
            **({"HPO_ARTIFACTS": artifacts} if artifacts else {}),
            **(environment or {}),
        }
        self._print_line: PrintLine | None = None  # None: the workers are held
        self._early: list[str] = []
        self._telling = threading.RLock()
        self._slots = [_Slot(arguments, variables, slot, self._tell) for slot in slots]
        if print_line is not None:
            self.release(print_line)

    def _tell(self, line: str) -> None:
        with self._telling:
            (self._print_line or self._early.append)(line)

    def release(self, print_line: PrintLine, study_key: int | None = None) -> None:
        """Let workers that are held join the study.

        Args:
            print_line: as for the pool; called with what they have written so far, too.
            study_key: the study's key in the database; None: the first worker may create the study.
        """
        with self._telling:
            self._print_line = print_line
            for line in self._early:
                print_line(line)
        if study_key is not None:
            self._note.write_text(str(study_key), encoding="utf-8")
        for slot in self._slots:
            slot.release()

    @property
    def size(self) -> int:
        """The number of slots."""
        return len(self._slots)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self.stop()

    def poll(self) -> int:
        """Restart crashed workers whose pause is over; return the number of slots that run a worker or will.

        Only this call restarts crashed workers, so make it about once a second.
        """
        return sum(slot.poll() for slot in self._slots)

    def positions(self) -> dict[int, Position]:
        """Where the workers are, by process id; without those that have finished no epoch yet."""
        found = (slot.position() for slot in self._slots)
        return {pid: position for pid, position in found if position is not None}

    def failure(self) -> tuple[int, str]:
        """Why no worker is left: an exit code, and how each worker ended, with the last line it printed."""
        codes = {f"{describe_exit(slot.code)}{slot.last_line()}": slot.code for slot in self._slots}
        description = "; ".join(f"a worker {text}" for text in codes)
        return max((code for code in codes.values() if code and code > 0), default=1), description

    def codes(self) -> list[int]:
        """The exit code of each slot's last process; a slot whose process is alive has none."""
        return [slot.code for slot in self._slots if slot.code is not None]

    def stop(self) -> None:
        """Terminate all workers and wait until they have released their trials; if interrupted, kill them.

        Workers that are held have no trials, and are killed at once.
        """
        try:
            if self._print_line is None:
                return
            for slot in self._slots:
                slot.terminate()
            deadline = time.monotonic() + STOP_SECONDS
            for slot in self._slots:
                slot.wait(max(0.0, deadline - time.monotonic()))
        finally:
            for slot in self._slots:
                slot.kill()
            self._folder.cleanup()


class _Slot:
    """A slot and its current process, which is restarted after a crash with growing pauses."""

    def __init__(self, arguments: list[str], environment: dict[str, str], slot: Slot, print_line: PrintLine) -> None:
        self.code: int | None = None
        """Exit code of the last process; None while one is alive."""
        self._number = slot.number
        self._print_line = print_line
        self._arguments = [*arguments, "--slot", str(slot.number), "--threads", str(slot.threads)]
        self._environment = {**os.environ, **environment, **slot.environment(), STOP_ON_EOF: "1"}
        self._crashes = 0
        self._away_since: float | None = None  # when the first of the workers began that all found no database
        self._restart_at: float | None = None
        self._stopping = False
        self._held = True
        self._start()

    def poll(self) -> bool:
        """Restart the worker if it crashed and its pause is over; False once the slot is abandoned."""
        if self._restart_at is not None:
            self._restart_if_due()
            return True
        code = self._process.code()
        if code is None:
            return True
        if self.code is None:
            self.code = code
            self._handle_end(code)
        return self._restart_at is not None

    def release(self) -> None:
        self._held = False
        self._started_at = time.monotonic()
        self._process.release()

    def _restart_if_due(self) -> None:
        if self._restart_at is not None and time.monotonic() >= self._restart_at:
            self._start()

    def _start(self) -> None:
        self._restart_at = self.code = None
        self._started_at = time.monotonic()
        self._process = _Process(
            self._arguments, self._environment, lambda line: self._print_line(f"worker {self._number}: {line}")
        )
        if not self._held:
            self._process.release()

    def _handle_end(self, code: int) -> None:
        """Print how the process ended, and schedule a restart unless it would end the same way."""
        self._process.close()
        message = f"worker {self._number} {describe_exit(code)}"
        immediately = code in _RESTART_IMMEDIATELY
        if not immediately:
            self._crashes = 1 if time.monotonic() - self._started_at > HEALTHY_SECONDS else self._crashes + 1
        if self._stopping or self._is_final(code):
            if code != Exit.DONE:
                self._print_line(message)
            return
        pause = 0.0 if immediately else RESTART_PAUSES.pause(self._crashes)
        self._restart_at = time.monotonic() + pause
        self._print_line(f"{message}; restarting it" + (f" in {pause:.0f} s" if pause else ""))

    def _is_final(self, code: int) -> bool:
        """Whether the slot is abandoned. A database that is away may come back within the time that a worker waits."""
        if code != Exit.STORAGE:
            self._away_since = None
            return code in _FINAL or self._crashes > MAX_CRASHES
        self._away_since = self._started_at if self._away_since is None else self._away_since
        return time.monotonic() - self._away_since >= RETRY_SECONDS

    def last_line(self) -> str:
        return self._process.last_line()

    def position(self) -> tuple[int, Position | None]:
        return self._process.position()

    def terminate(self) -> None:
        self._stopping = True
        self._restart_at = None
        self._process.terminate()

    def wait(self, seconds: float) -> None:
        self._process.wait(seconds)

    def kill(self) -> None:
        self._process.kill()
        self.code = self._process.code()


class _Process:
    """One worker process. It stops at EOF on its standard input, and so also when this process is killed.

    It joins the study once it reads a line there, see `signals.stop_with_parent`.
    """

    def __init__(self, arguments: list[str], environment: dict[str, str], print_line: PrintLine) -> None:
        self._last_line = ""
        self._position_file = PositionFile()
        self._process = subprocess.Popen(  # noqa: S603 (our own command line)
            [sys.executable, "-m", "sparse_evidence.hpo", *arguments],
            env=environment | self._position_file.environment(),
            pass_fds=[self._position_file.number],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,  # Ctrl-C signals this process only, which then sends each worker one SIGTERM
        )
        assert self._process.stdout is not None
        self._listener = threading.Thread(target=self._listen, args=(self._process.stdout, print_line), daemon=True)
        self._listener.start()

    def _listen(self, stream: IO[str], print_line: PrintLine) -> None:
        for line in stream:
            if line.strip():
                self._last_line = line.strip()
                print_line(line.rstrip())
        stream.close()

    def release(self) -> None:
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):  # it has ended
            os.write(self._process.stdin.fileno(), b"\n")  # past the buffer, which would be flushed again when closed

    def code(self) -> int | None:
        return self._process.poll()

    def position(self) -> tuple[int, Position | None]:
        """Its process id, and where it is."""
        return self._process.pid, self._position_file.read()

    def close(self) -> None:
        """Close what connects this process with it; it has ended."""
        self._position_file.close()
        if self._process.stdin is not None:
            self._process.stdin.close()

    def last_line(self) -> str:
        """The last line of its output, in parentheses."""
        self._listener.join(timeout=1)
        return f" ({self._last_line.removeprefix('hpo: ')})" if self._last_line else ""

    def terminate(self) -> None:
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
        self.close()
        self._listener.join(timeout=5)


def describe_exit(code: int | None) -> str:
    """Describe how a process ended, from its exit code."""
    if code is not None and code < 0:
        return f"was killed by signal {-code}" + (" (often: out of memory)" if code == -9 else "")
    if code == Exit.MEMORY:
        return "exited to free its memory"
    if code == Exit.STALLED:
        return "exited because its trial stalled"
    return f"ended with exit code {code}"
