"""Plan, status, result and leaderboard as rich tables that fit 80 columns."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from ..database.record import BASELINE_NAMES, candidate_text
from .listing import age_seconds
from .winner import gains, winner_key
from .wording import (
    baselines_text,
    best_text,
    better_by,
    confirming_text,
    count_text,
    duration,
    ensemble_text,
    estimate_text,
    gain_text,
    interval_text,
    metric_text,
    number,
    pace_text,
    setting_text,
    short,
    shown_baselines,
    texts_text,
)

if TYPE_CHECKING:
    from datetime import datetime

    from .best import BestResult
    from .leaderboard import Leaderboard, Row
    from .listing import ListedStudy
    from .plan import Criterion, NearDuplicates, Plan
    from .status import StudyStatus

# --- the result -------------------------------------------------------------------------------------------------------

FLATTERED = "*"
"""Marks a value on folds that its configuration was chosen on."""


def result_table(best: BestResult, where: str | None) -> RenderableType:
    """What `hpo run`, `hpo confirm` and `hpo export` print: every value beside its baselines, the winner, the claim.

    Args:
        best: from `best_result`.
        where: what it was written to, None if it was not.
    """
    claim = Text(best["claim"], style="bold")
    details = Table.grid(padding=(0, 2))
    details.add_column(style="bold", no_wrap=True)
    details.add_column(overflow="fold")
    for name, fact in [*_result_rows(best), *_single_rows(best), ("trials", _trials_text(best["trials"]))]:
        details.add_row(name, Text(fact))  # paths and choices may look like markup
    details.add_row("written to", Text(where or f"no file; `hpo export` writes {best['study']}.best.json"))
    return Group(_values(best), *_values_notes(best), "", claim, "", details)


def _values(best: BestResult) -> Table:
    """A row for every candidate: its value on the folds of the search, and an honest one with its interval."""
    confirmed = best["confirmed"]
    table = plain_table(f"{best['study']}: {metric_text(best['metric'])}")
    table.add_column("", overflow="fold")
    table.add_column("folds of the search", justify="right", no_wrap=True)
    if confirmed is not None or best["ensemble"] is not None:
        table.add_column("corrected" if confirmed is None else "confirmed", justify="right", no_wrap=True)
        table.add_column("95 % interval", no_wrap=True)
    for name, label, value in candidates(best):
        flattered = name == "ensemble" or name.isdecimal()
        true = honest(best, name)
        cells = [f"{short(value)}{FLATTERED if flattered and value is not None else ' '}"]
        if len(table.columns) > 2:
            cells += ["", ""] if true is None else [short(true["value"]), _interval_cell(name, true)]
        table.add_row(label, *cells, style="bold green" if name == winner_key(best) else None)
    return table


def _interval_cell(name: str, honest: Mapping[str, Any]) -> str:
    return "" if name == "chance" else interval_text(honest["interval"])  # chance is not estimated


def candidates(best: BestResult) -> list[tuple[str, str, float | None]]:
    """(name, label, value on the folds of the search) of everything that was compared."""
    ensemble, default, single = best["ensemble"], best["default"], best["trial"]
    rows: list[tuple[str, str, float | None]] = []
    if ensemble is not None:
        rows.append(("ensemble", f"ensemble of {count_text(len(ensemble['members']), 'trial')}", ensemble["value"]))
    searched = ensemble["best"] if ensemble is not None and best["confirmed"] is not None else None
    if searched is not None and searched["trial"] != single:
        rows.append((str(searched["trial"]), f"trial {searched['trial']}, best in the search", searched["value"]))
        rows.append((str(single), f"trial {single}, best when confirmed", best["value"]))
    else:
        same = " (the default)" if default is not None and default["trial"] == single else ""
        rows.append((str(single), f"best single trial {single}{same}", best["value"]))
    if default is not None and default["trial"] != single:
        rows.append(("default", "default configuration", default["value"]))
    baselines = shown_baselines(best["metric"], best["cv"]["floors"] or {})
    measured = ((key, name if key not in BASELINE_NAMES or key == "chance" else f"{name} baseline", value)
                for key, name, value in baselines)  # fmt: skip
    return [*rows, *measured]


def honest(best: BestResult, name: str) -> Mapping[str, Any] | None:
    """A candidate's value on fresh splits, or else its value corrected for selection."""
    confirmed, ensemble = best["confirmed"], best["ensemble"]
    if confirmed is not None:
        score = confirmed["scores"].get(name)
        return None if score is None else {"value": score["mean"], "interval": score["interval"]}
    if ensemble is None:
        return None
    corrected: dict[str, Any] = {"ensemble": ensemble, str(ensemble["best"]["trial"]): ensemble["best"]}
    found: Mapping[str, Any] | None = corrected.get(name, {}).get("corrected")
    return found


