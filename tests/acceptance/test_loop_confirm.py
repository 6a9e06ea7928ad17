"""Confirming with real workers: killed, stopped, repeated; always the planned trials, bit for bit."""

from __future__ import annotations

import json
import random
import signal
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import optuna
import pytest
from loop_tools import (
    EPOCH,
    CountEpochs,
    RaiseInEpochs,
    SlowEpochs,
    StopAt,
    artifacts,
    at_work,
    command,
    outcomes,
    running_workers,
    study_of,
    tiny,
    until,
)

from sparse_evidence.core.errors import NonFiniteLossError, UserError
from sparse_evidence.hpo.database import connection, record
from sparse_evidence.hpo.database.claims_sql import Counts, count_trials

pytestmark = pytest.mark.slow
SETTINGS: dict[str, Any] = {"trials": 4, "epochs": 3, "leaders": 3, "splits": 2}
CHILD = "tiny/confirm/4-trials-3-leaders-2-splits"
ROUNDS = [5, 5]
"""Trials per round: four configurations, all of which are members of the ensemble, and the baselines."""
RUNNING = "sparse_evidence.hpo.running"


def everything(url: str) -> tuple[Any, ...]:
    """All that is stored for a study and the study that confirms it."""
    study, child = study_of(url), study_of(url, CHILD)
    entries = {trial.number: trial.user_attrs[record.CONFIRM] for trial in child.trials}
    floors = [trial.user_attrs.get(record.BASELINES) for trial in child.trials]
    found = (outcomes(study), outcomes(child), entries, floors, record.ensemble(study), record.confirmed(study))
    for opened in (study, child):
        connection.engine_of(opened).dispose()
    return found


def is_confirming(url: str) -> bool:
    """Whether the study that confirms the other one exists."""
    with suppress(UserError):
        connection.engine_of(study_of(url, CHILD)).dispose()
        return True
    return False


@pytest.fixture(scope="module")
def undisturbed(database_of_module: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, ...]:
    """What a worker without faults stores."""
    folder = tmp_path_factory.mktemp("undisturbed")
    tiny(folder, **SETTINGS)
    with running_workers(folder, database_of_module, 1) as (worker,):
        assert worker.end() == 0, worker.output
    assert artifacts(folder) == []
    return everything(database_of_module)


def test_a_study_is_confirmed(undisturbed: tuple[Any, ...]) -> None:
    parent, child, entries, baselines, ensemble, confirmed = undisturbed
    assert (len(parent), len(child)) == (4, sum(ROUNDS))
    assert all(json.loads(trial)[0] == "COMPLETE" for trial in child.values())
    assert [entry["split"] for entry in entries.values()] == [0] * 5 + [1] * 5
    assert sum(found is not None for found in baselines) == 2
    for number, entry in entries.items():
        if "trial" in entry:
            original, again = json.loads(parent[entry["trial"]]), json.loads(child[number])
            assert again[2] == original[2], "the same parameters"
            assert again[4] == original[4], "the same configuration"
            assert again[5] != original[5], "another seed"
            assert again[7]["epochs"] == entry["epochs"] == original[7]["best_epoch"]
            assert again[8] is not None, "its predictions are kept"
    assert set(ensemble["members"]) == {0, 1, 2, 3}
    assert set(confirmed["scores"]) >= {"ensemble", "default", "linear"}
    assert confirmed["winner"] in confirmed["scores"]
    winner = confirmed["scores"][confirmed["winner"]]["mean"]
    gains = [gain for gain in (confirmed["over_baseline"], *confirmed["over_others"]) if gain is not None]
    assert {gain["name"] for gain in gains} | {confirmed["winner"]} >= {"linear", "retrieval", "zero_shot"}
    for gain in gains:
        assert gain["value"] == pytest.approx(winner - confirmed["scores"][gain["name"]]["mean"])
    assert (confirmed["study"], confirmed["finished"], confirmed["splits"]) == (CHILD, 4, 2)


MOMENTS = {
    # name: (function, which call, after it?)
    "choosing the ensemble": (f"{RUNNING}.conclusions:_ensemble", 1, False),
    "chose the ensemble": (f"{RUNNING}.conclusions:conclude_search", 1, True),
    "queueing the first round, in the transaction": ("sparse_evidence.hpo.database.trial_rows:enqueue", 2, True),
    "queued the first round": (f"{RUNNING}.confirming:open_confirming", 1, True),
    "in an epoch": (EPOCH, 4 * 2 * 3 + 2, False),
    "scoring the baselines": (f"{RUNNING}.objective:_baselines", 1, False),
    "before the end is written": (f"{RUNNING}.claims:Claim.finish", 4 + 2, False),
    "queueing the second round, in the transaction": ("sparse_evidence.hpo.database.trial_rows:enqueue", 3, True),
    "queued the second round": (f"{RUNNING}.confirming:Confirming.advance", 1, True),
    "choosing the winner": (f"{RUNNING}.conclusions:_confirmed", 1, True),
}


