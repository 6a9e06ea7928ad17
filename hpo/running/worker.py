"""One process that works on one trial after another until the budget is spent or it is told to stop."""

from __future__ import annotations

import logging
import os
import random
import threading

import optuna
import torch

from sparse_evidence.core.metrics import METRICS

from ..database.claims_sql import Worker
from ..database.connection import backend, engine_of, open_storage, try_baselines_lock
from ..database.optuna_storage import study_id
from ..database.record import BASELINES, CURVES, REASON, REQUESTED
from ..database.retry import retry
from ..database.studies import Direction, open_study
from ..errors import ClaimLostError, Exit
from ..study import space
from ..study.definition import StudyDefinition, differences
from . import claims, objective, process
from .artifacts import ArtifactStore, Checkpoints
from .reaper import Reaper
from .sampler import seeded
from .slots import VISIBLE
from .task import Progress, StudyTask, load_task

logger = logging.getLogger(__name__)

POLL_SECONDS = 0.5
"""How often a worker without a trial looks whether one was left behind."""


def join(definition: StudyDefinition, task: StudyTask, url: str, *, trials: int) -> optuna.Study:
    """Create the study or join it, with its budget noted.

    The study is for working on it: its trials come without their curves, which are the bulk of it.

    Raises:
        RefusedError: the study was started with something else.
        StorageError: the database is out of reach.
    """
    higher = METRICS[definition.search.metric].higher_is_better
    direction: Direction = "maximize" if higher else "minimize"
    study = open_study(
        open_storage(url, without=(CURVES,)),
        definition.name,
        direction=direction,
        identity=task.identity(),
        default_parameters=space.default_parameters(definition),
        sampler=seeded(definition.search.sampler, definition.search.seed),
        differences=differences,
    )
    if trials > study.user_attrs.get(REQUESTED, 0):
        study.set_user_attr(REQUESTED, trials)
    return study


def measure_baselines(study: optuna.Study, task: StudyTask) -> None:
    """Note in the study what there is to beat, unless it is known or somebody else is at it: it takes seconds."""

    def measure() -> None:
        with engine_of(study).begin() as connection:  # a lock that is gone with its process
            if try_baselines_lock(connection, study_id(study)) and BASELINES not in study.user_attrs:
                study.set_user_attr(BASELINES, task.baselines())

    if BASELINES not in study.user_attrs:
        retry(measure, backend(study).retry_seconds)


def work(
    definition: StudyDefinition,
    url: str,
    store: ArtifactStore,
    *,
    trials: int,
    slot: int = 0,
    threads: int | None = None,
    stop: threading.Event,
    progress: Progress | None = None,
) -> Exit:
    """Work on trials until `trials` are finished in the study, by whomever, or `stop` is set.

    Args:
        definition: the study.
        url: its storage, from `storage.resolve`.
        store: where unfinished trials are saved, from `checkpoints.resolve`.
        trials: the budget.
        slot: number of this worker on its machine.
        threads: CPU threads for torch; left out: what torch takes.
        stop: the trial in hand is handed back after its epoch once this is set.
        progress: told how far the embedding is.

    Returns:
        DONE, or MEMORY: a trial ran out of memory, and a fresh process should go on.
    """
    if threads is not None:
        torch.set_num_threads(threads)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        task = load_task(definition, device=device, progress=_unless(stop, progress))
        study = join(definition, task, url, trials=trials)
        checkpoints = Checkpoints(store, every_seconds=definition.service.checkpoint_seconds)
        mine = _claims(definition, study, trials, slot, device, checkpoints)
        measure_baselines(study, task)
        process.freeze_gc()
        with Reaper(mine) as reaper:
            _loop(mine, task, checkpoints, device, stop)
            if not stop.is_set():
                reaper.reap()
        measure_baselines(study, task)  # who was at it may have been killed
    except objective.TrialOutOfMemoryError as error:
        logger.warning("%s This process ends to free what it holds; start it again, as --slots does.", error)
        return Exit.MEMORY
    except _Stopped:
        pass
    return Exit.DONE


def _claims(
    definition: StudyDefinition,
    study: optuna.Study,
    trials: int,
    slot: int,
    device: str,
    checkpoints: Checkpoints,
) -> claims.Claims:
    service = definition.service
    gpu = os.environ.get(VISIBLE) if device == "cuda" else None
    return claims.Claims(
        engine_of(study),
        study,
        budget=trials,
        heartbeat_seconds=service.heartbeat_seconds,
        grace_seconds=service.grace_seconds,
        max_attempts=service.max_attempts,
        stall_seconds=service.stall_seconds,
        worker=Worker(slot=slot, gpu=gpu),
        discard=checkpoints.discard,
        stalled=lambda: os._exit(Exit.STALLED),  # the main thread hangs: nothing gentler would end it
    )


def _loop(mine: claims.Claims, task: StudyTask, checkpoints: Checkpoints, device: str, stop: threading.Event) -> None:
    while not stop.is_set():
        match mine.claim():
            case claims.Claim() as claim:
                _work_on(claim, task, checkpoints, device, stop)
            case claims.Wait():
                stop.wait(POLL_SECONDS * random.uniform(0.5, 1.5))
            case claims.Finished():
                return


class _Stopped(Exception):  # noqa: N818 (it was asked for)
    """Told to stop before there was a trial."""


def _unless(stop: threading.Event, progress: Progress | None) -> Progress:
    """Return `progress`, raising `_Stopped` once `stop` is set: embedding may take minutes."""

    def tell(what: str, done: int, total: int) -> None:
        if stop.is_set():
            raise _Stopped
        if progress is not None:
            progress(what, done, total)

    return tell


def _work_on(
    claim: claims.Claim, task: StudyTask, checkpoints: Checkpoints, device: str, stop: threading.Event
) -> None:
    try:
        with claim:
            state = objective.run(claim, task, checkpoints, device=device, stop=stop.is_set)
    except ClaimLostError:
        logger.warning("Trial %d was taken over by another worker; going on with the next one.", claim.trial.number)
        return
    if state == optuna.trial.TrialState.FAIL:
        reason = claim.trial.user_attrs.get(REASON)
        logger.warning("Trial %d is infeasible: %s", claim.trial.number, reason)
