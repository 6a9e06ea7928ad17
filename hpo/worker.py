"""One process that works on one trial after another until the budget is spent or it is told to stop."""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

import optuna
import torch

from core.metrics import METRICS
from hpo import claims, objective, space
from hpo.definition import StudyDefinition, differences
from hpo.export import FLOORS, REQUESTED
from hpo.preparation import Prepared, Progress, prepare
from hpo.sampler import seeded
from hpo.storage import Direction, engine_of, open_storage, open_study

logger = logging.getLogger(__name__)

Handler = Callable[[int, FrameType | None], Any] | signal.Handlers

STOP_ON_EOF = "HPO_STOP_ON_EOF"
"""Environment variable: set, the end of standard input asks a worker to stop as SIGTERM does."""
POLL_SECONDS = 0.5
"""How often a worker without a trial looks whether one was left behind."""


def join(definition: StudyDefinition, prepared: Prepared, url: str, *, trials: int) -> optuna.Study:
    """Create the study or join it, with its floors measured and its budget noted.

    Raises:
        Refused: the study was started with something else.
        StorageError: the database is out of reach.
    """
    higher = METRICS[definition.search.metric].higher_is_better
    direction: Direction = "maximize" if higher else "minimize"
    study = open_study(
        open_storage(url),
        definition.name,
        direction=direction,
        identity=prepared.identity(),
        default_parameters=space.default_parameters(definition),
        sampler=seeded(definition.search.sampler, definition.search.seed),
        differences=differences,
    )
    known = study.user_attrs
    if FLOORS not in known:
        study.set_user_attr(FLOORS, prepared.floors())
    if trials > known.get(REQUESTED, 0):
        study.set_user_attr(REQUESTED, trials)
    return study


def work(
    definition: StudyDefinition,
    url: str,
    *,
    trials: int,
    slot: int = 0,
    threads: int | None = None,
    stop: threading.Event,
    progress: Progress | None = None,
) -> None:
    """Work on trials until `trials` are finished in the study, by whomever, or `stop` is set.

    Args:
        definition: the study.
        url: its storage, from `storage.resolve`.
        trials: the budget.
        slot: number of this worker on its machine.
        threads: CPU threads for torch; left out: what torch takes.
        stop: the trial in hand is handed back after its epoch once this is set.
        progress: told how far the embedding is.
    """
    if threads is not None:
        torch.set_num_threads(threads)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        prepared = prepare(definition, device=device, progress=_unless(stop, progress))
    except _Stopped:
        return
    study = join(definition, prepared, url, trials=trials)
    service = definition.service
    mine = claims.Claims(
        engine_of(study),
        study,
        budget=trials,
        heartbeat_seconds=service.heartbeat_seconds,
        grace_seconds=service.grace_seconds,
        max_attempts=service.max_attempts,
        worker=claims.Worker(slot=slot, gpu=os.environ.get("CUDA_VISIBLE_DEVICES") if device == "cuda" else None),
    )
    while not stop.is_set():
        match mine.claim():
            case claims.Claim() as claim:
                _work_on(claim, prepared, device, stop)
            case claims.Wait():
                stop.wait(POLL_SECONDS)
            case claims.Finished():
                break


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


def _work_on(claim: claims.Claim, prepared: Prepared, device: str, stop: threading.Event) -> None:
    try:
        with claim:
            state = objective.run(claim, prepared, device=device, stop=stop.is_set)
    except claims.ClaimLost:
        logger.warning("Trial %d was taken over by another worker; going on with the next one.", claim.trial.number)
        return
    if state == optuna.trial.TrialState.FAIL:
        reason = claim.trial.study.trials[claim.trial.number].user_attrs.get(claims.REASON)
        logger.warning("Trial %d is infeasible: %s", claim.trial.number, reason)


@contextmanager
def stopped_by_signals(stop: threading.Event, *, again: Handler = signal.SIG_DFL) -> Iterator[None]:
    """Set `stop` on the first SIGINT or SIGTERM; a second one gets what `again` says: the process ends at once."""
    signals = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.getsignal(number) for number in signals}

    def ask(_number: int, _frame: FrameType | None) -> None:
        stop.set()
        for number in signals:
            signal.signal(number, again)

    for number in signals:
        signal.signal(number, ask)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def stopped_by_end_of_input(stop: threading.Event) -> None:
    """Set `stop` when standard input ends, if `STOP_ON_EOF` asks for it: whoever started us has gone."""
    if os.environ.get(STOP_ON_EOF, "0") in {"", "0"}:
        return

    def listen() -> None:
        with suppress(OSError):
            while os.read(0, 1024):  # not sys.stdin: its lock would be held while the interpreter shuts down
                pass
        stop.set()

    threading.Thread(target=listen, name="end of input", daemon=True).start()
