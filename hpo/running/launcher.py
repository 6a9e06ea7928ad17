"""Runs a study on this machine: prepares it, starts one worker per slot, and watches until it is confirmed.

`early_workers`, `start_study` and `run_study` are `hpo run`, `run_slots` is `hpo worker --slots`. Call them in the main
thread, which receives signals. Nothing is drawn in this module: an `Observer` follows the run.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from sparse_evidence.core.errors import UserError

from ..errors import Exit, StudyDeletedError
from .signals import graceful_shutdown
from .slots import Slot, plan_slots
from .supervisor import WorkerPool

# Torch and Optuna are imported by the functions that need them: a process that only supervises slots does without.
if TYPE_CHECKING:
    from optuna import Study

    from ..database.claims_sql import Counts
    from ..study.definition import StudyDefinition
    from ..study.fields import Scalar
    from .confirming import Progress as ConfirmProgress
    from .position import Position
    from .task import Progress, StudyTask

REFRESH_SECONDS = 0.5
"""How often trials are counted and crashed workers are restarted."""


class Observer(Protocol):
    """Follows a study while it runs."""

    def baselines(self, scores: Mapping[str, Any] | None) -> None:
        """Receive the baselines' scores by name, once; None while another process measures them."""

    def confirming(self, progress: ConfirmProgress) -> None:
        """Receive how far confirming is, every `REFRESH_SECONDS` once the trials are finished."""

    def counts(self, counts: Counts) -> None:
        """Receive the trials by state, every `REFRESH_SECONDS`."""

    def line(self, text: str) -> None:
        """Receive a line that a worker wrote."""

    def positions(self, positions: Mapping[int, Position]) -> None:
        """Receive where the workers of this machine are, by process id, every `REFRESH_SECONDS`, before the counts."""

    def stopping(self) -> None:
        """A signal arrived, and the workers are releasing their trials."""


@dataclass(frozen=True, eq=False)
class StartedStudy:
    """A study that exists in the database, with its data loaded on this machine."""

    definition: StudyDefinition
    url: str
    """The database, including its password."""
    task: StudyTask
    study: Study
    trials: int
    """The budget: trials to finish in total."""
    confirm_only: bool = False
    """Do no trials of the search, confirm the result of those that are finished."""
    pool: WorkerPool | None = None
    """Workers that were started early, see `early_workers`."""


@dataclass(frozen=True)
class Outcome:
    """How a run ended."""

    code: int
    """`Exit.DONE`, or the exit code of the workers that failed."""
    finished: int
    trials: int
    workers: int
    """Worker processes that were started; 0 if all trials had been finished before."""
    reason: str = ""
    """Why workers failed: how each ended and what it wrote last."""
    confirming: ConfirmProgress | None = None
    """How far confirming was when the workers failed; None: it had not begun, or it is done."""


@contextmanager
def early_workers(
    definition: StudyDefinition, url: str, *, workers: int | None = None, trials: int | None = None
) -> Iterator[WorkerPool | None]:
    """Start the workers of a study, for `start_study`: they load their libraries while it loads and checks the data.

    They do nothing else before `run_study` lets them, and end with the block. None if all trials are finished.

    Args:
        definition: the study; it need not exist yet.
        url: from `storage_url`.
        workers: as in `run_study`.
        trials: as in `start_study`.

    Raises:
        UserError: so many workers do not fit on the GPUs.
        StorageError: the database is unreachable.
    """
    budget = trials or definition.search.trials
    finished = _finished_before(definition.name, url)
    if finished >= budget:
        yield None
        return
    with _start_pool(definition, url, budget, finished, workers, confirm_only=False) as pool:
        yield pool


def _finished_before(name: str, url: str) -> int:
    """Trials that are finished; 0 if there is no such study."""
    from ..database.claims_sql import count_trials
    from ..database.connection import engine_of, open_storage
    from ..database.studies import load_study

    storage = open_storage(url)
    try:
        return count_trials(load_study(storage, name)).finished
    except (UserError, StudyDeletedError):
        return 0
    finally:
        engine_of(storage).dispose()


def _start_pool(
    definition: StudyDefinition, url: str, budget: int, finished: int, workers: int | None, *, confirm_only: bool
) -> WorkerPool:
    """Start workers that are held."""
    slots = plan_slots(_useful_workers(definition, workers, budget - finished), per_gpu=workers or 1)
    return WorkerPool(
        definition.path, url, trials=budget, slots=slots, print_line=None, environment=definition.environment,
        confirm_only=confirm_only,
    )  # fmt: skip


def start_study(
    definition: StudyDefinition,
    url: str,
    *,
    trials: int | None = None,
    confirm_only: bool = False,
    try_first: Sequence[Mapping[str, Scalar]] = (),
    progress: Progress | None = None,
    pool: WorkerPool | None = None,
) -> StartedStudy:
    """Load the study's data, and create the study or join it.

    Args:
        definition: the study.
        url: from `storage_url`.
        trials: trials to finish in total; default: the definition's.
        confirm_only: do no trials of the search; `trials` are finished.
        try_first: parameters from `warm_start` that are tried first, once.
        progress: called while texts are embedded.
        pool: from `early_workers`.

    Raises:
        UserError: the data, the folds or the encoder cannot be used.
        RefusedError: the study was started with other data, folds, configuration or code.
        StorageError: the database is unreachable.
    """
    from ..database.connection import engine_of, open_storage
    from .joining import join_study
    from .task import load_task

    engine_of(open_storage(url)).dispose()  # a wrong URL is reported before minutes of embedding
    task = load_task(definition, progress=progress)
    budget = trials or definition.search.trials
    study = join_study(definition, task, url, trials=0 if confirm_only else budget, try_first=try_first)
    return StartedStudy(definition, url, task, study, budget, confirm_only, pool)


