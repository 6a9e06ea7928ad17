"""Figures of a report, and those of the search itself: its history, and the curves and folds of its leaders."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from statistics import fmean
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from markupsafe import Markup

from ..database import record
from ..database.record import BASELINE_NAMES, candidate_text
from ..results.winner import winner_key
from ..results.wording import capitalized, count_text, estimate_text, short, shown_baselines
from ..running.confirming import curves
from .charts import Axis, Plot, axis_of, strip, swatch
from .snapshot import Snapshot

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

T = TypeVar("T")
Row = Mapping[str, Any]
"""A trial, from `leaderboard.trial_rows`."""

SHOWN_TRIALS = 1500
"""Trials that a chart draws; of more, the best ones and an even choice of the others."""
LEADERS = 6
"""Trials whose learning curves are drawn."""
FOLD_LEADERS = 8
"""Trials whose folds are drawn."""


@dataclass(frozen=True)
class Panel:
    """One picture of a figure."""

    picture: Markup
    title: str = ""
    note: str = ""


@dataclass(frozen=True)
class Key:
    """A sample and what it stands for."""

    sample: Markup
    text: str


@dataclass(frozen=True)
class Figure:
    """Pictures with a legend, a caption that says what to see, and the names of the axes."""

    title: str
    caption: str
    panels: tuple[Panel, ...]
    keys: tuple[Key, ...] = ()
    axes: str = ""
    notes: tuple[str, ...] = ()


def thinned(items: Sequence[T], most: int, is_kept: Callable[[T], bool] = lambda _: False) -> list[T]:
    """At most about `most` items in their order: all that must be kept, and an even choice of the others."""
    if len(items) <= most:
        return list(items)
    others = [position for position, item in enumerate(items) if not is_kept(item)]
    room = max(most - (len(items) - len(others)), 0)
    chosen = {others[int(at)] for at in np.linspace(0, len(others) - 1, room)} if room else set()
    return [item for position, item in enumerate(items) if position in chosen or is_kept(item)]


def thinned_note(shown: int, total: int, kept: str = "", what: str = "trials") -> tuple[str, ...]:
    """What a caption says of the trials that are not drawn; nothing if all are."""
    if shown == total:
        return ()
    chosen = f"{kept}, and an even choice of the others" if kept else "an even choice"
    return (f"Of {total:,} {what}, {shown:,} are drawn: {chosen}.",)


def axis_of_most(values: Sequence[float], always: Sequence[float] = ()) -> Axis:
    """An axis for most values, and for all of `always`: a few values far away would squeeze the others together."""
    low, high = np.quantile(values, [0.05, 0.95]).tolist()
    reach = 1.5 * (high - low)
    return axis_of([*(value for value in values if low - reach <= value <= high + reach), *always])


def beyond_note(values: Sequence[float], axis: Axis) -> tuple[str, ...]:
    """What a caption says of values that are not on the axis; nothing if all are."""
    beyond = sum(not axis.holds(value) for value in values)
    return (f"{count_text(beyond, 'value')} beyond the axis, drawn on its end.",) if beyond else ()


def trial_axis(snapshot: Snapshot) -> Axis:
    """The numbers of all trials, with room at the right."""
    return Axis(-0.02 * len(snapshot.rows), 1.05 * len(snapshot.rows))


# --- the search -------------------------------------------------------------------------------------------------------


def history(snapshot: Snapshot) -> Figure | None:
    """Every trial by its number, the best so far, the baselines, and the confirmed winner."""
    scored = [row for row in snapshot.rows if row["reported"] is not None and math.isfinite(row["reported"])]
    if not scored:
        return None
    best, winner = _running_best(snapshot), _confirmed_winner(snapshot)
    baselines = shown_baselines(snapshot.status["metric"], snapshot.status["baselines"] or {})
    always = [value for key, _, value in baselines if key in BASELINE_NAMES and key != "chance"]
    always += [] if winner is None else [winner[1]["mean"], *(winner[1]["interval"] or ())]
    up = axis_of_most([row["reported"] for row in scored], [*always, *(value for _, value in best)])
    plot = Plot(trial_axis(snapshot), up, f"{snapshot.metric} of every trial", height=320, whole=True)
    for number, (_, name, value) in enumerate(baselines):
        plot.level(value, f"baseline baseline-{number}", f"{name} {short(value)}")
    leading = {number for number, _ in best} | {trial.number for trial in snapshot.ranked[:50]}
    shown = thinned(scored, SHOWN_TRIALS, lambda row: row["number"] in leading)
    for row in shown:
        style = "dot" if row["state"] == "complete" else "hollow"
        plot.dot(row["number"], row["reported"], style, _trial_title(row, snapshot.folds))
    plot.steps([*best, (len(snapshot.rows) - 1, best[-1][1])] if best else [], "best")
    failed = [row for row in snapshot.rows if row["state"] in {"infeasible", "failed"}]
    for row in thinned(failed, SHOWN_TRIALS):
        plot.dot(row["number"], up.low, "failed", f"trial {row['number']}: {row['state']}")
    if winner is not None:
        _draw_winner(plot, 1.02 * len(snapshot.rows), winner)
    keys = (*_history_keys(snapshot, failed=bool(failed)), *_baseline_keys(baselines, up), *_winner_keys(winner))
    notes = thinned_note(len(shown), len(scored), "the best ones")
    notes += beyond_note([row["reported"] for row in scored], up)
    caption, axes = _history_caption(is_confirmed=winner is not None), f"{snapshot.metric}, by trial"
    return Figure("History of the search", caption, (Panel(plot.svg()),), keys, axes, notes)


def _history_caption(*, is_confirmed: bool) -> str:
    rises = "If the line of the best still rises at the right, more trials may help"
    if is_confirmed:
        return f"{rises}; as far as it lies above the confirmed value, the search was lucky on its own folds."
    return f"{rises}. Its height is flattering: the best of many trials is also the luckiest."


def _running_best(snapshot: Snapshot) -> list[tuple[float, float]]:
    """(number, value) of every complete trial that was better than all before it."""
    sign, found = (1 if snapshot.higher_is_better else -1), list[tuple[float, float]]()
    for row in snapshot.rows:
        if row["value"] is not None and (not found or sign * row["value"] > sign * found[-1][1]):
            found.append((row["number"], row["value"]))
    return found


def _confirmed_winner(snapshot: Snapshot) -> tuple[str, Mapping[str, Any]] | None:
    """The winner's name and its score on fresh splits."""
    if snapshot.best is None or snapshot.confirmed is None:
        return None
    name = winner_key(snapshot.best)
    score = None if name is None else snapshot.confirmed["scores"].get(name)
    return None if name is None or score is None else (name, score)


