"""Where core's events meet an Optuna trial: real trials, a real study and a real Postgres."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from optuna.trial import FixedTrial, TrialState, create_trial
from tiny import task

from sparse_evidence.hpo.database import predictions
from sparse_evidence.hpo.database.claims_sql import count_trials, list_claims
from sparse_evidence.hpo.database.connection import engine_of, open_storage
from sparse_evidence.hpo.database.optuna_storage import known_trial
from sparse_evidence.hpo.database.record import CONFIG, CURVES, CV, OUTCOME, PRUNED, REASON, SEED
from sparse_evidence.hpo.database.studies import load_study
from sparse_evidence.hpo.running import objective, pruning
from sparse_evidence.hpo.running.artifacts import Checkpoints, open_store
from sparse_evidence.hpo.running.claims import Claim, Claims, Finished
from sparse_evidence.hpo.running.joining import join_study
from sparse_evidence.hpo.running.task import StudyTask
from sparse_evidence.hpo.study import space
from sparse_evidence.hpo.study.fields import Range

NEVER = lambda: False  # noqa: E731
UNREACHABLE = 2.0
"""Better than any average precision."""


@pytest.fixture
def claims(database: str, tmp_path: Path):
    engines = []

    def make(data: StudyTask, budget: int = 4) -> Claims:
        study = join_study(data.definition, data, database, trials=budget)
        engines.append(engine_of(study))
        return Claims(engine_of(study), study, budget=budget, heartbeat_seconds=5, grace_seconds=60, max_attempts=3)

    yield make
    for engine in engines:
        engine.dispose()


def run(claims: Claims, data: StudyTask, stop: Callable[[], bool] = NEVER) -> tuple[TrialState | None, Claim]:
    """Claim a trial and run it; trial 0 comes first."""
    claim = claims.claim()
    assert isinstance(claim, Claim)
    with claim:
        checkpoints = Checkpoints(open_store(str(data.definition.path.parent / "artifacts")), every_seconds=0)
        return objective.run(claim, data, checkpoints, device="cpu", stop=stop), claim


def add_peer(claims: Claims, reports: dict[int, float]) -> None:
    """Add a pruned trial that has reported these values, by number of folds."""
    claims.study.add_trial(create_trial(state=TrialState.PRUNED, intermediate_values=reports))


def curves(claims: Claims) -> dict[str, list[list[float]]]:
    """The curves of trial 0, as a reader of the whole study loads them; the workers' own study omits them."""
    assert CURVES not in claims.study.trials[0].user_attrs
    storage = open_storage(claims.engine.url.render_as_string(hide_password=False))
    trial = load_study(storage, claims.study.study_name).trials[0]
    engine_of(storage).dispose()
    return trial.user_attrs[CURVES]


# ---- complete and pruned trials -------------------------------------------------------------------------------------


def test_a_complete_trial_reports_at_the_end_of_every_stage(claims, tmp_path):
    data = task(tmp_path)
    mine = claims(data)
    state, claim = run(mine, data)
    trial = mine.study.trials[0]
    assert state == trial.state == TrialState.COMPLETE
    assert list(trial.intermediate_values) == [1, 2, 3]
    assert trial.intermediate_values[3] == trial.value, "the last report is the value"
    assert trial.user_attrs[CV]["seed"] == trial.user_attrs[SEED] == data.seed(0)
    assert trial.user_attrs[CV]["mean"] == trial.value
    assert len(trial.user_attrs[CV]["folds"]) == 3
    assert sum(trial.user_attrs[CV]["folds"]) / 3 == pytest.approx(trial.value)
    assert trial.user_attrs[CONFIG]["training"]["learning_rate"] == trial.params["training.learning_rate"]
    assert [len(curve) for curve in curves(mine)["scores"]] == [trial.user_attrs[CV]["epochs"]] * 3
    assert trial.params["training.learning_rate"] == 0.003  # trial 0 is the default configuration
    assert list_claims(mine.engine, mine.study) == []
    assert count_trials(mine.study).complete == 1
    assert claim.attempt == 1


def fold_scores(data: StudyTask, logits: predictions.Logits, folds: range) -> list[float]:
    probabilities = 1 / (1 + np.exp(-logits.astype(np.float64)))
    return [data.score(probabilities, fold) for fold in folds]


@pytest.mark.parametrize("metric", ["average_precision", "brier"])
def test_the_predictions_of_a_complete_trial_give_its_fold_scores(metric, claims, tmp_path):
    data = task(tmp_path, epochs=12, patience=4, learning_rate=0.1, metric=metric)
    mine = claims(data)
    run(mine, data)
    trial = mine.study.trials[0]
    (logits,) = predictions.load(mine.study).values()
    assert not np.isnan(logits).any(), "every post is in a fold"
    assert fold_scores(data, logits, range(3)) == pytest.approx(trial.user_attrs[CV]["folds"], abs=1e-3)
    assert trial.user_attrs[CV]["best_epoch"] < trial.user_attrs[CV]["epochs"], "not just the last epoch"


