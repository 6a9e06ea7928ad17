"""Trials, databases, processes: the search service on top of `core`. No tensor arithmetic.

The Python API is exported here, see `docs/python.md`. Nothing heavy is imported before it is used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sparse_evidence.core.fitted import load_model as load_model

    from .api import Study as Study
    from .api import fit as fit
    from .api import open as open  # noqa: A004 (people write hpo.open)
    from .api import rebuild as rebuild
    from .api import run as run

_EXPORTED = {
    "Study": "sparse_evidence.hpo.api",
    "fit": "sparse_evidence.hpo.api",
    "load_model": "sparse_evidence.core.fitted",
    "open": "sparse_evidence.hpo.api",
    "rebuild": "sparse_evidence.hpo.api",
    "run": "sparse_evidence.hpo.api",
}


def __getattr__(name: str) -> object:
    if name not in _EXPORTED:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_EXPORTED[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_EXPORTED])