def _values_notes(best: BestResult) -> list[Text]:
    """What the columns mean."""
    lines = [f"{FLATTERED} flattering: chosen for its value on these very folds"]
    confirmed = best["confirmed"]
    if confirmed is not None:
        splits = count_text(confirmed["splits"], "fresh split")
        lines.append(f"  confirmed: trained again on {splits}, for a fixed number of epochs")
    elif best["ensemble"] is not None:
        lines.append("  corrected: for that choice, by choosing without the fold that is scored")
    size = fold_size(best["cv"])
    if size is not None:
        lines.append(f"  every value is a mean over folds, of about {count_text(size, 'post')} each")
    return [Text(line, style="dim") for line in lines]


def fold_size(cv: Mapping[str, Any]) -> int | None:
    """About how many labelled posts a fold has, from the counts of a cross-validation; None if they are unknown."""
    posts = [
        scores["positives"] / scores["prevalence"] for scores in cv["per_criterion"].values() if scores["prevalence"]
    ]
    return round(sum(posts) / len(posts) / len(cv["folds"])) if posts else None


def _result_rows(best: BestResult) -> list[tuple[str, str]]:
    """The winner, its gains, and what the ensemble is made of."""
    confirmed, ensemble = best["confirmed"], best["ensemble"]
    rows = [("winner", best["reason"])]
    of = "" if confirmed is not None else ", the ensemble's"
    for gain in gains(best):
        name = BASELINE_NAMES.get(gain["name"], gain["name"])
        rows.append((f"gain over {name}", f"{estimate_text(*better_by(best['metric'], gain))}{of}"))
    if ensemble is not None:
        picks = ((member["trial"], member["picks"]) for member in ensemble["members"])
        members = ", ".join(f"{trial}{'' if count == 1 else f' (weight {count})'}" for trial, count in picks)
        rows.append(("ensemble", f"average of trials {members}; threshold {short(ensemble['threshold'])}"))
    return rows


def _single_rows(best: BestResult) -> list[tuple[str, str]]:
    """The best single trial: how it was trained, its F1, its parameters."""
    cv = best["cv"]
    return [
        (f"trial {best['trial']}", f"best epoch {cv['best_epoch']} of {cv['epochs']}"),
        (
            "  pooled F1",
            f"{short(cv['pooled']['f1'])} at threshold {short(cv['threshold'])}{_without_text(cv['floors'] or {})}",
        ),
        *((f"  {name}", setting_text(value)) for name, value in sorted(best["params"].items())),
    ]


def _without_text(baselines: Mapping[str, Any]) -> str:
    """The F1 of predictions that ignore the text, in parentheses."""
    if "criterion_only_f1" not in baselines:
        return ""
    return f" ({short(baselines['criterion_only_f1'])} without reading the posts)"


def _trials_text(trials: Mapping[str, Any]) -> str:
    failed = trials["infeasible"] + trials["failed"]
    return (
        f"{trials['complete']} complete, {trials['pruned']} pruned, {failed} failed of {trials['requested']} requested"
    )


# --- the leaderboard --------------------------------------------------------------------------------------------------


