"""The studies of a database as plain values: what `hpo list` prints."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Literal, TypedDict

from ..database.catalog import StudyEntry
from ..database.record import CONFIRMED, ENSEMBLE, IDENTITY, REQUESTED

State = Literal["running", "confirmed", "finished", "stopped", "not started", "deleted", "not by hpo"]
"""`deleted`: its child studies are left, and `hpo delete` removes them."""


class ChildStudy(TypedDict):
    """A study that belongs to another one: it confirms that, or searches without one of its outer folds."""

    study: str
    kind: Literal["confirm", "nested"]
    finished: int
    """Trials that have ended, however."""
    trials: int
    workers: int


class ListedStudy(TypedDict):
    """A study and what belongs to it."""

    study: str
    state: State
    workers: int
    """Workers that run a trial of it or of a child study."""
    finished: int
    """Complete, pruned or infeasible trials."""
    requested: int | None
    """Trials that were asked for; None if none ever were."""
    best: float | None
    """The best value on the folds of the search; see `hpo status` for what may be claimed."""
    metric: str | None
    changed: str | None
    """When a trial last started or ended or a worker last gave a sign of life, ISO 8601 in UTC."""
    children: list[ChildStudy]


def listed_studies(entries: Sequence[StudyEntry]) -> list[ListedStudy]:
    """The studies by name, each with its child studies.

    Args:
        entries: from `list_studies`.
    """
    own = {entry.name: entry for entry in entries if entry.parent is None}
    children: dict[str, list[StudyEntry]] = {name: [] for name in own}
    for entry in entries:
        if entry.parent is not None:
            children.setdefault(entry.parent, []).append(entry)
    return [_listed(name, own.get(name), children[name]) for name in sorted(children)]


def _listed(name: str, entry: StudyEntry | None, children: Sequence[StudyEntry]) -> ListedStudy:
    together = [*([] if entry is None else [entry]), *children]
    workers = sum(each.workers for each in together)
    changed = max((each.changed for each in together if each.changed is not None), default=None)
    return {
        "study": name,
        "state": "running" if workers else _state(entry),
        "workers": workers,
        "finished": 0 if entry is None else entry.counts.finished,
        "requested": None if entry is None else entry.attributes.get(REQUESTED),
        "best": None if entry is None else entry.best,
        "metric": None if entry is None else _metric(entry),
        "changed": None if changed is None else changed.isoformat(timespec="seconds"),
        "children": [_child(child) for child in children],
    }


def _state(entry: StudyEntry | None) -> State:
    """The state of a study that no worker works on."""
    if entry is None:
        return "deleted"
    if not entry.is_ours:
        return "not by hpo"
    requested, finished = entry.attributes.get(REQUESTED), entry.counts.finished
    if not requested:
        return "not started"
    if finished < requested:
        return "stopped"
    confirmed, ensemble = entry.attributes.get(CONFIRMED), entry.attributes.get(ENSEMBLE)
    concluded = finished if ensemble is None else ensemble["finished"]
    return "confirmed" if confirmed is not None and confirmed["finished"] >= concluded else "finished"


def _metric(entry: StudyEntry) -> str | None:
    identity = entry.attributes.get(IDENTITY)
    return None if identity is None else str(identity["definition"]["search"]["metric"])


def _child(entry: StudyEntry) -> ChildStudy:
    counts = entry.counts
    return {
        "study": entry.name,
        "kind": "nested" if "/nested/" in entry.name else "confirm",
        "finished": counts.ended,
        "trials": counts.total,
        "workers": entry.workers,
    }


def age_seconds(listed: ListedStudy, now: datetime) -> float | None:
    """How long ago the study last changed, by the database's clock; None if it never has."""
    return None if listed["changed"] is None else (now - datetime.fromisoformat(listed["changed"])).total_seconds()
