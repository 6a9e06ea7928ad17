"""The embedded Postgres: shared, adopted, restarted and stopped, with processes killed."""

from __future__ import annotations

import os
import re
import shutil
import signal
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from disks import small_disk
from optuna.study import StudyDirection
from processes import PROCESSES
from waiting import until

from sparse_evidence.core.errors import UserError
from sparse_evidence.hpo.database import address, connection, embedded, embedded_root, studies
from sparse_evidence.hpo.errors import StorageError


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """A folder for an embedded server; root's data is elsewhere and cleaned up too."""
    yield tmp_path
    for known in tmp_path.rglob(".hpo/id"):
        for base in embedded_root.BASES:
            shutil.rmtree(base / known.read_text().strip(), ignore_errors=True)


def server_pid(url: str) -> int:
    """The server's process, read through a connection."""
    engine = sa.create_engine(url, poolclass=sa.NullPool)
    with engine.connect() as connection:
        data = connection.execute(sa.text("SHOW data_directory")).scalar()
    return int((Path(str(data)) / "postmaster.pid").read_text().split()[0])


def running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def _use(folder: str, pids: Any, leave: Any) -> None:
    with address.storage_url(folder=Path(folder)) as url:
        pids.put(server_pid(url))
        leave.wait()


class User:
    """A process that uses the folder's server until it is stopped."""

    def __init__(self, folder: Path) -> None:
        self.pids, self.leave = PROCESSES.Queue(), PROCESSES.Event()
        self.process = PROCESSES.Process(target=_use, args=(str(folder), self.pids, self.leave))
        self.process.start()

    def server(self) -> int:
        pid: int = self.pids.get(timeout=60)
        return pid

    def stop(self) -> None:
        self.leave.set()
        self.process.join()
        assert self.process.exitcode == 0


def test_two_processes_share_a_server_and_the_last_one_stops_it(folder: Path) -> None:
    first, second = User(folder), User(folder)
    server = first.server()
    assert second.server() == server
    first.stop()
    assert running(server)
    second.stop()
    assert not running(server)


def test_the_server_of_a_killed_process_is_adopted_and_stopped(folder: Path) -> None:
    owner = User(folder)
    server = owner.server()
    owner.process.kill()
    owner.process.join()
    assert running(server)
    successor = User(folder)
    assert successor.server() == server
    successor.stop()
    assert not running(server)


def test_a_killed_server_is_started_again_with_its_data(folder: Path) -> None:
    with address.storage_url(folder=folder) as url:
        storage = connection.open_storage(url)
        storage.create_new_study([StudyDirection.MAXIMIZE], "s")
        connection.engine_of(storage).dispose()
        server = server_pid(url)
        os.kill(server, signal.SIGKILL)
        until(lambda: not running(server))
    with address.storage_url(folder=folder) as url:
        assert server_pid(url) != server
        storage = connection.open_storage(url)
        assert studies.load_study(storage, "s").study_name == "s"
        connection.engine_of(storage).dispose()


def test_a_server_that_is_killed_is_brought_back_by_who_uses_it(folder: Path) -> None:
    with address.storage_url(folder=folder) as url:
        server = server_pid(url)
        os.kill(server, signal.SIGKILL)
        assert until(lambda: answering(url), 60) != server
    assert not running(server)


def test_a_deep_folder_keeps_its_url_when_its_server_is_killed(folder: Path) -> None:
    deep = folder / ("and deeper " * 12)
    with address.storage_url(folder=deep) as url:
        os.kill(server_pid(url), signal.SIGKILL)
        until(lambda: answering(url), 60)


def test_a_server_that_hangs_can_be_stopped_and_started(own_server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded, "STOP_SECONDS", 1.0)  # for as long it is asked to stop, in vain
    server, _ = own_server
    hanging = server.pid()
    os.kill(hanging, signal.SIGSTOP)  # so that neither connecting nor stopping ever ends
    server.start(hung_seconds=0.5)
    assert server.answers()
    assert server.pid() != hanging
    os.kill(server.pid(), signal.SIGSTOP)
    server.stop(seconds=1)
    assert server.pid() is None


