"""Study files with other settings, for measuring what the original asks for under other conditions."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

Changes = Mapping[str, Mapping[str, str]]
"""By table ("" is the top of the file) and setting: the value as TOML, on one line."""


def altered(path: Path, copy: Path, changes: Changes) -> Path:
    """Write a copy of a study file in which `changes` are made, whether or not it had the settings; returns `copy`."""
    parts = re.split(r"(?m)^(?=\[)", path.read_text(encoding="utf-8"))  # each begins with its table's header
    for table, settings in changes.items():
        (place,) = [n for n, part in enumerate(parts) if (part.startswith(f"[{table}]") if table else n == 0)]
        for setting, value in settings.items():
            kept = re.sub(rf"(?m)^{setting} = .*\n", "", parts[place]).rstrip()
            parts[place] = f"{kept}\n{setting} = {value}\n\n"
    copy.write_text("".join(parts), encoding="utf-8")
    return copy
