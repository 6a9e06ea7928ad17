"""A verb in this process: as fast as a function, and the code that a shell runs from its arguments to its exit code.

`cli.app.main` itself is for a process of its own: it ends with signals ignored, and so would the processes that later
tests start.
"""

from __future__ import annotations

import contextlib
import io
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import NamedTuple

import pytest


class Ended(NamedTuple):
    """How a verb ended."""

    code: int
    out: str
    err: str


def hpo(*arguments: str | Path) -> Ended:
    """Run `hpo ...`; whatever would be a traceback in a shell is raised."""
    from sparse_evidence.hpo.cli import app

    out, err = (io.TextIOWrapper(io.BytesIO(), encoding="utf-8", write_through=True) for _ in range(2))
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        patch.setattr(sys, "argv", ["hpo", *map(str, arguments)])
        code = app._run(threading.Event())
    written = (stream.detach().getvalue().decode() for stream in (out, err))
    return Ended(int(code), *written)


@contextlib.contextmanager
def at_most(seconds: float) -> Iterator[None]:
    """Raise a `TimeoutError` in what takes longer."""

    def hangs(_number: int, _frame: FrameType | None) -> None:
        raise TimeoutError(f"it takes longer than {seconds} s")

    before = signal.signal(signal.SIGALRM, hangs)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