@pytest.mark.parametrize("name", MOMENTS)
def test_a_worker_is_killed(name: str, database: str, tmp_path: Path, undisturbed: tuple[Any, ...]) -> None:
    target, nth, after = MOMENTS[name]
    tiny(tmp_path, **SETTINGS)
    reached = tmp_path / "reached"
    with running_workers(tmp_path, database, 1, faults=[StopAt(target, reached, nth, after)]) as (victim,):
        until(reached.exists, what="the stop")
        victim.kill()
    with running_workers(tmp_path, database, 1) as (other,):
        assert other.end() == 0, other.output
    assert everything(database) == undisturbed
    assert artifacts(tmp_path) == []


def test_two_workers_are_killed_at_random_moments(database: str, tmp_path: Path, undisturbed: tuple[Any, ...]) -> None:
    tiny(tmp_path, **SETTINGS, attempts=20)
    generator = random.Random(0)
    for _ in range(4):
        with running_workers(tmp_path, database, 2, faults=[SlowEpochs(0.1)]) as workers:
            until(lambda: is_confirming(database), what="confirming")
            time.sleep(generator.uniform(0.1, 1.0))
            for worker in workers:
                worker.send(signal.SIGKILL)
    with running_workers(tmp_path, database, 2) as workers:
        assert [worker.end() for worker in workers] == [0, 0]
    assert everything(database) == undisturbed
    assert artifacts(tmp_path) == []


def test_a_worker_that_is_asked_to_stop_releases_its_trial(
    database: str, tmp_path: Path, undisturbed: tuple[Any, ...]
) -> None:
    tiny(tmp_path, **SETTINGS, grace=1000)
    done = CountEpochs(tmp_path / "done")
    with running_workers(tmp_path, database, 1, faults=[done, SlowEpochs(0.2)]) as (worker,):
        until(lambda: done.epochs >= 4 * 2 * 3 + 2, 60, what="an epoch of confirming")
        worker.send(signal.SIGTERM)
        assert worker.end(10) == 0, worker.output
    child = study_of(database, CHILD)
    assert count_trials(child).running == 1
    connection.engine_of(child).dispose()
    with running_workers(tmp_path, database, 2) as workers:
        assert [other.end() for other in workers] == [0, 0], "there is no grace period to wait for"
    assert everything(database) == undisturbed


def test_a_configuration_that_kills_its_process_drops_out(database: str, tmp_path: Path) -> None:
    """A trial without attempts left is infeasible; the others are confirmed without it."""
    tiny(tmp_path, **SETTINGS, attempts=1, grace=1, heartbeat=0.2)
    reached = tmp_path / "reached"
    with running_workers(tmp_path, database, 1, faults=[StopAt(EPOCH, reached, 4 * 2 * 3 + 1)]) as (victim,):
        until(reached.exists, what="the stop")
        victim.kill()
    with running_workers(tmp_path, database, 1) as (other,):
        assert other.end() == 0, other.output
    study, child = study_of(database), study_of(database, CHILD)
    assert count_trials(child) == Counts(complete=sum(ROUNDS) - 2, infeasible=1)
    confirmed = record.confirmed(study)
    assert confirmed is not None
    dropped = child.trials[0].user_attrs[record.CONFIRM]["trial"]
    assert str(dropped) not in confirmed["scores"]
    assert dropped not in confirmed["members"]
    assert f"trial {dropped} dropped out (attempts exhausted" in confirmed["reason"]
    for opened in (study, child):
        connection.engine_of(opened).dispose()


@pytest.mark.parametrize("diverges", [False, True])
def test_a_study_with_one_trial_ends_well(diverges: bool, database: str, tmp_path: Path) -> None:
    tiny(tmp_path, **SETTINGS | {"trials": 1})
    faults = [RaiseInEpochs(NonFiniteLossError)] if diverges else []
    with running_workers(tmp_path, database, 1, faults=faults) as (worker,):
        assert worker.end() == 0, worker.output
    study = study_of(database)
    confirmed = record.confirmed(study)
    if diverges:
        assert (count_trials(study).infeasible, record.ensemble(study), confirmed) == (1, None, None)
    else:
        assert confirmed is not None
        assert confirmed["study"] == "tiny/confirm/1-trials-1-leaders-2-splits"
        assert confirmed["scores"]["default"] == confirmed["scores"]["0"]
    connection.engine_of(study).dispose()
    code, output = hpo(tmp_path, database, "confirm", "tiny.toml")
    expected = (2, "has no complete trial yet") if diverges else (0, "nothing to do")
    assert (code, expected[1] in output) == (expected[0], True), output


