"""Looks at a hold-out: everyone gets a number of their own, and no look is lost or counted twice."""

from concurrent.futures import ThreadPoolExecutor

import pytest
from postgres_proxy import Proxy
from test_studies import IDENTITY

from sparse_evidence.hpo.database import connection, record, studies
from sparse_evidence.hpo.database.looks import record_look
from sparse_evidence.hpo.errors import StorageError


@pytest.fixture
def storage(database):
    made = connection.open_storage(database, retry_seconds=10)
    studies.open_study(made, "s", direction="maximize", identity=IDENTITY)
    yield made
    connection.engine_of(made).dispose()


def test_looks_at_the_same_time_are_all_counted(storage, database):
    def look(person):
        own = connection.open_storage(database)
        study = studies.load_study(own, "s")
        numbers = [len(record_look(study, {"model": f"{person}", "value": 0.5})) for _ in range(5)]
        connection.engine_of(own).dispose()
        return numbers

    with ThreadPoolExecutor(4) as pool:
        numbers = [number for found in pool.map(look, range(4)) for number in found]
    assert sorted(numbers) == list(range(1, 21))
    looks = record.looks(studies.load_study(storage, "s"))
    assert len(looks) == len({each["id"] for each in looks}) == 20
    assert sorted(each["model"] for each in looks) == sorted("0123" * 5)
    assert [each["time"] for each in looks] == sorted(each["time"] for each in looks)
    assert looks[0]["time"].endswith("+00:00")


def test_a_look_that_cannot_be_counted_is_an_error(storage, database, proxy: Proxy):
    through = connection.open_storage(proxy.url, retry_seconds=0.5)
    study = studies.load_study(through, "s")
    proxy.cut()
    with pytest.raises(StorageError):
        record_look(study, {"model": "m", "value": 0.5})
    proxy.restore()
    assert record.looks(studies.load_study(storage, "s")) == []
    connection.engine_of(through).dispose()


def test_a_look_whose_answer_was_lost_is_counted_once(storage, proxy: Proxy):
    through = connection.open_storage(proxy.url, retry_seconds=10)
    study = studies.load_study(through, "s")
    lost = proxy.lose_answer_to_commit("INSERT INTO study_user_attributes")
    (look,) = record_look(study, {"model": "m", "value": 0.5})
    assert lost.is_set()
    assert record.looks(studies.load_study(storage, "s")) == [look]
    connection.engine_of(through).dispose()
