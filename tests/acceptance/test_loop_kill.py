"""Workers killed at every kind of moment: the trial goes on elsewhere, to the same bits, and no file is left."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from loop_tools import (
    Counted,
    HalfWritten,
    Moment,
    Slow,
    artifacts,
    at_work,
    command,
    crew,
    outcomes,
    study_of,
    tiny,
    until,
)

from sparse_evidence.hpo.database import connection
from sparse_evidence.hpo.database.claims_sql import Counts, count_trials, list_claims
from sparse_evidence.hpo.database.record import ATTEMPTS

pytestmark = pytest.mark.slow
TRIALS, EPOCHS, GRACE = 3, 4, 1.5
WHOLE = TRIALS * 2 * EPOCHS  # two stages


@pytest.fixture(scope="module")
def undisturbed(database_of_module: str, tmp_path_factory: pytest.TempPathFactory) -> dict[int, str]:
    """What one worker that nobody disturbs leaves behind."""
    folder = tmp_path_factory.mktemp("undisturbed")
    tiny(folder)
    counted = Counted(folder / "epochs")
    with crew(folder, database_of_module, 1, before=counted) as (worker,):
        assert worker.end() == 0
    study = study_of(database_of_module)
    found = outcomes(study)
    connection.engine_of(study).dispose()
    assert counted.epochs == WHOLE
    assert artifacts(folder) == []
    assert len(found) == TRIALS
    return found


MOMENTS = {
    # name: (function, which call, after it?, epochs of the whole study that are trained a second time)
    "between trials": ("hpo.running.claims:Claims.claim", 2, False, 0),
    "just claimed": ("hpo.running.objective:run", 1, False, 0),
    "between two suggestions": ("optuna.trial:Trial.suggest_float", 1, True, 0),
    "in the first epoch": ("core.training.engine:Engine._step", 2, False, 0),
    "in a later epoch": ("core.training.engine:Engine._step", 10, False, 0),
    "after an epoch, before its checkpoint": ("hpo.running.artifacts:Checkpoints.epoch_ended", 3, False, 1),
    "announced a checkpoint": ("hpo.running.claims:Claim.announce", 3, True, 1),
    "wrote a checkpoint that the claim does not know": ("hpo.running.claims:Claim.keep", 3, False, 1),
    "kept a checkpoint, the old one is still there": ("hpo.running.artifacts:Checkpoints.discard", 2, False, 0),
    "between stages, before the report": ("hpo.running.objective:_report", 1, False, 1),
    "reporting, in the transaction": ("hpo.database.trial_rows:Batch.write", 2, False, 1),
    "just reported": ("hpo.running.objective:_report", 1, True, 1),
    "telling, before": ("hpo.running.claims:Claim.finish", 1, False, 0),
    "told, claim not yet dropped": ("hpo.running.claims:Claim._end", 1, False, 0),
}  # fmt: skip


def finished_elsewhere(folder: Path, url: str, before: Any, reached: Path) -> tuple[int, Any]:
    """Kill a worker at a moment while another waits or works; returns the other's epochs and the study."""
    rescued = Counted(folder / "rescued")
    with crew(folder, url, 1, before=before) as (victim,):
        until(reached.exists, what=f"the moment: {victim.said}")
        victim.kill()
        killed = time.monotonic()
        with crew(folder, url, 1, before=rescued) as (other,):
            assert other.end() == 0, other.said
        assert time.monotonic() - killed < GRACE + 30
    return rescued.epochs, study_of(url)


@pytest.mark.parametrize("name", MOMENTS)
def test_a_worker_is_killed(name: str, database: str, tmp_path: Path, undisturbed: dict[int, str]) -> None:
    target, nth, after, again = MOMENTS[name]
    tiny(tmp_path)
    done, reached = Counted(tmp_path / "done"), tmp_path / "reached"
    moment = Moment(target, reached, nth, after)
    epochs, study = finished_elsewhere(tmp_path, database, [done, moment], reached)
    assert count_trials(study) == Counts(complete=TRIALS)
    assert outcomes(study) == undisturbed, "to the bit"
    in_flight = 1 if name.endswith("epoch") else 0
    assert done.epochs + epochs == WHOLE + again + in_flight, "only what was not saved is trained again"
    assert artifacts(tmp_path) == []
    connection.engine_of(study).dispose()


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_a_worker_is_killed_when_it_prunes(
    after: bool, database: str, fresh_database: Callable[[], str], tmp_path: Path
) -> None:
    tiny(tmp_path, pruner="same_folds", trials=6)
    calm, reached = fresh_database(), tmp_path / "reached"
    with crew(tmp_path, calm, 1) as (worker,):
        assert worker.end() == 0, worker.said
    undisturbed = study_of(calm)
    assert 0 < count_trials(undisturbed).pruned < 6
    _, study = finished_elsewhere(
        tmp_path, database, Moment("hpo.running.objective:_prune", reached, 1, after), reached
    )
    assert outcomes(study) == outcomes(undisturbed), "to the bit"
    assert artifacts(tmp_path) == []
    for each in (study, undisturbed):
        connection.engine_of(each).dispose()