def answering(url: str) -> int | None:
    """The server's process, once it answers."""
    try:
        return server_pid(url)
    except sa.exc.OperationalError:
        return None


def test_a_deep_folder_is_private_and_works(folder: Path) -> None:
    deep = folder / ("very deep, with a space " * 4) / ("and deeper " * 8)
    with address.storage_url(folder=deep) as url:
        assert running(server_pid(url))
        sockets = Path(str(sa.make_url(url).query["host"]))
        assert sockets.stat().st_mode & 0o077 == 0
        assert (deep / ".hpo").stat().st_mode & 0o077 == 0


def test_a_folder_that_cannot_be_written_is_a_user_error(folder: Path) -> None:
    (folder / ".hpo").write_text("in the way")
    with pytest.raises(UserError, match=r"\.hpo cannot be written .*--storage URL"), address.storage_url(folder=folder):
        pass


# ---- what another account may have laid -----------------------------------------------------------------------------

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root runs the server under another account")


def test_a_forged_postmaster_pid_names_no_file_that_is_removed(own_server: Any, tmp_path: Path) -> None:
    """For root, the file belongs to the account that runs the server."""
    server, _ = own_server
    victim = tmp_path / "hpo-pg-victim"
    victim.mkdir()
    lock = victim / ".s.PGSQL.5432.lock"
    lock.touch()
    pid_file = server.data / "postmaster.pid"
    lines = pid_file.read_text().splitlines()
    pid_file.write_text("\n".join([*lines[:4], str(victim), *lines[5:]]))
    server.stop()
    assert lock.exists()
    assert server.pid() is None
    for forged in (f"{os.getpid()}\n{server.data}\n0\n5432\n{victim}\n", "-1\n\n\n../x\n/\n", "9" * 30):
        pid_file.write_text(forged)
        assert not server.answers()
        assert server.pid() is None
        with suppress(StorageError):
            server.start()
        assert lock.exists()
        server.stop()
        pid_file.unlink(missing_ok=True)
    server.start()


@pytest.mark.parametrize("leads", ["a link", "a link to a folder", "of another user"])
@as_root
def test_root_uses_no_hpo_folder_that_someone_else_made(leads: str, folder: Path) -> None:
    secret = folder / "secret"
    secret.mkdir()
    (secret / "id").write_text("keep me")
    hpo = folder / "project" / ".hpo"
    hpo.parent.mkdir()
    os.chown(hpo.parent, 12345, 12345)
    if leads == "a link to a folder":
        hpo.symlink_to(secret)
        os.chown(hpo, 12345, 12345, follow_symlinks=False)
    else:
        hpo.mkdir()
        (hpo / "id").symlink_to(secret / "id")
    if leads == "of another user":
        os.chown(hpo, 12345, 12345)
    expected = "cannot be written" if leads == "a link" else "belongs to another user: run in a folder of your own"
    with pytest.raises(UserError, match=expected), address.storage_url(folder=hpo.parent):
        pass
    assert (secret / "id").read_text() == "keep me"
    (hpo / "id").unlink()  # before the fixture follows it


@as_root
def test_a_full_disk_is_the_first_thing_that_is_said() -> None:
    home = Path(tempfile.mkdtemp(prefix="hpo-tests-"))
    try:
        home.chmod(0o711)  # on the way to it, too: the server's account cannot enter pytest's folders
        with small_disk(home / "full", "8m") as full, pytest.raises(StorageError) as caught:
            embedded.Server(full).initialize()
    finally:
        shutil.rmtree(home)
    reason = r"failed at initdb \(could not \w+ .{0,80}: No space left on device\): fix that, or name a Postgres"
    assert re.search(reason, str(caught.value))
    assert len(str(caught.value)) < 400
