"""`hpo status`: which worker works on which trial, and which trials were started more than once."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
from pathlib import Path

import pytest
from loop_tools import CountEpochs, SlowEpochs, command, running_workers, study_of, tiny, until

from sparse_evidence.hpo.database import connection
from sparse_evidence.hpo.database.claims_sql import list_claims

pytestmark = pytest.mark.slow


def hpo_status(folder: Path, url: str, *arguments: str) -> str:
    process = command(folder, url, "status", "tiny.toml", *arguments, COLUMNS="200")
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 0, output
    return output


def test_status_shows_workers_and_attempts(database: str, tmp_path: Path) -> None:
    tiny(tmp_path, trials=3, grace=1, heartbeat=0.3)
    done = CountEpochs(tmp_path / "done")
    arguments = ("worker", "tiny.toml", "--slot", "5", "--threads", "1")
    with running_workers(tmp_path, database, 1, *arguments, faults=[done, SlowEpochs(0.2)]) as (first,):
        until(lambda: done.epochs >= 3, 60)
        first.kill()
    with running_workers(tmp_path, database, 1, *arguments, faults=[done, SlowEpochs(0.5)]) as (second,):
        study = study_of(database)
        rows = until(lambda: (r := list_claims(connection.engine_of(study), study)) and r[0]["attempt"] == 2 and r, 60)
        assert rows[0]["pid"] == second.pid
        state = json.loads(hpo_status(tmp_path, database, "--json"))
        table = hpo_status(tmp_path, database)
        second.send(signal.SIGTERM)
        assert second.end() == 0
    assert set(state) >= {"study", "trials", "best", "workers", "attempts"}
    assert set(state["trials"]) >= {"requested", "complete", "pruned", "failed", "infeasible", "running"}
    assert (state["study"], state["trials"]["requested"], state["trials"]["running"]) == ("tiny", 3, 1)
    (row,) = state["workers"]
    assert (row["host"], row["pid"], row["slot"], row["gpu"]) == (socket.gethostname(), second.pid, 5, None)
    assert (row["trial"], row["attempt"], row["released"]) == (0, 2, False)
    assert {"stage", "epoch"} <= set(row)
    assert 0 <= row["heartbeat_age"] < 20
    assert state["attempts"] == {"0": 2}
    assert "started more than once: trial 0 (2 times)" in table
    assert socket.gethostname() in table
    assert "released" in hpo_status(tmp_path, database)
    connection.engine_of(study).dispose()


def test_status_of_a_study_that_was_never_started_is_an_error(database: str, tmp_path: Path) -> None:
    tiny(tmp_path)
    process: subprocess.Popen[str] = command(tmp_path, database, "status", "tiny.toml")
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 2
    assert output.startswith("hpo: There is no study 'tiny' in ")
