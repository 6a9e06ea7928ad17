"""Two machines, simulated by network namespaces with separate addresses, host names and caches; Postgres over TCP."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

import pytest
from loop_tools import artifacts, started, tiny, until

from sparse_evidence.hpo.database import connection, embedded
from sparse_evidence.hpo.database.claims_sql import Counts, count_trials, list_claims

pytestmark = pytest.mark.slow(seconds=60)


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True)


@dataclass
class Machine:
    """A network namespace, connected to this one by a virtual cable."""

    name: str
    subnet: str

    @property
    def cable(self) -> str:
        return f"{self.name}-0"

    def plug_in(self) -> None:
        ip("netns", "add", self.name)
        ip("link", "add", self.cable, "type", "veth", "peer", "name", "eth0", "netns", self.name)
        ip("addr", "add", f"{self.subnet}.1/30", "dev", self.cable)
        ip("link", "set", self.cable, "up")
        for command in (f"addr add {self.subnet}.2/30 dev eth0", "link set eth0 up", "link set lo up"):
            ip("-n", self.name, *command.split())

    def unplug(self) -> None:
        subprocess.run(["ip", "netns", "del", self.name], check=False, capture_output=True)

    def cut(self) -> None:
        ip("link", "set", self.cable, "down")

    def restore(self) -> None:
        ip("link", "set", self.cable, "up")

    def worker(self, folder: Path, port: int, shared: Path) -> subprocess.Popen[str]:
        """`hpo worker` on this machine, with its own host name, working folder and cache."""
        home = folder / self.name
        home.mkdir()
        study = tiny(home, **STUDY)
        run = f'hostname {self.name} && exec "$@"'
        return subprocess.Popen(
            ["ip", "netns", "exec", self.name, "unshare", "--uts", "sh", "-c", run, "sh",
             sys.executable, "-m", "sparse_evidence.hpo", "worker", str(study), "--threads", "1"],
            cwd=home,
            env=os.environ | {
                "HPO_STORAGE": f"postgresql://postgres@{self.subnet}.1:{port}/postgres",
                "HPO_CACHE": str(home / "cache"),
                "HPO_ARTIFACTS": str(shared),
            },
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )  # fmt: skip


STUDY = {"trials": 6, "epochs": 80, "grace": 3, "heartbeat": 0.5, "checkpoint": 0.2}


@pytest.fixture
def machines() -> Iterator[list[Machine]]:
    number = int(uuid4().hex[:2], 16)
    made = [Machine(f"hpo{number}{letter}", f"10.{213 + place}.{number}") for place, letter in enumerate("ab")]
    if os.geteuid() != 0 or shutil.which("ip") is None or shutil.which("unshare") is None:
        pytest.skip("network namespaces need root and iproute2")
    try:
        for machine in made:
            try:
                machine.plug_in()
            except subprocess.CalledProcessError as error:
                pytest.skip(f"network namespaces are not permitted here: {error.stderr.strip()}")
        yield made
    finally:
        for machine in made:
            machine.unplug()


@pytest.fixture
def tcp_server(machines: list[Machine]) -> Iterator[tuple[str, int]]:
    """A Postgres that both machines reach over TCP: its URL on this machine, and its port."""
    home = Path(tempfile.mkdtemp(prefix="hpo-tests-"))
    home.chmod(0o711)
    port = 20_000 + os.getpid() % 10_000
    listen = ",".join(f"{machine.subnet}.1" for machine in machines)
    options = f"-c fsync=off -c listen_addresses={listen} -c port={port}"
    embedded.Server(home).initialize()
    with (home / "pg" / "pg_hba.conf").open("a") as file:
        file.writelines(f"host all all {machine.subnet}.0/30 trust\n" for machine in machines)
    with embedded.running(home, options) as url:
        yield url, port
    shutil.rmtree(home)


def test_two_machines_finish_one_study_although_a_link_is_cut(
    machines: list[Machine], tcp_server: tuple[str, int], tmp_path: Path
) -> None:
    url, port = tcp_server
    shared = tmp_path / ".hpo" / "artifacts"
    running = [machine.worker(tmp_path, port, shared) for machine in machines]
    near, far = machines
    try:
        study = started(url)
        engine = connection.engine_of(study)

        def active() -> set[str]:
            return {row["host"] for row in list_claims(engine, study) if row["epoch"] and row["heartbeat_age"] < 2}

        until(lambda: active() == {near.name, far.name}, 120, "both machines at work")
        far.cut()
        cut = time.monotonic()
        until(lambda: active() == {near.name}, 20)
        until(lambda: time.monotonic() - cut > STUDY["grace"] + 3)
        far.restore()
        for process in running:
            output, _ = process.communicate(timeout=240)
            assert process.returncode == 0, output
            assert "Traceback" not in output
    finally:
        for process in running:
            process.kill()
            output, _ = process.communicate()
            print(output)
    assert count_trials(study) == Counts(complete=STUDY["trials"])
    assert [len(trial.user_attrs["hpo:curves"]["scores"]) for trial in study.trials] == [3] * STUDY["trials"]
    assert artifacts(tmp_path) == []
    for machine in machines:
        assert list((tmp_path / machine.name / "cache" / "embeddings").iterdir()), "each machine has its own cache"
    engine.dispose()
