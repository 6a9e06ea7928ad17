"""Workers killed at every kind of moment: the trial resumes elsewhere, bit for bit, and no file is left."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from loop_tools import (
    STEP,
    CountEpochs,
    SlowEpochs,
    StopAt,
    StopInCheckpoint,
    artifacts,
    at_work,
    command,
    outcomes,
    running_workers,
    study_of,
    tiny,
    until,
)

from sparse_evidence.hpo.database import connection, predictions
from sparse_evidence.hpo.database.claims_sql import Counts, count_trials, list_claims
from sparse_evidence.hpo.database.record import ATTEMPTS

pytestmark = pytest.mark.slow
TRIALS, EPOCHS, GRACE = 3, 4, 1.5
WHOLE = TRIALS * 2 * EPOCHS  # two stages


@pytest.fixture(scope="module")
def undisturbed(database_of_module: str, tmp_path_factory: pytest.TempPathFactory) -> dict[int, str]:
    """The outcomes of a worker without faults."""
    folder = tmp_path_factory.mktemp("undisturbed")
    tiny(folder)
    counted = CountEpochs(folder / "epochs")
    with running_workers(folder, database_of_module, 1, faults=[counted]) as (worker,):
        assert worker.end() == 0
    study = study_of(database_of_module)
    expected = outcomes(study)
    assert list(predictions.load(study)) == list(expected), "outcomes compare the predictions of every trial"
    connection.engine_of(study).dispose()
    assert counted.epochs == WHOLE
    assert artifacts(folder) == []
    assert len(expected) == TRIALS
    return expected


RUNNING = "sparse_evidence.hpo.running"
MOMENTS = {
    # name: (function, which call, after it?, epochs of the whole study that are trained twice)
    "between trials": (f"{RUNNING}.claims:Claims.claim", 2, False, 0),
    "just claimed": (f"{RUNNING}.objective:run", 1, False, 0),
    "between two suggestions": ("optuna.trial:Trial.suggest_float", 1, True, 0),
    "in the first epoch": (STEP, 2, False, 0),
    "in a later epoch": (STEP, 10, False, 0),
    "after an epoch, before its checkpoint": (f"{RUNNING}.artifacts:Checkpoints.epoch_ended", 3, False, 1),
    "marked a checkpoint as pending": (f"{RUNNING}.claims:Claim.mark_pending", 3, True, 1),
    "wrote a checkpoint that the claim does not know": (f"{RUNNING}.claims:Claim.commit_checkpoint", 3, False, 1),
    "committed a checkpoint, the old one still exists": (f"{RUNNING}.artifacts:Checkpoints.discard", 2, False, 0),
    "between stages, before the report": (f"{RUNNING}.objective:_report", 1, False, 1),
    "reporting, in the transaction": ("sparse_evidence.hpo.database.trial_rows:Batch.write", 3, False, 1),
    "just reported": (f"{RUNNING}.objective:_report", 1, True, 1),
    "just before the end is written": (f"{RUNNING}.claims:Claim.finish", 1, False, 0),
    "storing predictions, in the transaction": ("sparse_evidence.hpo.database.predictions:insert", 1, True, 0),
    "ended, its claim not yet deleted": ("sparse_evidence.hpo.database.claims_sql:delete_claim", 1, False, 0),
}  # fmt: skip


def wait_until_stale(url: str) -> None:
    """Wait until the claims of a killed worker may be taken over."""
    study = study_of(url)
    engine = connection.engine_of(study)
    until(lambda: all(row["heartbeat_age"] > GRACE for row in list_claims(engine, study)), what="the grace period")
    engine.dispose()


def finish_elsewhere(
    folder: Path, url: str, faults: list[Any], reached: Path, *, in_order: bool = False
) -> tuple[int, Any]:
    """Kill a worker where the fault stops it, and let another finish; returns the other's epochs and the study.

    With `in_order` the other starts once it may take the trial over. Otherwise it may begin with the next one, whose
    pruning then does not see the first one's report.
    """
    rescued = CountEpochs(folder / "rescued")
    with running_workers(folder, url, 1, faults=faults) as (victim,):
        until(reached.exists, what="the stop")
        victim.kill()
        killed = time.monotonic()
        if in_order:
            wait_until_stale(url)
        with running_workers(folder, url, 1, faults=[rescued]) as (other,):
            assert other.end() == 0, other.output
        assert time.monotonic() - killed < GRACE + 30
    return rescued.epochs, study_of(url)


@pytest.mark.parametrize("name", MOMENTS)
def test_a_worker_is_killed(name: str, database: str, tmp_path: Path, undisturbed: dict[int, str]) -> None:
    target, nth, after, repeated = MOMENTS[name]
    tiny(tmp_path)
    done, reached = CountEpochs(tmp_path / "done"), tmp_path / "reached"
    stop = StopAt(target, reached, nth, after)
    epochs, study = finish_elsewhere(tmp_path, database, [done, stop], reached)
    assert count_trials(study) == Counts(complete=TRIALS)
    assert outcomes(study) == undisturbed, "bit for bit"
    in_flight = 1 if name.endswith("epoch") else 0
    assert done.epochs + epochs == WHOLE + repeated + in_flight, "only what was not saved is trained again"
    assert artifacts(tmp_path) == []
    connection.engine_of(study).dispose()


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_a_worker_is_killed_when_it_prunes(
    after: bool, database: str, fresh_database: Callable[[], str], tmp_path: Path
) -> None:
    tiny(tmp_path, pruner="same_folds", trials=6)
    undisturbed_url, reached = fresh_database(), tmp_path / "reached"
    with running_workers(tmp_path, undisturbed_url, 1) as (worker,):
        assert worker.end() == 0, worker.output
    undisturbed = study_of(undisturbed_url)
    assert 0 < count_trials(undisturbed).pruned < 6
    assert len(predictions.load(undisturbed)) == 6
    stop = StopAt(f"{RUNNING}.objective:_prune", reached, 1, after)
    _, study = finish_elsewhere(tmp_path, database, [stop], reached, in_order=True)
    assert outcomes(study) == outcomes(undisturbed), "bit for bit"
    assert artifacts(tmp_path) == []
    for opened in (study, undisturbed):
        connection.engine_of(opened).dispose()


def test_a_worker_is_killed_while_it_writes_a_checkpoint(database: str, tmp_path: Path, undisturbed: Any) -> None:
    tiny(tmp_path)
    reached = tmp_path / "reached"
    _, study = finish_elsewhere(tmp_path, database, [StopInCheckpoint(reached)], reached)
    assert outcomes(study) == undisturbed
    assert artifacts(tmp_path) == []
    assert study.trials[0].user_attrs[ATTEMPTS] == 2
    connection.engine_of(study).dispose()


@pytest.mark.parametrize("harm", ["missing", "damaged"])
def test_an_unusable_checkpoint_costs_only_time(harm: str, database: str, tmp_path: Path, undisturbed: Any) -> None:
    tiny(tmp_path)
    reached = tmp_path / "reached"
    with running_workers(tmp_path, database, 1, faults=[StopAt(STEP, reached, 10)]) as (victim,):
        until(reached.exists)
        victim.kill()
    (checkpoint,) = artifacts(tmp_path)
    assert checkpoint.stat().st_mode & 0o077 == 0
    assert checkpoint.parent.stat().st_mode & 0o077 == 0
    if harm == "missing":
        checkpoint.unlink()
    else:
        content = bytearray(checkpoint.read_bytes())
        content[-5] ^= 1
        checkpoint.write_bytes(content)
    with running_workers(tmp_path, database, 1) as (other,):
        assert other.end() == 0
        assert "Trial 0 starts over because its checkpoint cannot be used" in other.output
        assert "Traceback" not in other.output
    study = study_of(database)
    assert outcomes(study) == undisturbed
    assert artifacts(tmp_path) == []
    connection.engine_of(study).dispose()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_worker_that_is_asked_to_stop_releases_its_trial_immediately(
    number: int, database: str, tmp_path: Path, undisturbed: Any
) -> None:
    tiny(tmp_path, grace=1000, heartbeat=0.2, checkpoint=1000)
    rescued, done = CountEpochs(tmp_path / "rescued"), CountEpochs(tmp_path / "done")
    with running_workers(tmp_path, database, 1, faults=[SlowEpochs(0.3), done]) as (worker,):
        until(lambda: done.epochs >= 3, what="three epochs")
        signalled = time.monotonic()
        worker.send(number)
        assert worker.end(10) == 0, worker.output
        assert time.monotonic() - signalled < 5
    study = study_of(database)
    (row,) = list_claims(connection.engine_of(study), study)
    assert (row["released"], row["checkpointed"], row["attempt"]) == (True, True, 1)
    with running_workers(tmp_path, database, 1, faults=[rescued]) as (other,):
        assert other.end() == 0, "there is no grace period to wait for"
    assert outcomes(study) == undisturbed
    assert done.epochs + rescued.epochs == WHOLE
    assert artifacts(tmp_path) == []
    connection.engine_of(study).dispose()


def test_a_second_signal_ends_a_worker_immediately(database: str, tmp_path: Path) -> None:
    tiny(tmp_path)
    done = CountEpochs(tmp_path / "done")
    with running_workers(tmp_path, database, 1, faults=[SlowEpochs(60), done]) as (worker,):
        study = at_work(database, bool)
        worker.send(signal.SIGTERM)
        time.sleep(0.3)
        assert worker.alive(), "it finishes its epoch"
        worker.send(signal.SIGTERM)
        assert worker.end(3) == 130
        connection.engine_of(study).dispose()


def test_the_command_itself_releases_its_trial(database: str, tmp_path: Path) -> None:
    """The same in a new Python: `python -m sparse_evidence.hpo worker`, as a person or a pod runs it."""
    tiny(tmp_path, epochs=2000, grace=1000, heartbeat=0.2)
    process = command(tmp_path, database, "worker", "tiny.toml", "--trials", "1", new=True)
    try:
        study = at_work(database, lambda rows: any(row["epoch"] for row in rows))
        process.send_signal(signal.SIGTERM)
        output, _ = process.communicate(timeout=10)
    finally:
        process.kill()
        process.wait()
    assert (process.returncode, output) == (0, "")
    (row,) = list_claims(connection.engine_of(study), study)
    assert row["released"]
    assert len(artifacts(tmp_path)) == 1
    connection.engine_of(study).dispose()
