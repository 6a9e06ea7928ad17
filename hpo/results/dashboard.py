"""optuna-dashboard over the study's database, by default on loopback and read-only.

optuna-dashboard itself has no authentication, no read-only mode and no check of the Host header, so any web page in
the user's browser could rename or delete studies by DNS rebinding. The gate below prevents that.

There are two of it: the pages are read from a view of the studies (`shown`), and changes go to what is stored.
"""

from __future__ import annotations

import base64
import hmac
import ipaddress
import json
import logging
import os
import warnings
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from sparse_evidence.core.errors import UserError

from ..database.address import password_from_file

if TYPE_CHECKING:
    from optuna.storages import BaseStorage

PASSWORD_VARIABLE = "HPO_DASHBOARD_PASSWORD"  # noqa: S105 (the name of a variable)
PASSWORD_FILE_VARIABLE = "HPO_DASHBOARD_PASSWORD_FILE"  # noqa: S105 (the name of a variable)
LARGEST_BODY = 2**20
"""Bytes that a request may have; more is refused before it is read. The largest that the pages send is a note."""

Application = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]

_HEADERS = [("X-Frame-Options", "DENY"), ("X-Content-Type-Options", "nosniff"), ("Referrer-Policy", "no-referrer")]


class Gate:
    """WSGI middleware that admits known hosts, the correct password if one is set, and requests that only read.

    Args:
        application: answers requests that only read.
        hosts: allowed names in the Host header, without a port; None: any.
        password: the password of HTTP basic authentication, with any user name; None: no authentication.
        changes: answers all other requests; None: they are refused.
    """

    def __init__(
        self,
        application: Application,
        *,
        hosts: frozenset[str] | None,
        password: str | None,
        changes: Application | None,
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
        application = self._application if environ["REQUEST_METHOD"] in {"GET", "HEAD"} else self._changes
        if application is None:
            return _refuse(start_response, "403 Forbidden", "read-only; start with --allow-changes to edit")
        # the dashboard's static files fail without this header
        environ.setdefault("HTTP_ACCEPT_ENCODING", "identity")

        def start(status: str, headers: list[tuple[str, str]], *extra: Any) -> Any:  # noqa: ANN401 (WSGI)
            return start_response(status, headers + _HEADERS, *extra)

        return application(environ, start)


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


def chosen_password() -> str | None:
    """The password that protects the dashboard; None if neither it nor a file that contains it is named.

    Raises:
        UserError: the file cannot be read, or is empty.
    """
    if password := os.environ.get(PASSWORD_VARIABLE):
        return password
    password = password_from_file(PASSWORD_FILE_VARIABLE)
    if password == "":
        raise UserError(f"the file that {PASSWORD_FILE_VARIABLE} names is empty; write a password into its first line")
    return password


def check_exposure(host: str) -> None:
    """Refuse to listen beyond loopback without a password.

    Raises:
        UserError: `host` is reachable from other machines and no password is set, or its file cannot be read.
    """
    if chosen_password() is None and not is_loopback(host):
        raise UserError(
            f"the dashboard on {host} can be read by anyone on the network; set {PASSWORD_VARIABLE} or "
            f"{PASSWORD_FILE_VARIABLE}, or omit --host to serve this machine only"
        )


def application(storage: BaseStorage, writing: BaseStorage | None, *, host: str) -> Application:
    """The dashboard behind its gate; see `serve`."""
    import optuna_dashboard

    from .shown import ShownStudies, with_notes

    _quiet()
    check_exposure(host)
    hosts = frozenset({"localhost", "127.0.0.1", "[::1]", host.lower()}) if is_loopback(host) else None
    studies = ShownStudies(storage)
    pages = optuna_dashboard.wsgi(studies)
    pages.install(with_notes(studies))
    changes = None if writing is None else optuna_dashboard.wsgi(writing)
    return Gate(pages, hosts=hosts, password=chosen_password(), changes=changes)


def _quiet() -> None:
    """Silence what Optuna's plots say of pairs of parameters that they leave out: the page shows what there is."""
    logging.getLogger("optuna.visualization").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module=r"optuna\.visualization")


def serve(
    storage: BaseStorage, writing: BaseStorage | None = None, *, host: str, port: int, ready: Callable[[str], None]
) -> None:
    """Serve until interrupted.

    Args:
        storage: from `open_storage`; it need not read the curves of trials.
        writing: from `open_storage`, with everything that is stored: where changes are made; None: nothing can be
            changed.
        host: address to listen on.
        port: port to listen on; 0: any free port.
        ready: called with the page's address once the port is open.

    Raises:
        UserError: the port cannot be opened, or `host` is reachable from other machines and no password is set.
    """
    import waitress

    gated = application(storage, writing, host=host)
    try:
        server = waitress.create_server(
            gated, host=host, port=port, threads=4, ident=None, max_request_body_size=LARGEST_BODY
        )
    except OSError as error:
        raise UserError(
            f"the dashboard cannot listen on {host}:{port} ({error.strerror}); choose another port with --port"
        ) from error
    shown = f"[{host}]" if ":" in host else host
    ready(f"http://{shown}:{server.effective_port}/dashboard/")
    server.run()
