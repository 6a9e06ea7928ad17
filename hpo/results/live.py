"""Live progress: of the embedding, and of a running study.

On a terminal the rows of finished trials scroll by, and a few lines below them are redrawn in place: no full-screen
mode, so that everything can be read afterwards and little is sent over a slow connection.
"""

from __future__ import annotations

import socket
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from rich.console import Console, Group, RenderableType
from rich.jupyter import JupyterMixin
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Column
from rich.text import Text

from ..database import record
from ..database.connection import engine_of
from .best import best_trial
from .console import show
from .finished import HEADING, finished_trials, model_name, outcome_text, row_text
from .pace import PaceMeter
from .wording import (
    baselines_text,
    best_text,
    confirming_text,
    count_text,
    duration,
    ensemble_text,
    metric_text,
    number,
    pace_text,
    position_text,
)

if TYPE_CHECKING:
    from IPython.display import DisplayHandle
    from optuna.trial import FrozenTrial

    from ..database.claims_sql import Counts
    from ..running.confirming import Progress as ConfirmProgress
    from ..running.launcher import Outcome, StartedStudy
    from ..running.position import Position

BAR_WIDTH = 28
MOST_RUNNING = 8
"""Running trials that are shown by name; the others are counted."""
OTHER_LINES = 7
"""Of the terminal's height, for what is not a running trial: a row that has just scrolled by, the bar, the counts."""
NOTEBOOK_ROWS = 8
REDRAW_SECONDS = 0.2
"""Shortest time between two drawings of the embedding's bar: it is called thousands of times."""
STOPPING = "Stopping: workers finish their epoch and release their trials. Press Ctrl-C again to stop immediately."


