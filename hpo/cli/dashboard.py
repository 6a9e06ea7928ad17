"""`hpo dashboard`: the study's trials in the browser."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .shared import Storage, database, fast_imports, load_definition


def command(
    study: Annotated[
        Path | None,
        typer.Argument(
            metavar="STUDY", help="Check first that this study exists. All studies are listed.", show_default=False
        ),
    ] = None,
    host: Annotated[
        str, typer.Option(metavar="ADDRESS", help="Address to listen on. Beyond loopback a password is required.")
    ] = "127.0.0.1",
    port: Annotated[
        int, typer.Option(metavar="N", min=0, max=65535, help="Port to listen on; 0: any free port.")
    ] = 8080,
    allow_changes: Annotated[bool, typer.Option("--allow-changes", help="Allow editing and deleting.")] = False,
    storage: Storage = None,
) -> None:
    """Serve optuna-dashboard over the study's database (password: HPO_DASHBOARD_PASSWORD, or ..._PASSWORD_FILE)."""
    from ..results import dashboard

    dashboard.check_exposure(host)
    definition = load_definition(study) if study is not None else None
    with fast_imports():
        from ..database.connection import LOOK_SECONDS, open_storage, open_to_look
        from ..database.record import CURVES
        from ..database.studies import load_study
    with database(storage, create=False) as url:
        opened = open_to_look(url, without=(CURVES,))
        if definition is not None:
            load_study(opened, definition.name)
        writing = open_storage(url, retry_seconds=LOOK_SECONDS) if allow_changes else None
        dashboard.serve(opened, writing, host=host, port=port, ready=lambda address: print(address, flush=True))
