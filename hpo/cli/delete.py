"""`hpo delete`: a study with everything that belongs to it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sparse_evidence.core.errors import UserError

from ..errors import Exit
from .shared import Artifacts, Storage, database, fast_imports, load_definition

if TYPE_CHECKING:
    from ..running.deleting import Doomed


def command(
    study: Annotated[str, typer.Argument(metavar="STUDY", help="Its name, as `hpo list` shows it, or its study file.")],
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Delete without asking.")] = False,
    storage: Storage = None,
    artifacts: Artifacts = None,
) -> None:
    """Delete a study from the database: trials, child studies, predictions, checkpoints. Files such as results stay."""
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
            if not _confirmed(name):
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


def _confirmed(name: str) -> bool:
    """Ask on the terminal; the study's name, y or yes is a yes."""
    try:
        answer = input("Delete it? Type its name, or y: ")
    except EOFError:
        print()
        return False
    return answer.strip() == name or answer.strip().lower() in {"y", "yes"}