class EmbeddingProgress(AbstractContextManager["EmbeddingProgress"]):
    """On a terminal that the data is loaded, then a bar; in a notebook a line; elsewhere a line per tenth.

    Where no text has to be embedded, nothing stays on the terminal, and elsewhere nothing is shown.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._tenth = -1
        self._started = time.monotonic()
        self._drawn = 0.0
        self._progress: Progress | None = None
        self._live = Live(Text("loading the data"), console=console, auto_refresh=False, transient=True)
        self._notebook = _NotebookView() if console.is_jupyter else None

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            self._live.start(refresh=True)
        return self

    def __call__(self, what: str, done: int, total: int) -> None:
        """Show that `done` of `total` texts are embedded."""
        if self._console.is_terminal:
            self._draw(what, done, total)
        elif done * 10 // total > self._tenth:
            self._tenth = done * 10 // total
            line = f"{what}: {done} of {total} texts, {duration(time.monotonic() - self._started)}"
            if self._notebook is None:
                self._console.print(line, soft_wrap=True)
            else:
                self._notebook.update(Text(line))

    def _draw(self, what: str, done: int, total: int) -> None:
        if self._progress is None:
            column = Column(no_wrap=True, overflow="ellipsis")
            name = TextColumn("{task.description}", markup=False, table_column=column)
            columns = (name, BarColumn(BAR_WIDTH), MofNCompleteColumn(), TimeRemainingColumn())
            self._progress = Progress(*columns, console=self._console)
            self._progress.add_task(what, total=total)
        self._progress.update(self._progress.task_ids[0], description=what, completed=done, total=total)
        if done == total or time.monotonic() - self._drawn > REDRAW_SECONDS:
            self._drawn = time.monotonic()
            self._live.update(self._progress.get_renderable(), refresh=True)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self._live.stop()


class LiveView(AbstractContextManager["LiveView"]):
    """The `Observer` of `hpo run`.

    On a terminal a row for every trial that ends, above a view that is redrawn in place; in a notebook the last rows
    are part of the view; elsewhere a line per trial.
    """

    def __init__(self, console: Console, started: StartedStudy) -> None:
        from ..database.claims_sql import count_trials

        self._console = console
        self._study = started.study
        self._trials = started.trials
        self._metric = started.definition.search.metric
        self._grace_seconds = started.definition.service.grace_seconds
        self._reported = {trial.number for trial in finished_trials(self._study)}
        self._rows: deque[Text] = deque(maxlen=NOTEBOOK_ROWS)
        self._meter = PaceMeter(count_trials(self._study).finished)
        self._live = Live(console=console, auto_refresh=False, transient=True)
        self._notebook = _NotebookView() if console.is_jupyter else None
        self._positions: Mapping[int, Position] = {}
        self._confirming: ConfirmProgress | None = None
        self._confirmed: set[int] = set()
        self._tenth = -1
        self._has_heading = False

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self._live.stop()

    @property
    def _in_place(self) -> bool:
        """Whether there is a view that is redrawn."""
        return self._console.is_terminal or self._notebook is not None

    def line(self, text: str) -> None:
        """Print a line above the view; on a terminal it is wrapped between words."""
        self._console.print(Text(text), soft_wrap=not self._console.is_terminal)

    def stopping(self) -> None:
        """Print that the workers are stopping, and how to stop them immediately."""
        self.line(STOPPING)

    def baselines(self, scores: Mapping[str, Any] | None) -> None:
        """Print the baselines' scores, unless they are part of the view."""
        if not self._in_place:
            self.line(f"Baselines ({metric_text(self._metric)}): {baselines_text(self._metric, scores)}")

    def positions(self, positions: Mapping[int, Position]) -> None:
        """Remember where the workers of this machine are."""
        self._positions = positions

    def confirming(self, progress: ConfirmProgress) -> None:
        """Show how far confirming is: elsewhere than on a terminal, a line per tenth."""
        if self._confirming is None:
            self._meter = PaceMeter(progress.finished)
            self._confirmed = {trial.number for trial in finished_trials(progress.study)}
            if (ensemble := record.ensemble(self._study)) is not None:
                self.line(ensemble_text(ensemble["members"], ensemble["value"], ensemble.get("corrected")))
        self._confirming = progress
        tenth = progress.finished * 10 // max(progress.planned, 1)
        if not self._in_place and tenth > self._tenth:
            self._tenth = tenth
            self.line(
                " · ".join([confirming_text(progress.finished, progress.planned), *self._pace(progress.finished)])
            )

    def counts(self, counts: Counts) -> None:
        """Show the study as it is now."""
        from ..database.claims_sql import list_claims

        claims = list_claims(engine_of(self._study), self._confirming.study if self._confirming else self._study)
        finished = self._confirming.finished if self._confirming else counts.finished
        self._meter.update(finished=finished, running=sum(not row["released"] for row in claims))
        if not self._in_place:
            for trial in self._ended():
                self.line(self._trial_line(trial))
            return
        new = [*self._new_rows()]
        if self._notebook is not None:
            self._rows += new
            self._notebook.update(Group(HEADING, *self._rows, self.render(counts, claims)))
            return
        for row in new:
            self._console.print(row)
        self._live.start()
        self._live.update(self.render(counts, claims), refresh=True)

    def _ended(self) -> Iterator[FrozenTrial]:
        """The trials of the search that have ended since the last call."""
        for trial in finished_trials(self._study):
            if trial.number not in self._reported:
                self._reported.add(trial.number)
                yield trial

    def _new_rows(self) -> Iterator[Text]:
        """A row for every trial that has ended since the last call, below a heading."""
        for trial in self._ended():
            yield from self._heading()
            best = best_trial(self._study, self._reported)
            yield row_text(trial, is_best=best is not None and best.number == trial.number)
        if self._confirming is None:
            return
        for trial in finished_trials(self._confirming.study):
            if trial.number not in self._confirmed:
                self._confirmed.add(trial.number)
                yield from self._heading()
                yield row_text(trial)

    def _heading(self) -> Iterator[Text]:
        """The heading of the rows, once; a notebook's view has it already."""
        if self._console.is_terminal and not self._has_heading:
            self._has_heading = True
            yield Text(HEADING, style="bold", no_wrap=True, overflow="ellipsis")

    def _trial_line(self, trial: FrozenTrial) -> str:
        best = best_trial(self._study, self._reported)
        parts = [f"{len(self._reported)}/{self._trials} trial {trial.number} {outcome_text(trial)}"]
        parts += [f"best {number(best.value)}"] if best else []
        return " · ".join([*parts, *self._pace(len(self._reported))])

    def render(self, counts: Counts, claims: Sequence[Mapping[str, Any]]) -> RenderableType:
        """A bar, the counts, the best trial, the baselines and the running trials; no line is wrapped.

        Args:
            counts: trials by state.
            claims: the trials that are not finished, from `list_claims`.
        """
        from ..database.claims_sql import is_worked_on

        running = [row for row in claims if is_worked_on(row, self._grace_seconds)]
        done, total = min(counts.finished, self._trials), self._trials
        states = [*_states(counts), f"{len(running)} running"]
        if len(running) < len(claims):
            states.append(f"{len(claims) - len(running)} abandoned")
        if self._confirming:
            done, total = self._confirming.finished, self._confirming.planned
            states.append(confirming_text(done, total))
        best = best_trial(self._study)
        lines = [
            Text(" · ".join(states)),
            Text.assemble("best ", f"{metric_text(self._metric)} ", _best_text(best)),
            Text(f"baselines: {baselines_text(self._metric, record.baselines(self._study))}", style="dim"),
            *self._running(running),
        ]
        for line in lines:
            line.no_wrap, line.overflow = True, "ellipsis"
        return Group(_bar(done, total, self._activity(done, total, is_running=bool(running))), *lines)

    def _activity(self, done: int, total: int, *, is_running: bool) -> str:
        """The pace and the time left, if a worker runs a trial; otherwise what happens now."""
        if is_running:
            return " · ".join(self._pace(done))
        if done < total:
            return "workers are starting"
        return "choosing the winner" if self._confirming else "choosing the ensemble"

    def _running(self, claims: Sequence[Mapping[str, Any]]) -> list[Text]:
        """A line for each running trial, as many as fit on the terminal."""
        shown = max(1, min(MOST_RUNNING, self._console.height - OTHER_LINES))
        confirming = [] if self._confirming is None else self._confirming.study.get_trials(deepcopy=False)
        lines = [Text(self._position(row, confirming), style="dim") for row in claims[:shown]]
        if more := len(claims) - len(lines):
            lines.append(Text(f"and {count_text(more, 'other trial')}", style="dim"))
        return lines

    def _position(self, row: Mapping[str, Any], confirming: Sequence[FrozenTrial]) -> str:
        """`trial 38  stage 1, epoch 4  12 s  worker 0`, in columns; with the host of a worker of another machine.

        Args:
            row: from `list_claims`.
            confirming: the trials of the study that confirms the result, to which the row then belongs.
        """
        is_here = row["host"] == socket.gethostname()
        told = self._positions.get(row["pid"]) if is_here else None
        if told is not None and told.trial == row["trial"]:
            row = {**row, "stage": told.stage, "epoch": told.epoch}
        name, where = f"trial {row['trial']}", position_text(row["stage"], row["epoch"])
        if confirming and (entry := record.confirm(confirming[row["trial"]])) is not None:
            name = f"trial {entry['trial']}" if "trial" in entry else "baselines"
            where = f"fresh split {entry['split'] + 1}" + (f", epoch {row['epoch']}" if row["epoch"] else "")
        worker = f"worker {row['slot']}" + ("" if is_here else f" on {row['host']}")
        return f"{name:<10}  {where:<24}  {duration(row['held_seconds']):>10}  {worker}"

    def _pace(self, finished: int) -> list[str]:
        if (pace := self._meter.pace) is None:
            return []
        total = self._confirming.planned if self._confirming else self._trials
        left = pace.seconds_left(max(total - finished, 0))
        return [pace_text(pace.trials_per_hour), f"{duration(left)} left"]


