"""What the verbs share: common options, the console, error output, and imports that take seconds."""

from __future__ import annotations

import os
import re
import shutil
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
import typer.core

from ..results.console import make_console, show
from ..running import process

if TYPE_CHECKING:
    from rich.console import Console

    from ..study.definition import StudyDefinition

__all__ = ["make_console", "show"]

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")

StudyFile = Annotated[
    Path,
    typer.Argument(metavar="STUDY", help="The study file, for example studies/quickstart.toml.", show_default=False),
]
Storage = Annotated[
    str | None,
    typer.Option(
        metavar="URL",
        help="postgresql://USER@HOST:PORT/DB (env: HPO_STORAGE; password: PGPASSWORD or "
        "HPO_STORAGE_PASSWORD_FILE). Default: an embedded Postgres under .hpo/.",
        show_default=False,
    ),
]
Trials = Annotated[
    int | None,
    typer.Option(metavar="N", min=1, help="Total number of trials. Default: from the study file.", show_default=False),
]
Workers = Annotated[
    int | None,
    typer.Option(
        metavar="N",
        min=1,
        help="Worker processes. Default: one per GPU, without a GPU one per core, at most 4.",
        show_default=False,
    ),
]
Artifacts = Annotated[
    str | None,
    typer.Option(
        metavar="FOLDER|URL",
        help="Where checkpoints of unfinished trials are stored: a folder that all workers share, or "
        "s3://BUCKET/PREFIX (env: HPO_ARTIFACTS). Default: .hpo/artifacts.",
        show_default=False,
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, for scripts.")]
Out = Annotated[
    Path | None,
    typer.Option(
        "--out",
        "-o",
        metavar="FILE",
        help="Where to write the result; - is standard output. Default: NAME.best.json, with the study's name.",
        show_default=False,
    ),
]
Force = Annotated[bool, typer.Option("--force", help="Overwrite a file that is not this study's result.")]
ForcePage = Annotated[bool, typer.Option("--force", help="Overwrite a file that is no such page.")]
ModelFolder = Annotated[
    Path,
    typer.Argument(metavar="MODEL_DIR", help="The folder that `hpo fit` wrote.", show_default=False),
]
ModelStudy = Annotated[
    Path | None,
    typer.Option(
        "--study",
        metavar="STUDY",
        help="The study file. Default: the one that the model names.",
        show_default=False,
    ),
]


class Command(typer.core.TyperCommand):
    """A command whose help leaves out what typer adds: braces around an argument, the type of a flag."""

    def collect_usage_pieces(self, ctx: typer.Context) -> list[str]:  # type: ignore[override]  # its own Context
        """`[OPTIONS] STUDY`, not `[OPTIONS] {STUDY}`."""
        return [piece.strip("{}") for piece in super().collect_usage_pieces(ctx)]

    def get_params(self, ctx: typer.Context) -> list[Any]:  # type: ignore[override]  # its own Context
        """The parameters, `--help` included."""
        parameters = super().get_params(ctx)
        for parameter in parameters:
            if getattr(parameter, "is_flag", False):
                parameter.metavar = ""
        return parameters


class OptionalAddress(Command):
    """A command whose option `--mlflow` may stand without an address, which typer has no way to say.

    Only a text with `://` after it is taken for the address: a study file is not.
    """

    def parse_args(self, ctx: typer.Context, args: list[str]) -> list[str]:  # type: ignore[override]  # its own Context
        """Insert an empty address where there is none."""
        given: list[str] = []
        for position, word in enumerate(args):
            given.append(word)
            if word == "--mlflow" and "://" not in "".join(args[position + 1 : position + 2]):
                given.append("")
        return super().parse_args(ctx, given)


def one_line(message: str) -> str:
    """A message as one line; a path or a name in it may hold control characters, which a terminal would obey."""
    return _CONTROL.sub(lambda found: repr(found[0])[1:-1], " ".join(message.split()))


def print_error(message: str) -> None:
    """Print a message on standard error, as one line."""
    print(f"hpo: {one_line(message)}", file=sys.stderr)


def load_definition(study: Path) -> StudyDefinition:
    """Read the study file. Raises a `DefinitionError` that lists every mistake in it."""
    with step(f"reading {study}"):
        from ..study.definition import load

        return load(study)


def tell_start(console: Console, study: StudyDefinition) -> None:
    """Say in a pipe what is about to start, before imports and data, which take seconds; a terminal shows each step."""
    if not _shows_steps():
        console.print(f"starting {study.name} ({study.path})", markup=False, soft_wrap=True)


@contextmanager
def step(text: str) -> Iterator[None]:
    """On a terminal, show what is being waited for until the block ends. Nothing may be printed inside of it."""
    if not _shows_steps():
        yield
        return
    width = shutil.get_terminal_size().columns - 1
    sys.stderr.write(f"\r\x1b[2K{text[:width]}")
    sys.stderr.flush()
    try:
        yield
    finally:
        sys.stderr.write("\r\x1b[2K")
        sys.stderr.flush()


def _shows_steps() -> bool:
    return sys.stderr.isatty() and os.environ.get("TERM", "dumb") != "dumb"


@contextmanager
def fast_imports() -> Iterator[None]:
    """Turn the garbage collector off while heavy modules are imported, and exempt their objects from it afterwards."""
    process.disable_gc()
    try:
        with step("loading libraries"):
            yield
    finally:
        process.freeze_gc()


@contextmanager
def database(storage: str | None, *, create: bool = True) -> Iterator[str]:
    """Yield the URL of the database, as `storage_url`, and show on a terminal that the embedded one is starting."""
    from ..database.address import named_storage, storage_url

    with ExitStack() as stack:
        with step("connecting to the database" if named_storage(storage) else "starting the embedded database"):
            url = stack.enter_context(storage_url(storage, create=create))
        yield url
