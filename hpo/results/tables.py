"""Plan, status and result as rich tables that fit 80 columns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from .best import BestResult
    from .plan import Criterion, NearDuplicates, Plan
    from .status import StudyStatus

BASELINE_NAMES = {"retrieval": "retrieval", "linear": "linear", "zero_shot": "zero-shot", "chance": "chance"}
"""What the stored baselines are called, in the order in which they are shown."""
_EXPLANATIONS = {
    "retrieval": "logistic regression on similarities and mean embeddings",
    "linear": "logistic regression on mean embeddings",
    "zero_shot": "similarity to the criterion's text, without labels",
    "chance": "without reading the posts",
}

# --- text for values --------------------------------------------------------------------------------------------------


def number(value: float | None) -> str:
    """Four decimals, or a dash for an undefined value."""
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


def pace_text(trials_per_hour: float) -> str:
    """`3.5 trials/min`, or `42.0 trials/h` if there is less than one per minute."""
    per_minute = trials_per_hour / 60
    return f"{per_minute:.1f} trials/min" if per_minute > 1 else f"{trials_per_hour:.1f} trials/h"


def metric_text(metric: str) -> str:
    """A metric's name with spaces: `average precision`."""
    return metric.replace("_", " ")


def texts_text(texts: int, computed: int) -> str:
    """`1,814 texts (all embeddings cached)`: how many embeddings were computed just now."""
    if not computed:
        return f"{texts:,} texts (all embeddings cached)"
    cached = texts - computed
    return f"{texts:,} texts ({computed:,} embedded now, {cached:,} cached or repeated)"


def confirming_text(finished: int, planned: int) -> str:
    """`confirming: 23 of 44 trained`."""
    return f"confirming: {finished} of {planned} trained"


def baselines_text(metric: str, baselines: Mapping[str, Any] | None) -> str:
    """`retrieval 0.5010, linear 0.4579, chance 0.2407`: the baselines' scores in the study's metric."""
    if not baselines:
        return "not measured yet"
    return ", ".join(f"{name} {number(score)}" for _, name, score in _shown_baselines(metric, baselines))


def _shown_baselines(metric: str, baselines: Mapping[str, Any]) -> list[tuple[str, str, float]]:
    """(key, name, score) of every baseline that was measured, in the order in which they are shown."""
    shown = [(key, name, baselines[key]) for key, name in BASELINE_NAMES.items() if key in baselines]
    if "chance" not in baselines and metric == "average_precision" and "mean_prevalence" in baselines:
        shown.append(("mean_prevalence", "prevalence (mean)", baselines["mean_prevalence"]))  # an older database
    return shown


# --- the result -------------------------------------------------------------------------------------------------------


