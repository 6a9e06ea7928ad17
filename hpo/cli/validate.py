"""`hpo validate`: check a study and estimate its cost before anything starts."""

from __future__ import annotations

import json

from .shared import AsJson, StudyFile, fast_imports, load_definition, make_console, show


def command(study: StudyFile, as_json: AsJson = False) -> None:
    """Check the study file, the data and the folds, and estimate how long the study will take."""
    definition = load_definition(study)
    with fast_imports():
        from ..results import live, tables
        from ..results.plan import make_plan
    console = make_console()
    with live.EmbeddingProgress(make_console(stderr=True) if as_json else console) as progress:
        plan = make_plan(definition, progress)
    if as_json:
        print(json.dumps(plan.as_dict(), indent=2, allow_nan=False))
    else:
        show(console, tables.plan_table(plan))
