"""`hpo status`: the state of a study."""

from __future__ import annotations

import json
from contextlib import suppress
from typing import Annotated

import typer

from sparse_evidence.core.errors import UserError

from .shared import AsJson, Storage, StudyFile, database, fast_imports, load_definition, make_console, show


def command(
    study: StudyFile,
    watch: Annotated[
        bool,
        typer.Option(
            "--watch", help="Show it again every 2 s, until the study is finished and confirmed; Ctrl-C ends it."
        ),
    ] = False,
    storage: Storage = None,
    as_json: AsJson = False,
) -> None:
    """Show trials by state, the best one so far, and which worker is running which trial."""
    if watch and as_json:
        raise UserError("--watch and --json cannot be combined; give one of them")
    definition = load_definition(study)
    with fast_imports():
        from ..database.connection import open_to_look
        from ..database.studies import load_study
        from ..results import tables, watching
        from ..results.status import study_status
    with database(storage, create=False) as url:
        opened = load_study(open_to_look(url), definition.name)
        if watch:
            with suppress(KeyboardInterrupt):  # the way to end it
                watching.watch_study(opened, definition, make_console())
            return
        status = study_status(opened, grace_seconds=definition.service.grace_seconds)
    if as_json:
        print(json.dumps(status, indent=2, sort_keys=True, allow_nan=False))
    else:
        show(make_console(), tables.status_table(status))
