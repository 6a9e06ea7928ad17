"""Graceful shutdown: on SIGINT or SIGTERM, and when the parent process dies (seen as EOF on standard input)."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from types import FrameType
from typing import Any

from ..errors import Exit

Handler = Callable[[int, FrameType | None], Any] | signal.Handlers

SIGNALS = (signal.SIGINT, signal.SIGTERM)
"""The signals that ask a process to stop."""
STOP_ON_EOF = "HPO_STOP_ON_EOF"
"""Environment variable: if set, EOF on standard input stops a worker gracefully, as SIGTERM does."""
STOP_SECONDS = 60.0
"""How long a worker may take to finish its epoch and release its trial once its supervisor asks it to stop."""
_LOOK_SECONDS = 0.1


@contextmanager
def graceful_shutdown(stop: threading.Event, *, again: Handler | None = None) -> Iterator[None]:
    """Set `stop` on the first SIGINT or SIGTERM; the previous handlers are restored when the context is left.

    Args:
        stop: polled by the work that should end.
        again: handles a second signal; default: the process ends at once, with `Exit.INTERRUPTED`.
    """
    before = {number: signal.getsignal(number) for number in SIGNALS}

    def request_stop(_number: int, _frame: FrameType | None) -> None:
        stop.set()
        for number in SIGNALS:
            signal.signal(number, again or _ignore)

    with nullcontext() if again else _ended_by_second_signal():
        for number in SIGNALS:
            signal.signal(number, request_stop)
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def _ignore(_number: int, _frame: FrameType | None) -> None:
    """Another thread acts on this signal; SIG_IGN would hide it from that thread."""


@contextmanager
def _ended_by_second_signal() -> Iterator[None]:
    """End the process at the second signal, whatever its main thread does.

    A handler would not do: Python calls it between two instructions of the main thread, and a database driver that
    waits for a dead network reaches the next one half a minute later.
    """
    listen, tell = os.pipe()
    os.set_blocking(tell, False)

    def wait() -> None:
        seen = 0
        while seen < 2 and (numbers := os.read(listen, 16)):
            seen += sum(number in SIGNALS for number in numbers)
        if seen >= 2:
            os._exit(Exit.INTERRUPTED)
        os.close(listen)

    before = signal.set_wakeup_fd(tell, warn_on_full_buffer=False)
    threading.Thread(target=wait, name="second signal", daemon=True).start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)
        os.close(tell)


def stop_with_parent(stop: threading.Event) -> threading.Event:
    """If `STOP_ON_EOF` is set in the environment, set `stop` at EOF on standard input: the parent process has died.

    The process is killed if it is still running `STOP_SECONDS` later, for example because the database died with the
    parent.

    Returns:
        An event that is set once the parent has released this process, by a line on its standard input; without a
        parent it is set already.
    """
    released = threading.Event()
    if os.environ.get(STOP_ON_EOF, "0") in {"", "0"}:
        released.set()
        return released

    def wait_for_eof() -> None:
        with suppress(OSError):
            while os.read(0, 1024):  # not sys.stdin: its lock would still be held when the interpreter shuts down
                released.set()
        stop.set()
        time.sleep(STOP_SECONDS)
        os._exit(Exit.FAILED)

    threading.Thread(target=wait_for_eof, name="end of input", daemon=True).start()
    return released


def wait_unless_stopped(event: threading.Event, stop: threading.Event) -> bool:
    """Wait until the event is set; False if `stop` is set instead."""
    while not event.wait(_LOOK_SECONDS):
        if stop.is_set():
            return False
    return not stop.is_set()
