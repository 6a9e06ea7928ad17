"""Where core's events meet an Optuna trial, on a real Postgres."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from optuna.trial import FixedTrial, TrialState
from tiny import task

from benchmarks.stages import Replay
from sparse_evidence.hpo.database.claims_sql import count_trials, list_claims
from sparse_evidence.hpo.database.connection import engine_of, open_storage
from sparse_evidence.hpo.database.record import CONFIG, CURVES, CV, OUTCOME, REASON
from sparse_evidence.hpo.database.studies import load_study
from sparse_evidence.hpo.running import objective, pruning
from sparse_evidence.hpo.running import task as preparation
from sparse_evidence.hpo.running.artifacts import Checkpoints, open_store
from sparse_evidence.hpo.running.claims import Claim, Claims, Finished
from sparse_evidence.hpo.running.task import StudyTask
from sparse_evidence.hpo.running.worker import join
from sparse_evidence.hpo.study import space

NEVER = lambda: False  # noqa: E731


@pytest.fixture
def claims(database: str, tmp_path: Path):
    opened = []

    def make(data: StudyTask, budget: int = 4) -> Claims:
        study = join(data.definition, data, database, trials=budget)
        opened.append(engine_of(study))
        return Claims(engine_of(study), study, budget=budget, heartbeat_seconds=5, grace_seconds=60, max_attempts=3)

    yield make
    for engine in opened:
        engine.dispose()


def run(claims: Claims, data: StudyTask, stop: Callable[[], bool] = NEVER) -> tuple[TrialState | None, Claim]:
    claim = claims.claim()
    assert isinstance(claim, Claim)
    with claim:
        saved = Checkpoints(open_store(str(data.definition.path.parent / "artifacts")), every_seconds=0)
        return objective.run(claim, data, saved, device="cpu", stop=stop), claim


def all_curves(claims: Claims):
    """As whoever opens the storage finds them; workers leave them out."""
    assert CURVES not in claims.study.trials[0].user_attrs
    storage = open_storage(claims.engine.url.render_as_string(hide_password=False))
    found = [trial.user_attrs[CURVES] for trial in load_study(storage, claims.study.study_name).trials]
    engine_of(storage).dispose()
    return found


def curves(claims: Claims):
    """The first trial's."""
    return all_curves(claims)[0]


def test_a_complete_trial_reports_once_a_stage_at_the_folds_finished(claims, tmp_path):
    data = task(tmp_path)
    mine = claims(data)
    state, claim = run(mine, data)
    trial = mine.study.trials[0]
    assert state == trial.state == TrialState.COMPLETE
    assert list(trial.intermediate_values) == [1, 2, 3]
    assert trial.user_attrs[CV]["mean"] == trial.value
    assert len(trial.user_attrs[CV]["folds"]) == 3
    assert sum(trial.user_attrs[CV]["folds"]) / 3 == pytest.approx(trial.value)
    assert trial.user_attrs[CONFIG]["training"]["learning_rate"] == trial.params["training.learning_rate"]
    assert [len(curve) for curve in curves(mine)["scores"]] == [trial.user_attrs[CV]["epochs"]] * 3
    assert trial.params["training.learning_rate"] == 0.003  # trial 0 is the default configuration
    assert list_claims(mine.engine, mine.study) == []
    assert count_trials(mine.study).complete == 1
    assert claim.attempt == 1


def test_trials_share_their_folds_and_not_their_seed(tmp_path):
    """Else a search finds the configuration that one seed happens to favour."""
    data = task(tmp_path)
    candidate = space.suggest(data.definition, FixedTrial(space.default_parameters(data.definition)))
    first, again, second = (data.cross_validation(candidate, trial=trial) for trial in (0, 0, 1))
    ends = [next(cv.epochs()) for cv in (first, again, second)]
    assert ends[0] == ends[1]
    assert ends[0].train_loss != ends[2].train_loss
    assert first.folds is second.folds


