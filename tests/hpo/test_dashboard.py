"""Who may see the dashboard, and what they may do."""

from __future__ import annotations

import base64
from typing import Any

import pytest

from sparse_evidence.core.errors import UserError
from sparse_evidence.hpo.results import dashboard
from sparse_evidence.hpo.results.dashboard import Gate


def behind(environ: dict[str, Any], start_response: Any) -> list[bytes]:
    assert environ["HTTP_ACCEPT_ENCODING"]
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"studies"]


def asked(gate: Gate, method: str = "GET", **headers: str) -> tuple[int, dict[str, str]]:
    told: list[tuple[int, dict[str, str]]] = []

    def start_response(status: str, headers: list[tuple[str, str]]) -> None:
        told.append((int(status.split()[0]), dict(headers)))

    list(gate({"REQUEST_METHOD": method, **{f"HTTP_{name}": value for name, value in headers.items()}}, start_response))
    return told[0]


LOOPBACK = frozenset({"localhost", "127.0.0.1", "[::1]"})


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost", 200), ("localhost:8080", 200), ("127.0.0.1:8080", 200), ("[::1]:8080", 200), ("[::1]", 200),
        ("LOCALHOST:1", 200), ("evil.example", 421), ("evil.example:8080", 421), ("localhost.evil.example", 421),
        ("127.0.0.1.evil.example:80", 421), ("", 421),
    ],
)  # fmt: skip
def test_only_names_of_this_machine_are_answered(host, status):
    gate = Gate(behind, hosts=LOOPBACK, password=None, changes=False)
    assert asked(gate, HOST=host)[0] == status


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE", "TRACE", "anything"])
def test_it_is_read_only_unless_told_otherwise(method):
    assert asked(Gate(behind, hosts=None, password=None, changes=False), method)[0] == 403
    assert asked(Gate(behind, hosts=None, password=None, changes=True), method)[0] == 200
    assert asked(Gate(behind, hosts=None, password=None, changes=False), "HEAD")[0] == 200


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
    gate = Gate(behind, hosts=None, password="sesame", changes=False)
    code, headers = asked(gate, AUTHORIZATION=authorization)
    assert code == status
    assert ("WWW-Authenticate" in headers) == (status == 401)


def test_pages_cannot_be_framed():
    for gate in (Gate(behind, hosts=None, password=None, changes=False),
                 Gate(behind, hosts=LOOPBACK, password=None, changes=False)):  # fmt: skip
        assert asked(gate)[1]["X-Frame-Options"] == "DENY"


@pytest.mark.parametrize(
    ("host", "local"),
    [("localhost", True), ("127.0.0.1", True), ("127.8.8.8", True), ("::1", True), ("0.0.0.0", False), ("::", False),
     ("192.168.1.5", False), ("my-machine", False), ("", False)],
)  # fmt: skip
def test_beyond_loopback_a_password_is_needed(host, local, monkeypatch):
    assert dashboard.is_loopback(host) is local
    monkeypatch.delenv(dashboard.PASSWORD_VARIABLE, raising=False)
    if local:
        dashboard.check_exposure(host)
    else:
        with pytest.raises(UserError, match="HPO_DASHBOARD_PASSWORD"):
            dashboard.check_exposure(host)
    monkeypatch.setenv(dashboard.PASSWORD_VARIABLE, "sesame")
    dashboard.check_exposure(host)
