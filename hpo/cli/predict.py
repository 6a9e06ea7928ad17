"""`hpo predict`: what a fitted model says of posts that nobody has labelled. No database is needed."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sparse_evidence.core.cache import is_stdout
from sparse_evidence.core.corpus.parts import STDIO, Format, format_of, open_table
from sparse_evidence.core.errors import UserError

from .shared import ModelFolder, fast_imports, make_console
from .shared import show as show_table

if TYPE_CHECKING:
    from sparse_evidence.core.fitted.predicting import Met


def command(
    model: ModelFolder,
    posts: Annotated[
        Path,
        typer.Argument(
            metavar="POSTS",
            help="A CSV, TSV or Parquet table with a column of posts, of any size; - is standard input.",
            show_default=False,
        ),
    ],
    out: Annotated[
        Path,
        typer.Option(
            "--out", "-o", metavar="FILE", help="Where to write the table (.csv, .tsv, .parquet); - is standard output."
        ),
    ] = STDIO,
    column: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="The column of the posts. Default: post, or a name like it.", show_default=False
        ),
    ] = None,
    long: Annotated[
        bool, typer.Option("--long", help="Write a row per post and criterion, not columns for every criterion.")
    ] = False,
    no_evidence: Annotated[
        bool, typer.Option("--no-evidence", help="Leave out the sentences, and be much faster.")
    ] = False,
    prefix: Annotated[str, typer.Option(metavar="TEXT", help="Put this before the names of new columns.")] = "",
    show: Annotated[
        bool, typer.Option("--show", help="Print for a reader instead: the criteria that each post meets, and why.")
    ] = False,
    file_format: Annotated[
        Format | None,
        typer.Option(
            "--format",
            help="Format of standard input and output, and of files without a suffix. Default: csv.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Predict posts: probability, decision and the sentence that speaks most for it, beside your table.

    Each criterion adds the columns NAME.probability, NAME.decision, NAME.evidence, NAME.start and NAME.end. If the
    table has the columns post_id and criterion, each row is predicted for its own criterion.

    The output holds the text of your posts, because you ask for it: all your columns, and sentences as evidence.
    """
    with fast_imports():
        from sparse_evidence.core.corpus.writing import create_table
        from sparse_evidence.core.fitted import load_model
        from sparse_evidence.core.fitted.predicting import Options, find_columns, met, predict_table
    if show and (long or no_evidence or prefix or out != STDIO):
        raise UserError("--show writes no table; leave out --out, --long, --no-evidence and --prefix")
    read_as, write_as = format_of(posts, file_format), format_of(out, file_format)
    _check_other_file(posts, out)
    fitted = load_model(model)
    options = Options(column, long, not no_evidence, prefix)
    with open_table(posts, read_as) as source:
        find_columns(fitted, source, options)  # before anything is written
        if show:
            _print(met(fitted, source, options))
            return
        with create_table(out, write_as) as sink, _progress(out) as report:
            predict_table(fitted, source, sink, options, report)


def _check_other_file(posts: Path, out: Path) -> None:
    """Raise a `UserError` if the output would replace the input."""
    if posts.is_file() and out.is_file() and posts.samefile(out):
        raise UserError(f"{out} is the table that is read; name another file with -o")


def _print(posts: Iterable[tuple[str, list[Met]]]) -> None:
    """Print each post's criteria with their probability and sentence."""
    from rich.table import Table
    from rich.text import Text

    console = make_console()
    for name, found in posts:
        console.print(name, style="bold", soft_wrap=True)
        table = Table.grid(padding=(0, 2))
        for one in found:
            table.add_row("", Text(one.criterion), f"{one.probability:.0%}", Text(one.evidence or "no text"))
        show_table(console, table if found else "  meets no criterion")


@contextmanager
def _progress(out: Path) -> Iterator[Callable[[int, float | None], None] | None]:
    """A progress bar on a terminal, unless the table is written there, too; otherwise nothing."""
    console = make_console(stderr=True)
    if not console.is_terminal or (is_stdout(out) and sys.stdout.isatty()):
        yield None
        return
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.fields[rows]:,} rows"), BarColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("", total=None, rows=0)

        def report(rows: int, share: float | None) -> None:
            progress.update(task, completed=share or 0.0, total=None if share is None else 1.0, rows=rows)

        yield report
