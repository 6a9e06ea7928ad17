"""Where a page is written: a file that only its owner may read, or standard output."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from sparse_evidence.core.cache import check_writable, is_replaced, is_stdout, open_output
from sparse_evidence.core.errors import UserError

_HEAD = 4096
"""Bytes of a file in which it must say so."""


def generator(verb: str) -> str:
    """What the page of a verb calls itself in its head: by this it is known as one that may be replaced."""
    return f"sparse-evidence-hpo {verb}"


@dataclass(frozen=True)
class PageFile:
    """The file that a page is written to; it is replaced if it is such a page."""

    path: Path
    verb: str
    """Which verb's pages may be replaced, for example `explain`."""
    force: bool = False
    """Whether a file that is no such page may be overwritten."""

    @property
    def is_stdout(self) -> bool:
        """Whether the page goes to standard output, by whatever name: then nothing else may be printed there."""
        return is_stdout(self.path)

    def __str__(self) -> str:
        return "standard output" if self.is_stdout else str(self.path)

    def check(self) -> None:
        """Check that the page can be written and overwrites nothing else: before the work, not after it.

        Raises:
            UserError: the path is a folder, its folder is missing or cannot be written to, or it is another file.
        """
        check_writable(self.path, "page.html")
        if not self.force and not self.is_stdout and is_replaced(self.path) and not self._is_page():
            raise UserError(
                f"{self.path} is no page of hpo {self.verb}, and would be overwritten; name another file with --out, "
                "or add --force"
            )

    def write(self, page: str) -> None:
        """Write the page as UTF-8; a file is replaced atomically, a device or pipe is written to.

        Raises:
            UserError: as `check`, which is repeated.
        """
        self.check()
        with open_output(self.path) as file:
            file.write(page.encode())

    def _is_page(self) -> bool:
        """Whether the file is such a page, empty or missing."""
        try:
            with self.path.open("rb") as file:
                head = file.read(_HEAD)
        except FileNotFoundError:
            return True
        except OSError:  # it may not be read
            return False
        return not head or generator(self.verb).encode() in head
