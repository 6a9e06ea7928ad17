"""The exact loop on a real Postgres, with real processes, and with things killed."""

from __future__ import annotations

import math
import os
import shutil
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import optuna
import pytest
import sqlalchemy as sa
from optuna.trial import TrialState
from processes import PROCESSES

from sparse_evidence.hpo.database import connection, embedded, studies
from sparse_evidence.hpo.database.claims_sql import KEEP, Counts, Worker, count_trials, list_claims
from sparse_evidence.hpo.database.optuna_storage import ClaimLostError
from sparse_evidence.hpo.running.claims import Claim, Claims, Finished, Reaper, Wait
from sparse_evidence.hpo.running.sampler import make_sampler, short_seed

IDENTITY = {"definition": {}, "definition_sha256": "d", "data_sha256": "a", "folds_sha256": "f", "code": "1"}


def until(condition: Callable[[], Any], seconds: float = 20.0) -> Any:
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)
    return found


def joined(url: str, *, sampler: optuna.samplers.BaseSampler | None = None, **given: Any) -> Claims:
    opened = connection.open_storage(url, retry_seconds=20)
    study = studies.open_study(
        opened, "s", direction="maximize", identity=IDENTITY, sampler=sampler or make_sampler("random", 0)
    )
    terms = {"budget": 40, "heartbeat_seconds": 0.2, "grace_seconds": 2.0, "max_attempts": 3} | given
    return Claims(connection.engine_of(study), study, worker=Worker(), **terms)


@pytest.fixture
def claims(database: str) -> Iterator[Callable[..., Claims]]:
    opened: list[Claims] = []

    def join(**given: Any) -> Claims:
        opened.append(joined(database, **given))
        return opened[-1]

    yield join
    for each in opened:
        each.engine.dispose()


def claimed(claims: Claims) -> Claim:
    got = claims.claim()
    assert isinstance(got, Claim)
    return got


def work(claims: Claims) -> list[int]:
    """The loop as a worker runs it, with trials that cost nothing."""
    done = []
    while not isinstance(got := claims.claim(), Finished):
        if isinstance(got, Wait):
            time.sleep(0.05)
            continue
        with got:
            x = got.trial.suggest_float("x", 0, 1)
            got.finish(TrialState.COMPLETE, x)
            done.append(got.trial.number)
    return done


def _work(url: str, into: Any) -> None:
    claims = joined(url)
    into.put(work(claims))
    claims.engine.dispose()


def _hang(url: str) -> None:
    """Claim a trial, suggest, and hold it for ever."""
    claim = claimed(joined(url))
    claim.trial.suggest_float("x", 0, 1)
    with claim:
        signal.pause()


@pytest.fixture
def hanging(database: str) -> Iterator[Any]:
    """A process that holds a trial of the study."""
    process = PROCESSES.Process(target=_hang, args=(database,))
    process.start()
    study = joined(database).study
    until(lambda: any("x" in t.params for t in study.get_trials(deepcopy=False)))
    yield process
    process.kill()
    process.join()
    connection.engine_of(study).dispose()


def test_eight_processes_finish_exactly_the_budget_and_no_trial_twice(database: str) -> None:
    answers = PROCESSES.Queue()
    processes = [PROCESSES.Process(target=_work, args=(database, answers)) for _ in range(8)]
    for process in processes:
        process.start()
    numbers = [number for _ in processes for number in answers.get(timeout=60)]
    for process in processes:
        process.join()
    assert sorted(numbers) == list(range(40))
    claims = joined(database)
    assert count_trials(claims.study) == Counts(complete=40)
    assert [t.state for t in claims.study.trials] == [TrialState.COMPLETE] * 40
    assert work(claims) == [], "a worker that joins a finished study runs nothing"
    claims.engine.dispose()


