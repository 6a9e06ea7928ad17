"""The state of a study as `hpo status --json` prints it."""

from __future__ import annotations

import json

import pytest
from tiny import task

from sparse_evidence.hpo.database import record
from sparse_evidence.hpo.database.connection import engine_of
from sparse_evidence.hpo.results.status import study_status
from sparse_evidence.hpo.running import objective
from sparse_evidence.hpo.running.artifacts import Checkpoints, open_store
from sparse_evidence.hpo.running.claims import Claim, Claims
from sparse_evidence.hpo.running.joining import join_study, measure_baselines


@pytest.fixture
def data(tmp_path):
    return task(tmp_path)


@pytest.fixture
def study(data, database):
    opened = join_study(data.definition, data, database, trials=4)
    yield opened
    engine_of(opened).dispose()


@pytest.fixture
def claim_next(study):
    claims = Claims(engine_of(study), study, budget=4, heartbeat_seconds=5, grace_seconds=60, max_attempts=3)

    def claim() -> Claim:
        claimed = claims.claim()
        assert isinstance(claimed, Claim)
        return claimed

    return claim


@pytest.fixture
def run_next(claim_next, data, tmp_path):
    checkpoints = Checkpoints(open_store(str(tmp_path / "artifacts")), every_seconds=5)

    def run() -> None:
        with claim_next() as claim:
            objective.run(claim, data, checkpoints, device="cpu", stop=lambda: False)

    return run


def test_a_study_that_has_just_started(study):
    status = study_status(study)
    assert (status["study"], status["metric"]) == ("tiny", "average_precision")
    assert (status["trials"]["requested"], status["trials"]["finished"]) == (4, 0)
    assert (status["best"], status["baselines"], status["workers"], status["attempts"]) == (None, None, [], {})
    assert status["storage"].startswith("postgresql")
    assert status["infeasible_reasons"] == {}


def test_a_running_trial_and_its_worker(study, claim_next):
    with claim_next() as claim:
        status = study_status(study)
        claim.release()
    assert (status["trials"]["running"], status["trials"]["released"], status["best"]) == (1, 0, None)
    (row,) = status["workers"]
    assert (row["trial"], row["attempt"], row["released"]) == (0, 1, False)
    assert row["held_seconds"] == round(row["held_seconds"], 1)


def test_a_finished_trial_baselines_and_json(study, data, run_next):
    measure_baselines(study, data)
    run_next()
    status = study_status(study)
    assert json.loads(json.dumps(status, allow_nan=False)) == status
    assert (status["trials"]["finished"], status["trials"]["running"], status["workers"]) == (1, 0, [])
    trial = study.trials[0]
    assert status["best"] == {"trial": 0, "value": trial.value, "model": "iris", "params": trial.params}
    assert status["baselines"] == data.baselines()


def test_what_is_concluded(study, run_next):
    run_next()
    status = study_status(study)
    assert (status["ensemble"], status["confirmed"], status["claim"]) == (None, None, None)
    corrected = {"value": 0.4, "interval": [0.3, 0.5]}
    gain = {"name": "linear", "value": 0.1, "interval": [0.05, 0.15]}
    ensemble = {
        "finished": 1, "members": [0, 0], "value": 0.5, "folds": [0.5], "corrected": corrected, "over_baseline": gain,
    }  # fmt: skip
    study.set_user_attr(record.ENSEMBLE, ensemble)
    status = study_status(study)
    assert status["ensemble"] == {"finished": 1, "trials": [0], "value": 0.5, "corrected": corrected}
    assert status["confirmed"] is None
    assert "not confirmed" in (status["claim"] or "")
    confirmed = {
        "study": "tiny/confirm", "finished": 1, "splits": 2, "members": [0], "winner": "ensemble", "reason": "why",
        "scores": {"ensemble": {"mean": 0.45, "interval": [0.4, 0.5], "splits": [0.45, 0.45]}}, "over_baseline": gain,
    }  # fmt: skip
    study.set_user_attr(record.CONFIRMED, confirmed)
    status = study_status(study)
    assert status["confirmed"] == {
        "finished": 1, "splits": 2, "winner": "ensemble", "reason": "why", "value": 0.45, "interval": [0.4, 0.5],
    }  # fmt: skip
    assert "on 2 fresh splits" in (status["claim"] or "")
    assert json.loads(json.dumps(status, allow_nan=False)) == status


def test_a_released_trial_does_not_count_as_running(study, claim_next):
    claim_next().release()
    status = study_status(study)
    assert (status["trials"]["running"], status["trials"]["released"]) == (0, 1)
    assert [row["released"] for row in status["workers"]] == [True]


def test_there_is_a_pace_only_while_a_worker_runs(study, claim_next, run_next):
    nothing = {"trials_per_hour": None, "seconds_left": None}
    run_next()
    run_next()
    assert study_status(study)["pace"] == nothing
    claim = claim_next()
    pace = study_status(study, grace_seconds=60)["pace"]
    assert pace["trials_per_hour"] > 0
    assert pace["seconds_left"] == pytest.approx(2 * 3600 / pace["trials_per_hour"], rel=0.1, abs=0.1)
    assert study_status(study, grace_seconds=0)["pace"] == nothing  # silent for too long: the worker is gone
    claim.release()
    assert study_status(study)["pace"] == nothing


def test_trials_started_more_than_once_are_listed(study, claim_next):
    with pytest.raises(RuntimeError, match="a crash"), claim_next():
        raise RuntimeError("a crash")
    claim_next().release()
    assert study_status(study)["attempts"] == {"0": 2}
    assert study.trials[0].user_attrs[record.ATTEMPTS] == 2
