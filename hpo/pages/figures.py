"""The figures of a report: each draws one thing that the trials of a study show, and says in a sentence what to see."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from statistics import fmean, median
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from markupsafe import Markup

from ..database import record
from ..database.record import BASELINE_NAMES, candidate_text
from ..results.wording import capitalized, count_text, duration, estimate_text, short, shown_baselines
from ..running.confirming import curves
from ..running.pruning import pruning_threshold
from .charts import (
    Axis,
    Lane,
    Plot,
    Strand,
    axis_of,
    bar,
    parallel,
    strip,
    swatch,
)
from .headline import winner_key
from .snapshot import Snapshot

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution
    from optuna.trial import FrozenTrial

T = TypeVar("T")

SHOWN_TRIALS = 1500
"""Trials that a chart draws; of more, the best ones and an even choice of the others."""
SHOWN_STRANDS = 300
"""The same of parallel coordinates, in which more cannot be told apart."""
LEADERS = 6
"""Trials whose learning curves are drawn."""
FOLD_LEADERS = 8
"""Trials whose folds are drawn."""
LANES = 10
"""Parameters in parallel coordinates: the most important ones."""
LEAST_TRIALS = 10
"""Importance needs so many complete trials."""
TOP_TRIALS = 5
"""Importance looks for what the best tenth of the trials has in common, but at least so many."""


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
    """Pictures with a legend, a caption and the names of the axes."""

    title: str
    caption: str
    panels: tuple[Panel, ...]
    keys: tuple[Key, ...] = ()
    axes: str = ""
    notes: tuple[str, ...] = field(default=())


def thinned(items: Sequence[T], most: int, is_kept: Callable[[T], bool]) -> list[T]:
    """At most about `most` items in their order: all that must be kept, and an even choice of the others."""
    if len(items) <= most:
        return list(items)
    others = [position for position, item in enumerate(items) if not is_kept(item)]
    room = max(most - (len(items) - len(others)), 0)
    chosen = {others[int(at)] for at in np.linspace(0, len(others) - 1, room)} if room else set()
    return [item for position, item in enumerate(items) if position in chosen or is_kept(item)]


def thinned_note(shown: int, total: int, kept: str) -> tuple[str, ...]:
    """What a caption says of trials that are not drawn; nothing if all are."""
    if shown == total:
        return ()
    return (f"Of {count_text(total, 'trial')}, {shown:,} are drawn: {kept}, and an even choice of the others.",)


# --- the search -------------------------------------------------------------------------------------------------------


def history(snapshot: Snapshot) -> Figure | None:
    """Every trial by its number, the best so far, the baselines, and the confirmed winner."""
    scored = [row for row in snapshot.rows if row["reported"] is not None and math.isfinite(row["reported"])]
    if not scored:
        return None
    best = _running_best(snapshot)
    leading = {number for number, _ in best} | {trial.number for trial in snapshot.ranked[:50]}
    shown = thinned(scored, SHOWN_TRIALS, lambda row: row["number"] in leading)
    baselines = shown_baselines(snapshot.status["metric"], snapshot.status["baselines"] or {})
    winner = _confirmed_winner(snapshot)
    always = [value for key, _, value in baselines if key in BASELINE_NAMES and key != "chance"]
    always += [] if winner is None else [winner[1]["mean"], *(winner[1]["interval"] or ())]
    up = _axis_of_most([row["reported"] for row in scored], [*always, *(value for _, value in best)])
    last = len(snapshot.rows)
    plot = Plot(Axis(-0.02 * last, 1.06 * last), up, f"{snapshot.metric} of every trial", height=320, whole=True)
    for number, (_, _, value) in enumerate(baselines):
        plot.level(value, f"baseline baseline-{number}", f"{baselines[number][1]} {short(value)}")
    for row in shown:
        style = "dot" if row["state"] == "complete" else "hollow"
        plot.dot(row["number"], row["reported"], style, _trial_title(row, snapshot.folds))
    plot.steps([*best, (last - 1, best[-1][1])] if best else [], "best")
    failed = [row for row in snapshot.rows if row["state"] in {"infeasible", "failed"}]
    for row in failed[:SHOWN_TRIALS]:
        plot.dot(row["number"], up.low, "failed", f"trial {row['number']}: {row['state']}")
    if winner is not None:
        _draw_winner(plot, 1.03 * last, winner)
    beyond = sum(not up.holds(row["reported"]) for row in scored)
    notes = thinned_note(len(shown), len(scored), "the best ones")
    notes += (f"{count_text(beyond, 'trial')} beyond the axis, drawn on its end.",) if beyond else ()
    keys = [*_history_keys(snapshot, failed=bool(failed)), *_baseline_keys(baselines, up), *_winner_keys(winner)]
    caption = (
        "If the line of the best still rises at the right, more trials may help; where it lies above the confirmed "
        "value, the search was lucky on its own folds."
        if winner is not None
        else "If the line of the best still rises at the right, more trials may help. Its height is flattering: the best "
        "of many trials is also the luckiest."
    )
    return Figure(
        "History of the search", caption, (Panel(plot.svg()),), tuple(keys), f"{snapshot.metric}, by trial", notes
    )


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
        plot.range(x, *score["interval"], "interval", title)
    plot.dot(x, score["mean"], "confirmed", title, radius=5)


def _axis_of_most(values: Sequence[float], always: Sequence[float]) -> Axis:
    """An axis for most values: a few that lie far away would squeeze all others together."""
    low, high = np.quantile(values, [0.05, 0.95]).tolist()
    reach = 1.5 * (high - low)
    return axis_of([*(value for value in values if low - reach <= value <= high + reach), *always])


def _trial_title(row: Mapping[str, Any], folds: int) -> str:
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
        Key(swatch(f"baseline baseline-{number}", "line"), f"{name} {short(value)}{'' if up.holds(value) else ', off the axis'}")
        for number, (_, name, value) in enumerate(baselines)
    ]  # fmt: skip


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
    panels = tuple(_curve_panel(snapshot, trial, folds, up) for trial, folds in found)
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


def _curve_panel(snapshot: Snapshot, trial: FrozenTrial, folds: Sequence[Sequence[float]], up: Axis) -> Panel:
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
    found: list[tuple[str, Sequence[float], bool]] = []
    ensemble = None if snapshot.best is None else snapshot.best["ensemble"]
    if ensemble is not None:
        found.append(("Ensemble", ensemble["folds"], True))
    ranked = [(trial, summary) for trial in snapshot.ranked if (summary := record.cv(trial)) is not None]
    leaders = ranked[:FOLD_LEADERS] + [entry for entry in ranked[FOLD_LEADERS:] if entry[0].number == 0]
    for trial, summary in leaders:
        found.append((f"Trial {trial.number}{' (default)' if trial.number == 0 else ''}", summary["folds"], True))
    baselines = snapshot.status["baselines"] or {}
    for name in (name for name in BASELINE_NAMES if f"{name}_folds" in baselines):
        found.append((f"{capitalized(BASELINE_NAMES[name])} baseline", baselines[f"{name}_folds"], False))
    axis = axis_of(value for _, folds, _ in found for value in folds)
    rows = [
        FoldRow(
            name,
            short(fmean(folds)),
            strip(
                axis,
                f"{name}: {', '.join(map(short, folds))}",
                value=fmean(folds),
                dots=[(value, f"fold {number}: {short(value)}") for number, value in enumerate(folds)],
            ),
            is_searched,
        )
        for name, folds, is_searched in found
    ]
    return rows, axis


# --- parameters -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Importance:
    """How much a parameter matters."""

    name: str
    share: float
    """Of all parameters' importance."""
    text: str
    trials: int
    """Complete trials that have the parameter."""
    is_conditional: bool
    picture: Markup


