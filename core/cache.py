"""The user's cache folder, and downloaded files in it whose hash is verified on every read."""

from __future__ import annotations

import hashlib
import logging
import os
import stat
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from filelock import FileLock
from platformdirs import user_cache_dir

from .errors import UserError

CACHE_VARIABLE = "HPO_CACHE"
_OPENED = ("/dev/fd/", "/dev/stdout", "/dev/stderr", "/proc/")
"""Names that start like this mean what the shell has opened: it is written to, even if it is a regular file."""

logger = logging.getLogger(__name__)


def cache_dir() -> Path:
    """Return the cache folder (`HPO_CACHE`, or the system's default), created with access for its owner only.

    Raises:
        UserError: it cannot be created.
    """
    configured = os.environ.get(CACHE_VARIABLE) or user_cache_dir("sparse-evidence-hpo", appauthor=False)
    path = Path(configured).expanduser().absolute()
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"the cache folder {path} cannot be created ({error.strerror}); "
            f"set {CACHE_VARIABLE} to a folder you may write to"
        ) from error
    return path


def is_replaced(path: Path) -> bool:
    """Whether writing to a path creates or replaces a regular file, unlike a device, a pipe or `/dev/fd/3`."""
    if str(path.absolute()).startswith(_OPENED):
        return False
    try:
        return stat.S_ISREG(path.stat().st_mode)
    except FileNotFoundError:
        return True


def write_atomically(path: Path, content: bytes | memoryview) -> None:
    """Write a file so that readers see either the old or the complete new content; only its owner may read it.

    A symbolic link stays: the file that it points to is written.
    """
    path = Path(os.path.realpath(path))
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


def fetch_once(name: str, sha256: str, fetch: Callable[[], bytes]) -> bytes:
    """Return the content of the cached file `name`; call `fetch` if it is missing or damaged.

    Safe across processes: one fetches, the others wait for it.

    Args:
        name: file name inside the cache folder.
        sha256: hex digest that the content must have.
        fetch: returns the content, a download for example.

    Raises:
        UserError: the fetched content has another hash, or the cache folder cannot be used.
    """
    path = cache_dir() / name
    try:
        content = _intact(path, sha256)
        if content is not None:
            return content
        with FileLock(path.with_name(f"{name}.lock")):
            content = _intact(path, sha256)  # another process may have fetched it while we waited
            if content is None:
                content = fetch()
                if hashlib.sha256(content).hexdigest() != sha256:
                    raise UserError(
                        f"{name} was fetched, but is not the expected file (its SHA-256 differs); try again"
                    )
                write_atomically(path, content)
    except OSError as error:
        raise UserError(
            f"the cache folder {path.parent} cannot be used ({error.strerror}); "
            f"set {CACHE_VARIABLE} to a folder you may write to"
        ) from error
    return content


def _intact(path: Path, sha256: str) -> bytes | None:
    """Return the file's content, or None if it is missing or its hash differs."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return None
    if hashlib.sha256(content).hexdigest() == sha256:
        return content
    logger.warning("%s is damaged; fetching it again", path)
    return None
