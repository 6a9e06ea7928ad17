"""Deletes a study with all that belongs to it: child studies, predictions, claims, and checkpoints of its trials.

Everything in the database goes in one transaction, under the locks that workers need to claim a trial, so that nothing
is ever left half. The checkpoints are removed just before it is committed: if this process is killed in between, the
claims still name them, a worker would start such a trial over, and deleting again finishes it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sparse_evidence.core.errors import UserError, nearest

from ..database import claims_sql, trial_rows
from ..database.address import describe
from ..database.catalog import StudyEntry, list_studies, read_studies
from ..database.connection import engine_of
from ..database.limits import kept_alive
from ..database.locks import lock_study
from ..database.optuna_storage import unwrap
from ..database.retry import retry
from ..errors import RefusedError
from .artifacts import open_store

if TYPE_CHECKING:
    import sqlalchemy as sa
    from optuna.storages import BaseStorage


@dataclass(frozen=True)
class Doomed:
    """A study that may be deleted, and what goes with it."""

    name: str
    entries: tuple[StudyEntry, ...]
    """The study and its child studies."""
    checkpoints: int = 0
    """Checkpoints that were removed."""
    missing: int = 0
    """Checkpoints that were not where they were looked for."""

    @property
    def trials(self) -> int:
        """Trials of the study itself, in every state."""
        return sum(entry.counts.total for entry in self.entries if entry.parent is None)

    @property
    def children(self) -> int:
        """Child studies."""
        return sum(entry.parent is not None for entry in self.entries)


def find_doomed(storage: BaseStorage, name: str, *, grace_seconds: float) -> Doomed:
    """What deleting the study `name` would delete.

    Raises:
        UserError: there is no such study, it belongs to another one, or hpo did not create it.
        RefusedError: workers are at work on it.
        StorageError: the database is unreachable.
    """
    entries, _ = list_studies(storage, grace_seconds=grace_seconds)
    return _checked(storage, name, entries, grace_seconds)


def delete_study(storage: BaseStorage, name: str, *, grace_seconds: float, artifacts: str | None = None) -> Doomed:
    """Delete the study `name` and what belongs to it.

    Args:
        storage: its database.
        name: its name.
        grace_seconds: a worker without a heartbeat for so long is not at work any more.
        artifacts: where the checkpoints of its trials are; see `open_store`.

    Returns:
        What was deleted.

    Raises:
        UserError: as `find_doomed`; or a checkpoint cannot be removed, and nothing is deleted in the database.
        RefusedError: workers are at work on it.
        StorageError: the database is unreachable.
    """
    sent: list[Doomed] = []

    def delete() -> Doomed:
        with engine_of(storage).begin() as connection:
            lock_study(connection)  # nobody creates a child study meanwhile
            found = [entry for entry in read_studies(connection, grace_seconds) if name in (entry.name, entry.parent)]
            if sent and not found:
                return sent[-1]  # the answer to our commit was lost
            for study in sorted(entry.study_id for entry in found):
                lock_study(connection, study)  # nobody claims a trial meanwhile
            entries = read_studies(connection, grace_seconds)  # workers may have claimed one before
            doomed = _removed(connection, _checked(storage, name, entries, grace_seconds), artifacts)
            sent.append(doomed)
            return doomed

    return retry(delete, unwrap(storage).retry_seconds)


def _checked(storage: BaseStorage, name: str, entries: Sequence[StudyEntry], grace_seconds: float) -> Doomed:
    """The study and its child studies among `entries`, or why it cannot be deleted."""
    database = describe(engine_of(storage).url)
    found = tuple(entry for entry in entries if name in (entry.name, entry.parent))
    if not found:
        close = nearest(name, [entry.name for entry in entries if entry.parent is None])
        hint = f"did you mean {close!r}?" if close else "`hpo list` shows what there is"
        raise UserError(f"There is no study {name!r} in {database}: {hint}")
    for entry in found:
        if entry.name == name and entry.parent is not None:
            raise UserError(f"The study {name!r} belongs to {entry.parent!r}: delete that, and this goes with it.")
        if not entry.is_ours:
            raise UserError(
                f"The study {entry.name!r} in {database} was not created by hpo: delete it with what created it, or "
                "with `optuna delete-study`."
            )
    if workers := sum(entry.workers for entry in found):
        raise RefusedError(
            f"The study {name!r} in {database} is being worked on ({workers} running, with a heartbeat in the last "
            f"{grace_seconds:.0f} s; `hpo status` says where): stop its workers first. One that was killed counts for "
            f"{grace_seconds:.0f} s."
        )
    return Doomed(name, found)


def _removed(connection: sa.Connection, doomed: Doomed, artifacts: str | None) -> Doomed:
    """Remove the checkpoints, then everything in the database, in the caller's transaction."""
    studies = [entry.study_id for entry in doomed.entries]
    names = claims_sql.list_artifacts(connection, studies)
    with kept_alive(connection):  # removing files may take longer than a transaction may be idle
        missing = _remove_artifacts(names, artifacts) if names else 0
    claims_sql.delete_claims(connection, studies)
    trial_rows.delete_studies(connection, studies)
    return Doomed(doomed.name, doomed.entries, len(names) - missing, missing)


def _remove_artifacts(names: Sequence[str], where: str | None) -> int:
    """Remove artifacts; returns how many were not there."""
    store, missing = open_store(where), 0
    for name in names:
        try:
            store.remove(name)
        except FileNotFoundError:
            missing += 1
        except Exception as error:
            raise UserError(
                f"The checkpoint {name} cannot be removed ({type(error).__name__}), so the study is not deleted: mend "
                "that, and run the same command again."
            ) from error
    return missing
