"""`hpo run`: a whole study on this machine."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import Exit
from .fit import fit_and_tell
from .shared import (
    Force,
    Out,
    Storage,
    StudyFile,
    Trials,
    Workers,
    database,
    fast_imports,
    load_definition,
    make_console,
    print_error,
    show,
    tell_start,
)

if TYPE_CHECKING:
    from rich.console import Console

    from ..running.launcher import Outcome, StartedStudy


def command(
    study: StudyFile,
    workers: Workers = None,
    trials: Trials = None,
    out: Out = None,
    force: Force = False,
    start_from: Annotated[
        Path | None,
        typer.Option(
            "--from",
            metavar="FILE",
            help="Try the best parameters of another study first: its result (.json), or its study file (.toml) if it "
            "is in the same database.",
            show_default=False,
        ),
    ] = None,
    fit: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Also fit the winner, as `hpo fit` does.", show_default=False),
    ] = None,
    storage: Storage = None,
) -> None:
    """Create or resume the study on this machine, watch it, confirm its result, and export the best parameters."""
    from ..results import best
    from ..results.output import Output

    definition = load_definition(study)
    output = Output.named(out, definition.name, force=force)
    output.check()
    if fit is not None:
        from sparse_evidence.core.fitted.folder import check_free

        check_free(fit)
    console = make_console(stderr=output.is_stdout)
    tell_start(console, definition)
    with database(storage) as url, ExitStack() as stack:
        with fast_imports():
            from ..running import launcher

            # first of all: the workers load their libraries while this process loads its own, and the data
            pool = stack.enter_context(launcher.early_workers(definition, url, workers=workers, trials=trials))
            from ..results import live, tables, wording
            from ..running import warm_start
        warm = None if start_from is None else warm_start.read_warm_start(start_from, definition, url)
        try_first = () if warm is None else warm.parameters
        with live.EmbeddingProgress(console) as progress:
            started = launcher.start_study(
                definition, url, trials=trials, try_first=try_first, progress=progress, pool=pool
            )
        task = started.task
        for note in [*task.notes, *([] if warm is None else [warm.sentence])]:
            console.print(f"note: {note}")
        console.print(f"{definition.name}: {len(task.corpus)} posts, {wording.texts_text(task.texts, task.computed)}")
        outcome = watch(started, console, workers)
        if best.best_trial(started.study) is not None:
            result = best.best_result(started.study, definition.path, output.file)
            output.write(result)
            show(console, tables.result_table(result, str(output)))
            if fit is not None and not outcome.code:
                fit_and_tell(console, dict(result), task, fit)
        elif not outcome.code:
            print_error(str(best.nothing_complete(started.study)))
            raise typer.Exit(Exit.FAILED)
    if outcome.code:
        raise typer.Exit(outcome.code)


def watch(started: StartedStudy, console: Console, workers: int | None) -> Outcome:
    """Run the study in a live view; if it fails, print why, and how to resume."""
    from ..results import live

    outcome = live.watch(started, console, workers)
    if outcome.code:
        print_error(f"{live.failure_text(outcome)}; run the same command to resume")
    return outcome
