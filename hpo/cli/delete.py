"""`hpo delete`: a study with everything that belongs to it; or root's embedded databases whose folders are gone."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sparse_evidence.core.errors import UserError

from ..errors import Exit
from .shared import Artifacts, Storage, database, fast_imports, load_definition, one_line

if TYPE_CHECKING:
    from ..running.deleting import Doomed


def command(
    study: Annotated[
        str | None,
        typer.Argument(
            metavar="STUDY", help="Its name, as `hpo list` shows it, or its study file.", show_default=False
        ),
    ] = None,
    gone: Annotated[
        bool,
        typer.Option("--gone", help="In place of a study: root's embedded databases whose folders do not exist."),
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Delete without asking.")] = False,
    storage: Storage = None,
    artifacts: Artifacts = None,
) -> None:
    """Delete a study from the database: trials, child studies, predictions, checkpoints. Files such as results stay."""
    if gone:
        if study is not None:
            raise UserError(f"--gone stands in place of a study; leave out {study} or --gone")
        _delete_gone(yes=yes)
        return
    if study is None:
        raise UserError("hpo delete needs the name of a study, or its file: `hpo list` shows them")
    if not yes and not sys.stdin.isatty():
        raise UserError(f"{study} is not deleted: there is no terminal to ask on; give --yes to delete it")
    name, grace_seconds = _named(study)
    with fast_imports():
        from ..database.address import describe
        from ..database.connection import open_storage
        from ..results.wording import count_text
        from ..running import deleting
    with database(storage, create=False) as url:
        opened = open_storage(url, create=False)
        doomed = deleting.find_doomed(opened, name, grace_seconds=grace_seconds)
        if not yes:
            print(f"{_described(doomed)} in {describe(url)}; files such as {name}.best.json stay")
            if not _confirmed("Delete it? Type its name, or y: ", name):
                print("nothing was deleted")
                raise typer.Exit(Exit.FAILED)
        deleted = deleting.delete_study(opened, name, grace_seconds=grace_seconds, artifacts=artifacts)
    print(f"deleted {_described(deleted)}")
    if deleted.missing:
        print(
            f"note: {count_text(deleted.missing, 'checkpoint')} of it were not found; if its workers kept them "
            "elsewhere (--artifacts), remove them there"
        )


def _named(study: str) -> tuple[str, float]:
    """The name that is meant by a name or a study file, and the grace period of its claims in seconds."""
    from ..study.config import ServiceConfig

    path = Path(study)
    if path.suffix == ".toml" or path.is_file():
        definition = load_definition(path)
        return definition.name, definition.service.grace_seconds
    return study, ServiceConfig().grace_seconds


def _described(doomed: Doomed) -> str:
    """`smoke: 6 trials and 2 child studies`."""
    from ..results.wording import count_text

    children = f" and {count_text(doomed.children, 'child study', 'child studies')}" if doomed.children else ""
    return f"{doomed.name}: {count_text(doomed.trials, 'trial')}{children}"


def _confirmed(question: str, name: str) -> bool:
    """Ask on the terminal; the name, y or yes is a yes."""
    try:
        answer = input(question)
    except EOFError:
        print()
        return False
    return answer.strip() == name or answer.strip().lower() in {"y", "yes"}


def _delete_gone(*, yes: bool) -> None:
    """List root's databases whose folders are gone, ask, and delete them."""
    from ..database import embedded_gone
    from ..results.wording import count_text

    found = embedded_gone.find_gone()
    for each in found:
        print(f"{each.home} served {one_line(str(each.served))}, which does not exist")
    if not found:
        print("no embedded database is without its folder")
        return
    if not yes and not sys.stdin.isatty():
        raise UserError("nothing is deleted: there is no terminal to ask on; give --yes to delete them")
    if not yes and not _confirmed("Is no folder only moved, or on a disk that is not mounted? Delete them: y: ", "y"):
        print("nothing was deleted")
        raise typer.Exit(Exit.FAILED)
    kept = [each.home for each in found if not embedded_gone.delete_gone(each)]
    print(f"deleted {count_text(len(found) - len(kept), 'database')}")
    for home in kept:
        print(f"note: {home} is in use or its server runs, so it is kept")
