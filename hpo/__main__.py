"""`hpo`, from its first moment; `python -m sparse_evidence.hpo` is the same.

Nothing is imported here but what every Python has: what comes later fails on Windows, and takes a second in which a
signal may arrive.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from typing import NoReturn

WINDOWS = (
    "hpo: this does not work on Windows, which lacks the file locks, signals and sockets that it needs: run it in "
    "WSL 2 or in a Linux container."
)
_USAGE, _INTERRUPTED = 2, 130  # of `errors.Exit`, which is not imported yet


def main() -> NoReturn:
    """Run the command line and exit with its code."""
    if sys.platform == "win32":
        print(WINDOWS, file=sys.stderr)
        sys.exit(_USAGE)
    try:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, signal.default_int_handler)
        from .cli.app import main as run

        run()
    except KeyboardInterrupt:
        # A worker that is asked to stop does so. Not sys.exit: see `process.leave`.
        os._exit(0 if sys.argv[1:2] == ["worker"] else _INTERRUPTED)


if __name__ == "__main__":
    main()
