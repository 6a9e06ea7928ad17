"""optuna-dashboard over the study's database, by default on loopback and read-only.

optuna-dashboard itself has no authentication, no read-only mode and no check of the Host header, so any web page in
the user's browser could rename or delete studies by DNS rebinding. The gate below prevents that.
"""

from __future__ import annotations

import base64
import hmac
import ipaddress
import json
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
    """WSGI middleware that admits known hosts, the correct password if one is set, and requests that only read.

    Args:
        application: the protected application.
        hosts: allowed names in the Host header, without a port; None: any.
        password: the password of HTTP basic authentication, with any user name; None: no authentication.
        changes: also admit requests that change something.
    """

    def __init__(
        self, application: Application, *, hosts: frozenset[str] | None, password: str | None, changes: bool
    ) -> None:
        self._application = application
        self._hosts = hosts
        self._password = password
        self._changes = changes

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        """Answer one request, or refuse it."""
        if self._hosts is not None and _host_name(environ.get("HTTP_HOST", "")) not in self._hosts:
            return _refuse(start_response, "421 Misdirected Request", "this dashboard answers to loopback names only")
        if self._password is not None and not _authenticated(environ.get("HTTP_AUTHORIZATION", ""), self._password):
            return _refuse(start_response, "401 Unauthorized", "password required", ("WWW-Authenticate", "Basic"))
        if environ["REQUEST_METHOD"] not in {"GET", "HEAD"} and not self._changes:
            return _refuse(start_response, "403 Forbidden", "read-only; start with --allow-changes to edit")
        # the dashboard's static files fail without this header
        environ.setdefault("HTTP_ACCEPT_ENCODING", "identity")

        def start(status: str, headers: list[tuple[str, str]], *extra: Any) -> Any:  # noqa: ANN401 (WSGI)
            return start_response(status, headers + _HEADERS, *extra)

        return self._application(environ, start)


def _refuse(start_response: Callable[..., Any], status: str, reason: str, *headers: tuple[str, str]) -> Iterable[bytes]:
    """Answer with the reason as JSON, which the dashboard's pages display."""
    start_response(status, [("Content-Type", "application/json"), *headers, *_HEADERS])
    return [json.dumps({"reason": reason}).encode()]


def _host_name(host: str) -> str:
    """The Host header without its port, in lower case."""
    return host.rsplit(":", 1)[0].lower() if not host.endswith("]") else host.lower()


def _authenticated(authorization: str, password: str) -> bool:
    """Whether the Authorization header contains the password."""
    scheme, _, encoded = authorization.partition(" ")
    if scheme.lower() != "basic":
        return False
    try:
        sent = base64.b64decode(encoded, validate=True).decode().partition(":")[2]
    except ValueError:
        return False
    return hmac.compare_digest(sent.encode(), password.encode())


def is_loopback(host: str) -> bool:
    """Whether `host` is reachable from this machine only."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def check_exposure(host: str) -> None:
    """Refuse to listen beyond loopback without a password.

    Raises:
        UserError: `host` is reachable from other machines and no password is set.
    """
    if not is_loopback(host) and not os.environ.get(PASSWORD_VARIABLE):
        raise UserError(
            f"the dashboard on {host} can be read by anyone on the network; set {PASSWORD_VARIABLE}, or omit "
            "--host to serve this machine only"
        )


def application(storage: BaseStorage, *, host: str, changes: bool) -> Application:
    """The dashboard behind its gate.

    Raises:
        UserError: `host` is reachable from other machines and no password is set.
    """
    import optuna_dashboard

    check_exposure(host)
    hosts = frozenset({"localhost", "127.0.0.1", "[::1]", host.lower()}) if is_loopback(host) else None
    password = os.environ.get(PASSWORD_VARIABLE) or None
    return Gate(optuna_dashboard.wsgi(storage), hosts=hosts, password=password, changes=changes)


def serve(storage: BaseStorage, *, host: str, port: int, changes: bool, ready: Callable[[str], None]) -> None:
    """Serve until interrupted.

    Args:
        storage: from `open_storage`.
        host: address to listen on.
        port: port to listen on; 0: any free port.
        changes: allow editing and deleting.
        ready: called with the page's address once the port is open.

    Raises:
        UserError: the port cannot be opened, or `host` is reachable from other machines and no password is set.
    """
    import waitress

    gated = application(storage, host=host, changes=changes)
    try:
        server = waitress.create_server(gated, host=host, port=port, threads=4, ident=None)
    except OSError as error:
        raise UserError(
            f"the dashboard cannot listen on {host}:{port} ({error.strerror}); choose another port with --port"
        ) from error
    shown = f"[{host}]" if ":" in host else host
    ready(f"http://{shown}:{server.effective_port}/dashboard/")
    server.run()
