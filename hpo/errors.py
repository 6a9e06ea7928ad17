"""Errors of a study, and the exit codes that a shell sees."""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum

from sparse_evidence.core.errors import UserError, first


class Exit(IntEnum):
    """Exit codes of every command."""

    DONE = 0
    """Done; also a worker that was stopped by its first SIGTERM or SIGINT, and released its trial."""
    FAILED = 1
    """Failed; the message says why. Run the same command to resume."""
    USAGE = 2
    """Wrong usage, or an invalid file."""
    STORAGE = 3
    """The database is unreachable, or the MLflow server."""
    REFUSED = 4
    """Data, folds, definition or code differ from those that the study was started with, or it was deleted."""
    MEMORY = 75
    """A worker ran out of memory: its trial is infeasible, and a fresh process should replace it."""
    STALLED = 76
    """A worker's trial finished no epoch for `[service] stall_seconds`: a fresh process should replace it."""
    INTERRUPTED = 130
    """Interrupted by Ctrl-C or SIGTERM; no finished trial is lost, run the same command to resume."""


class DefinitionError(UserError):
    """A study file has mistakes.

    `problems` lists all of them, so that they can be fixed together, and the message the first twenty, one per line;
    for a file that cannot be read, `problems` is the message.
    """

    def __init__(self, message: str, problems: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.problems = tuple(problems) or (message,)

    @classmethod
    def listing(cls, where: str, problems: Sequence[str], *, verb: str = "has") -> DefinitionError:
        """Return an error whose message lists the first `problems`: one stays on the line, several have one each."""
        if len(problems) == 1:
            return cls(f"{where} {verb} 1 mistake: {problems[0]}", problems)
        listed = first(problems, separator="\n  ")
        return cls(f"{where} {verb} {len(problems)} mistakes:\n  {listed}", problems)


class StorageError(Exception):
    """The database is unreachable; check that it is running and that its URL is right."""

    def __init__(self, message: str | None = None) -> None:
        super().__init__(message or self.__doc__)


class RefusedError(Exception):
    """The data, folds, definition or code differ from those that the study was started with."""

    def __init__(self, message: str | None = None) -> None:
        super().__init__(message or self.__doc__)


class StudyDeletedError(RefusedError, KeyError):
    """The study was deleted or renamed while this process worked on it; run the command again to begin it anew."""

    # Optuna expects a KeyError, whose text is the representation of its argument.
    __str__ = Exception.__str__


class RunError(Exception):
    """No worker is left, but the study is not finished: run it again to resume."""


class PredictionsError(UserError):
    """Stored predictions cannot be read."""


class ClaimLostError(Exception):
    """Another worker has taken the trial over: drop it and claim the next one."""

    def __init__(self, message: str | None = None) -> None:
        super().__init__(message or self.__doc__)


def exit_code_of(exception: BaseException) -> Exit:
    """Return the exit code that reports `exception` to a shell."""
    if isinstance(exception, UserError):
        return Exit.USAGE
    if isinstance(exception, StorageError):
        return Exit.STORAGE
    if isinstance(exception, RefusedError):
        return Exit.REFUSED
    return Exit.INTERRUPTED if isinstance(exception, KeyboardInterrupt) else Exit.FAILED
