"""Opening a storage and a study on a real Postgres: by URL and embedded, at once, and with owners killed."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from processes import PROCESSES

from sparse_evidence.core.errors import UserError
from sparse_evidence.hpo.database import address, connection, embedded, studies
from sparse_evidence.hpo.database import optuna_storage as rdb
from sparse_evidence.hpo.errors import RefusedError, StorageError

IDENTITY = {
    "definition": {"search": {"seed": 0}},
    "definition_sha256": "d" * 64,
    "data_sha256": "a" * 64,
    "folds_sha256": "f" * 64,
    "code": "0.1.0",
}


def until(condition: Callable[[], Any], seconds: float = 20.0) -> Any:
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)
    return found


@pytest.fixture
def opened(database: str) -> Iterator[Any]:
    made = connection.open_storage(database, retry_seconds=10)
    yield made
    connection.engine_of(made).dispose()


def open_study(opened: Any, **given: Any) -> Any:
    return studies.open_study(opened, "s", **({"direction": "maximize", "identity": IDENTITY} | given))


# ---- URLs -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", ["postgres", "postgresql", "postgresql+psycopg2"])
def test_every_spelling_of_postgres_is_understood(scheme: str) -> None:
    with address.storage_url(f"{scheme}://me:pw@db:5433/x?sslmode=require") as url:
        assert url == "postgresql+psycopg2://me:pw@db:5433/x?sslmode=require"


def test_the_environment_names_a_storage_and_the_option_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HPO_STORAGE", "postgresql://there/x")
    with address.storage_url() as url:
        assert url == "postgresql+psycopg2://there/x"
    with address.storage_url("postgresql://here/x") as url:
        assert url == "postgresql+psycopg2://here/x"


@pytest.mark.parametrize("url", ["sqlite:///x.db", "mysql://me:secret@db/x", "postgresql+psycopg://me:secret@db/x"])
def test_another_database_is_a_users_mistake(url: str) -> None:
    with pytest.raises(UserError, match="not Postgres: only postgresql://") as caught, address.storage_url(url):
        pass
    assert "secret" not in str(caught.value)


def test_what_is_no_url_is_not_shown() -> None:
    with pytest.raises(UserError, match="cannot be read") as caught, address.storage_url("db secret"):
        pass
    assert "secret" not in str(caught.value)


def test_the_password_may_come_from_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    secret = tmp_path / "secret"
    secret.write_text("p@ss{w}\n")
    monkeypatch.setenv("HPO_STORAGE_PASSWORD_FILE", str(secret))
    assert sa.make_url(address.normalize_url("postgresql://me@db/x")).password == "p@ss{w}"
    assert sa.make_url(address.normalize_url("postgresql://me:own@db/x")).password == "own"
    secret.unlink()
    with pytest.raises(UserError, match="HPO_STORAGE_PASSWORD_FILE"):
        address.normalize_url("postgresql://me@db/x")


def test_a_password_is_masked_wherever_it_stands() -> None:
    assert address.mask_password("postgresql://me:secret@db/x") == "postgresql://me:***@db/x"
    assert "secret" not in address.mask_password("postgresql://db/x?password=secret")


def test_a_database_out_of_reach_is_told_in_one_sentence_without_the_password() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    start = time.monotonic()
    with pytest.raises(StorageError, match=r"cannot be reached .*refused.*check that Postgres runs") as caught:
        connection.open_storage(f"postgresql://me:secret@127.0.0.1:{port}/x")
    assert time.monotonic() - start < 10
    assert "secret" not in str(caught.value)
    assert "me:***@127.0.0.1" in str(caught.value)


def test_a_server_that_never_answers_is_out_of_reach(monkeypatch: pytest.MonkeyPatch) -> None:
    assert connection.CONNECT_SECONDS < 10
    monkeypatch.setattr(connection, "CONNECT_SECONDS", 2)
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        start = time.monotonic()
        with pytest.raises(StorageError, match="cannot be reached"):
            connection.open_storage(f"postgresql://me@127.0.0.1:{deaf.getsockname()[1]}/x")
        assert time.monotonic() - start < 5


# ---- storage --------------------------------------------------------------------------------------------------------


def test_sessions_are_what_we_ask_for(database: str) -> None:
    made = connection.open_storage(database + "&options=-c%20search_path%3Dpublic")
    with connection.engine_of(made).connect() as session:
        shown = {
            name: session.execute(sa.text(f"SHOW {name}")).scalar()
            for name in ("TimeZone", "statement_timeout", "search_path", "application_name")
        }
    connection.engine_of(made).dispose()
    assert shown["TimeZone"] == "UTC"
    assert shown["statement_timeout"] == "1min"
    assert shown["search_path"] == "public"
    assert shown["application_name"] == f"hpo {socket.gethostname()}:{os.getpid()}"


def _join(url: str, gate: Any, into: Any) -> None:
    gate.wait()
    opened = connection.open_storage(url)
    study = open_study(opened, default_parameters={"x": 0.5})
    into.put((study._study_id, len(study.trials)))
    connection.engine_of(opened).dispose()


def test_sixteen_processes_open_one_study_on_an_empty_database(empty_database: str) -> None:
    gate, answers = PROCESSES.Barrier(16), PROCESSES.Queue()
    processes = [PROCESSES.Process(target=_join, args=(empty_database, gate, answers)) for _ in range(16)]
    for process in processes:
        process.start()
    assert {answers.get(timeout=60) for _ in processes} == {(1, 1)}
    for process in processes:
        process.join()
        assert process.exitcode == 0


def test_a_call_waits_for_the_database_and_gives_up_in_a_sentence() -> None:
    calls = []

    def away(times: int) -> str:
        calls.append(1)
        if len(calls) <= times:
            raise sa.exc.OperationalError("SELECT 1", {}, Exception("gone"))
        return "back"

    assert rdb.retry(lambda: away(2), 10) == "back"
    with pytest.raises(StorageError, match="out of reach for 0 s"):
        rdb.retry(lambda: away(100), 0.2)


def test_a_wrong_statement_is_not_repeated() -> None:
    calls = []

    def wrong() -> None:
        calls.append(1)
        raise sa.exc.ProgrammingError("SELEC", {}, Exception("syntax"))

    with pytest.raises(sa.exc.ProgrammingError):
        rdb.retry(wrong, 10)
    assert len(calls) == 1


class Pooler:
    """Refuses session settings as pgbouncer does, and else passes bytes on to a Postgres."""

    def __init__(self, target: Path) -> None:
        self._target = str(target)
        self.refused = 0
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                threading.Thread(target=self._serve, args=(self._listener.accept()[0],), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with client:
            packet = client.recv(65536)
            while packet[4:8] in {b"\x04\xd2\x16\x2f", b"\x04\xd2\x16\x30"}:  # TLS? GSS? no
                client.sendall(b"N")
                packet = client.recv(65536)
            if b"\0options\0" in packet:
                self.refused += 1
                fields = b"SFATAL\0C08P01\0Munsupported startup parameter: options\0\0"
                client.sendall(b"E" + (len(fields) + 4).to_bytes(4, "big") + fields)
                return
            with socket.socket(socket.AF_UNIX) as server, suppress(OSError):
                server.connect(self._target)
                server.sendall(packet)
                back = threading.Thread(target=self._pump, args=(server, client), daemon=True)
                back.start()
                self._pump(client, server)
                back.join()

    @staticmethod
    def _pump(source: socket.socket, sink: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                sink.sendall(data)
            sink.shutdown(socket.SHUT_WR)


def test_a_pooler_that_refuses_session_settings_will_do(database: str) -> None:
    pooler = Pooler(Path(str(sa.make_url(database).query["host"])) / ".s.PGSQL.5432")
    url = sa.make_url(database).set(host="127.0.0.1", port=pooler.port, query={})
    opened = connection.open_storage(url.render_as_string(hide_password=False))
    assert open_study(opened, default_parameters={"x": 0.5}).trials[0].system_attrs["fixed_params"] == {"x": 0.5}
    assert pooler.refused == 1
    connection.engine_of(opened).dispose()
    pooler.close()


def test_a_server_that_is_starting_or_full_is_waited_for(database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    probe, said = (
        connection._probe,
        ["FATAL: the database system is starting up", "FATAL: sorry, too many clients already"],
    )

    def busy(*args: Any) -> bool:
        if said:
            raise StorageError(said.pop())
        return probe(*args)

    monkeypatch.setattr(connection, "_probe", busy)
    connection.engine_of(connection.open_storage(database)).dispose()
    assert said == []


# ---- study ----------------------------------------------------------------------------------------------------------


def test_a_study_is_created_once_with_its_defaults_as_trial_0(opened: Any) -> None:
    study = open_study(opened, default_parameters={"x": 0.5})
    again = open_study(opened, default_parameters={"x": 0.5})
    assert again._study_id == study._study_id
    assert [t.system_attrs["fixed_params"] for t in again.trials] == [{"x": 0.5}]
    assert studies.load_study(opened, "s").user_attrs["hpo:identity"] == IDENTITY


def test_a_commit_whose_answer_got_lost_queues_the_defaults_once(opened: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    commit = sa.engine.Connection._commit_impl
    lost: list[int] = []

    def once(connection: sa.Connection) -> None:
        commit(connection)
        if not lost and "hpo:identity" in connection.info.get("said", ""):
            lost.append(1)
            raise sa.exc.OperationalError("COMMIT", {}, Exception("server closed the connection"))

    def listen(connection: Any, _: Any, __: Any, parameters: Any, *___: Any) -> None:
        connection.info["said"] = str(parameters)

    sa.event.listen(connection.engine_of(opened), "before_cursor_execute", listen)
    monkeypatch.setattr(sa.engine.Connection, "_commit_impl", once)
    study = open_study(opened, default_parameters={"x": 0.5})
    assert lost
    assert len(study.trials) == 1


def test_what_differs_is_refused_by_name(opened: Any) -> None:
    open_study(opened)
    other = IDENTITY | {
        "definition": {"search": {"seed": 1}},
        "definition_sha256": "e" * 64,
        "data_sha256": "b" * 64,
        "code": "0.2.0",
    }
    with pytest.raises(RefusedError) as caught:
        open_study(opened, identity=other, direction="minimize")
    assert str(caught.value).partition("something else: ")[2] == (
        "search.seed is 1 here and 0 in the study; the data differ (bbbbbbbbbbbb here, aaaaaaaaaaaa in the study); "
        "the code version differs (0.2.0 here, 0.1.0 in the study); "
        "the direction is minimize here and maximize in the study; "
        "use what it was started with, or give this study another name."
    )
    with pytest.raises(RefusedError, match="told by the definition"):
        open_study(opened, identity=other, differences=lambda _, __: ["told by the definition"])


def test_a_study_of_somebody_else_is_refused_and_a_half_made_one_completed(opened: Any) -> None:
    import optuna

    half = optuna.create_study(storage=opened, study_name="s", direction="maximize")
    half.enqueue_trial({"x": 1})
    assert len(open_study(opened, default_parameters={"x": 1}).trials) == 1
    foreign = optuna.create_study(storage=opened, study_name="foreign")
    foreign.ask()
    with pytest.raises(RefusedError, match="not made by hpo"):
        studies.open_study(opened, "foreign", direction="minimize", identity=IDENTITY)


def test_a_missing_study_says_what_to_do(opened: Any) -> None:
    with pytest.raises(UserError, match=r"no study 'nothing' in postgresql.*start it with `hpo run`"):
        studies.load_study(opened, "nothing")


# ---- embedded -------------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """A folder for an embedded server; root's data is elsewhere and cleaned up too."""
    yield tmp_path
    for known in tmp_path.rglob(".hpo/id"):
        for base in embedded.ROOT_BASES:
            shutil.rmtree(base / known.read_text().strip(), ignore_errors=True)


