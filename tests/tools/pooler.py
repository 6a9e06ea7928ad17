"""A real pgbouncer in transaction mode in front of the tests' Postgres."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import sqlalchemy as sa
from waiting import until

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
max_client_conn = 1000
ignore_startup_parameters = {ignored}
"""


@contextmanager
def pooled(database_url: str, folder: Path, *, connections: int, ignored: str = "") -> Iterator[str]:
    """Yield the URL of a database through pgbouncer, which shares few connections; skips where it is not installed.

    Args:
        database_url: of a server that listens on a Unix socket.
        folder: where its settings and its log are written.
        connections: to the server, however many clients there are.
        ignored: settings at the start of a session that it ignores instead of refusing them.
    """
    program = shutil.which("pgbouncer", path=f"{os.environ['PATH']}:/usr/sbin")
    if program is None:
        pytest.skip("pgbouncer is not installed")
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
    # It refuses to run as root, and another user cannot read the test's folder.
    user = Path(directory).stat().st_uid if os.geteuid() == 0 else None
    with (
        (folder / "pgbouncer.log").open("w") as log,
        tempfile.NamedTemporaryFile("w", prefix="pgbouncer-", suffix=".ini") as file,
    ):
        file.write(settings)
        file.flush()
        if user is not None:
            os.chown(file.name, user, -1)
        process = subprocess.Popen([program, file.name], stdout=log, stderr=log, user=user, cwd="/")
        until(lambda: _listens(port) or process.poll() is not None, 20)
    try:
        assert process.poll() is None, (folder / "pgbouncer.log").read_text()
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
