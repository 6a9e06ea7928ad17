"""A real pgbouncer in transaction mode in front of a Postgres that listens on a Unix socket."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import sqlalchemy as sa

SETTINGS = """
[databases]
* = {server}

[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {port}
unix_socket_dir =
auth_type = any
pool_mode = transaction
default_pool_size = {connections}
max_client_conn = 2000
ignore_startup_parameters = {ignored}
"""


def installed() -> str | None:
    """The path of the program; None if it is not installed."""
    return shutil.which("pgbouncer", path=f"{os.environ['PATH']}:/usr/sbin")


@contextmanager
def pooled(database_url: str, *, connections: int, ignored: str = "") -> Iterator[str]:
    """Yield the URL of a database through pgbouncer, which shares few connections among all clients.

    Args:
        database_url: of a server that listens on a Unix socket.
        connections: to the server, however many clients there are.
        ignored: settings at the start of a session that it ignores instead of refusing them.

    Raises:
        FileNotFoundError: pgbouncer is not installed.
    """
    program = installed()
    if program is None:
        raise FileNotFoundError("pgbouncer is not installed (Debian: apt-get install pgbouncer)")
    url = sa.make_url(database_url)
    directory = str(url.query["host"])
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    server = {"host": directory, "port": "5432", "user": url.username, "password": url.password}
    settings = SETTINGS.format(
        server=" ".join(f"{key}={value}" for key, value in server.items() if value),
        port=port,
        connections=connections,
        ignored=ignored,
    )
    # It refuses to run as root; then it runs as the server's user, who must be able to read the settings.
    user = Path(directory).stat().st_uid if os.geteuid() == 0 else None
    with tempfile.NamedTemporaryFile("w", prefix="pgbouncer-", suffix=".ini") as file:
        file.write(settings)
        file.flush()
        if user is not None:
            os.chown(file.name, user, -1)
        process = subprocess.Popen(
            [program, "--quiet", file.name], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, user=user, cwd="/"
        )
        while not _listens(port):
            if process.poll() is not None:
                raise RuntimeError(f"pgbouncer ended with {process.returncode}")
            time.sleep(0.05)
    try:
        yield url.set(host="127.0.0.1", port=port, query={}).render_as_string(hide_password=False)
    finally:
        process.kill()
        process.wait()


def _listens(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True
