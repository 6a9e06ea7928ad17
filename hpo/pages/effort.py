"""Where the effort of a search went: which trials were pruned and why, and what every trial cost."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

import numpy as np

from ..results.wording import count_text, duration, short
from ..running.pruning import pruning_threshold
from .charts import Axis, Plot, swatch
from .figures import (
    SHOWN_TRIALS,
    Figure,
    Key,
    Panel,
    Row,
    axis_of_most,
    beyond_note,
    thinned,
    thinned_note,
    trial_axis,
)
from .snapshot import Snapshot

SHOWN_THRESHOLDS = 200
"""Points of the line of thresholds."""
StageValue = tuple[int, float, bool]
"""A trial's number, its mean over the folds so far, and whether it was pruned there."""
_MODEL = "params.model"


# --- pruning ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class StageRow:
    """What happened at the end of a stage."""

    folds: int
    reached: int
    pruned: int
    went_on: int
    threshold: str
    """What a trial must reach now; empty if nothing is pruned."""


def pruning_stages(snapshot: Snapshot) -> list[StageRow]:
    """Every stage but the last: how many trials reached its end, and how many stopped there."""
    return [
        StageRow(
            folds,
            len(values := _stage_values(snapshot, folds)),
            pruned := sum(stopped for _, _, stopped in values),
            len(values) - pruned,
            _threshold_text(snapshot, [value for _, value, _ in values]),
        )
        for folds in snapshot.stage_ends[:-1]
    ]


def _threshold_text(snapshot: Snapshot, values: Sequence[float]) -> str:
    threshold = _threshold(snapshot, values)
    return short(threshold) if math.isfinite(threshold) else ""


def _threshold(snapshot: Snapshot, values: Sequence[float]) -> float:
    if snapshot.pruner.name == "none":
        return math.nan
    return pruning_threshold(values, snapshot.pruner, higher_is_better=snapshot.higher_is_better)


def _stage_values(snapshot: Snapshot, folds: int) -> list[StageValue]:
    """The trials that came to the end of the stage with so many folds so far; those that it pruned early included."""
    return [
        (trial.number, trial.intermediate_values[folds], trial.state.name == "PRUNED" and trial.last_step == folds)
        for trial in snapshot.trials
        if folds in trial.intermediate_values
        and trial.state.name != "FAIL"
        and math.isfinite(trial.intermediate_values[folds])
    ]


def pruning(snapshot: Snapshot) -> Figure | None:
    """At the end of every stage but the last: which trials went on, and what that took; None if nothing is pruned."""
    stages = {folds: values for folds in snapshot.stage_ends[:-1] if (values := _stage_values(snapshot, folds))}
    if not stages or snapshot.pruner.name == "none":
        return None
    room = SHOWN_TRIALS // len(stages)
    panels = tuple(
        _stage_panel(snapshot, f"Stage {number}: after {count_text(folds, 'fold')}", values, thinned(values, room))
        for number, (folds, values) in enumerate(stages.items(), 1)
    )
    caption = (
        f"A trial goes on if its mean over the folds so far is within the best {snapshot.pruner.percentile:g} % of all "
        "trials on the same folds: the line is what that took, and gets stricter as the search gets better."
    )
    keys = (
        Key(swatch("dot", "dot"), "went on, or is running"),
        Key(swatch("hollow", "dot"), "pruned"),
        Key(swatch("threshold", "line"), "threshold, from the trials with smaller numbers"),
    )
    shown = sum(min(len(values), room) for values in stages.values())
    notes = thinned_note(shown, sum(map(len, stages.values())), what="values")
    axes = f"{snapshot.metric} on the folds so far, by trial"
    return Figure("Why trials were pruned", caption, panels, keys, axes, notes)


def _stage_panel(snapshot: Snapshot, title: str, values: Sequence[StageValue], shown: Sequence[StageValue]) -> Panel:
    up = axis_of_most([value for _, value, _ in values])
    plot = Plot(trial_axis(snapshot), up, title, height=200, whole=True)
    for trial, value, is_pruned in shown:
        told = f"trial {trial}: {short(value)}, {'pruned' if is_pruned else 'went on'}"
        plot.dot(trial, value, "hollow" if is_pruned else "dot", told)
    plot.steps(_thresholds(snapshot, values), "threshold")
    return Panel(plot.svg(), title)


def _thresholds(snapshot: Snapshot, values: Sequence[StageValue]) -> list[tuple[float, float]]:
    """(number, threshold from the trials before it), for an even choice of the trials."""
    positions = thinned(range(len(values)), SHOWN_THRESHOLDS)
    found = [(values[at][0], _threshold(snapshot, [value for _, value, _ in values[:at]])) for at in positions]
    return [(number, threshold) for number, threshold in found if math.isfinite(threshold)]


# --- cost -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class CostRow:
    """What some of the trials took."""

    name: str
    trials: int
    total: str
    share: str
    typical: str
    """The median."""


def cost_rows(snapshot: Snapshot) -> list[CostRow]:
    """The time of the finished trials by state, and by model if the study chooses among several."""
    timed = [row for row in snapshot.rows if row["seconds"] is not None]
    groups: dict[str, list[Row]] = {}
    for row in timed:
        groups.setdefault(str(row["state"]), []).append(row)
    for row in timed:
        if _MODEL in row:
            groups.setdefault(f"model {row[_MODEL]}", []).append(row)
    groups |= {"all": timed} if timed else {}
    total = sum(row["seconds"] for row in timed)
    return [_cost_row(name, [row["seconds"] for row in rows], total) for name, rows in groups.items()]


def _cost_row(name: str, seconds: Sequence[float], total: float) -> CostRow:
    share = f"{100 * sum(seconds) / total:.0f} %" if total else "–"
    return CostRow(name, len(seconds), duration(sum(seconds)), share, duration(median(seconds)))


def at_once(snapshot: Snapshot) -> int:
    """How many trials were running at the same time, at most: the workers of finished trials are not recorded."""
    starts = [(trial.datetime_start, 1) for trial in snapshot.trials if trial.datetime_start is not None]
    ends = [(trial.datetime_complete, -1) for trial in snapshot.trials if trial.datetime_complete is not None]
    running = np.cumsum([change for _, change in sorted(starts + ends)])
    return int(running.max()) if len(running) else 0


def cost(snapshot: Snapshot) -> Figure | None:
    """The time of every finished trial."""
    timed = [row for row in snapshot.rows if row["seconds"] is not None]
    if not timed:
        return None
    up = Axis(0.0, axis_of_most([row["seconds"] for row in timed]).high)
    plot = Plot(trial_axis(snapshot), up, "seconds of every trial", height=200, whole=True)
    shown = thinned(timed, SHOWN_TRIALS)
    styles = {"complete": "dot", "pruned": "hollow"}
    for row in shown:
        told = f"trial {row['number']}: {duration(row['seconds'])}, {row['state']}"
        plot.dot(row["number"], row["seconds"], styles.get(row["state"], "failed"), told)
    keys = [Key(swatch("dot", "dot"), "complete"), Key(swatch("hollow", "dot"), "pruned")]
    if not {row["state"] for row in timed} <= set(styles):
        keys.append(Key(swatch("failed", "dot"), "failed"))
    caption = (
        "Pruned trials should lie well below complete ones: that is what pruning saves. A trial that was interrupted "
        "counts from its first start to its end."
    )
    notes = thinned_note(len(shown), len(timed)) + beyond_note([row["seconds"] for row in timed], up)
    return Figure("Time of every trial", caption, (Panel(plot.svg()),), tuple(keys), "seconds, by trial", notes)
