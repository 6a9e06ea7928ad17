"""A TCP proxy in front of a real Postgres that can fail like networks, servers and poolers."""

from __future__ import annotations

import socket
import threading
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import sqlalchemy as sa

ENCRYPTION_REQUESTS = {b"\x04\xd2\x16\x2f", b"\x04\xd2\x16\x30"}  # TLS, GSS
COMMIT = b"Q\x00\x00\x00\x0bCOMMIT\x00"
BEGIN = b"Q\x00\x00\x00\x0aBEGIN"
DONE = b"Z\x00\x00\x00\x05I"
"""The server is ready for the next message, and no transaction is open."""


@dataclass(eq=False)
class Session:
    """A client's connection and ours to the server."""

    client: socket.socket
    server: socket.socket
    statements: bytes = b""
    """Everything the client has sent in its transaction."""
    in_transaction: bool = False
    """Whether a transaction is open; without one, every message is committed by itself."""
    loses_answer: bool = False

    def close(self) -> None:
        for end in (self.client, self.server):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()


@dataclass(eq=False)
class LostCommit:
    """A commit that is delivered while its answer is lost."""

    containing: bytes
    happened: threading.Event = field(default_factory=threading.Event)


class Proxy:
    """Forwards bytes between a TCP port and the server of `database_url`, which listens on a Unix socket."""

    def __init__(self, database_url: str) -> None:
        self._database = sa.make_url(database_url)
        self._target = str(Path(str(self._database.query["host"])) / ".s.PGSQL.5432")
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._sessions: set[Session] = set()
        self._lock = threading.Lock()
        self._lost_commit: LostCommit | None = None
        self.refusals: list[tuple[str, str]] = []
        """SQLSTATE and message with which the next connections are refused, one each."""
        self.refuses_options = False
        """Whether session settings at the start are refused, as pgbouncer does."""
        self.refused = 0
        self.messages = 0
        """Statements that clients have sent; each waits for an answer."""
        self._listen()

    @property
    def url(self) -> str:
        """The URL of the database through this proxy."""
        return self._database.set(host="127.0.0.1", port=self.port, query={}).render_as_string(hide_password=False)

    def cut(self) -> None:
        """Close all connections and refuse new ones."""
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        with self._lock:
            sessions = list(self._sessions)
        for session in sessions:
            session.close()

    def restore(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", self.port))
        self._listen()

    def close(self) -> None:
        self.cut()

    def lose_answer_to_commit(self, containing: str = "") -> threading.Event:
        """Deliver the next commit of a transaction with this text in it, but cut the connection before the answer.

        Returns an event that is set when that has happened.
        """
        self._lost_commit = LostCommit(containing.encode())
        return self._lost_commit.happened

    def _listen(self) -> None:
        threading.Thread(target=self._accept, args=(self._listener,), daemon=True).start()

    def _accept(self, listener: socket.socket) -> None:
        with suppress(OSError):
            while True:
                client, _ = listener.accept()
                threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with suppress(OSError), client:
            startup = client.recv(65536)
            while startup[4:8] in ENCRYPTION_REQUESTS:
                client.sendall(b"N")
                startup = client.recv(65536)
            if self.refuses_options and b"\0options\0" in startup:
                self._refuse(client, "08P01", "unsupported startup parameter: options")
            elif self.refusals:
                self._refuse(client, *self.refusals.pop(0))
            elif startup:
                self._connect(client, startup)

    def _refuse(self, client: socket.socket, state: str, message: str) -> None:
        self.refused += 1
        fields = f"SFATAL\0C{state}\0M{message}\0\0".encode()
        client.sendall(b"E" + (len(fields) + 4).to_bytes(4, "big") + fields)

    def _connect(self, client: socket.socket, startup: bytes) -> None:
        with socket.socket(socket.AF_UNIX) as server:
            server.connect(self._target)
            server.sendall(startup)
            session = Session(client, server)
            with self._lock:
                self._sessions.add(session)
            answers = threading.Thread(target=self._pass_answers, args=(session,), daemon=True)
            answers.start()
            self._pass_statements(session)
            session.close()
            answers.join()
            with self._lock:
                self._sessions.discard(session)

    def _pass_statements(self, session: Session) -> None:
        with suppress(OSError):
            while data := session.client.recv(65536):
                self.messages += data.startswith(b"Q")  # a longer one is not continued with this letter
                session.in_transaction |= data.startswith(BEGIN)
                session.statements += data
                lost = self._lost_commit
                commits = data == COMMIT or not session.in_transaction
                if commits and lost is not None and lost.containing in session.statements:
                    session.loses_answer = True
                if commits or data.startswith(b"Q\x00\x00\x00\x0dROLLBACK"):
                    session.statements, session.in_transaction = b"", False
                session.server.sendall(data)

    def _pass_answers(self, session: Session) -> None:
        with suppress(OSError):
            while data := session.server.recv(65536):
                lost = self._lost_commit
                if session.loses_answer and lost is not None and DONE in data:
                    self._lost_commit = None
                    lost.happened.set()
                    break
                session.client.sendall(data)
        session.close()
