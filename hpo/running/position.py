"""Where the trials of this machine's workers are: a few bytes that a worker overwrites after every epoch.

The database learns of an epoch with the next heartbeat, because more writes would cost every worker of the study. The
supervisor of local workers need not wait for that: it gives each of them an unnamed file, and reads it whenever it
likes. Unlike a pipe, a file never makes a worker wait for a supervisor that does not read.
"""

from __future__ import annotations

import os
import struct
import tempfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

VARIABLE = "HPO_POSITION_FILE"
"""Environment variable of a worker: the number of the open file that it writes to; its supervisor sets it."""
_RECORD = struct.Struct("<3i")


@dataclass(frozen=True)
class Position:
    """The last epoch that a worker has finished."""

    trial: int
    """Number of the trial, in the study that the worker works on: while it confirms a result, that is another one."""
    stage: int
    """Counted from 0."""
    epoch: int
    """Counted from 1."""


class PositionFile:
    """The file of one worker process; its supervisor opens, reads and closes it."""

    def __init__(self) -> None:
        self._file = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115 (closed by `close`)
        self.number = self._file.fileno()
        """The open file, which the worker must inherit."""

    def environment(self) -> dict[str, str]:
        """The environment variable that tells the worker of the file."""
        return {VARIABLE: str(self.number)}

    def read(self) -> Position | None:
        """Where the worker is; None until it has finished an epoch, and once the file is closed."""
        if self._file.closed:
            return None
        record = os.pread(self.number, _RECORD.size, 0)
        return Position(*_RECORD.unpack(record)) if len(record) == _RECORD.size else None

    def close(self) -> None:
        """Close the file, which removes it."""
        self._file.close()


def position_writer() -> Callable[[int, int, int], None]:
    """Return the function that records a finished epoch (trial, stage, epoch) for this process's supervisor.

    It does nothing in a process without one, and an error, such as a full disk, costs only what is shown.
    """
    inherited = os.environ.pop(VARIABLE, "")  # not for processes that this one starts

    def write(trial: int, stage: int, epoch: int) -> None:
        with suppress(OSError):
            os.pwrite(int(inherited), _RECORD.pack(trial, stage, epoch), 0)

    return write if inherited.isdecimal() else lambda *_: None
