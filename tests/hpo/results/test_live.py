"""Progress while people wait: in place on a terminal, a line at a time elsewhere."""

from __future__ import annotations

import io
import re
import socket
from datetime import datetime
from pathlib import Path

import pytest
from optuna.trial import TrialState, create_trial
from rich.cells import cell_len
from rich.console import Console
from tiny import task

from sparse_evidence.hpo.database import record
from sparse_evidence.hpo.database.claims_sql import Counts, count_trials
from sparse_evidence.hpo.database.connection import engine_of
from sparse_evidence.hpo.results import live
from sparse_evidence.hpo.results.finished import HEADING, row_text
from sparse_evidence.hpo.running import objective
from sparse_evidence.hpo.running.artifacts import Checkpoints, open_store
from sparse_evidence.hpo.running.claims import Claim, Claims
from sparse_evidence.hpo.running.confirming import Progress
from sparse_evidence.hpo.running.joining import join_study, measure_baselines
from sparse_evidence.hpo.running.launcher import StartedStudy
from sparse_evidence.hpo.running.position import Position


def pipe() -> Console:
    return Console(file=io.StringIO(), width=80, highlight=False)


def terminal() -> Console:
    return Console(file=io.StringIO(), width=80, highlight=False, force_terminal=True, color_system=None)


