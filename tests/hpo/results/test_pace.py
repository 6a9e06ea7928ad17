"""How fast trials finish, and how long the remaining ones will take."""

from __future__ import annotations

from datetime import datetime, timedelta

from sparse_evidence.hpo.results.pace import RECENT_TRIALS, Pace, PaceMeter, recent_pace


def test_the_pace_of_a_run_counts_from_its_first_running_trial():
    now = [0.0]
    meter = PaceMeter(finished=10, clock=lambda: now[0])
    meter.update(finished=10, running=0)
    assert meter.pace is None
    now[0] = 100.0  # the workers took this long to start
    meter.update(finished=10, running=2)
    assert meter.pace is None
    now[0] = 110.0
    meter.update(finished=12, running=2)
    assert meter.pace == Pace(seconds_per_trial=5.0)
    assert meter.pace.seconds_left(30) == 150.0
    now[0] = 114.0  # no trial finished: the time left still runs down
    meter.update(finished=12, running=2)
    assert meter.pace == Pace(seconds_per_trial=5.0, seconds_since=4.0)
    assert meter.pace.seconds_left(30) == 146.0


def test_no_time_left_is_negative():
    assert Pace(5.0, seconds_since=100.0).seconds_left(2) == 0.0


def test_the_recent_pace_is_that_of_the_last_trials():
    start = datetime(2026, 1, 1)
    slow = [start + timedelta(hours=hour) for hour in range(5)]
    fast = [start + timedelta(days=1, seconds=30 * number) for number in range(RECENT_TRIALS)]
    pace = recent_pace([*reversed(fast), *slow])
    assert pace == Pace(30.0)
    assert pace.trials_per_hour == 120.0


def test_one_finished_trial_makes_no_pace():
    assert recent_pace([]) is None
    assert recent_pace([datetime(2026, 1, 1)]) is None
    assert recent_pace([datetime(2026, 1, 1)] * 2) is None
