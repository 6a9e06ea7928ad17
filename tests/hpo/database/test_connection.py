"""Opening a database: unreachable and busy servers, poolers, session settings, tables of earlier versions."""

from __future__ import annotations

import os
import socket
import threading
import time
from typing import Any

import pytest
import sqlalchemy as sa
from claim_tools import artifact_rows, claimed, join_study
from optuna.trial import TrialState
from postgres_proxy import Proxy
from waiting import until

from sparse_evidence.core.errors import UserError
from sparse_evidence.hpo.database import connection
from sparse_evidence.hpo.database.limits import as_options, limits
from sparse_evidence.hpo.database.optuna_storage import unwrap
from sparse_evidence.hpo.errors import StorageError


def test_an_unreachable_database_is_one_sentence_without_the_password() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    start = time.monotonic()
    with pytest.raises(StorageError, match=r"is unreachable \(.*refused.*check that Postgres is running") as caught:
        connection.open_storage(f"postgresql://me:secret@127.0.0.1:{port}/x")
    assert time.monotonic() - start < 10
    assert "secret" not in str(caught.value)
    assert "me:***@127.0.0.1" in str(caught.value)


@pytest.mark.slow
def test_a_server_that_never_answers_is_unreachable_within_ten_seconds() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        start = time.monotonic()
        with pytest.raises(StorageError, match="is unreachable"):
            connection.open_storage(f"postgresql://me@127.0.0.1:{silent.getsockname()[1]}/x")
        assert time.monotonic() - start < 10


def test_a_server_that_is_starting_or_full_is_waited_for(proxy: Proxy) -> None:
    proxy.refusals += [
        ("57P03", "the database system is starting up"),
        ("53300", "sorry, too many clients already"),
    ]
    connection.engine_of(connection.open_storage(proxy.url)).dispose()
    assert proxy.refused == 2


def test_a_worker_waits_for_a_server_that_is_away_or_recovers(
    database: str, proxy: Proxy, caplog: pytest.LogCaptureFixture
) -> None:
    proxy.refusals += [("57P03", "the database system is in recovery mode")]
    proxy.cut()
    opened: list[Any] = []
    worker = threading.Thread(target=lambda: opened.append(connection.open_storage(proxy.url, wait_seconds=60)))
    worker.start()
    until(lambda: "is unreachable" in caplog.text)
    assert "waiting for it for up to 1 min" in caplog.text
    proxy.restore()
    worker.join(60)
    assert proxy.refused == 1
    connection.engine_of(opened[0]).dispose()


def test_a_worker_that_waits_for_the_server_can_be_stopped(proxy: Proxy) -> None:
    proxy.cut()
    stop = threading.Event()
    stop.set()
    with pytest.raises(StorageError, match="is unreachable"):
        connection.open_storage(proxy.url, wait_seconds=1000, stop=stop)
    proxy.restore()


def test_a_trial_takes_few_messages(proxy: Proxy) -> None:
    claims = join_study(proxy.url, heartbeat_seconds=60, grace_seconds=120)

    def one() -> int:
        before = proxy.messages
        claim = claimed(claims)
        with claim.transaction():
            for number in range(20):
                claim.trial.suggest_float(f"x{number}", 0, 1)
        claim.finish(TrialState.COMPLETE, 0.5, attributes={f"a{number}": number for number in range(20)})
        return proxy.messages - before

    # The claim, a read, begin, fence, parameters, commit, begin, fence, end, value, attributes, claim gone, commit;
    # more where the machine was so busy that a connection was idle.
    assert min(one() for _ in range(5)) == 13
    claims.engine.dispose()


