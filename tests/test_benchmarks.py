"""The command of the benchmarks: what it accepts, and when it says that something got worse."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import optuna
import pytest

from benchmarks import __main__ as command
from benchmarks import service
from sparse_evidence.hpo.database.connection import engine_of, open_storage
from sparse_evidence.hpo.database.record import CONFIG, CURVES, CV
from sparse_evidence.hpo.study import space
from sparse_evidence.hpo.study.definition import load


def test_a_ratio_that_is_much_worse_is_named() -> None:
    before = {"epoch.vs_reference": 10.0, "epoch.vs_matmul": 2.0, "service.vs_optuna_100": 0.1}
    assert command.much_worse(before, {"epoch.vs_reference": 8.1, "epoch.vs_matmul": 2.4}) == []
    assert command.much_worse(before, {"epoch.vs_reference": 30.0, "epoch.vs_matmul": 0.5}) == [], "much better"
    assert command.much_worse(
        before, {"epoch.vs_reference": 7.5, "epoch.vs_matmul": 3.0, "scaling.workers_2": 1.0}
    ) == [
        "epoch.vs_reference was 10 and is 7.5, 1.33 times worse",
        "epoch.vs_matmul was 2 and is 3, 1.50 times worse",
    ]


@pytest.mark.parametrize("arguments", [["spped"], ["table", "epoch"]])
def test_a_part_that_does_not_exist_is_refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        command.main(arguments)
    assert ended.value.code == 2
    assert "Traceback" not in capsys.readouterr().err


def test_without_names_everything_that_takes_minutes_is_meant() -> None:
    assert set(command.PARTS) - set(command._arguments([]).parts) == {"studies", "worth"}


def test_a_part_is_compared_with_the_last_time_on_such_a_machine() -> None:
    machines = [{"cpu": "A", "cores": 2}, {"cpu": "B", "cores": 2}, {"cpu": "A", "cores": 4}]
    history = [
        json.dumps({"part": part, "machine": machine, "figures": {"x": float(number)}})
        for number, (part, machine) in enumerate(itertools.product(["epoch", "encode", "epoch"], machines))
    ]
    assert command.measured_before("epoch", history, {"cpu": "A", "cores": 2, "torch": "any"}) == {"x": 6.0}
    assert command.measured_before("encode", history, {"cpu": "B", "cores": 2}) == {"x": 4.0}
    assert command.measured_before("epoch", history, {"cpu": "B", "cores": 4}) == {}


def test_a_check_measures_again_and_fails_only_if_a_ratio_stays_worse(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    history = tmp_path / "history.jsonl"
    line = {"part": "epoch", "machine": command.machine(), "figures": {"epoch.vs_matmul": 2.0}}
    history.write_text(json.dumps(line) + "\n")
    monkeypatch.setattr(command, "HISTORY", history)
    for measured, code in (([2.2], 0), ([3.0, 2.1], 0), ([3.0, 3.1], 1)):
        figures = iter(measured)
        monkeypatch.setitem(command.PARTS, "epoch", lambda figures=figures: {"epoch.vs_matmul": next(figures)})
        with pytest.raises(SystemExit) as ended:
            command.main(["epoch", "--check"])
        assert ended.value.code == code
    assert "epoch.vs_matmul was 2 and is 3.1, 1.55 times worse" in capsys.readouterr().out
    assert history.read_text().count("\n") == 1, "a check writes nothing"


def test_the_table_measures_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    command.main(["table"])
    assert capsys.readouterr().out.startswith("| figure | measured | target |\n")


@pytest.mark.parametrize("attributes", [True, False])
def test_trials_that_a_study_is_filled_with_are_read_as_if_they_had_run(database: str, attributes: bool) -> None:
    study = optuna.create_study(storage=open_storage(database), direction="maximize")
    trials = service.random_trials(3, space.distributions(load(service.DEFINITION)))
    service.fill(engine_of(study), study._study_id, trials, attributes=attributes)
    filled = study.trials
    assert [trial.number for trial in filled] == [0, 1, 2]
    for trial, expected in zip(filled, trials, strict=True):
        assert (trial.state, trial.value) == (optuna.trial.TrialState.COMPLETE, expected.value)
        assert trial.params == pytest.approx(expected.params)
        assert set(trial.user_attrs) == ({CONFIG, CURVES, CV} if attributes else set())
        assert list(trial.intermediate_values) == ([2, service.FOLDS] if attributes else list(range(service.EPOCHS)))
    engine_of(study).dispose()