def leaderboard_table(board: Leaderboard) -> RenderableType:
    """What `hpo leaderboard` prints."""
    baseline = BASELINE_NAMES[board["best_baseline"]]
    table = plain_table(f"{board['study']}: {metric_text(board['metric'])}")
    table.add_column("", no_wrap=True)
    for heading in ("value", "95 % interval", "over\ndefault", f"over\n{baseline}", "confirmed", "folds", "time"):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in board["rows"]:
        table.add_row(
            f"trial {row['name']}" if row["name"].isdecimal() else BASELINE_NAMES.get(row["name"], row["name"]),
            f"{short(row['value'])}{FLATTERED if _is_chosen(row) else ' '}",
            "" if row["interval"] is None else interval_text(row["interval"]),
            *("" if gain is None else f"{gain['value']:+.3f}" for gain in (row["over_default"], row["over_baseline"])),
            _confirmed_cell(row, board["fresh_splits"]),
            str(len(row["folds"])) if row["folds"] else "",
            "" if row["seconds"] is None else _brief(row["seconds"]),
            style="dim" if row["name"] in BASELINE_NAMES else None,
        )
    return Group(table, *(Text(line, style="dim") for line in _leaderboard_notes(board)))


def _is_chosen(row: Row) -> bool:
    """Whether a row is what the search chooses from: its value flatters it."""
    return row["value"] is not None and (row["name"] == "ensemble" or row["name"].isdecimal())


def _confirmed_cell(row: Row, splits: int | None) -> str:
    """The mean on the fresh splits; in parentheses if the candidate was trained on some of them only."""
    found = row["confirmed"]
    if found is None:
        return ""
    return f"{short(found['mean'])} " if len(found["splits"]) == splits else f"({short(found['mean'])})"


def _leaderboard_notes(board: Leaderboard) -> list[str]:
    lines = [
        f"{FLATTERED} flattering, as are its gains: chosen for its value on these very folds",
        f"  the best {board['shown']} of {count_text(board['complete'], 'complete trial')}, and what they must beat",
    ]
    splits = board["fresh_splits"]
    if splits is None:
        return [*lines, "  nothing is confirmed yet"]
    lines.append(f"  confirmed: the value to believe, on {count_text(splits, 'fresh split')}")
    if any(row["confirmed"] and len(row["confirmed"]["splits"]) < splits for row in board["rows"]):
        lines.append("  (confirmed): on some of them only, the better half went on")
    return lines


def _brief(seconds: float) -> str:
    """A duration in few characters: `12 s`, `3 min`, `12 h`."""
    if seconds < 99.5:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 99.5 * 60 else f"{seconds / 3600:.0f} h"


# --- nested cross-validation ------------------------------------------------------------------------------------------

_PROCEDURE_FIRST = ("procedure", "default", *BASELINE_NAMES)


def nested_table(study: str, result: Mapping[str, Any]) -> RenderableType:
    """What `hpo nested` prints.

    Args:
        study: the study's name.
        result: from `record.nested`.
    """
    metric, scores, gains = result["metric"], result["scores"], result["gains"]
    table = plain_table(f"{study}: {metric_text(metric)} on posts that no step has seen")
    table.add_column("", overflow="fold")
    table.add_column(f"{result['outer']} outer folds", justify="right", no_wrap=True)
    table.add_column("95 % interval", no_wrap=True)
    table.add_column("gain of the procedure", no_wrap=True)
    for name in (name for name in _PROCEDURE_FIRST if name in scores):
        gain = "" if name not in gains else "{} ({})".format(*_value_and_interval(better_by(metric, gains[name])))
        label = "the procedure" if name == "procedure" else candidate_text(name).removeprefix("the ")
        row = (label, short(scores[name]["value"]), _interval_cell(name, scores[name]), gain)
        table.add_row(*row, style="bold" if name == "procedure" else None)
    details = Table.grid(padding=(0, 2))
    details.add_column(style="bold", no_wrap=True)
    details.add_column(overflow="fold")
    for name, fact in _nested_rows(result):
        details.add_row(name, fact)
    return Group(table, "", Text(nested_claim(result), style="bold"), "", details)


