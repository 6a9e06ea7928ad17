"""Join a study: create or open it in the database, and record the baselines of its data."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import optuna

from sparse_evidence.core.cache import write_atomically
from sparse_evidence.core.metrics import METRICS

from ..database import predictions, record
from ..database.connection import engine_of, open_storage
from ..database.locks import try_baselines_lock
from ..database.optuna_storage import study_id, unwrap
from ..database.predictions import Logits
from ..database.record import BASELINES, CURVES, REQUESTED
from ..database.retry import retry
from ..database.studies import Direction, load_study, open_study
from ..study import space
from ..study.definition import StudyDefinition, differences
from ..study.fields import Scalar
from .sampler import make_sampler
from .task import Progress, StudyTask, load_task


def join_study(
    definition: StudyDefinition,
    task: StudyTask,
    url: str,
    *,
    trials: int,
    try_first: Sequence[Mapping[str, Scalar]] = (),
    wait_seconds: float = 0.0,
    stop: threading.Event | None = None,
    note: Path | None = None,
) -> optuna.Study:
    """Create the study, or open it if it exists, and raise its recorded budget to `trials`.

    The returned study is meant for working on trials: it reads them without their curves, which are most of the data.

    Args:
        definition: the study.
        task: its data.
        url: from `storage_url`.
        trials: trials to finish in total.
        try_first: parameters from `warm_start`, which are queued unless they were queued or tried before.
        wait_seconds: how long to wait for a database that is away.
        stop: once set, it is not waited for.
        note: the file in which the workers of a pool note the key of the study that they work on, so that none of them
            creates it again after it has been deleted.

    Raises:
        RefusedError: the study was created from other data, folds, definition or code.
        StudyDeletedError: the study of the note has been deleted.
        StorageError: the database is unreachable.
    """
    higher = METRICS[definition.search.metric].higher_is_better
    direction: Direction = "maximize" if higher else "minimize"
    grace = definition.service.grace_seconds
    known = None if note is None else _read_note(note)
    study = open_study(
        open_storage(url, wait_seconds=wait_seconds, stop=stop, grace_seconds=grace, without=(CURVES,)),
        definition.name,
        direction=direction,
        identity=task.identity(),
        default_parameters=space.default_parameters(definition),
        sampler=make_sampler(definition.search.sampler, definition.search.seed),
        differences=differences,
        once=try_first,
        existing=known,
    )
    if note is not None and known is None:
        write_atomically(note, str(study_id(study)).encode())  # another worker may be reading it
    if trials > (record.requested(study) or 0):
        study.set_user_attr(REQUESTED, trials)
    return study


def _read_note(note: Path) -> int | None:
    """The key of the study that the workers of a pool work on; None until the first of them has joined it."""
    text = note.read_text(encoding="utf-8") if note.exists() else ""
    return int(text) if text else None


def load_joined(
    definition: StudyDefinition, url: str, *, progress: Progress | None = None
) -> tuple[optuna.Study, StudyTask]:
    """A study that exists and its data, for reading what needs both.

    Args:
        definition: the study.
        url: from `storage_url`.
        progress: called while texts are embedded.

    Raises:
        UserError: there is no such study, or its data, its folds or its encoder cannot be used.
        RefusedError: the study was created from other data, folds, definition or code.
        StorageError: the database is unreachable.
    """
    storage = open_storage(url, create=False)
    load_study(storage, definition.name)  # said before minutes of embedding
    engine_of(storage).dispose()
    task = load_task(definition, progress=progress)
    return join_study(definition, task, url, trials=0), task


def measure_baselines(study: optuna.Study, task: StudyTask) -> None:
    """Measure the baselines, which takes seconds, unless they are recorded or another process is measuring them.

    Their logits are stored with their scores: what is concluded from the search needs them, too.

    Raises:
        StorageError: the database is unreachable.
    """

    def measure() -> None:
        with try_baselines_lock(engine_of(study), study_id(study)) as ours:
            if ours and BASELINES not in study.user_attrs:
                scores, logits = task.scored_baselines()
                names = record.baseline_names(scores)
                with engine_of(study).begin() as connection:
                    predictions.insert_baselines(connection, study_id(study), logits, names)
                study.set_user_attr(BASELINES, scores)  # last: they count as measured from here on

    if BASELINES not in study.user_attrs:
        retry(measure, unwrap(study).retry_seconds)


def scored_baselines(study: optuna.Study, task: StudyTask) -> tuple[dict[str, Any], dict[str, Logits]]:
    """The scores of the baselines, and the logits `[posts, criteria]` of those that read the posts.

    They are those that `measure_baselines` has stored. If it has not, or if that was an earlier version, which stored
    the scores alone, they are measured here, and rounded as stored ones are, so that the same follows from them.

    Raises:
        PredictionsError: the stored logits are damaged.
        StorageError: the database is unreachable.
    """
    scores = record.baselines(study)
    if scores is not None:
        stored = predictions.load_baselines(study, record.baseline_names(scores))
        if stored is not None:
            return scores, stored
    scores, logits = task.scored_baselines()
    return scores, {name: predictions.unpack(predictions.pack(found)) for name, found in logits.items()}
