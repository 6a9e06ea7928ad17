"""Progress while people wait: in place on a terminal, a line at a time elsewhere."""

from __future__ import annotations

import io
import re
from pathlib import Path

import pytest
from rich.cells import cell_len
from rich.console import Console
from tiny import task

from sparse_evidence.hpo.database import record
from sparse_evidence.hpo.database.claims_sql import Counts, count_trials
from sparse_evidence.hpo.database.connection import engine_of
from sparse_evidence.hpo.results import live
from sparse_evidence.hpo.running import objective
from sparse_evidence.hpo.running.artifacts import Checkpoints, open_store
from sparse_evidence.hpo.running.claims import Claim, Claims
from sparse_evidence.hpo.running.confirming import Progress
from sparse_evidence.hpo.running.joining import join_study, measure_baselines
from sparse_evidence.hpo.running.launcher import StartedStudy


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


def test_the_view_is_a_bar_and_four_lines(started):
    view = live.LiveView(pipe(), StartedStudy(started.definition, started.url, started.task, started.study, trials=40))
    claims = [
        {"trial": n, "held_seconds": 3.0, "stage": 1, "epoch": 7 * (n % 2), "released": n > 20} for n in range(30)
    ]
    console = pipe()
    console.print(view.render(Counts(complete=7, pruned=5, running=30), claims))
    text = written(console)
    assert re.search(r"12/40 ━+ *\n", text)
    assert "7 complete · 5 pruned · 21 running" in text
    assert "best average precision not known yet" in text
    assert re.search(r"baselines: retrieval 0\.\d+, linear 0\.\d+, zero-shot 0\.\d+, chance 0\.\d+", text)
    assert "running: trial 0 (3 s), trial 1 (3 s, stage 2, epoch 7)" in text
    assert len(text.splitlines()) == 5
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


def test_a_terminal_is_redrawn_in_place_and_cleared_at_the_end(started, tmp_path):
    console = terminal()
    with live.LiveView(console, started) as view:
        view.baselines({"linear": 0.5, "mean_prevalence": 0.2})
        run_a_trial(started, tmp_path)
        view.counts(count_trials(started.study))
        view.line("worker 0: a warning [not markup]")
        view.stopping()
    text = written(console)
    assert "Baselines (average precision): linear 0.5000, prevalence (mean) 0.2000" in text
    assert "1 complete · 0 pruned · 0 running" in text
    assert "worker 0: a warning [not markup]" in text
    assert live.STOPPING in " ".join(text.split())
    assert "trial 0 0." not in text
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


@pytest.mark.parametrize("console", [pipe(), terminal()])
def test_nothing_is_shown_where_nothing_is_embedded(console):
    with live.EmbeddingProgress(console):
        pass
    assert written(console) == ""
