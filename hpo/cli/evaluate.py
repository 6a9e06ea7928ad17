"""`hpo evaluate`: how good a fitted model is on posts that it has not seen."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sparse_evidence.core.errors import UserError

from .shared import (
    AsJson,
    ModelFolder,
    ModelStudy,
    Storage,
    database,
    fast_imports,
    load_definition,
    make_console,
    print_error,
    show,
)

if TYPE_CHECKING:
    from sparse_evidence.core.fitted import FittedModel

    from ..fitting.evaluate import Report


def command(
    model: ModelFolder,
    data: Annotated[
        Path | None,
        typer.Argument(
            metavar="DATA",
            help="Other labelled posts: a table as hpo init reads it. Default: the hold-out of the model's study.",
            show_default=False,
        ),
    ] = None,
    study: ModelStudy = None,
    storage: Storage = None,
    as_json: AsJson = False,
) -> None:
    """Measure a model on the posts that its study held out, or on other labelled posts.

    Every look at the hold-out is counted in the study: it is an honest judge only until somebody chooses by it.
    """
    with fast_imports():
        from sparse_evidence.core.fitted import load_model

        from ..fitting import evaluate, tables
    fitted = load_model(model)
    if data is None:
        report = _on_holdout(fitted, model, study, storage, quiet=as_json)
    elif study is not None or storage is not None:
        raise UserError("--study and --storage are for the hold-out; leave them out for other data")
    else:
        report = evaluate.other_report(fitted, model, data)
    if not as_json:
        show(make_console(), tables.report_table(report))
        return
    print(json.dumps(report, indent=2, sort_keys=True, allow_nan=False))
    if (warning := tables.look_warning(report)) is not None:
        print_error(warning)


def _on_holdout(fitted: FittedModel, folder: Path, study: Path | None, storage: str | None, *, quiet: bool) -> Report:
    with fast_imports():
        from ..database.connection import open_storage
        from ..database.studies import load_study
        from ..fitting import evaluate
        from ..results import live
        from ..results.best import named_study_file
        from ..running.task import load_task
    name = evaluate.study_name(fitted, folder)
    definition = load_definition(
        study or named_study_file(fitted.info, folder, f"the model {folder}", "give it with --study")
    )
    with database(storage, create=False) as url:
        opened = load_study(open_storage(url, create=False), name)
        evaluate.check_study(fitted, opened)  # said before minutes of embedding
        with live.EmbeddingProgress(make_console(stderr=quiet)) as progress:
            task = load_task(definition, progress=progress)
        return evaluate.holdout_report(fitted, folder, task, opened)
