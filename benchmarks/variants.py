"""Study files with some settings changed, to measure a study under other conditions."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

Changes = Mapping[str, Mapping[str, str]]
"""Per table ("" is the top of the file) and setting: the new value as TOML, on one line."""


def write_variant(path: Path, copy: Path, changes: Changes) -> Path:
    """Write a copy of a study file with `changes` applied, replacing or adding settings; return `copy`."""
    sections = re.split(r"(?m)^(?=\[)", path.read_text(encoding="utf-8"))  # each begins with its table's header
    for table, settings in changes.items():
        (index,) = [n for n, section in enumerate(sections) if (section.startswith(f"[{table}]") if table else n == 0)]
        for setting, value in settings.items():
            others = re.sub(rf"(?m)^{setting} = .*\n", "", sections[index]).rstrip()
            sections[index] = f"{others}\n{setting} = {value}\n\n"
    copy.write_text("".join(sections), encoding="utf-8")
    return copy