def result_table(best: BestResult, where: str) -> RenderableType:
    """What `hpo run` and `hpo export` print: value, folds, baselines, parameters, and the path of the file."""
    cv, baselines = best["cv"], best["cv"]["floors"] or {}
    table = _table(f"{best['study']}: best {metric_text(best['metric'])}", show_header=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    table.add_row("value", Text.assemble((number(best["value"]), "bold green"), f" (trial {best['trial']})"))
    table.add_row("folds", f"{_numbers(cv['folds'])}  sd {number(cv['std'])}")
    _add_baselines(table, best["metric"], baselines)
    table.add_row(
        "pooled F1", f"{number(cv['pooled']['f1'])} at threshold {cv['threshold']:.3f}{_without_text(baselines)}"
    )
    table.add_row("best epoch", f"{cv['best_epoch']} of {cv['epochs']}")
    for name, value in sorted(best["params"].items()):
        table.add_row(name, f"{value:.4g}" if isinstance(value, float) else str(value))
    table.add_row("trials", _trials_text(best["trials"]))
    table.add_row(*_confirmation(best["confirmed"]))
    table.add_row("written to", where)
    return table


def _add_baselines(table: Table, metric: str, baselines: Mapping[str, Any]) -> None:
    """A row for each baseline, and the folds of the best one below its row."""
    shown = _shown_baselines(metric, baselines)
    best = best_baseline(metric, baselines)
    for key, name, score in shown:
        explanation = f" ({_EXPLANATIONS[key]})" if key in _EXPLANATIONS else ""
        table.add_row(name if " " in name else f"{name} baseline", f"{number(score)}{explanation}")
        if key == best:
            table.add_row("its folds", _numbers(baselines[f"{key}_folds"]))


def best_baseline(metric: str, baselines: Mapping[str, Any]) -> str | None:
    """The key of the baseline with the best score among those scored on each fold; None if there is none."""
    from sparse_evidence.core.metrics import METRICS

    scored = [key for key in BASELINE_NAMES if key in baselines and f"{key}_folds" in baselines]
    sign = 1.0 if METRICS[metric].higher_is_better else -1.0
    return max(scored, key=lambda key: sign * baselines[key], default=None)


def _without_text(baselines: Mapping[str, Any]) -> str:
    """The F1 of predictions that ignore the text, in parentheses."""
    if "criterion_only_f1" not in baselines:
        return ""
    return f" ({number(baselines['criterion_only_f1'])} without reading the posts)"


def _trials_text(trials: Mapping[str, Any]) -> str:
    failed = trials["infeasible"] + trials["failed"]
    return (
        f"{trials['complete']} complete, {trials['pruned']} pruned, {failed} failed of {trials['requested']} requested"
    )


def _confirmation(confirmed: Mapping[str, Any] | None) -> tuple[str, str]:
    if confirmed is None:
        return "not confirmed", "selected and scored on the same folds; expect slightly lower on new data"
    repeats = confirmed["repeats"]
    times = f"{repeats} fresh cross-validation{'' if repeats == 1 else 's'}"
    return "confirmed", f"{number(confirmed['mean'])}  sd {number(confirmed['std'])} ({times})"


# --- the status -------------------------------------------------------------------------------------------------------

_STATES = ("complete", "pruned", "infeasible", "failed", "running", "released")
_ALWAYS_SHOWN = ("complete", "pruned", "running")
"""The other states are shown only if there are such trials."""
GPU_CHARACTERS = 12
"""Enough of a GPU's UUID to recognize it: `GPU-1a2b3c4d`."""


def status_table(status: StudyStatus) -> RenderableType:
    """What `hpo status` prints."""
    trials, best, metric = status["trials"], status["best"], metric_text(status["metric"])
    counts: Mapping[str, Any] = trials
    states = [f"{counts[state]} {state}" for state in _STATES if counts[state] or state in _ALWAYS_SHOWN]
    lines = [
        Text(f"{status['study']}: {trials['finished']} of {trials['requested']} trials finished", style="bold"),
        Text(", ".join(states)),
        Text(f"best {metric} {number(best['value'])} (trial {best['trial']})" if best else "no score yet"),
        Text(f"Baselines ({metric}): {baselines_text(status['metric'], status['baselines'])}"),
        *_pace_line(status["pace"]),
        *_confirming_line(status["confirming"]),
        *_attempts_line(status["attempts"]),
    ]
    workers = _workers(status["workers"]) if status["workers"] else Text("no worker is running")
    return Group(*lines, workers)


def _pace_line(pace: Mapping[str, Any]) -> list[Text]:
    if pace["seconds_left"] is None:
        return []
    return [Text(f"{pace_text(pace['trials_per_hour'])}, {duration(pace['seconds_left'])} left")]


def _confirming_line(confirming: Mapping[str, Any] | None) -> list[Text]:
    return [] if confirming is None else [Text(confirming_text(confirming["finished"], confirming["planned"]))]


def _attempts_line(attempts: Mapping[str, int]) -> list[Text]:
    restarted = ", ".join(f"trial {trial} ({times} times)" for trial, times in attempts.items())
    return [Text(f"started more than once: {restarted}")] if restarted else []


def _workers(rows: Sequence[Mapping[str, Any]]) -> Table:
    table = _table()
    for heading in ("trial", "attempt", "stage", "epoch", "since", "heartbeat", "slot", "GPU"):
        table.add_column(heading, no_wrap=True)
    table.add_column("pid, host", overflow="fold")
    for row in rows:
        table.add_row(
            str(row["trial"]), str(row["attempt"]), str(row["stage"] + 1), str(row["epoch"]),
            duration(row["held_seconds"]),
            "released" if row["released"] else f"{duration(row['heartbeat_age'])} ago",
            str(row["slot"]), (row["gpu"] or "–")[:GPU_CHARACTERS], f"{row['pid']} {row['host']}",
        )  # fmt: skip
    return table


# --- the plan ---------------------------------------------------------------------------------------------------------


def plan_table(plan: Plan) -> RenderableType:
    """What `hpo validate` prints."""
    head = Table.grid(padding=(0, 2))
    head.add_column(style="bold", no_wrap=True)
    head.add_column(overflow="fold")
    for name, fact in [*_data_rows(plan), *_baseline_rows(plan), *_cost_rows(plan)]:
        head.add_row(name, fact)
    count = len(plan.parameters)
    parameters = _table(f"{count} parameter{'' if count == 1 else 's'} to search", show_header=False)
    parameters.add_column(style="bold", no_wrap=True)
    parameters.add_column(overflow="fold")
    for parameter in plan.parameters:
        parameters.add_row(parameter.name, str(parameter))
    notes = [Text(f"note: {note}") for note in [*plan.notes, *_duplicates_note(plan.near_duplicates)]]
    title = Text("Positive posts: count, then % of all posts, of each fold, of the hold-out", style="bold")
    prevalence = _prevalence(plan.criteria, holdout=plan.held_out > 0)
    return Group(head, "", title, prevalence, "", parameters, *notes)


def _data_rows(plan: Plan) -> list[tuple[str, str]]:
    lengths = plan.chunks_per_post
    short = ", ".join(f"{100 * share:.1f} % at k = {k}" for k, share in plan.short_posts.items())
    return [
        ("study", f"{plan.study} ({plan.path})"),
        ("posts", f"{plan.posts:,} in {plan.groups:,} groups, {plan.held_out:,} of them held out"),
        ("chunks", f"{plan.chunks:,}; {lengths.smallest} to {lengths.largest} per post, median {lengths.median}"),
        (
            "folds",
            f"{len(plan.validation_posts)}, in stages of {', '.join(map(str, plan.stages))}; "
            f"validation posts {', '.join(map(str, plan.validation_posts))}",
        ),
        ("embeddings", texts_text(plan.texts, plan.embedded_now)),
        *([("short posts", f"with at most k chunks, so retrieval selects all of them: {short}")] if short else []),
    ]


def _baseline_rows(plan: Plan) -> list[tuple[str, str]]:
    scores = plan.baselines
    without_text = (
        f"pooled AUROC {number(scores['criterion_only_auroc'])}, F1 {number(scores['criterion_only_f1'])}; "
        f"all called positive: F1 {number(scores['all_positive_f1'])}"
    )
    return [
        ("baselines", f"{metric_text(plan.metric)}: {baselines_text(plan.metric, scores)}"),
        ("without text", without_text),
    ]


def _cost_rows(plan: Plan) -> list[tuple[str, str]]:
    cost = plan.cost
    return [
        ("one epoch", f"{cost.epoch_seconds:.2f} s for all {len(plan.validation_posts)} folds, default configuration"),
        (
            "estimated",
            f"{_span(cost.shortest_seconds, cost.longest_seconds)} for {plan.trials:,} trials and one worker "
            "(without pruning; from all trials stopping early to none)",
        ),
    ]


def _span(shortest: float, longest: float) -> str:
    """`20 s to 1 min 52 s`, or a single duration if both print the same."""
    return " to ".join(dict.fromkeys([duration(shortest), duration(longest)]))


NAMED_PAIRS = 3
"""How many pairs of near-duplicates a note names."""


def _duplicates_note(duplicates: NearDuplicates) -> list[str]:
    if not duplicates.pairs:
        return []
    named = ", ".join(f"{first} and {second}" for first, second in duplicates.posts[:NAMED_PAIRS])
    more = ", …" if duplicates.pairs > NAMED_PAIRS else ""
    one = duplicates.pairs == 1
    return [
        f"{duplicates.pairs:,} pair{'' if one else 's'} of near-duplicate posts {'is' if one else 'are'} in different "
        f"groups ({named}{more}): give them the same group, or folds may share their text"
    ]


MAX_FOLD_COLUMNS = 10
"""With more folds than this, only the smallest and the largest share are shown."""


def _prevalence(criteria: Sequence[Criterion], *, holdout: bool) -> Table:
    folds = len(criteria[0].folds)
    digits = 0 if 6 < folds <= MAX_FOLD_COLUMNS else 1
    listed = [str(fold) for fold in range(folds)] if folds <= MAX_FOLD_COLUMNS else ["min", "max"]
    table = _table()
    table.padding = (0, 1 if digits else 0)
    table.add_column("criterion", overflow="fold")
    for heading in ("posts", "all", *listed, *(["held"] if holdout else [])):
        table.add_column(heading, justify="right", no_wrap=True)
    for criterion in criteria:
        of_folds = criterion.folds if folds <= MAX_FOLD_COLUMNS else _extremes(criterion.folds)
        shares = [criterion.prevalence, *of_folds, *([criterion.holdout] if holdout else [])]
        table.add_row(criterion.name, str(criterion.positives), *(_percent(share, digits) for share in shares))
    return table


def _extremes(shares: Sequence[float | None]) -> list[float | None]:
    known = [share for share in shares if share is not None]
    return [min(known), max(known)] if known else [None, None]


# --- parts ------------------------------------------------------------------------------------------------------------


def _table(title: str = "", *, show_header: bool = True) -> Table:
    return Table(
        title=title or None, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD if show_header else None,
        show_header=show_header, show_edge=False, pad_edge=False, padding=(0, 1), collapse_padding=True,
    )  # fmt: skip


def _numbers(values: Sequence[float]) -> str:
    return "  ".join(map(number, values))


def _percent(share: float | None, digits: int) -> str:
    """Percent without the sign; below ten always with one decimal, so that rare criteria can be told apart."""
    if share is None or share != share:
        return "–"
    return f"{100 * share:.{1 if 100 * share < 9.95 else digits}f}"
