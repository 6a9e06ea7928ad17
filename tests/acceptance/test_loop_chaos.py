"""A full or read-only disk, a server that is killed or frozen, clocks that jump: each trial ends once, and as it would.

Killed workers and damaged checkpoints are in `test_loop_kill.py`.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from disks import make_read_only, small_disk
from loop_tools import CountEpochs, SlowEpochs, command, outcomes, running_workers, study_of, tiny, until

from sparse_evidence.hpo.database import connection
from sparse_evidence.hpo.database.claims_sql import Counts, count_trials

pytestmark = pytest.mark.slow
TRIALS, EPOCHS = 3, 4
WHOLE = TRIALS * 2 * EPOCHS  # two stages


@pytest.fixture(scope="module")
def undisturbed(database_of_module: str, tmp_path_factory: pytest.TempPathFactory) -> dict[int, str]:
    """The outcomes of a worker without faults."""
    folder = tmp_path_factory.mktemp("undisturbed")
    tiny(folder)
    with running_workers(folder, database_of_module, 1) as (worker,):
        assert worker.end() == 0
    return seen(database_of_module)


def seen(url: str) -> dict[int, str]:
    """What is stored of every trial, all of which are complete."""
    study = study_of(url)
    try:
        assert count_trials(study) == Counts(complete=TRIALS)
        return outcomes(study)
    finally:
        connection.engine_of(study).dispose()


# ---- the disk with the checkpoints -----------------------------------------------------------------------------------


def fill(disk: Path) -> Callable[[], None]:
    """Leave no room; returns what makes room again."""
    filler = disk / "filler"
    with filler.open("wb") as file:
        size = shutil.disk_usage(disk).free
        while size > 0:
            try:
                file.write(b"x" * min(size, 1 << 16))
                file.flush()
            except OSError:
                break
            size = shutil.disk_usage(disk).free
    return filler.unlink


def forbid_writing(disk: Path) -> Callable[[], None]:
    def remount() -> bool:
        try:
            make_read_only(disk)
        except subprocess.CalledProcessError:
            return False  # a checkpoint is being written
        return True

    until(remount, what="a moment without a file open for writing")
    return lambda: make_read_only(disk, read_only=False)


@pytest.mark.parametrize("harm", [fill, forbid_writing])
def test_a_disk_that_takes_no_checkpoints_costs_no_trial(
    harm: Callable[[Path], Callable[[], None]], database: str, tmp_path: Path, undisturbed: dict[int, str]
) -> None:
    tiny(tmp_path)
    done = CountEpochs(tmp_path / "done")
    faults = [done, SlowEpochs(0.1)]
    with (
        small_disk(tmp_path / "checkpoints", "2m") as disk,
        running_workers(tmp_path, database, 1, faults=faults, HPO_ARTIFACTS=str(disk)) as (worker,),
    ):
        until(lambda: done.epochs >= 3, 120, "three epochs")
        heal = harm(disk)
        until(lambda: "could not be saved" in worker.output, 60, "a checkpoint that fails")
        heal()
        assert worker.end() == 0, worker.output
        assert "Traceback" not in worker.output
        assert list(disk.iterdir()) == []
    assert done.epochs == WHOLE, "none was trained twice"
    assert seen(database) == undisturbed


# ---- the server ------------------------------------------------------------------------------------------------------


def kill(server: Any) -> None:
    """As the kernel does when memory runs out; then start it again."""
    postmaster = psutil.Process(server.pid())
    postmaster.kill()
    until(lambda: server.pid() is None, what="the server's end")
    server.start()


def freeze(server: Any) -> None:
    """As a hypervisor does, for longer than two heartbeats."""
    postmaster = psutil.Process(server.pid())
    processes = [postmaster, *postmaster.children(recursive=True)]
    for process in processes:
        process.suspend()
    time.sleep(2)  # the outage
    for process in processes:
        process.resume()


@pytest.mark.parametrize("harm", [kill, freeze])
def test_a_server_that_is_killed_or_frozen(
    harm: Callable[[Any], None], own_server: Any, tmp_path: Path, undisturbed: dict[int, str]
) -> None:
    server, url = own_server
    tiny(tmp_path, grace=20)
    done = CountEpochs(tmp_path / "done")
    with running_workers(tmp_path, url, 1, faults=[done, SlowEpochs(0.1)]) as (worker,):
        until(lambda: done.epochs >= 5, 120, "five epochs")
        harm(server)
        assert worker.end(120) == 0, worker.output
    assert done.epochs == WHOLE, "none was trained twice"
    assert seen(url) == undisturbed


# ---- the worker's clock ----------------------------------------------------------------------------------------------

JUMPING = r"""
#define _GNU_SOURCE
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

/* Every other second it is last week, and every other one next week. */
static time_t jumped(time_t now) { return now + (now % 2 ? 1 : -1) * 7 * 86400; }

int clock_gettime(clockid_t clock, struct timespec *at) {
  int failed = syscall(SYS_clock_gettime, clock, at);
  if (!failed && clock == CLOCK_REALTIME) at->tv_sec = jumped(at->tv_sec);
  return failed;
}

int gettimeofday(struct timeval *at, void *zone) {
  struct timespec now;
  clock_gettime(CLOCK_REALTIME, &now);
  at->tv_sec = now.tv_sec;
  at->tv_usec = now.tv_nsec / 1000;
  return 0;
}

time_t time(time_t *at) {
  struct timespec now;
  clock_gettime(CLOCK_REALTIME, &now);
  if (at) *at = now.tv_sec;
  return now.tv_sec;
}
"""


@pytest.fixture
def jumping_clock(tmp_path: Path) -> dict[str, str]:
    """The environment of a process whose clock jumps by two weeks every second."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("a clock that jumps needs a C compiler")
    source, library = tmp_path / "jumping.c", tmp_path / "jumping.so"
    source.write_text(JUMPING)
    subprocess.run([compiler, "-shared", "-fPIC", "-o", str(library), str(source)], check=True)
    environment = {"LD_PRELOAD": str(library)}
    code = "import time; a = time.time(); time.sleep(1); print(abs(time.time() - a) > 10 * 86400)"
    told = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | environment, capture_output=True, text=True, check=True
    )
    assert told.stdout == "True\n"
    return environment


def test_clocks_that_jump_lose_and_double_nothing(
    jumping_clock: dict[str, str], database: str, tmp_path: Path, undisturbed: dict[int, str]
) -> None:
    """All times that count are the database's, or those of a clock that only goes forward."""
    tiny(tmp_path)
    workers = [command(tmp_path, database, "worker", "tiny.toml", "--threads", "1", **jumping_clock) for _ in range(2)]
    try:
        outputs = [worker.communicate(timeout=180)[0] for worker in workers]
    finally:
        for worker in workers:
            worker.send_signal(signal.SIGKILL)
            worker.wait()
    assert [worker.returncode for worker in workers] == [0, 0], outputs
    assert not any("Traceback" in output or "taken over" in output for output in outputs)
    assert seen(database) == undisturbed