def test_sixteen_threads_never_hold_more_than_the_budget(claims: Any) -> None:
    many = [claims(budget=5) for _ in range(16)]
    got: list[Any] = []
    threads = [threading.Thread(target=lambda each=each: got.append(each.claim())) for each in many]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(isinstance(each, Claim) for each in got) == 5
    assert sum(isinstance(each, Wait) for each in got) == 11


def test_the_trial_of_a_killed_process_is_taken_over_after_the_grace(claims: Any, hanging: Any) -> None:
    mine = claims(budget=1)
    assert isinstance(mine.claim(), Wait)
    hanging.kill()
    hanging.join()
    killed = time.monotonic()
    claim = until(lambda: isinstance(got := mine.claim(), Claim) and got)
    assert 1.5 < time.monotonic() - killed < 6
    assert (claim.trial.number, claim.attempt) == (0, 2)
    assert claim.trial.suggest_float("x", 0, 1) == mine.study.trials[0].params["x"], "what was suggested stays"
    claim.finish(TrialState.COMPLETE, 1.0)
    assert isinstance(mine.claim(), Finished)


def test_a_stopped_process_that_wakes_up_finds_its_claim_lost(claims: Any, hanging: Any) -> None:
    mine = claims(budget=1)
    os.kill(hanging.pid, signal.SIGSTOP)
    claim = until(lambda: isinstance(got := mine.claim(), Claim) and got)
    os.kill(hanging.pid, signal.SIGCONT)
    with claim:
        until(lambda: list_claims(mine.engine, mine.study)[0]["pid"] == os.getpid())
        claim.finish(TrialState.COMPLETE, 1.0)
    assert mine.study.best_value == 1.0


def test_who_lost_a_trial_cannot_write_into_it(claims: Any) -> None:
    first, second = claims(grace_seconds=0.01), claims(grace_seconds=0.01)
    old = claimed(first)  # no heartbeat: not entered
    old.trial.report(0.1, 1)
    new = until(lambda: (got := claimed(second)).trial.number == 0 and got)
    for write in (
        lambda: old.trial.report(0.9, 2),
        lambda: old.trial.set_user_attr("a", 1),
        lambda: old.trial.suggest_float("y", 0, 1),
        lambda: old.trial.set_constraint("c", 1.0),
        lambda: old.finish(TrialState.COMPLETE, 9.0),
        lambda: old.finish(TrialState.FAIL, reason="r"),
        lambda: old.announce("artifact"),
        lambda: old.keep("artifact", "sha"),
    ):
        with pytest.raises(ClaimLostError):
            write()
    old.release()
    trial = second.study.get_trials()[0]
    assert (trial.state, trial.intermediate_values, trial.user_attrs, trial.params) == (
        TrialState.RUNNING,
        {1: 0.1},
        {"hpo:attempts": 2},
        {},
    )
    new.finish(TrialState.COMPLETE, 1.0)
    with pytest.raises(ClaimLostError):
        old.finish(TrialState.COMPLETE, 9.0)
    assert second.study.get_trials()[0].value == 1.0


def test_a_write_in_progress_holds_the_take_over_back(claims: Any) -> None:
    first, second = claims(budget=1, grace_seconds=0.01), claims(budget=1, grace_seconds=0.01)
    claim = claimed(first)
    with first.engine.begin() as connection:
        connection.execute(sa.text("SELECT 1 FROM hpo_claims FOR SHARE"))  # what a fenced write begins with
        assert isinstance(second.claim(), Wait)
    assert until(lambda: isinstance(got := second.claim(), Claim) and got).trial.number == claim.trial.number


def test_the_heartbeat_notices_a_take_over_and_progress_says_so(claims: Any) -> None:
    first = claims()
    with claimed(first) as claim:
        claim.progress(0, 3)
        until(lambda: list_claims(first.engine, first.study)[0]["epoch"] == 3)
        with first.engine.begin() as connection:
            connection.execute(sa.text("UPDATE hpo_claims SET owner = 'somebody else'"))
        assert claim.lost.wait(5)
        with pytest.raises(ClaimLostError):
            claim.progress(0, 4)


