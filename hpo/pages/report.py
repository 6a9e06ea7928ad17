"""The page of `hpo report`: a study, finished or running, as one HTML file. It holds no post text."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from ..database import record
from ..results.best import provenance_of
from ..results.tables import fold_size, nested_claim
from ..results.winner import winner_key
from ..results.wording import capitalized, duration, metric_text, setting_text, short
from . import effort, figures, html, parameters
from .headline import compared, headline
from .ranking import precision_recall
from .snapshot import Snapshot, read_snapshot

if TYPE_CHECKING:
    from optuna import Study

    from ..study.definition import StudyDefinition


def report_page(study: Study, definition: StudyDefinition) -> str:
    """One HTML page that says what a study has found, how sure that is, and what to do next.

    It needs no data, but for the curves of precision and recall: these are left out where the data cannot be read.

    Args:
        study: the study, finished or running.
        definition: its file.

    Raises:
        PredictionsError: stored predictions are damaged.
        StorageError: the database is unreachable.
    """
    return render(read_snapshot(study, definition))


def render(snapshot: Snapshot) -> str:
    """The page as HTML; everything that it needs is in it."""
    important = parameters.importances(snapshot)
    ranking = precision_recall(snapshot)
    fold_rows, fold_axis = figures.fold_rows(snapshot)
    candidates, value_axis = compared(snapshot)
    return html.render(
        "report",
        name=snapshot.status["study"],
        metric=capitalized(snapshot.metric),
        head=headline(snapshot),
        made=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        compared=candidates,
        value_ends=(short(value_axis.low), short(value_axis.high)),
        fold_size=None if snapshot.best is None else fold_size(snapshot.best["cv"]),
        confirmed=snapshot.confirmed,
        honest_name=_honest_name(snapshot),
        reason="" if snapshot.best is None else snapshot.best["reason"],
        nested=_nested(snapshot),
        history=figures.history(snapshot),
        learning=figures.learning_curves(snapshot),
        fold_rows=fold_rows,
        fold_ends=(short(fold_axis.low), short(fold_axis.high)),
        ranking=ranking,
        criteria=_criteria(snapshot),
        settings=_settings(snapshot),
        importances=important,
        complete=len(snapshot.ranked),
        least_trials=parameters.LEAST_TRIALS,
        parallel=parameters.parallel_coordinates(snapshot, important.names),
        pruner=snapshot.pruner,
        stages=effort.pruning_stages(snapshot),
        pruning=effort.pruning(snapshot),
        failures=_failures(snapshot),
        costs=effort.cost_rows(snapshot),
        cost=effort.cost(snapshot),
        at_once=effort.at_once(snapshot),
        workers=[_worker(row) for row in snapshot.status["workers"]],
        attempts=snapshot.status["attempts"],
        provenance=_provenance(snapshot),
        commands=_commands(snapshot),
        definition=json.dumps(snapshot.started_with, indent=1, ensure_ascii=False),
    )


def _honest_name(snapshot: Snapshot) -> str:
    """What the values to believe are called; empty if there are none yet."""
    if snapshot.best is None or (snapshot.best["confirmed"] is None and snapshot.best["ensemble"] is None):
        return ""
    return "corrected" if snapshot.best["confirmed"] is None else "confirmed"


def _nested(snapshot: Snapshot) -> str:
    """What the whole procedure is worth, if that was estimated."""
    stored = record.nested(snapshot.study)
    return "" if stored is None else nested_claim(stored)


# --- the exported single trial ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class CriterionRow:
    """How well the single trial recognises a criterion, on the folds of the search."""

    name: str
    posts: str
    prevalence: str
    average_precision: str
    f1: str
    precision: str
    sensitivity: str


def _criteria(snapshot: Snapshot) -> dict[str, Any] | None:
    """The table by criterion, the numbers of best.json's `cv`."""
    best = snapshot.best
    if best is None:
        return None
    rows = [_criterion_row(name, scores) for name, scores in best["cv"]["per_criterion"].items()]
    total = _criterion_row("All pairs together", best["cv"]["pooled"])
    ignoring = (best["cv"]["floors"] or {}).get("criterion_only_f1")
    return {
        "trial": best["trial"],
        "threshold": short(best["cv"]["threshold"]),
        "rows": [*rows, total],
        "without_text": None if ignoring is None else short(ignoring),
        "is_result": winner_key(best) == str(best["trial"]),
    }


