"""A command on a pseudo-terminal, and what a person sees there: every frame, and what has scrolled by."""

from __future__ import annotations

import fcntl
import os
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable
from pathlib import Path
from typing import Self

import pyte

WIDEST = 300
"""The emulator is wider than the terminal that the command is told of, so that a line that is too long is seen."""
FAREWELL = 60.0


class Terminal:
    """`hpo ...` on a terminal of `columns` × `rows`; killed when the context is left."""

    def __init__(self, *arguments: str | Path, folder: Path, columns: int, rows: int = 24, **environment: str) -> None:
        self.frames: list[str] = []
        """Everything that was on the screen, without repetitions."""
        self._screen = pyte.HistoryScreen(WIDEST, rows, history=10_000)
        self._stream = pyte.ByteStream(self._screen)
        self._master, slave = os.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
        self.process = subprocess.Popen(
            [sys.executable, "-m", "sparse_evidence.hpo", *map(str, arguments)],
            cwd=folder,
            env={**os.environ, "TERM": "xterm", **environment},
            stdin=slave,
            stdout=slave,
            stderr=slave,
            start_new_session=True,
        )
        os.close(slave)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        os.close(self._master)

    @property
    def screen(self) -> str:
        """What is on the screen now."""
        return "\n".join(line.rstrip() for line in self._screen.display).rstrip()

    @property
    def everything(self) -> str:
        """What has scrolled off the screen, and what is on it."""
        gone = ("".join(line[column].data for column in range(WIDEST)).rstrip() for line in self._screen.history.top)
        return "\n".join([*gone, self.screen])

    def until(self, condition: Callable[[str], object], seconds: float = 300.0) -> str:
        """Return the first screen that satisfies the condition."""
        deadline = time.monotonic() + seconds
        while not condition(self.screen):
            assert time.monotonic() < deadline, f"the terminal shows:\n{self.everything}"
            assert self._read(), f"it ended ({self.process.wait()}) and showed:\n{self.everything}"
        return self.screen

    def end(self, seconds: float = 300.0) -> int:
        """Read until the command ends, and return its exit code."""
        deadline = time.monotonic() + seconds
        while self._read():
            assert time.monotonic() < deadline, f"the terminal shows:\n{self.everything}"
        return self.process.wait(FAREWELL)

    def type(self, text: str) -> None:
        """Type a line."""
        os.write(self._master, f"{text}\n".encode())

    def interrupt(self) -> None:
        """Send the command what Ctrl-C sends it."""
        self.process.send_signal(signal.SIGINT)

    def _read(self) -> bool:
        """Read what has been written within a second; False once nothing more can come."""
        if not select.select([self._master], [], [], 1.0)[0]:
            return True
        try:
            written = os.read(self._master, 1 << 16)
        except OSError:  # the other end is closed
            return False
        self._stream.feed(written)
        if not self.frames or self.screen != self.frames[-1]:
            self.frames.append(self.screen)
        return bool(written)
