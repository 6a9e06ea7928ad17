"""Live progress: of the embedding, and of a running study."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from types import TracebackType
from typing import TYPE_CHECKING, Any

from rich.console import Console, Group, RenderableType
from rich.jupyter import JupyterMixin
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text

from ..database import record
from ..database.connection import engine_of
from .best import best_trial
from .console import show
from .pace import PaceMeter
from .wording import (
    baselines_text,
    confirming_text,
    duration,
    ensemble_text,
    metric_text,
    number,
    pace_text,
)

if TYPE_CHECKING:
    from IPython.display import DisplayHandle
    from optuna import Study
    from optuna.trial import FrozenTrial

    from ..database.claims_sql import Counts
    from ..running.confirming import Progress as ConfirmProgress
    from ..running.launcher import Outcome, StartedStudy

BAR_WIDTH = 28
STOPPING = "Stopping: workers finish their epoch and release their trials. Press Ctrl-C again to stop immediately."


class EmbeddingProgress(AbstractContextManager["EmbeddingProgress"]):
    """A bar on a terminal, a line in a notebook, elsewhere a line per tenth; nothing if no text has to be embedded."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._tenth = -1
        self._started = time.monotonic()
        self._progress: Progress | None = None
        self._notebook = _NotebookView() if console.is_jupyter else None

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
            columns = (
                TextColumn("{task.description}", markup=False),
                BarColumn(BAR_WIDTH),
                MofNCompleteColumn(),
                TimeRemainingColumn(),
            )
            self._progress = Progress(*columns, console=self._console, transient=True)
            self._progress.add_task(what, total=total)
            self._progress.start()
        self._progress.update(self._progress.task_ids[0], description=what, completed=done, total=total)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        if self._progress is not None:
            self._progress.stop()


class LiveView(AbstractContextManager["LiveView"]):
    """The `Observer` of `hpo run`: redrawn in place on a terminal and in a notebook, elsewhere a line per trial."""

    def __init__(self, console: Console, started: StartedStudy) -> None:
        from ..database.claims_sql import count_trials

        self._console = console
        self._study = started.study
        self._trials = started.trials
        self._metric = started.definition.search.metric
        self._reported = {trial.number for trial in _finished(self._study)}
        self._meter = PaceMeter(count_trials(self._study).finished)
        self._live = Live(console=console, auto_refresh=False, transient=True)
        self._notebook = _NotebookView() if console.is_jupyter else None
        self._confirming: ConfirmProgress | None = None
        self._tenth = -1

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self._live.stop()

    def line(self, text: str) -> None:
        """Print a line above the view."""
        self._console.print(Text(text), soft_wrap=True)

    def stopping(self) -> None:
        """Print that the workers are stopping, and how to stop them immediately."""
        self._console.print(Text(STOPPING), soft_wrap=not self._console.is_terminal)

    def baselines(self, scores: Mapping[str, Any] | None) -> None:
        """Print the baselines' scores."""
        self.line(f"Baselines ({metric_text(self._metric)}): {baselines_text(self._metric, scores)}")

    def confirming(self, progress: ConfirmProgress) -> None:
        """Show how far confirming is: elsewhere than on a terminal, a line per tenth."""
        if self._confirming is None:
            self._meter = PaceMeter(progress.finished)
            if (ensemble := record.ensemble(self._study)) is not None:
                self.line(ensemble_text(ensemble["members"], ensemble["value"], ensemble.get("corrected")))
        self._confirming = progress
        tenth = progress.finished * 10 // max(progress.planned, 1)
        if not self._console.is_terminal and self._notebook is None and tenth > self._tenth:
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
        if self._console.is_terminal:
            self._live.start()
            self._live.update(self.render(counts, claims), refresh=True)
            return
        if self._notebook is not None:
            self._notebook.update(self.render(counts, claims))
            return
        for trial in _finished(self._study):
            if trial.number not in self._reported:
                self._reported.add(trial.number)
                self.line(self._trial_line(trial))

    def _trial_line(self, trial: FrozenTrial) -> str:
        best = best_trial(self._study, self._reported)
        parts = [f"{len(self._reported)}/{self._trials} trial {trial.number} {_outcome(trial)}"]
        parts += [f"best {number(best.value)}"] if best else []
        return " · ".join([*parts, *self._pace(len(self._reported))])

    def render(self, counts: Counts, claims: Sequence[Mapping[str, Any]]) -> RenderableType:
        """A bar and three lines of at most the terminal's width.

        Args:
            counts: trials by state.
            claims: the trials that are not finished, from `list_claims`.
        """
        running = [row for row in claims if not row["released"]]
        done, total = min(counts.finished, self._trials), self._trials
        states = [*_states(counts), f"{len(running)} running"]
        if self._confirming:
            done, total = self._confirming.finished, self._confirming.planned
            states.append(confirming_text(done, total))
        pace = self._pace(done) or ([] if running else ["workers are starting"])
        best = best_trial(self._study)
        value = f"{number(best.value)} (trial {best.number})" if best else "not known yet"
        baselines = baselines_text(self._metric, record.baselines(self._study))
        positions = ", ".join(map(_claim_text, running))
        lines = [
            Text(" · ".join(states)),
            Text.assemble("best ", f"{metric_text(self._metric)} ", (value, "bold green" if best else "dim")),
            Text(f"baselines: {baselines}", style="dim"),
            Text(f"running: {positions}" if positions else "", style="dim"),
        ]
        for line in lines:
            line.no_wrap, line.overflow = True, "ellipsis"
        return Group(_bar(done, total, " · ".join(pace)), *lines)

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
        show(console, tables.status_table(status.study_status(started.study)))
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


def _finished(study: Study) -> list[FrozenTrial]:
    """The finished trials in the order in which they ended."""
    trials = [trial for trial in study.get_trials(deepcopy=False) if trial.state.is_finished()]
    return sorted(trials, key=lambda trial: (trial.datetime_complete, trial.number))


def _outcome(trial: FrozenTrial) -> str:
    from optuna.trial import TrialState

    if trial.state == TrialState.COMPLETE:
        return number(trial.value)
    if trial.state == TrialState.PRUNED:
        step = trial.last_step
        folds = "1 fold" if step == 1 else f"{step} folds"
        return f"{number(trial.intermediate_values[step])} on {folds}, pruned" if step else "pruned"
    return "failed" if record.reason(trial) is None else "infeasible"


def _claim_text(row: Mapping[str, Any]) -> str:
    # The epoch arrives with the heartbeat, so a trial that takes seconds never shows one.
    position = f", stage {row['stage'] + 1}, epoch {row['epoch']}" if row["epoch"] else ""
    return f"trial {row['trial']} ({duration(row['held_seconds'])}{position})"
