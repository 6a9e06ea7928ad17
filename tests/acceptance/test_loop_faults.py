"""Postgres stopped, connections killed, workers cut off, trials that kill: nothing is lost, nothing done twice."""

from __future__ import annotations

import shutil
import signal
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from loop_tools import (
    Counted,
    Poison,
    Proxy,
    Raising,
    Slow,
    Worker,
    artifacts,
    crew,
    outcomes,
    study_of,
    tiny,
    until,
)

from sparse_evidence.hpo.database import connection, embedded
from sparse_evidence.hpo.database.claims_sql import Counts, count_trials
from sparse_evidence.hpo.database.record import ATTEMPTS, REASON

pytestmark = pytest.mark.slow


@pytest.fixture
def own_server() -> Iterator[tuple[embedded.Server, str]]:
    """A server that may be stopped and started without disturbing other tests."""
    home = Path(tempfile.mkdtemp(prefix="hpo-tests-"))
    home.chmod(0o711)
    options = "-c fsync=off"
    with embedded.running(home, options) as url:
        yield embedded.Server(home, options), url
    shutil.rmtree(home)


def finished(crewed: list[Worker], seconds: float = 120) -> None:
    for worker in crewed:
        assert worker.end(seconds) == 0, worker.said
        assert "Traceback" not in worker.said


def exactly(url: str, trials: int) -> Any:
    """The study, with exactly that many complete trials, each told once, each by one worker alone."""
    study = study_of(url)
    assert count_trials(study) == Counts(complete=trials)
    assert sorted(trial.number for trial in study.trials) == list(range(trials))
    return study


# ---- many ------------------------------------------------------------------------------------------------------------


def test_32_workers_start_at_once_on_an_empty_database(empty_database: str, tmp_path: Path) -> None:
    tiny(tmp_path, trials=200, epochs=1, heartbeat=5, grace=60, checkpoint=5)
    done = Counted(tmp_path / "done")
    with crew(tmp_path, empty_database, 32, before=done) as many:
        finished(many, 400)
        said = {worker.said for worker in many}
    study = exactly(empty_database, 200)
    assert done.epochs == 200 * 2, "none was trained twice"
    assert said == {""}, "no error in any log"
    before = outcomes(study)
    with crew(tmp_path, empty_database, 8, before=done) as late:
        finished(late)
    assert done.epochs == 200 * 2, "who joins a finished study runs nothing"
    assert outcomes(study_of(empty_database)) == before
    assert artifacts(tmp_path) == []
    connection.engine_of(study).dispose()


# ---- the database ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("away", [0, 5, 30])
def test_postgres_goes_away_under_four_workers(away: int, own_server: Any, tmp_path: Path) -> None:
    server, url = own_server
    tiny(tmp_path, trials=24, grace=3, heartbeat=0.5)
    done = Counted(tmp_path / "done")
    with crew(tmp_path, url, 4, before=[done, Slow(0.05)]) as four:
        until(lambda: done.epochs > 10, 60)
        server.stop()
        time.sleep(away)
        server.start()
        finished(four)
    study = exactly(url, 24)
    assert done.epochs == 24 * 2 * 4, "no live worker lost its trial"
    assert all(ATTEMPTS not in trial.user_attrs for trial in study.trials)
    assert artifacts(tmp_path) == []
    connection.engine_of(study).dispose()


