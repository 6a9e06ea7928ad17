"""`hpo nested`: what the whole procedure is worth, on posts that no step of it has seen."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .shared import (
    AsJson,
    Storage,
    StudyFile,
    Trials,
    Workers,
    database,
    fast_imports,
    load_definition,
    make_console,
    print_error,
    show,
    tell_start,
)

if TYPE_CHECKING:
    from rich.console import Console

    from ..fitting.nested import Nested


def command(
    study: StudyFile,
    outer: Annotated[int, typer.Option(metavar="N", min=2, help="Outer folds, each with a search of its own.")] = 5,
    workers: Workers = None,
    trials: Trials = None,
    storage: Storage = None,
    as_json: AsJson = False,
) -> None:
    """Estimate what searching, choosing and fitting are worth together, by nested cross-validation."""
    definition = load_definition(study)
    console = make_console(stderr=as_json)
    if not as_json:
        tell_start(console, definition)
    with fast_imports():
        from ..fitting import nested
        from ..results import live, tables
    with database(storage) as url:
        with live.EmbeddingProgress(console) as progress:
            opened = nested.open_nested(definition, url, outer=outer, trials=trials, progress=progress)
        result = opened.stored() or _estimate(opened, console, workers)
    if as_json:
        print(json.dumps(result, indent=2, sort_keys=True, allow_nan=False))
    else:
        show(console, tables.nested_table(definition.name, result))


def _estimate(opened: Nested, console: Console, workers: int | None) -> dict[str, Any]:
    """Search without every outer fold in turn, and print a line for each."""
    from ..fitting import nested
    from ..results import live, wording
    from ..running.task import default_device

    device = default_device()
    of_folds: list[dict[str, Any]] = []
    for fold in range(opened.outer.count):
        started = opened.start(fold)
        name = f"outer fold {fold + 1} of {opened.outer.count}"
        if console.is_terminal:
            console.print(f"{name}: searching")
        outcome = live.follow(started, console, workers, live.LiveView if console.is_terminal else live.QuietView)
        if outcome.code:
            print_error(f"{name}: {live.failure_text(outcome)}; run the same command to resume")
            raise typer.Exit(outcome.code)
        with console.status(f"{name}: fitting"):
            of_folds.append(nested.conclude_fold(opened, started, fold, device=device))
        metric = opened.task.definition.search.metric
        console.print(f"{name}: {wording.outer_fold_text(metric, of_folds[-1])}", soft_wrap=True)
    return nested.conclude(opened, of_folds)
