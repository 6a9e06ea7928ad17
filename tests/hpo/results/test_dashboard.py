"""Access to the dashboard: known hosts, a password, read-only."""

from __future__ import annotations

import base64
import json
import re
import socket
import subprocess
import sys
from typing import Any

import bottle
import optuna_dashboard
import pytest
import sqlalchemy as sa
from study_in_work import make_study
from wsgi import request

from sparse_evidence.core.errors import UserError
from sparse_evidence.hpo.database.connection import engine_of, open_storage
from sparse_evidence.hpo.database.optuna_storage import storage_of
from sparse_evidence.hpo.results import dashboard
from sparse_evidence.hpo.results.dashboard import Application, Gate
from sparse_evidence.hpo.results.shown import ShownStudies


def application(environ: dict[str, Any], start_response: Any) -> list[bytes]:
    assert environ["HTTP_ACCEPT_ENCODING"]
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"studies"]


def unreachable(*_: Any) -> list[bytes]:
    raise AssertionError("requests that change something are not for the pages")


def answer(gate: Application, method: str = "GET", **headers: str) -> tuple[int, dict[str, str], bytes]:
    """Status, headers and body of the answer to one request."""
    return request(gate, "/", method, headers=headers)


LOOPBACK = frozenset({"localhost", "127.0.0.1", "[::1]"})


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost", 200), ("localhost:8080", 200), ("127.0.0.1:8080", 200), ("[::1]:8080", 200), ("[::1]", 200),
        ("LOCALHOST:1", 200), ("evil.example", 421), ("evil.example:8080", 421), ("localhost.evil.example", 421),
        ("127.0.0.1.evil.example:80", 421), ("", 421),
    ],
)  # fmt: skip
def test_only_loopback_names_are_answered(host, status):
    gate = Gate(application, hosts=LOOPBACK, password=None, changes=None)
    assert answer(gate, HOST=host)[0] == status


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE", "TRACE", "anything"])
def test_it_is_read_only_by_default(method):
    assert answer(Gate(application, hosts=None, password=None, changes=None), method)[0] == 403
    writing = Gate(unreachable, hosts=None, password=None, changes=application)
    assert answer(writing, method)[0] == 200
    assert answer(Gate(application, hosts=None, password=None, changes=None), "HEAD")[0] == 200


def basic(text: str) -> str:
    return "Basic " + base64.b64encode(text.encode()).decode()


@pytest.mark.parametrize(
    ("authorization", "status"),
    [
        (basic("anyone:sesame"), 200), (basic(":sesame"), 200), (basic("a:b:sesame"), 401),
        (basic("anyone:sesam"), 401), (basic("sesame"), 401), ("Bearer sesame", 401), ("Basic %%%", 401), ("", 401),
        ("Basic " + base64.b64encode(b"\xff:\xff").decode(), 401),
    ],
)  # fmt: skip
def test_the_password(authorization, status):
    gate = Gate(application, hosts=None, password="sesame", changes=None)
    code, headers, _ = answer(gate, AUTHORIZATION=authorization)
    assert code == status
    assert ("WWW-Authenticate" in headers) == (status == 401)


@pytest.mark.parametrize(
    ("hosts", "password", "method", "reason"),
    [
        (LOOPBACK, None, "GET", "this dashboard answers to loopback names only"),
        (None, "sesame", "GET", "password required"),
        (None, None, "PUT", "read-only; start with --allow-changes to edit"),
    ],
)
def test_a_refusal_gives_its_reason_as_json(hosts, password, method, reason):
    gate = Gate(application, hosts=hosts, password=password, changes=None)
    _, headers, body = answer(gate, method, HOST="evil.example")
    assert headers["Content-Type"] == "application/json"
    assert json.loads(body) == {"reason": reason}


def test_pages_cannot_be_framed():
    for gate in (Gate(application, hosts=None, password=None, changes=None),
                 Gate(application, hosts=LOOPBACK, password=None, changes=None)):  # fmt: skip
        assert answer(gate)[1]["X-Frame-Options"] == "DENY"


@pytest.mark.parametrize(
    ("host", "local"),
    [("localhost", True), ("127.0.0.1", True), ("127.8.8.8", True), ("::1", True), ("0.0.0.0", False), ("::", False),
     ("192.168.1.5", False), ("my-machine", False), ("", False)],
)  # fmt: skip
def test_beyond_loopback_a_password_is_required(host, local, monkeypatch):
    assert dashboard.is_loopback(host) is local
    monkeypatch.delenv(dashboard.PASSWORD_VARIABLE, raising=False)
    if local:
        dashboard.check_exposure(host)
    else:
        with pytest.raises(UserError, match="HPO_DASHBOARD_PASSWORD"):
            dashboard.check_exposure(host)
    monkeypatch.setenv(dashboard.PASSWORD_VARIABLE, "sesame")
    dashboard.check_exposure(host)


