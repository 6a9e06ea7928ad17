"""Postgres stopped, connections killed, workers cut off or killed by their trials: nothing is lost or done twice."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import optuna
import pytest
import sqlalchemy as sa
from claim_tools import claimed, join_study
from loop_tools import (
    CountEpochs,
    KillOnTrial,
    RaiseInEpochs,
    SlowEpochs,
    Worker,
    artifacts,
    at_work,
    command,
    outcomes,
    running_workers,
    study_of,
    tiny,
    until,
)
from optuna.trial import TrialState
from postgres_proxy import Proxy

from benchmarks import pooler
from sparse_evidence.hpo.database import connection
from sparse_evidence.hpo.database.claims_sql import Counts, count_trials, list_claims
from sparse_evidence.hpo.database.optuna_storage import unwrap
from sparse_evidence.hpo.database.record import ATTEMPTS, REASON
from sparse_evidence.hpo.running.claims import Wait

pytestmark = pytest.mark.slow


def finish(workers: list[Worker], seconds: float = 120) -> None:
    for worker in workers:
        assert worker.end(seconds) == 0, worker.output
        assert "Traceback" not in worker.output


def exactly(url: str, trials: int) -> Any:
    """The study, which has exactly that many complete trials, numbered without gaps."""
    study = study_of(url)
    assert count_trials(study) == Counts(complete=trials)
    assert sorted(trial.number for trial in study.trials) == list(range(trials))
    return study


# ---- 32 workers ------------------------------------------------------------------------------------------------------


def test_32_workers_start_together_on_an_empty_database(empty_database: str, tmp_path: Path) -> None:
    tiny(tmp_path, trials=200, epochs=1, heartbeat=5, grace=60, checkpoint=5)
    done = CountEpochs(tmp_path / "done")
    with running_workers(tmp_path, empty_database, 32, faults=[done]) as many:
        finish(many, 400)
        outputs = {worker.output for worker in many}
    study = exactly(empty_database, 200)
    assert done.epochs == 200 * 2, "none was trained twice"
    assert outputs == {""}, "no error in any log"
    before = outcomes(study)
    with running_workers(tmp_path, empty_database, 8, faults=[done]) as late:
        finish(late)
    assert done.epochs == 200 * 2, "workers that join a finished study run nothing"
    assert outcomes(study_of(empty_database)) == before
    assert artifacts(tmp_path) == []
    connection.engine_of(study).dispose()


@pytest.mark.skipif(pooler.installed() is None, reason="pgbouncer is not installed")
def test_eight_workers_share_three_connections_of_a_pooler(empty_database: str, tmp_path: Path) -> None:
    tiny(tmp_path, trials=40, grace=5, heartbeat=0.5)
    with (
        pooler.pooled(empty_database, connections=3) as url,
        running_workers(tmp_path, url, 8, faults=[SlowEpochs(0.1)]) as workers,
    ):
        study = at_work(url, lambda claims: len(claims) > 2)
        for worker in workers[:2]:
            worker.kill()
        finish(workers[2:])
        exactly(url, 40)
        connection.engine_of(study).dispose()


# ---- the database ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seconds", [0, 5, 15])  # after 13 s a worker waits for as long as it ever does
def test_postgres_stops_under_four_workers(seconds: int, own_server: Any, tmp_path: Path) -> None:
    server, url = own_server
    tiny(tmp_path, trials=24, grace=3, heartbeat=0.5)
    done = CountEpochs(tmp_path / "done")
    with running_workers(tmp_path, url, 4, faults=[done, SlowEpochs(0.05)]) as four:
        until(lambda: done.epochs > 10, 60)
        server.stop()
        with running_workers(tmp_path, url, 1, faults=[done]) as late:
            time.sleep(seconds)  # the outage
            server.start()
            finish(four + late)
    study = exactly(url, 24)
    assert done.epochs == 24 * 2 * 4, "no live worker lost its trial"
    assert all(ATTEMPTS not in trial.user_attrs for trial in study.trials)
    assert artifacts(tmp_path) == []
    connection.engine_of(study).dispose()


def test_a_trial_that_was_claimed_just_before_postgres_stopped_is_not_taken_over(own_server: Any) -> None:
    server, url = own_server
    mine, other = (join_study(url, budget=1, grace_seconds=3, heartbeat_seconds=0.5) for _ in range(2))
    stopped, seen = threading.Event(), threading.Event()

    def stop(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        if "INSERT INTO hpo_claims" in statement and not stopped.is_set():
            server.stop()
            stopped.set()

    def work() -> None:
        with claimed(mine) as claim:
            assert seen.wait(60)
            claim.finish(TrialState.COMPLETE, 0.5)

    sa.event.listen(unwrap(mine.study).immediate, "after_cursor_execute", stop)
    worker = threading.Thread(target=work)
    worker.start()
    assert stopped.wait(60)
    time.sleep(6)  # the outage: twice the grace period
    server.start()
    beginning = time.monotonic()
    while time.monotonic() < beginning + 6:
        assert isinstance(other.claim(), Wait)
        time.sleep(0.1)
    seen.set()
    worker.join(60)
    (trial,) = mine.study.trials
    assert trial.state == TrialState.COMPLETE
    assert ATTEMPTS not in trial.user_attrs
    for claims in (mine, other):
        claims.engine.dispose()


@pytest.mark.parametrize("how", [("worker", "--slots", "2"), ("run", "--workers", "2")], ids=["worker", "run"])
def test_a_study_deleted_under_its_workers_is_not_created_again(
    how: tuple[str, ...], database: str, tmp_path: Path
) -> None:
    tiny(tmp_path, trials=12, epochs=3000, grace=2, heartbeat=0.3)
    verb, *options = how
    parent = command(tmp_path, database, verb, "tiny.toml", *options)
    try:
        study = at_work(database, lambda rows: len(rows) == 2)
        (first, _) = list_claims(connection.engine_of(study), study)
        optuna.delete_study(study_name="tiny", storage=database)
        os.kill(first["pid"], signal.SIGKILL)  # its slot starts another process
        output, _ = parent.communicate(timeout=120)
    finally:
        parent.kill()
    assert parent.returncode == 4, output
    assert output.count("The study was deleted or renamed while this process worked on it") == 2
    assert "Traceback" not in output
    assert "taken over" not in output
    assert connection.open_storage(database).get_all_studies() == []
    connection.engine_of(study).dispose()


def test_connections_are_killed_twice_a_second_for_twenty_seconds(database: str, server: str, tmp_path: Path) -> None:
    tiny(tmp_path, trials=1000, grace=5, heartbeat=0.5)
    done = CountEpochs(tmp_path / "done")
    engine = sa.create_engine(server, isolation_level="AUTOCOMMIT", poolclass=sa.NullPool)
    kill = sa.text("SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE datname = :name")
    killed = 0
    with (
        running_workers(tmp_path, database, 4, faults=[done, SlowEpochs(0.02)]) as four,
        engine.connect() as session,
    ):
        until(lambda: done.epochs > 10, 60)
        end = time.monotonic() + 20
        while time.monotonic() < end:
            killed += session.execute(kill, {"name": sa.make_url(database).database}).scalar_one()
            time.sleep(0.5)
        for worker in four:
            assert worker.alive(), worker.output
        for worker in four:
            worker.send(signal.SIGTERM)
        finish(four)
    assert killed > 100
    done_so_far = count_trials(study_of(database)).finished
    with running_workers(
        tmp_path, database, 2, "worker", "tiny.toml", "--trials", str(done_so_far + 6), faults=[done]
    ) as two:
        finish(two)
    study = exactly(database, done_so_far + 6)
    assert done.epochs == (done_so_far + 6) * 2 * 4, "no trial was trained twice"
    assert all(ATTEMPTS not in trial.user_attrs for trial in study.trials)
    connection.engine_of(study).dispose()


# ---- cut off ---------------------------------------------------------------------------------------------------------


def test_a_worker_cut_off_for_too_long_loses_its_trial_and_continues(
    database: str, proxy: Proxy, tmp_path: Path
) -> None:
    tiny(tmp_path, trials=6, grace=2)
    slow, quick = CountEpochs(tmp_path / "slow"), CountEpochs(tmp_path / "quick")
    with running_workers(tmp_path, proxy.url, 1, faults=[slow, SlowEpochs(0.4)]) as (far,):
        until(lambda: slow.epochs >= 2, 60)
        with running_workers(tmp_path, database, 1, faults=[quick]) as (near,):
            until(lambda: quick.epochs >= 1, 60)
            proxy.cut()
            study = study_of(database)
            until(lambda: any(trial.user_attrs.get(ATTEMPTS) == 2 for trial in study.trials), 60, "the take-over")
            until(
                lambda: any(trial.user_attrs.get(ATTEMPTS) and trial.state.is_finished() for trial in study.trials), 60
            )
            frozen = outcomes(study)
            proxy.restore()
            assert far.end() == 0, far.output
            assert near.end() == 0, near.output
            assert "was taken over by another worker" in far.output
    study = exactly(database, 6)
    after = outcomes(study)
    finished_before = {n for n, text in frozen.items() if '"COMPLETE"' in text}
    assert {n: after[n] for n in finished_before} == {n: frozen[n] for n in finished_before}, (
        "late writes change nothing"
    )
    assert artifacts(tmp_path) == []
    connection.engine_of(study).dispose()


def test_a_worker_cut_off_for_less_than_the_grace_period_keeps_its_trial(
    database: str, proxy: Proxy, tmp_path: Path
) -> None:
    tiny(tmp_path, trials=2, grace=20)
    done = CountEpochs(tmp_path / "done")
    with (
        running_workers(tmp_path, proxy.url, 1, faults=[done, SlowEpochs(0.2)]) as far,
        running_workers(tmp_path, database, 1, faults=[done]) as near,
    ):
        until(lambda: done.epochs >= 3, 60)
        proxy.cut()
        time.sleep(3)  # the outage
        proxy.restore()
        finish(far + near)
    assert done.epochs == 2 * 2 * 4
    connection.engine_of(exactly(database, 2)).dispose()


# ---- failures --------------------------------------------------------------------------------------------------------


def test_a_trial_that_kills_its_process_ends_infeasible_and_the_budget_is_exact(database: str, tmp_path: Path) -> None:
    tiny(tmp_path, trials=8, grace=1.0, attempts=3)
    kills = 0
    deadline = time.monotonic() + 120
    alive = [Worker(tmp_path, database, faults=[KillOnTrial(3)]) for _ in range(2)]
    try:
        while alive:
            assert time.monotonic() < deadline
            for worker in list(alive):
                if worker.alive():
                    continue
                alive.remove(worker)
                if worker.end() == -signal.SIGKILL:
                    kills += 1
                    alive.append(Worker(tmp_path, database, faults=[KillOnTrial(3)]))
            time.sleep(0.05)
    finally:
        for worker in alive:
            worker.kill()
    study = study_of(database)
    assert kills == 3
    assert count_trials(study) == Counts(complete=7, infeasible=1)
    assert study.trials[3].user_attrs[REASON] == "attempts exhausted: its worker died or failed 3 times"
    connection.engine_of(study).dispose()


def test_a_trial_that_runs_out_of_memory_is_infeasible_and_its_process_ends(database: str, tmp_path: Path) -> None:
    tiny(tmp_path, trials=2)
    with running_workers(tmp_path, database, 1, faults=[RaiseInEpochs(MemoryError)]) as (worker,):
        assert worker.end() == 75, worker.output
    study = study_of(database)
    assert count_trials(study) == Counts(infeasible=1)
    assert study.trials[0].user_attrs[REASON].startswith("out of memory")
    with running_workers(tmp_path, database, 1) as (worker,):
        assert worker.end() == 0
    assert count_trials(study) == Counts(complete=1, infeasible=1)
    connection.engine_of(study).dispose()


def test_a_stalled_trial_goes_to_another_worker(database: str, tmp_path: Path) -> None:
    tiny(tmp_path, trials=1, stall=1.5, grace=1000)
    with running_workers(tmp_path, database, 1, faults=[SlowEpochs(1000)]) as (stuck,):
        assert stuck.end(60) == 76, stuck.output
        assert "finished no epoch for 2 s" in stuck.output
    with running_workers(tmp_path, database, 1) as (worker,):
        assert worker.end() == 0
    study = exactly(database, 1)
    assert study.trials[0].user_attrs[ATTEMPTS] == 2
    connection.engine_of(study).dispose()


def test_an_error_in_training_is_reported_and_the_trial_retried_elsewhere(database: str, tmp_path: Path) -> None:
    tiny(tmp_path, trials=1, grace=1000)
    with running_workers(tmp_path, database, 1, faults=[RaiseInEpochs(ZeroDivisionError)]) as (worker,):
        assert worker.end() == 1
        assert "Trial 0 failed (ZeroDivisionError) and was released" in worker.output
    with running_workers(tmp_path, database, 1) as (worker,):
        assert worker.end() == 0, "immediately"
    connection.engine_of(exactly(database, 1)).dispose()


# ---- not the same study ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "difference"),
    [
        ({"data_seed": 1}, "data.seed is 1 here and 0 in the study"),
        ({"fold_seed": 1}, "split.seed is 1 here and 0 in the study"),
        ({"k": 3}, "model.k_retrieved is 3 here and 2 in the study"),
        ({"epochs": 5}, "training.epochs is 5 here and 4 in the study"),
    ],
)
def test_a_worker_with_another_definition_refuses_and_names_the_difference(
    change: dict[str, int], difference: str, database: str, tmp_path: Path
) -> None:
    tiny(tmp_path, trials=1)
    with running_workers(tmp_path, database, 1) as (worker,):
        assert worker.end() == 0
    study = study_of(database)
    before = outcomes(study), study.user_attrs
    tiny(tmp_path, trials=2, **change)
    with running_workers(tmp_path, database, 1) as (worker,):
        assert worker.end() == 4
        assert difference in worker.output
        lines = [line for line in worker.output.splitlines() if not line.startswith("embedding with ")]
        assert len(lines) == 1, "one sentence"
    assert (outcomes(study), study_of(database).user_attrs) == before
    connection.engine_of(study).dispose()


def test_a_worker_with_another_data_file_refuses(database: str, tmp_path: Path) -> None:
    rows = ["post_id,post,criterion,label"]
    rows += [
        f'{i},"A sentence about {i}. Another one {"yes" if i % 3 else "no"}.",angry,{int(i % 3 == 0)}'
        for i in range(40)
    ]
    table = tmp_path / "posts.csv"
    table.write_text("\n".join(rows))
    path = tiny(tmp_path, trials=1, epochs=1)
    made_up = 'source = "synthetic"\nposts = 60\ncriteria = 2\nsentences_mean = 4\nseed = 0'
    assert made_up in path.read_text()
    path.write_text(path.read_text().replace(made_up, 'source = "pairs"\npath = "posts.csv"'))
    with running_workers(tmp_path, database, 1) as (worker,):
        assert worker.end() == 0, worker.output
    study = study_of(database)
    before = outcomes(study)
    table.write_text("\n".join(rows).replace("about 7", "about seven"))
    with running_workers(tmp_path, database, 1, "worker", "tiny.toml", "--trials", "2") as (worker,):
        assert worker.end() == 4
        assert "the data differ" in worker.output
    assert outcomes(study) == before
    connection.engine_of(study).dispose()
