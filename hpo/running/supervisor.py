"""One worker process per slot: started, listened to, started again when it crashed, stopped. None outlives us."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from types import TracebackType
from typing import IO, Self

from ..database.retry import Backoff
from ..errors import Exit
from .signals import STOP_ON_EOF, STOP_SECONDS
from .slots import Slot

PAUSES = Backoff(shortest=1.0, longest=60.0, jitter=0.2)
"""Before a crashed worker is started again."""
HEALTHY_SECONDS = 60.0
"""A worker that lived this long crashed by accident: its slot's next pause is short again."""
MOST_CRASHES = 10
"""Crashes of a slot in a row, each before `HEALTHY_SECONDS`, after which it stays empty."""

_FINAL = {Exit.DONE, Exit.USAGE, Exit.STORAGE, Exit.REFUSED, Exit.INTERRUPTED}
"""Ends that another start would only repeat."""
_AT_ONCE = {Exit.MEMORY, Exit.STALLED}
"""Ends by which a worker asks for a fresh process."""


class WorkerPool(AbstractContextManager["WorkerPool"]):
    """`hpo worker` processes that share one study; leaving the context hands their trials back and ends them.

    Args:
        study: the study file.
        url: the storage; it travels in the environment, because an argument can be read by every user.
        trials: the budget.
        slots: where they run.
        say: called with every line that a worker writes.
        artifacts: where checkpoints lie; left out, what the worker's environment says.
    """

    def __init__(
        self,
        study: Path,
        url: str,
        *,
        trials: int,
        slots: Sequence[Slot],
        say: Callable[[str], None],
        artifacts: str | None = None,
    ) -> None:
        environment = {"HPO_STORAGE": url, **({"HPO_ARTIFACTS": artifacts} if artifacts else {})}
        self._crew = [_Place(["worker", str(study), "--trials", str(trials)], environment, slot, say) for slot in slots]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self.stop()

    def alive(self) -> int:
        """Slots with a process, or with one that is about to be started again; call it often: it starts them."""
        return sum(place.tend() for place in self._crew)

    def failure(self) -> tuple[int, str]:
        """An exit code and the words for workers that are gone before the work was: each one's end and last line."""
        ends = {f"{ending(place.code)}{place.last_words()}": place.code for place in self._crew}
        told = "; ".join(f"a worker {words}" for words in ends)
        return max((code for code in ends.values() if code and code > 0), default=1), told

    def codes(self) -> list[int]:
        """How each slot's last process ended."""
        return [place.code for place in self._crew if place.code is not None]

    def stop(self) -> None:
        """Ask every worker to hand its trial back and wait until they have ended; interrupted, end them at once."""
        try:
            for place in self._crew:
                place.ask_to_stop()
            deadline = time.monotonic() + STOP_SECONDS
            for place in self._crew:
                place.wait(max(0.0, deadline - time.monotonic()))
        finally:
            for place in self._crew:
                place.kill()


class _Place:
    """A slot and the process in it. After a crash the next one starts after a pause that grows."""

    def __init__(
        self, arguments: list[str], environment: dict[str, str], slot: Slot, say: Callable[[str], None]
    ) -> None:
        self.slot = slot
        self.code: int | None = None
        self._say = say
        self._arguments = [*arguments, "--slot", str(slot.number), "--threads", str(slot.threads)]
        self._environment = {**os.environ, **environment, **slot.environment(), STOP_ON_EOF: "1"}
        self._crashes = 0
        self._next: float | None = None
        self._stopping = False
        self._start()

    def tend(self) -> bool:
        """Start a crashed worker again when its pause is over; False once the slot stays empty."""
        if self._next is not None:
            if time.monotonic() >= self._next:
                self._start()
            return True
        code = self._process.code()
        if code is None:
            return True
        if self.code is None:
            self.code = code
            self._ended(code)
        return self._next is not None

    def _start(self) -> None:
        self._next = self.code = None
        self._begun = time.monotonic()
        self._process = _Process(
            self._arguments, self._environment, lambda line: self._say(f"worker {self.slot.number}: {line}")
        )

    def _ended(self, code: int) -> None:
        words = f"worker {self.slot.number} {ending(code)}"
        at_once = code in _AT_ONCE
        if not at_once:
            self._crashes = 1 if time.monotonic() - self._begun > HEALTHY_SECONDS else self._crashes + 1
        if code in _FINAL or self._stopping or self._crashes > MOST_CRASHES:
            if code != Exit.DONE:
                self._say(words)
            return
        pause = 0.0 if at_once else PAUSES.pause(self._crashes)
        self._next = time.monotonic() + pause
        self._say(f"{words}; another takes its place" + (f" in {pause:.0f} s" if pause else ""))

    def last_words(self) -> str:
        return self._process.last_words()

    def ask_to_stop(self) -> None:
        self._stopping = True
        self._next = None
        self._process.ask_to_stop()

    def wait(self, seconds: float) -> None:
        self._process.wait(seconds)

    def kill(self) -> None:
        self._process.kill()
        self.code = self._process.code()


class _Process:
    """One worker. It reads the end of its standard input as "stop", so it stops when we are gone without a word."""

    def __init__(self, arguments: list[str], environment: dict[str, str], say: Callable[[str], None]) -> None:
        self._last = ""
        self._process = subprocess.Popen(  # noqa: S603 (our own command line)
            [sys.executable, "-m", "sparse_evidence.hpo", *arguments],
            env=environment,
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


def ending(code: int | None) -> str:
    """Say how a process ended."""
    if code is not None and code < 0:
        return f"was killed by signal {-code}" + (" (often: out of memory)" if code == -9 else "")
    if code == Exit.MEMORY:
        return "ended to free its memory"
    if code == Exit.STALLED:
        return "ended itself because its trial stood still"
    return f"ended with exit code {code}"