def _criterion_row(name: str, scores: Mapping[str, Any]) -> CriterionRow:
    prevalence = "–" if scores["prevalence"] is None else f"{100 * scores['prevalence']:.1f} %"
    measured = (short(scores[key]) for key in ("average_precision", "f1", "precision", "sensitivity"))
    return CriterionRow(name, _of_posts(scores), prevalence, *measured)


def _of_posts(scores: Mapping[str, Any]) -> str:
    """`35 of 399`: the posts that meet a criterion, and those that are labelled."""
    if not scores["prevalence"]:
        return "0"
    return f"{scores['positives']:,.0f} of {scores['positives'] / scores['prevalence']:,.0f}"


def _settings(snapshot: Snapshot) -> dict[str, Any] | None:
    """The parameters of the exported single trial beside those of the default configuration."""
    best = snapshot.best
    if best is None:
        return None
    default = snapshot.trials[0].params
    rows = [
        (name, setting_text(best["params"][name]) if name in best["params"] else "–",
         setting_text(default[name]) if name in default else "–")
        for name in sorted({**best["params"], **default})
    ]  # fmt: skip
    return {"trial": best["trial"], "rows": rows, "ensemble": best["ensemble"]}


# --- what went on -----------------------------------------------------------------------------------------------------

SHOWN_FAILURES = 20
"""Failed trials that are listed."""


def _failures(snapshot: Snapshot) -> dict[str, Any]:
    failed = [row for row in snapshot.rows if row["state"] in {"infeasible", "failed"}]
    return {
        "count": len(failed),
        "rows": [(row["number"], row["state"], row["reason"] or "") for row in failed[:SHOWN_FAILURES]],
    }


def _worker(row: Mapping[str, Any]) -> dict[str, str]:
    """A running trial and its worker, with the position of the last heartbeat."""
    return {
        "trial": str(row["trial"]),
        "where": f"{row['host']}, slot {row['slot']}" + (f", {row['gpu']}" if row["gpu"] else ""),
        "at": f"stage {row['stage'] + 1}, epoch {row['epoch']}",
        "since": duration(row["held_seconds"]),
        "heartbeat": "released" if row["released"] else f"{duration(row['heartbeat_age'])} ago",
    }


# --- provenance -------------------------------------------------------------------------------------------------------


def _provenance(snapshot: Snapshot) -> list[tuple[str, str]]:
    identity, stored = record.identity(snapshot.study), snapshot.started_with
    found = provenance_of(identity)
    starts = [trial.datetime_start for trial in snapshot.trials if trial.datetime_start is not None]
    ends = [trial.datetime_complete for trial in snapshot.trials if trial.datetime_complete is not None]
    looks = record.looks(snapshot.study)
    return [
        ("Study", f"{snapshot.status['study']} ({snapshot.definition.path.name})"),
        ("Metric", f"{metric_text(snapshot.status['metric'])}, the mean over folds of the mean over criteria"),
        ("Split", _split_text(stored["split"])),
        ("Sampler, seed", f"{stored['search']['sampler']}, {found['seed']}"),
        ("First trial started", f"{min(starts):%Y-%m-%d %H:%M}" if starts else "–"),
        ("Last trial ended", f"{max(ends):%Y-%m-%d %H:%M}" if ends else "–"),
        ("Looks at the hold-out", _looks_text(looks)),
        ("Study file (SHA-256)", found["definition_sha256"]),
        ("Data (SHA-256)", found["data_sha256"]),
        ("Folds (SHA-256)", found["folds_sha256"]),
        ("Encoders (SHA-256)", found["encoders_sha256"]),
        ("Version of the study", str(identity.get("code", "–"))),
        ("Commit that made this page", found["git"] or "not in a checkout"),
        ("Versions that made this page", ", ".join(f"{name} {number}" for name, number in found["versions"].items())),
    ]


def _split_text(split: Mapping[str, Any]) -> str:
    stages = ", ".join(map(str, split["stages"]))
    return f"{split['folds']} folds in stages of {stages}; hold-out {split['holdout']:g}; seed {split['seed']}"


def _looks_text(looks: Sequence[Mapping[str, Any]]) -> str:
    if not looks:
        return "none"
    last = looks[-1]
    return f"{len(looks)}; the last: {metric_text(last['metric'])} {short(last['value'])}"


def _commands(snapshot: Snapshot) -> list[tuple[str, str]]:
    file, trials = shlex.quote(str(snapshot.definition.path)), snapshot.status["trials"]["requested"] or 0
    return [
        (
            "Run the search again, from the same data and in an empty database",
            f"hpo run {file} --trials {trials}",
        ),
        ("Write the result as JSON", f"hpo export {file}"),
        ("Make this page again", f"hpo report {file}"),
    ]
