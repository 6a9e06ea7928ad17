"""The exact loop on a real Postgres, with real processes, killed connections and lost answers."""

from __future__ import annotations

import math
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import optuna
import pytest
import sqlalchemy as sa
from claim_tools import artifact_rows, claimed, claimed_soon, join_study
from optuna.trial import TrialState
from postgres_proxy import Proxy
from processes import PROCESSES
from waiting import until

from sparse_evidence.hpo.database import connection
from sparse_evidence.hpo.database.claims_sql import Counts, count_trials, list_claims
from sparse_evidence.hpo.database.locks import lock_study
from sparse_evidence.hpo.database.optuna_storage import study_id
from sparse_evidence.hpo.errors import ClaimLostError, StudyDeletedError
from sparse_evidence.hpo.running.claims import Claim, Claims, Finished, Wait


def work(claims: Claims) -> list[int]:
    """The loop as a worker runs it, with trials that take no time."""
    numbers = []
    while not isinstance(claim := claims.claim(), Finished):
        if isinstance(claim, Wait):
            time.sleep(0.05)
            continue
        with claim:
            x = claim.trial.suggest_float("x", 0, 1)
            claim.finish(TrialState.COMPLETE, x)
            numbers.append(claim.trial.number)
    return numbers


def _work(url: str, numbers: Any) -> None:
    claims = join_study(url)
    numbers.put(work(claims))
    claims.engine.dispose()


def _hang(url: str) -> None:
    """Claim a trial, suggest, and never finish it."""
    claim = claimed(join_study(url))
    claim.trial.suggest_float("x", 0, 1)
    with claim:
        signal.pause()


@pytest.fixture
def hanging(database: str) -> Iterator[Any]:
    """A process that has claimed a trial of the study."""
    process = PROCESSES.Process(target=_hang, args=(database,))
    process.start()
    study = join_study(database).study
    until(lambda: any("x" in trial.params for trial in study.get_trials(deepcopy=False)))
    yield process
    process.kill()
    process.join()
    connection.engine_of(study).dispose()


# ---- the budget ------------------------------------------------------------------------------------------------------


def test_eight_processes_finish_exactly_the_budget_and_no_trial_twice(database: str) -> None:
    numbers = PROCESSES.Queue()
    processes = [PROCESSES.Process(target=_work, args=(database, numbers)) for _ in range(8)]
    for process in processes:
        process.start()
    finished = [number for _ in processes for number in numbers.get(timeout=60)]
    for process in processes:
        process.join()
    assert sorted(finished) == list(range(40))
    claims = join_study(database)
    assert count_trials(claims.study) == Counts(complete=40)
    assert [trial.state for trial in claims.study.trials] == [TrialState.COMPLETE] * 40
    assert work(claims) == [], "a worker that joins a finished study runs nothing"
    claims.engine.dispose()


