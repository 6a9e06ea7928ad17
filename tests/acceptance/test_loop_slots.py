"""`hpo worker --slots`: a process per slot, on its own GPU, started again after a crash, stopped with its parent."""

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
    ("visible", "found"),
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
def test_what_cuda_may_see_is_respected(visible: str | None, found: list[str], two_gpus: Path) -> None:
    assert slots.visible_gpus({} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}) == found


def test_slots_take_the_gpus_in_turn_and_share_the_cores(two_gpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slots, "usable_cores", lambda: 16)
    assert [(slot.number, slot.gpu, slot.threads) for slot in slots.plan_slots(None, per_gpu=2)] == [
        (0, UUIDS[0], 4),
        (1, UUIDS[1], 4),
        (2, UUIDS[0], 4),
        (3, UUIDS[1], 4),
    ]
    assert len(slots.plan_slots(1)) == 1
    with pytest.raises(UserError, match="3 slots do not fit on 2 GPUs with 1 each: give --slots 2 or fewer"):
        slots.plan_slots(3)
    assert slots.plan_slots(None)[0].environment() == {
        "CUDA_VISIBLE_DEVICES": UUIDS[0],
        "OMP_NUM_THREADS": "8",
        "MKL_NUM_THREADS": "8",
    }


def test_without_gpus_slots_share_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr(slots, "usable_cores", lambda: 16)
    assert [(slot.gpu, slot.threads) for slot in slots.plan_slots(None)] == [(None, 4)] * 4
    assert [slot.threads for slot in slots.plan_slots(32)] == [1] * 32


# ---- processes -------------------------------------------------------------------------------------------------------


@contextmanager
def supervised(folder: Path, url: str, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    process = command(folder, url, "worker", "tiny.toml", *arguments)
    try:
        yield process
    finally:
        left = children(process)
        process.kill()
        process.communicate()
        for child in left:
            if child.is_running():
                child.kill()


def children(process: subprocess.Popen[str]) -> list[psutil.Process]:
    try:
        found = psutil.Process(process.pid).children()
        return [child for child in found if "--slot" in child.cmdline()]
    except psutil.Error:
        return []


def busy(many: int) -> Callable[[list[dict[str, Any]]], bool]:
    """So many living workers have ended an epoch."""
    return lambda rows: (
        sum(row["epoch"] > 0 and not row["released"] and psutil.pid_exists(row["pid"]) for row in rows) >= many
    )


@pytest.mark.slow
def test_every_worker_sees_its_own_gpu_and_finds_its_end(two_gpus: Path, database: str, tmp_path: Path) -> None:
    tiny(tmp_path, trials=4)
    with supervised(tmp_path, database, "--slots", "auto") as parent:
        crew = until(lambda: len(found := children(parent)) == 2 and found)
        seen = {
            child.cmdline()[child.cmdline().index("--slot") + 1]: child.environ().get("CUDA_VISIBLE_DEVICES")
            for child in crew
        }
        assert seen == {"0": UUIDS[0], "1": UUIDS[1]}
        said, _ = parent.communicate(timeout=120)
    assert parent.returncode == 0, said
    assert said.splitlines()[0] == f"slot 0: {UUIDS[0]}, {slots.usable_cores() // 2 or 1} CPU threads"
    study = study_of(database)
    assert count_trials(study) == Counts(complete=4)
    connection.engine_of(study).dispose()


@pytest.mark.slow
def test_a_crashed_worker_is_started_again_and_a_term_drains_all(database: str, tmp_path: Path) -> None:
    tiny(tmp_path, trials=4, epochs=3000, grace=2, heartbeat=0.3, checkpoint=0.3)
    with supervised(tmp_path, database, "--slots", "2") as parent:
        study = at_work(database, busy(2))
        first = children(parent)
        first[0].kill()
        until(lambda: len(now := children(parent)) == 2 and first[0] not in now and now, 60, "another in its place")
        at_work(database, busy(2))
        parent.send_signal(signal.SIGTERM)
        asked = time.monotonic()
        said, _ = parent.communicate(timeout=20)
        assert time.monotonic() - asked < 15
    assert parent.returncode == 0, said
    assert "worker 0 was killed by signal 9 (often: out of memory); another takes its place in 1 s" in said
    rows = list_claims(connection.engine_of(study), study)
    assert [row["released"] for row in rows] == [True, True]
    assert len(artifacts(tmp_path)) == 2
    connection.engine_of(study).dispose()


@pytest.mark.slow
def test_a_second_term_ends_all_at_once(database: str, tmp_path: Path) -> None:
    tiny(tmp_path, trials=4, epochs=3000, heartbeat=0.3)
    with supervised(tmp_path, database, "--slots", "2") as parent:
        study = at_work(database, busy(2))
        crew = children(parent)
        for child in crew:
            child.suspend()  # hangs: would never drain
        parent.send_signal(signal.SIGTERM)
        time.sleep(0.5)
        assert parent.poll() is None
        parent.send_signal(signal.SIGTERM)
        parent.communicate(timeout=10)
        assert parent.returncode == 130
        assert not any(child.is_running() for child in crew)
    connection.engine_of(study).dispose()


@pytest.mark.slow
def test_workers_hand_back_when_their_parent_is_killed(database: str, tmp_path: Path) -> None:
    tiny(tmp_path, trials=4, epochs=3000, heartbeat=0.3, grace=1000)
    with supervised(tmp_path, database, "--slots", "2") as parent:
        study = at_work(database, busy(2))
        crew = children(parent)
        parent.kill()
        psutil.wait_procs(crew, timeout=20)
        assert not any(child.is_running() for child in crew)
    rows = list_claims(connection.engine_of(study), study)
    assert [row["released"] for row in rows] == [True, True]
    connection.engine_of(study).dispose()


@pytest.mark.slow
def test_a_refused_worker_is_not_started_again(database: str, tmp_path: Path) -> None:
    tiny(tmp_path, trials=1)
    with supervised(tmp_path, database) as one:
        assert one.wait(120) == 0
    tiny(tmp_path, trials=2, fold_seed=1)
    with supervised(tmp_path, database, "--slots", "2") as parent:
        said, _ = parent.communicate(timeout=120)
    assert parent.returncode == 4
    assert said.count("split.seed is 1 here and 0 in the study") == 2
    assert "another takes its place" not in said
