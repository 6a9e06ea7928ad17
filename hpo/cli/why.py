"""`hpo why`: why a trial is where it is."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from .shared import AsJson, Storage, StudyFile, database, fast_imports, load_definition, make_console, show


def command(
    study: StudyFile,
    trial: Annotated[int, typer.Argument(metavar="TRIAL", min=0, help="The trial's number.", show_default=False)],
    as_json: AsJson = False,
    storage: Storage = None,
) -> None:
    """Say why a trial was pruned, is infeasible or is not the best, with its numbers."""
    definition = load_definition(study)
    with fast_imports():
        from rich.console import Group
        from rich.text import Text

        from ..database.connection import open_to_look
        from ..database.record import CURVES
        from ..database.studies import load_study
        from ..results.why import why
    with database(storage, create=False) as url:
        opened = load_study(open_to_look(url, without=(CURVES,)), definition.name)
        explained = why(opened, trial)
    if as_json:
        print(json.dumps(explained, indent=2, sort_keys=True, allow_nan=False))
    else:
        show(make_console(), Group(*map(Text, explained["sentences"])))  # a parameter may look like markup
