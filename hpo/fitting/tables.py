"""A report on a fitted model as tables that fit 80 columns."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from ..database.record import BASELINE_NAMES
from ..results.tables import plain_table
from ..results.wording import better_by, capitalized, count_text, interval_text, metric_text, short
from .evaluate import MODEL, Report

_POOLED = {
    "average_precision": "average precision",
    "auroc": "AUROC",
    "precision": "precision",
    "sensitivity": "recall",
    "specificity": "specificity",
    "f1": "F1",
    "macro_f1": "mean F1 of the criteria",
    "brier": "Brier score",
}


def report_table(report: Report) -> RenderableType:
    """The model beside its baselines, every criterion, pooled values, calibration and evidence."""
    return Group(_scores(report), "", _criteria(report), "", _pooled(report), "", *_notes(report))


def _title(report: Report) -> str:
    posts, groups = (count_text(report["evaluation"][key], key.removesuffix("s")) for key in ("posts", "groups"))
    if report["look"] is None:
        return f"other data: {posts} of {groups}"
    return f"{report['study']}: look {report['look']} at the hold-out, {posts} of {groups}"


def _scores(report: Report) -> Table:
    table = plain_table(_title(report))
    table.add_column("", overflow="fold")
    table.add_column(metric_text(report["metric"]), justify="right")
    table.add_column("95 % interval", no_wrap=True)
    table.add_column("model better by", no_wrap=True)
    for name in (MODEL, *BASELINE_NAMES):
        score = report["scores"].get(name)
        if score is None:
            continue
        label = {MODEL: "this model", "chance": "chance"}.get(name, f"{BASELINE_NAMES.get(name)} baseline")
        interval = "" if name == "chance" else interval_text(score["interval"])
        style = "bold green" if name == MODEL else None
        table.add_row(label, short(score["value"]), interval, _gain(report["metric"], score), style=style)
    return table


def _gain(metric: str, score: Mapping[str, Any]) -> str:
    if score.get("gain") is None:
        return ""
    value, interval = better_by(metric, {"value": score["gain"], "interval": score["gain_interval"]})
    return short(value) + ("" if interval is None else f" ({interval_text(interval)})")


def _criteria(report: Report) -> Table:
    table = plain_table()
    table.add_column("criterion", overflow="fold")
    for heading in ("posts", "positive", "av. prec.", "AUROC", "precision", "recall", "F1"):
        table.add_column(heading, justify="right", no_wrap=True)
    for name, values in report["evaluation"]["per_criterion"].items():
        table.add_row(
            Text(name),  # it may look like markup
            str(report["labelled"][name]),
            str(int(values["positives"])),
            *(short(values[key]) for key in ("average_precision", "auroc", "precision", "sensitivity", "f1")),
        )
    return table


def _pooled(report: Report) -> Table:
    evaluation, evidence = report["evaluation"], report["evidence"]
    table = plain_table()
    table.add_column("all pairs together", overflow="fold")
    table.add_column("value", justify="right", no_wrap=True)
    table.add_column("95 % interval", no_wrap=True)
    for key, label in _POOLED.items():
        table.add_row(label, short(evaluation["pooled"][key]), interval_text(evaluation["intervals"][key]))
    table.add_row("expected calibration error", short(evaluation["calibration"]["ece"]), "")
    if evidence is not None:
        chance = f"chance {short(evidence['chance'])}, {count_text(evidence['pairs'], 'pair')}"
        table.add_row("evidence: precision at 1", short(evidence["precision_at_1"]), chance)
    return table


def _notes(report: Report) -> list[Text]:
    lines = [
        f"Precision, recall and F1: at the model's threshold, {report['evaluation']['threshold']:.3f}. Intervals draw "
        "whole groups.",
        "Average precision depends on the number of posts: it is higher on fewer, even for chance. Compare these "
        "values with each other, not with those on folds of another size.",
    ]
    if report["look"] is None:
        lines.append("Other data: whether the model was trained on some of these posts is not known.")
    notes = [Text(line, style="dim") for line in [*lines, *map(_sentence, report["notes"])]]
    return [*notes, *([Text(warning, style="bold yellow")] if (warning := look_warning(report)) else [])]


def _sentence(note: str) -> str:
    return f"{capitalized(note)}."


def look_warning(report: Report) -> str | None:
    """What to say from the second look on."""
    if report["look"] is None or report["look"] < 2:
        return None
    models = len({look["model"] for look in report["looks"]})
    return (
        f"This is look {report['look']} at the hold-out, of {count_text(models, 'model')}; the first was "
        f"on {report['looks'][0]['time'][:10]}. Whoever chooses by what they see here makes the values flattering: "
        "report the first look, or this number of looks."
    )
