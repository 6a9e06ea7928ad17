"""A worker that is frozen (SIGSTOP) inside a transaction holds the others up for at most the grace period.

The frozen process is a real one. It stops itself right after a statement, with the transaction open and its locks held;
the other worker is the test.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import optuna
import psutil
import pytest
import sqlalchemy as sa
from claim_tools import join_study
from optuna.trial import TrialState
from processes import PROCESSES
from waiting import until

from benchmarks import pooler
from sparse_evidence.hpo.database import connection, looks, trial_rows
from sparse_evidence.hpo.database.claims_sql import Counts, count_trials
from sparse_evidence.hpo.database.locks import lock_study, try_conclusion_lock
from sparse_evidence.hpo.database.optuna_storage import study_id
from sparse_evidence.hpo.database.retry import retry
from sparse_evidence.hpo.errors import ClaimLostError
from sparse_evidence.hpo.running.claims import Claims, Finished, Wait
from sparse_evidence.hpo.running.reaper import Reaper

TRIALS = 2
GRACE_SECONDS = 2.0


def join(url: str) -> Claims:
    return join_study(url, budget=TRIALS, grace_seconds=GRACE_SECONDS, heartbeat_seconds=0.2)


# ---- what is interrupted ---------------------------------------------------------------------------------------------


def work(claims: Claims) -> None:
    """The loop as a worker runs it, with everything that a trial writes."""
    while not isinstance(claim := claims.claim(), Finished):
        if isinstance(claim, Wait):
            time.sleep(0.05)
            continue
        try:
            with claim:
                with claim.transaction():
                    x = claim.trial.suggest_float("x", 0, 1)
                    claim.trial.set_user_attr("a", 1)
                if not claim.reported(1):
                    claim.trial.report(x, 1)
                claim.mark_pending("a")
                claim.commit_checkpoint("a", "sha")
                time.sleep(0.3)  # for a heartbeat
                claim.finish(TrialState.COMPLETE, x, logits=np.zeros((3, 2), np.float32))
        except ClaimLostError:
            continue


def reap(claims: Claims) -> None:
    Reaper(claims).reap()


def queue_trials(claims: Claims) -> None:
    """As a round of confirming does."""

    def queue() -> None:
        with claims.engine.begin() as session:
            lock_study(session, study_id(claims.study))
            trial_rows.enqueue(session, study_id(claims.study), [trial_rows.QueuedTrial({"x": 0.5})])

    retry(queue, 20)


def look(claims: Claims) -> None:
    looks.record_look(claims.study, {"what": "the hold-out"})


def delete(claims: Claims) -> None:
    claims.study.ask()
    url = claims.engine.url.render_as_string(hide_password=False)
    optuna.delete_study(study_name="s", storage=connection.open_storage(url, grace_seconds=GRACE_SECONDS))


def begin(claims: Claims) -> None:
    """Nothing more: the process is frozen while it opens the database or creates the study."""


def conclude(claims: Claims) -> None:
    def attempt() -> None:
        with try_conclusion_lock(claims.engine, study_id(claims.study)) as ours:
            assert ours
            claims.study.set_user_attr("conclusion", 1)

    retry(attempt, 20)


def _run(url: str, doing: Callable[[Claims], None], after: str) -> None:
    """Do it, and stop this process after the first statement that contains `after`."""
    stopped = threading.Event()

    def stop(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        if after in statement and not stopped.is_set():
            stopped.set()
            os.kill(os.getpid(), signal.SIGSTOP)

    if doing is begin:
        sa.event.listen(sa.Engine, "after_cursor_execute", stop)
    claims = join(url)
    sa.event.listen(sa.Engine, "after_cursor_execute", stop)
    try:
        doing(claims)
    except optuna.exceptions.StorageInternalError:
        if doing is not delete:  # Optuna's own call does not retry
            raise
    finally:
        claims.engine.dispose()


# ---- the tests -------------------------------------------------------------------------------------------------------


@pytest.fixture
def frozen(database: str) -> Iterator[Callable[..., Any]]:
    """Call it for a process that is frozen after a statement; woken up, it must end well."""
    processes = []

    def start(doing: Callable[[Claims], None], after: str, url: str = database) -> Any:
        process = PROCESSES.Process(target=_run, args=(url, doing, after))
        process.start()
        processes.append(process)
        until(lambda: psutil.Process(process.pid).status() == psutil.STATUS_STOPPED, 60, "the process to stop")
        return process

    yield start
    for process in processes:
        process.kill()
        process.join()


def wake(process: Any) -> None:
    """Let the process go on: it must see what happened, and end without an error."""
    os.kill(process.pid, signal.SIGCONT)
    process.join(60)
    assert process.exitcode == 0


@pytest.mark.parametrize(
    ("doing", "after"),
    [
        pytest.param(work, "INSERT INTO hpo_claims", id="claim"),
        pytest.param(work, "FOR SHARE OF c", id="row of a claim"),
        pytest.param(work, "INSERT INTO trial_params", id="parameters"),
        pytest.param(work, "INSERT INTO trial_user_attributes (trial_id, key, value_json) VALUES", id="attributes"),
        pytest.param(work, "INSERT INTO trial_intermediate_values", id="report"),
        pytest.param(work, "SET heartbeat", id="heartbeat"),
        pytest.param(work, "SET pending", id="checkpoint to be written"),
        pytest.param(work, "SET checkpoint", id="checkpoint"),
        pytest.param(work, "UPDATE trials SET state =", id="end"),
        pytest.param(work, "INSERT INTO hpo_predictions", id="predictions"),
        pytest.param(reap, "SELECT pg_advisory_xact_lock", id="reaper"),
        pytest.param(queue_trials, "INSERT INTO trials", id="queue"),
        pytest.param(look, "INSERT INTO study_user_attributes", id="look"),
        pytest.param(begin, "INSERT INTO study_user_attributes", id="create the study"),
        pytest.param(delete, "DELETE FROM trials", id="delete the study"),
    ],
)
def test_a_frozen_process_does_not_stop_the_others(
    doing: Callable[[Claims], None], after: str, database: str, frozen: Any
) -> None:
    process = frozen(doing, after)
    mine = join(database)
    work(mine)
    assert count_trials(mine.study) == Counts(complete=TRIALS)
    assert sorted(trial.number for trial in mine.study.trials) == list(range(TRIALS))
    mine.engine.dispose()
    if doing is not delete:  # which would do what it says
        wake(process)


@pytest.mark.skipif(pooler.installed() is None, reason="pgbouncer is not installed")
@pytest.mark.parametrize("ignored", ["", "options"], ids=["refuses options", "ignores options"])
@pytest.mark.parametrize(
    ("doing", "after"),
    [
        pytest.param(work, "INSERT INTO hpo_claims", id="claim"),
        pytest.param(work, "SET heartbeat", id="heartbeat"),
        pytest.param(conclude, "INSERT INTO study_user_attributes", id="conclude"),
    ],
)
def test_a_frozen_process_does_not_stop_the_others_behind_a_pooler(
    doing: Callable[[Claims], None], after: str, ignored: str, database: str, frozen: Any
) -> None:
    with pooler.pooled(database, connections=4, ignored=ignored) as url:
        process = frozen(doing, after, url)
        mine = join(url)
        work(mine)
        assert count_trials(mine.study) == Counts(complete=TRIALS)
        mine.engine.dispose()
        wake(process)


def test_a_process_frozen_while_it_creates_the_tables_does_not_stop_the_others(
    empty_database: str, frozen: Any
) -> None:
    process = frozen(begin, "CREATE TABLE hpo_claims", empty_database)
    mine = join(empty_database)
    work(mine)
    assert count_trials(mine.study) == Counts(complete=TRIALS)
    mine.engine.dispose()
    wake(process)


def test_a_process_frozen_while_it_concludes_loses_the_lock(database: str, frozen: Any) -> None:
    process = frozen(conclude, "INSERT INTO study_user_attributes")
    mine = join(database)

    def is_free() -> bool:
        with try_conclusion_lock(mine.engine, study_id(mine.study)) as ours:
            return ours

    until(is_free, 30)
    mine.engine.dispose()
    wake(process)


def test_a_lock_is_held_for_as_long_as_its_process_is_at_work(database: str) -> None:
    mine, other = join(database), join(database)
    with mine.engine.connect() as session:
        idle = session.execute(sa.text("SHOW idle_in_transaction_session_timeout")).scalar()
    assert idle == "1s"
    with try_conclusion_lock(mine.engine, study_id(mine.study)) as ours:
        assert ours
        time.sleep(2.5)  # longer than a transaction may be idle
        with try_conclusion_lock(other.engine, study_id(mine.study)) as also:
            assert not also
    for worker in (mine, other):
        worker.engine.dispose()


def test_a_busy_lock_is_waited_for_and_is_no_outage(database: str, caplog: pytest.LogCaptureFixture) -> None:
    # Long enough that a pause of a busy machine does not end the worker's session: that is an outage.
    mine = join_study(database, budget=TRIALS, grace_seconds=8)
    raw = sa.create_engine(database, poolclass=sa.NullPool)  # without our limits
    done = threading.Event()
    worker = threading.Thread(target=lambda: (work(mine), done.set()))
    with raw.begin() as session:
        lock_study(session, study_id(mine.study))
        worker.start()
        until(lambda: any(vars(record).get("action") == "lock_busy" for record in caplog.records), 30)
        assert not done.is_set()
    worker.join(60)
    assert done.is_set()
    assert not any(vars(record).get("action") == "database_unreachable" for record in caplog.records)
    mine.engine.dispose()
