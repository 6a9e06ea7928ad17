"""Our storage reads and writes what Optuna's own reads and writes, on a real Postgres, in far fewer statements."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import optuna
import pytest
import sqlalchemy as sa
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.exceptions import UpdateFinishedTrialError
from optuna.storages import RDBStorage
from optuna.trial import FrozenTrial, TrialState, create_trial

from sparse_evidence.hpo.database import connection, studies
from sparse_evidence.hpo.running import pruning
from sparse_evidence.hpo.running.claims import Claim, Claims
from sparse_evidence.hpo.running.sampler import seeded

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


def every_kind_of_trial(study: optuna.Study) -> None:
    """Fill a study, by Optuna's own means, with whatever can stand in it."""
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
    other = optuna.create_study(storage=study._storage, study_name="other")
    other.add_trial(create_trial(value=7.0))
    study.add_trial(create_trial(value=3, **full))


def typed(trials: list[FrozenTrial]) -> list[str]:
    """Everything in the trials, in its order, with 1 and 1.0 and True told apart."""
    return [repr(sorted(vars(trial).items())) for trial in trials]


@pytest.mark.parametrize("zone", ["UTC", "Asia/Kolkata"])
def test_every_kind_of_trial_is_read_as_optuna_reads_it(
    zone: str, ours: Any, optunas: RDBStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TZ", zone)
    time.tzset()
    try:
        study = optuna.create_study(storage=optunas, study_name="s")
        every_kind_of_trial(study)
        backend = connection.backend(ours)
        expected = optunas.get_all_trials(study._study_id)
        assert {trial.state for trial in expected} == set(TrialState)
        assert typed(ours.get_all_trials(study._study_id)) == typed(expected)
        assert typed([backend.get_trial(trial._trial_id) for trial in expected]) == typed(expected)
        states = (TrialState.COMPLETE, TrialState.FAIL)
        assert typed(backend.get_all_trials(study._study_id, states=states)) == typed(
            optunas.get_all_trials(study._study_id, states=states)
        )
        for known, after in ((set(), 3), ({1, 2, 99}, 5), ({1}, -1), ({2}, 10**6), (set(), 10**6)):
            asked = (study._study_id, None, known, after)
            assert typed(backend._get_trials(*asked)) == typed(optunas._get_trials(*asked))
    finally:
        monkeypatch.undo()
        time.tzset()


def test_what_is_not_there_is_a_key_error_as_optunas(ours: Any, optunas: RDBStorage) -> None:
    empty = optuna.create_study(storage=optunas, study_name="s")._study_id
    for each in (connection.backend(ours), optunas):
        assert each.get_all_trials(empty) == []
        for call in (
            lambda each=each: each.get_all_trials(empty + 1),
            lambda each=each: each.get_trial(1),
            lambda each=each: each.set_trial_user_attr(1, "a", 1),
            lambda each=each: each.set_trial_state_values(1, TrialState.FAIL),
        ):
            with pytest.raises(KeyError):
                call()


def written(study: optuna.Study) -> None:
    """A study as a script drives it: every call that writes into a trial, some of them twice."""
    for state in (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL):
        trial = study.ask()
        for name, distribution in DISTRIBUTIONS.items():
            trial._suggest(name, distribution)
        trial.set_user_attr("a", 1)
        trial.set_user_attr("a", {"b": [math.nan]})
        trial.set_constraint("c", 0.5)
        for step, value in {2: 0.25, 0: math.nan, 7: -math.inf}.items():
            trial.report(value, step)
        study._storage.set_trial_intermediate_value(trial._trial_id, 2, 0.75)
        study.tell(trial, 1.0 if state == TrialState.COMPLETE else None, state)
        with pytest.raises(UpdateFinishedTrialError):
            trial.set_user_attr("late", 1)
        with pytest.raises(UpdateFinishedTrialError):
            study._storage.set_trial_state_values(trial._trial_id, TrialState.COMPLETE, [2.0])
    study.enqueue_trial({"float": 0.5})
    study.tell(study.ask(), math.inf)
    study.enqueue_trial({"float": 0.5})


def test_what_is_written_is_what_optuna_writes(
    ours: Any, optunas: RDBStorage, fresh_database: Callable[[], str]
) -> None:
    other = RDBStorage(fresh_database())
    rows = []
    for backend, reader in ((ours, optunas), (other, other)):
        sampler = optuna.samplers.RandomSampler(seed=0)
        study = optuna.create_study(storage=backend, study_name="s", direction="maximize", sampler=sampler)
        written(study)
        found = reader.get_all_trials(study._study_id)
        for trial in found:
            ended = trial.datetime_complete
            assert (ended is not None) == trial.state.is_finished()
            if ended is not None and trial.datetime_start is not None:
                assert -0.01 < (ended - trial.datetime_start).total_seconds() < 60
            trial.datetime_start = trial.datetime_complete = None
        rows.append(typed(found))
    assert rows[0] == rows[1]
    other.engine.dispose()


def test_a_trial_that_somebody_ends_in_the_middle_of_our_telling_is_theirs(
    ours: Any, optunas: RDBStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = optuna.create_study(storage=ours, study_name="s")
    trial, backend = study.ask(), connection.backend(ours)
    admit = backend._admit

    def ended_just_after(*args: Any) -> None:
        admit(*args)
        optunas.set_trial_state_values(trial._trial_id, TrialState.FAIL)

    monkeypatch.setattr(backend, "_admit", ended_just_after)
    with pytest.raises(UpdateFinishedTrialError):
        backend.end(trial._trial_id, TrialState.COMPLETE, [1.0], {"a": 1})
    stored = optunas.get_trial(trial._trial_id)
    assert (stored.state, stored.value, stored.user_attrs) == (TrialState.FAIL, None, {})


def test_attributes_may_be_left_out_of_what_is_read_but_not_of_the_table(database: str, ours: Any) -> None:
    study = optuna.create_study(storage=ours, study_name="s")
    trial = study.ask()
    trial.set_user_attr("big", [1, 2, 3])
    trial.set_user_attr("small", 1)
    without = connection.open_storage(database, without=("big",))
    assert without.get_trial(trial._trial_id).user_attrs == {"small": 1}
    assert without.get_all_trials(study._study_id)[0].user_attrs == {"small": 1}
    assert ours.get_all_trials(study._study_id)[0].user_attrs == {"big": [1, 2, 3], "small": 1}
    connection.engine_of(without).dispose()


def test_what_is_written_together_is_seen_together(ours: Any, optunas: RDBStorage) -> None:
    study = optuna.create_study(storage=ours, study_name="s")
    trial, backend = study.ask(), connection.backend(ours)
    with backend.together(trial._trial_id):
        trial.suggest_float("x", 0, 1)
        trial.set_user_attr("a", 1)
        trial.set_user_attr("a", 2)
        trial.report(0.5, 1)
        found = optunas.get_trial(trial._trial_id)
        assert (found.params, found.user_attrs, found.intermediate_values) == ({}, {}, {})
    found = optunas.get_trial(trial._trial_id)
    assert (list(found.params), found.user_attrs, found.intermediate_values) == (["x"], {"a": 2}, {1: 0.5})


MOST_STATEMENTS, MOST_TRANSACTIONS = 26, 9


def test_a_trial_costs_few_statements_however_many_there_are(ours: Any) -> None:
    identity = {"definition": {}, "definition_sha256": "d", "data_sha256": "a", "folds_sha256": "f", "code": "1"}
    study = studies.open_study(ours, "s", direction="maximize", identity=identity, sampler=seeded("tpe", 0))
    engine = connection.engine_of(study)
    mine = Claims(engine, study, budget=99, heartbeat_seconds=60, grace_seconds=120, max_attempts=3)
    seen: Counter[str] = Counter()
    sa.event.listen(engine, "before_cursor_execute", lambda *_: seen.update(["statements"]))
    sa.event.listen(engine, "checkout", lambda *_: seen.update(["connections"]))
    for number in range(15):
        seen.clear()
        claim = mine.claim()
        assert isinstance(claim, Claim)
        with claim:
            with claim.together():
                x = claim.trial.suggest_float("x", 0, 1)
                claim.trial.suggest_int("k", 1, 8)
                claim.trial.set_user_attr("config", {"x": x})
            for folds in (2, 5):
                if folds < 5:
                    for known in (claim.trials_when_claimed, study.get_trials(deepcopy=False)):
                        assert len(pruning.peer_values(known, claim.trial.number, folds)) == number
                assert not claim.reported(folds)
                claim.trial.report(x, folds)
            claim.finish(TrialState.COMPLETE, x, attributes={"curves": [x] * 9, "cv": {}})
        assert seen["statements"] <= MOST_STATEMENTS
        assert seen["connections"] <= MOST_TRANSACTIONS
