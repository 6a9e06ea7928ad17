"""optuna-dashboard over the same storage: on loopback and read-only unless told otherwise.

optuna-dashboard itself has no authentication, no read-only mode and no check of the Host header, so a page in the
user's browser could rename or delete studies through a rebound name. The gate below refuses that.
"""

from __future__ import annotations

import base64
import hmac
import ipaddress
import os
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from sparse_evidence.core.errors import UserError

if TYPE_CHECKING:
    from optuna.storages import BaseStorage

PASSWORD_VARIABLE = "HPO_DASHBOARD_PASSWORD"  # noqa: S105 (the name of a variable)

Application = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]

_HEADERS = [("X-Frame-Options", "DENY"), ("X-Content-Type-Options", "nosniff"), ("Referrer-Policy", "no-referrer")]


class Gate:
    """WSGI middleware: reading only, known hosts only, and a password where one is set."""

    def __init__(
        self, application: Application, *, hosts: frozenset[str] | None, password: str | None, changes: bool
    ) -> None:
        self._application = application
        self._hosts = hosts
        self._password = password
        self._changes = changes

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        """Answer one request."""
        if self._hosts is not None and _name(environ.get("HTTP_HOST", "")) not in self._hosts:
            return _refuse(start_response, "421 Misdirected Request", "this dashboard answers to loopback names only")
        if self._password is not None and not _knows(environ.get("HTTP_AUTHORIZATION", ""), self._password):
            return _refuse(start_response, "401 Unauthorized", "password needed", ("WWW-Authenticate", "Basic"))
        if environ["REQUEST_METHOD"] not in {"GET", "HEAD"} and not self._changes:
            return _refuse(start_response, "403 Forbidden", "read-only; start with --allow-changes to edit")
        # its static files fail without this header
        environ.setdefault("HTTP_ACCEPT_ENCODING", "identity")

        def start(status: str, headers: list[tuple[str, str]], *rest: Any) -> Any:  # noqa: ANN401 (WSGI)
            return start_response(status, headers + _HEADERS, *rest)

        return self._application(environ, start)


def _refuse(start_response: Callable[..., Any], status: str, reason: str, *headers: tuple[str, str]) -> Iterable[bytes]:
    start_response(status, [("Content-Type", "text/plain; charset=utf-8"), *headers, *_HEADERS])
    return [f"{reason}\n".encode()]


def _name(host: str) -> str:
    """The Host header without its port, in lower case."""
    return host.rsplit(":", 1)[0].lower() if not host.endswith("]") else host.lower()


def _knows(authorization: str, password: str) -> bool:
    kind, _, coded = authorization.partition(" ")
    if kind.lower() != "basic":
        return False
    try:
        given = base64.b64decode(coded, validate=True).decode().partition(":")[2]
    except ValueError:
        return False
    return hmac.compare_digest(given.encode(), password.encode())


def is_loopback(host: str) -> bool:
    """Can only this machine reach `host`?"""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def check_exposure(host: str) -> None:
    """Refuse to be open to the network without a password.

    Raises:
        UserError: it would be.
    """
    if not is_loopback(host) and not os.environ.get(PASSWORD_VARIABLE):
        raise UserError(
            f"the dashboard on {host} could be read by anyone on the network; set {PASSWORD_VARIABLE}, or leave out "
            "--host to serve this machine only"
        )


def application(storage: BaseStorage, *, host: str, changes: bool) -> Application:
    """The dashboard behind its gate.

    Raises:
        UserError: it would be open to the network without a password.
    """
    import optuna_dashboard

    check_exposure(host)
    hosts = frozenset({"localhost", "127.0.0.1", "[::1]", host.lower()}) if is_loopback(host) else None
    password = os.environ.get(PASSWORD_VARIABLE) or None
    return Gate(optuna_dashboard.wsgi(storage), hosts=hosts, password=password, changes=changes)


def serve(storage: BaseStorage, *, host: str, port: int, changes: bool, ready: Callable[[str], None]) -> None:
    """Serve until interrupted; `ready` is told the address once the port is open.

    Raises:
        UserError: the port cannot be opened.
    """
    import waitress

    gated = application(storage, host=host, changes=changes)
    try:
        server = waitress.create_server(gated, host=host, port=port, threads=4, ident=None)
    except OSError as error:
        raise UserError(
            f"the dashboard cannot listen on {host}:{port} ({error.strerror}); name another one with --port"
        ) from error
    shown = f"[{host}]" if ":" in host else host
    ready(f"http://{shown}:{server.effective_port}/dashboard/")
    server.run()
