"""`hpo worker`: work on a study from any machine."""

from __future__ import annotations

import signal
import sys
import threading
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated

import typer

from sparse_evidence.core.errors import UserError

from ..errors import Exit
from .shared import Artifacts, Storage, StudyFile, Trials, database, fast_imports, load_definition, make_console

if TYPE_CHECKING:
    from ..running.slots import Slot
    from ..study.definition import StudyDefinition


def command(
    study: StudyFile,
    trials: Trials = None,
    slots: Annotated[
        str | None,
        typer.Option(
            metavar="auto|N",
            help="Run one process in each of N slots and restart it when it crashes; auto: one per GPU, without a GPU "
            "one per core, at most 4. Default: this process is the worker.",
            show_default=False,
        ),
    ] = None,
    per_gpu: Annotated[int, typer.Option(metavar="N", min=1, help="With --slots: workers per GPU.")] = 1,
    threads: Annotated[
        int | None,
        typer.Option(metavar="N", min=1, help="CPU threads per worker. Default: chosen by torch.", show_default=False),
    ] = None,
    slot: Annotated[
        int, typer.Option(metavar="N", min=0, help="Number of this worker on its machine, shown by `hpo status`.")
    ] = 0,
    confirm_only: Annotated[
        bool,
        typer.Option(
            "--confirm-only",
            help="Do no trials of the search: only train the leaders of those that are finished on fresh splits.",
        ),
    ] = False,
    storage: Storage = None,
    artifacts: Artifacts = None,
) -> None:
    """Join the study from any machine and work until its trials are finished and its result is confirmed."""
    from ..running.signals import graceful_shutdown, stop_with_parent

    stop = threading.Event()
    released = stop_with_parent(stop)
    definition = load_definition(study)
    budget = trials or (sys.maxsize if confirm_only else definition.search.trials)  # confirm all finished trials
    if slots is not None:
        machine = _plan(slots, per_gpu, threads)
        with graceful_shutdown(stop, again=signal.default_int_handler), database(storage) as url:
            code = _run_slots(definition, url, budget, machine, artifacts, stop, confirm_only=confirm_only)
    else:
        with graceful_shutdown(stop), database(storage) as url:
            code = _work(definition, url, budget, slot, threads, artifacts, released, stop, confirm_only=confirm_only)
    if code:
        raise typer.Exit(code)


def _plan(slots: str, per_gpu: int, threads: int | None) -> list[Slot]:
    """The slots that `--slots`, `--per-gpu` and `--threads` request."""
    from ..running.slots import plan_slots

    if slots != "auto" and not (slots.isdecimal() and int(slots) > 0):
        raise UserError(f"--slots {slots}: give auto or a number of at least 1")
    planned = plan_slots(None if slots == "auto" else int(slots), per_gpu=per_gpu)
    return [replace(slot, threads=threads) for slot in planned] if threads else planned


def _work(
    definition: StudyDefinition,
    url: str,
    budget: int,
    slot: int,
    threads: int | None,
    artifacts: str | None,
    released: threading.Event,
    stop: threading.Event,
    *,
    confirm_only: bool,
) -> int:
    """Work on trials in this process, once it is released: until then it only loads libraries."""
    with fast_imports():
        from ..results import live
        from ..running.artifacts import open_store
        from ..running.signals import wait_unless_stopped
        from ..running.worker import WorkerOptions, work
    if not wait_unless_stopped(released, stop):
        return Exit.DONE
    store = open_store(artifacts)
    with live.EmbeddingProgress(make_console()) as progress:
        options = WorkerOptions(budget, slot, threads, confirm_only)
        return work(definition, url, store, options, stop=stop, progress=progress)


def _run_slots(
    definition: StudyDefinition,
    url: str,
    budget: int,
    slots: list[Slot],
    artifacts: str | None,
    stop: threading.Event,
    *,
    confirm_only: bool,
) -> int:
    """Supervise one worker per slot; this process stays small and imports neither torch nor Optuna."""
    from ..running.launcher import run_slots

    def print_line(line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    return run_slots(
        definition.path,
        url,
        trials=budget,
        slots=slots,
        artifacts=artifacts,
        confirm_only=confirm_only,
        stop=stop,
        print_line=print_line,
    )
