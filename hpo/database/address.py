"""Where the database is: a URL, or the embedded server. Passwords are read from files and masked in messages."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from sparse_evidence.core.errors import UserError

if TYPE_CHECKING:
    from sqlalchemy import URL

_SCHEMES = ("postgres", "postgresql", "postgresql+psycopg2")
_SHOWN = frozenset({
    "application_name", "connect_timeout", "dbname", "host", "hostaddr", "port", "service", "sslmode",
    "target_session_attrs", "user",
})  # fmt: skip
"""Parameters of a URL that messages show. All others may hold a secret: `password`, `sslpassword`, or the rest of a
password with a `?` in it."""


@contextmanager
def storage_url(url: str | None = None, *, folder: Path | None = None, create: bool = True) -> Iterator[str]:
    """Yield the database's URL, ready for `open_storage`, for as long as it is used.

    The URL is `url` (`--storage`), else `HPO_STORAGE`, else that of the embedded Postgres under `.hpo/` of `folder`
    (default: the current one), which runs while at least one process is inside this context. With `create=False`, for
    commands that only read, a missing database is a `UserError`: the folder is probably the wrong one.
    """
    if named := named_storage(url):
        yield normalize_url(named)
        return
    from . import embedded

    folder = folder or Path.cwd()
    if not create and not embedded.has_database(folder):
        raise UserError(
            f"There is no database in {folder / embedded.FOLDER}, so no study was run here: change to the folder where "
            "`hpo run` was started, or name its database with --storage (HPO_STORAGE)."
        )
    with embedded.serve(folder) as embedded_url:
        yield embedded_url


def named_storage(url: str | None = None) -> str | None:
    """The database that the user named with `--storage` or `HPO_STORAGE`; None means the embedded Postgres."""
    return url or os.environ.get("HPO_STORAGE") or None


def normalize_url(url: str) -> str:
    """Return the URL with its driver and, if `HPO_STORAGE_PASSWORD_FILE` names a file, its password."""
    import sqlalchemy as sa

    try:
        parsed = sa.make_url(url.strip())
    except (sa.exc.ArgumentError, ValueError):
        raise _unreadable() from None
    _check_parts(parsed)
    if parsed.drivername not in _SCHEMES:
        raise UserError(
            f"The database {mask_password(parsed)} is not Postgres: only postgresql:// is allowed; without --storage "
            "and HPO_STORAGE an embedded Postgres is used."
        )
    parsed = parsed.set(drivername="postgresql+psycopg2")
    try:
        parsed.get_dialect()().create_connect_args(parsed)
    except sa.exc.ArgumentError:
        raise _unreadable(" because of its parameters host and port") from None
    if parsed.password is None and "password" not in parsed.query:
        parsed = parsed.set(password=password_from_file("HPO_STORAGE_PASSWORD_FILE"))
    return parsed.render_as_string(hide_password=False)


def _unreadable(reason: str = "") -> UserError:
    # The message omits the URL: a URL that cannot be parsed cannot be masked.
    return UserError(
        f"The database URL cannot be read{reason}: write postgresql://USER@HOST:PORT/DATABASE (--storage or "
        "HPO_STORAGE)."
    )


def _check_parts(url: URL) -> None:
    """Refuse what no server has, and what would put a part of the password where messages show it.

    Raises:
        UserError: the URL has an `@` too many, a port that does not exist, or a character that no part may have.
    """
    if "@" in f"{url.host}{url.database}":
        raise _unreadable(" because it has an @ too many; in a user's name or password write %40 for @ and %2F for /")
    if url.port is not None and not 0 < url.port < 1 << 16:
        raise _unreadable(" because its port is not between 1 and 65535")
    values = (item for value in url.query.values() for item in ([value] if isinstance(value, str) else value))
    for part in (url.username, url.password, url.host, url.database, *url.query, *values):
        _check_text(part or "", "The database URL", "--storage or HPO_STORAGE")


def _check_text(text: str, what: str, where: str) -> None:
    """Refuse a text that Postgres cannot be told."""
    if "\0" in text or any("\ud800" <= character <= "\udfff" for character in text):
        raise UserError(f"{what} has a NUL (%00) or a byte that is not UTF-8 in it: remove that ({where}).")


def mask_password(url: str | URL) -> str:
    """Return the URL with its password masked, and every parameter that may hold a secret, for messages."""
    import sqlalchemy as sa

    try:
        parsed = sa.make_url(url)
    except (sa.exc.ArgumentError, ValueError):
        return "(a URL that cannot be read)"
    hidden = {key: "***" for key in parsed.query if key not in _SHOWN}
    return parsed.update_query_dict(hidden).render_as_string(hide_password=True).replace("%2A%2A%2A", "***")


def describe(url: str | URL) -> str:
    """Return how messages name a database: its URL without driver and password, or `the embedded Postgres (FOLDER)`."""
    import sqlalchemy as sa

    parsed = sa.make_url(url)
    folder = parsed.query.get("host")
    if (parsed.username, parsed.host, parsed.database) == ("postgres", None, "postgres") and isinstance(folder, str):
        return f"the embedded Postgres ({folder})"
    return mask_password(parsed.set(drivername=parsed.get_backend_name()))


def password_from_file(variable: str) -> str | None:
    """Read the password from the file that an environment variable names; None if it names none.

    For `HPO_STORAGE_PASSWORD_FILE`, None leaves the password to libpq (`PGPASSWORD`, `~/.pgpass`).

    Raises:
        UserError: the file cannot be read.
    """
    name = os.environ.get(variable)
    if not name:
        return None
    try:
        password = Path(name).read_text(encoding="utf-8").rstrip("\r\n")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise UserError(
            f"The password file {name} ({variable}) cannot be read: {reason}; "
            "name a readable file that contains the password."
        ) from error
    _check_text(password, f"The password in {name}", variable)
    return password