def test_a_worker_is_killed_while_it_writes_a_checkpoint(database: str, tmp_path: Path, undisturbed: Any) -> None:
    tiny(tmp_path)
    reached = tmp_path / "reached"
    _, study = finished_elsewhere(tmp_path, database, HalfWritten(reached), reached)
    assert outcomes(study) == undisturbed
    assert artifacts(tmp_path) == []
    assert study.trials[0].user_attrs[ATTEMPTS] == 2
    connection.engine_of(study).dispose()


@pytest.mark.parametrize("harm", ["missing", "damaged"])
def test_a_checkpoint_that_cannot_be_used_costs_time_only(
    harm: str, database: str, tmp_path: Path, undisturbed: Any
) -> None:
    tiny(tmp_path)
    reached = tmp_path / "reached"
    with crew(tmp_path, database, 1, before=Moment("core.training.engine:Engine._step", reached, 10)) as (victim,):
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
    with crew(tmp_path, database, 1) as (other,):
        assert other.end() == 0
        assert "Trial 0 starts over, its checkpoint cannot be used" in other.said
        assert "Traceback" not in other.said
    study = study_of(database)
    assert outcomes(study) == undisturbed
    assert artifacts(tmp_path) == []
    connection.engine_of(study).dispose()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_worker_told_to_stop_hands_back_at_once(number: int, database: str, tmp_path: Path, undisturbed: Any) -> None:
    tiny(tmp_path, grace=1000, heartbeat=0.2, checkpoint=1000)
    rescued, done = Counted(tmp_path / "rescued"), Counted(tmp_path / "done")
    with crew(tmp_path, database, 1, before=[Slow(0.3), done]) as (worker,):
        until(lambda: done.epochs >= 3, what="three epochs")
        asked = time.monotonic()
        worker.send(number)
        assert worker.end(10) == 0, worker.said
        assert time.monotonic() - asked < 5
    study = study_of(database)
    (row,) = list_claims(connection.engine_of(study), study)
    assert (row["released"], row["checkpointed"], row["attempt"]) == (True, True, 1)
    with crew(tmp_path, database, 1, before=rescued) as (other,):
        assert other.end() == 0, "no grace to wait for"
    assert outcomes(study) == undisturbed
    assert done.epochs + rescued.epochs == WHOLE
    assert artifacts(tmp_path) == []
    connection.engine_of(study).dispose()


def test_a_second_signal_ends_at_once(database: str, tmp_path: Path) -> None:
    tiny(tmp_path)
    done = Counted(tmp_path / "done")
    with crew(tmp_path, database, 1, before=[Slow(60), done]) as (worker,):
        study = at_work(database, bool)
        worker.send(signal.SIGTERM)
        time.sleep(0.3)
        assert worker.alive(), "it ends its epoch"
        worker.send(signal.SIGTERM)
        assert worker.end(3) == -signal.SIGTERM
        connection.engine_of(study).dispose()


def test_the_command_itself_drains(database: str, tmp_path: Path) -> None:
    """The same, without a forked stand-in: `python -m sparse_evidence.hpo worker`, as a person or a pod runs it."""
    tiny(tmp_path, epochs=2000, grace=1000, heartbeat=0.2)
    process = command(tmp_path, database, "worker", "tiny.toml", "--trials", "1")
    try:
        study = at_work(database, lambda rows: any(row["epoch"] for row in rows))
        process.send_signal(signal.SIGTERM)
        said, _ = process.communicate(timeout=10)
    finally:
        process.kill()
        process.wait()
    assert (process.returncode, said) == (0, "")
    (row,) = list_claims(connection.engine_of(study), study)
    assert row["released"]
    assert len(artifacts(tmp_path)) == 1
    connection.engine_of(study).dispose()
