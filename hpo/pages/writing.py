"""Where a page is written: a file that only its owner may read, or standard output."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path

from sparse_evidence.core.cache import is_replaced, write_atomically
from sparse_evidence.core.errors import UserError

GENERATOR = "sparse-evidence-hpo explain"
"""What a page calls itself in its head: by this it is known as one that may be replaced."""
_HEAD = 4096
"""Bytes of a file in which it must say so."""


@dataclass(frozen=True)
class PageFile:
    """The file that a page is written to; it is replaced if it is such a page."""

    path: Path
    force: bool = False
    """Whether a file that is no such page may be overwritten."""

    @property
    def is_stdout(self) -> bool:
        """Whether the page goes to standard output: then nothing else may be printed there."""
        return self.path == Path("-")

    def __str__(self) -> str:
        return "standard output" if self.is_stdout else str(self.path)

    def check(self) -> None:
        """Check that the page can be written and overwrites nothing else: before the work, not after it.

        Raises:
            UserError: the path is a folder, its folder is missing or cannot be written to, or it is another file.
        """
        if self.is_stdout:
            return
        if self.path.is_dir():
            raise UserError(f"{self.path} is a folder; name a file with --out, for example {self.path / 'page.html'}")
        try:
            folder = Path(os.path.realpath(self.path)).parent
            if not os.access(folder if is_replaced(self.path) else self.path, os.W_OK):
                folder.stat()  # says so if there is none
                raise PermissionError(13, "Permission denied")
            foreign = is_replaced(self.path) and self.path.exists() and not self._is_page()
        except OSError as error:
            raise UserError(f"{self.path} cannot be written ({error.strerror}); name another file with --out") from None
        if foreign and not self.force:
            raise UserError(
                f"{self.path} is no page of hpo explain, and would be overwritten; name another file with --out, or "
                "add --force"
            )

    def write(self, page: str) -> None:
        """Write the page as UTF-8; a file is replaced atomically, a device or pipe is written to.

        Raises:
            UserError: as `check`, which is repeated.
        """
        self.check()
        content = page.encode()
        if self.is_stdout:
            sys.stdout.buffer.write(content)
            sys.stdout.flush()
            return
        try:
            if is_replaced(self.path):
                write_atomically(Path(os.path.realpath(self.path)), content)
            else:
                self.path.write_bytes(content)
        except OSError as error:
            raise UserError(f"{self.path} cannot be written ({error.strerror}); name another file with --out") from None

    def _is_page(self) -> bool:
        with self.path.open("rb") as file:
            head = file.read(_HEAD)
        return not head or GENERATOR.encode() in head