def nested_claim(result: Mapping[str, Any]) -> str:
    """What may be claimed of the procedure: a whole interval above 0 beats the baselines."""
    metric, name, score = result["metric"], result["best_baseline"], result["scores"]["procedure"]
    gain = {"name": name, **result["gains"][name]}
    interval = better_by(metric, gain)[1]
    beats = "beats every baseline" if interval and interval[0] > 0 else "does not clearly beat the baselines"
    estimated = estimate_text(score["value"], score["interval"])
    return f"The procedure {beats}: {metric_text(metric)} {estimated}, {gain_text(metric, gain)}."


def _nested_rows(result: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What was estimated, and what it does not cover."""
    trials, training = sorted(set(result["trials_of_folds"])), sorted(set(result["training_posts"]))
    winners = Counter(candidate_text(name) for name in result["winners"])
    procedure = (
        f"the procedure, not this model: every outer fold has its own search ({_range_text(trials)} trials), ensemble, "
        "choice of the winner without confirming, and fit"
    )
    size = count_text(round(result["posts"] / result["outer"]), "post")
    return [
        ("estimated", procedure),
        ("training posts", f"{_range_text(training)} of {result['posts']:,}; with all of them, expect slightly better"),
        ("outer folds", f"of about {size} each; compare only with values on folds of that size"),
        ("winners", ", ".join(f"{name} ({count} of {result['outer']})" for name, count in winners.most_common())),
        ("interval", "for other posts like these; not for other folds and seeds"),
    ]


def _range_text(numbers: Sequence[int]) -> str:
    """`40`, or `318 to 320` of ascending numbers."""
    return f"{numbers[0]:,}" if len(numbers) == 1 else f"{numbers[0]:,} to {numbers[-1]:,}"


def _value_and_interval(estimate: tuple[float, Sequence[float] | None]) -> tuple[str, str]:
    return short(estimate[0]), interval_text(estimate[1])


# --- the status -------------------------------------------------------------------------------------------------------

STATES = ("complete", "pruned", "infeasible", "failed", "running", "released")
_ALWAYS_SHOWN = ("complete", "pruned", "running")
"""The other states are shown only if there are such trials."""
ROUNDED_SECONDS = 0.2
"""A claim is its own first heartbeat; both ages are rounded."""
GPU_CHARACTERS = 12
"""Enough of a GPU's UUID to recognize it: `GPU-1a2b3c4d`."""


def status_table(status: StudyStatus) -> RenderableType:
    """What `hpo status` prints."""
    trials, best, metric = status["trials"], status["best"], metric_text(status["metric"])
    counts: Mapping[str, Any] = trials
    states = [f"{counts[state]} {state}" for state in STATES if counts[state] or state in _ALWAYS_SHOWN]
    lines = [
        Text(f"{status['study']}: {trials['finished']} of {trials['requested'] or 0} trials finished", style="bold"),
        Text(", ".join(states)),
        Text(f"best {metric} {best_text(best['value'], best['trial'], best['model'])}" if best else "no score yet"),
        Text(f"Baselines ({metric}): {baselines_text(status['metric'], status['baselines'])}"),
        *_pace_line(status["pace"]),
        *_confirming_line(status["confirming"]),
        *_conclusion_lines(status),
        *_nested_line(status["nested"], metric),
        *_attempts_line(status["attempts"]),
        *(Text(f"infeasible: {count} {reason}") for reason, count in list(status["infeasible_reasons"].items())[:3]),
    ]
    workers = _workers(status["workers"]) if status["workers"] else Text("no worker is running")
    return Group(*lines, workers)


def _pace_line(pace: Mapping[str, Any]) -> list[Text]:
    if pace["seconds_left"] is None:
        return []
    return [Text(f"{pace_text(pace['trials_per_hour'])}, {duration(pace['seconds_left'])} left")]


def _confirming_line(confirming: Mapping[str, Any] | None) -> list[Text]:
    return [] if confirming is None else [Text(confirming_text(confirming["finished"], confirming["planned"]))]


def _conclusion_lines(status: StudyStatus) -> list[Text]:
    """The ensemble, what was confirmed, and what may be claimed."""
    ensemble, confirmed, lines = status["ensemble"], status["confirmed"], []
    if ensemble is not None:
        lines.append(
            Text(
                _of_first(
                    ensemble_text(ensemble["trials"], ensemble["value"], ensemble["corrected"]),
                    ensemble["finished"],
                    status,
                )
            )
        )
    if confirmed is not None:
        lines.append(Text(_of_first(f"confirmed: {confirmed['reason']}", confirmed["finished"], status)))
    return [*lines, Text(status["claim"], style="bold")] if status["claim"] else lines


def _nested_line(nested: Mapping[str, Any] | None, metric: str) -> list[Text]:
    if nested is None:
        return []
    value = estimate_text(nested["value"], nested["interval"])
    return [Text(f"nested cross-validation: the procedure has {metric} {value} on {nested['outer']} outer folds")]


def _of_first(line: str, finished: int, status: StudyStatus) -> str:
    """The line, and of how many trials it speaks if more are finished by now."""
    return line if finished == status["trials"]["finished"] else f"{line}; of the first {finished} trials"


def _attempts_line(attempts: Mapping[str, int]) -> list[Text]:
    restarted = ", ".join(f"trial {trial} ({times} times)" for trial, times in attempts.items())
    return [Text(f"started more than once: {restarted}")] if restarted else []


def _workers(rows: Sequence[Mapping[str, Any]]) -> Table:
    table = plain_table()
    for heading in ("trial", "attempt", "stage", "epoch", "since", "heartbeat", "slot", "GPU"):
        table.add_column(heading, no_wrap=True)
    table.add_column("pid, host", overflow="fold")
    for row in rows:
        position = (str(row["stage"] + 1), str(row["epoch"])) if row["epoch"] else ("–", "–")
        table.add_row(
            str(row["trial"]), str(row["attempt"]), *position, duration(row["held_seconds"]), _heartbeat(row),
            str(row["slot"]), (row["gpu"] or "–")[:GPU_CHARACTERS], Text(f"{row['pid']} {row['host']}"),
        )  # fmt: skip
    return table


def _heartbeat(row: Mapping[str, Any]) -> str:
    """How long ago a worker gave its last sign of life. A trial that has just been claimed has had none yet."""
    if row["released"]:
        return "released"
    is_claim = row["held_seconds"] - row["heartbeat_age"] < ROUNDED_SECONDS
    return "just claimed" if is_claim else f"{duration(row['heartbeat_age'])} ago"


# --- the list of studies ----------------------------------------------------------------------------------------------

_CHILD_KINDS = {"confirm": "confirming", "nested": "nested"}


def studies_table(studies: Sequence[ListedStudy], now: datetime) -> RenderableType:
    """What `hpo list` prints.

    Args:
        studies: from `listed_studies`.
        now: the time of the database's clock.
    """
    table = plain_table()
    table.add_column("study", overflow="fold")
    table.add_column("state", no_wrap=True)
    for heading in ("trials", "best"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("metric", no_wrap=True)
    table.add_column("last change", justify="right", no_wrap=True)
    for study in studies:
        workers = f", {count_text(study['workers'], 'worker')}" if study["workers"] else ""
        requested = "" if study["requested"] is None else f" of {study['requested']}"
        age = age_seconds(study, now)
        table.add_row(
            Text(study["study"]), f"{study['state']}{workers}", f"{study['finished']}{requested}",
            "" if study["best"] is None else number(study["best"]),
            "" if study["metric"] is None else metric_text(study["metric"]),
            "" if age is None else f"{duration(age)} ago",
        )  # fmt: skip
        for kind, name in _CHILD_KINDS.items():
            children = [child for child in study["children"] if child["kind"] == kind]
            if children:
                count = "" if len(children) == 1 else f" ({len(children)} studies)"
                ended, total = (sum(child[key] for child in children) for key in ("finished", "trials"))
                table.add_row(f"  {name}{count}", "", f"{ended} of {total}", style="dim")
    return table


# --- the plan ---------------------------------------------------------------------------------------------------------


def plan_table(plan: Plan) -> RenderableType:
    """What `hpo validate` prints."""
    head = Table.grid(padding=(0, 2))
    head.add_column(style="bold", no_wrap=True)
    head.add_column(overflow="fold")
    for name, fact in [*_data_rows(plan), *_baseline_rows(plan), *_cost_rows(plan)]:
        head.add_row(name, Text(fact))  # ids of posts may look like markup
    count = len(plan.parameters)
    parameters = plain_table(f"{count} parameter{'' if count == 1 else 's'} to search", show_header=False)
    parameters.add_column(style="bold", no_wrap=True)
    parameters.add_column(overflow="fold")
    for parameter in plan.parameters:
        parameters.add_row(parameter.name, Text(str(parameter)))
    notes = [Text(f"note: {note}") for note in plan.notes]
    title = Text("Positive posts: count, then % of all posts, of each fold, of the hold-out", style="bold")
    prevalence = _prevalence(plan.criteria, holdout=plan.held_out > 0)
    return Group(head, "", title, prevalence, "", parameters, *notes)


def _data_rows(plan: Plan) -> list[tuple[str, str]]:
    lengths = plan.chunks_per_post
    short = ", ".join(f"{100 * share:.1f} % at k = {k}" for k, share in plan.short_posts.items())
    return [
        ("study", f"{plan.study} ({plan.path})"),
        ("posts", f"{plan.posts:,} in {plan.groups:,} groups, {plan.held_out:,} of them held out"),
        ("near-duplicates", _duplicates_text(plan.near_duplicates)),
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
"""How many pairs of near-duplicates are named."""


def _duplicates_text(duplicates: NearDuplicates) -> str:
    if not duplicates.pairs:
        return "none in different groups"
    named = ", ".join(f"{first} and {second}" for first, second in duplicates.posts[:NAMED_PAIRS])
    more = ", …" if duplicates.pairs > NAMED_PAIRS else ""
    return (
        f"{count_text(duplicates.pairs, 'pair')} in different groups, {count_text(duplicates.affected, 'post')} of "
        f"{count_text(duplicates.groups, 'group')} ({named}{more}): folds may share their text; "
        "merge_near_duplicates = true in [split] makes such groups one"
    )


MAX_FOLD_COLUMNS = 10
"""With more folds than this, only the smallest and the largest share are shown."""


def _prevalence(criteria: Sequence[Criterion], *, holdout: bool) -> Table:
    folds = len(criteria[0].folds)
    digits = 0 if 6 < folds <= MAX_FOLD_COLUMNS else 1
    listed = [str(fold) for fold in range(folds)] if folds <= MAX_FOLD_COLUMNS else ["min", "max"]
    table = plain_table()
    table.padding = (0, 1 if digits else 0)
    table.add_column("criterion", overflow="fold")
    for heading in ("posts", "all", *listed, *(["held"] if holdout else [])):
        table.add_column(heading, justify="right", no_wrap=True)
    for criterion in criteria:
        of_folds = criterion.folds if folds <= MAX_FOLD_COLUMNS else _extremes(criterion.folds)
        shares = [criterion.prevalence, *of_folds, *([criterion.holdout] if holdout else [])]
        table.add_row(Text(criterion.name), str(criterion.positives), *(_percent(share, digits) for share in shares))
    return table


def _extremes(shares: Sequence[float | None]) -> list[float | None]:
    known = [share for share in shares if share is not None]
    return [min(known), max(known)] if known else [None, None]


# --- parts ------------------------------------------------------------------------------------------------------------


def plain_table(title: str = "", *, show_header: bool = True) -> Table:
    """A table without columns yet, in the style of all of them."""
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
