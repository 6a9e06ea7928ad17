"""`hpo status`: the state of a study."""

from __future__ import annotations

import json

from .shared import AsJson, Storage, StudyFile, fast_imports, load_definition, make_console, show


def command(study: StudyFile, storage: Storage = None, as_json: AsJson = False) -> None:
    """Show trials by state, the best one so far, and which worker is running which trial."""
    definition = load_definition(study)
    with fast_imports():
        from ..database.address import storage_url
        from ..database.connection import open_storage
        from ..database.studies import load_study
        from ..results import tables
        from ..results.status import study_status
    with storage_url(storage, create=False) as url:
        opened = load_study(open_storage(url, create=False), definition.name)
        status = study_status(opened, grace_seconds=definition.service.grace_seconds)
    if as_json:
        print(json.dumps(status, indent=2, sort_keys=True, allow_nan=False))
    else:
        show(make_console(), tables.status_table(status))