def run_study(started: StartedStudy, observer: Observer, *, workers: int | None = None) -> Outcome:
    """Run worker processes until the study's trials are finished and its result is confirmed.

    Args:
        started: from `start_study`.
        observer: follows the run.
        workers: worker processes; default: one per GPU, without a GPU one per core, at most 4. Workers that were
            started early are used as they are.

    Raises:
        KeyboardInterrupt: SIGINT or SIGTERM arrived before the end; the workers have released their trials.
        StudyDeletedError: the study was deleted.
    """
    from ..database.optuna_storage import study_id

    finished = _finished(started)
    if finished >= started.trials and _is_concluded(started):
        if started.pool is not None:  # others have finished the study meanwhile
            started.pool.stop()
        _measure_baselines(started, observer)
        return Outcome(Exit.DONE, finished, started.trials, workers=0)
    stop = threading.Event()
    with graceful_shutdown(stop, again=signal.default_int_handler), started.pool or _start_pool(
        started.definition, started.url, started.trials, finished, workers, confirm_only=started.confirm_only
    ) as pool:  # fmt: skip
        pool.release(observer.line, study_id(started.study))
        _measure_baselines(started, observer)  # takes about as long as the workers take to start
        _watch(started, observer, pool, stop)
    finished = _finished(started)
    if finished >= started.trials and _is_concluded(started):
        return Outcome(Exit.DONE, finished, started.trials, pool.size)
    if stop.is_set():
        raise KeyboardInterrupt
    code, reason = pool.failure()
    return Outcome(code, finished, started.trials, pool.size, reason, _confirm_progress(started))


def _useful_workers(definition: StudyDefinition, workers: int | None, left: int) -> int:
    """As many workers as requested, but no more than trials are left if nothing is confirmed after them."""
    wanted = workers or len(plan_slots(None))
    return wanted if definition.confirm.leaders else max(1, min(wanted, left))


def _watch(started: StartedStudy, observer: Observer, pool: WorkerPool, stop: threading.Event) -> None:
    """Return when the trials are finished and the result is confirmed, no worker is left, or `stop` is set."""
    from ..database.claims_sql import count_trials

    def report() -> bool:
        counts = count_trials(started.study)
        observer.positions(pool.positions())
        observer.counts(counts)
        is_concluded = counts.finished >= started.trials and _is_concluded(started)
        if counts.finished >= started.trials and (progress := _confirm_progress(started)) is not None:
            observer.confirming(progress)
        return is_concluded

    while pool.poll() and not stop.wait(REFRESH_SECONDS):
        if report():
            return  # do not wait for a worker that has only just started
    report()
    if stop.is_set():
        observer.stopping()


def _is_concluded(started: StartedStudy) -> bool:
    from . import conclusions

    return conclusions.is_concluded(started.study, started.definition.confirm, _first(started))


def _confirm_progress(started: StartedStudy) -> ConfirmProgress | None:
    from . import confirming

    return confirming.progress(started.study, _first(started))


def _first(started: StartedStudy) -> int | None:
    return started.trials if started.confirm_only else None


def _measure_baselines(started: StartedStudy, observer: Observer) -> None:
    from ..database import record
    from .joining import measure_baselines

    measure_baselines(started.study, started.task)
    observer.baselines(record.baselines(started.study))


def _finished(started: StartedStudy) -> int:
    from ..database.claims_sql import count_trials

    return count_trials(started.study).finished


def run_slots(
    study: Path,
    url: str,
    *,
    trials: int,
    slots: Sequence[Slot],
    artifacts: str | None = None,
    confirm_only: bool = False,
    stop: threading.Event,
    print_line: Callable[[str], None],
) -> int:
    """Keep a worker process in every slot until the study is finished and confirmed, or `stop` is set.

    Args:
        study: the study file.
        url: from `storage_url`.
        trials: trials to finish in total.
        slots: from `plan_slots`.
        artifacts: where checkpoints are stored; default: from the workers' environment.
        confirm_only: do no trials of the search.
        stop: once set, the workers release their trials and end.
        print_line: called with every line that a worker writes.

    Returns:
        `Exit.DONE`, or the exit code of the workers that failed.
    """
    for slot in slots:
        threads = f"{slot.threads} CPU thread{'s' if slot.threads > 1 else ''}"
        print_line(f"slot {slot.number}: {slot.gpu or 'no GPU'}, {threads}")
    with WorkerPool(
        study, url, trials=trials, slots=slots, print_line=print_line, artifacts=artifacts, confirm_only=confirm_only
    ) as pool:
        while pool.poll() and not stop.wait(REFRESH_SECONDS):
            pass
    done = stop.is_set() or Exit.DONE in pool.codes()  # one worker that found the budget spent is enough
    return Exit.DONE if done else pool.failure()[0]
