"""`hpo status --watch`: the state of a study again and again, until it is finished and confirmed."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from .finished import HEADING, finished_trials, row_text
from .status import StudyStatus, study_status
from .tables import STATES, status_table
from .wording import confirming_text, number

if TYPE_CHECKING:
    from optuna import Study

    from ..study.definition import StudyDefinition

WATCH_SECONDS = 2.0
"""Between two looks."""
ROWS = 5
"""Finished trials that are shown on a terminal."""


def watch_study(
    study: Study, definition: StudyDefinition, console: Console, *, wait: Callable[[float], None] = time.sleep
) -> None:
    """Show the study until nothing is left to do: redrawn in place on a terminal, elsewhere a line per change.

    Args:
        study: opened for reading.
        definition: its grace period, and what is confirmed.
        console: where it is shown.
        wait: called between two looks with the seconds.
    """
    last = ""
    with Live(console=console, auto_refresh=False, vertical_overflow="crop") as live:
        while True:
            is_done = is_finished(study, definition)  # before the look, so that the last one shows the end
            status = study_status(study, grace_seconds=definition.service.grace_seconds)
            if console.is_terminal:
                live.update(Group(status_table(status), *_last_rows(study)), refresh=True)
            elif (line := status_line(status)) != last:
                last = line
                console.print(Text(line), soft_wrap=True)
            if is_done:
                return
            wait(WATCH_SECONDS)


def is_finished(study: Study, definition: StudyDefinition) -> bool:
    """Whether all requested trials are finished, and what is to be concluded from them is."""
    from ..running import conclusions

    return conclusions.is_due(study) and conclusions.is_concluded(study, definition.confirm)


def status_line(status: StudyStatus) -> str:
    """What a person would want to know of a change, in a line: without durations, which always change."""
    trials, best, confirming = status["trials"], status["best"], status["confirming"]
    counts: Mapping[str, Any] = trials
    parts = [f"{trials['finished']}/{trials['requested'] or 0} finished"]
    parts += [f"{counts[state]} {state}" for state in STATES if counts[state]]
    parts += [] if best is None else [f"best {number(best['value'])} (trial {best['trial']})"]
    parts += [] if confirming is None else [confirming_text(confirming["finished"], confirming["planned"])]
    parts += [] if status["confirmed"] is None else [f"confirmed: {status['confirmed']['reason']}"]
    return " · ".join(parts)


def _last_rows(study: Study) -> list[Text]:
    """The trials that finished last, below a heading."""
    rows = [row_text(trial) for trial in finished_trials(study)[-ROWS:]]
    heading = Text(f"\nlast finished\n{HEADING}", style="bold", no_wrap=True, overflow="ellipsis")
    return [heading, *rows] if rows else []