def importances(snapshot: Snapshot) -> list[Importance]:
    """Every parameter's share of the importance, the largest first; empty with too few complete trials."""
    complete = [trial for trial in snapshot.ranked if trial.params]
    if len(complete) < LEAST_TRIALS:
        return []
    found = _ped_anova(snapshot, len(complete))
    largest = max(found.values(), default=0.0) or 1.0
    counts = {name: sum(name in trial.params for trial in complete) for name in found}
    return [
        Importance(
            name,
            share,
            f"{100 * share:.0f} %",
            counts[name],
            counts[name] < len(complete),
            bar(share / largest, f"{name}: {100 * share:.0f} %"),
        )
        for name, share in found.items()
    ]


def _ped_anova(snapshot: Snapshot, complete: int) -> dict[str, float]:
    """PED-ANOVA, which also knows parameters that only some trials have (Watanabe et al., IJCAI 2023)."""
    from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances

    top = min(max(0.1, TOP_TRIALS / complete), 0.5)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of parameters that few trials have; their number is shown
        return get_param_importances(snapshot.study, evaluator=PedAnovaImportanceEvaluator(target_quantile=top))


def parallel_coordinates(snapshot: Snapshot, ranked: Sequence[Importance]) -> Figure | None:
    """The parameters of the trials as lines through one axis each."""
    spaces = _spaces(snapshot)
    if len(spaces) < 2 or not snapshot.ranked:
        return None
    order = [entry.name for entry in ranked] or sorted(spaces)
    names = sorted(order, key=lambda name: "." in name)[:LANES]  # which model, which loss: before their settings
    best = len(snapshot.ranked) // 10 or 1
    top = {trial.number for trial in snapshot.ranked[:best]}
    known = [trial for trial in snapshot.trials if trial.params and trial.state.name in {"COMPLETE", "PRUNED"}]
    shown = thinned(known, SHOWN_STRANDS, lambda trial: trial.number in top)
    up = axis_of(trial.value for trial in snapshot.ranked if trial.value is not None)
    strands = [_strand(snapshot, trial, names, spaces, up, top) for trial in shown]
    strands.sort(key=lambda strand: ("pruned", "complete", "top", "winner").index(strand.style.split("-")[1]))
    lanes = [Lane(f"{snapshot.metric} (complete trials)", [(0.0, short(up.low)), (1.0, short(up.high))]), *(
        Lane(name, _lane_labels(spaces[name]), any(name not in trial.params for trial in shown)) for name in names
    )]  # fmt: skip
    keys = (
        Key(swatch("strand-winner", "line"), f"trial {snapshot.ranked[0].number}, the exported single trial"),
        Key(swatch("strand-top", "line"), "the best tenth of the complete trials"),
        Key(swatch("strand-complete", "line"), "complete"),
        Key(swatch("strand-pruned", "line"), "pruned"),
    )
    caption = (
        "Where the lines of the best tenth meet, that setting matters; where they spread over the axis, it does not. A "
        "line at the left dot belongs to a trial without that parameter."
    )
    notes = thinned_note(len(shown), len(known), "the best tenth")
    if len(names) < len(spaces):
        notes += (f"The {len(names)} most important of {len(spaces)} parameters.",)
    panel = Panel(parallel(lanes, strands, "parameters of the trials"))
    return Figure("Parameters of the trials", caption, (panel,), keys, "", notes)


