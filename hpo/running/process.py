"""A quick start and a quick end, and memory that is kept in between.

The imports' half a million objects live as long as the process does: looking through them for garbage takes a fifth of
the time that a worker needs to start, and as long again at its end.
"""

from __future__ import annotations

import gc


def disable_gc() -> None:
    """The process begins: until `settled`, nothing is collected."""
    gc.disable()


def freeze_gc() -> None:
    """The work begins: what is there stays, and what comes from now on is collected as usual."""
    gc.freeze()
    gc.enable()
    _keep_memory()


def skip_final_gc() -> None:
    """The process ends: there is nothing left to look for."""
    gc.disable()
    gc.freeze()


_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of <malloc.h>
_KEPT_BYTES, _MOST_BYTES = 1 << 30, 1 << 25  # the second is the most that glibc takes


def _keep_memory() -> None:
    """Keep what a step frees for the next one: given back, it is fetched and zeroed again page by page.

    Where the C library is not glibc, nothing happens.
    """
    import ctypes  # `hpo --help` does without

    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_TRIM_THRESHOLD, _KEPT_BYTES)
        mallopt(_MMAP_THRESHOLD, _MOST_BYTES)
