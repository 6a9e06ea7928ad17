"""A quick start and a quick end: the imports' half a million objects live as long as the process does.

Looking through them for garbage takes a fifth of the time that a worker needs to start, and as long again at its end.
"""

from __future__ import annotations

import gc


def begun() -> None:
    """The process begins: until `settled`, nothing is collected."""
    gc.disable()


def settled() -> None:
    """The work begins: what is there stays, and what comes from now on is collected as usual."""
    gc.freeze()
    gc.enable()


def over() -> None:
    """The process ends: there is nothing left to look for."""
    gc.disable()
    gc.freeze()