def test_killed_connections_cost_nothing(claims: Any, server: str, caplog: pytest.LogCaptureFixture) -> None:
    mine, other = claims(budget=1, grace_seconds=1.0, heartbeat_seconds=0.1), claims(budget=1, grace_seconds=1.0)
    engine = sa.create_engine(server, isolation_level="AUTOCOMMIT", poolclass=sa.NullPool)
    kill = sa.text("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = :name")
    with claimed(mine) as claim, engine.connect() as connection:
        stop = time.monotonic() + 2.5
        step = 0
        while time.monotonic() < stop:
            connection.execute(kill, {"name": mine.engine.url.database})
            claim.trial.report(0.5, step := step + 1)
            claim.progress(0, step)
            assert isinstance(other.claim(), Wait)
        assert not claim.lost.is_set()
        claim.finish(TrialState.COMPLETE, 0.5)
    assert len(mine.study.trials[0].intermediate_values) == step
    assert isinstance(other.claim(), Finished)


@pytest.fixture
def own_server() -> Iterator[tuple[embedded.Server, str]]:
    """A server that may be stopped and started without disturbing other tests."""
    home = Path(tempfile.mkdtemp(prefix="hpo-tests-"))
    home.chmod(0o711)
    with embedded.running(home, "-c fsync=off") as url:
        yield embedded.Server(home, "-c fsync=off"), url
    shutil.rmtree(home)


def test_an_outage_even_beyond_the_grace_costs_a_live_worker_nothing(own_server: Any) -> None:
    server, url = own_server
    terms = {"budget": 1, "grace_seconds": 1.0, "heartbeat_seconds": 0.1}
    mine, other = joined(url, **terms), joined(url, **terms)
    with claimed(mine) as claim:
        server.stop()
        writes = threading.Thread(target=lambda: (claim.trial.report(0.5, 1), claim.trial.set_user_attr("a", 1)))
        writes.start()
        asked: list[Any] = []
        asks = threading.Thread(target=lambda: asked.append(other.claim()))
        asks.start()
        writes.join(1.5)  # longer than the grace
        assert writes.is_alive()
        server.start()
        writes.join()
        asks.join()
        assert isinstance(asked[0], Wait), "nobody takes a trial over that could not be kept alive"
        until(lambda: list_claims(mine.engine, mine.study)[0]["heartbeat_age"] < 0.5)
        assert not claim.lost.is_set()
        claim.finish(TrialState.COMPLETE, 0.5)
    (trial,) = other.study.get_trials()
    assert (trial.value, trial.intermediate_values, trial.user_attrs) == (0.5, {1: 0.5}, {"a": 1})
    for each in (mine, other):
        each.engine.dispose()


