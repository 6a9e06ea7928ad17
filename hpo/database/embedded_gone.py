"""Root's embedded databases whose `.hpo` folders are gone: found, and deleted.

Root deletes here, so no path comes from a file that a weaker account can write. What is deleted is a folder with a
random name directly in one of `BASES`; both belong to root, and nobody else can write to them. The file `belongs-to`
only says whether the folder that it names still exists. The database in it belongs to the weaker account of the server,
so links in it are not followed, also if they are laid meanwhile.
"""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from sparse_evidence.core.errors import UserError

from . import embedded
from .embedded_root import BASES, is_id, is_root, is_roots

_LONGEST_PATH = 65_536
"""Bytes of `belongs-to` that are read."""


@dataclass(frozen=True)
class Gone:
    """A database, and the `.hpo` folder that it served."""

    home: Path
    served: Path


def find_gone(bases: Sequence[Path] = BASES) -> list[Gone]:
    """Return the databases whose folders do not exist; none for an ordinary user, whose databases are in the folders.

    A folder that cannot be looked at, such as one on a server that does not answer, counts as existing.
    """
    found = []
    for base in bases if is_root() else ():
        with suppress(OSError):
            for home in sorted(base.iterdir()) if is_roots(base) else ():
                served = _served(home) if is_id(home.name) else None
                if served is not None and _is_missing(served):
                    found.append(Gone(home, served))
    return found


def delete_gone(gone: Gone) -> bool:
    """Delete a database; return False if its folder is there again, its server runs, or a process uses it.

    Raises:
        UserError: it cannot be deleted, or not completely.
    """
    if not shutil.rmtree.avoids_symlink_attacks:
        raise UserError(f"{gone.home} cannot be deleted safely on this system; delete it yourself")
    try:
        with embedded.kept_unused(gone.home) as unused:
            if not unused or _served(gone.home) != gone.served or not _is_missing(gone.served):
                return False
            data = gone.home / "pg"
            if data.is_dir():
                shutil.rmtree(data)  # first: if it is interrupted here, `belongs-to` is still there
            shutil.rmtree(gone.home)
    except OSError as error:
        raise UserError(f"{gone.home} cannot be deleted ({error.strerror}); delete the rest yourself") from error
    return True


def _served(home: Path) -> Path | None:
    """The folder that a database served; None if somebody else than root could have written that."""
    with suppress(OSError):
        if not is_roots(home):
            return None
        with os.fdopen(os.open(home / "belongs-to", os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK), "rb") as file:
            status = os.fstat(file.fileno())
            content = file.read(_LONGEST_PATH)
            is_safe = stat.S_ISREG(status.st_mode) and status.st_uid == 0 and not status.st_mode & 0o022
            if is_safe and content.startswith(b"/") and content.endswith(b"\n"):
                return Path(os.fsdecode(content[:-1]))
    return None


def _is_missing(folder: Path) -> bool:
    try:
        folder.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return True
    except (OSError, ValueError):
        return False
    return False