def written(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


@pytest.fixture
def started(database, tmp_path):
    data = task(tmp_path)
    study = join_study(data.definition, data, database, trials=4)
    measure_baselines(study, data)
    yield StartedStudy(data.definition, database, data, study, trials=4)
    engine_of(study).dispose()


def run_a_trial(started: StartedStudy, folder: Path) -> None:
    claims = Claims(
        engine_of(started.study), started.study, budget=4, heartbeat_seconds=5, grace_seconds=60, max_attempts=3
    )
    claim = claims.claim()
    assert isinstance(claim, Claim)
    with claim:
        checkpoints = Checkpoints(open_store(str(folder)), every_seconds=5)
        objective.run(claim, started.task, checkpoints, device="cpu", stop=lambda: False)


def claim(number: int, **changed: object) -> dict[str, object]:
    """A row of `list_claims`."""
    row = {"trial": number, "host": socket.gethostname(), "pid": 1000 + number, "slot": number, "held_seconds": 3.0,
           "heartbeat_age": 2.0, "stage": 1, "epoch": 7 * (number % 2), "released": number > 20}  # fmt: skip
    return row | changed


def test_the_view_is_a_bar_the_counts_and_some_running_trials(started):
    view = live.LiveView(pipe(), StartedStudy(started.definition, started.url, started.task, started.study, trials=40))
    view.positions({1002: Position(2, 0, 3), 1003: Position(99, 0, 3)})
    claims = [claim(n) for n in range(30)]
    claims[4] |= {"host": "elsewhere"}
    claims[20] |= {"heartbeat_age": 1000.0}
    console = pipe()
    console.print(view.render(Counts(complete=7, pruned=5, running=30), claims))
    text = written(console)
    assert re.search(r"12/40 ━+ *\n", text)
    assert "7 complete · 5 pruned · 20 running · 10 abandoned" in text
    assert "best average precision not known yet" in text
    assert re.search(r"baselines: retrieval 0\.\d+, linear 0\.\d+, zero-shot 0\.\d+, chance 0\.\d+", text)
    lines = [" ".join(line.split()) for line in text.splitlines()]
    assert lines[4:9] == [
        "trial 0 just claimed 3 s worker 0",
        "trial 1 stage 2, epoch 7 3 s worker 1",
        "trial 2 stage 1, epoch 3 3 s worker 2",  # told by the worker itself
        "trial 3 stage 2, epoch 7 3 s worker 3",  # what it told is of another trial
        "trial 4 just claimed 3 s worker 4 on elsewhere",
    ]
    assert lines[-1] == "and 12 other trials"
    assert len(lines) == 4 + live.MOST_RUNNING + 1
    assert max(map(cell_len, text.splitlines())) <= 80


def test_the_view_says_that_workers_are_starting(started):
    console = pipe()
    console.print(live.LiveView(console, started).render(Counts(), []))
    assert "0/4" in written(console)
    assert "workers are starting" in written(console)


def test_a_pipe_has_a_line_for_each_finished_trial(started, tmp_path):
    console = pipe()
    with live.LiveView(console, started) as view:
        view.counts(count_trials(started.study))
        assert written(console) == ""
        run_a_trial(started, tmp_path)
        view.counts(count_trials(started.study))
        view.counts(count_trials(started.study))
    assert re.fullmatch(r"1/4 trial 0 0\.\d{4} · best 0\.\d{4}( · .*)?\n", written(console))


def test_no_time_is_left_where_nobody_works(started, tmp_path):
    console = pipe()
    view = live.LiveView(console, started)
    view.counts(count_trials(started.study))
    run_a_trial(started, tmp_path)
    view.counts(count_trials(started.study))
    for claims in ([], [claim(1, released=True)], [claim(1, heartbeat_age=1000.0)]):
        console = pipe()
        console.print(view.render(count_trials(started.study), claims))
        assert "workers are starting" in written(console)
        assert " left" not in written(console)


@pytest.mark.parametrize("rows", [8, 24])
def test_the_view_is_lower_than_the_terminal(started, rows):
    console = Console(file=io.StringIO(), width=80, height=rows, highlight=False)
    console.print(live.LiveView(console, started).render(Counts(running=30), [claim(n) for n in range(20)]))
    assert len(written(console).splitlines()) < rows


def test_a_row_fits_80_columns_and_says_everything():
    start, end = datetime(2026, 1, 1), datetime(2026, 1, 3, 5)
    pruned = create_trial(
        state=TrialState.PRUNED, value=0.5131, intermediate_values={2: 0.6, 12: 0.5131},
        user_attrs={record.CONFIG: {"model": {"name": "retrieval"}}, record.ATTEMPTS: 12},
    )  # fmt: skip
    pruned.number, pruned.datetime_start, pruned.datetime_complete = 12345, start, end
    row = row_text(pruned, is_best=True).plain
    assert " ".join(row.split()) == ("12345 0.5131 on 12 folds, pruned retrieval 2 days 5 h best so far, 12 attempts")
    infeasible = create_trial(state=TrialState.FAIL, user_attrs={record.REASON: "diverged"})
    infeasible.datetime_start = None
    assert row_text(infeasible).plain.split()[1:] == ["infeasible", "–", "–"]
    confirmed = create_trial(
        state=TrialState.COMPLETE, value=0.5,
        user_attrs={record.CONFIRM: {"trial": 26, "split": 1}, record.CONFIG: {"model": {"name": "iris"}}},
    )  # fmt: skip
    assert row_text(confirmed).plain.split()[:7] == ["26", "0.5000", "on", "fresh", "split", "2", "iris"]
    baselines = create_trial(state=TrialState.COMPLETE, value=0.5, user_attrs={record.CONFIRM: {"split": 0}})
    assert row_text(baselines).plain.split()[:6] == ["0.5000", "on", "fresh", "split", "1", "baselines"]


def test_a_terminal_has_a_row_for_each_trial_above_a_view_that_is_cleared_at_the_end(started, tmp_path):
    console = terminal()
    with live.LiveView(console, started) as view:
        view.baselines({"linear": 0.5, "mean_prevalence": 0.2})
        assert written(console) == "", "the view shows them"
        run_a_trial(started, tmp_path)
        view.counts(count_trials(started.study))
        view.counts(count_trials(started.study))
        view.line("worker 0: a warning [not markup]")
        view.stopping()
    text = written(console)
    assert len(re.findall(r"^ +0  0\.\d{4} +iris +\d+ s  best so far\r?$", text, re.MULTILINE)) == 1
    assert text.count(HEADING) == 1
    assert "1 complete · 0 pruned · 0 running" in text
    assert "worker 0: a warning [not markup]" in text
    assert live.STOPPING in " ".join(text.split())
    assert text.endswith("\x1b[2K")  # the view's last line is erased


def test_the_ensemble_is_shown_once_when_confirming_begins(started):
    corrected = {"value": 0.5021, "interval": [0.4611, 0.5431]}
    started.study.set_user_attr(record.ENSEMBLE, {"members": [3, 3, 4], "value": 0.5312, "corrected": corrected})
    console = pipe()
    with live.LiveView(console, started) as view:
        for finished in (0, 1):
            view.confirming(Progress(started.study, finished, 40))
    assert written(console).splitlines() == [
        "ensemble of 2 trials: 0.531 on the folds of the search, corrected for selection 0.502 (95 % interval 0.461 to "
        "0.543)",
        "confirming: 0 of 40 trained",
    ]


def test_embedding_progress_is_a_line_per_tenth_in_a_pipe():
    console = pipe()
    with live.EmbeddingProgress(console) as progress:
        for done in range(1, 1001):
            progress("embedding with x", done, 1000)
    lines = written(console).splitlines()
    assert len(lines) == 11
    assert lines[-1].startswith("embedding with x: 1000 of 1000 texts")


def test_embedding_progress_is_a_bar_on_a_terminal():
    console = terminal()
    with live.EmbeddingProgress(console) as progress:
        for done in range(1, 1001):
            progress("embedding with x", done, 1000)
    assert re.search(r"embedding with x ━+ +1000/1000", written(console))
    assert "texts" not in written(console)


def test_nothing_stays_where_nothing_is_embedded():
    for console in (pipe(), terminal()):
        with live.EmbeddingProgress(console):
            assert ("loading the data" in written(console)) == console.is_terminal
        assert written(console).endswith("\x1b[2K" if console.is_terminal else "")