def test_connections_are_killed_every_second_for_a_minute(database: str, server: str, tmp_path: Path) -> None:
    tiny(tmp_path, trials=1000, grace=5, heartbeat=0.5)
    done = Counted(tmp_path / "done")
    engine = sa.create_engine(server, isolation_level="AUTOCOMMIT", poolclass=sa.NullPool)
    kill = sa.text("SELECT count_trials(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE datname = :name")
    killed = 0
    with crew(tmp_path, database, 4, before=[done, Slow(0.02)]) as four, engine.connect() as connection:
        until(lambda: done.epochs > 10, 60)
        end = time.monotonic() + 60
        while time.monotonic() < end:
            killed += connection.execute(kill, {"name": sa.make_url(database).database}).scalar_one()
            time.sleep(1)
        for worker in four:
            assert worker.alive(), worker.said
        for worker in four:
            worker.send(signal.SIGTERM)
        finished(four)
    assert killed > 200
    done_so_far = count_trials(study_of(database)).finished
    with crew(tmp_path, database, 2, "worker", "tiny.toml", "--trials", str(done_so_far + 6), before=done) as two:
        finished(two)
    study = exactly(database, done_so_far + 6)
    assert done.epochs == (done_so_far + 6) * 2 * 4, "no trial was trained twice"
    assert all(ATTEMPTS not in trial.user_attrs for trial in study.trials)
    connection.engine_of(study).dispose()


# ---- cut off ---------------------------------------------------------------------------------------------------------


def through(url: str, port: int) -> str:
    return sa.make_url(url).set(host="127.0.0.1", port=port, query={}).render_as_string(hide_password=False)


@pytest.fixture
def proxy(database: str) -> Iterator[tuple[Proxy, str]]:
    """A TCP way to the test's database that can be cut."""
    made = Proxy(Path(str(sa.make_url(database).query["host"])) / ".s.PGSQL.5432")
    yield made, through(database, made.port)
    made.close()


def test_a_worker_cut_off_for_too_long_loses_its_trial_and_goes_on(
    database: str, proxy: tuple[Proxy, str], tmp_path: Path
) -> None:
    cut, url = proxy
    tiny(tmp_path, trials=6, grace=2)
    slow, quick = Counted(tmp_path / "slow"), Counted(tmp_path / "quick")
    with crew(tmp_path, url, 1, before=[slow, Slow(0.4)]) as (far,):
        until(lambda: slow.epochs >= 2, 60)
        with crew(tmp_path, database, 1, before=quick) as (near,):
            until(lambda: quick.epochs >= 1, 60)
            cut.cut()
            study = study_of(database)
            until(lambda: any(trial.user_attrs.get(ATTEMPTS) == 2 for trial in study.trials), 60, "the take-over")
            until(
                lambda: any(trial.user_attrs.get(ATTEMPTS) and trial.state.is_finished() for trial in study.trials), 60
            )
            frozen = outcomes(study)
            cut.restore()
            assert far.end() == 0, far.said
            assert near.end() == 0, near.said
            assert "was taken over by another worker; going on with the next one" in far.said
    study = exactly(database, 6)
    after = outcomes(study)
    finished_before = {n for n, text in frozen.items() if '"COMPLETE"' in text}
    assert {n: after[n] for n in finished_before} == {n: frozen[n] for n in finished_before}, (
        "late writes change nothing"
    )
    assert artifacts(tmp_path) == []
    connection.engine_of(study).dispose()


def test_a_worker_cut_off_for_less_than_the_grace_notices_nothing(
    database: str, proxy: tuple[Proxy, str], tmp_path: Path
) -> None:
    cut, url = proxy
    tiny(tmp_path, trials=2, grace=20)
    done = Counted(tmp_path / "done")
    with crew(tmp_path, url, 1, before=[done, Slow(0.2)]) as far, crew(tmp_path, database, 1, before=done) as near:
        until(lambda: done.epochs >= 3, 60)
        cut.cut()
        time.sleep(3)
        cut.restore()
        finished(far + near)
    assert done.epochs == 2 * 2 * 4
    connection.engine_of(exactly(database, 2)).dispose()


# ---- poison ----------------------------------------------------------------------------------------------------------


