"""Roles that lack a right: one sentence with the statement that is missing, and nothing changed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from uuid import uuid4

import pytest
import sqlalchemy as sa
from claim_tools import claimed, join_study
from optuna.trial import TrialState

from sparse_evidence.core.errors import UserError
from sparse_evidence.hpo.database import connection, studies
from sparse_evidence.hpo.errors import Exit, exit_code_of

Role = Callable[..., str]


@pytest.fixture
def role(server: str) -> Iterator[Role]:
    """Call it for the URL of a database as seen by a role that has been granted only what `grants` says."""
    admin = sa.create_engine(server, isolation_level="AUTOCOMMIT", poolclass=sa.NullPool)
    made: list[tuple[str, str]] = []

    def make(database: str, *grants: str) -> str:
        name = f"role_{uuid4().hex[:8]}"
        made.append((database, name))
        with admin.connect() as session:
            session.execute(sa.text(f"CREATE ROLE {name} LOGIN"))
        owner = sa.create_engine(database, isolation_level="AUTOCOMMIT", poolclass=sa.NullPool)
        with owner.connect() as session:
            for grant in grants:
                session.execute(sa.text(f"{grant} TO {name}"))
        return sa.make_url(database).set(username=name).render_as_string(hide_password=False)

    yield make
    for database, name in made:
        owner = sa.create_engine(database, isolation_level="AUTOCOMMIT", poolclass=sa.NullPool)
        with owner.connect() as session:
            session.execute(sa.text(f"DROP OWNED BY {name} CASCADE"))
            session.execute(sa.text(f"DROP ROLE {name}"))


def sentence(refused: UserError) -> str:
    assert exit_code_of(refused) == Exit.USAGE
    return str(refused)


def test_a_role_that_may_not_create_tables(empty_database: str, role: Role) -> None:
    url = role(empty_database)
    name = sa.make_url(url).username
    with pytest.raises(UserError) as refused:
        connection.open_storage(url)
    assert f'run GRANT USAGE, CREATE ON SCHEMA public TO "{name}";' in sentence(refused.value)
    granted = role(empty_database, "GRANT USAGE, CREATE ON SCHEMA public")
    connection.engine_of(connection.open_storage(granted)).dispose()


def test_a_search_path_that_names_no_schema(empty_database: str) -> None:
    with pytest.raises(UserError) as refused:
        connection.open_storage(f"{empty_database}&options=-csearch_path%3Dnoschema")
    assert "its search_path names none that exists" in sentence(refused.value)
    assert "CREATE SCHEMA" in sentence(refused.value)


def test_a_role_that_may_only_read_can_read_and_is_told_what_it_lacks(database: str, role: Role) -> None:
    mine = join_study(database, budget=1)
    claimed(mine).finish(TrialState.COMPLETE, 0.5)
    mine.engine.dispose()
    url = role(database, "GRANT SELECT ON ALL TABLES IN SCHEMA public")
    storage = connection.open_storage(url)
    assert studies.load_study(storage, "s").best_value == 0.5
    connection.engine_of(storage).dispose()
    name = sa.make_url(url).username
    with pytest.raises(UserError) as refused:
        join_study(url, budget=2).claim()
    assert f'INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO "{name}";' in sentence(refused.value)
    every = ("GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public",
             "GRANT USAGE ON ALL SEQUENCES IN SCHEMA public")  # fmt: skip
    worker = join_study(role(database, *every), budget=2)
    claimed(worker).finish(TrialState.COMPLETE, 1.0)
    worker.engine.dispose()


def test_a_database_that_is_read_only(database: str) -> None:
    url = f"{database}&options=-cdefault_transaction_read_only%3Don"
    with pytest.raises(UserError) as refused:
        join_study(url)
    assert "is read-only" in sentence(refused.value)
