"""`hpo list`: the studies of a database."""

from __future__ import annotations

import json

from .shared import AsJson, Storage, database, fast_imports, make_console, show


def command(as_json: AsJson = False, storage: Storage = None) -> None:
    """List the studies of the database: state, trials, best value and last change."""
    with fast_imports():
        from ..database.address import describe
        from ..database.catalog import list_studies
        from ..database.connection import open_to_look
        from ..results import listing, tables
        from ..study.config import ServiceConfig
    with database(storage, create=False) as url:
        entries, now = list_studies(open_to_look(url), grace_seconds=ServiceConfig().grace_seconds)
    studies = listing.listed_studies(entries)
    if as_json:
        print(json.dumps(studies, indent=2, allow_nan=False))
    elif studies:
        show(make_console(), tables.studies_table(studies, now))
    else:
        print(f"There is no study in {describe(url)}: `hpo run STUDY` starts one.")
