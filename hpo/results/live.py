"""What moves while people wait: the embedding's progress, and the state of a running study."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from ..database import record
from ..database.connection import engine_of
from .best import best_trial
from .tables import baselines_text, duration, number

if TYPE_CHECKING:
    from optuna import Study
    from optuna.trial import FrozenTrial

    from ..database.claims_sql import Counts

BAR = 28


class EmbeddingProgress:
    """A bar on a terminal, a line per tenth elsewhere; nothing at all when nothing has to be embedded."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._tenth = -1
        self._live: Live | None = None
        self._started = time.monotonic()

    def __call__(self, what: str, done: int, total: int) -> None:
        """Show how far it is."""
        spent = time.monotonic() - self._started
        if self._console.is_terminal:
            if self._live is None:
                self._live = Live(console=self._console, transient=True)
                self._live.start()
            left = f"{duration(spent / done * (total - done))} left" if done else ""
            self._live.update(_bar(done, total, f"{done} of {total}  {left}", title=what))
            if done >= total:
                self.close()
        elif done * 10 // total > self._tenth:
            self._tenth = done * 10 // total
            self._console.print(f"{what}: {done} of {total} texts, {duration(spent)}", soft_wrap=True)

    def close(self) -> None:
        """Take the bar away, also when the embedding was interrupted."""
        if self._live is not None:
            self._live.stop()
            self._live = None


class Pace:
    """How fast trials get finished, from the first one at work on: what workers need to start is not counted."""

    def __init__(self, finished: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._before = finished
        self._done = 0
        self._since: float | None = None
        self._last = 0.0

    def update(self, counts: Counts) -> None:
        """Take note of what is running and finished."""
        now = self._clock()
        done = counts.finished - self._before
        if self._since is None and (counts.running or done):
            self._since = now
        if done > self._done:
            self._done, self._last = done, now

    @property
    def seconds_per_trial(self) -> float | None:
        """From the start to the trial finished last; None while that is not known."""
        if self._since is None or self._done == 0 or self._last <= self._since:
            return None
        return (self._last - self._since) / self._done

    def seconds_left(self, trials: int) -> float | None:
        """Until `trials` more are finished."""
        if self.seconds_per_trial is None:
            return None
        return max(trials * self.seconds_per_trial - (self._clock() - self._last), 0.0)


class LiveView(AbstractContextManager["LiveView"]):
    """The state of a running study: redrawn in place on a terminal, a line per finished trial elsewhere."""

    def __init__(self, console: Console, study: Study, *, trials: int, metric: str) -> None:
        from ..database.claims_sql import count_trials

        self._console = console
        self._study = study
        self._trials = trials
        self._metric = metric
        self._told = {trial.number for trial in _finished(study)}
        self._pace = Pace(count_trials(study).finished)
        self._live = Live(console=console, auto_refresh=False, transient=True) if console.is_terminal else None

    def __enter__(self) -> Self:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def say(self, line: str) -> None:
        """Print a line of a worker above the view."""
        self._console.print(Text(line), soft_wrap=True)

    def update(self) -> Counts:
        """Read the study, show it, and return its trials by state."""
        from ..database.claims_sql import count_trials, list_claims

        counts = count_trials(self._study)
        self._pace.update(counts)
        if self._live is None:
            for trial in _finished(self._study):
                if trial.number not in self._told:
                    self._told.add(trial.number)
                    self._console.print(self._line(trial), soft_wrap=True)
        else:
            held = list_claims(engine_of(self._study), self._study)
            self._live.update(self.drawn(counts, held), refresh=True)
        return counts

    def _line(self, trial: FrozenTrial) -> str:
        best = best_trial(self._study, self._told)
        parts = [f"{len(self._told)}/{self._trials} trial {trial.number} {_outcome(trial)}"]
        parts += [f"best {number(best.value)}"] if best else []
        return " · ".join([*parts, *self._speed(len(self._told))])

    def drawn(self, counts: Counts, held: Sequence[Mapping[str, Any]]) -> RenderableType:
        """Four lines of at most the terminal's width."""
        speed = self._speed(counts.finished) or (["workers are starting"] if not counts.running else [])
        states = [f"{getattr(counts, name)} {name}" for name in ("complete", "pruned", "infeasible", "failed")]
        states = [words for words in states if not words.startswith("0 ") or words in {"0 complete", "0 pruned"}]
        best = best_trial(self._study)
        value = f"{number(best.value)} (trial {best.number})" if best else "not known yet"
        floors = baselines_text(self._metric, record.baselines(self._study))
        running = ", ".join(map(_at_work, held))
        lines = [
            Text(" · ".join([*states, f"{counts.running} running"])),
            Text.assemble("best ", f"{self._metric} ", (value, "bold green" if best else "dim"), f" · {floors}"),
            Text(f"at work: {running}" if running else "", style="dim"),
        ]
        for line in lines:
            line.no_wrap, line.overflow = True, "ellipsis"
        return Group(_bar(counts.finished, self._trials, " · ".join(speed)), *lines)

    def _speed(self, finished: int) -> list[str]:
        each, left = self._pace.seconds_per_trial, self._pace.seconds_left(max(self._trials - finished, 0))
        if each is None or left is None:
            return []
        pace = f"{60 / each:.1f} trials/min" if each < 60 else f"{3600 / each:.1f} trials/h"
        return [pace, f"{duration(left)} left"]


def _bar(done: int, total: int, words: str, title: str = "") -> RenderableType:
    done = min(done, total)
    grid = Table.grid(padding=(0, 1))
    grid.add_row(title or f"{done}/{total}", ProgressBar(total=total, completed=done, width=BAR), words)
    return grid


def _finished(study: Study) -> list[FrozenTrial]:
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
    return "infeasible" if "hpo:reason" in trial.user_attrs else "failed"


def _at_work(row: Mapping[str, Any]) -> str:
    # The epoch comes with the heartbeat, so a trial of seconds never shows one.
    place = f", stage {row['stage'] + 1}, epoch {row['epoch']}" if row["epoch"] else ""
    return f"trial {row['trial']} ({duration(row['held_seconds'])}{place})"
