"""`hpo export`: the best parameters as JSON, and the study as a run of an MLflow server."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sparse_evidence.core.errors import UserError

from .shared import Force, Out, Storage, StudyFile, database, fast_imports, load_definition, make_console, show


def command(
    study: StudyFile,
    out: Out = None,
    force: Force = False,
    mlflow: Annotated[
        str | None,
        typer.Option(
            metavar="[URI]",
            help="Also write the study to this MLflow server, as one run. Default: env MLFLOW_TRACKING_URI.",
            show_default=False,
        ),
    ] = None,
    mlflow_trials: Annotated[
        bool, typer.Option("--mlflow-trials", help="With --mlflow: write every trial too, as a nested run.")
    ] = False,
    model: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="With --mlflow: store this fitted model with the run.", show_default=False),
    ] = None,
    storage: Storage = None,
) -> None:
    """Write the best parameters as JSON."""
    from ..results import best
    from ..results.output import Output

    definition = load_definition(study)
    output = Output.named(out, definition.name, force=force)
    output.check()
    if mlflow is None and (mlflow_trials or model is not None):
        raise UserError("--mlflow-trials and --model say what goes to an MLflow server; name it with --mlflow")
    with fast_imports():
        from ..database.connection import open_to_look
        from ..database.studies import load_study
        from ..results import tables
    if mlflow is not None:
        with fast_imports():
            from ..results import tracking  # imports torch
        tracking.check(mlflow, model)
    with database(storage, create=False) as url:
        opened = load_study(open_to_look(url), definition.name)
        result = best.best_result(opened, definition.path, output.file)
        output.write(result)
        console = make_console(stderr=output.is_stdout)
        show(console, tables.result_table(result, str(output)))
        if mlflow is not None:
            written = tracking.export(opened, result, mlflow, trials=mlflow_trials, model=model)
            console.print(f"MLflow: {written.url}", soft_wrap=True)
