"""The console that tables and progress are printed on."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console, RenderableType


def make_console(*, stderr: bool = False, quiet: bool = False) -> Console:
    """A console on standard output or standard error; with `quiet` it prints nothing.

    All text is shown as it is, also in tables: names, paths and messages may look like rich's markup (`[low]`) or emoji
    (`:warning:`). Styles are given as arguments or by `rich.text.Text`.
    """
    from rich.console import Console

    return Console(highlight=False, markup=False, emoji=False, stderr=stderr, quiet=quiet)


def show(console: Console, table: RenderableType) -> None:
    """Print a table; outside a terminal and a notebook, without trailing blanks."""
    if console.is_terminal or console.is_jupyter or console.quiet:
        console.print(table)
        return
    with console.capture() as captured:
        console.print(table)
    console.out("\n".join(line.rstrip() for line in captured.get().splitlines()), highlight=False)
