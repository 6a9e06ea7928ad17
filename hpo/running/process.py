"""Process-wide tuning of the garbage collector and of malloc.

Imports create half a million objects that live as long as the process. Scanning them for garbage takes a fifth of a
worker's start-up time, and as long again at its exit, so the collector is off until work begins (`disable_gc`), ignores
them from then on (`freeze_gc`), and does not run at exit (`skip_final_gc`).
"""

from __future__ import annotations

import atexit
import gc
import os
import sys
from contextlib import suppress
from typing import NoReturn


def disable_gc() -> None:
    """Turn the collector off while modules are imported, until `freeze_gc`."""
    gc.disable()


def freeze_gc() -> None:
    """Exempt all existing objects from collection, turn the collector on for new ones, and tune malloc."""
    gc.freeze()
    gc.enable()
    _keep_freed_memory()


def skip_final_gc() -> None:
    """Exempt all objects, so that the interpreter's final collection at exit finds nothing to scan."""
    gc.disable()
    gc.freeze()


def leave(code: int) -> NoReturn:
    """End the process with this code, although it was interrupted.

    `python -m` ends with SIGINT, whatever the code, if a KeyboardInterrupt was ever raised while Python ran a text (as
    dataclasses are made), also if it was caught. So what Python does last is left out.
    """
    atexit._run_exitfuncs()  # noqa: SLF001 (os._exit skips them)
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError, AttributeError):  # nobody reads it, or it is closed
            stream.flush()
    os._exit(code)


_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # M_TRIM_THRESHOLD and M_MMAP_THRESHOLD of <malloc.h>
_TRIM_BYTES, _MMAP_BYTES = 1 << 30, 1 << 25  # the second is the largest value that glibc accepts


def _keep_freed_memory() -> None:
    """Make malloc keep up to 1 GiB of freed memory for the next training step.

    Otherwise the system would map and zero it again, page by page. Without glibc this does nothing.
    """
    import ctypes  # not needed by `hpo --help`

    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_TRIM_THRESHOLD, _TRIM_BYTES)
        mallopt(_MMAP_THRESHOLD, _MMAP_BYTES)
