"""The registry of data sources, by name."""

from __future__ import annotations

from .editorials import EditorialsSource
from .pairs import PairsSource
from .redsm5 import Redsm5Source
from .synthetic import SyntheticSource

Source = EditorialsSource | PairsSource | Redsm5Source | SyntheticSource
"""A frozen dataclass whose field `source` is its name in `SOURCES`; `load(folder)` returns its corpus."""

SOURCES: dict[str, type[Source]] = {
    "editorials": EditorialsSource,
    "pairs": PairsSource,
    "redsm5": Redsm5Source,
    "synthetic": SyntheticSource,
}
