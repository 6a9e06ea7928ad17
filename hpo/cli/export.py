"""`hpo export`: the best parameters as JSON."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .shared import OUT_HELP, Storage, StudyFile, fast_imports, load_definition, make_console, show


def command(
    study: StudyFile,
    out: Annotated[Path, typer.Option("--out", "-o", metavar="FILE", help=OUT_HELP)] = Path("best.json"),
    storage: Storage = None,
) -> None:
    """Write the best parameters as JSON."""
    from ..results import best

    definition = load_definition(study)
    best.check_writable(out)
    with fast_imports():
        from ..database.address import storage_url
        from ..database.connection import open_storage
        from ..database.studies import load_study
        from ..results import tables
    with storage_url(storage, create=False) as url:
        result = best.best_result(load_study(open_storage(url), definition.name), definition.path, out)
    best.write_json(result, out)
    show(make_console(), tables.result_table(result, str(out)))
