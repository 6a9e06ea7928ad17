"""The `hpo` command: its verbs, one module each, and how errors become messages and exit codes.

A new verb is a module with a function `command`, registered below. Heavy modules are imported inside that function.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
from collections.abc import Sequence
from contextlib import suppress
from typing import Annotated, NoReturn

import typer

from sparse_evidence.core.errors import UserError

from ..errors import Exit, RefusedError, StorageError, exit_code_of
from ..running import process
from . import dashboard, export, init, run, status, validate, worker
from .shared import complain

DISTRIBUTION = "sparse-evidence-hpo"

EXIT_CODES = (
    "Exit codes: 0 done, 1 failed, 2 wrong usage or a wrong file, 3 database unreachable, 4 refused (data, folds, "
    "configuration or code differ from what the study was started with), 75 out of memory, 76 stalled (after either, "
    "start the worker again, as --slots does), 130 interrupted."
)

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
app.command(name="status")(status.command)
app.command(name="export")(export.command)
app.command(name="dashboard")(dashboard.command)


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        print(DISTRIBUTION, version(DISTRIBUTION))
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """Options of `hpo` itself; its help text is the application's."""


def main() -> NoReturn:
    """Run a verb; a user's mistake ends as a message on standard error and its exit code."""
    logging.basicConfig(format="%(message)s", level=logging.WARNING, stream=sys.stderr)
    # Threads that spin while they wait take the cores from other workers (an epoch was 3 times slower beside others).
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that contexts are left and close what they hold
    code = _run()
    process.skip_final_gc()
    sys.exit(code)


def _run() -> int:
    """Run the verb that the command line names and return its exit code."""
    try:
        # typer returns its own exit code for a KeyboardInterrupt, which is ours, too
        code = app(sys.argv[1:] or ["--help"], prog_name="hpo", standalone_mode=False) or Exit.DONE
        if code == Exit.INTERRUPTED:
            complain("interrupted; no finished trial is lost, run the same command to resume")
    except typer.TyperException as error:
        complain(f"{error.format_message().rstrip('.')}; see `{_verb_of(error)} --help`")
        code = Exit.USAGE
    except (UserError, StorageError, RefusedError) as error:
        _complain_of(error)
        code = exit_code_of(error)
    except BrokenPipeError:
        with suppress(OSError):
            sys.stdout = open("/dev/null", "w")  # noqa: PTH123, SIM115 (so that the exit flushes nowhere)
        code = Exit.FAILED
    return int(code)


def _complain_of(error: Exception) -> None:
    """Print the error: one line, or a headline and one line for each of several mistakes."""
    message = str(error)
    problems: Sequence[str] = getattr(error, "problems", ())
    if len(problems) < 2 or problems[0] not in message:
        complain(message)
        return
    complain(message.partition(problems[0])[0].rstrip())
    for problem in problems:
        print(f"  {' '.join(problem.split())}", file=sys.stderr)


def _verb_of(error: typer.TyperException) -> str:
    """The command that was used wrongly, as it was typed."""
    context = getattr(error, "ctx", None)
    return str(context.command_path) if context is not None else "hpo"
