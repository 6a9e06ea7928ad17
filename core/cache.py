"""The user's cache folder, and files in it that are fetched once and verified whenever they are read."""

from __future__ import annotations

import hashlib
import logging
import os
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from filelock import FileLock
from platformdirs import user_cache_dir

from .errors import UserError

CACHE_VARIABLE = "HPO_CACHE"

_log = logging.getLogger(__name__)


def cache_dir() -> Path:
    """Return the cache folder (`HPO_CACHE`, else the system's place for it), created for its owner only.

    Raises:
        UserError: when it cannot be created.
    """
    given = os.environ.get(CACHE_VARIABLE) or user_cache_dir("sparse-evidence-hpo", appauthor=False)
    path = Path(given).expanduser().absolute()
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"the cache folder {path} cannot be created ({error.strerror}); "
            f"set {CACHE_VARIABLE} to a folder you may write to"
        ) from error
    return path


def write_atomically(path: Path, content: bytes | memoryview) -> None:
    """Write a file that nobody ever sees half written, readable by its owner only."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).replace(path)
    except BaseException:
        with suppress(OSError):
            Path(temporary).unlink()
        raise


def fetched(name: str, sha256: str, fetch: Callable[[], bytes]) -> bytes:
    """Return the content of the cached file `name`, fetched when it is absent or not what `sha256` (hex) says.

    Safe for several processes at once: one fetches, the others wait.

    Raises:
        UserError: when what was fetched has another hash, or the cache cannot be written.
    """
    path = cache_dir() / name
    try:
        content = _intact(path, sha256)
        if content is not None:
            return content
        with FileLock(path.with_name(f"{name}.lock")):
            content = _intact(path, sha256)  # somebody else may have fetched it while we waited
            if content is None:
                content = fetch()
                if hashlib.sha256(content).hexdigest() != sha256:
                    raise UserError(f"{name} was fetched but is not the file expected (its SHA-256 differs); try again")
                write_atomically(path, content)
    except OSError as error:
        raise UserError(
            f"the cache folder {path.parent} cannot be used ({error.strerror}); "
            f"set {CACHE_VARIABLE} to a folder you may write to"
        ) from error
    return content


def _intact(path: Path, sha256: str) -> bytes | None:
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return None
    if hashlib.sha256(content).hexdigest() == sha256:
        return content
    _log.warning("%s is damaged and is fetched again", path)
    return None
