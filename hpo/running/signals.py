"""How a process is told to stop: a signal, or the end of whoever started it."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

from ..errors import Exit

Handler = Callable[[int, FrameType | None], Any] | signal.Handlers

STOP_ON_EOF = "HPO_STOP_ON_EOF"
"""Environment variable: set, the end of standard input asks a worker to stop as SIGTERM does."""
STOP_SECONDS = 60.0
"""How long a worker may take to end its epoch and hand its trial back, when whoever started it wants it to."""


@contextmanager
def graceful_shutdown(stop: threading.Event, *, again: Handler = signal.SIG_DFL) -> Iterator[None]:
    """Set `stop` on the first SIGINT or SIGTERM; a second one gets what `again` says: the process ends at once."""
    signals = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.getsignal(number) for number in signals}

    def ask(_number: int, _frame: FrameType | None) -> None:
        stop.set()
        for number in signals:
            signal.signal(number, again)

    for number in signals:
        signal.signal(number, ask)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def stop_with_parent(stop: threading.Event) -> None:
    """Set `stop` when standard input ends, if `STOP_ON_EOF` asks for it: whoever started us has gone.

    If the work has still not ended `STOP_SECONDS` later (the database may have gone, too), the process ends hard.
    """
    if os.environ.get(STOP_ON_EOF, "0") in {"", "0"}:
        return

    def listen() -> None:
        with suppress(OSError):
            while os.read(0, 1024):  # not sys.stdin: its lock would be held while the interpreter shuts down
                pass
        stop.set()
        time.sleep(STOP_SECONDS)
        os._exit(Exit.FAILED)

    threading.Thread(target=listen, name="end of input", daemon=True).start()
