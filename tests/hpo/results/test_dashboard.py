"""Access to the dashboard: known hosts, a password, read-only."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest

from sparse_evidence.core.errors import UserError
from sparse_evidence.hpo.results import dashboard
from sparse_evidence.hpo.results.dashboard import Gate


def application(environ: dict[str, Any], start_response: Any) -> list[bytes]:
    assert environ["HTTP_ACCEPT_ENCODING"]
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"studies"]


def answer(gate: Gate, method: str = "GET", **headers: str) -> tuple[int, dict[str, str], bytes]:
    """Status, headers and body of the answer to one request."""
    answers: list[tuple[int, dict[str, str]]] = []

    def start_response(status: str, headers: list[tuple[str, str]]) -> None:
        answers.append((int(status.split()[0]), dict(headers)))

    request = {"REQUEST_METHOD": method, **{f"HTTP_{name}": value for name, value in headers.items()}}
    body = b"".join(gate(request, start_response))
    return *answers[0], body


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
    gate = Gate(application, hosts=LOOPBACK, password=None, changes=False)
    assert answer(gate, HOST=host)[0] == status


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE", "TRACE", "anything"])
def test_it_is_read_only_by_default(method):
    assert answer(Gate(application, hosts=None, password=None, changes=False), method)[0] == 403
    assert answer(Gate(application, hosts=None, password=None, changes=True), method)[0] == 200
    assert answer(Gate(application, hosts=None, password=None, changes=False), "HEAD")[0] == 200


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
    gate = Gate(application, hosts=None, password="sesame", changes=False)
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
    gate = Gate(application, hosts=hosts, password=password, changes=False)
    _, headers, body = answer(gate, method, HOST="evil.example")
    assert headers["Content-Type"] == "application/json"
    assert json.loads(body) == {"reason": reason}


def test_pages_cannot_be_framed():
    for gate in (Gate(application, hosts=None, password=None, changes=False),
                 Gate(application, hosts=LOOPBACK, password=None, changes=False)):  # fmt: skip
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
