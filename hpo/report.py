"""What people look at: the plan, the live view, the tables."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from hpo import export
from hpo.storage import engine_of

if TYPE_CHECKING:
    from optuna import Study
    from optuna.trial import FrozenTrial

    from hpo.claims import Counts

FLOOR_NAMES = {"linear": "linear floor", "mean_prevalence": "chance"}


def number(value: float | None) -> str:
    """Four digits, or a dash for what is not defined."""
    return "–" if value is None else f"{value:.4f}"


def duration(seconds: float) -> str:
    """`45 s`, `3 min 20 s`, `2 h 05 min`, `3 days 4 h`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    if whole < 48 * 3600:
        return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
    return f"{whole // 86400} days {whole % 86400 // 3600} h"


def floors_in_words(metric: str, floors: Mapping[str, Any] | None) -> str:
    """`linear floor 0.4589, chance 0.2005`: what the study's metric is without a model that reads."""
    if not floors:
        return "floors not measured yet"
    names = FLOOR_NAMES if metric == "average_precision" else {"linear": "linear floor"}
    return ", ".join(f"{words} {number(floors[name])}" for name, words in names.items() if name in floors)


class EmbeddingProgress:
    """A bar on a terminal, a line per tenth elsewhere; nothing at all when nothing has to be embedded."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._tenth = -1
        self._live: Live | None = None
        self._started = time.monotonic()

    def __call__(self, what: str, done: int, total: int) -> None:
        """Show how far it is."""
        if self._console.is_terminal:
            if self._live is None:
                self._live = Live(console=self._console, transient=True)
                self._live.start()
            self._live.update(_bar(what, done, total))
            if done >= total:
                self._live.stop()
                self._live = None
        elif done * 10 // total > self._tenth:
            self._tenth = done * 10 // total
            self._console.print(f"{what}: {done} of {total} texts, {duration(time.monotonic() - self._started)}")


def _bar(what: str, done: int, total: int) -> RenderableType:
    grid = Table.grid(padding=(0, 1))
    grid.add_row(what, ProgressBar(total=total, completed=done, width=40), f"{done} of {total}")
    return grid


class LiveView(AbstractContextManager["LiveView"]):
    """The state of a running study: redrawn in place on a terminal, a line per finished trial elsewhere."""

    def __init__(self, console: Console, study: Study, *, trials: int, metric: str) -> None:
        from hpo.claims import count

        self._console = console
        self._study = study
        self._trials = trials
        self._metric = metric
        self._started = time.monotonic()
        self._finished_before = count(study).finished
        self._told = {trial.number for trial in _finished(study)}
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
        self._console.print(Text(line))

    def update(self) -> None:
        """Read the study and show it."""
        from hpo.claims import count, workers

        counts = count(self._study)
        if self._live is None:
            self._tell_finished(counts)
        else:
            held = workers(engine_of(self._study), self._study)
            self._live.update(self._drawn(counts, held), refresh=True)

    def _tell_finished(self, counts: Counts) -> None:
        for trial in _finished(self._study):
            if trial.number not in self._told:
                self._told.add(trial.number)
                best = export.best_trial(self._study)
                told = f"best {number(best.value)} (trial {best.number})" if best else "no complete trial yet"
                self._console.print(
                    f"trial {trial.number} {_state(trial)} · {told} · {self._progress(counts)} · {self._pace(counts)}",
                    highlight=False,
                    soft_wrap=True,
                )

    def _drawn(self, counts: Counts, held: Sequence[Mapping[str, Any]]) -> RenderableType:
        best = export.best_trial(self._study)
        head = Table.grid(padding=(0, 1))
        head.add_row(
            ProgressBar(total=self._trials, completed=min(counts.finished, self._trials), width=30),
            self._progress(counts),
            self._pace(counts),
        )
        value = f"{number(best.value)} (trial {best.number})" if best else "none yet"
        floors = floors_in_words(self._metric, self._study.user_attrs.get(export.FLOORS))
        lines: list[RenderableType] = [head, Text(f"best {self._metric} {value} · {floors}", style="bold")]
        running = ", ".join(f"{row['trial']} (stage {row['stage'] + 1}, epoch {row['epoch']})" for row in held)
        lines.append(Text(f"running trials: {running or 'none'}", style="dim"))
        return Group(*lines)

    def _progress(self, counts: Counts) -> str:
        parts = [f"{counts.finished}/{self._trials} done"]
        named = (("pruned", counts.pruned), ("infeasible", counts.infeasible), ("running", counts.running))
        parts += [f"{value} {name}" for name, value in named if value]
        return ", ".join(parts)

    def _pace(self, counts: Counts) -> str:
        done = counts.finished - self._finished_before
        if done <= 0:
            return "pace not known yet"
        seconds = (time.monotonic() - self._started) / done
        pace = f"{60 / seconds:.1f} trials/min" if seconds < 60 else f"{3600 / seconds:.1f} trials/h"
        left = max(self._trials - counts.finished, 0)
        return f"{pace}, {duration(left * seconds)} left"


def _finished(study: Study) -> list[FrozenTrial]:
    trials = [trial for trial in study.get_trials(deepcopy=False) if trial.state.is_finished()]
    return sorted(trials, key=lambda trial: (trial.datetime_complete, trial.number))


def _state(trial: FrozenTrial) -> str:
    from optuna.trial import TrialState

    if trial.state == TrialState.COMPLETE:
        return f"complete {number(trial.value)}"
    if trial.state == TrialState.PRUNED:
        step = trial.last_step
        return f"pruned after {step} folds at {number(trial.intermediate_values[step])}" if step else "pruned"
    return "failed" if "hpo:reason" not in trial.user_attrs else f"infeasible ({trial.user_attrs['hpo:reason']})"


def result(best: Mapping[str, Any], where: str | None) -> RenderableType:
    """The end table: value, folds, floors, parameters, and where the file is."""
    cv, trials = best["cv"], best["trials"]
    table = Table(title=f"{best['study']}: best {best['metric']}", show_header=False, title_justify="left")
    table.add_column(style="bold")
    table.add_column()
    table.add_row("value", f"{number(best['value'])}  (trial {best['trial']}, mean over {len(cv['folds'])} folds)")
    table.add_row("folds", "  ".join(number(value) for value in cv["folds"]) + f"  (sd {number(cv['std'])})")
    floors = cv["floors"] or {}
    if "linear" in floors:
        folds = "  ".join(number(value) for value in floors["linear_folds"])
        table.add_row("linear floor", f"{number(floors['linear'])}  (the same folds: {folds})")
    if best["metric"] == "average_precision" and "mean_prevalence" in floors:
        table.add_row("chance", f"{number(floors['mean_prevalence'])}  (mean prevalence)")
    pooled = cv["pooled"]
    table.add_row("pooled F1", f"{number(pooled['f1'])} at threshold {cv['threshold']:.3f}"
                  f"  (criterion-only floor {number(floors.get('criterion_only_f1'))})")  # fmt: skip
    table.add_row("best epoch", f"{cv['best_epoch']} of {cv['epochs']}")
    for name, value in sorted(best["params"].items()):
        table.add_row(name, f"{value:.4g}" if isinstance(value, float) else str(value))
    table.add_row("trials", f"{trials['complete']} complete, {trials['pruned']} pruned, "
                  f"{trials['infeasible'] + trials['failed']} failed of {trials['requested']} asked for")  # fmt: skip
    table.add_row("confirmed", "no: chosen and scored on the same folds, so expect a little less on new posts")
    if where is not None:
        table.add_row("written to", where)
    return table


def status(state: Mapping[str, Any]) -> RenderableType:
    """What `hpo status` prints."""
    trials = state["trials"]
    counts = ", ".join(f"{trials[name]} {name}" for name in ("complete", "pruned", "infeasible", "failed", "running"))
    lines: list[RenderableType] = [Text(f"{state['study']}: {counts}; {trials['requested']} asked for", style="bold")]
    best = state["best"]
    lines.append(Text(f"best {number(best['value'])} (trial {best['trial']})" if best else "no complete trial yet"))
    if state["floors"]:
        lines.append(Text(f"linear floor {number(state['floors']['linear'])}"))
    if state["workers"]:
        table = Table("host", "pid", "slot", "GPU", "trial", "attempt", "stage", "epoch", "last heartbeat")
        for row in state["workers"]:
            table.add_row(
                row["host"], str(row["pid"]), str(row["slot"]), row["gpu"] or "–", str(row["trial"]),
                str(row["attempt"]), str(row["stage"] + 1), str(row["epoch"]), f"{row['heartbeat_age']:.0f} s ago",
            )  # fmt: skip
        lines.append(table)
    else:
        lines.append(Text("no worker at work"))
    return Group(*lines)


def plan(values: Mapping[str, Any]) -> RenderableType:
    """What `hpo validate` prints."""
    head = Table.grid(padding=(0, 2))
    head.add_column(style="bold")
    for name, value in values["facts"].items():
        head.add_row(name, value)
    folds = len(values["criteria"][0]["folds"])
    criteria = Table("criterion", "positive posts", "prevalence", title="prevalence per fold", title_justify="left")
    for fold in range(folds):
        criteria.add_column(f"fold {fold}", justify="right")
    if values["holdout"]:
        criteria.add_column("hold-out", justify="right")
    for row in values["criteria"]:
        shares = [_share(value) for value in row["folds"]] + ([_share(row["holdout"])] if values["holdout"] else [])
        criteria.add_row(row["name"], str(row["positives"]), _share(row["prevalence"]), *shares)
    parameters = Table("parameter", "searched", title=f"{len(values['parameters'])} parameters", title_justify="left")
    for name, words in values["parameters"].items():
        parameters.add_row(name, words)
    notes = [Text(f"note: {note}") for note in values["notes"]]
    return Group(head, criteria, parameters, *notes)


def _share(value: float | None) -> str:
    return "–" if value is None or value != value else f"{100 * value:.1f} %"
