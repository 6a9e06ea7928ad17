"""What people read: the plan, the end table, the status; all of it fits 80 columns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

BASELINE_NAMES = {"linear": "linear floor", "mean_prevalence": "chance"}


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


def baselines_text(metric: str, floors: Mapping[str, Any] | None) -> str:
    """`linear floor 0.4589, chance 0.2005`: what the study's metric is without a model that reads."""
    if not floors:
        return "floors not measured yet"
    names = BASELINE_NAMES if metric == "average_precision" else {"linear": "linear floor"}
    return ", ".join(f"{words} {number(floors[name])}" for name, words in names.items() if name in floors)


def result_table(best: Mapping[str, Any], where: str) -> RenderableType:
    """The end table: value, folds, floors, parameters, and where the file is."""
    cv, trials, floors = best["cv"], best["trials"], best["cv"]["floors"] or {}
    table = _table(f"{best['study']}: best {best['metric']}", show_header=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    table.add_row("value", Text.assemble((number(best["value"]), "bold green"), f" (trial {best['trial']})"))
    table.add_row("its folds", f"{_numbers(cv['folds'])}  sd {number(cv['std'])}")
    if "linear" in floors:
        table.add_row("linear floor", f"{number(floors['linear'])} (logistic regression on mean embeddings)")
        table.add_row("its folds", _numbers(floors["linear_folds"]))
    if best["metric"] == "average_precision" and "mean_prevalence" in floors:
        table.add_row("chance", f"{number(floors['mean_prevalence'])} (mean prevalence)")
    reading = f"; {number(floors['criterion_only_f1'])} without reading" if "criterion_only_f1" in floors else ""
    table.add_row("pooled F1", f"{number(cv['pooled']['f1'])} at threshold {cv['threshold']:.3f}{reading}")
    table.add_row("best epoch", f"{cv['best_epoch']} of {cv['epochs']}")
    for name, value in sorted(best["params"].items()):
        table.add_row(name, f"{value:.4g}" if isinstance(value, float) else str(value))
    failed = trials["infeasible"] + trials["failed"]
    table.add_row("trials", f"{trials['complete']} complete, {trials['pruned']} pruned, {failed} failed "
                  f"of {trials['requested']} asked for")  # fmt: skip
    table.add_row("confirmed", "no: scored where it was chosen, so expect a little less")
    table.add_row("written to", where)
    return table


def status_table(state: Mapping[str, Any]) -> RenderableType:
    """What `hpo status` prints."""
    trials, best, pace = state["trials"], state["best"], state["pace"]
    counts = ", ".join(f"{trials[name]} {name}" for name in ("complete", "pruned", "infeasible", "failed", "running"))
    lines: list[RenderableType] = [
        Text(f"{state['study']}: {trials['finished']} of {trials['requested']} trials finished", style="bold"),
        Text(counts),
        Text(f"best {state['metric']} {number(best['value'])} (trial {best['trial']})" if best else "no score yet"),
        Text(baselines_text(state["metric"], state["floors"])),
    ]
    if pace["seconds_left"] is not None:
        lines.append(Text(f"{pace['trials_per_hour']:.1f} trials/h, {duration(pace['seconds_left'])} left"))
    if state["attempts"]:
        again = ", ".join(f"trial {number} ({times} times)" for number, times in state["attempts"].items())
        lines.append(Text(f"begun more than once: {again}"))
    if not state["workers"]:
        return Group(*lines, Text("no worker at work"))
    table = _table("")
    for heading in ("trial", "attempt", "stage", "epoch", "since", "heartbeat", "slot", "GPU"):
        table.add_column(heading, no_wrap=True)
    table.add_column("pid, host", overflow="fold")
    for row in state["workers"]:
        table.add_row(
            str(row["trial"]), str(row["attempt"]), str(row["stage"] + 1), str(row["epoch"]),
            duration(row["held_seconds"]),
            "handed back" if row["released"] else f"{row['heartbeat_age']:.0f} s ago",
            str(row["slot"]), row["gpu"] or "–", f"{row['pid']} {row['host']}",
        )  # fmt: skip
    return Group(*lines, table)


def plan_table(values: Mapping[str, Any]) -> RenderableType:
    """What `hpo validate` prints."""
    head = Table.grid(padding=(0, 2))
    head.add_column(style="bold", no_wrap=True)
    head.add_column(overflow="fold")
    for name, value in values["facts"].items():
        head.add_row(name, value)
    parameters = _table(f"{len(values['parameters'])} parameters are searched", show_header=False)
    parameters.add_column(style="bold", no_wrap=True)
    parameters.add_column(overflow="fold")
    for name, words in values["parameters"].items():
        parameters.add_row(name, words)
    notes = [Text(f"note: {note}") for note in values["notes"]]
    return Group(head, "", _prevalence(values["criteria"], holdout=values["holdout"]), "", parameters, *notes)


MOST_FOLDS = 10
"""With more folds than this the table shows the smallest and the largest share."""


def _prevalence(criteria: Sequence[Mapping[str, Any]], *, holdout: bool) -> Table:
    folds = len(criteria[0]["folds"])
    digits = 0 if 6 < folds <= MOST_FOLDS else 1
    table = _table("Positive posts: how many, and % of all, of folds 0 …, of the hold-out")
    table.padding = (0, 1 if digits else 0)
    table.add_column("criterion", overflow="fold")
    listed = [f"{fold}" for fold in range(folds)] if folds <= MOST_FOLDS else ["min", "max"]
    for heading in ("posts", "all", *listed, *(["held"] if holdout else [])):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in criteria:
        shares = row["folds"] if folds <= MOST_FOLDS else _ends(row["folds"])
        shares = [row["prevalence"], *shares, *([row["holdout"]] if holdout else [])]
        table.add_row(row["name"], str(row["positives"]), *(_percent(share, digits) for share in shares))
    return table


def _ends(shares: Sequence[float | None]) -> list[float | None]:
    known = [share for share in shares if share is not None]
    return [min(known), max(known)] if known else [None, None]


def _table(title: str, *, show_header: bool = True) -> Table:
    return Table(
        title=title or None, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD if show_header else None,
        show_header=show_header, show_edge=False, pad_edge=False, padding=(0, 1), collapse_padding=True,
    )  # fmt: skip


def _numbers(values: Sequence[float]) -> str:
    return "  ".join(map(number, values))


def _percent(share: float | None, digits: int) -> str:
    """Per cent without the sign: with no digits asked for, one below ten, so that rare criteria can be told apart."""
    if share is None or share != share:
        return "–"
    return f"{100 * share:.{1 if 100 * share < 9.95 else digits}f}"
