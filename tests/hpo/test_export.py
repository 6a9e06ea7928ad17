"""Which trial is the best, and the study as plain JSON."""

from __future__ import annotations

import json
from pathlib import Path

import jsonschema
import optuna
import pytest
from optuna.trial import TrialState, create_trial
from tiny import task

from sparse_evidence.core.errors import UserError
from sparse_evidence.hpo.database import record
from sparse_evidence.hpo.database.connection import engine_of, try_baselines_lock
from sparse_evidence.hpo.results import best as results
from sparse_evidence.hpo.results import status
from sparse_evidence.hpo.running import objective
from sparse_evidence.hpo.running.artifacts import Checkpoints, open_store
from sparse_evidence.hpo.running.claims import Claim, Claims
from sparse_evidence.hpo.running.joining import join_study, measure_baselines

SCHEMA = json.loads((Path(__file__).parents[2] / "studies" / "best.schema.json").read_text(encoding="utf-8"))


def study_of(direction: str, *trials: tuple[TrialState, float | None, bool]) -> optuna.Study:
    study = optuna.create_study(direction=direction)
    for state, value, scored in trials:
        steps = {1: value} if value is not None else {}
        study.add_trial(
            create_trial(
                state=state,
                value=value if state == TrialState.COMPLETE else None,
                intermediate_values=steps,
                user_attrs={record.CV: {}} if scored else {},
            )
        )
    return study


COMPLETE, PRUNED, FAIL, RUNNING = TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL, TrialState.RUNNING


@pytest.mark.parametrize(
    ("direction", "trials", "expected"),
    [
        ("maximize", [(COMPLETE, 0.1, True), (COMPLETE, 0.3, True), (COMPLETE, 0.2, True)], 1),
        ("minimize", [(COMPLETE, 0.3, True), (COMPLETE, 0.1, True), (COMPLETE, 0.2, True)], 1),
        # the earliest among equals
        ("maximize", [(COMPLETE, 0.1, True), (COMPLETE, 0.3, True), (COMPLETE, 0.3, True)], 1),
        ("minimize", [(COMPLETE, 0.3, True), (COMPLETE, 0.1, True), (COMPLETE, 0.1, True)], 1),
        # what was not scored on all folds is never the best
        ("maximize", [(COMPLETE, 0.1, True), (PRUNED, 0.9, False), (FAIL, None, False), (RUNNING, 0.9, False)], 0),
        # somebody else's complete trial has no cross-validation behind it
        ("maximize", [(COMPLETE, 0.9, False), (COMPLETE, 0.1, True)], 1),
        ("maximize", [(PRUNED, 0.9, False)], None),
        ("maximize", [], None),
    ],
)
def test_the_best_trial(direction, trials, expected):
    best = results.best_trial(study_of(direction, *trials))
    assert (best.number if best else None) == expected


def test_the_best_trial_among_some():
    study = study_of("maximize", (COMPLETE, 0.1, True), (COMPLETE, 0.3, True))
    best = results.best_trial(study, among={0})
    assert best is not None
    assert best.number == 0


def test_an_export_and_a_status_of_a_real_study(database, tmp_path):
    data = task(tmp_path)
    study = join_study(data.definition, data, database, trials=2)
    measure_baselines(study, data)
    with pytest.raises(UserError, match="has no complete trial yet"):
        results.best_result(study)
    mine = Claims(engine_of(study), study, budget=2, heartbeat_seconds=5, grace_seconds=60, max_attempts=3)
    claim = mine.claim()
    assert isinstance(claim, Claim)
    before = status.study_status(study)
    assert (before["trials"]["running"], before["best"], len(before["workers"])) == (1, None, 1)
    with claim:
        saved = Checkpoints(open_store(str(tmp_path / "artifacts")), every_seconds=5)
        objective.run(claim, data, saved, device="cpu", stop=lambda: False)
    best = results.best_result(study)
    results.write_json(best, tmp_path / "best.json")
    read = json.loads((tmp_path / "best.json").read_text(encoding="utf-8"))
    jsonschema.Draft202012Validator(SCHEMA).validate(read)
    assert read["params"] == study.trials[0].params
    assert read["config"]["training"]["learning_rate"] == read["params"]["training.learning_rate"]
    assert read["cv"]["floors"]["linear"] == pytest.approx(sum(read["cv"]["floors"]["linear_folds"]) / 3)
    assert read["provenance"]["folds_sha256"] == data.identity()["folds_sha256"]
    after = status.study_status(study)
    json.dumps(after, allow_nan=False)
    assert (after["trials"]["finished"], after["trials"]["requested"], after["workers"]) == (1, 2, [])
    assert after["best"]["value"] == read["value"]
    engine_of(study).dispose()


def test_nan_is_not_written_and_the_old_file_stays(tmp_path):
    path = tmp_path / "best.json"
    path.write_text("old")
    with pytest.raises(ValueError, match="JSON"):
        results.write_json({"value": float("nan")}, path)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_writing_leaves_nothing_else_behind(tmp_path):
    path = tmp_path / "best.json"
    results.check_writable(path)
    assert list(tmp_path.iterdir()) == []
    results.write_json({"b": "é", "a": 1}, path)
    assert path.read_text(encoding="utf-8") == '{\n  "a": 1,\n  "b": "é"\n}\n'
    assert list(tmp_path.iterdir()) == [path]


def test_floors_are_measured_by_one_and_not_waited_for(database, tmp_path):
    data = task(tmp_path)
    study = join_study(data.definition, data, database, trials=2)
    with engine_of(study).begin() as busy:
        assert try_baselines_lock(busy, study._study_id)
        measure_baselines(study, data)
        assert record.BASELINES not in study.user_attrs
    measure_baselines(study, data)  # who was at it is gone
    assert study.user_attrs[record.BASELINES] == data.baselines()
    engine_of(study).dispose()
