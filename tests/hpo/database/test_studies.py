"""Studies: created once, whatever fails in between, and joined only with the same identity."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import sqlalchemy as sa
from postgres_proxy import Proxy
from processes import PROCESSES

from sparse_evidence.core.errors import UserError
from sparse_evidence.hpo.database import connection, studies
from sparse_evidence.hpo.errors import RefusedError
from sparse_evidence.hpo.study.definition import differences

IDENTITY = {
    "definition": {"search": {"seed": 0}},
    "definition_sha256": "d" * 64,
    "data_sha256": "a" * 64,
    "folds_sha256": "f" * 64,
    "code": "0.1.0",
}


@pytest.fixture
def storage(database: str) -> Iterator[Any]:
    made = connection.open_storage(database, retry_seconds=10)
    yield made
    connection.engine_of(made).dispose()


def open_study(storage: Any, **changes: Any) -> Any:
    return studies.open_study(storage, "s", **({"direction": "maximize", "identity": IDENTITY} | changes))


def test_a_study_is_created_once_with_its_defaults_as_trial_0(storage: Any) -> None:
    for _ in range(2):
        study = open_study(storage, default_parameters={"x": 0.5})
    assert [trial.system_attrs["fixed_params"] for trial in study.trials] == [{"x": 0.5}]
    assert len(storage.get_all_studies()) == 1
    assert studies.load_study(storage, "s").user_attrs["hpo:identity"] == IDENTITY


def test_a_creation_whose_answer_was_lost_queues_the_defaults_once(proxy: Proxy) -> None:
    storage = connection.open_storage(proxy.url, retry_seconds=10)
    lost = proxy.lose_answer_to_commit("INSERT INTO study_user_attributes")
    study = open_study(storage, default_parameters={"x": 0.5})
    assert lost.is_set()
    assert len(study.trials) == 1
    connection.engine_of(storage).dispose()


def test_sixteen_processes_create_one_study_on_an_empty_database(empty_database: str) -> None:
    gate, answers = PROCESSES.Barrier(16), PROCESSES.Queue()
    processes = [PROCESSES.Process(target=_join, args=(empty_database, gate, answers)) for _ in range(16)]
    for process in processes:
        process.start()
    assert {answers.get(timeout=60) for _ in processes} == {(1, 1)}
    for process in processes:
        process.join()
        assert process.exitcode == 0


def _join(url: str, gate: Any, answers: Any) -> None:
    gate.wait()
    storage = connection.open_storage(url)
    study = open_study(storage, default_parameters={"x": 0.5})
    answers.put((storage.get_study_id_from_name("s"), len(study.trials)))
    connection.engine_of(storage).dispose()


def test_every_difference_is_named(storage: Any) -> None:
    open_study(storage)
    other = IDENTITY | {
        "definition": {"search": {"seed": 1}},
        "definition_sha256": "e" * 64,
        "data_sha256": "b" * 64,
    }
    with pytest.raises(RefusedError) as caught:
        open_study(storage, identity=other, direction="minimize")
    assert str(caught.value).partition("different inputs: ")[2] == (
        "search.seed is 1 here and 0 in the study; the data differ (bbbbbbbbbbbb here, aaaaaaaaaaaa in the study); "
        "the direction is minimize here and maximize in the study; "
        "restore them, or give this study another name."
    )
    with pytest.raises(RefusedError, match="described by the caller"):
        open_study(storage, identity=other, differences=lambda _, __: ["described by the caller"])


def test_a_study_of_another_version_is_refused_for_that_alone(storage: Any) -> None:
    open_study(storage)
    other = IDENTITY | {"definition": {"search": {"seed": 1}}, "definition_sha256": "e" * 64, "code": "0.2.0"}
    with pytest.raises(RefusedError, match=r"by version 0\.1\.0 .* this is version 0\.2\.0.* another name") as caught:
        open_study(storage, identity=other)
    assert "seed" not in str(caught.value)


def test_a_foreign_study_is_refused_and_a_half_made_one_completed(storage: Any) -> None:
    import optuna

    half = optuna.create_study(storage=storage, study_name="s", direction="maximize")
    half.enqueue_trial({"x": 1})
    assert len(open_study(storage, default_parameters={"x": 1}).trials) == 1
    foreign = optuna.create_study(storage=storage, study_name="foreign")
    foreign.ask()
    with pytest.raises(RefusedError, match="not created by hpo"):
        studies.open_study(storage, "foreign", direction="minimize", identity=IDENTITY)


def test_a_missing_study_says_what_to_do(storage: Any) -> None:
    with pytest.raises(UserError, match=r"no study 'nothing' in postgresql.*start it with `hpo run`"):
        studies.load_study(storage, "nothing")


def queued(study: Any) -> list[dict[str, Any]]:
    return [trial.system_attrs["fixed_params"] for trial in study.get_trials()]


def test_parameters_are_queued_once_after_the_default(storage: Any) -> None:
    once = [{"x": 0.25}, {"x": 0.75}]
    for _ in range(2):
        study = open_study(storage, default_parameters={"x": 0.5}, once=once)
        assert queued(study) == [{"x": 0.5}, {"x": 0.25}, {"x": 0.75}]


def test_parameters_are_queued_in_a_study_that_exists_unless_it_has_tried_them(storage: Any) -> None:
    from optuna.distributions import FloatDistribution
    from optuna.trial import create_trial

    study = open_study(storage, default_parameters={"x": 0.5})
    study.add_trial(create_trial(value=0.0, params={"x": 0.25}, distributions={"x": FloatDistribution(0, 1)}))
    for _ in range(2):
        open_study(storage, once=[{"x": 0.25}, {"x": 0.5}, {"x": 0.75}])
        assert [trial.system_attrs.get("fixed_params") for trial in study.get_trials()] == [
            {"x": 0.5}, None, {"x": 0.75}
        ]  # fmt: skip
    with pytest.raises(RefusedError):
        open_study(storage, identity=IDENTITY | {"data_sha256": "b" * 64}, once=[{"x": 0.1}])
    assert len(study.get_trials()) == 3


@pytest.mark.parametrize("exists", [False, True])
def test_parameters_are_queued_once_even_if_the_answer_is_lost(proxy: Proxy, exists: bool) -> None:
    storage = connection.open_storage(proxy.url, retry_seconds=10)
    if exists:
        open_study(storage)
    lost = proxy.lose_answer_to_commit("INSERT INTO trial_system_attributes")
    study = open_study(storage, once=[{"x": 0.25}, {"x": 0.75}])
    assert lost.is_set()
    assert queued(study) == [{"x": 0.25}, {"x": 0.75}]
    connection.engine_of(storage).dispose()


def test_a_look_makes_no_tables(empty_database: str) -> None:
    with pytest.raises(UserError, match="There is no study in"):
        connection.open_storage(empty_database, create=False)
    engine = sa.create_engine(empty_database)
    assert sa.inspect(engine).get_table_names() == []
    engine.dispose()


def test_the_place_of_the_data_is_no_difference(storage: Any) -> None:
    """Also for studies of which it was a part."""
    stored = {"data": {"source": "pairs", "path": "posts.csv"}, "search": {"seed": 0}}
    here = {"data": {"source": "pairs"}, "search": {"seed": 0}}
    open_study(storage, identity=IDENTITY | {"definition": stored}, differences=differences)
    moved = IDENTITY | {"definition": here, "definition_sha256": "e" * 64}
    open_study(storage, identity=moved, differences=differences)
    other = {"data": {"source": "pairs"}, "search": {"seed": 1}}
    with pytest.raises(RefusedError, match="seed is 1 here and 0 in the study"):
        open_study(storage, identity=moved | {"definition": other}, differences=differences)
