"""`hpo confirm`: an honest number for a study that is finished, on fresh splits."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Annotated

import typer

from sparse_evidence.core.errors import UserError

from .run import watch
from .shared import Storage, StudyFile, Workers, database, fast_imports, load_definition, make_console, show, tell_start

if TYPE_CHECKING:
    from optuna import Study


def command(
    study: StudyFile,
    workers: Workers = None,
    leaders: Annotated[
        int | None,
        typer.Option(
            metavar="N", min=1, help="Best trials to train again. Default: from the study file.", show_default=False
        ),
    ] = None,
    splits: Annotated[
        int | None,
        typer.Option(
            metavar="N", min=1, help="Fresh splits to train on. Default: from the study file.", show_default=False
        ),
    ] = None,
    storage: Storage = None,
) -> None:
    """Train the leaders of a finished study, its ensemble, its default and the baselines again on fresh splits."""
    from ..study.reader import CONFIRM_OVERRIDES

    for key, number in (("leaders", leaders), ("splits", splits)):
        if number is not None:
            os.environ[CONFIRM_OVERRIDES[key]] = str(number)  # for the worker processes, too
    definition = load_definition(study)
    if definition.confirm.leaders == 0:
        raise UserError("there is nothing to confirm: [confirm] leaders is 0; give --leaders a number of at least 1")
    console = make_console()
    tell_start(console, definition)
    with fast_imports():
        from ..database.connection import open_storage
        from ..database.studies import load_study
        from ..results import best, live, tables
        from ..running import launcher
    with database(storage, create=False) as url:
        finished = _finished(load_study(open_storage(url, create=False), definition.name))
        with live.EmbeddingProgress(console) as progress:
            started = launcher.start_study(definition, url, trials=finished, confirm_only=True, progress=progress)
        outcome = watch(started, console, workers)
        if outcome.code:
            raise typer.Exit(outcome.code)
        show(console, tables.result_table(best.best_result(started.study), None))


def _finished(study: Study) -> int:
    """How many trials are finished. Raises a `UserError` if none of them is complete."""
    from ..database import record
    from ..running import confirming

    trials = confirming.counted(study)
    if not record.best_first(study, trials):
        raise UserError(
            f"there is nothing to confirm: the study {study.study_name!r} has no complete trial yet; run `hpo run` "
            "until one is complete"
        )
    return len(trials)