def watch(started: StartedStudy, console: Console, workers: int | None) -> Outcome:
    """Run the study in a live view; if it is interrupted, print where it stands.

    Raises:
        KeyboardInterrupt: SIGINT or SIGTERM arrived before the end; the workers have released their trials.
    """
    outcome = follow(started, console, workers, LiveView)
    if not outcome.code and not outcome.workers:
        if started.confirm_only:
            console.print(f"nothing to do: {outcome.finished} trials are finished, and their result is confirmed")
        else:
            console.print(f"nothing to do: {outcome.trials} trials were requested and {outcome.finished} are finished")
    return outcome


def follow(started: StartedStudy, console: Console, workers: int | None, view: type[LiveView]) -> Outcome:
    """`watch` in a view of this kind, without a line if there is nothing to do."""
    from ..running import launcher
    from . import status, tables

    try:
        with view(console, started) as observer:
            return launcher.run_study(started, observer, workers=workers)
    except KeyboardInterrupt:
        grace_seconds = started.definition.service.grace_seconds
        show(console, tables.status_table(status.study_status(started.study, grace_seconds=grace_seconds)))
        raise


def failure_text(outcome: Outcome) -> str:
    """Why a run failed, how far it got, and what to do, in a sentence."""
    progress = f"{outcome.finished} of {outcome.trials} trials are finished"
    if outcome.confirming is not None:
        progress += f", {outcome.confirming.finished} of {outcome.confirming.planned} of confirming"
    return f"no worker is left, and {progress}: {outcome.reason}"


class _NotebookView(JupyterMixin):
    """A part of a notebook's output that is redrawn in place. rich's own `Live` needs ipywidgets for that."""

    def __init__(self) -> None:
        self._handle: DisplayHandle | None = None
        self._view: RenderableType = ""

    def __rich__(self) -> RenderableType:
        """What is drawn."""
        return self._view

    def update(self, view: RenderableType) -> None:
        """Draw something else."""
        from IPython.display import display

        self._view = view
        if self._handle is None:
            self._handle = display(self, display_id=True)
        else:
            self._handle.update(self)


class QuietView(LiveView):
    """A `LiveView` that prints what workers write, and nothing else."""

    def baselines(self, scores: Mapping[str, Any] | None) -> None:
        """Print nothing."""

    def confirming(self, progress: ConfirmProgress) -> None:
        """Print nothing."""

    def counts(self, counts: Counts) -> None:
        """Print nothing."""


def _bar(done: int, total: int, pace: str) -> RenderableType:
    progress = Progress(MofNCompleteColumn(), BarColumn(BAR_WIDTH), TextColumn("{task.description}"))
    progress.add_task(pace, completed=done, total=total)
    return progress.get_renderable()


def _states(counts: Counts) -> list[str]:
    """Counts of finished trials by state; infeasible and failed only if not zero."""
    always = [f"{counts.complete} complete", f"{counts.pruned} pruned"]
    failures = {"infeasible": counts.infeasible, "failed": counts.failed}
    return [*always, *(f"{count} {state}" for state, count in failures.items() if count)]


def _best_text(best: FrozenTrial | None) -> tuple[str, str]:
    """The best trial and its style: `0.5437 (trial 26, instance)`."""
    if best is None:
        return "not known yet", "dim"
    return best_text(best.value, best.number, model_name(best)), "bold green"