def answer(url: str) -> int:
    """The server's process, asked through a connection."""
    engine = sa.create_engine(url, poolclass=sa.NullPool)
    with engine.connect() as connection:
        data = connection.execute(sa.text("SHOW data_directory")).scalar()
    return int((Path(str(data)) / "postmaster.pid").read_text().split()[0])


def running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def _use(folder: str, into: Any, leave: Any) -> None:
    with address.storage_url(folder=Path(folder)) as url:
        into.put(answer(url))
        leave.wait()


class User:
    """A process that uses the folder's server until told to leave."""

    def __init__(self, folder: Path) -> None:
        self.pids, self.leave = PROCESSES.Queue(), PROCESSES.Event()
        self.process = PROCESSES.Process(target=_use, args=(str(folder), self.pids, self.leave))
        self.process.start()

    def server(self) -> int:
        pid: int = self.pids.get(timeout=60)
        return pid

    def go(self) -> None:
        self.leave.set()
        self.process.join()
        assert self.process.exitcode == 0


def test_two_processes_at_once_share_a_server_and_the_last_one_stops_it(folder: Path) -> None:
    first, second = User(folder), User(folder)
    server = first.server()
    assert second.server() == server
    first.go()
    assert running(server)
    second.go()
    assert not running(server)


def test_a_killed_owners_server_is_adopted_and_stopped(folder: Path) -> None:
    owner = User(folder)
    server = owner.server()
    owner.process.kill()
    owner.process.join()
    assert running(server)
    heir = User(folder)
    assert heir.server() == server
    heir.go()
    assert not running(server)


def test_a_killed_server_is_started_again_with_its_data(folder: Path) -> None:
    with address.storage_url(folder=folder) as url:
        opened = connection.open_storage(url)
        open_study(opened)
        connection.engine_of(opened).dispose()
        server = answer(url)
        os.kill(server, signal.SIGKILL)
        until(lambda: not running(server))
    with address.storage_url(folder=folder) as url:
        assert answer(url) != server
        opened = connection.open_storage(url)
        assert studies.load_study(opened, "s").study_name == "s"
        connection.engine_of(opened).dispose()


def test_a_deep_folder_is_private_and_works(folder: Path) -> None:
    deep = folder / ("very deep, with a space " * 4) / ("and deeper " * 8)
    with address.storage_url(folder=deep) as url:
        assert running(answer(url))
        sockets = Path(str(sa.make_url(url).query["host"]))
        assert sockets.stat().st_mode & 0o077 == 0
        assert (deep / ".hpo").stat().st_mode & 0o077 == 0


def test_a_folder_that_cannot_be_written_is_told(folder: Path) -> None:
    (folder / ".hpo").write_text("in the way")
    with pytest.raises(UserError, match=r"\.hpo cannot be written .*--storage URL"), address.storage_url(folder=folder):
        pass