def test_the_password_may_come_from_a_file(tmp_path, monkeypatch):
    secret = tmp_path / "secret"
    secret.write_text("open sesame\n")
    monkeypatch.setenv(dashboard.PASSWORD_FILE_VARIABLE, str(secret))
    assert dashboard.chosen_password() == "open sesame"
    dashboard.check_exposure("0.0.0.0")
    monkeypatch.setenv(dashboard.PASSWORD_VARIABLE, "shut")
    assert dashboard.chosen_password() == "shut"
    monkeypatch.delenv(dashboard.PASSWORD_VARIABLE)
    secret.write_text("\n")
    with pytest.raises(UserError, match="is empty"):
        dashboard.chosen_password()
    secret.write_text("a\0b")
    with pytest.raises(UserError, match="HPO_DASHBOARD_PASSWORD_FILE"):
        dashboard.chosen_password()
    secret.unlink()
    with pytest.raises(UserError, match=r"secret \(HPO_DASHBOARD_PASSWORD_FILE\) cannot be read"):
        dashboard.check_exposure("localhost")


# ---- every route of optuna-dashboard ---------------------------------------------------------------------------------


def concrete(rule: str) -> str:
    """A path that a route's rule matches; every number is that of an existing study or trial."""
    if rule.startswith("/dashboard<"):
        return "/dashboard/"
    return re.sub(r"<\w+:int>", "1", re.sub(r"<(?!\w+:int)[^>]*>", "timeline", rule))


METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "PROPFIND")


def test_no_route_changes_anything_or_answers_strangers(database, tmp_path, monkeypatch, caplog):
    study = make_study(tmp_path, database)
    storage = open_storage(database, retry_seconds=5)
    monkeypatch.setenv(dashboard.PASSWORD_VARIABLE, "sesame")
    local = dashboard.application(storage, None, host="localhost")
    remote = dashboard.application(storage, None, host="0.0.0.0")
    rules = sorted({route.rule for route in optuna_dashboard.wsgi(storage).routes})
    assert len(rules) > 20
    before = contents(database)
    password, body = basic("x:sesame"), b'{"version": 1, "body": "b", "study_name": "n", "directions": ["minimize"]}'
    for path in map(concrete, rules):
        for method in METHODS:

            def ask(gate: Application, route: tuple[str, str] = (path, method), **headers: str) -> int:
                status, sent, _ = request(gate, *route, body=body, headers=headers)
                assert sent["X-Frame-Options"] == "DENY", route
                return status

            assert ask(local, HOST="evil.example", AUTHORIZATION=password) == 421, (path, method)
            assert ask(local, HOST="localhost") == 401, (path, method)
            assert ask(remote, HOST="example.org") == 401, (path, method)
            status = ask(remote, HOST="example.org", AUTHORIZATION=password)
            assert status < 500 if method in {"GET", "HEAD"} else status == 403, (path, method, status)
    assert contents(database) == before
    assert not caplog.records
    for opened in (study, storage):
        engine_of(opened).dispose()


def contents(database: str) -> dict[str, list[Any]]:
    """Every row of every table."""
    engine = sa.create_engine(database)
    with engine.connect() as connection:
        tables = connection.scalars(sa.text("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")).all()
        rows = {name: connection.scalars(sa.text(f"SELECT t::text FROM {name} t ORDER BY 1")).all() for name in tables}
    engine.dispose()
    return {name: list(found) for name, found in rows.items()}


def test_what_a_page_could_write_through_its_view_is_refused(database, tmp_path):
    study = make_study(tmp_path, database)
    before = contents(database)
    view = ShownStudies(storage_of(study))
    for write in (view.delete_study, view.create_new_trial, view.set_study_user_attr, view.set_trial_state_values):
        with pytest.raises(bottle.HTTPError, match="for reading"):
            write(1)
    assert contents(database) == before
    engine_of(study).dispose()


def test_a_large_body_is_refused_before_it_is_read(database):
    """A process of its own, because waitress has no way to end from outside."""
    served = "from sparse_evidence.hpo.results.dashboard import serve\n"
    served += "from sparse_evidence.hpo.database.connection import open_storage\n"
    served += f'serve(open_storage({database!r}), host="127.0.0.1", port=0, ready=lambda page: print(page, flush=True))'
    with subprocess.Popen([sys.executable, "-c", served], stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        port = int(re.findall(r":(\d+)/", server.stdout.readline())[0])
        with socket.create_connection(("127.0.0.1", port), timeout=30) as connection:
            head = (
                f"POST /api/studies HTTP/1.1\r\nHost: localhost\r\nContent-Length: {dashboard.LARGEST_BODY + 1}\r\n\r\n"
            )
            connection.sendall(head.encode())  # and not a byte of the body
            assert connection.recv(100).startswith(b"HTTP/1.1 413 ")
        server.kill()