def test_a_hopeless_trial_is_pruned_after_the_stage(claims, tmp_path, monkeypatch):
    # 2 is better than any average precision
    monkeypatch.setattr(pruning, "peer_values", lambda _trials, _number, folds: [0.0] if folds == 1 else [2.0])
    data = task(tmp_path)
    mine = claims(data)
    state, _ = run(mine, data)
    trial = mine.study.trials[0]
    assert state == trial.state == TrialState.PRUNED
    assert list(trial.intermediate_values) == [1, 2]
    assert trial.value == trial.intermediate_values[2]
    assert CV not in trial.user_attrs
    assert len(curves(mine)["scores"]) < 3 or curves(mine)["scores"][2] == []


def test_no_trial_is_pruned_after_its_last_stage(claims, tmp_path, monkeypatch):
    monkeypatch.setattr(pruning, "peer_values", lambda _trials, _number, folds: [2.0, 2.0] if folds == 3 else [])
    data = task(tmp_path)
    assert run(claims(data), data)[0] == TrialState.COMPLETE


@pytest.mark.parametrize(("within", "epochs"), [("true", 4), ("false", 6)])
def test_within_a_stage_a_trial_without_prospects_is_given_up(within, epochs, claims, tmp_path, monkeypatch):
    """It stands still with a rate that teaches nothing; patience 5 looks back three epochs."""
    monkeypatch.setattr(pruning, "peer_values", lambda _trials, _number, _folds: [2.0])
    data = task(tmp_path, epochs=20, patience=5, learning_rate=1e-12, within_stages=within)
    mine = claims(data)
    state, claim = run(mine, data)
    trial = mine.study.trials[0]
    assert state == trial.state == TrialState.PRUNED
    (scores,) = [curve for curve in curves(mine)["scores"] if curve]
    assert len(scores) == epochs
    assert trial.intermediate_values == {1: max(scores)} == claim.trial._cached_frozen_trial.intermediate_values
    assert trial.value == max(scores)


def test_within_a_stage_whoever_rises_fast_enough_goes_on(claims, tmp_path, monkeypatch):
    monkeypatch.setattr(pruning, "peer_values", lambda _trials, _number, _folds: [0.6])
    data = task(tmp_path, epochs=4, patience=2, learning_rate=0.03)
    mine = claims(data)
    run(mine, data)
    scores = curves(mine)["scores"][0]
    assert scores[1] < 0.6, "else it proves nothing"
    assert len(scores) > 2


def test_a_stage_that_was_reported_has_been_passed(claims, tmp_path, monkeypatch):
    """An earlier worker went on from there and was killed before it saved that; the trial does not lose it again."""
    data = task(tmp_path)
    mine = claims(data)
    claim = mine.claim()
    assert isinstance(claim, Claim)
    claim.trial.report(0.5, 1)
    claim.release()
    monkeypatch.setattr(pruning, "peer_values", lambda _trials, _number, folds: [2.0] if folds == 1 else [])
    assert run(mine, data)[0] == TrialState.COMPLETE
    assert mine.study.trials[0].intermediate_values[1] == 0.5


def test_what_is_known_of_the_others_is_read_again_once_it_is_old(claims, tmp_path, monkeypatch):
    monkeypatch.setattr(pruning, "FRESH_SECONDS", 0.0)
    data = task(tmp_path, epochs=20, patience=5, learning_rate=1e-12)
    mine = claims(data)
    told: list[int] = []

    def another_reports() -> bool:
        """In the second epoch, long after the trial was claimed."""
        told.append(1)
        if len(told) == 2:
            other = mine.claim()
            assert isinstance(other, Claim)
            other.trial.report(1.0, 1)
            other.release()
        return False

    assert run(mine, data, stop=another_reports)[0] == TrialState.PRUNED
    assert len(told) == 3


