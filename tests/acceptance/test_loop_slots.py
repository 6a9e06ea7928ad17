"""`hpo worker --slots`: one process per slot, on its own GPU, restarted after a crash, stopped with its parent."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
from loop_tools import artifacts, at_work, command, study_of, tiny, until

from sparse_evidence.core.errors import UserError
from sparse_evidence.hpo.database import connection
from sparse_evidence.hpo.database.claims_sql import Counts, count_trials, list_claims
from sparse_evidence.hpo.running import slots
from sparse_evidence.hpo.running.supervisor import RESTART_PAUSES, describe_exit

UUIDS = ["GPU-11111111-aaaa-bbbb-cccc-000000000001", "GPU-22222222-aaaa-bbbb-cccc-000000000002"]


@pytest.fixture
def two_gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with an `nvidia-smi` that lists two GPUs, first on the PATH."""
    folder = tmp_path / "bin"
    folder.mkdir()
    script = folder / "nvidia-smi"
    lines = "\\n".join(UUIDS)
    script.write_text(f'#!/bin/sh\n[ "$*" = "--query-gpu=uuid --format=csv,noheader" ] && printf "{lines}\\n"\n')
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return folder


# ---- the plan --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("setting", "gpus"),
    [
        (None, UUIDS),
        ("", []),
        ("-1", []),
        ("1", [UUIDS[1]]),
        ("1,0", UUIDS[::-1]),
        ("0,7,1", [UUIDS[0]]),
        ("GPU-2222", [UUIDS[1]]),
        ("MIG-5c89852c", ["MIG-5c89852c"]),
    ],
)
def test_cuda_visible_devices_is_interpreted_as_cuda_does(setting: str | None, gpus: list[str], two_gpus: Path) -> None:
    assert slots.visible_gpus({} if setting is None else {"CUDA_VISIBLE_DEVICES": setting}) == gpus


def test_slots_take_the_gpus_in_turn_and_share_the_cores(two_gpus: Path) -> None:
    assert [(slot.number, slot.gpu, slot.threads) for slot in slots.plan_slots(None, per_gpu=2, cores=16)] == [
        (0, UUIDS[0], 4),
        (1, UUIDS[1], 4),
        (2, UUIDS[0], 4),
        (3, UUIDS[1], 4),
    ]
    assert len(slots.plan_slots(1)) == 1
    with pytest.raises(UserError, match="3 slots do not fit on 2 GPUs with 1 each: give --slots 2 or fewer"):
        slots.plan_slots(3)
    assert slots.plan_slots(None, cores=16)[0].environment() == {
        "CUDA_VISIBLE_DEVICES": UUIDS[0],
        "OMP_NUM_THREADS": "8",
        "MKL_NUM_THREADS": "8",
    }


def test_without_gpus_slots_share_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    assert [(slot.gpu, slot.threads) for slot in slots.plan_slots(None, cores=16)] == [(None, 4)] * 4
    assert [(slot.gpu, slot.threads) for slot in slots.plan_slots(None, cores=2)] == [(None, 1)] * 2
    assert [slot.threads for slot in slots.plan_slots(32, cores=16)] == [1] * 32
    assert slots.plan_slots(1)[0].threads == slots.usable_cores()


# ---- processes -------------------------------------------------------------------------------------------------------


