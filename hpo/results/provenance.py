"""What a result depends on besides the study: the commit of the code and the versions of the packages."""

from __future__ import annotations

import platform
import subprocess
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from ..distribution import DISTRIBUTION

_VERSIONED = (DISTRIBUTION, "optuna", "torch", "sentence-transformers", "scikit-learn", "numpy")


def git_commit() -> str | None:
    """The commit of the checkout that runs, with "-dirty" if files were changed; None outside a checkout."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return None
    try:
        call = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
        return subprocess.run(call, check=True, capture_output=True, text=True, timeout=10).stdout.strip()  # noqa: S603
    except (OSError, subprocess.SubprocessError):
        return None


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that the numbers depend on."""
    installed = {"python": platform.python_version()}
    for name in _VERSIONED:
        with suppress(PackageNotFoundError):
            installed[name] = version(name)
    return installed
