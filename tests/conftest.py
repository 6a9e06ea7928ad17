"""What every test stands on: a clean environment, one thread, and real databases."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from uuid import uuid4

import pytest

# Before anything is imported that reads them.
for _name in [name for name in os.environ if name.startswith(("HPO_", "PG"))]:
    del os.environ[_name]
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["MKL_NUM_THREADS"] = "1"


@pytest.fixture(scope="session")
def server() -> Iterator[str]:
    """An embedded Postgres for this test process, gone when it ends; data that need not survive a crash."""
    from hpo import embedded

    home = Path(tempfile.mkdtemp(prefix="hpo-tests-"))
    home.chmod(0o711)
    try:
        with embedded.running(home, "-c fsync=off -c synchronous_commit=off -c full_page_writes=off") as url:
            yield url
    finally:
        shutil.rmtree(home)


@pytest.fixture(scope="session")
def template(server: str) -> str:
    """The name of a database with all tables and nothing in them."""
    from hpo import storage

    _administer(server, 'CREATE DATABASE "template_hpo"')
    opened = storage.open_storage(_at(server, "template_hpo"))
    storage.engine_of(opened).dispose()
    return "template_hpo"


@pytest.fixture
def fresh_database(server: str, template: str) -> Iterator[Callable[[], str]]:
    """Call it for the URL of one more database with all tables and nothing in them."""
    made = []

    def make(how: str = f'TEMPLATE "{template}"') -> str:
        made.append(f"test_{uuid4().hex}")
        _administer(server, f'CREATE DATABASE "{made[-1]}" {how}')
        return _at(server, made[-1])

    yield make
    for name in made:
        _administer(server, f'DROP DATABASE "{name}" WITH (FORCE)')


@pytest.fixture(scope="module")
def database_of_module(server: str, template: str) -> Iterator[str]:
    """The URL of a database that the tests of a module share, with all tables."""
    name = f"test_{uuid4().hex}"
    _administer(server, f'CREATE DATABASE "{name}" TEMPLATE "{template}"')
    yield _at(server, name)
    _administer(server, f'DROP DATABASE "{name}" WITH (FORCE)')


@pytest.fixture
def database(fresh_database: Callable[[], str]) -> str:
    """The URL of a database of the test's own, with all tables."""
    return fresh_database()


@pytest.fixture
def empty_database(fresh_database: Callable[[str], str]) -> str:
    """The URL of a database of the test's own, without any table."""
    return fresh_database("")


def _at(server: str, database: str) -> str:
    import sqlalchemy as sa

    return sa.make_url(server).set(database=database).render_as_string(hide_password=False)


def _administer(server: str, statement: str) -> None:
    import sqlalchemy as sa

    engine = sa.create_engine(server, isolation_level="AUTOCOMMIT", poolclass=sa.NullPool)
    with engine.connect() as connection:
        connection.execute(sa.text(statement))
