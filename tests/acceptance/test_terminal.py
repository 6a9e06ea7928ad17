"""What a person sees on a real terminal: a study that is run, interrupted, resumed while it is watched, and deleted."""

from __future__ import annotations

import re
from itertools import pairwise
from pathlib import Path

import pytest
from terminal import Terminal

SMOKE = Path(__file__).parents[2] / "studies" / "smoke.toml"
TIME = r"(\d+ s|\d+ min \d\d s)"
ROW = re.compile(rf"^ +\d+  0\.\d{{4}}( on \d folds?, pruned)? +iris +{TIME}(  best so far)?$", re.MULTILINE)
CONFIRMED_ROW = re.compile(rf"^ +\d*  0\.\d{{4}} on fresh split [12] +(iris|baselines) +{TIME}$", re.MULTILINE)
POSITION = re.compile(rf"^trial \d+ +(stage [12], epoch \d|just claimed) +{TIME}  worker [01]$", re.MULTILINE)
TRIALS = 12

pytestmark = pytest.mark.slow(seconds=30)


def widest(terminal: Terminal) -> int:
    return max(len(line) for frame in [*terminal.frames, terminal.everything] for line in frame.splitlines())


def test_a_study_on_a_terminal(start, cache, tmp_path, database):
    environment = {"HPO_CACHE": str(cache), "HPO_STORAGE": database}
    arguments = ("run", SMOKE, "--workers", "2", "--trials", str(TRIALS))
    with Terminal(*arguments, folder=tmp_path, columns=80, **environment) as run:
        run.until(lambda screen: ROW.search(screen) and POSITION.search(screen))
        run.interrupt()
        assert run.end() == 130
    check_the_first_seconds(run)
    finished = check_the_end_of_an_interrupted(run)

    watch = start("status", SMOKE, "--watch", **environment)
    assert watch.stdout is not None
    first = watch.stdout.readline()  # it watches before the rest runs
    with Terminal(*arguments, folder=tmp_path, columns=120, **environment) as again:
        assert again.end() == 0
    changes, errors = watch.communicate(timeout=300)
    assert (watch.returncode, errors) == (0, ""), "it ends by itself"
    check_rows_and_result(again, TRIALS - finished)
    check_changes([first.rstrip(), *changes.splitlines()])

    with Terminal("delete", SMOKE, folder=tmp_path, columns=80, **environment) as delete:
        delete.until(lambda screen: "Type its name, or y" in screen)
        delete.type("smoke")
        assert delete.end() == 0
    assert f"deleted smoke: {TRIALS} trials and 1 child study" in delete.everything


def check_the_first_seconds(run: Terminal) -> None:
    assert run.frames[0].startswith(f"reading {SMOKE}"[:79])
    for step in ("loading libraries", "loading the data"):  # by then, workers may have started
        assert any(step in frame for frame in run.frames), step


def check_the_end_of_an_interrupted(run: Terminal) -> int:
    """How many trials were finished: the table says it, below the rows."""
    assert any(re.search(rf"^ ?\d+/{TRIALS} ━", frame, re.MULTILINE) for frame in run.frames)
    assert any(re.search(r"^trial \d+ +stage \d, epoch \d", frame, re.MULTILINE) for frame in run.frames)
    assert widest(run) <= 80
    seen = run.everything
    assert "Traceback" not in seen
    assert "Press Ctrl-C again" in " ".join(seen.split())
    table = seen[seen.index("\nsmoke: ", seen.index("Stopping: ")) :]
    found = re.search(rf"^smoke: (\d+) of {TRIALS} trials finished$", table, re.MULTILINE)
    assert found is not None
    assert re.search(r"^best average precision 0\.\d{4} \(trial \d+, iris\)$", table, re.MULTILINE)
    assert "Baselines (average precision): retrieval 0." in table
    assert not re.search(r"trials/| left\b|━", table), "nobody works on it, and the view is erased"
    return int(found.group(1))


def check_rows_and_result(run: Terminal, trials: int) -> None:
    assert widest(run) <= 120
    seen = run.everything
    assert len(ROW.findall(seen)) == trials, seen
    assert len(CONFIRMED_ROW.findall(seen)) == len(re.findall(r"on fresh split \d ", seen)) > 4, seen
    assert any("confirming: " in frame for frame in run.frames)
    assert "smoke: average precision" in seen


def check_changes(lines: list[str]) -> None:
    assert re.match(rf"\d+/{TRIALS} finished · .*released · best 0\.\d{{4}} \(trial \d+\)", lines[0])
    assert re.fullmatch(rf"{TRIALS}/{TRIALS} finished · .* · best .* · confirmed: .*", lines[-1])
    assert all(one != following for one, following in pairwise(lines))