def test_sixteen_threads_never_claim_more_than_the_budget(claims: Any) -> None:
    workers = [claims(budget=5) for _ in range(16)]
    decisions: list[Any] = []
    threads = [threading.Thread(target=lambda worker=worker: decisions.append(worker.claim())) for worker in workers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(isinstance(decision, Claim) for decision in decisions) == 5
    assert sum(isinstance(decision, Wait) for decision in decisions) == 11


def test_infeasible_trials_count_but_trials_that_a_script_failed_do_not(claims: Any) -> None:
    mine = claims(budget=1)
    mine.study.tell(mine.study.ask(), state=TrialState.FAIL)
    claimed(mine).finish(TrialState.FAIL, reason="out of memory")
    assert (count_trials(mine.study).infeasible, count_trials(mine.study).failed) == (1, 1)
    assert mine.study.trials[1].user_attrs["hpo:reason"] == "out of memory"
    assert isinstance(mine.claim(), Finished)


def test_queued_trials_come_first(claims: Any) -> None:
    mine = claims()
    mine.study.enqueue_trial({"x": 0.25})
    claim = claimed(mine)
    assert (claim.trial.number, claim.trial.suggest_float("x", 0, 1)) == (0, 0.25)
    assert claimed(mine).trial.number == 1
    assert abs(mine.study.trials[0].datetime_start.timestamp() - time.time()) < 60


def test_the_list_of_claims_names_process_and_trial(claims: Any) -> None:
    mine = claims()
    claimed(mine)
    (row,) = list_claims(mine.engine, mine.study)
    assert (row["pid"], row["trial"], row["attempt"], row["slot"], row["released"]) == (os.getpid(), 0, 1, 0, False)
    assert 0 <= row["heartbeat_age"] < 10


# ---- taking over -----------------------------------------------------------------------------------------------------


def test_the_trial_of_a_killed_process_is_taken_over_after_the_grace_period(claims: Any, hanging: Any) -> None:
    mine = claims(budget=1)
    assert isinstance(mine.claim(), Wait)
    hanging.kill()
    hanging.join()
    killed = time.monotonic()
    claim = claimed_soon(mine)
    assert 1.5 < time.monotonic() - killed < 6
    assert (claim.trial.number, claim.attempt) == (0, 2)
    assert claim.trial.suggest_float("x", 0, 1) == mine.study.trials[0].params["x"], "earlier suggestions are kept"
    claim.finish(TrialState.COMPLETE, 1.0)
    assert isinstance(mine.claim(), Finished)


def test_a_stopped_process_that_wakes_up_finds_its_claim_lost(claims: Any, hanging: Any) -> None:
    mine = claims(budget=1)
    os.kill(hanging.pid, signal.SIGSTOP)
    claim = claimed_soon(mine)
    os.kill(hanging.pid, signal.SIGCONT)
    with claim:
        until(lambda: list_claims(mine.engine, mine.study)[0]["pid"] == os.getpid())
        claim.finish(TrialState.COMPLETE, 1.0)
    assert mine.study.best_value == 1.0


def test_a_worker_that_lost_a_trial_cannot_write_into_it(claims: Any) -> None:
    first, second = claims(grace_seconds=0.01), claims(grace_seconds=0.01)
    old = claimed(first)  # no heartbeat, because its context is not entered
    old.trial.report(0.1, 1)
    new = until(lambda: (claim := claimed(second)).trial.number == 0 and claim)
    for write in (
        lambda: old.trial.report(0.9, 2),
        lambda: old.trial.set_user_attr("a", 1),
        lambda: old.trial.suggest_float("y", 0, 1),
        lambda: old.trial.set_constraint("c", 1.0),
        lambda: old.finish(TrialState.COMPLETE, 9.0),
        lambda: old.finish(TrialState.FAIL, reason="r"),
        lambda: old.mark_pending("artifact"),
        lambda: old.commit_checkpoint("artifact", "sha"),
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


def test_a_write_in_progress_delays_the_take_over(claims: Any) -> None:
    first, second = claims(budget=1, grace_seconds=0.01), claims(budget=1, grace_seconds=0.01)
    claim = claimed(first)
    with first.engine.begin() as session:
        session.execute(sa.text("SELECT 1 FROM hpo_claims FOR SHARE"))  # a fenced write begins with this lock
        assert isinstance(second.claim(), Wait)
    assert claimed_soon(second).trial.number == claim.trial.number


def test_a_worker_that_waits_looks_without_the_lock(claims: Any, database: str) -> None:
    first, second = claims(budget=1), claims(budget=1)
    claim = claimed(first)
    assert isinstance(second.claim(), Wait)
    other = sa.create_engine(database, poolclass=sa.NullPool)
    with other.begin() as session:
        lock_study(session, study_id(first.study))
        assert isinstance(second.claim(), Wait)
    claim.release()
    assert claimed(second).trial.number == 0


def test_the_heartbeat_notices_a_take_over_and_progress_raises(claims: Any) -> None:
    first = claims()
    with claimed(first) as claim:
        claim.progress(0, 3)
        until(lambda: list_claims(first.engine, first.study)[0]["epoch"] == 3)
        with first.engine.begin() as session:
            session.execute(sa.text("UPDATE hpo_claims SET owner = 'another worker'"))
        assert claim.lost.wait(5)
        with pytest.raises(ClaimLostError):
            claim.progress(0, 4)


def test_a_trial_that_another_process_ended_is_lost(claims: Any) -> None:
    mine = claims()
    claim = claimed(mine)
    mine.study.tell(0, state=TrialState.FAIL)
    with pytest.raises(ClaimLostError, match="Another process has ended trial 0"):
        claim.finish(TrialState.COMPLETE, 1.0)


def test_a_trial_that_a_script_abandoned_is_taken_over(claims: Any) -> None:
    mine = claims(budget=1)
    mine.study.ask()
    assert isinstance(mine.claim(), Wait)
    assert claimed_soon(mine).attempt == 2


def test_reports_of_an_earlier_worker_are_known(claims: Any) -> None:
    first, second = claims(budget=1), claims(budget=1)
    claim = claimed(first)
    claim.trial.report(0.5, 2)
    assert (claim.reported(2), claim.reported(5)) == (True, False)
    claim.release()
    taken_over = claimed(second)
    assert (taken_over.reported(2), taken_over.reported(5)) == (True, False)


def test_artifacts_of_an_earlier_worker_are_known(claims: Any) -> None:
    first, second = claims(budget=1), claims(budget=1)
    claim = claimed(first)
    claim.mark_pending("a")
    claim.commit_checkpoint("a", "sha")
    claim.mark_pending("b")
    claim.release()
    taken_over = claimed(second)
    assert (taken_over.checkpoint, taken_over.checkpoint_sha256, taken_over.pending) == ("a", "sha", "b")


# ---- the connection --------------------------------------------------------------------------------------------------


def test_killed_connections_cost_nothing(claims: Any, server: str) -> None:
    mine, other = claims(budget=1, grace_seconds=1.0, heartbeat_seconds=0.1), claims(budget=1, grace_seconds=1.0)
    engine = sa.create_engine(server, isolation_level="AUTOCOMMIT", poolclass=sa.NullPool)
    kill = sa.text("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = :name")
    with claimed(mine) as claim, engine.connect() as session:
        end = time.monotonic() + 2.5
        step = 0
        while time.monotonic() < end:
            session.execute(kill, {"name": mine.engine.url.database})
            claim.trial.report(0.5, step := step + 1)
            claim.progress(0, step)
            assert isinstance(other.claim(), Wait)
        assert not claim.lost.is_set()
        claim.finish(TrialState.COMPLETE, 0.5)
    assert len(mine.study.trials[0].intermediate_values) == step
    assert isinstance(other.claim(), Finished)


def test_an_outage_longer_than_the_grace_period_costs_a_live_worker_nothing(own_server: Any) -> None:
    server, url = own_server
    terms = {"budget": 1, "grace_seconds": 1.0, "heartbeat_seconds": 0.1}
    mine, other = join_study(url, **terms), join_study(url, **terms)
    with claimed(mine) as claim:
        server.stop()
        writer = threading.Thread(target=lambda: (claim.trial.report(0.5, 1), claim.trial.set_user_attr("a", 1)))
        writer.start()
        decisions: list[Any] = []
        claimant = threading.Thread(target=lambda: decisions.append(other.claim()))
        claimant.start()
        writer.join(1.5)  # longer than the grace period
        assert writer.is_alive()
        server.start()
        writer.join()
        claimant.join()
        assert isinstance(decisions[0], Wait), "no worker takes over a trial that could not send heartbeats"
        until(lambda: list_claims(mine.engine, mine.study)[0]["heartbeat_age"] < 0.5)
        assert not claim.lost.is_set()
        claim.finish(TrialState.COMPLETE, 0.5)
    (trial,) = other.study.get_trials()
    assert (trial.value, trial.intermediate_values, trial.user_attrs) == (0.5, {1: 0.5}, {"a": 1})
    for worker in (mine, other):
        worker.engine.dispose()


def test_a_claim_whose_answer_was_lost_is_one_claim(claims: Any, proxy: Proxy) -> None:
    mine = claims(proxy.url, budget=5)
    lost = proxy.lose_answer_to_commit("INSERT INTO hpo_claims")
    claim = claimed(mine)
    assert lost.is_set()
    assert (claim.trial.number, claim.attempt) == (0, 1)
    assert count_trials(mine.study) == Counts(running=1)


@pytest.mark.parametrize("artifact", [None, "a"])
def test_a_finish_whose_answer_was_lost_is_one_finish(artifact: str | None, claims: Any, proxy: Proxy) -> None:
    mine = claims(proxy.url, budget=1)
    claim = claimed(mine)
    if artifact:
        claim.mark_pending(artifact)
    lost = proxy.lose_answer_to_commit("COMPLETE")
    claim.finish(TrialState.COMPLETE, 0.5, attributes={"a": 1})
    assert lost.is_set()
    (trial,) = mine.study.get_trials()
    assert (trial.state, trial.value, trial.user_attrs) == (TrialState.COMPLETE, 0.5, {"a": 1})
    assert artifact_rows(mine) == []


def test_a_report_whose_answer_was_lost_is_one_report(claims: Any, proxy: Proxy) -> None:
    mine = claims(proxy.url, budget=1)
    claim = claimed(mine)
    lost = proxy.lose_answer_to_commit("trial_intermediate_values")
    claim.trial.report(0.5, 2)
    assert lost.is_set()
    assert mine.study.get_trials()[0].intermediate_values == {2: 0.5}


# ---- ends ------------------------------------------------------------------------------------------------------------


def test_an_end_is_written_with_all_its_attributes_or_not_at_all(claims: Any) -> None:
    mine = claims(budget=1)
    claim = claimed(mine)
    with pytest.raises(sa.exc.DBAPIError):
        claim.finish(TrialState.COMPLETE, 0.5, attributes={"a": 1, "b" * 2000: 2})  # Optuna's keys are shorter
    (trial,) = mine.study.get_trials()
    assert (trial.state, trial.value, trial.user_attrs) == (TrialState.RUNNING, None, {})
    claim.finish(TrialState.FAIL, reason="r", attributes={"a": 1})
    assert mine.study.get_trials()[0].user_attrs == {"a": 1, "hpo:outcome": "infeasible", "hpo:reason": "r"}


def test_a_pruned_end_is_written_with_its_last_report_or_not_at_all(claims: Any, proxy: Proxy) -> None:
    mine = claims(proxy.url, budget=1)
    claim = claimed(mine)
    claim.trial.report(0.25, 1)
    with pytest.raises(sa.exc.DBAPIError):
        claim.finish(TrialState.PRUNED, reports={2: 0.5}, attributes={"b" * 2000: 2})
    (trial,) = mine.study.get_trials()
    assert (trial.state, trial.value, trial.intermediate_values) == (TrialState.RUNNING, None, {1: 0.25})
    lost = proxy.lose_answer_to_commit("PRUNED")
    claim.finish(TrialState.PRUNED, reports={2: 0.5}, attributes={"a": 1})
    assert lost.is_set()
    (trial,) = mine.study.get_trials()
    assert (trial.state, trial.value, trial.intermediate_values) == (TrialState.PRUNED, 0.5, {1: 0.25, 2: 0.5})
    assert trial.user_attrs == {"a": 1}
    assert artifact_rows(mine) == []


def test_a_pruned_end_whose_report_is_undefined_has_no_value(claims: Any) -> None:
    mine = claims(budget=1)
    claimed(mine).finish(TrialState.PRUNED, reports={1: math.nan})
    (trial,) = mine.study.get_trials()
    assert (trial.state, trial.value) == (TrialState.PRUNED, None)
    assert math.isnan(trial.intermediate_values[1])


def test_the_value_of_a_pruned_trial_is_its_last_report(claims: Any) -> None:
    mine = claims()
    for reports in ({2: 0.5, 5: 0.25}, {2: 0.5, 5: float("nan")}, {}):
        claim = claimed(mine)
        for step, value in reports.items():
            claim.trial.report(value, step)
        claim.finish(TrialState.PRUNED)
    assert [trial.state for trial in mine.study.trials] == [TrialState.PRUNED] * 3
    assert [trial.value for trial in mine.study.trials] == [0.25, None, None], "as Study.tell does"


def test_a_complete_trial_needs_a_value(claims: Any) -> None:
    with pytest.raises(ValueError, match="infeasible"):
        claimed(claims()).finish(TrialState.COMPLETE, float("nan"))


def test_a_trial_that_kills_its_workers_ends_infeasible_and_counts(claims: Any) -> None:
    mine = claims(budget=1, grace_seconds=0.01, max_attempts=2)
    attempts = [claimed_soon(mine) for _ in range(2)]
    assert [(claim.trial.number, claim.attempt) for claim in attempts] == [(0, 1), (0, 2)]
    until(lambda: isinstance(mine.claim(), Finished))
    (trial,) = mine.study.get_trials()
    assert trial.state == TrialState.FAIL
    assert trial.user_attrs == {
        "hpo:outcome": "infeasible",
        "hpo:reason": "attempts exhausted: its worker died or failed 2 times",
        "hpo:attempts": 2,
    }
    assert count_trials(mine.study) == Counts(infeasible=1)
    with pytest.raises(ClaimLostError):
        attempts[-1].finish(TrialState.COMPLETE, 1.0)


# ---- releasing -------------------------------------------------------------------------------------------------------


def test_a_released_trial_is_taken_immediately_and_no_attempt_is_counted(claims: Any) -> None:
    first, second = claims(budget=1, grace_seconds=1000), claims(budget=1, grace_seconds=1000)
    claim = claimed(first)
    with claim:
        claim.release()
    with pytest.raises(ClaimLostError):
        claim.trial.report(0.1, 1)
    taken_over = claimed(second)
    assert (taken_over.trial.number, taken_over.attempt) == (0, 1)


def test_an_exception_releases_the_trial_as_a_failed_attempt(claims: Any) -> None:
    terms = {"budget": 1, "grace_seconds": 1000, "max_attempts": 2}
    first, second = claims(**terms), claims(**terms)
    for worker, attempt in ((first, 1), (second, 2)):
        claim = claimed(worker)
        assert claim.attempt == attempt
        with pytest.raises(ZeroDivisionError), claim:
            raise ZeroDivisionError
    assert isinstance(first.claim(), Finished), "no worker waits for the grace period"
    (trial,) = first.study.get_trials()
    assert trial.user_attrs["hpo:reason"] == "attempts exhausted: its worker died or failed 2 times"


def test_an_interruption_releases_the_trial_and_counts_no_attempt(claims: Any) -> None:
    first, second = (claims(budget=1, grace_seconds=1000) for _ in range(2))
    with pytest.raises(KeyboardInterrupt), claimed(first):
        raise KeyboardInterrupt
    assert claimed(second).attempt == 1


# ---- checkpoints -----------------------------------------------------------------------------------------------------


def test_every_artifact_that_may_exist_is_in_the_table_at_all_times(claims: Any, proxy: Proxy) -> None:
    removed: list[str] = []
    removable = False
    mine = claims(proxy.url, budget=1, discard=lambda name: removable and (removed.append(name) or True))
    claim = claimed(mine)
    claim.mark_pending("a")
    assert artifact_rows(mine) == [(None, "a")]
    claim.commit_checkpoint("a", "sha")
    claim.mark_pending("b")
    assert artifact_rows(mine) == [("a", "b")]
    lost = proxy.lose_answer_to_commit("checkpoint_sha256 =")
    claim.commit_checkpoint("b", "sha")
    assert lost.is_set(), "it was run twice"
    assert artifact_rows(mine) == [("b", "a")]
    removable = True
    claim.finish(TrialState.COMPLETE, 1.0)
    assert sorted(removed) == ["a", "b"]
    assert artifact_rows(mine) == []


# ---- a study that is deleted -----------------------------------------------------------------------------------------


def test_a_study_deleted_under_its_worker_leaves_nothing_and_is_not_begun_again(claims: Any) -> None:
    removed: list[str] = []
    mine = claims(discard=lambda name: removed.append(name) or True)
    claim = claimed(mine)
    claim.mark_pending("a")
    claim.commit_checkpoint("a", "sha")
    claim.mark_pending("b")
    optuna.delete_study(study_name="s", storage=mine.engine.url.render_as_string(hide_password=False))
    assert artifact_rows(mine) == [], "claims are deleted with their trials"
    with pytest.raises(ClaimLostError), claim:
        claim.trial.report(0.5, 1)
    assert claim.deleted
    assert removed == ["a", "b"]
    for call in (mine.claim, mine.study.get_trials, lambda: count_trials(mine.study), lambda: mine.study.user_attrs):
        with pytest.raises(StudyDeletedError, match="was deleted or renamed"):
            call()
    again = join_study(mine.engine.url.render_as_string(hide_password=False))
    assert count_trials(again.study) == Counts(), "only what nobody worked on is created anew"
    again.engine.dispose()


# ---- stalling --------------------------------------------------------------------------------------------------------


def test_a_trial_that_stalls_is_released_as_failed(claims: Any) -> None:
    stalled = threading.Event()
    mine = claims(budget=1, stall_seconds=0.5, heartbeat_seconds=0.1, stalled=stalled.set)
    other = claims(budget=1, grace_seconds=1000)
    with claimed(mine) as claim:

        def progressed_for_longer_than_that() -> bool:
            claim.progress(0, 1)
            return list_claims(mine.engine, mine.study)[0]["held_seconds"] > 1.0

        until(progressed_for_longer_than_that)
        assert not stalled.is_set(), "it makes progress"
        assert stalled.wait(5)
        assert claimed(other).attempt == 2
        with pytest.raises(ClaimLostError):
            claim.progress(0, 9)


def test_a_worker_that_stalls_after_it_lost_its_trial_ends_too(claims: Any) -> None:
    stalled = threading.Event()
    mine = claims(budget=1, stall_seconds=0.5, heartbeat_seconds=0.1, stalled=stalled.set)
    with claimed(mine) as claim:
        with mine.engine.begin() as session:
            session.execute(sa.text("UPDATE hpo_claims SET owner = 'another worker'"))
        assert claim.lost.wait(5)
        assert stalled.wait(5)
    (row,) = list_claims(mine.engine, mine.study)
    assert (row["released"], row["attempt"]) == (False, 1), "the other worker's claim is untouched"


def test_an_outage_is_no_stall(own_server: Any, caplog: pytest.LogCaptureFixture) -> None:
    server, url = own_server
    stalled = threading.Event()
    mine = join_study(url, budget=1, stall_seconds=1.0, heartbeat_seconds=0.1, stalled=stalled.set)
    with claimed(mine) as claim:
        server.stop()

        def failed_for_longer_than_that() -> bool:
            times = [row.created for row in caplog.records if vars(row).get("action") == "heartbeat_failed"]
            return bool(times) and times[-1] - times[0] > 1.2

        until(failed_for_longer_than_that)
        server.start()
        until(lambda: list_claims(mine.engine, mine.study)[0]["heartbeat_age"] < 0.5)
        assert not stalled.is_set()
        claim.finish(TrialState.COMPLETE, 1.0)
    mine.engine.dispose()


def test_a_claim_that_was_never_entered_can_be_finished(claims: Callable[..., Claims]) -> None:
    mine = claims(budget=1)
    claimed(mine).finish(TrialState.COMPLETE, 1.0)
    assert mine.study.best_value == 1.0


def test_without_a_budget_only_queued_trials_are_started(claims: Any) -> None:
    worker = claims(budget=None)
    assert isinstance(worker.claim(), Finished)
    for x in (0.25, 0.75):
        worker.study.enqueue_trial({"x": x})
    first, second = claimed(worker), claimed(worker)
    assert [claim.trial.suggest_float("x", 0, 1) for claim in (first, second)] == [0.25, 0.75]
    assert isinstance(worker.claim(), Wait)
    for claim in (first, second):
        claim.finish(TrialState.COMPLETE, 1.0)
    finished = worker.claim()
    assert isinstance(finished, Finished)
    assert finished.counts.complete == 2
