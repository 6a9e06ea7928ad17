"""URLs of databases: schemes, passwords from files, masking."""

from __future__ import annotations

from pathlib import Path

import pytest
import sqlalchemy as sa

from sparse_evidence.core.errors import UserError
from sparse_evidence.hpo.database import address, connection
from sparse_evidence.hpo.errors import StorageError


@pytest.mark.parametrize("scheme", ["postgres", "postgresql", "postgresql+psycopg2"])
def test_every_postgres_scheme_is_accepted(scheme: str) -> None:
    with address.storage_url(f"{scheme}://me:pw@db:5433/x?sslmode=require") as url:
        assert url == "postgresql+psycopg2://me:pw@db:5433/x?sslmode=require"


def test_the_option_overrides_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HPO_STORAGE", "postgresql://from-environment/x")
    with address.storage_url() as url:
        assert url == "postgresql+psycopg2://from-environment/x"
    with address.storage_url("postgresql://from-option/x") as url:
        assert url == "postgresql+psycopg2://from-option/x"


@pytest.mark.parametrize("url", ["sqlite:///x.db", "mysql://me:secret@db/x", "postgresql+psycopg://me:secret@db/x"])
def test_other_databases_are_a_user_error(url: str) -> None:
    with pytest.raises(UserError, match="not Postgres: only postgresql://") as caught, address.storage_url(url):
        pass
    assert "secret" not in str(caught.value)


def test_a_malformed_url_is_not_shown() -> None:
    with pytest.raises(UserError, match="cannot be read") as caught, address.storage_url("db secret"):
        pass
    assert "secret" not in str(caught.value)


def test_the_password_may_come_from_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    secret = tmp_path / "secret"
    secret.write_text("p@ss{w}\n")
    monkeypatch.setenv("HPO_STORAGE_PASSWORD_FILE", str(secret))
    assert sa.make_url(address.normalize_url("postgresql://me@db/x")).password == "p@ss{w}"
    assert sa.make_url(address.normalize_url("postgresql://me:own@db/x")).password == "own"
    secret.unlink()
    with pytest.raises(UserError, match="HPO_STORAGE_PASSWORD_FILE"):
        address.normalize_url("postgresql://me@db/x")


NOWHERE = "127.0.0.1:1/db"
UNREADABLE = "The database URL cannot be read"
NUL = r"has a NUL \(%00\) or a byte that is not UTF-8"
UNREACHABLE = "is unreachable"
SECRETS = [
    (f"postgresql://u:p@SECRET@{NOWHERE}", "write %40 for @"),
    (f"sqlite://u:p@SECRET@{NOWHERE}", "write %40 for @"),
    (f"postgresql://a/b:SECRET@{NOWHERE}", "write %40 for @"),
    ("postgresql://u:p@x/SECRET@127.0.0.1/db", "write %40 for @"),
    ("postgresql://u:SECRET@[::1", UNREADABLE),
    ("postgresql://u:SECRET", UNREADABLE),
    ("postgresql://u:99999999", "port is not between 1 and 65535"),
    (f"postgresql://u:SECRET@{NOWHERE}?port=x", "host and port"),
    (f"postgresql://u:SECRET%00@{NOWHERE}", NUL),
    (f"postgresql://u%00:SECRET@{NOWHERE}", NUL),
    (f"postgresql://u:SECRET@{NOWHERE}%00", NUL),
    (f"postgresql://u:SECRET@{NOWHERE}?sslmode=%00", NUL),
    (f"postgresql://u:SECRET\udcff@{NOWHERE}", NUL),
    (f"postgresql://u:SEC?a=SECRET@{NOWHERE}", UNREACHABLE),
    (f"postgresql://u:%0ASECRET@{NOWHERE}", UNREACHABLE),
    (f"postgresql://u:p@{NOWHERE}?sslpassword=SECRET", UNREACHABLE),
    (f"postgresql://u:p@{NOWHERE}?passfile=/SECRET", UNREACHABLE),
    (f"postgresql://u:p@{NOWHERE}?password=SECRET&password=SECRET", UNREACHABLE),
    (f"postgresql://u:p@{NOWHERE}?PASSWORD=SECRET", UNREACHABLE),
    (f"postgresql://u:p@127.0.0.1?part=SECRET@{NOWHERE}", UNREACHABLE),
    (f"postgresql://u:p@{NOWHERE}?options=-c%20my.key%3DSECRET", UNREACHABLE),
    (f"postgresql://u:p@{NOWHERE}?oauth_client_secret=SECRET", UNREACHABLE),
    ("postgresql://u:SECRET@/db?service=missing", UNREACHABLE),
]


@pytest.mark.parametrize(("url", "message"), SECRETS)
def test_no_url_shows_a_password(url: str, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGPASSWORD", "SECRET")
    with pytest.raises((UserError, StorageError), match=message) as caught, address.storage_url(url) as ready:
        connection.open_storage(ready, retry_seconds=0)
    assert "SECRET" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_password_file_with_a_nul_is_a_user_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "secret").write_bytes(b"SEC\0RET")
    monkeypatch.setenv("HPO_STORAGE_PASSWORD_FILE", str(tmp_path / "secret"))
    with pytest.raises(UserError, match=NUL) as caught:
        address.normalize_url("postgresql://me@db/x")
    assert "SEC" not in str(caught.value).replace("HPO_STORAGE_PASSWORD_FILE", "")


def test_a_password_is_masked_in_every_place() -> None:
    assert address.mask_password("postgresql://me:secret@db/x") == "postgresql://me:***@db/x"
    masked = address.mask_password("postgresql://db/x?password=secret&sslmode=require")
    assert masked == "postgresql://db/x?password=***&sslmode=require"
    assert "secret" not in address.mask_password("://secret")


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("postgresql+psycopg2://me:secret@db:5433/x?sslmode=require", "postgresql://me:***@db:5433/x?sslmode=require"),
        ("postgresql+psycopg2://postgres@/postgres?host=%2Fwork%2F.hpo%2Fpg", "the embedded Postgres (/work/.hpo/pg)"),
        ("postgresql+psycopg2://me@/x?host=%2Frun%2Fpostgresql", "postgresql://me@/x?host=%2Frun%2Fpostgresql"),
    ],
)
def test_messages_name_the_database(url, expected):
    assert address.describe(url) == expected