@contextmanager
def supervised(folder: Path, url: str, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    process = command(folder, url, "worker", "tiny.toml", *arguments)
    try:
        yield process
    finally:
        workers = children(process)
        process.kill()
        process.communicate()
        for child in workers:
            if child.is_running():
                child.kill()


def children(process: subprocess.Popen[str]) -> list[psutil.Process]:
    """Its workers."""
    try:
        processes = psutil.Process(process.pid).children()
        return [child for child in processes if "--slot" in child.cmdline()]
    except psutil.Error:
        return []


def busy(count: int) -> Callable[[list[dict[str, Any]]], bool]:
    """Whether at least `count` living workers have finished an epoch."""
    return lambda rows: (
        sum(row["epoch"] > 0 and not row["released"] and psutil.pid_exists(row["pid"]) for row in rows) >= count
    )


def is_suspended(process: psutil.Process) -> bool:
    """Whether every thread has stopped: on a busy machine, one that still runs may take the next signal."""
    threads = Path(f"/proc/{process.pid}/task").iterdir()
    return all("\nState:\tT" in (thread / "status").read_text() for thread in threads)


def sigterm_pending(process: psutil.Process) -> bool:
    """Whether SIGTERM was sent to a suspended process."""
    lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
    (mask,) = [line.split()[1] for line in lines if line.startswith("ShdPnd:")]
    return bool(int(mask, 16) >> (signal.SIGTERM - 1) & 1)


@pytest.mark.slow
def test_every_worker_sees_only_its_own_gpu_and_the_pool_ends_with_the_study(
    two_gpus: Path, database: str, tmp_path: Path
) -> None:
    tiny(tmp_path, trials=4)
    with supervised(tmp_path, database, "--slots", "auto") as parent:
        workers = until(lambda: len(running := children(parent)) == 2 and running)
        devices = {
            child.cmdline()[child.cmdline().index("--slot") + 1]: child.environ().get("CUDA_VISIBLE_DEVICES")
            for child in workers
        }
        assert devices == {"0": UUIDS[0], "1": UUIDS[1]}
        output, _ = parent.communicate(timeout=120)
    assert parent.returncode == 0, output
    threads = slots.usable_cores() // 2 or 1
    assert output.splitlines()[0] == f"slot 0: {UUIDS[0]}, {threads} CPU thread{'s' if threads > 1 else ''}"
    study = study_of(database)
    assert count_trials(study) == Counts(complete=4)
    connection.engine_of(study).dispose()


@pytest.mark.slow
def test_a_crashed_worker_is_restarted_and_sigterm_stops_all_gracefully(database: str, tmp_path: Path) -> None:
    tiny(tmp_path, trials=4, epochs=3000, grace=2, heartbeat=0.3, checkpoint=0.3)
    with supervised(tmp_path, database, "--slots", "2") as parent:
        study = at_work(database, busy(2))
        workers = children(parent)
        workers[0].kill()
        until(lambda: len(running := children(parent)) == 2 and workers[0] not in running, 60, "the restart")
        at_work(database, busy(2))
        parent.send_signal(signal.SIGTERM)
        sent_at = time.monotonic()
        output, _ = parent.communicate(timeout=20)
        assert time.monotonic() - sent_at < 15
    assert parent.returncode == 0, output
    assert "worker 0 was killed by signal 9 (often: out of memory); restarting it in 1 s" in output
    rows = list_claims(connection.engine_of(study), study)
    assert [row["released"] for row in rows] == [True, True]
    assert len(artifacts(tmp_path)) == 2
    connection.engine_of(study).dispose()


@pytest.mark.slow
def test_a_second_sigterm_kills_all_workers_immediately(database: str, tmp_path: Path) -> None:
    tiny(tmp_path, trials=4, epochs=3000, heartbeat=0.3)
    with supervised(tmp_path, database, "--slots", "2") as parent:
        study = at_work(database, busy(2))
        workers = children(parent)
        for child in workers:
            child.suspend()  # it hangs, so it would never stop gracefully
        until(lambda: all(map(is_suspended, workers)), what="the suspension")
        parent.send_signal(signal.SIGTERM)
        until(lambda: all(map(sigterm_pending, workers)), what="the pool to pass the signal on")
        assert parent.poll() is None
        parent.send_signal(signal.SIGTERM)
        parent.communicate(timeout=10)
        assert parent.returncode == 130
        assert not any(child.is_running() for child in workers)
    connection.engine_of(study).dispose()


@pytest.mark.slow
def test_workers_release_their_trials_when_their_parent_is_killed(database: str, tmp_path: Path) -> None:
    tiny(tmp_path, trials=4, epochs=3000, heartbeat=0.3, grace=1000)
    with supervised(tmp_path, database, "--slots", "2") as parent:
        study = at_work(database, busy(2))
        workers = children(parent)
        parent.kill()
        psutil.wait_procs(workers, timeout=20)
        assert not any(child.is_running() for child in workers)
    rows = list_claims(connection.engine_of(study), study)
    assert [row["released"] for row in rows] == [True, True]
    connection.engine_of(study).dispose()


@pytest.mark.slow
def test_a_refused_worker_is_not_restarted(database: str, tmp_path: Path) -> None:
    tiny(tmp_path, trials=1)
    with supervised(tmp_path, database) as worker:
        assert worker.wait(120) == 0
    tiny(tmp_path, trials=2, fold_seed=1)
    with supervised(tmp_path, database, "--slots", "2") as parent:
        output, _ = parent.communicate(timeout=120)
    assert parent.returncode == 4
    assert output.count("split.seed is 1 here and 0 in the study") == 2
    assert "restarting" not in output


@pytest.mark.slow
def test_a_slot_without_a_database_is_filled_again(database: str, tmp_path: Path) -> None:
    tiny(tmp_path, trials=1)
    missing = f"{database.replace('test_', 'missing_')}"  # which no worker waits for by itself
    with supervised(tmp_path, missing, "--slots", "1") as parent:
        assert parent.stdout is not None
        lines = iter(parent.stdout.readline, "")
        assert any("worker 0 ended with exit code 3; restarting it in 1 s" in line for line in lines)
        assert parent.poll() is None


def test_the_pause_before_a_restart_doubles_up_to_a_minute() -> None:
    for crashes, seconds in ((1, 1.0), (2, 2.0), (5, 16.0), (7, 60.0), (10, 60.0)):
        pauses = [RESTART_PAUSES.pause(crashes) for _ in range(50)]
        assert 0.8 * seconds <= min(pauses) < max(pauses) <= seconds


@pytest.mark.parametrize(
    ("code", "text"),
    [
        (1, "ended with exit code 1"),
        (75, "exited to free its memory"),
        (76, "exited because its trial stalled"),
        (-9, "was killed by signal 9 (often: out of memory)"),
        (-11, "was killed by signal 11"),
    ],
)
def test_a_workers_end_is_described_by_its_exit_code(code: int, text: str) -> None:
    assert describe_exit(code) == text
