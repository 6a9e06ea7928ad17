"""Which trial is the best, and `best.json`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import optuna
import pytest
from optuna.trial import TrialState, create_trial
from tiny import task

from sparse_evidence.core.config import LOSSES, MODELS, CandidateConfig, TrainingConfig
from sparse_evidence.core.errors import UserError
from sparse_evidence.core.splits import split
from sparse_evidence.core.training.crossval import CrossValidation
from sparse_evidence.hpo.database import record
from sparse_evidence.hpo.database.connection import engine_of
from sparse_evidence.hpo.database.locks import try_baselines_lock
from sparse_evidence.hpo.database.optuna_storage import study_id
from sparse_evidence.hpo.results import best
from sparse_evidence.hpo.running import objective
from sparse_evidence.hpo.running.artifacts import Checkpoints, open_store
from sparse_evidence.hpo.running.claims import Claim, Claims
from sparse_evidence.hpo.running.joining import join_study, measure_baselines
from sparse_evidence.hpo.running.task import StudyTask

SCHEMA = json.loads((Path(__file__).parents[3] / "studies" / "best.schema.json").read_text(encoding="utf-8"))


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
        # a trial that was not scored on all folds is never the best
        ("maximize", [(COMPLETE, 0.1, True), (PRUNED, 0.9, False), (FAIL, None, False), (RUNNING, 0.9, False)], 0),
        # a complete trial that hpo did not run has no cross-validation
        ("maximize", [(COMPLETE, 0.9, False), (COMPLETE, 0.1, True)], 1),
        ("maximize", [(PRUNED, 0.9, False)], None),
        ("maximize", [], None),
    ],
)
def test_the_best_trial(direction, trials, expected):
    trial = best.best_trial(study_of(direction, *trials))
    assert (trial.number if trial else None) == expected


def test_the_best_trial_among_given_numbers():
    study = study_of("maximize", (COMPLETE, 0.1, True), (COMPLETE, 0.3, True))
    trial = best.best_trial(study, among={0})
    assert trial is not None
    assert trial.number == 0


def test_the_best_result_of_a_real_study(database, tmp_path):
    data = task(tmp_path)
    study = join_study(data.definition, data, database, trials=2)
    measure_baselines(study, data)
    with pytest.raises(UserError, match="has no complete trial yet"):
        best.best_result(study)
    claims = Claims(engine_of(study), study, budget=2, heartbeat_seconds=5, grace_seconds=60, max_attempts=3)
    claim = claims.claim()
    assert isinstance(claim, Claim)
    with claim:
        checkpoints = Checkpoints(open_store(str(tmp_path / "artifacts")), every_seconds=5)
        objective.run(claim, data, checkpoints, device="cpu", stop=lambda: False)
    content = json.loads(json.dumps(best.best_result(study)))
    jsonschema.Draft202012Validator(SCHEMA).validate(content)
    assert set(content) == set(best.BestResult.__annotations__)
    assert (content["study"], content["metric"], content["trial"]) == ("tiny", "average_precision", 0)
    assert content["params"] == study.trials[0].params
    assert content["config"]["training"]["learning_rate"] == content["params"]["training.learning_rate"]
    assert content["cv"]["floors"]["linear"] == pytest.approx(sum(content["cv"]["floors"]["linear_folds"]) / 3)
    nothing_yet = ("ensemble", "confirmed")
    assert [content[key] for key in nothing_yet] == [None, None], "as in a study of an earlier version"
    assert (content["winner"], content["claim"].startswith("Nothing can be claimed yet")) == ("trial", True)
    assert content["default"] == {
        "trial": 0, "value": content["value"], "config": content["config"], "seed": content["cv"]["seed"],
        "epochs": content["cv"]["best_epoch"],
    }  # fmt: skip
    assert content["provenance"]["folds_sha256"] == data.identity()["folds_sha256"]
    engine_of(study).dispose()
    for fixed_epochs in (None, content["cv"]["best_epoch"]):
        assert rebuilt(content, data, fixed_epochs) == (content["value"], content["cv"]["folds"], content["cv"]["mean"])


ESTIMATE: dict[str, Any] = {"value": 0.5, "interval": [0.4, 0.6]}
ENSEMBLE: dict[str, Any] = {
    "finished": 3, "members": [2, 0, 2, 2], "value": 0.6, "folds": [0.5, 0.6, 0.7], "threshold": 0.2,
    "corrected": ESTIMATE, "best": {"trial": 2, "value": 0.55, "corrected": ESTIMATE},
    "over_default": {"name": "default", **ESTIMATE}, "over_baseline": {"name": "linear", **ESTIMATE},
}  # fmt: skip


def confirmed(winner: str | None, **means: float) -> dict[str, Any]:
    return {
        "study": "tiny/confirm", "finished": 3, "splits": 1, "members": [2, 0, 2, 2], "winner": winner, "reason": "why",
        "scores": {name: {"mean": mean, "interval": None, "splits": [mean]} for name, mean in means.items()},
        "over_default": None, "over_baseline": {"name": "linear", "value": 0.1, "interval": None},
        "over_others": [{"name": "zero_shot", "value": 0.2, "interval": None}],
    }  # fmt: skip


@pytest.fixture
def searched(database, tmp_path):
    """A study with three complete trials."""
    data = task(tmp_path, pruner="none")
    study = join_study(data.definition, data, database, trials=3)
    measure_baselines(study, data)
    claims = Claims(engine_of(study), study, budget=3, heartbeat_seconds=5, grace_seconds=60, max_attempts=3)
    checkpoints = Checkpoints(open_store(str(tmp_path / "artifacts")), every_seconds=5)
    for _ in range(3):
        claim = claims.claim()
        assert isinstance(claim, Claim)
        with claim:
            objective.run(claim, data, checkpoints, device="cpu", stop=lambda: False)
    yield study
    engine_of(study).dispose()


def exported(study: optuna.Study) -> dict[str, Any]:
    """What is exported, after a check of its schema."""
    content: dict[str, Any] = json.loads(json.dumps(best.best_result(study)))
    jsonschema.Draft202012Validator(SCHEMA).validate(content)
    return content


def test_members_have_all_that_training_them_needs(searched):
    searched.set_user_attr(record.ENSEMBLE, ENSEMBLE)
    content = exported(searched)
    members = content["ensemble"].pop("members")
    assert content["ensemble"] == {key: value for key, value in ENSEMBLE.items() if key != "members"}
    assert [(member["trial"], member["picks"], member["weight"]) for member in members] == [(2, 3, 0.75), (0, 1, 0.25)]
    for member in members:
        trial = searched.trials[member["trial"]]
        summary = record.cv(trial)
        assert summary is not None
        assert (member["config"], member["seed"]) == (record.config(trial), trial.user_attrs[record.SEED])
        assert (member["value"], member["epochs"]) == (trial.value, summary["best_epoch"])
    assert content["winner"] == "ensemble"


def test_the_confirmed_single_trial_is_exported(searched):
    first = exported(searched)["trial"]
    other = 2 if first == 0 else 0
    searched.set_user_attr(record.ENSEMBLE, ENSEMBLE)
    for winner, name in (("ensemble", "ensemble"), (str(other), "trial"), ("linear", "linear"), (None, None)):
        scores = {"ensemble": 0.5, str(first): 0.3, str(other): 0.4, "linear": 0.2}
        searched.set_user_attr(record.CONFIRMED, confirmed(winner, **scores))
        content = exported(searched)
        assert (content["trial"], content["winner"], content["reason"]) == (other, name, "why")
        assert content["value"] == content["cv"]["mean"] == searched.trials[other].value
        assert content["params"] == searched.trials[other].params
        assert content["config"] == record.config(searched.trials[other])
        assert content["confirmed"] == {key: v for key, v in confirmed(winner, **scores).items() if key != "study"}


def test_what_was_confirmed_of_fewer_trials_is_not_exported(searched):
    searched.set_user_attr(record.ENSEMBLE, ENSEMBLE)
    searched.set_user_attr(record.CONFIRMED, confirmed("1", **{"1": 0.4}) | {"finished": 2})
    content = exported(searched)
    assert (content["confirmed"], content["winner"]) == (None, "ensemble")


def test_a_member_that_dropped_out_is_not_exported(searched):
    searched.set_user_attr(record.ENSEMBLE, ENSEMBLE)
    searched.set_user_attr(record.CONFIRMED, confirmed("ensemble", ensemble=0.5) | {"members": [0]})
    assert [(member["trial"], member["weight"]) for member in exported(searched)["ensemble"]["members"]] == [(0, 1.0)]


def rebuilt(content: dict[str, Any], data: StudyTask, fixed_epochs: int | None) -> tuple[float, list[float], float]:
    """Value and folds that anyone can compute from `best.json`, the posts and the folds, with core alone."""
    config, split_config = content["config"], data.definition.split
    model, training, loss = (dict(config[part]) for part in ("model", "training", "loss"))
    candidate = CandidateConfig(
        MODELS[model.pop("name")](**model), TrainingConfig(**training), LOSSES[loss.pop("name")](**loss)
    )
    criteria = [criterion.name for criterion in data.corpus.criteria]
    cv = CrossValidation(
        data.features(candidate.model),
        split(data.corpus.groups, data.corpus.labels, split_config, criteria=criteria),
        candidate,
        stages=split_config.stage_sizes(),
        metric=content["metric"],
        criteria=criteria,
        seed=content["cv"]["seed"],
        fixed_epochs=fixed_epochs,
    )
    list(cv.epochs())
    summary = cv.summary()
    return summary.value, list(summary.folds), summary.value


def test_one_process_measures_the_baselines_and_others_do_not_wait(database, tmp_path):
    data = task(tmp_path)
    study = join_study(data.definition, data, database, trials=2)
    with try_baselines_lock(engine_of(study), study_id(study)) as ours:
        assert ours
        measure_baselines(study, data)
        assert record.BASELINES not in study.user_attrs
    measure_baselines(study, data)  # the lock is free
    assert study.user_attrs[record.BASELINES] == data.baselines()
    engine_of(study).dispose()
