"""Where a result is written: a file, standard output, or through a link into whatever it points to.

A file is replaced atomically, unless it is another study's. Devices and pipes are written to, never replaced.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sparse_evidence.core.cache import check_writable, is_replaced, is_stdout, open_output
from sparse_evidence.core.errors import UserError


@dataclass(frozen=True)
class Output:
    """Where the result of a study is written."""

    path: Path
    study: str
    """Name of the study."""
    force: bool = False
    """Whether a file that is not this study's result may be overwritten."""

    @classmethod
    def named(cls, path: Path | None, study: str, *, force: bool = False) -> Output:
        """The output that `--out` names; by default the file `NAME.best.json` of the current folder."""
        return cls(path or Path(f"{study}.best.json"), study, force)

    @property
    def is_stdout(self) -> bool:
        """Whether the result goes to standard output, by whatever name: then nothing else may be printed there."""
        return is_stdout(self.path)

    @property
    def file(self) -> Path | None:
        """The file that the result is in afterwards; None if it goes to standard output, a device or a pipe."""
        return self.path if not self.is_stdout and is_replaced(self.path) else None

    def __str__(self) -> str:
        return "standard output" if self.is_stdout else str(self.path)

    def check(self) -> None:
        """Check that the result can be written here and overwrites nothing else: before the search, not after it.

        Raises:
            UserError: the path is a folder, cannot be written to, or is a file that is not this study's result.
        """
        check_writable(self.path, "best.json")
        if not self.force and self.file is not None and (owner := self._other_owner()) is not None:
            raise UserError(
                f"{self.path} {owner}, and would be overwritten; name another file with --out, or add --force"
            )

    def write(self, values: Mapping[str, Any]) -> None:
        """Write sorted JSON without NaN. A file is replaced atomically: a reader never sees a partial one.

        Opening a pipe waits until something reads from it.

        Raises:
            UserError: as `check`, which is repeated because a search may take days.
        """
        self.check()
        text = json.dumps(values, indent=2, sort_keys=True, allow_nan=False, ensure_ascii=False) + "\n"
        with open_output(self.path) as file:
            file.write(text.encode())  # UTF-8 whatever the locale is

    def _other_owner(self) -> str | None:
        """What the file is, as the end of a sentence; None if it is this study's result, empty or missing."""
        try:
            content = self.path.read_bytes()
            values = json.loads(content) if content else {"study": self.study}
        except FileNotFoundError:
            return None
        except OSError as error:
            return f"cannot be read ({error.strerror})"
        except (ValueError, RecursionError):  # neither JSON nor UTF-8
            values = None
        owner = values.get("study") if isinstance(values, dict) else None
        if owner == self.study:
            return None
        return f"is the result of the study {owner!r}" if isinstance(owner, str) else "is no result of a study"