@pytest.mark.parametrize("within", ["true", "false"])
def test_the_benchmarks_replay_a_study_as_it_is(within, claims, tmp_path):
    """What docs/performance.md says of giving up stands on replays of curves."""
    data = task(tmp_path, epochs=8, patience=2, within_stages=within)
    mine = claims(data, budget=12)
    for _ in range(12):
        run(mine, data)
    trials = mine.study.trials
    endless = []
    for trial in trials:
        candidate = space.suggest(data.definition, FixedTrial(trial.params))
        training = replace(candidate.training, patience=candidate.training.epochs)
        cv = data.cross_validation(replace(candidate, training=training), trial=trial.number)
        list(cv.epochs())
        endless.append(cv.curves()["scores"])
    replayed = Replay((1, 1, 1), data.definition.search.pruner, patience=2).study(np.array(endless), range(12))
    assert 0 < replayed.complete == count_trials(mine.study).complete < 12
    assert replayed.epochs == sum(len(fold) for each in all_curves(mine) for fold in each["scores"])
    assert (replayed.winner, replayed.value) == (mine.study.best_trial.number, pytest.approx(mine.study.best_value))


def test_peers_are_the_other_trials_at_the_same_folds_pruned_ones_too_but_none_that_failed(claims, tmp_path):
    data = task(tmp_path)
    mine = claims(data)
    states = [TrialState.PRUNED, TrialState.PRUNED, TrialState.FAIL]
    for number, (values, state) in enumerate(zip([{1: 0.5}, {1: 0.6, 2: 0.7}, {1: 0.9, 2: 0.9}], states, strict=True)):
        claim = mine.claim()
        assert isinstance(claim, Claim)
        assert claim.trial.number == number
        for step, value in values.items():
            claim.trial.report(value, step)
        claim.finish(state, reason="diverged" if state == TrialState.FAIL else None)
    trials = mine.study.trials
    assert pruning.peer_values(trials, 3, 1) == [0.5, 0.6]
    assert pruning.peer_values(trials, 3, 2) == [0.7]
    assert pruning.peer_values(trials, 1, 1) == [0.5]
    assert pruning.peer_values(trials, 3, 3) == []


def test_a_trial_that_diverges_is_infeasible_not_pruned(claims, tmp_path):
    data = task(tmp_path, epochs=30, learning_rate="1e30\nclip_norm = 0")
    mine = claims(data)
    state, claim = run(mine, data)
    trial = mine.study.trials[0]
    assert state == trial.state == TrialState.FAIL
    assert trial.user_attrs[OUTCOME] == "infeasible"
    assert claim.trial.user_attrs[REASON] == trial.user_attrs[REASON], "for whoever has it in hand"
    assert trial.user_attrs[REASON].startswith("diverged: ")
    assert (count_trials(mine.study).infeasible, count_trials(mine.study).finished) == (1, 1)


def test_out_of_memory_is_infeasible(claims, tmp_path, monkeypatch):
    def too_large(*_, **__):
        raise MemoryError("no room for 7 GiB")

    monkeypatch.setattr(preparation, "CrossValidation", too_large)
    data = task(tmp_path)
    mine = claims(data)
    with pytest.raises(objective.TrialOutOfMemoryError, match="Trial 0 ran out of memory and is infeasible"):
        run(mine, data)
    assert (count_trials(mine.study).infeasible, list_claims(mine.engine, mine.study)) == (1, [])
    assert mine.study.trials[0].user_attrs[REASON] == "out of memory: no room for 7 GiB"


def test_told_to_stop_the_trial_is_handed_back_and_goes_on_elsewhere(claims, tmp_path):
    data = task(tmp_path)
    mine = claims(data)
    state, claim = run(mine, data, stop=lambda: True)
    assert state is None
    assert mine.study.trials[0].state == TrialState.RUNNING
    assert [row["released"] for row in list_claims(mine.engine, mine.study)] == [True]
    state, again = run(mine, data)
    assert (state, again.trial.number, again.attempt) == (TrialState.COMPLETE, claim.trial.number, 1)


def test_the_same_trial_twice_has_the_same_value(claims, tmp_path, fresh_database):
    values = []
    for _ in range(2):
        data = task(tmp_path)
        study = join(data.definition, data, fresh_database(), trials=2)
        mine = Claims(engine_of(study), study, budget=2, heartbeat_seconds=5, grace_seconds=60, max_attempts=3)
        run(mine, data)
        run(mine, data)
        assert isinstance(mine.claim(), Finished)
        values.append([trial.value or trial.intermediate_values for trial in study.trials])
        engine_of(study).dispose()
    assert values[0] == values[1]
    assert not any(isinstance(value, float) and math.isnan(value) for value in values[0])
