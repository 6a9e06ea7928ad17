"""Our storage reads and writes exactly what Optuna's does, on a real Postgres, in far fewer statements."""

from __future__ import annotations

import copy
import math
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import optuna
import pytest
import sqlalchemy as sa
from claim_tools import claimed, join_study
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.exceptions import UpdateFinishedTrialError
from optuna.storages import BaseStorage, RDBStorage
from optuna.trial import FrozenTrial, TrialState, create_trial
from waiting import until

from sparse_evidence.hpo.database import connection
from sparse_evidence.hpo.database.optuna_storage import unwrap
from sparse_evidence.hpo.running import pruning
from sparse_evidence.hpo.running.sampler import make_sampler

DISTRIBUTIONS = {
    "float": FloatDistribution(0, 1),
    "whole": FloatDistribution(0, 10),
    "log": FloatDistribution(1e-5, 1, log=True),
    "step": FloatDistribution(0, 1, step=0.25),
    "int": IntDistribution(1, 9),
    "kind": CategoricalDistribution([None, True, 3, 0.5, "ü'\"\\ {%(x)s}"]),
}
PARAMS = {
    "float": 0.1 + 0.2,
    "whole": 3.0,
    "log": 1.2345678901234567e-5,
    "step": 0.75,
    "int": 7,
    "kind": "ü'\"\\ {%(x)s}",
}
ATTRIBUTES = {"text": "ü'\"\\ :x %s\n", "nested": {"a": [1, 2.5, None, True]}, "nan": math.nan, "inf": -math.inf}


def make_study(storage: BaseStorage) -> optuna.Study:
    sampler = optuna.samplers.RandomSampler(seed=0)
    return optuna.create_study(storage=storage, study_name="s", direction="maximize", sampler=sampler)


def id_of(storage: BaseStorage, number: int) -> int:
    """Id of a trial of the study `s`."""
    return storage.get_trial_id_from_study_id_trial_number(storage.get_study_id_from_name("s"), number)


# ---- what every storage must do --------------------------------------------------------------------------------------


class StorageContract:
    """Both storages run these tests. Optuna's passes them, which shows that the tests are right."""

    @pytest.fixture
    def storage(self, database: str) -> Iterator[BaseStorage]:
        raise NotImplementedError

    def test_a_new_study_has_no_trials(self, storage: BaseStorage) -> None:
        assert make_study(storage).trials == []

    def test_unknown_ids_are_key_errors(self, storage: BaseStorage) -> None:
        make_study(storage)
        unknown = storage.get_study_id_from_name("s") + 1
        for call in (
            lambda: storage.get_all_trials(unknown),
            lambda: storage.get_trial(1),
            lambda: storage.set_trial_user_attr(1, "a", 1),
            lambda: storage.set_trial_state_values(1, TrialState.FAIL),
        ):
            with pytest.raises(KeyError):
                call()

    def test_later_attributes_and_reports_replace_earlier_ones(self, storage: BaseStorage) -> None:
        study = make_study(storage)
        trial = study.ask()
        trial.set_user_attr("a", 1)
        trial.set_user_attr("a", {"b": [2.5]})
        storage.set_trial_intermediate_value(id_of(storage, 0), 2, math.nan)
        storage.set_trial_intermediate_value(id_of(storage, 0), 2, 0.75)
        (stored,) = study.trials
        assert (stored.user_attrs, stored.intermediate_values) == ({"a": {"b": [2.5]}}, {2: 0.75})

    def test_another_trial_with_another_distribution_is_refused(self, storage: BaseStorage) -> None:
        study = make_study(storage)
        study.ask().suggest_float("x", 0, 1)
        with pytest.raises(ValueError, match="distribution"):
            study.ask().suggest_categorical("x", ["a", "b"])

    def test_a_finished_trial_cannot_be_written_into(self, storage: BaseStorage) -> None:
        study = make_study(storage)
        trial = study.ask()
        study.tell(trial, 1.0)
        for call in (
            lambda: trial.set_user_attr("late", 1),
            lambda: storage.set_trial_intermediate_value(id_of(storage, 0), 1, 0.5),
            lambda: storage.set_trial_state_values(id_of(storage, 0), TrialState.COMPLETE, [2.0]),
        ):
            with pytest.raises(UpdateFinishedTrialError):
                call()
        (stored,) = study.trials
        assert (stored.value, stored.user_attrs, stored.intermediate_values) == (1.0, {}, {})

    def test_queued_parameters_are_suggested(self, storage: BaseStorage) -> None:
        study = make_study(storage)
        study.enqueue_trial({"x": 0.25}, user_attrs={"queued": True})
        trial = study.ask()
        assert (trial.suggest_float("x", 0, 1), trial.user_attrs) == (0.25, {"queued": True})