def _draw_winner(plot: Plot, x: float, winner: tuple[str, Mapping[str, Any]]) -> None:
    name, score = winner
    title = f"{candidate_text(name)}, confirmed: {estimate_text(score['mean'], score['interval'])}"
    if score["interval"] is not None:
        low, high = score["interval"]
        plot.range(x, low, high, "interval", title)
    plot.dot(x, score["mean"], "confirmed", title, radius=5)


def _trial_title(row: Row, folds: int) -> str:
    if row["state"] == "complete":
        return f"trial {row['number']}: {short(row['value'])}"
    return f"trial {row['number']}: {short(row['reported'])} on {row['folds']} of {folds} folds, {row['state']}"


def _history_keys(snapshot: Snapshot, *, failed: bool) -> list[Key]:
    states = {row["state"] for row in snapshot.rows}
    ends = snapshot.stage_ends[:-1]
    part = f"on {' or '.join(map(str, ends))} of {snapshot.folds} folds" if ends else "on some folds"
    keys = [Key(swatch("dot", "dot"), "complete")]
    keys += [Key(swatch("hollow", "dot"), f"pruned, {part}: not comparable")] if "pruned" in states else []
    keys += [Key(swatch("failed", "dot"), "failed")] if failed else []
    return [*keys, Key(swatch("best", "line"), "best so far")]


def _baseline_keys(baselines: Sequence[tuple[str, str, float]], up: Axis) -> list[Key]:
    return [
        Key(swatch(f"baseline baseline-{number}", "line"), f"{name} {short(value)}{off}")
        for number, (_, name, value) in enumerate(baselines)
        for off in ["" if up.holds(value) else ", off the axis"]
    ]


