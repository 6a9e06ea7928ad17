"""The leaderboard: every candidate with its interval and its gains, from stored predictions."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import optuna
import pytest
import sqlalchemy as sa
from rich.console import Console
from tiny import task

from sparse_evidence.core.errors import UserError
from sparse_evidence.hpo.database import record
from sparse_evidence.hpo.database.connection import engine_of
from sparse_evidence.hpo.database.record import BASELINE_NAMES
from sparse_evidence.hpo.results import tables
from sparse_evidence.hpo.results.leaderboard import Leaderboard, Row, flat, leaderboard
from sparse_evidence.hpo.running import conclusions, objective
from sparse_evidence.hpo.running.artifacts import Checkpoints, open_store
from sparse_evidence.hpo.running.claims import Claim, Claims
from sparse_evidence.hpo.running.joining import join_study
from sparse_evidence.hpo.running.task import StudyTask

Searched = tuple[optuna.Study, StudyTask]
TRIALS = 6


@pytest.fixture
def search(database: str, tmp_path: Path) -> Iterator[Callable[..., Searched]]:
    """Search a tiny study to its end, but for confirming."""
    opened: list[optuna.Study] = []

    def run(metric: str = "average_precision") -> Searched:
        data = task(tmp_path, metric=metric, pruner="none")
        study = join_study(data.definition, data, database, trials=TRIALS)
        opened.append(study)
        claims = Claims(engine_of(study), study, budget=TRIALS, heartbeat_seconds=5, grace_seconds=60, max_attempts=3)
        checkpoints = Checkpoints(open_store(str(tmp_path / "artifacts")), every_seconds=5)
        while isinstance(claim := claims.claim(), Claim):
            with claim:
                objective.run(claim, data, checkpoints, device="cpu", stop=lambda: False)
        return study, data

    yield run
    for study in opened:
        engine_of(study).dispose()


def by_name(board: Leaderboard) -> dict[str, Row]:
    rows = {row["name"]: row for row in board["rows"]}
    assert len(rows) == len(board["rows"])
    return rows


@pytest.mark.parametrize(("metric", "sign"), [("average_precision", 1), ("brier", -1)])
def test_every_candidate_has_its_value_interval_and_gains(search, metric, sign):
    study, data = search(metric)
    assert conclusions.conclude_search(study, data)
    board = leaderboard(study, data)
    rows = by_name(board)
    complete = record.best_first(study, study.get_trials())
    names = {"default" if trial.number == 0 else str(trial.number) for trial in complete}
    measured = {name for name in BASELINE_NAMES if name in data.baselines()}
    assert set(rows) == names | {"ensemble", "default"} | measured
    values = [sign * row["value"] for row in board["rows"] if row["value"] is not None]
    assert values == sorted(values, reverse=True)
    assert (board["complete"], board["shown"], board["fresh_splits"]) == (len(complete), len(complete), None)
    for trial in complete:
        row = rows["default" if trial.number == 0 else str(trial.number)]
        assert (row["value"], row["params"]) == (trial.value, trial.params)
        assert sum(row["folds"]) / 3 == pytest.approx(trial.value, abs=1e-3)
        assert row["seconds"] > 0
    for name, row in rows.items():
        if name == "chance":
            assert (row["interval"], row["over_default"], row["over_baseline"]) == (None, None, None)
            continue
        assert row["interval"][0] < row["value"] < row["interval"][1]
        for key, other in (("over_default", "default"), ("over_baseline", board["best_baseline"])):
            if name == other:
                assert row[key] is None
                continue
            gain = row[key]
            assert gain["value"] == pytest.approx(sign * (row["value"] - rows[other]["value"]))
            assert gain["interval"][0] <= gain["value"] <= gain["interval"][1]
    # the interval of the best trial is as wide as the one that the worker stored, which has another centre
    stored = record.ensemble(study)["best"]
    low, high = stored["corrected"]["interval"]
    mine = rows["default" if stored["trial"] == 0 else str(stored["trial"])]["interval"]
    assert mine[1] - mine[0] == pytest.approx(high - low)
    assert rows["ensemble"]["value"] == record.ensemble(study)["value"]


def test_only_the_best_are_shown_and_the_default_always(search):
    study, data = search()
    complete = record.best_first(study, study.get_trials())
    board = leaderboard(study, data, top=1)
    best = "default" if complete[0].number == 0 else str(complete[0].number)
    assert set(by_name(board)) == {best, "default", "retrieval", "linear", "zero_shot", "chance"}
    assert (board["shown"], board["complete"]) == (1, len(complete))


def test_what_is_confirmed(search):
    study, data = search()
    assert conclusions.conclude_search(study, data)
    trials = record.best_first(study, study.get_trials())
    first, second = [str(trial.number) for trial in trials if trial.number != 0][:2]
    score = {"mean": 0.5, "interval": [0.4, 0.6], "splits": [0.4, 0.6]}
    once = {"mean": 0.25, "interval": [0.2, 0.3], "splits": [0.25]}
    confirmed = {"finished": TRIALS, "splits": 2, "scores": {first: score, second: once, "linear": score}}
    study.set_user_attr(record.CONFIRMED, confirmed)
    board = leaderboard(study, data)
    rows = by_name(board)
    assert (board["fresh_splits"], rows[first]["confirmed"], rows["retrieval"]["confirmed"]) == (2, score, None)
    text = drawn(board)
    assert "0.500" in row_of(text, f"trial {first}")
    assert "(0.250)" in row_of(text, f"trial {second}")
    assert "on 2 fresh splits" in text
    assert "(confirmed): on some of them only" in text
    study.set_user_attr(record.CONFIRMED, confirmed | {"finished": TRIALS - 1})
    assert by_name(leaderboard(study, data))[first]["confirmed"] is None, "it is of fewer trials"


def test_a_trial_without_predictions_has_no_interval(search):
    study, data = search()
    trial = next(t for t in record.best_first(study, study.get_trials()) if t.number != 0)
    with engine_of(study).begin() as connection:
        connection.execute(
            sa.text(
                "DELETE FROM hpo_predictions WHERE trial_id IN (SELECT trial_id FROM trials WHERE number IN (0, :n))"
            ),
            {"n": trial.number},
        )
    rows = by_name(leaderboard(study, data))
    row = rows[str(trial.number)]
    assert (row["value"], row["interval"], row["over_baseline"], row["folds"]) == (trial.value, None, None, None)
    assert rows["linear"]["over_default"] is None
    assert f"trial {trial.number}" in drawn(leaderboard(study, data))


def test_without_a_complete_trial_nothing_is_ranked(database, tmp_path):
    data = task(tmp_path)
    study = join_study(data.definition, data, database, trials=1)
    with pytest.raises(UserError, match="has no complete trial yet; run `hpo run`"):
        leaderboard(study, data)
    engine_of(study).dispose()


def test_the_table_fits_80_columns_and_the_rows_a_csv_file(search):
    study, data = search()
    assert conclusions.conclude_search(study, data)
    board = leaderboard(study, data)
    json.dumps(board, allow_nan=False)
    text = drawn(board)
    assert max(map(len, text.splitlines())) <= 80
    assert "…" not in text
    assert row_of(text, "ensemble").split()[1].endswith("*")
    assert not row_of(text, "default").split()[1].endswith("*")
    assert "nothing is confirmed yet" in text
    rows = flat(board)
    assert len({tuple(row) for row in rows}) == 1, "every row has all keys"
    written = io.StringIO()
    writer = csv.DictWriter(written, rows[0])
    writer.writeheader()
    writer.writerows(rows)
    read = list(csv.DictReader(io.StringIO(written.getvalue())))
    first = read[0]
    assert [row["name"] for row in read] == [row["name"] for row in board["rows"]]
    assert float(first["value"]) == board["rows"][0]["value"]
    assert [float(first["value_low"]), float(first["value_high"])] == board["rows"][0]["interval"]
    assert (first["folds"], first["confirmed"], first["fresh_splits"]) == ("3", "", "0")
    assert {"fold_0", "fold_2", "over_default_low", "params.training.learning_rate"} <= set(first)


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0 s"), (99, "99 s"), (100, "2 min"), (5969, "99 min"), (6000, "2 h")]
)
def test_durations_are_short(seconds, text):
    assert tables._brief(seconds) == text


def drawn(board: Leaderboard) -> str:
    console = Console(file=io.StringIO(), width=80, highlight=False)
    console.print(tables.leaderboard_table(board))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def row_of(text: str, start: str) -> str:
    (line,) = (line for line in text.splitlines() if line.startswith(f"{start} "))
    return line