def test_an_answer_lost_at_the_commit_does_not_make_two_trials(claims: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    mine = claims(budget=5)
    decide = mine._decide
    answers: list[Any] = []

    def lost_once(owner: str) -> Any:
        answers.append(decide(owner))
        if len(answers) == 1:
            raise sa.exc.OperationalError("COMMIT", {}, Exception("server closed the connection"))
        return answers[-1]

    monkeypatch.setattr(mine, "_decide", lost_once)
    assert claimed(mine).attempt == 1
    assert answers[0] == answers[1]
    assert count_trials(mine.study).running == 1


def losing_the_next_answer(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The next commit arrives and its answer does not; the list is filled then."""
    commit = sa.engine.Connection._commit_impl
    lost: list[int] = []

    def lost_once(connection: sa.Connection) -> None:
        commit(connection)
        if not lost:
            lost.append(1)
            raise sa.exc.OperationalError("COMMIT", {}, Exception("server closed the connection"))

    monkeypatch.setattr(sa.engine.Connection, "_commit_impl", lost_once)
    return lost


@pytest.mark.parametrize("artifact", [None, "a"])
def test_a_finish_whose_answer_got_lost_is_a_finish(
    artifact: str | None, claims: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = claims(budget=1)
    claim = claimed(mine)
    if artifact:
        claim.announce(artifact)
    lost = losing_the_next_answer(monkeypatch)
    claim.finish(TrialState.COMPLETE, 0.5, attributes={"a": 1})
    assert lost
    (trial,) = mine.study.get_trials()
    assert (trial.state, trial.value, trial.user_attrs) == (TrialState.COMPLETE, 0.5, {"a": 1})
    assert rows(mine) == []


def test_a_report_whose_answer_got_lost_is_one_report(claims: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    mine = claims(budget=1)
    claim = claimed(mine)
    lost = losing_the_next_answer(monkeypatch)
    claim.trial.report(0.5, 2)
    assert lost
    assert mine.study.get_trials()[0].intermediate_values == {2: 0.5}


def test_an_end_is_told_with_all_its_attributes_or_not_at_all(claims: Any) -> None:
    mine = claims(budget=1)
    claim = claimed(mine)
    with pytest.raises(sa.exc.DBAPIError):
        claim.finish(TrialState.COMPLETE, 0.5, attributes={"a": 1, "b" * 2000: 2})  # Optuna's keys are shorter
    (trial,) = mine.study.get_trials()
    assert (trial.state, trial.value, trial.user_attrs) == (TrialState.RUNNING, None, {})
    claim.finish(TrialState.FAIL, reason="r", attributes={"a": 1})
    assert mine.study.get_trials()[0].user_attrs == {"a": 1, "hpo:outcome": "infeasible", "hpo:reason": "r"}


def test_a_pruned_end_is_told_with_its_last_report_or_not_at_all(claims: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    mine = claims(budget=1)
    claim = claimed(mine)
    claim.trial.report(0.25, 1)
    with pytest.raises(sa.exc.DBAPIError):
        claim.finish(TrialState.PRUNED, reports={2: 0.5}, attributes={"b" * 2000: 2})
    (trial,) = mine.study.get_trials()
    assert (trial.state, trial.value, trial.intermediate_values) == (TrialState.RUNNING, None, {1: 0.25})
    lost = losing_the_next_answer(monkeypatch)
    claim.finish(TrialState.PRUNED, reports={2: 0.5}, attributes={"a": 1})
    assert lost
    (trial,) = mine.study.get_trials()
    assert (trial.state, trial.value, trial.intermediate_values) == (TrialState.PRUNED, 0.5, {1: 0.25, 2: 0.5})
    assert trial.user_attrs == {"a": 1}
    assert rows(mine) == []


def test_a_pruned_end_whose_report_is_undefined_has_no_value(claims: Any) -> None:
    mine = claims(budget=1)
    claimed(mine).finish(TrialState.PRUNED, reports={1: math.nan})
    (trial,) = mine.study.get_trials()
    assert (trial.state, trial.value) == (TrialState.PRUNED, None)
    assert math.isnan(trial.intermediate_values[1])


def test_a_pruned_trial_has_the_value_that_it_reported_last(claims: Any) -> None:
    mine = claims()
    for reports in ({2: 0.5, 5: 0.25}, {2: 0.5, 5: float("nan")}, {}):
        claim = claimed(mine)
        for step, value in reports.items():
            claim.trial.report(value, step)
        claim.finish(TrialState.PRUNED)
    assert [trial.state for trial in mine.study.trials] == [TrialState.PRUNED] * 3
    assert [trial.value for trial in mine.study.trials] == [0.25, None, None], "as Study.tell does"


def test_what_an_earlier_worker_reported_is_known(claims: Any) -> None:
    first, second = claims(budget=1), claims(budget=1)
    claim = claimed(first)
    claim.trial.report(0.5, 2)
    assert (claim.reported(2), claim.reported(5)) == (True, False)
    claim.release()
    again = claimed(second)
    assert (again.reported(2), again.reported(5)) == (True, False)


def test_a_released_trial_is_taken_at_once_and_no_attempt_is_counted(claims: Any) -> None:
    first, second = claims(budget=1, grace_seconds=1000), claims(budget=1, grace_seconds=1000)
    claim = claimed(first)
    with claim:
        claim.release()
    with pytest.raises(ClaimLostError):
        claim.trial.report(0.1, 1)
    again = claimed(second)
    assert (again.trial.number, again.attempt) == (0, 1)


def test_a_trial_that_kills_its_workers_ends_infeasible_and_counts(claims: Any) -> None:
    mine = claims(budget=1, grace_seconds=0.01, max_attempts=2)
    attempts = [until(lambda: isinstance(got := mine.claim(), Claim) and got) for _ in range(2)]
    assert [(c.trial.number, c.attempt) for c in attempts] == [(0, 1), (0, 2)]
    until(lambda: isinstance(mine.claim(), Finished))
    (trial,) = mine.study.get_trials()
    assert trial.state == TrialState.FAIL
    assert trial.user_attrs == {
        "hpo:outcome": "infeasible",
        "hpo:reason": "given up: its worker died or failed 2 times",
        "hpo:attempts": 2,
    }
    assert count_trials(mine.study) == Counts(infeasible=1)
    with pytest.raises(ClaimLostError):
        attempts[-1].finish(TrialState.COMPLETE, 1.0)


def test_infeasible_counts_but_a_failure_from_elsewhere_does_not(claims: Any) -> None:
    mine = claims(budget=1)
    mine.study.tell(mine.study.ask(), state=TrialState.FAIL)
    claimed(mine).finish(TrialState.FAIL, reason="out of memory")
    assert (count_trials(mine.study).infeasible, count_trials(mine.study).failed) == (1, 1)
    assert mine.study.trials[1].user_attrs["hpo:reason"] == "out of memory"
    assert isinstance(mine.claim(), Finished)


def test_a_trial_ended_by_somebody_else_is_lost(claims: Any) -> None:
    mine = claims()
    claim = claimed(mine)
    mine.study.tell(0, state=TrialState.FAIL)
    with pytest.raises(ClaimLostError):
        claim.finish(TrialState.COMPLETE, 1.0)
    with pytest.raises(ValueError, match="infeasible"):
        claimed(mine).finish(TrialState.COMPLETE, float("nan"))


def test_an_abandoned_trial_of_a_script_is_taken_over(claims: Any) -> None:
    mine = claims(budget=1, grace_seconds=0.3)
    mine.study.ask()
    assert isinstance(mine.claim(), Wait)
    assert until(lambda: isinstance(got := mine.claim(), Claim) and got).attempt == 2


def test_queued_trials_come_first(claims: Any) -> None:
    mine = claims()
    mine.study.enqueue_trial({"x": 0.25})
    claim = claimed(mine)
    assert (claim.trial.number, claim.trial.suggest_float("x", 0, 1)) == (0, 0.25)
    assert claimed(mine).trial.number == 1
    assert abs(mine.study.trials[0].datetime_start.timestamp() - time.time()) < 60


def test_status_names_who_works_on_what(claims: Any) -> None:
    mine = claims()
    claimed(mine)
    (row,) = list_claims(mine.engine, mine.study)
    assert (row["pid"], row["trial"], row["attempt"], row["slot"], row["released"]) == (os.getpid(), 0, 1, 0, False)
    assert 0 <= row["heartbeat_age"] < 10


def proposals(claims: Claims, number: int) -> list[dict[str, Any]]:
    """A conditional space, scored by a formula."""
    found = []
    for _ in range(number):
        claim = claimed(claims)
        params: dict[str, Any] = {
            "x": claim.trial.suggest_float("x", 0, 1),
            "l": claim.trial.suggest_categorical("l", ["a", "b"]),
        }
        if params["l"] == "a":
            params["a"] = claim.trial.suggest_float("a", 1, 10, log=True)
        claim.finish(TrialState.COMPLETE, params["x"])
        found.append(params)
    return found


@pytest.mark.parametrize("name", ["tpe", "random"])
def test_the_same_seed_proposes_the_same_and_a_restart_repeats_nothing(name: Any, fresh_database: Any) -> None:
    runs = []
    for pieces in ([14], [5, 9]):  # in one go, and with a restart
        url = fresh_database()
        run = []
        for piece in pieces:
            claims = joined(url, sampler=make_sampler(name, 3))
            run += proposals(claims, piece)
            claims.engine.dispose()
        runs.append(run)
    assert runs[0] == runs[1]
    assert len({each["x"] for each in runs[0]}) == 14


def test_proposals_are_those_of_optunas_own_sampler_with_the_trials_seed(claims: Any) -> None:
    mine, other = (claims(sampler=make_sampler("tpe", 3)) for _ in range(2))
    proposals(mine, 14)
    at_work = claimed(other)  # what others are about to try counts, too
    suggested(at_work.trial)
    for _ in range(3):
        history = mine.study.get_trials()
        claim = claimed(mine)
        own = optuna.samplers.TPESampler(multivariate=True, seed=short_seed(3, claim.trial.number))
        plain = optuna.create_study(direction="maximize", sampler=own)
        plain.add_trials(history)
        x, kind = suggested(plain.ask())
        assert suggested(claim.trial) == (x, kind)
        claim.finish(TrialState.PRUNED if x > 0.5 else TrialState.COMPLETE, None if x > 0.5 else x)


def suggested(trial: optuna.Trial) -> tuple[float, str]:
    return trial.suggest_float("x", 0, 1), trial.suggest_categorical("l", ["a", "b"])


def test_what_was_drawn_before_a_kill_does_not_change_what_is_drawn_after(claims: Any) -> None:
    whole, broken = claims(sampler=make_sampler("random", 7)), claims(sampler=make_sampler("random", 7))
    first = claimed(whole)
    x, y = first.trial.suggest_float("x", 0, 1), first.trial.suggest_float("y", 0, 1)
    assert x != y
    resumed = optuna.trial.Trial(broken.study, first.trial._trial_id)
    broken.study.sampler.before_trial(broken.study, broken.study.trials[0])
    distribution = optuna.distributions.FloatDistribution(0, 1)
    frozen = broken.study.trials[resumed.number]
    assert broken.study.sampler.sample_independent(broken.study, frozen, "y", distribution) == y


# ---- leaving, reaping, stalling -------------------------------------------------------------------------------------


def test_an_exception_hands_the_trial_back_as_a_failed_attempt(claims: Any) -> None:
    terms = {"budget": 1, "grace_seconds": 1000, "max_attempts": 2}
    first, second = claims(**terms), claims(**terms)
    for worker, attempt in ((first, 1), (second, 2)):
        claim = claimed(worker)
        assert claim.attempt == attempt
        with pytest.raises(ZeroDivisionError), claim:
            raise ZeroDivisionError
    assert isinstance(first.claim(), Finished), "nobody waits for the grace"
    (trial,) = first.study.get_trials()
    assert trial.user_attrs["hpo:reason"] == "given up: its worker died or failed 2 times"


def test_an_interruption_hands_the_trial_back_and_counts_no_attempt(claims: Any) -> None:
    first, second = (claims(budget=1, grace_seconds=1000) for _ in range(2))
    with pytest.raises(KeyboardInterrupt), claimed(first):
        raise KeyboardInterrupt
    assert claimed(second).attempt == 1


def test_a_reaper_ends_a_hopeless_trial_while_everybody_is_busy(claims: Any) -> None:
    poisoned, busy = (claims(grace_seconds=0.5, heartbeat_seconds=0.1, max_attempts=1) for _ in range(2))
    claimed(poisoned)  # no heartbeat: as if killed
    with claimed(busy) as mine, Reaper(busy):
        until(lambda: count_trials(busy.study).infeasible == 1, 5)
        assert count_trials(busy.study).running == 1
        mine.finish(TrialState.COMPLETE, 1.0)


def test_a_reaper_takes_no_trial_away_that_somebody_may_still_come_back_to(claims: Any) -> None:
    cut_off, busy = (claims(grace_seconds=0.01) for _ in range(2))
    mine = claimed(cut_off)
    busy.reap()
    mine.finish(TrialState.COMPLETE, 1.0)


def rows(claims: Claims) -> list[Any]:
    with claims.engine.connect() as connection:
        return list(connection.execute(sa.text("SELECT checkpoint, pending FROM hpo_claims ORDER BY trial_id")))


def test_every_artifact_that_may_exist_is_known_whenever_a_worker_is_killed(claims: Any) -> None:
    gone: list[str] = []
    mine = claims(budget=1, discard=lambda name: gone.append(name) or True)
    claim = claimed(mine)
    claim.announce("a")
    assert rows(mine) == [(None, "a")]
    claim.keep("a", "sha")
    claim.announce("b")
    assert rows(mine) == [("a", "b")]
    for _ in range(2):  # its answer got lost: run twice
        claim._write(KEEP, artifact="b", sha256="sha")
    assert rows(mine) == [("b", "a")]
    assert gone == []
    claim.checkpoint, claim.pending = "b", "a"
    claim.finish(TrialState.COMPLETE, 1.0)
    assert sorted(gone) == ["a", "b"]
    assert rows(mine) == []


def test_who_takes_over_is_told_where_the_state_is(claims: Any) -> None:
    first, second = claims(budget=1), claims(budget=1)
    claim = claimed(first)
    claim.announce("a")
    claim.keep("a", "sha")
    claim.announce("b")
    claim.release()
    again = claimed(second)
    assert (again.checkpoint, again.checkpoint_sha256, again.pending) == ("a", "sha", "b")


def test_a_reaper_removes_what_a_worker_killed_at_the_end_left(claims: Any) -> None:
    gone: list[str] = []
    reachable = False
    mine = claims(budget=1, grace_seconds=0.01, discard=lambda name: reachable and (gone.append(name) or True))
    claim = claimed(mine)
    claim.announce("a")
    claim.keep("a", "sha")
    claim.finish(TrialState.COMPLETE, 1.0)
    time.sleep(0.05)
    mine.reap()
    assert len(rows(mine)) == 1, "kept until the artifact is gone"
    reachable = True
    mine.reap()
    assert (gone, rows(mine)) == (["a"], [])


def test_a_trial_that_stalls_is_handed_back_as_failed(claims: Any) -> None:
    stalled = threading.Event()
    mine = claims(budget=1, stall_seconds=0.5, heartbeat_seconds=0.1, stalled=stalled.set)
    other = claims(budget=1, grace_seconds=1000)
    with claimed(mine) as claim:
        for epoch in range(8):
            claim.progress(0, epoch)
            time.sleep(0.1)
        assert not stalled.is_set(), "it moves"
        assert stalled.wait(5)
        assert claimed(other).attempt == 2
        with pytest.raises(ClaimLostError):
            claim.progress(0, 9)


def test_an_outage_is_no_stall(own_server: Any) -> None:
    server, url = own_server
    stalled = threading.Event()
    mine = joined(url, budget=1, stall_seconds=1.0, heartbeat_seconds=0.1, stalled=stalled.set)
    with claimed(mine) as claim:
        server.stop()
        time.sleep(1.5)
        server.start()
        until(lambda: list_claims(mine.engine, mine.study)[0]["heartbeat_age"] < 0.5)
        assert not stalled.is_set()
        claim.finish(TrialState.COMPLETE, 1.0)
    mine.engine.dispose()
