"""One worker process: it runs one trial after another until the budget is spent, confirms the result, or stops."""

from __future__ import annotations

import logging
import os
import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import optuna
import torch
from optuna.trial import TrialState

from ..database import record
from ..database.claims_sql import Worker
from ..database.connection import RETRY_SECONDS, engine_of
from ..database.record import REASON
from ..errors import ClaimLostError, Exit, StorageError
from ..study.definition import StudyDefinition
from . import claims, conclusions, confirming, objective, process
from .artifacts import ArtifactStore, Checkpoints
from .joining import join_study, measure_baselines
from .position import position_writer
from .reaper import Reaper
from .slots import VISIBLE_DEVICES
from .supervisor import STUDY_NOTE
from .task import Progress, StudyTask, default_device, load_task

logger = logging.getLogger(__name__)

POLL_SECONDS = 0.5
"""Mean pause before a worker that waits looks again, at first."""
LONGEST_POLL_SECONDS = 5.0
"""The same of a worker that has waited for long."""
POLL_SHARE = 0.05
"""A worker that waits looks again after this share of the time for which it has waited.

So waiting is at most that much longer than necessary, and a thousand workers that wait for the last trials look a few
hundred times a second, not thousands.
"""

RunTrial = Callable[[claims.Claim], TrialState | None]
"""Run a claimed trial; returns its final state, or None if it was released."""
RunAll = Callable[[optuna.Study, int | None, Callable[[], bool]], None]
"""Run the trials of a study: up to a budget or those that are queued, and again while a function returns True."""


@dataclass(frozen=True)
class WorkerOptions:
    """What one worker process is started with."""

    trials: int
    """The budget: finished trials of the whole study."""
    slot: int = 0
    """Number of this worker on its machine."""
    threads: int | None = None
    """CPU threads for torch; default: chosen by torch."""
    confirm_only: bool = False
    """Do no trials of the search: confirm the result of the `trials` that were finished first."""


class StopRequestedError(Exception):
    """`stop` was set before the worker claimed a trial."""


def work(
    definition: StudyDefinition,
    url: str,
    store: ArtifactStore,
    options: WorkerOptions,
    *,
    stop: threading.Event,
    progress: Progress | None = None,
) -> Exit:
    """Run trials until the study has `options.trials` finished ones, counting all workers; then confirm its result.

    Args:
        definition: the study.
        url: its database.
        store: where checkpoints of unfinished trials are saved.
        options: the budget, and settings of this worker.
        stop: once set, the current trial is checkpointed after its epoch and released, and the worker ends.
        progress: called while texts are embedded.

    Returns:
        DONE, or MEMORY: a trial ran out of memory, and a fresh process should replace this one.

    Raises:
        UserError: data, folds or encoder cannot be used.
        RefusedError: the study was created from other data, folds, definition or code, or was deleted.
        StorageError: the database is unreachable.
    """
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    try:
        _run_trials(definition, url, store, options, stop, progress)
    except objective.TrialOutOfMemoryError as error:
        logger.warning("%s This process exits to free its memory; restart it (--slots does so).", error)
        return Exit.MEMORY
    except StopRequestedError:
        pass
    except StorageError:
        if not stop.is_set():
            raise
    return Exit.DONE


def _run_trials(
    definition: StudyDefinition,
    url: str,
    store: ArtifactStore,
    options: WorkerOptions,
    stop: threading.Event,
    progress: Progress | None,
) -> None:
    device = default_device()
    task = load_task(definition, device=device, progress=_stop_aware(stop, progress))
    trials = 0 if options.confirm_only else options.trials
    note = Path(os.environ[STUDY_NOTE]) if os.environ.get(STUDY_NOTE) else None
    study = join_study(definition, task, url, trials=trials, wait_seconds=RETRY_SECONDS, stop=stop, note=note)
    checkpoints = Checkpoints(store, every_seconds=definition.service.checkpoint_seconds)
    measure_baselines(study, task)
    follow = position_writer()
    process.freeze_gc()

    def run_trial(claim: claims.Claim) -> TrialState | None:
        return objective.run(claim, task, checkpoints, device=device, stop=stop.is_set)

    def run_all(searched: optuna.Study, budget: int | None, more: Callable[[], bool] = lambda: False) -> None:
        queue = _claims(definition, searched, options, budget, device, checkpoints, follow)
        with Reaper(queue) as reaper:
            _loop(queue, run_trial, stop, more)
            if not stop.is_set():
                reaper.reap()

    if not options.confirm_only:
        run_all(study, options.trials)
        measure_baselines(study, task)  # the process that measured them may have been killed
    _conclude(study, task, options, run_all, stop)