# --- the command line -------------------------------------------------------------------------------------------------


def hpo(folder: Path, url: str, *arguments: str, new: bool = False) -> tuple[int, str]:
    process = command(folder, url, *arguments, new=new, COLUMNS="200")
    output, _ = process.communicate(timeout=120)
    assert "Traceback" not in output
    return process.returncode, output


def test_run_confirms_once_and_again_when_trials_are_added(
    database: str, tmp_path: Path, undisturbed: tuple[Any, ...]
) -> None:
    tiny(tmp_path, **SETTINGS)
    code, output = hpo(tmp_path, database, "run", "tiny.toml", "--workers", "2")
    assert (code, "confirming: 10 of 10 trained" in output) == (0, True), output
    assert everything(database) == undisturbed
    code, output = hpo(tmp_path, database, "run", "tiny.toml")
    assert (code, "nothing to do: 4 trials were requested and 4 are finished" in output) == (0, True)
    assert "confirming" not in hpo(tmp_path, database, "status", "tiny.toml")[1]
    assert everything(database) == undisturbed
    assert hpo(tmp_path, database, "run", "tiny.toml", "--trials", "5", "--workers", "1")[0] == 0
    study = study_of(database)
    confirmed = record.confirmed(study)
    assert confirmed is not None
    assert (confirmed["study"], confirmed["finished"]) == ("tiny/confirm/5-trials-3-leaders-2-splits", 5)
    connection.engine_of(study).dispose()


def test_a_deleted_study_leaves_nothing_that_another_of_its_name_could_take_for_its_own(
    database: str, tmp_path: Path
) -> None:
    """Deleted as the dashboard does it, without the study that confirms it; the new one searches other values."""
    tiny(tmp_path, **SETTINGS)
    assert hpo(tmp_path, database, "run", "tiny.toml", "--workers", "1")[0] == 0
    study = study_of(database)
    optuna.delete_study(study_name="tiny", storage=database)
    connection.engine_of(study).dispose()
    tiny(tmp_path, **SETTINGS | {"epochs": 2})
    assert hpo(tmp_path, database, "run", "tiny.toml", "--workers", "1")[0] == 0
    study, child = study_of(database), study_of(database, f"{CHILD}-2")
    confirmed = record.confirmed(study)
    assert confirmed is not None
    assert confirmed["study"] == f"{CHILD}-2"
    assert len(child.trials) == sum(ROUNDS)
    for opened in (study, child):
        connection.engine_of(opened).dispose()


def test_confirm_does_later_what_run_did_not(database: str, tmp_path: Path, undisturbed: tuple[Any, ...]) -> None:
    tiny(tmp_path, **SETTINGS | {"leaders": 0})
    assert hpo(tmp_path, database, "confirm", "tiny.toml", "--leaders", "3")[0] == 2
    with running_workers(tmp_path, database, 1) as (worker,):
        assert worker.end() == 0, worker.output
    study = study_of(database)
    assert (record.ensemble(study), record.confirmed(study)) == (undisturbed[4], None)
    connection.engine_of(study).dispose()
    code, output = hpo(tmp_path, database, "confirm", "tiny.toml")
    assert (code, output.count("\n"), "leaders is 0" in output) == (2, 1, True)
    code, output = hpo(tmp_path, database, "confirm", "tiny.toml", "--leaders", "3", "--workers", "1", new=True)
    assert (code, undisturbed[5]["reason"] in output) == (0, True), output
    assert everything(database) == undisturbed
    code, output = hpo(tmp_path, database, "confirm", "tiny.toml", "--leaders", "3")
    assert (code, "nothing to do: 4 trials are finished, and their result is confirmed" in output) == (0, True)


def test_a_study_that_is_partly_finished_is_confirmed_and_keeps_its_budget(database: str, tmp_path: Path) -> None:
    tiny(tmp_path, **SETTINGS | {"trials": 6}, grace=1000)
    with running_workers(tmp_path, database, 1, faults=[SlowEpochs(0.2)]) as (worker,):
        study = at_work(database, lambda rows: any(row["trial"] == 2 for row in rows))
        worker.send(signal.SIGTERM)
        assert worker.end(20) == 0
    code, output = hpo(tmp_path, database, "confirm", "tiny.toml", "--workers", "2", "--splits", "1")
    assert (code, "trained again on 1 fresh split" in output) == (0, True), output
    confirmed = record.confirmed(study)
    assert confirmed is not None
    assert (confirmed["finished"], confirmed["splits"]) == (2, 1)
    assert (count_trials(study).complete, record.requested(study)) == (2, 6)
    connection.engine_of(study).dispose()
