"""`hpo nested` as a command: killed and repeated, from two machines at once; always the same studies and estimate."""

from __future__ import annotations

import json
import signal
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from loop_tools import StopAt, Worker, artifacts, command, outcomes, study_of, tiny, until

from sparse_evidence.core.errors import UserError
from sparse_evidence.hpo.database import connection, record
from sparse_evidence.hpo.database.claims_sql import Counts, count_trials, list_claims

pytestmark = pytest.mark.slow(seconds=60)
OUTER = 3
SETTINGS: dict[str, Any] = {"trials": 2, "epochs": 30}
NESTED = ("nested", "tiny.toml", "--outer", str(OUTER), "--workers", "1")


def child(number: int) -> str:
    return f"tiny/nested/{OUTER}/{number}"


def everything(url: str) -> list[Any]:
    """All that is stored for the child studies, and the estimate."""
    studies = [study_of(url, child(number)) for number in range(1, OUTER + 1)]
    assert [count_trials(study) for study in studies] == [Counts(complete=2)] * OUTER
    parent = study_of(url)
    found = [*map(outcomes, studies), *map(record.outer_fold, studies), record.nested(parent)]
    for study in (*studies, parent):
        connection.engine_of(study).dispose()
    return found


def hpo(folder: Path, url: str, *arguments: str, new: bool = False) -> tuple[int, str]:
    process = command(folder, url, *arguments, new=new, COLUMNS="200")
    output, _ = process.communicate(timeout=300)
    assert "Traceback" not in output
    return process.returncode, output


@pytest.fixture(scope="module")
def undisturbed(database_of_module: str, tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    folder = tmp_path_factory.mktemp("undisturbed")
    tiny(folder, **SETTINGS)
    code, output = hpo(folder, database_of_module, *NESTED, new=True)
    lines = [line for line in output.splitlines() if line.startswith("outer fold ")]
    assert (code, len(lines)) == (0, OUTER), output
    assert output.index(lines[-1]) < output.index("tiny: average precision on posts that no step has seen")
    assert artifacts(folder) == []
    found = everything(database_of_module)
    code, output = hpo(folder, database_of_module, *NESTED, "--json")
    assert (code, json.loads(output)) == (0, found[-1]), "repeating only prints"
    assert everything(database_of_module) == found
    code, output = hpo(folder, database_of_module, "status", "tiny.toml", "--json")
    assert (code, json.loads(output)["nested"]["outer"]) == (0, OUTER)
    return found


def is_at_work(url: str, number: int) -> int | None:
    """The process that works on a trial of a child study, None if there is none."""
    with suppress(UserError):
        study = study_of(url, child(number))
        claims = list_claims(connection.engine_of(study), study)
        connection.engine_of(study).dispose()
        return next((int(row["pid"]) for row in claims), None)
    return None


def test_the_command_is_killed_while_a_trial_runs(database: str, tmp_path: Path, undisturbed: list[Any]) -> None:
    tiny(tmp_path, **SETTINGS)
    process = command(tmp_path, database, *NESTED)
    until(lambda: is_at_work(database, 2), 120, "a trial of the second child study")
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=60)  # until its worker has ended, too
    assert record.nested(study_of(database)) is None
    code, output = hpo(tmp_path, database, *NESTED)
    assert code == 0, output
    assert everything(database) == undisturbed
    assert artifacts(tmp_path) == []


def test_the_command_is_killed_before_it_stores_what_an_outer_fold_scores(
    database: str, tmp_path: Path, undisturbed: list[Any]
) -> None:
    tiny(tmp_path, **SETTINGS)
    reached = tmp_path / "reached"
    faults = [StopAt("sparse_evidence.hpo.fitting.nested:score_fold", reached, 2, after=True)]
    victim = Worker(tmp_path, database, *NESTED, faults=faults)
    until(reached.exists, 120, "the stop")
    victim.kill()
    study = study_of(database, child(2))
    assert (count_trials(study), record.outer_fold(study)) == (Counts(complete=2), None)
    connection.engine_of(study).dispose()
    code, output = hpo(tmp_path, database, *NESTED)
    assert code == 0, output
    assert everything(database) == undisturbed


def test_three_machines_run_the_same_command_and_ctrl_c_ends_one(
    database: str, tmp_path: Path, undisturbed: list[Any]
) -> None:
    tiny(tmp_path, **SETTINGS)
    machines = [command(tmp_path, database, *NESTED) for _ in range(3)]
    until(lambda: is_at_work(database, 1), 120, "a trial of the first child study")
    machines[0].send_signal(signal.SIGINT)
    output, _ = machines[0].communicate(timeout=120)
    assert (machines[0].returncode, "run the same command to resume" in output) == (130, True), output
    for process in machines[1:]:
        output, _ = process.communicate(timeout=300)
        assert (process.returncode, "Traceback" in output) == (0, False), output
    assert everything(database) == undisturbed


def test_the_study_is_run_afterwards_as_if_nothing_had_been(database: str, tmp_path: Path) -> None:
    tiny(tmp_path, **SETTINGS | {"trials": 1, "epochs": 2})
    code, output = hpo(tmp_path, database, "nested", "tiny.toml", "--outer", "2", "--trials", "1", "--workers", "1")
    assert code == 0, output
    code, output = hpo(tmp_path, database, "run", "tiny.toml", "--workers", "1")
    assert (code, "1/1 trial 0" in output) == (0, True), output
    code, output = hpo(tmp_path, database, "nested", "tiny.toml", "--outer", "40")
    started, *errors = output.splitlines()
    assert started.startswith("starting tiny (")
    assert (code, len(errors), "cannot be divided into 40 outer folds" in output) == (2, 1, True), output
    assert hpo(tmp_path, database, "nested", "tiny.toml", "--outer", "1")[0] == 2
