"""What people look at fits 80 columns and says what it must."""

from __future__ import annotations

import io
import re

import pytest
from rich.cells import cell_len
from rich.console import Console, RenderableType

from sparse_evidence.hpo.database.claims_sql import Counts
from sparse_evidence.hpo.results import live, tables

NAMES = [
    "depressed_mood", "anhedonia", "appetite_change", "sleep_issues", "psychomotor", "fatigue", "worthlessness",
    "cognitive_issues", "suicidal_thoughts", "special_case",
]  # fmt: skip


def drawn(what: RenderableType, width: int = 80) -> str:
    console = Console(file=io.StringIO(), width=width, highlight=False)
    console.print(what)
    assert isinstance(console.file, io.StringIO)
    text = console.file.getvalue()
    assert max(map(cell_len, text.splitlines())) <= width
    return text


def planned(folds: int) -> dict[str, object]:
    criteria = [
        {"name": name, "positives": 328, "prevalence": 0.221, "folds": [0.0236] * folds, "holdout": 0.216}
        for name in NAMES
    ]
    facts = {"study": "redsm5 (studies/redsm5_iris.toml)", "posts": "1484 in 700 groups", "": "more"}
    return {
        "facts": facts, "criteria": criteria, "holdout": True, "notes": ["3 rows were repeated"],
        "parameters": {"training.accumulation_steps": "one of 1, 2, 4", "loss": "one of bce, focal"},
    }  # fmt: skip


@pytest.mark.parametrize("folds", [2, 5, 10, 50])
def test_a_plan_of_ten_criteria_and_many_folds_is_readable(folds):
    text = drawn(tables.plan_table(planned(folds)))
    assert "…" not in text.replace("folds 0 …", "")
    for name in NAMES:
        row = next(line for line in text.splitlines() if line.startswith(name))
        ends = ("22", "22") if folds == 10 else ("22.1", "21.6")
        assert row.split() == [name, "328", ends[0], *["2.4"] * (2 if folds == 50 else folds), ends[1]]
    assert "training.accumulation_steps" in text
    assert "note: 3 rows were repeated" in text


def best(folds: int) -> dict[str, object]:
    values = [0.4971] * folds
    floors = {"linear": 0.4589, "linear_folds": values, "mean_prevalence": 0.2, "criterion_only_f1": 0.458}
    cv = {
        "mean": 0.4971, "std": 0.05, "folds": values, "best_epoch": 7, "epochs": 13, "threshold": 0.31,
        "pooled": {"f1": 0.51}, "per_criterion": {}, "floors": floors,
    }  # fmt: skip
    return {
        "study": "quickstart", "metric": "average_precision", "value": 0.4971, "trial": 17, "cv": cv,
        "params": {"loss": "focal", "training.learning_rate": 0.00312345},
        "trials": {"complete": 31, "pruned": 9, "infeasible": 0, "failed": 0, "requested": 40},
    }  # fmt: skip


@pytest.mark.parametrize("folds", [2, 5, 10])
def test_the_end_table_has_value_folds_floors_parameters_and_place(folds):
    text = drawn(tables.result_table(best(folds), "results/best.json"))
    for expected in (
        "0.4971 (trial 17)", "0.4589", "0.2000", "0.003123", "31 complete, 9 pruned, 0 failed of 40", "7 of 13",
        "results/best.json", "0.5100 at threshold 0.310; 0.4580 without reading",
    ):  # fmt: skip
        assert expected in text
    assert text.count("0.4971") == 2 * folds + 1


def test_an_end_table_without_floors(tmp_path):
    without = best(5)
    without["cv"]["floors"] = None
    assert "linear floor" not in drawn(tables.result_table(without, "best.json"))


