"""Requests to a WSGI application without a server between."""

from __future__ import annotations

import io
from typing import Any


def request(
    application: Any, path: str = "/", method: str = "GET", *, body: bytes = b"", headers: dict[str, str] | None = None
) -> tuple[int, dict[str, str], bytes]:
    """Status, headers and content of the answer; `headers` by their names in WSGI, such as `HOST`."""
    answers: list[tuple[int, dict[str, str]]] = []
    path, _, query = path.partition("?")
    environ = {
        "REQUEST_METHOD": method, "PATH_INFO": path, "QUERY_STRING": query, "SERVER_NAME": "localhost",
        "SERVER_PORT": "80", "wsgi.url_scheme": "http", "wsgi.errors": io.StringIO(), "wsgi.input": io.BytesIO(body),
        "CONTENT_LENGTH": str(len(body)), "CONTENT_TYPE": "application/json",
    }  # fmt: skip

    def start_response(status: str, headers: list[tuple[str, str]], *_: Any) -> None:
        answers.append((int(status.split()[0]), dict(headers)))

    content = application(environ | {f"HTTP_{name}": text for name, text in (headers or {}).items()}, start_response)
    try:
        return *answers[0], b"".join(content)
    finally:
        if hasattr(content, "close"):
            content.close()
