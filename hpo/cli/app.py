"""The `hpo` command: its verbs, one module each, and how errors become messages and exit codes.

A new verb is a module with a function `command`, registered below. Heavy modules are imported inside that function.
"""

from __future__ import annotations

import io
import logging
import os
import signal
import sys
import threading
from collections.abc import Sequence
from contextlib import suppress
from types import FrameType
from typing import Annotated, NoReturn

import typer

from sparse_evidence.core.errors import UserError

from ..distribution import DISTRIBUTION
from ..errors import Exit, RefusedError, StorageError, exit_code_of
from ..running import process
from ..running.signals import SIGNALS, STOP_ON_EOF
from . import (
    confirm,
    dashboard,
    delete,
    evaluate,
    explain,
    export,
    fit,
    init,
    leaderboard,
    nested,
    predict,
    report,
    run,
    status,
    validate,
    why,
    worker,
)
from . import list as list_studies
from .shared import Command, OptionalAddress, one_line, print_error

EXIT_CODES = (
    "Exit codes: 0 done, 1 failed, 2 wrong usage or an invalid file, 3 database (or MLflow server) unreachable, "
    "4 refused (data, folds, configuration or code differ from what the study was started with, or it was deleted; "
    "delete: workers run), 75 out of memory, 76 stalled (after either, start the worker again, as --slots does), "
    "130 interrupted."
)

MAX_LISTED = 20
"""Mistakes of a file that are printed; the rest is counted."""

RESUMABLE = "no finished trial is lost; run the same command to resume"
INTERRUPTED = {
    "predict": "the table is incomplete, and no file was written; run the same command again",
    "delete": "the study is deleted completely or not at all; `hpo list` shows which",
}
"""What an interruption means, by verb; for the others it is `RESUMABLE`."""

app = typer.Typer(
    name="hpo",
    help="Hyperparameter search for classifiers that must find sparse evidence in long, imbalanced text.",
    epilog=EXIT_CODES,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command(name="init")(init.command)
app.command(name="validate")(validate.command)
app.command(name="run")(run.command)
app.command(name="worker")(worker.command)
app.command(name="confirm")(confirm.command)
app.command(name="status")(status.command)
app.command(name="list")(list_studies.command)
app.command(name="leaderboard")(leaderboard.command)
app.command(name="why")(why.command)
app.command(name="report")(report.command)
app.command(name="export", cls=OptionalAddress)(export.command)
app.command(name="fit")(fit.command)
app.command(name="explain")(explain.command)
app.command(name="predict")(predict.command)
app.command(name="evaluate")(evaluate.command)
app.command(name="nested")(nested.command)
app.command(name="delete")(delete.command)
app.command(name="dashboard")(dashboard.command)


for registered in app.registered_commands:
    if registered.cls is not OptionalAddress:
        registered.cls = Command


def _print_version(requested: bool) -> None:
    if requested:
        from importlib.metadata import version

        print(DISTRIBUTION, version(DISTRIBUTION))
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option("--version", metavar="", help="Print the version.", callback=_print_version, is_eager=True),
    ] = False,
) -> None:
    """Options of `hpo` itself. The help text comes from `app`."""


def main() -> NoReturn:
    """Run a verb and exit with its code; a user error is reported on standard error, without a traceback."""
    for stream in (sys.stdout, sys.stderr):
        # what an encoding other than UTF-8 lacks is printed as a question mark, also what is no character at all
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    logging.basicConfig(format="%(message)s", level=logging.WARNING, stream=sys.stderr)
    # Threads that spin while they wait take cores from other workers: epochs were 3 times slower on a shared machine.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    early = threading.Event()
    if threading.current_thread() is threading.main_thread():
        _interrupt_on_signals(early)
    code = _run(early)
    if threading.current_thread() is threading.main_thread():
        # The supervisor may ask a worker to stop that is already exiting: no traceback from an exit handler then.
        for number in SIGNALS:
            signal.signal(number, signal.SIG_IGN)
    if early.is_set():
        process.leave(code)
    process.skip_final_gc()
    sys.exit(code)


def _interrupt_on_signals(early: threading.Event) -> None:
    """Raise KeyboardInterrupt on a signal, so that context managers release their resources; `early` is set then.

    A verb that handles signals itself replaces these handlers while it does.
    """

    def interrupt(_number: int, _frame: FrameType | None) -> None:
        early.set()
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, interrupt)
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:  # as in the background of a shell
        signal.signal(signal.SIGINT, interrupt)


def _run(early: threading.Event) -> int:
    """Run the verb that the command line names and return its exit code; `early` as above."""
    try:
        code = _call()
    except (KeyboardInterrupt, Exception):
        if not early.is_set():  # an import that is interrupted may raise anything
            raise
        code = Exit.INTERRUPTED
    if code == Exit.INTERRUPTED:
        verb = next(iter(sys.argv[1:]), "")
        if early.is_set() and verb == "worker":
            return Exit.DONE  # it holds no trial: as on any first signal
        if not os.environ.get(STOP_ON_EOF):  # a supervisor says it for its workers
            print_error(f"interrupted: {INTERRUPTED.get(verb, RESUMABLE)}")
    return code


def _call() -> int:
    """Call the verb; errors that are written for users are printed."""
    try:
        # typer returns 130 for a KeyboardInterrupt, which is also our exit code
        code = app(sys.argv[1:] or ["--help"], prog_name="hpo", standalone_mode=False) or Exit.DONE
    except typer.TyperException as error:
        message = error.format_message()
        print_error(f"{message}{'' if message.endswith(('.', '?')) else '.'} See `{_verb_of(error)} --help`")
        code = Exit.USAGE
    except (UserError, StorageError, RefusedError) as error:
        _print_exception(error)
        code = exit_code_of(error)
    except BrokenPipeError:
        with suppress(OSError):
            sys.stdout = open("/dev/null", "w")  # noqa: PTH123, SIM115 (the flush at exit must not fail)
        code = Exit.FAILED
    return int(code)


def _print_exception(error: Exception) -> None:
    """Print the error: one line, or a headline followed by one line per mistake, up to `MAX_LISTED`."""
    message = str(error)
    problems: Sequence[str] = getattr(error, "problems", ())
    if len(problems) < 2 or problems[0] not in message:
        print_error(message)
        return
    print_error(message.partition(problems[0])[0].rstrip())
    for problem in problems[:MAX_LISTED]:
        print(f"  {one_line(problem)}", file=sys.stderr)
    if len(problems) > MAX_LISTED:
        print(f"  and {len(problems) - MAX_LISTED:,} more", file=sys.stderr)


def _verb_of(error: typer.TyperException) -> str:
    """The command line up to the verb that was used wrongly: `hpo run`."""
    context = getattr(error, "ctx", None)
    return str(context.command_path) if context is not None else "hpo"
