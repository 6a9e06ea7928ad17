"""The user's cache folder, files in it whose hash is verified on every read, and how files are written."""

from __future__ import annotations

import errno
import hashlib
import io
import logging
import os
import stat
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from filelock import FileLock
from platformdirs import user_cache_dir

from .errors import UserError

if TYPE_CHECKING:
    import numpy.typing as npt

CACHE_VARIABLE = "HPO_CACHE"
STDOUT = Path("-")
"""The name that means standard output."""
_OPENED = ("/dev/fd/", "/dev/stdout", "/dev/stderr", "/proc/")
"""Names that start like this mean what the shell has opened: it is written to, even if it is a regular file."""

_DIGEST = hashlib.sha256().digest_size

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
    with _replacing(path) as file:
        file.write(content)


@contextmanager
def _replacing(path: Path) -> Iterator[BinaryIO]:
    """A file that replaces `path` when the block ends without an error, as `write_atomically`."""
    path = Path(os.path.realpath(path))
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).replace(path)
    except BaseException:
        with suppress(OSError):
            Path(temporary).unlink()
        raise


def is_stdout(path: Path) -> bool:
    """Whether a path means standard output, by whatever name: then nothing else may be printed there."""
    if path == STDOUT:
        return True
    try:
        return os.path.samestat(path.stat(), os.fstat(1))
    except OSError:
        return False


def check_writable(path: Path, example: str) -> None:
    """Check that `open_output` can write here: before the work, not after it.

    Args:
        path: what the user has named.
        example: the name of a file that could be written, for the message about a folder.

    Raises:
        UserError: the path is a folder, or it cannot be written to.
    """
    if is_stdout(path):
        return
    if path.is_dir():
        raise UserError(f"{path} is a folder; name a file with --out, for example {path / example}")
    try:
        if is_replaced(path):
            target = Path(os.path.realpath(path))
            probe = target.with_name(f".{target.name}.probe")
            probe.touch()  # a file can be created beside it, as replacing it does
            probe.unlink()
        elif not os.access(path, os.W_OK):
            path.stat()  # says so if there is nothing
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    except OSError as error:
        raise _cannot_be_written(path, error, "create its folder, or ") from error


@contextmanager
def open_output(path: Path) -> Iterator[BinaryIO]:
    """Open what the user has named for writing.

    A regular file is replaced when the block ends without an error, and otherwise stays as it is; only its owner may
    read it. A symbolic link stays. Standard output, pipes and devices are written to, and opening a pipe waits until
    something reads from it.

    Raises:
        UserError: it cannot be written.
        BrokenPipeError: whatever read from it has ended.
    """
    try:
        if is_stdout(path):
            sys.stdout.flush()
            yield sys.stdout.buffer
            sys.stdout.buffer.flush()
        elif is_replaced(path):
            with _replacing(path) as file:
                yield file
        else:
            with path.open("wb") as file:
                yield file
    except BrokenPipeError:
        raise
    except OSError as error:
        raise _cannot_be_written(path, error) from error


def _cannot_be_written(path: Path, error: OSError, also: str = "") -> UserError:
    return UserError(f"{path} cannot be written ({error.strerror or error}); {also}name another file with --out")


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


def remembered(
    kind: str, source: str, arguments: Iterable[bytes], compute: Callable[[], npt.NDArray[Any]]
) -> npt.NDArray[Any]:
    """Return an array of numbers from the cache, or compute and keep it: for what takes long and is always the same.

    A file that is damaged, or cannot be read or written, only costs the time of computing it again.

    Args:
        kind: what it is, which names its folder in the cache.
        source: the file of the module that computes it; what an edited one computes is another thing.
        arguments: all that the array depends on.
        compute: returns the array.

    Raises:
        UserError: the cache folder cannot be created.
    """
    import numpy as np  # not needed by `hpo --help`

    digest = hashlib.sha256(hashlib.sha256(Path(source).read_bytes()).digest())
    for argument in arguments:
        digest.update(len(argument).to_bytes(8, "little") + argument)
    path = cache_dir() / kind / digest.hexdigest()
    with suppress(OSError, ValueError, EOFError):
        content = path.read_bytes()
        if hashlib.sha256(content[_DIGEST:]).digest() == content[:_DIGEST]:
            return np.load(io.BytesIO(content[_DIGEST:]), allow_pickle=False)  # type: ignore[no-any-return]
    computed = compute()
    buffer = io.BytesIO()
    np.save(buffer, computed, allow_pickle=False)
    with suppress(OSError):
        path.parent.mkdir(mode=0o700, exist_ok=True)
        write_atomically(path, hashlib.sha256(buffer.getvalue()).digest() + buffer.getvalue())
    return computed