def _spaces(snapshot: Snapshot) -> dict[str, BaseDistribution]:
    """Every parameter that has more than one value, and what it may be."""
    found: dict[str, BaseDistribution] = {}
    for trial in snapshot.trials:
        found |= {
            name: space for name, space in trial.distributions.items() if name not in found and not space.single()
        }
    return found


def _strand(
    snapshot: Snapshot,
    trial: FrozenTrial,
    names: Sequence[str],
    spaces: Mapping[str, BaseDistribution],
    up: Axis,
    top: set[int],
) -> Strand:
    complete = trial.value is not None and record.cv(trial) is not None
    shares = [_share(spaces[name], trial.params[name]) if name in trial.params else None for name in names]
    first = up.share(trial.value) if complete and trial.value is not None else None
    style = "winner" if trial.number == snapshot.ranked[0].number else "top" if trial.number in top else "complete" if complete else "pruned"  # fmt: skip
    settings = ", ".join(f"{name} {setting_text(trial.params[name])}" for name in names if name in trial.params)
    value = short(trial.value) if complete else "pruned"
    return Strand([first, *shares], f"strand-{style}", f"trial {trial.number} ({value}): {settings}")


def setting_text(value: object) -> str:
    """A parameter's value as tables show it."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _share(space: BaseDistribution, value: Any) -> float | None:  # noqa: ANN401
    """Where a value lies on the axis of its parameter."""
    from optuna.distributions import CategoricalDistribution

    if isinstance(space, CategoricalDistribution):
        return space.choices.index(value) / (len(space.choices) - 1) if value in space.choices else None
    return _axis(space).share(value)


def _axis(space: BaseDistribution) -> Axis:
    from optuna.distributions import FloatDistribution, IntDistribution

    assert isinstance(space, (FloatDistribution, IntDistribution)), "Optuna has no other distributions"
    return Axis(space.low, space.high, space.log)


def _lane_labels(space: BaseDistribution) -> list[tuple[float, str]]:
    from optuna.distributions import CategoricalDistribution

    if isinstance(space, CategoricalDistribution):
        return [
            (position / (len(space.choices) - 1), setting_text(choice)) for position, choice in enumerate(space.choices)
        ]
    axis = _axis(space)
    return [(0.0, setting_text(axis.low)), (1.0, f"{setting_text(axis.high)}{' (log)' if axis.log else ''}")]


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


def _stage_values(snapshot: Snapshot, folds: int) -> list[tuple[int, float, bool]]:
    """(number, mean over the folds so far, whether it was pruned there) of the trials that came to a stage's end."""
    return [
        (trial.number, trial.intermediate_values[folds], trial.state.name == "PRUNED" and trial.last_step == folds)
        for trial in snapshot.trials
        if folds in trial.intermediate_values
        and trial.state.name != "FAIL"
        and math.isfinite(trial.intermediate_values[folds])
    ]


