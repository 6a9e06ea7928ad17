"""Retrying: which errors, for how long, with which pauses."""

from __future__ import annotations

import pytest
import sqlalchemy as sa
from optuna.exceptions import StorageInternalError

from sparse_evidence.hpo.database.retry import Backoff, is_transient, retry
from sparse_evidence.hpo.errors import StorageError

LOST = sa.exc.OperationalError("SELECT 1", {}, Exception("server closed the connection"))
WRONG = sa.exc.ProgrammingError("SELEC 1", {}, Exception("syntax error"))


class Failing:
    """A call that raises an error the first `times` times."""

    def __init__(self, error: Exception, times: float) -> None:
        self.error = error
        self.times = times
        self.calls = 0

    def __call__(self) -> str:
        self.calls += 1
        if self.calls <= self.times:
            raise self.error
        return "done"


def test_a_lost_connection_is_retried_with_one_warning(caplog: pytest.LogCaptureFixture) -> None:
    assert retry(Failing(LOST, 2), 10) == "done"
    assert [record.getMessage() for record in caplog.records] == ["The database is unreachable; retrying."]


def test_retrying_ends_with_one_sentence() -> None:
    with pytest.raises(StorageError, match="The database was unreachable for 0 s: check that Postgres is running"):
        retry(Failing(LOST, float("inf")), 0.2)


@pytest.mark.parametrize("error", [WRONG, KeyError("x")])
def test_other_errors_are_not_retried(error: Exception) -> None:
    call = Failing(error, 1)
    with pytest.raises(type(error)):
        retry(call, 10)
    assert call.calls == 1


def test_an_error_that_optuna_wraps_is_judged_by_its_cause() -> None:
    wrapped = StorageInternalError()
    assert not is_transient(wrapped)
    wrapped.__cause__ = WRONG
    assert not is_transient(wrapped)
    wrapped.__cause__ = LOST
    assert is_transient(wrapped)


def test_pauses_double_up_to_the_longest() -> None:
    pauses = Backoff(shortest=1.0, longest=60.0, jitter=0.0)
    assert [pauses.pause(attempt) for attempt in (1, 2, 3, 6, 7, 10_000)] == [1.0, 2.0, 4.0, 32.0, 60.0, 60.0]


def test_jitter_only_shortens_a_pause() -> None:
    drawn = [Backoff(shortest=8.0, longest=8.0, jitter=0.25).pause(1) for _ in range(200)]
    assert 6.0 <= min(drawn) < 6.5
    assert 7.5 < max(drawn) <= 8.0
