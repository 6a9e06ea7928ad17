"""`hpo fit`: from best.json to a model that predicts new posts."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sparse_evidence.core.errors import UserError

from .shared import fast_imports, load_definition, make_console

if TYPE_CHECKING:
    from rich.console import Console

    from ..running.task import StudyTask


def command(
    result: Annotated[
        Path, typer.Argument(metavar="BEST", help="The result, for example best.json.", show_default=False)
    ],
    out: Annotated[
        Path, typer.Option("--out", "-o", metavar="FOLDER", help="New folder for the model.", show_default=False)
    ],
    study: Annotated[
        Path | None,
        typer.Option(metavar="STUDY", help="The study file. Default: the one that BEST names.", show_default=False),
    ] = None,
    what: Annotated[
        str,
        typer.Option(metavar="NAME", help="winner, ensemble, trial (the best single one), default, retrieval, linear."),
    ] = "winner",
    single: Annotated[
        bool,
        typer.Option("--single", help="One model on all posts, not one for each fold: smaller, less exact."),
    ] = False,
) -> None:
    """Train the winner of a study and write it into a folder, from which `hpo predict` reads it."""
    with fast_imports():
        from sparse_evidence.core.fitted.folder import check_free

        from ..fitting import fit, recipes
        from ..results import live
        from ..running.task import load_task
    if what not in recipes.CHOICES:
        raise UserError(f"--what {what} is unknown; it may be {', '.join(recipes.CHOICES)}")
    check_free(out)
    best = recipes.read_best(result)
    definition = load_definition(study or fit.study_file(best, result))
    console = make_console()
    with live.EmbeddingProgress(console) as progress:
        task = load_task(definition, progress=progress)
    fit_and_tell(console, best, task, out, what=what, single=single)


def fit_and_tell(
    console: Console, best: dict[str, Any], task: StudyTask, folder: Path, *, what: str = "winner", single: bool = False
) -> None:
    """Fit a result, with a line on the console before and after."""
    from ..fitting import fit
    from ..results.wording import count_text
    from ..running.task import default_device

    with console.status("fitting"):
        model, chosen = fit.fit_result(best, task, folder, what=what, single=single, device=default_device())
    posts, members = count_text(model.info["posts"], "post"), count_text(len(model.members), "member")
    console.print(f"fitted {chosen.text} ({members}) on {posts}: {folder}", soft_wrap=True)