def _winner_keys(winner: tuple[str, Mapping[str, Any]] | None) -> list[Key]:
    if winner is None:
        return []
    name, score = winner
    text = f"{candidate_text(name)}, confirmed: {estimate_text(score['mean'], score['interval'])}"
    return [Key(swatch("confirmed", "dot"), text)]


# --- the leaders ------------------------------------------------------------------------------------------------------


def learning_curves(snapshot: Snapshot) -> Figure | None:
    """The score of every epoch of the leaders: every fold, and their mean."""
    found = [(trial, curves(snapshot.study, trial.number)) for trial in snapshot.ranked[:LEADERS]]
    found = [(trial, folds) for trial, folds in found if folds]
    if not found:
        return None
    up = axis_of(score for _, folds in found for fold in folds for score in fold)
    panels = tuple(_curve_panel(trial, folds, up) for trial, folds in found)
    caption = (
        "The further the folds lie apart, the less a difference between two trials means; a mean that still rises at "
        "its end wants more epochs."
    )
    keys = (
        Key(swatch("fold", "line"), "a fold"),
        Key(swatch("average", "line"), "mean of the folds"),
        Key(swatch("chosen", "line"), "the epoch whose value counts"),
    )
    return Figure("Learning curves of the leaders", caption, panels, keys, f"{snapshot.metric}, by epoch")


def _curve_panel(trial: FrozenTrial, folds: Sequence[Sequence[float]], up: Axis) -> Panel:
    epochs = max(map(len, folds))
    title = f"Trial {trial.number}: {short(trial.value)}"
    across = Axis(1, epochs) if epochs > 1 else Axis(0, 2)
    plot = Plot(across, up, f"learning curves of trial {trial.number}", height=150, whole=True)
    chosen = (record.cv(trial) or {}).get("best_epoch")
    if chosen is not None and epochs > 1:
        plot.vertical(chosen, "chosen", f"epoch {chosen}")
    means = [fmean(known) for at in zip_longest(*folds) if (known := [score for score in at if score is not None])]
    for number, fold in enumerate(folds):
        plot.line(list(enumerate(fold, 1)), "fold", f"fold {number}")
        if epochs == 1:
            plot.dot(1, fold[0], "single", f"fold {number}: {short(fold[0])}")
    plot.line(list(enumerate(means, 1)), "average")
    if epochs == 1:
        plot.dot(1, means[0], "dot", f"mean: {short(means[0])}", radius=5)
    model = str(record.config(trial)["model"].get("name", ""))
    trained = f"epoch {chosen} of {epochs}" if epochs > 1 else "solved, not trained in epochs"
    return Panel(plot.svg(), title, ", ".join(filter(None, (model, trained))))


@dataclass(frozen=True)
class FoldRow:
    """A candidate's score on every fold."""

    name: str
    text: str
    picture: Markup
    is_searched: bool


def fold_rows(snapshot: Snapshot) -> tuple[list[FoldRow], Axis]:
    """The scores by fold of the ensemble, the leaders, the default configuration and the baselines, and their axis."""
    ensemble = None if snapshot.best is None else snapshot.best["ensemble"]
    searched = [] if ensemble is None else [("Ensemble", ensemble["folds"])]
    for rank, trial in enumerate(snapshot.ranked):
        if rank < FOLD_LEADERS or trial.number == 0:
            name = f"Trial {trial.number}{' (default)' if trial.number == 0 else ''}"
            searched.append((name, (record.cv(trial) or {})["folds"]))
    baselines = snapshot.status["baselines"] or {}
    known = [
        (f"{capitalized(called)} baseline", baselines[f"{name}_folds"])
        for name, called in BASELINE_NAMES.items()
        if f"{name}_folds" in baselines
    ]
    axis = axis_of(value for _, folds in searched + known for value in folds)
    rows = [_fold_row(name, folds, axis, is_searched=True) for name, folds in searched]
    return rows + [_fold_row(name, folds, axis, is_searched=False) for name, folds in known], axis


def _fold_row(name: str, folds: Sequence[float], axis: Axis, *, is_searched: bool) -> FoldRow:
    dots = [(value, f"fold {number}: {short(value)}") for number, value in enumerate(folds)]
    picture = strip(axis, f"{name}: {', '.join(map(short, folds))}", value=fmean(folds), dots=dots)
    return FoldRow(name, short(fmean(folds)), picture, is_searched)
