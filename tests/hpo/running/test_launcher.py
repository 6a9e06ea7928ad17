"""A whole study run from Python, with real worker processes."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from waiting import until

from sparse_evidence.hpo.database.claims_sql import Counts
from sparse_evidence.hpo.database.connection import engine_of, open_storage
from sparse_evidence.hpo.errors import Exit
from sparse_evidence.hpo.running import worker
from sparse_evidence.hpo.running.confirming import Progress
from sparse_evidence.hpo.running.launcher import Outcome, early_workers, run_slots, run_study, start_study
from sparse_evidence.hpo.running.position import Position
from sparse_evidence.hpo.running.slots import Slot
from sparse_evidence.hpo.study.definition import load

SMOKE = Path(__file__).parents[3] / "studies" / "smoke.toml"

pytestmark = pytest.mark.slow


class Recorder:
    """An `Observer` that records its calls."""

    def __init__(self) -> None:
        self.scores: list[Mapping[str, Any] | None] = []
        self.counted: list[Counts] = []
        self.confirmed: list[Progress] = []
        self.lines: list[str] = []
        self.seen: dict[int, Position] = {}
        self.stopped = False

    def baselines(self, scores: Mapping[str, Any] | None) -> None:
        self.scores.append(scores)

    def confirming(self, progress: Progress) -> None:
        self.confirmed.append(progress)

    def counts(self, counts: Counts) -> None:
        self.counted.append(counts)

    def line(self, text: str) -> None:
        self.lines.append(text)

    def positions(self, positions: Mapping[int, Position]) -> None:
        self.seen |= positions

    def stopping(self) -> None:
        self.stopped = True


def test_a_study_is_run_and_then_has_nothing_to_do(database):
    started = start_study(load(SMOKE, environ={}), database, trials=3)
    first, second = Recorder(), Recorder()
    assert run_study(started, first, workers=1) == Outcome(Exit.DONE, finished=3, trials=3, workers=1)
    assert first.counted[-1].finished == 3
    assert first.confirmed[-1].finished == first.confirmed[-1].planned > 0
    assert first.scores == [started.task.baselines()]
    ((pid, position),) = first.seen.items()
    assert pid > 0
    assert 0 <= position.trial < first.confirmed[-1].planned
    assert position.epoch >= 1
    assert (first.lines, first.stopped) == ([], False)
    assert run_study(started, second, workers=1) == Outcome(Exit.DONE, finished=3, trials=3, workers=0)
    assert (second.scores, second.counted, second.confirmed) == (first.scores, [], [])
    engine_of(started.study).dispose()


def studies(database):
    storage = open_storage(database)
    try:
        return storage.get_all_studies()
    finally:
        engine_of(storage).dispose()


def process_of(pool):
    """The process of the only worker of a pool."""
    (slot,) = pool._slots
    return slot._process._process


def wait_until_held(process):
    """Wait until a worker has loaded its libraries, and long enough for one that is not held to create the study."""
    maps = Path(f"/proc/{process.pid}/maps")
    until(lambda: "libtorch_cpu" in maps.read_text(encoding="utf-8"))
    time.sleep(3)


def test_workers_that_are_held_do_nothing_and_end_with_the_block(database):
    with early_workers(load(SMOKE, environ={}), database, workers=1, trials=1) as pool:
        process = process_of(pool)
        wait_until_held(process)
        assert process.poll() is None
        assert studies(database) == []
    assert process.poll() is not None
    assert studies(database) == []


def test_a_held_worker_that_loses_its_parent_creates_no_study(database):
    with early_workers(load(SMOKE, environ={}), database, workers=1, trials=1) as pool:
        process = process_of(pool)
        wait_until_held(process)
        process.stdin.close()  # as the end of this process does
        assert process.wait(30) == Exit.DONE
        assert studies(database) == []


def test_a_worker_that_died_while_it_was_held_is_started_again(database):
    definition = load(SMOKE, environ={})
    with early_workers(definition, database, workers=1, trials=1) as pool:
        process_of(pool).kill()
        process_of(pool).wait(30)
        started = start_study(definition, database, trials=1, pool=pool)
        assert run_study(started, Recorder()) == Outcome(Exit.DONE, finished=1, trials=1, workers=1)
    engine_of(started.study).dispose()


def test_workers_that_were_started_early_run_the_study(database):
    definition = load(SMOKE, environ={})

    with early_workers(definition, database, workers=1, trials=1) as pool:
        started = start_study(definition, database, trials=1, pool=pool)
        assert run_study(started, Recorder()) == Outcome(Exit.DONE, finished=1, trials=1, workers=1)
    with early_workers(definition, database, trials=1) as pool:
        assert pool is None
    engine_of(started.study).dispose()


def test_a_run_whose_workers_fail_says_why(database, tmp_path):
    path = tmp_path / "smoke.toml"
    path.write_text(SMOKE.read_text(encoding="utf-8"), encoding="utf-8")
    started = start_study(load(path, environ={}), database, trials=3)
    path.unlink()
    outcome = run_study(started, Recorder(), workers=1)
    assert (outcome.code, outcome.finished, outcome.workers) == (Exit.USAGE, 0, 1)
    assert "smoke.toml does not exist" in outcome.reason
    engine_of(started.study).dispose()


def test_slots_end_when_the_trials_are_finished(database, tmp_path):
    lines: list[str] = []
    stop = threading.Event()
    slots = [Slot(number=0, threads=1)]
    artifacts = str(tmp_path / "artifacts")
    code = run_slots(SMOKE, database, trials=1, slots=slots, artifacts=artifacts, stop=stop, print_line=lines.append)
    assert (code, lines) == (Exit.DONE, ["slot 0: no GPU, 1 CPU thread"])


def test_workers_that_wait_look_less_and_less_often():
    pauses = [worker.poll_pause(waited) for waited in (0.0, 30.0, 60.0, 3600.0)]
    assert pauses == sorted(pauses)
    assert pauses[0] < pauses[1] < pauses[2]
    assert pauses[-1] <= 10
