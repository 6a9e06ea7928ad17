"""`hpo explain`: one HTML page that shows what a fitted model looks for and what it finds."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sparse_evidence.core.errors import UserError

from .shared import ForcePage, ModelFolder, ModelStudy, fast_imports, make_console


def command(
    model: ModelFolder,
    posts: Annotated[
        Path | None,
        typer.Argument(
            metavar="[POSTS]",
            help="A CSV, TSV or Parquet table with a column post; optional: post_id, criterion, label. Default: the "
            "posts that the model was trained on.",
            show_default=False,
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            metavar="FILE",
            help="The page. Default: NAME.html, NAME being that of the folder.",
            show_default=False,
        ),
    ] = None,
    study: ModelStudy = None,
    limit: Annotated[int, typer.Option(metavar="N", min=1, help="Posts on the page, evenly spread.")] = 200,
    force: ForcePage = False,
) -> None:
    """Write a page that shows what a model looks for and what it finds. The page holds the posts' text."""
    from ..pages.writing import PageFile

    if posts is not None and study is not None:
        raise UserError("--study says where the posts are that the model was trained on; leave it out for other posts")
    page = PageFile(out or Path(f"{model.resolve().name}.html"), "explain", force=force)
    page.check()
    with fast_imports():
        from sparse_evidence.core.fitted import load_model

        from ..pages.explain import explain_page
        from ..pages.posts import posts_of_study, posts_of_table
        from ..results import live
        from ..results.wording import count_text
    fitted = load_model(model)
    console = make_console(stderr=page.is_stdout)
    if posts is None:
        with live.EmbeddingProgress(console) as progress:
            shown = posts_of_study(fitted, model, limit, progress, study)
    else:
        shown = posts_of_table(posts, fitted, limit)
    with console.status("explaining"):
        page.write(explain_page(fitted, shown))
    for note in shown.notes:
        console.print(f"note: {note}", soft_wrap=True)
    told = f"{count_text(len(shown.texts), 'post')}, with their text: {page}"
    console.print(told, soft_wrap=True)