def test_a_trial_that_kills_its_process_ends_infeasible_and_the_budget_is_exact(database: str, tmp_path: Path) -> None:
    tiny(tmp_path, trials=8, grace=1.0, attempts=3)
    kills = 0
    deadline = time.monotonic() + 120
    workers_now = [Worker(tmp_path, database, before=Poison(3)) for _ in range(2)]
    try:
        while workers_now:
            assert time.monotonic() < deadline
            for worker in list(workers_now):
                if worker.alive():
                    continue
                workers_now.remove(worker)
                if worker.end() == -signal.SIGKILL:
                    kills += 1
                    workers_now.append(Worker(tmp_path, database, before=Poison(3)))
            time.sleep(0.05)
    finally:
        for worker in workers_now:
            worker.kill()
    study = study_of(database)
    assert kills == 3
    assert count_trials(study) == Counts(complete=7, infeasible=1)
    assert study.trials[3].user_attrs[REASON] == "given up: its worker died or failed 3 times"
    connection.engine_of(study).dispose()


def test_a_trial_that_runs_out_of_memory_is_infeasible_and_its_process_ends(database: str, tmp_path: Path) -> None:
    tiny(tmp_path, trials=2)
    with crew(tmp_path, database, 1, before=Raising(MemoryError)) as (worker,):
        assert worker.end() == 75, worker.said
    study = study_of(database)
    assert count_trials(study) == Counts(infeasible=1)
    assert study.trials[0].user_attrs[REASON].startswith("out of memory")
    with crew(tmp_path, database, 1) as (worker,):
        assert worker.end() == 0
    assert count_trials(study) == Counts(complete=1, infeasible=1)
    connection.engine_of(study).dispose()


def test_a_trial_that_stands_still_goes_to_another_worker(database: str, tmp_path: Path) -> None:
    tiny(tmp_path, trials=1, stall=1.5, grace=1000)
    with crew(tmp_path, database, 1, before=Slow(1000)) as (stuck,):
        assert stuck.end(60) == 76, stuck.said
        assert "ended no epoch for 2 s" in stuck.said
    with crew(tmp_path, database, 1) as (worker,):
        assert worker.end() == 0
    study = exactly(database, 1)
    assert study.trials[0].user_attrs[ATTEMPTS] == 2
    connection.engine_of(study).dispose()


def test_a_mistake_in_training_is_told_and_retried_elsewhere(database: str, tmp_path: Path) -> None:
    tiny(tmp_path, trials=1, grace=1000)
    with crew(tmp_path, database, 1, before=Raising(ZeroDivisionError)) as (worker,):
        assert worker.end() == 1
        assert "Trial 0 failed (ZeroDivisionError) and was handed back" in worker.said
    with crew(tmp_path, database, 1) as (worker,):
        assert worker.end() == 0, "at once"
    connection.engine_of(exactly(database, 1)).dispose()


# ---- not the same study ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"data_seed": 1}, "data.seed is 1 here and 0 in the study"),
        ({"fold_seed": 1}, "split.seed is 1 here and 0 in the study"),
        ({"k": 3}, "model.k_retrieved is 3 here and 2 in the study"),
        ({"epochs": 5}, "training.epochs is 5 here and 4 in the study"),
    ],
)
def test_a_worker_that_differs_refuses_and_says_what_differs(
    change: dict[str, int], told: str, database: str, tmp_path: Path
) -> None:
    tiny(tmp_path, trials=1)
    with crew(tmp_path, database, 1) as (worker,):
        assert worker.end() == 0
    study = study_of(database)
    before = outcomes(study), study.user_attrs
    tiny(tmp_path, trials=2, **change)
    with crew(tmp_path, database, 1) as (worker,):
        assert worker.end() == 4
        assert told in worker.said
        lines = [line for line in worker.said.splitlines() if not line.startswith("embedding with ")]
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
    with crew(tmp_path, database, 1) as (worker,):
        assert worker.end() == 0, worker.said
    study = study_of(database)
    before = outcomes(study)
    table.write_text("\n".join(rows).replace("about 7", "about seven"))
    with crew(tmp_path, database, 1, "worker", "tiny.toml", "--trials", "2") as (worker,):
        assert worker.end() == 4
        assert "the data differ" in worker.said
    assert outcomes(study) == before
    connection.engine_of(study).dispose()
