"""`hpo leaderboard`: the best trials beside everything that they are compared with."""

from __future__ import annotations

import csv
import json
import sys
from typing import Annotated

import typer

from sparse_evidence.core.errors import UserError

from .shared import AsJson, Storage, StudyFile, database, fast_imports, load_definition, make_console, show


def command(
    study: StudyFile,
    top: Annotated[int, typer.Option(metavar="N", min=1, help="How many trials to show.")] = 10,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print CSV, with fold values and parameters.")] = False,
    as_json: AsJson = False,
    storage: Storage = None,
) -> None:
    """Show the best trials, the ensemble, the default and the baselines, with intervals and gains."""
    if as_csv and as_json:
        raise UserError("--csv and --json cannot be combined; give one of them")
    definition = load_definition(study)
    with fast_imports():
        from ..results import live, tables
        from ..results.leaderboard import flat, leaderboard
        from ..running.joining import load_joined
    with database(storage, create=False) as url:
        with live.EmbeddingProgress(make_console(stderr=True)) as progress:
            opened, task = load_joined(definition, url, progress=progress)
        board = leaderboard(opened, task, top=top)
    if as_json:
        print(json.dumps(board, indent=2, sort_keys=True, allow_nan=False))
    elif as_csv:
        rows = flat(board)
        writer = csv.DictWriter(sys.stdout, rows[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    else:
        show(make_console(), tables.leaderboard_table(board))