def test_the_predictions_of_a_pruned_trial_give_its_value(claims, tmp_path):
    data = task(tmp_path, epochs=12, patience=4)
    mine = claims(data)
    add_peer(mine, {1: 0.0, 2: UNREACHABLE})
    run(mine, data)
    trial = mine.study.trials[0]
    assert trial.state == TrialState.PRUNED
    (logits,) = predictions.load(mine.study).values()
    np.testing.assert_array_equal(np.isnan(logits).all(1), data.folds.assignment == 2)
    assert np.mean(fold_scores(data, logits, range(2))) == pytest.approx(trial.value, abs=1e-3)


def test_trials_share_the_folds_but_not_the_training_seed(tmp_path):
    """With one seed for all, the search would favor the configuration that happens to suit that seed."""
    data = task(tmp_path)
    candidate = space.suggest(data.definition, FixedTrial(space.default_parameters(data.definition)))
    first, repeated, second = (data.cross_validation(candidate, trial=trial) for trial in (0, 0, 1))
    epochs = [next(cv.epochs()) for cv in (first, repeated, second)]
    assert epochs[0] == epochs[1]
    assert epochs[0].train_loss != epochs[2].train_loss
    assert first.folds is second.folds


def test_a_trial_below_the_threshold_is_pruned_at_the_end_of_the_stage(claims, tmp_path):
    data = task(tmp_path)
    mine = claims(data)
    add_peer(mine, {1: 0.0, 2: UNREACHABLE})
    state, _ = run(mine, data)
    trial = mine.study.trials[0]
    assert state == trial.state == TrialState.PRUNED
    assert list(trial.intermediate_values) == [1, 2]
    assert trial.value == trial.intermediate_values[2]
    assert trial.user_attrs[PRUNED] == {
        "folds": 2, "value": trial.value, "threshold": UNREACHABLE, "peers": 1, "stage_ended": True
    }  # fmt: skip
    assert CV not in trial.user_attrs
    assert len(curves(mine)["scores"]) < 3 or curves(mine)["scores"][2] == []


def test_no_trial_is_pruned_after_its_last_stage(claims, tmp_path):
    data = task(tmp_path)
    mine = claims(data)
    add_peer(mine, {3: UNREACHABLE})
    add_peer(mine, {3: UNREACHABLE})
    assert run(mine, data)[0] == TrialState.COMPLETE


@pytest.mark.parametrize(("within", "epochs"), [("true", 4), ("false", 6)])
def test_a_stalled_trial_is_pruned_within_the_stage_only_if_within_stages_is_set(within, epochs, claims, tmp_path):
    """The learning rate is too small to learn anything; with patience 5 the projection looks back three epochs."""
    data = task(tmp_path, epochs=20, patience=5, learning_rate=1e-12, within_stages=within)
    mine = claims(data)
    add_peer(mine, {1: UNREACHABLE, 2: UNREACHABLE, 3: UNREACHABLE})
    state, claim = run(mine, data)
    trial = mine.study.trials[0]
    assert state == trial.state == TrialState.PRUNED
    (scores,) = [curve for curve in curves(mine)["scores"] if curve]
    assert len(scores) == epochs
    assert trial.intermediate_values == {1: max(scores)} == known_trial(claim.trial).intermediate_values
    assert trial.user_attrs[PRUNED]["stage_ended"] is (within == "false")
    assert max(scores) <= trial.user_attrs[PRUNED]["value"] < trial.user_attrs[PRUNED]["threshold"] == UNREACHABLE
    assert trial.value == max(scores)


def test_a_trial_that_improves_fast_enough_is_not_pruned_within_the_stage(claims, tmp_path):
    peer = 0.575
    data = task(tmp_path, epochs=4, patience=2, learning_rate=0.03)
    mine = claims(data)
    add_peer(mine, dict.fromkeys((1, 2, 3), peer))
    run(mine, data)
    scores = curves(mine)["scores"][0]
    assert scores[1] < peer, "the trial must start below the threshold for this test to prove anything"
    assert len(scores) > 2


