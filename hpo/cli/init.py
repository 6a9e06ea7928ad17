"""`hpo init`: a commented study file for your data."""

from __future__ import annotations

import os
import shlex
from pathlib import Path
from typing import Annotated

import typer

from sparse_evidence.core.errors import UserError


def command(
    data: Annotated[
        Path | None,
        typer.Argument(
            metavar="DATA",
            help="A CSV, TSV or Parquet table with the columns post_id, post, criterion and label. Default: the public "
            "editorials.",
            show_default=False,
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            metavar="FILE",
            help="The study file to write; an existing file is not overwritten. Default: named after DATA, in the "
            "current folder.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Write a commented study file for your data."""
    from ..study.template import study_template

    file = out or Path(f"{data.stem if data else 'editorials'}.toml")
    if os.path.lexists(file):
        raise UserError(f"{file} already exists and is not overwritten; give another file with -o")
    text = study_template(data, file)
    try:
        with file.open("x", encoding="utf-8") as opened:
            opened.write(text)
    except OSError as error:
        raise UserError(f"{file} cannot be written ({error.strerror}); give another file with -o") from None
    name = shlex.quote(str(file))
    print(f"wrote {file}; next:\n  hpo validate {name}\n  hpo run {name}")
