"""Time limits of database sessions: a worker that is frozen inside a transaction holds the others up only briefly.

A process can stop anywhere (SIGSTOP, a suspended laptop, a machine without power or network), and what it has locked
stays locked until its session ends. The server ends it: after `idle_in_transaction_session_timeout` if it waits for
the worker, after `tcp_user_timeout` if it cannot send, by `tcp_keepalives_*` if it hears nothing. A wait for a lock
ends after `lock_timeout`, so that nobody waits for ever behind somebody who is gone.

These are settings of the session. A connection pooler hands a session from one client to the next, and so refuses or
ignores them: there the limits are set anew in every transaction.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sqlalchemy import Connection, Engine

STATEMENT_MILLISECONDS = 60_000
"""How long a statement may run."""
LONGEST_IDLE_SECONDS = 10.0
"""How long a transaction may wait for its worker, if the grace period is long."""
SHORTEST_IDLE_SECONDS = 1.0
"""The same if the grace period is short: a worker on a busy machine must not lose its session."""
GRACE_IDLE = 0.25
"""The share of the grace period for which a transaction may wait for its worker."""
IDLE_LOCK = 3.0
"""A lock is waited for this many times longer than its holder may be idle."""
ALIVE = 0.2
"""How often `kept_alive` says so, as a share of the time that a transaction may be idle."""

IDLE = "idle_in_transaction_session_timeout"
IDLE_MILLISECONDS = f"extract(epoch FROM current_setting('{IDLE}')::interval) * 1000"
"""SQL: how long a transaction of this session may be idle."""
_GONE = "client_connection_check_interval"
_OF_TRANSACTIONS = (IDLE, "lock_timeout", "statement_timeout", _GONE)
_NETWORK = {"tcp_keepalives_idle": 30, "tcp_keepalives_interval": 10, "tcp_keepalives_count": 3,
            "tcp_user_timeout": 30_000}  # fmt: skip

Limits = Mapping[str, int]
"""Values of Postgres' settings, by name; times in milliseconds, those of TCP keepalives in seconds."""


def limits(grace_seconds: float) -> dict[str, int]:
    """The limits of a session; for how long a transaction may be idle and wait for a lock follows the grace period."""
    idle = min(LONGEST_IDLE_SECONDS, max(SHORTEST_IDLE_SECONDS, GRACE_IDLE * grace_seconds))
    milliseconds = int(1000 * idle)
    return {
        "statement_timeout": STATEMENT_MILLISECONDS,
        "lock_timeout": int(IDLE_LOCK * milliseconds),
        IDLE: milliseconds,
        **_NETWORK,
    }


def with_check_of_clients(known: Limits) -> dict[str, int]:
    """Add the limit that only Postgres 14 and later know: a statement ends soon after its client has gone."""
    return {**known, _GONE: known[IDLE] // 2}


def as_options(known: Limits) -> str:
    """The limits as options of a new session."""
    return " ".join(f"-c {name}={value}" for name, value in known.items())


def as_statement(known: Limits) -> str:
    """The statement that sets the limits until the end of the transaction in which it runs."""
    local = (f"set_config('{name}', '{known[name]}', true)" for name in _OF_TRANSACTIONS if name in known)
    return f"SELECT {', '.join(local)}"


def limit_transactions(engine: Engine, known: Limits) -> None:
    """Set the limits at the begin of every transaction of the engine, for sessions that a pooler hands around."""
    from sqlalchemy import event

    statement = as_statement(known)

    def begin(connection: Connection) -> None:
        connection.exec_driver_sql(statement)

    event.listen(engine, "begin", begin)


def limit_statements(engine: Engine, known: Limits) -> None:
    """The same for an engine in AUTOCOMMIT: a message of several statements is one transaction, in one round trip."""
    from sqlalchemy import event

    limited = f"{as_statement(known)}; "

    def before(_connection: Connection, _cursor: object, statement: str, parameters: Any, *_: object) -> Any:  # noqa: ANN401
        return limited + statement, parameters

    event.listen(engine, "before_cursor_execute", before, retval=True)


@contextmanager
def kept_alive(connection: Connection) -> Iterator[None]:
    """A block during which the transaction of `connection` may be idle for as long as this process is alive.

    For a lock that is held while something else is done, on other connections or on none: a thread says every few
    seconds that this process is alive. If the process is frozen, so is the thread, and the server ends the session.
    Nothing else may use the connection meanwhile.
    """
    from sqlalchemy.exc import SQLAlchemyError

    milliseconds = connection.exec_driver_sql(f"SELECT {IDLE_MILLISECONDS}").scalar_one()
    pause = ALIVE * float(milliseconds) / 1000 or LONGEST_IDLE_SECONDS
    stop = threading.Event()

    def run() -> None:
        with suppress(SQLAlchemyError):  # a lost connection shows at the commit
            while not stop.wait(pause):
                connection.exec_driver_sql("SELECT 1")

    thread = threading.Thread(target=run, name="keeps a lock", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
