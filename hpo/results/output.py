"""Where a result is written: a file, standard output, or through a link into whatever it points to.

A file is replaced atomically, unless it is another study's. Devices and pipes are written to, never replaced.
"""

from __future__ import annotations

import errno
import json
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sparse_evidence.core.cache import is_replaced, write_atomically
from sparse_evidence.core.errors import UserError

STDOUT = Path("-")
"""The name that means standard output."""


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
        if self.path == STDOUT:
            return True
        try:
            return os.path.samestat(self.path.stat(), os.fstat(1))
        except OSError:
            return False

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
        if self.is_stdout:
            return
        if self.path.is_dir():
            raise UserError(f"{self.path} is a folder; name a file with --out, for example {self.path / 'best.json'}")
        try:
            if is_replaced(self.path):
                _check_folder(Path(os.path.realpath(self.path)))
            elif not os.access(self.path, os.W_OK):
                self.path.stat()  # says so if there is nothing
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        except OSError as error:
            raise self._cannot_be_written(error, "create its folder, or ") from error
        if not self.force and is_replaced(self.path) and (owner := self._other_owner()) is not None:
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
        if self.is_stdout:
            sys.stdout.buffer.write(text.encode())  # UTF-8 whatever the locale is
            sys.stdout.flush()
            return
        try:
            if is_replaced(self.path):
                write_atomically(self.path, text.encode())
            else:
                self.path.write_bytes(text.encode())
        except OSError as error:
            raise self._cannot_be_written(error) from error

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

    def _cannot_be_written(self, error: OSError, also: str = "") -> UserError:
        return UserError(f"{self.path} cannot be written ({error.strerror}); {also}name another file with --out")


def _check_folder(path: Path) -> None:
    """Check that a file can be created beside `path`, as replacing it does. Raises an `OSError`."""
    probe = path.with_name(f".{path.name}.probe")
    probe.touch()
    probe.unlink()