def test_the_rule_is_not_evaluated_again_for_a_stage_that_an_earlier_worker_reported(claims, tmp_path):
    """The earlier worker passed the stage and was killed before its next checkpoint; peers have improved since."""
    data = task(tmp_path)
    mine = claims(data)
    claim = mine.claim()
    assert isinstance(claim, Claim)
    claim.trial.report(0.5, 1)
    claim.release()
    add_peer(mine, {1: UNREACHABLE})
    assert run(mine, data)[0] == TrialState.COMPLETE
    assert mine.study.trials[0].intermediate_values[1] == 0.5


def test_a_peer_that_reports_while_the_trial_runs_counts_at_the_end_of_the_stage(claims, tmp_path):
    data = task(tmp_path, epochs=20, patience=5, learning_rate=1e-12, within_stages="false")
    mine = claims(data)
    epochs = 0

    def report_from_another_trial() -> bool:
        """In the second epoch, long after the trial was claimed."""
        nonlocal epochs
        epochs += 1
        if epochs == 2:
            other = mine.claim()
            assert isinstance(other, Claim)
            other.trial.report(1.0, 1)
            other.release()
        return False

    assert run(mine, data, stop=report_from_another_trial)[0] == TrialState.PRUNED
    assert epochs == 5, "the sixth epoch ends the stage"


def test_peers_are_the_other_trials_at_the_same_folds_including_pruned_but_not_infeasible_ones(claims, tmp_path):
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


# ---- infeasible and released trials ---------------------------------------------------------------------------------


def test_a_trial_that_diverges_is_infeasible_not_pruned(claims, tmp_path):
    data = task(tmp_path, epochs=30, learning_rate="1e30\nclip_norm = 0")
    mine = claims(data)
    state, claim = run(mine, data)
    trial = mine.study.trials[0]
    assert state == trial.state == TrialState.FAIL
    assert trial.user_attrs[OUTCOME] == "infeasible"
    assert claim.trial.user_attrs[REASON] == trial.user_attrs[REASON], "the worker can log it without reading it"
    assert trial.user_attrs[REASON].startswith("diverged: ")
    assert predictions.load(mine.study) == {}
    assert (count_trials(mine.study).infeasible, count_trials(mine.study).finished) == (1, 1)


def test_a_trial_that_runs_out_of_memory_is_infeasible(claims, tmp_path):
    def allocate() -> bool:
        raise MemoryError("no room for 7 GiB")

    data = task(tmp_path)
    mine = claims(data)
    with pytest.raises(objective.TrialOutOfMemoryError, match="Trial 0 ran out of memory and is infeasible"):
        run(mine, data, stop=allocate)
    assert (count_trials(mine.study).infeasible, list_claims(mine.engine, mine.study)) == (1, [])
    assert mine.study.trials[0].user_attrs[REASON] == "out of memory: no room for 7 GiB"


def test_a_trial_is_released_when_the_worker_is_asked_to_stop_and_resumed_by_the_next_worker(claims, tmp_path):
    data = task(tmp_path)
    mine = claims(data)
    state, claim = run(mine, data, stop=lambda: True)
    assert state is None
    assert mine.study.trials[0].state == TrialState.RUNNING
    assert [row["released"] for row in list_claims(mine.engine, mine.study)] == [True]
    state, resumed = run(mine, data)
    assert (state, resumed.trial.number, resumed.attempt) == (TrialState.COMPLETE, claim.trial.number, 1)


def test_the_same_trials_have_the_same_values_in_another_database(tmp_path, fresh_database):
    values = []
    for _ in range(2):
        data = task(tmp_path)
        study = join_study(data.definition, data, fresh_database(), trials=2)
        mine = Claims(engine_of(study), study, budget=2, heartbeat_seconds=5, grace_seconds=60, max_attempts=3)
        run(mine, data)
        run(mine, data)
        assert isinstance(mine.claim(), Finished)
        values.append([trial.value or trial.intermediate_values for trial in study.trials])
        engine_of(study).dispose()
    assert values[0] == values[1]
    assert not any(isinstance(value, float) and math.isnan(value) for value in values[0])


def test_what_was_queued_wrongly_ends_at_once_with_a_sentence(claims, tmp_path, caplog):
    data = task(tmp_path)
    queue = claims(data, budget=3)
    name, spec = next((p.name, p.spec) for p in space.searched(data.definition) if isinstance(p.spec, Range))
    run(queue, data)
    queue.study.enqueue_trial({name: "three"})
    queue.study.enqueue_trial({"lerning_rate": 0.01})
    state, claim = run(queue, data)
    assert state == TrialState.FAIL
    reason = known_trial(claim.trial).user_attrs[REASON]
    assert reason == f'queued wrongly: {name} is "three", but it is searched in {spec}'
    state, claim = run(queue, data)
    assert state != TrialState.FAIL
    assert "Trial 2 was queued with unknown parameters, which are ignored: lerning_rate (did you mean " in caplog.text
