"""`hpo init`: a commented study file for your data."""

from __future__ import annotations

import os
import shlex
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args

import typer

from sparse_evidence.core.errors import UserError, nearest

if TYPE_CHECKING:
    from sparse_evidence.core.corpus.recognise import Recognised


def command(
    data: Annotated[
        Path | None,
        typer.Argument(
            metavar="DATA",
            help="A CSV, TSV or Parquet table: one row per post and criterion, or one row per post with a column per "
            "criterion. Default: the public editorials.",
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
    column: Annotated[
        list[str] | None,
        typer.Option(
            "--column",
            metavar="WHAT=NAME",
            help="Say what a column holds where its name does not: post=body, post_id=key, group=writer, ... May be "
            "repeated.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Write a commented study file for your data: what its columns hold is recognised."""
    from ..study.template import study_template

    file = out or Path(f"{data.stem if data else 'editorials'}.toml")
    if os.path.lexists(file):
        raise UserError(f"{file} already exists and is not overwritten; give another file with -o")
    recognised = _recognise(data, column or [])
    text = study_template(recognised, file)
    try:
        with file.open("x", encoding="utf-8") as opened:
            opened.write(text)
    except OSError as error:
        raise UserError(f"{file} cannot be written ({error.strerror}); give another file with -o") from None
    name = shlex.quote(str(file))
    if recognised is not None:
        print("\n".join(_seen(recognised)))
    print(f"wrote {file}; next:\n  hpo validate {name}\n  hpo run {name}")


def _recognise(data: Path | None, columns: list[str]) -> Recognised | None:
    from sparse_evidence.core.corpus.columns import Field

    given: dict[Any, str] = {}
    for option in columns:
        what, equals, name = option.partition("=")
        if not (equals and name and what in get_args(Field)):
            close = nearest(what, get_args(Field))
            hint = f"did you mean {close}?" if close and equals else f"WHAT is one of {', '.join(get_args(Field))}"
            raise UserError(f"--column {option} is not WHAT=NAME, such as post=body; {hint}")
        given[what] = name
    if data is None:
        if given:
            raise UserError("--column says what a column of a table holds, but no table is given; add its path")
        return None
    from sparse_evidence.core.corpus.recognise import recognise

    return recognise(data, given)


def _seen(recognised: Recognised) -> list[str]:
    """What was recognised, a line for each kind of column."""
    source = recognised.source
    kind = "one row per post, one column per criterion" if source.criteria else "one row per post and criterion"
    columns: dict[str, str] = dict(recognised.fields.items())
    if source.criteria:
        columns["criteria"] = ", ".join(source.criteria)
    if source.evidence:
        columns["evidence"] = ", ".join(source.evidence.values())
    columns["group"] = columns.get("group", "none: every post is its own group")
    if recognised.ignored:
        columns["not read"] = ", ".join(recognised.ignored)
    width = max(map(len, columns)) + 2
    lines = [f"{Path(source.path).name}: {kind}"]
    for name, column in columns.items():
        start, rest = f"  {name:<{width}}", " " * (width + 2)
        lines.append(textwrap.fill(column, 80, initial_indent=start, subsequent_indent=rest, break_on_hyphens=False))
    return lines