def _conclude(
    study: optuna.Study, task: StudyTask, options: WorkerOptions, run_all: RunAll, stop: threading.Event
) -> None:
    """Choose the ensemble of a finished search, and confirm the result."""
    finished = options.trials if options.confirm_only else None
    if conclusions.is_concluded(study, task.definition.confirm, finished):
        return  # or another worker was started with a larger budget
    _until_true(lambda: conclusions.conclude_search(study, task, finished), stop)
    ensemble = record.ensemble(study)
    if stop.is_set() or ensemble is None or task.definition.confirm.leaders == 0:
        return
    plan = confirming.make_plan(study, task.definition.confirm, ensemble)
    confirm = confirming.open_confirming(study, plan)
    run_all(confirm.child, None, confirm.advance)
    if not stop.is_set():
        _until_true(lambda: conclusions.conclude_confirming(confirm, task), stop)


def _until_true(attempt: Callable[[], bool], stop: threading.Event) -> None:
    """Repeat what another process may be doing until it is done or `stop` is set."""
    while not stop.is_set() and not attempt():
        stop.wait(POLL_SECONDS)


def _stop_aware(stop: threading.Event, progress: Progress | None) -> Progress:
    """Wrap `progress` so that it raises `StopRequestedError` once `stop` is set: embedding can take minutes."""

    def report(what: str, done: int, total: int) -> None:
        if stop.is_set():
            raise StopRequestedError
        if progress is not None:
            progress(what, done, total)

    return report


def _claims(
    definition: StudyDefinition,
    study: optuna.Study,
    options: WorkerOptions,
    budget: int | None,
    device: str,
    checkpoints: Checkpoints,
    follow: Callable[[int, int, int], None],
) -> claims.Claims:
    service = definition.service
    gpu = os.environ.get(VISIBLE_DEVICES) if device == "cuda" else None
    return claims.Claims(
        engine_of(study),
        study,
        budget=budget,
        heartbeat_seconds=service.heartbeat_seconds,
        grace_seconds=service.grace_seconds,
        max_attempts=service.max_attempts,
        stall_seconds=service.stall_seconds,
        worker=Worker(slot=options.slot, gpu=gpu),
        discard=checkpoints.discard,
        stalled=lambda: os._exit(Exit.STALLED),  # the main thread hangs, so only this ends the process
        follow=follow,
    )


def _loop(queue: claims.Claims, run_trial: RunTrial, stop: threading.Event, more: Callable[[], bool]) -> None:
    """Run trials until all are finished and `more`, which may queue others, returns False."""
    since = time.monotonic()
    while not stop.is_set():
        match queue.claim():
            case claims.Claim() as claim:
                _run_claimed(claim, run_trial)
                since = time.monotonic()
            case claims.Wait():
                stop.wait(poll_pause(time.monotonic() - since) * random.uniform(0.5, 1.5))
            case claims.Finished():
                if not more():
                    return


def poll_pause(waited: float) -> float:
    """Mean seconds until a worker that has waited for `waited` seconds looks again."""
    return min(LONGEST_POLL_SECONDS, max(POLL_SECONDS, POLL_SHARE * waited))


def _run_claimed(claim: claims.Claim, run_trial: RunTrial) -> None:
    try:
        with claim:
            state = run_trial(claim)
    except ClaimLostError:
        if not claim.deleted:  # else the next claim says that the study is
            number = claim.trial.number
            logger.warning("Trial %d was taken over by another worker; continuing with the next one.", number)
        return
    if state == TrialState.FAIL:
        reason = claim.trial.user_attrs.get(REASON)
        logger.warning("Trial %d is infeasible: %s", claim.trial.number, reason)
