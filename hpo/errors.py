"""What can go wrong in a study, and the exit code that a shell sees for it."""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum

from sparse_evidence.core.errors import UserError


class Exit(IntEnum):
    """Exit codes of every command."""

    DONE = 0
    FAILED = 1
    USAGE = 2
    """Wrong usage, or a wrong file."""
    STORAGE = 3
    """The storage is out of reach."""
    REFUSED = 4
    """What is here is not what the study was started with."""
    MEMORY = 75
    """A worker ran out of memory: its trial is infeasible, and a fresh process should go on."""
    STALLED = 76
    """A worker's trial ended no epoch for `[service] stall_seconds`: a fresh process should go on."""
    INTERRUPTED = 130


class DefinitionError(UserError):
    """A study file cannot be used as it is.

    Every mistake found is in `problems`, so that a file is mended in one go. A file that cannot be read at all is
    one sentence, and `problems` holds that.
    """

    def __init__(self, message: str, problems: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.problems = tuple(problems) or (message,)

    @classmethod
    def listing(cls, where: str, problems: Sequence[str], *, verb: str = "has") -> DefinitionError:
        """Return the error that tells all of `problems` in one sentence."""
        count = "1 mistake" if len(problems) == 1 else f"{len(problems)} mistakes"
        return cls(f"{where} {verb} {count}: {'; '.join(problems)}", problems)


class StorageError(Exception):
    """The storage is out of reach; check that the database runs and that its URL is right."""

    def __init__(self, message: str | None = None) -> None:
        super().__init__(message or self.__doc__)


class RefusedError(Exception):
    """What is here (data, folds, definition or code) is not what the study was started with."""

    def __init__(self, message: str | None = None) -> None:
        super().__init__(message or self.__doc__)


def exit_code_of(exception: BaseException) -> Exit:
    """Return the exit code that tells a shell about `exception`."""
    if isinstance(exception, UserError):
        return Exit.USAGE
    if isinstance(exception, StorageError):
        return Exit.STORAGE
    if isinstance(exception, RefusedError):
        return Exit.REFUSED
    return Exit.INTERRUPTED if isinstance(exception, KeyboardInterrupt) else Exit.FAILED
