"""`hpo report`: one HTML page for a study, finished or running."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .shared import ForcePage, Storage, StudyFile, database, fast_imports, load_definition, make_console


def command(
    study: StudyFile,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            metavar="FILE",
            help="The page; - is standard output. Default: NAME.report.html, with the study's name.",
            show_default=False,
        ),
    ] = None,
    force: ForcePage = False,
    storage: Storage = None,
) -> None:
    """Write a page to send around: what was found, how sure that is, what to do next. It holds no post."""
    from ..pages.writing import PageFile

    definition = load_definition(study)
    page = PageFile(out or Path(f"{definition.name}.report.html"), "report", force=force)
    page.check()
    with fast_imports():
        from ..database.connection import open_to_look
        from ..database.record import CURVES
        from ..database.studies import load_study
        from ..pages.report import report_page
    console = make_console(stderr=page.is_stdout)
    with database(storage, create=False) as url, console.status("making the report"):
        opened = load_study(open_to_look(url, without=(CURVES,)), definition.name)
        page.write(report_page(opened, definition))
    console.print(f"written to {page}", soft_wrap=True)