def test_a_status_with_workers():
    worker = {
        "host": "a-machine-with-a-long-name.example.org", "pid": 123456, "slot": 7, "gpu": None, "trial": 1234,
        "attempt": 1, "stage": 1, "epoch": 39, "released": False, "heartbeat_age": 3.2, "held_seconds": 75.0,
    }  # fmt: skip
    state = {
        "study": "quickstart", "metric": "average_precision", "workers": [worker], "attempts": {"3": 2},
        "trials": {"requested": 40, "finished": 12, "complete": 8, "pruned": 4, "infeasible": 0, "failed": 0,
                   "running": 1},
        "best": {"value": 0.4971, "trial": 3, "params": {}}, "floors": {"linear": 0.4589, "mean_prevalence": 0.2},
        "pace": {"trials_per_hour": 120.0, "seconds_left": 840.0},
    }  # fmt: skip
    text = drawn(tables.status_table(state))
    for expected in (
        "12 of 40", "8 complete, 4 pruned", "0.4971 (trial 3)", "0.4589", "120.0 trials/h, 14 min 00 s left",
        "123456", "1 min 15 s", "3 s ago",
    ):  # fmt: skip
        assert expected in text
    state |= {"workers": [], "best": None, "floors": None, "pace": {"trials_per_hour": None, "seconds_left": None}}
    text = drawn(tables.status_table(state))
    assert "no worker at work" in text
    assert "no score yet" in text


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [(0.4, "0 s"), (59.4, "59 s"), (60, "1 min 00 s"), (3725, "1 h 02 min"), (200_000, "2 days 7 h")],
)
def test_durations(seconds, expected):
    assert tables.duration(seconds) == expected


def test_chance_is_named_for_average_precision_only():
    floors = {"linear": 0.6, "mean_prevalence": 0.2}
    assert tables.baselines_text("average_precision", floors) == "linear floor 0.6000, chance 0.2000"
    assert tables.baselines_text("auroc", floors) == "linear floor 0.6000"
    assert tables.baselines_text("auroc", None) == "floors not measured yet"


# ---- what moves ----


def test_the_pace_counts_from_the_first_trial_at_work():
    now = [0.0]
    pace = live.Pace(finished=10, clock=lambda: now[0])
    pace.update(Counts(complete=10))
    assert pace.seconds_per_trial is None
    now[0] = 100.0  # that long the workers took to start
    pace.update(Counts(complete=10, running=2))
    assert pace.seconds_left(30) is None
    now[0] = 110.0
    pace.update(Counts(complete=11, pruned=1, running=2))
    assert pace.seconds_per_trial == 5.0
    assert pace.seconds_left(30) == 150.0
    now[0] = 114.0  # nothing new: the time left still runs down
    pace.update(Counts(complete=11, pruned=1, running=2))
    assert (pace.seconds_per_trial, pace.seconds_left(30)) == (5.0, 146.0)


def test_the_live_view_is_five_lines_with_everything_in_them(database, tmp_path):
    from tiny import task

    from sparse_evidence.hpo.database.connection import engine_of
    from sparse_evidence.hpo.running.joining import join_study, measure_baselines

    data = task(tmp_path)
    study = join_study(data.definition, data, database, trials=4)
    measure_baselines(study, data)
    view = live.LiveView(Console(file=io.StringIO(), width=80), study, trials=40, metric="average_precision")
    held = [{"trial": n, "held_seconds": 3.0, "stage": 1, "epoch": 7 * (n % 2)} for n in range(30)]
    text = drawn(view.drawn(Counts(complete=7, pruned=5, running=2), held))
    assert re.search(r"12/40 +━+ *\n", text)
    assert "7 complete · 5 pruned · 2 running" in text
    assert "best average_precision not known yet · linear floor 0." in text
    assert "at work: trial 0 (3 s), trial 1 (3 s, stage 2, epoch 7)" in text
    assert len(text.splitlines()) == 4
    engine_of(study).dispose()


def test_embedding_progress_is_a_line_per_tenth_where_there_is_no_terminal():
    console = Console(file=io.StringIO(), width=80)
    progress = live.EmbeddingProgress(console)
    for done in range(1, 1001):
        progress("embedding with x", done, 1000)
    assert isinstance(console.file, io.StringIO)
    lines = console.file.getvalue().splitlines()
    assert len(lines) == 11
    assert lines[-1].startswith("embedding with x: 1000 of 1000 texts")