class TestOptunasStorage(StorageContract):
    @pytest.fixture
    def storage(self, database: str) -> Iterator[BaseStorage]:
        opened = RDBStorage(database)
        yield optuna.storages.get_storage(opened)
        opened.engine.dispose()


class TestOurStorage(StorageContract):
    @pytest.fixture
    def storage(self, database: str) -> Iterator[BaseStorage]:
        opened = connection.open_storage(database, retry_seconds=20)
        yield opened
        connection.engine_of(opened).dispose()


# ---- the same tables, read and written by both -----------------------------------------------------------------------


@pytest.fixture
def ours(database: str) -> Iterator[Any]:
    opened = connection.open_storage(database, retry_seconds=20)
    yield opened
    connection.engine_of(opened).dispose()


@pytest.fixture
def optunas(database: str) -> Iterator[RDBStorage]:
    opened = RDBStorage(database)
    yield opened
    opened.engine.dispose()


def add_every_kind_of_trial(study: optuna.Study, other: optuna.Study) -> None:
    """Fill a study through Optuna with everything that it can hold, and create a trial of another study in between."""
    full: dict[str, Any] = {"params": PARAMS, "distributions": DISTRIBUTIONS, "user_attrs": ATTRIBUTES}
    study.add_trial(
        create_trial(value=0.1, **full, intermediate_values={5: 0.5, 2: math.nan, 3: math.inf, 4: -math.inf})
    )
    study.add_trial(create_trial(value=math.inf, constraints={"c": 1.5, "d": -2}))
    study.add_trial(create_trial(value=-math.inf, params={"kind": None}, distributions={"kind": DISTRIBUTIONS["kind"]}))
    study.add_trial(create_trial(state=TrialState.PRUNED, value=2, intermediate_values={0: 2}))
    study.add_trial(create_trial(state=TrialState.PRUNED))
    study.add_trial(create_trial(state=TrialState.FAIL, user_attrs={"why": "x"}))
    study.enqueue_trial({"float": 0.5}, user_attrs={"queued": True})
    study.add_trial(create_trial(state=TrialState.RUNNING, intermediate_values={1: 1.0}))
    other.add_trial(create_trial(value=7.0))
    study.add_trial(create_trial(value=3, **full))


def typed(trials: list[FrozenTrial]) -> list[str]:
    """Everything in the trials, in order; 1, 1.0 and True differ."""
    return [repr(sorted(vars(trial).items())) for trial in trials]


@pytest.fixture
def filled(optunas: RDBStorage) -> optuna.Study:
    study = make_study(optunas)
    add_every_kind_of_trial(study, optuna.create_study(storage=optunas, study_name="other"))
    return study