def test_a_connection_that_was_lost_while_it_was_idle_is_no_outage(
    proxy: Proxy, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    claims = join_study(proxy.url)
    claimed(claims).finish(TrialState.COMPLETE, 0.5)
    monkeypatch.setattr(connection, "IDLE_SECONDS", 0.0)
    proxy.cut()
    proxy.restore()
    claimed(claims).finish(TrialState.COMPLETE, 0.5)
    assert "unreachable" not in caplog.text
    claims.engine.dispose()


def test_another_refusal_is_not_waited_for(proxy: Proxy) -> None:
    proxy.refusals += [("28P01", "password authentication failed")]
    with pytest.raises(StorageError, match=r"password authentication failed\): check .* its password"):
        connection.open_storage(proxy.url)


def test_a_pooler_that_refuses_session_settings_is_accepted(proxy: Proxy) -> None:
    proxy.refuses_options = True
    storage = connection.open_storage(proxy.url, grace_seconds=20)
    assert storage.get_all_studies() == []
    assert proxy.refused == 1
    with connection.engine_of(storage).connect() as session:
        limits = session.execute(sa.text(
            "SELECT current_setting('idle_in_transaction_session_timeout'), current_setting('lock_timeout')"
        )).one()  # fmt: skip
    with unwrap(storage).immediate.connect() as session:
        assert session.execute(sa.text("SHOW lock_timeout")).scalar() == limits[1]
    assert limits == ("5s", "15s"), "the limits are set in every transaction"
    connection.engine_of(storage).dispose()


def test_a_connection_that_is_dead_is_noticed_by_the_server() -> None:
    options = as_options(limits(120.0))
    for setting in ("tcp_keepalives_idle=30", "tcp_keepalives_interval=10", "tcp_keepalives_count=3"):
        assert f"-c {setting}" in options
    assert "-c tcp_user_timeout=30000" in options


def test_a_command_that_only_looks_waits_briefly(database: str) -> None:
    storage = connection.open_to_look(database)
    assert unwrap(storage).retry_seconds == connection.LOOK_SECONDS == 5
    connection.engine_of(storage).dispose()


def test_session_settings(database: str) -> None:
    storage = connection.open_storage(database + "&options=-c%20search_path%3Dpublic")
    with connection.engine_of(storage).connect() as session:
        settings = {
            name: session.execute(sa.text(f"SHOW {name}")).scalar()
            for name in (
                "TimeZone",
                "statement_timeout",
                "lock_timeout",
                "idle_in_transaction_session_timeout",
                "client_connection_check_interval",
                "search_path",
                "application_name",
            )
        }
    connection.engine_of(storage).dispose()
    assert settings == {
        "TimeZone": "UTC",
        "statement_timeout": "1min",
        "lock_timeout": "30s",
        "idle_in_transaction_session_timeout": "10s",
        "client_connection_check_interval": "5s",
        "search_path": "public",
        "application_name": f"hpo {socket.gethostname()}:{os.getpid()}",
    }


def test_the_claims_table_of_an_earlier_version_gets_its_new_columns(database: str) -> None:
    claims = join_study(database, budget=2)
    claimed(claims).release()
    with claims.engine.begin() as session:
        for column in ("checkpoint", "checkpoint_sha256", "pending"):
            session.execute(sa.text(f"ALTER TABLE hpo_claims DROP COLUMN {column}"))
        session.execute(sa.text("ALTER TABLE hpo_claims DROP CONSTRAINT hpo_claims_trial_id_fkey"))
        session.execute(sa.text("INSERT INTO hpo_claims SELECT 99, study_id, owner, host, pid, slot, gpu, claimed_at, "
                                "heartbeat, attempt, stage, epoch, released FROM hpo_claims"))  # fmt: skip
    claims.engine.dispose()
    later = join_study(database, budget=2)
    claim = claimed(later)
    assert (claim.trial.number, claim.attempt, claim.checkpoint, claim.pending) == (0, 1, None, None)
    claim.mark_pending("a")
    claim.commit_checkpoint("a", "sha")
    claim.finish(TrialState.COMPLETE, 1.0)
    assert artifact_rows(later) == [], "the claim of a trial that was deleted is gone, too"
    assert column_names(later.engine) >= {"checkpoint", "checkpoint_sha256", "pending"}
    later.engine.dispose()


def column_names(engine: sa.Engine) -> set[str]:
    columns: list[Any] = sa.inspect(engine).get_columns("hpo_claims")
    return {column["name"] for column in columns}


def test_tables_of_another_version_of_optuna_are_refused_in_a_sentence(database: str) -> None:
    engine = sa.create_engine(database)
    with engine.begin() as session:
        session.execute(sa.text("UPDATE alembic_version SET version_num = 'v2.6.0.a'"))
    with pytest.raises(UserError, match=r"no longer compatible with the table schema.*optuna storage upgrade"):
        connection.open_storage(database)
    engine.dispose()
