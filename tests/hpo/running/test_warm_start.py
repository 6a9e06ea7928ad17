"""Warm start: which configurations of another study are tried, exactly once, whatever is killed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from loop_tools import KillOnTrial, running_workers, study_of, tiny

from sparse_evidence.core.config import BCEConfig, CandidateConfig, IrisConfig, TokenConfig, TrainingConfig
from sparse_evidence.core.errors import UserError
from sparse_evidence.hpo.database.connection import engine_of
from sparse_evidence.hpo.running.launcher import start_study
from sparse_evidence.hpo.running.warm_start import TRIED, WarmStart, read_warm_start
from sparse_evidence.hpo.study import space
from sparse_evidence.hpo.study.definition import load

RATES = (0.02, 0.01, 0.5, 0.02, 0.005)
"""Of the trial that is exported and of the members; the study searches 0.001 to 0.03."""


def config(rate: float, model: Any = None) -> dict[str, Any]:
    return space.to_dict(CandidateConfig(model or IrisConfig(), TrainingConfig(learning_rate=rate), BCEConfig()))


def result(folder: Path, *configs: dict[str, Any]) -> Path:
    """What an export of another study holds: the first configuration is the best single trial."""
    path = folder / "other.best.json"
    members = [{"trial": 10 + place, "config": member} for place, member in enumerate(configs)]
    path.write_text(json.dumps({"study": "other", **members[0], "ensemble": {"members": members}}))
    return path


def read(folder: Path, source: Path) -> WarmStart:
    return read_warm_start(source, load(tiny(folder), environ={}), "")


def test_the_best_trial_and_the_members_of_a_result(tmp_path):
    source = result(tmp_path, *map(config, RATES[:2]))
    warm = read(tmp_path, source)
    assert warm.parameters == ({"training.learning_rate": 0.02}, {"training.learning_rate": 0.01})
    assert warm.sentence == f"trials 10, 11 of {source} are tried first, once"


def test_what_does_not_fit_is_said(tmp_path):
    source = result(tmp_path, *map(config, RATES), config(0.01, TokenConfig()))
    warm = read(tmp_path, source)
    assert [parameters["training.learning_rate"] for parameters in warm.parameters] == [0.02, 0.01, 0.005]
    assert warm.sentence == (
        f"trials 10, 11, 14 of {source} are tried first, once; this study does not search training.learning_rate 0.5 "
        "(here 0.001 to 0.03 (log)), model token"
    )
    nothing = read(tmp_path, result(tmp_path, config(0.01, TokenConfig())))
    assert (nothing.parameters, nothing.sentence) == (
        (),
        f"nothing of {source} is tried first; this study does not search model token",
    )


def test_the_default_is_tried_anyway_and_few_others(tmp_path):
    definition = load(tiny(tmp_path), environ={})
    default = space.default_parameters(definition)["training.learning_rate"]
    assert isinstance(default, float)
    warm = read(tmp_path, result(tmp_path, config(default)))
    assert (warm.parameters, "the default configuration of this study" in warm.sentence) == ((), True)
    many = read(tmp_path, result(tmp_path, *(config(0.001 * rate) for rate in range(1, 20))))
    assert len(many.parameters) == TRIED


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"trial": 1}', '{"trial": "x", "config": {}}', "\xff"])
def test_a_file_that_is_no_result(tmp_path, content):
    path = tmp_path / "best.json"
    path.write_text(content, encoding="latin-1")
    with pytest.raises(UserError, match=r"best\.json is no result of a study; give the \.json file"):
        read(tmp_path, path)


def test_a_missing_file_and_a_configuration_of_another_version(tmp_path):
    with pytest.raises(UserError, match=r"nowhere\.json cannot be read \(No such file or directory\)"):
        read(tmp_path, tmp_path / "nowhere.json")
    odd = config(0.01)
    odd["training"]["rate"] = 1
    with pytest.raises(UserError, match="of trial 10, the configuration cannot be used: training rate: unknown key"):
        read(tmp_path, result(tmp_path, odd))


@pytest.mark.slow
def test_they_are_tried_once_whatever_is_killed_and_no_trial_more(tmp_path, database):
    path = tiny(tmp_path, trials=5)
    definition = load(path, environ={})
    warm = read_warm_start(result(tmp_path, *map(config, RATES[:2])), definition, database)

    def start() -> None:
        started = start_study(definition, database, try_first=warm.parameters)
        engine_of(started.study).dispose()

    start()
    with running_workers(tmp_path, database, 1, faults=[KillOnTrial(1)]) as (killed,):
        assert killed.end() == -9
    start()  # the command is repeated
    with running_workers(tmp_path, database, 2) as workers:
        start()
        assert [worker.end() for worker in workers] == [0, 0]
    start()
    study = study_of(database)
    rates = [trial.params["training.learning_rate"] for trial in study.get_trials()]
    default = space.default_parameters(definition)["training.learning_rate"]
    assert rates[:3] == [default, 0.02, 0.01]
    assert len(set(rates)) == len(rates) == 5
    assert all(trial.state.is_finished() for trial in study.get_trials())

    # from a study in the same database: its best trials, best first
    other = tmp_path / "other.toml"
    other.write_text(path.read_text().replace('name = "tiny"', 'name = "other"'))
    ranked = sorted(study.get_trials(), key=lambda trial: -(trial.value or 0))
    found = read_warm_start(path, load(other, environ={}), database)
    assert list(found.parameters) == [
        trial.params for trial in ranked if trial.params != {"training.learning_rate": default}
    ]
    with pytest.raises(UserError, match="There is no study 'other'"):
        read_warm_start(other, definition, database)
    engine_of(study).dispose()