@pytest.mark.parametrize("zone", ["UTC", "Asia/Kolkata"])
def test_every_kind_of_trial_is_read_as_optuna_reads_it(
    zone: str, ours: Any, optunas: RDBStorage, filled: optuna.Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TZ", zone)
    time.tzset()
    try:
        study_id = optunas.get_study_id_from_name("s")
        backend = unwrap(ours)
        expected = optunas.get_all_trials(study_id)
        assert {trial.state for trial in expected} == set(TrialState)
        assert typed(ours.get_all_trials(study_id)) == typed(expected)
        ids = [id_of(optunas, trial.number) for trial in expected]
        assert typed([backend.get_trial(trial_id) for trial_id in ids]) == typed(expected)
        states = (TrialState.COMPLETE, TrialState.FAIL)
        for storage in (ours, backend):
            assert typed(storage.get_all_trials(study_id, states=states)) == typed(
                optunas.get_all_trials(study_id, states=states)
            )
    finally:
        monkeypatch.undo()
        time.tzset()


def test_a_study_read_before_is_brought_up_to_date(ours: Any, optunas: RDBStorage, filled: optuna.Study) -> None:
    """Optuna's cache in front of our storage requests only trials that are new or were unfinished."""
    study_id = optunas.get_study_id_from_name("s")
    for change in (
        lambda: None,
        lambda: filled.tell(7, 0.5),
        lambda: optunas.set_trial_user_attr(id_of(optunas, 6), "late", 1),
        lambda: filled.add_trial(
            create_trial(value=1.0, params={"int": 3}, distributions={"int": DISTRIBUTIONS["int"]})
        ),
        lambda: filled.tell(filled.ask(), 2.0),
    ):
        change()
        assert typed(ours.get_all_trials(study_id)) == typed(optunas.get_all_trials(study_id))


def suggest(trial: optuna.Trial, name: str) -> None:
    match DISTRIBUTIONS[name]:
        case FloatDistribution(low=low, high=high, step=step, log=log):
            trial.suggest_float(name, low, high, step=step, log=log)
        case IntDistribution(low=low, high=high):
            trial.suggest_int(name, low, high)
        case CategoricalDistribution(choices=choices):
            trial.suggest_categorical(name, choices)


def write_everything(study: optuna.Study, storage: BaseStorage) -> None:
    """Use every call with which a script writes into a trial, some of them twice."""
    for state in (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL):
        trial = study.ask()
        for name in DISTRIBUTIONS:
            suggest(trial, name)
        trial.set_user_attr("a", 1)
        trial.set_user_attr("a", {"b": [math.nan]})
        trial.set_constraint("c", 0.5)
        for step, value in {2: 0.25, 0: math.nan, 7: -math.inf}.items():
            trial.report(value, step)
        storage.set_trial_intermediate_value(id_of(storage, trial.number), 2, 0.75)
        study.tell(trial, 1.0 if state == TrialState.COMPLETE else None, state)
    study.enqueue_trial({"float": 0.5})
    study.tell(study.ask(), math.inf)
    study.enqueue_trial({"float": 0.5})


def test_every_write_equals_optunas(ours: Any, optunas: RDBStorage, fresh_database: Callable[[], str]) -> None:
    other = RDBStorage(fresh_database())
    written = []
    for storage, reader in ((ours, optunas), (other, other)):
        write_everything(make_study(storage), storage)
        trials = reader.get_all_trials(reader.get_study_id_from_name("s"))
        for trial in trials:
            ended = trial.datetime_complete
            assert (ended is not None) == trial.state.is_finished()
            if ended is not None and trial.datetime_start is not None:
                assert -0.01 < (ended - trial.datetime_start).total_seconds() < 60
            trial.datetime_start = trial.datetime_complete = None
        written.append(typed(trials))
    assert written[0] == written[1]
    other.engine.dispose()


# ---- what only ours does ---------------------------------------------------------------------------------------------


def test_a_trial_that_another_process_is_ending_is_not_ended_again(ours: Any, optunas: RDBStorage) -> None:
    make_study(ours).ask()
    backend, trial_id = unwrap(ours), id_of(ours, 0)
    errors: list[BaseException] = []

    def end() -> None:
        try:
            backend.end(trial_id, TrialState.COMPLETE, [1.0], {"a": 1})
        except UpdateFinishedTrialError as error:
            errors.append(error)

    with optunas.engine.connect() as session, session.begin():
        session.execute(sa.text("UPDATE trials SET state = 'FAIL' WHERE trial_id = :trial"), {"trial": trial_id})
        thread = threading.Thread(target=end)
        thread.start()
        waiting = sa.text("SELECT count(*) FROM pg_locks WHERE NOT granted")
        until(lambda: session.execute(waiting).scalar_one(), what="our write at the other's lock")
    thread.join()
    (error,) = errors
    assert str(error) == f"Another process has ended trial {trial_id}."
    stored = optunas.get_trial(trial_id)
    assert (stored.state, stored.value, stored.user_attrs) == (TrialState.FAIL, None, {})


def test_attributes_can_be_excluded_from_reading(database: str, ours: Any) -> None:
    trial = make_study(ours).ask()
    trial.set_user_attr("big", [1, 2, 3])
    trial.set_user_attr("small", 1)
    without = connection.open_storage(database, without=("big",))
    study_id = ours.get_study_id_from_name("s")
    assert without.get_trial(id_of(without, 0)).user_attrs == {"small": 1}
    assert without.get_all_trials(study_id)[0].user_attrs == {"small": 1}
    assert ours.get_all_trials(study_id)[0].user_attrs == {"big": [1, 2, 3], "small": 1}
    connection.engine_of(without).dispose()


def test_only_what_changed_in_unfinished_trials_is_read(ours: Any, optunas: RDBStorage, database: str) -> None:
    study = make_study(ours)
    running = [study.ask() for _ in range(3)]
    reader, partly = connection.open_storage(database), connection.open_storage(database, without=("big",))
    key = reader.get_study_id_from_name("s")
    first = reader.get_all_trials(key, deepcopy=False)
    again = reader.get_all_trials(key, deepcopy=False)
    assert all(one is other for one, other in zip(first, again, strict=True)), "nothing was read again"
    writes: list[Any] = [
        lambda trial: trial.suggest_float("x", 0, 1),
        lambda trial: trial.report(0.5, 1),
        lambda trial: trial.set_user_attr("a", 1),
        lambda trial: trial.set_user_attr("a", 2),  # the row is replaced
        lambda trial: trial.set_user_attr("big", 3),
        lambda trial: ours.set_trial_system_attr(id_of(ours, trial.number), "b", 1),
        lambda trial: study.tell(trial, 0.5),
    ]
    for write in writes:
        write(running[1])
        now = reader.get_all_trials(key, deepcopy=False)
        assert typed(now) == typed(optunas.get_all_trials(key))
        without_big = copy.deepcopy(now)
        for trial in without_big:
            trial.user_attrs.pop("big", None)
        assert typed(partly.get_all_trials(key, deepcopy=False)) == typed(without_big)
        assert [one is other for one, other in zip(again, now, strict=True)] == [True, False, True]
        again = now
    for storage in (reader, partly):
        connection.engine_of(storage).dispose()


def test_what_is_written_into_a_claimed_trial_leaves_the_trials_that_were_read_alone(database: str) -> None:
    worker = join_study(database, heartbeat_seconds=60, grace_seconds=120)
    with claimed(worker) as claim:
        claim.trial.suggest_float("x", 0, 1)
        claim.trial.set_user_attr("a", 1)
        (read,) = claim.trials_when_claimed
        assert (read.params, read.user_attrs, read.state) == ({}, {}, TrialState.RUNNING)
        claim.finish(TrialState.COMPLETE, 0.5)
    worker.engine.dispose()


def test_a_transaction_is_seen_as_a_whole(ours: Any, optunas: RDBStorage) -> None:
    trial, trial_id = make_study(ours).ask(), id_of(ours, 0)
    with unwrap(ours).transaction(trial_id):
        trial.suggest_float("x", 0, 1)
        trial.set_user_attr("a", 1)
        trial.set_user_attr("a", 2)
        trial.report(0.5, 1)
        before = optunas.get_trial(trial_id)
        assert (before.params, before.user_attrs, before.intermediate_values) == ({}, {}, {})
    after = optunas.get_trial(trial_id)
    assert (list(after.params), after.user_attrs, after.intermediate_values) == (["x"], {"a": 2}, {1: 0.5})


MOST_STATEMENTS, MOST_TRANSACTIONS = 25, 9


def test_a_trial_costs_few_statements_however_many_there_are(database: str) -> None:
    worker = join_study(database, budget=99, heartbeat_seconds=60, grace_seconds=120, sampler=make_sampler("tpe", 0))
    counts: Counter[str] = Counter()
    sa.event.listen(worker.engine, "before_cursor_execute", lambda *_: counts.update(["statements"]))
    sa.event.listen(worker.engine, "checkout", lambda *_: counts.update(["connections"]))
    for number in range(15):
        counts.clear()
        with claimed(worker) as claim:
            with claim.transaction():
                x = claim.trial.suggest_float("x", 0, 1)
                claim.trial.suggest_int("k", 1, 8)
                claim.trial.set_user_attr("config", {"x": x})
            for folds in (2, 5):
                if folds < 5:
                    for known in (claim.trials_when_claimed, worker.study.get_trials(deepcopy=False)):
                        assert len(pruning.peer_values(known, claim.trial.number, folds)) == number
                assert not claim.reported(folds)
                claim.trial.report(x, folds)
            claim.finish(TrialState.COMPLETE, x, attributes={"curves": [x] * 9, "cv": {}})
        assert counts["statements"] <= MOST_STATEMENTS
        assert counts["connections"] <= MOST_TRANSACTIONS
    worker.engine.dispose()