def pruning(snapshot: Snapshot) -> Figure | None:
    """At the end of every stage: which trials went on, and what they had to reach."""
    panels = []
    shown_trials = all_trials = 0
    for number, folds in enumerate(snapshot.stage_ends[:-1]):
        values = _stage_values(snapshot, folds)
        if not values or snapshot.pruner.name == "none":
            continue
        up = _axis_of_most([value for _, value, _ in values], [])
        last = len(snapshot.rows)
        plot = Plot(Axis(-0.02 * last, 1.02 * last), up, f"values on {folds} folds", height=200, whole=True)
        shown = thinned(values, SHOWN_TRIALS // 2, lambda _: False)
        shown_trials, all_trials = shown_trials + len(shown), all_trials + len(values)
        for trial, value, stopped in shown:
            told = f"trial {trial}: {short(value)} on {folds} folds, {'pruned' if stopped else 'went on'}"
            plot.dot(trial, value, "hollow" if stopped else "dot", told)
        plot.steps(_thresholds(snapshot, values), "threshold")
        panels.append(Panel(plot.svg(), f"Stage {number + 1}: after {count_text(folds, 'fold')}"))
    if not panels:
        return None
    caption = (
        f"A trial goes on if its mean over the folds so far is among the best {snapshot.pruner.percentile:g} % of all "
        "trials on the same folds; the line is what that takes, and rises as the search gets better."
        if snapshot.higher_is_better
        else f"A trial goes on if its mean over the folds so far is among the best {snapshot.pruner.percentile:g} % of "
        "all trials on the same folds; the line is what that takes, and falls as the search gets better."
    )
    keys = (
        Key(swatch("dot", "dot"), "went on, or is running"),
        Key(swatch("hollow", "dot"), "pruned"),
        Key(swatch("threshold", "line"), "threshold, from the trials with smaller numbers"),
    )
    notes = thinned_note(shown_trials, all_trials, "none in particular") if shown_trials < all_trials else ()
    return Figure("Why trials were pruned", caption, tuple(panels), keys, f"{snapshot.metric} on the folds so far, by trial", notes)  # fmt: skip


def _thresholds(snapshot: Snapshot, values: Sequence[tuple[int, float, bool]]) -> list[tuple[float, float]]:
    """(number, threshold) as it was when a trial came to the stage's end, for an even choice of the trials."""
    found = []
    for position in sorted({int(at) for at in np.linspace(1, len(values) - 1, min(len(values), 200))}):
        threshold = _threshold(snapshot, [value for _, value, _ in values[:position]])
        if math.isfinite(threshold):
            found.append((values[min(position, len(values) - 1)][0], threshold))
    return found


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
    total = sum(row["seconds"] for row in timed)
    by_state = _grouped(timed, lambda row: str(row["state"]))
    models = _grouped(timed, lambda row: str(row["params"]["model"]) if "model" in row.get("params", {}) else "")
    models = {} if set(models) <= {""} else models
    groups = {**by_state, **{f"model {name}": rows for name, rows in models.items() if name}}
    return [_cost_row(name, rows, total) for name, rows in groups.items()] + [_cost_row("all", timed, total)] * bool(
        timed
    )


def _grouped(
    rows: Iterable[Mapping[str, Any]], key: Callable[[Mapping[str, Any]], str]
) -> dict[str, list[Mapping[str, Any]]]:
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        groups.setdefault(key(row), []).append(row)
    return groups


def _cost_row(name: str, rows: Sequence[Mapping[str, Any]], total: float) -> CostRow:
    seconds = [row["seconds"] for row in rows]
    share = f"{100 * sum(seconds) / total:.0f} %" if total else "–"
    return CostRow(name, len(rows), duration(sum(seconds)), share, duration(median(seconds)))


def at_once(snapshot: Snapshot) -> int:
    """How many trials were running at the same time, at most: the workers of finished trials are not recorded."""
    starts = [(trial.datetime_start, 1) for trial in snapshot.trials if trial.datetime_start is not None]
    ends = [(trial.datetime_complete, -1) for trial in snapshot.trials if trial.datetime_complete is not None]
    running = np.cumsum([change for _, change in sorted(starts + ends)])
    return int(running.max()) if len(running) else 0


def cost(snapshot: Snapshot) -> Figure | None:
    """The time of every finished trial."""
    timed = [
        row
        for row in snapshot.rows
        if row["seconds"] is not None and row["state"] in {"complete", "pruned", "infeasible"}
    ]
    if not timed:
        return None
    up = _axis_of_most([row["seconds"] for row in timed], [0.0])
    up = Axis(0.0, up.high)
    last = len(snapshot.rows)
    plot = Plot(Axis(-0.02 * last, 1.02 * last), up, "seconds of every trial", height=200, whole=True)
    shown = thinned(timed, SHOWN_TRIALS, lambda _: False)
    for row in shown:
        style = {"complete": "dot", "pruned": "hollow"}.get(row["state"], "failed")
        plot.dot(
            row["number"], row["seconds"], style, f"trial {row['number']}: {duration(row['seconds'])}, {row['state']}"
        )
    beyond = sum(row["seconds"] > up.high for row in timed)
    notes = thinned_note(len(shown), len(timed), "none in particular") if len(shown) < len(timed) else ()
    notes += (f"{count_text(beyond, 'trial')} beyond the axis, drawn on its end.",) if beyond else ()
    keys = (Key(swatch("dot", "dot"), "complete"), Key(swatch("hollow", "dot"), "pruned"))
    caption = (
        "Pruned trials should lie well below complete ones: that is what pruning saves. A trial that was interrupted "
        "counts from its first start to its end."
    )
    return Figure("Time of every trial", caption, (Panel(plot.svg()),), keys, "seconds, by trial", notes)
