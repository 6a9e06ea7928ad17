"""Cleaning up after workers that were killed, while this worker is busy."""

from __future__ import annotations

from typing import Any

from claim_tools import artifact_rows, claimed
from optuna.trial import TrialState
from waiting import until

from sparse_evidence.hpo.database.claims_sql import count_trials
from sparse_evidence.hpo.running.reaper import Reaper


def test_an_exhausted_trial_is_failed_while_all_workers_are_busy(claims: Any) -> None:
    poisoned, busy = (claims(grace_seconds=0.5, heartbeat_seconds=0.1, max_attempts=1) for _ in range(2))
    claimed(poisoned)  # no heartbeat, as if its worker was killed
    with claimed(busy) as claim, Reaper(busy):
        until(lambda: count_trials(busy.study).infeasible == 1, 5)
        assert count_trials(busy.study).running == 1
        claim.finish(TrialState.COMPLETE, 1.0)


def test_a_stale_trial_with_attempts_left_is_not_taken_away(claims: Any) -> None:
    cut_off, busy = (claims(grace_seconds=0.01) for _ in range(2))
    claim = claimed(cut_off)
    Reaper(busy).reap()
    claim.finish(TrialState.COMPLETE, 1.0)


def test_artifacts_of_a_worker_killed_at_the_end_are_removed(claims: Any) -> None:
    removed: list[str] = []
    reachable = False
    mine = claims(budget=1, grace_seconds=0.01, discard=lambda name: reachable and (removed.append(name) or True))
    reaper = Reaper(mine)
    claim = claimed(mine)
    claim.mark_pending("a")
    claim.commit_checkpoint("a", "sha")
    claim.finish(TrialState.COMPLETE, 1.0)
    reaper.reap()
    assert artifact_rows(mine) == [("a", None)], "known until the artifact is removed"
    reachable = True
    until(lambda: reaper.reap() or not artifact_rows(mine))
    assert removed == ["a"]
