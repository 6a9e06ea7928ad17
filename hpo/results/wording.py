"""Numbers, durations and names as people read them, in tables, in the live view and in sentences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sparse_evidence.core.metrics import METRICS

from ..database.record import BASELINE_NAMES, candidate_text

# --- numbers ----------------------------------------------------------------------------------------------------------


def number(value: float | None) -> str:
    """Four decimals, or a dash for an undefined value."""
    return "–" if value is None else f"{value:.4f}"


def short(value: float | None) -> str:
    """Three decimals, as many as beside an interval mean anything, or a dash for an undefined value."""
    return "–" if value is None else f"{value:.3f}"


def interval_text(interval: Sequence[float] | None) -> str:
    """`0.480 to 0.550`, or `no interval`."""
    return "no interval" if interval is None else f"{short(interval[0])} to {short(interval[1])}"


def estimate_text(value: float, interval: Sequence[float] | None) -> str:
    """`0.519 (95 % interval 0.480 to 0.550)`."""
    return f"{short(value)} ({'' if interval is None else '95 % interval '}{interval_text(interval)})"


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


def best_text(value: float | None, trial: int, model: str | None) -> str:
    """`0.5437 (trial 26, instance)`."""
    return f"{number(value)} (trial {trial}{'' if model is None else f', {model}'})"


def position_text(stage: int, epoch: int) -> str:
    """`stage 1, epoch 4` of a running trial; `just claimed` as long as no finished epoch is known of.

    Args:
        stage: counted from 0.
        epoch: counted from 1; 0: none.
    """
    return f"stage {stage + 1}, epoch {epoch}" if epoch else "just claimed"


def count_text(count: int, noun: str, plural: str | None = None) -> str:
    """`1 trial`, `2 trials`; the plural of a noun that is not regular is given, too."""
    return f"{count:,} {noun if count == 1 else plural or f'{noun}s'}"


def setting_text(value: object) -> str:
    """A parameter's value."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def texts_text(texts: int, computed: int) -> str:
    """`1,814 texts (all embeddings cached)`: how many embeddings were computed just now."""
    if not computed:
        return f"{texts:,} texts (all embeddings cached)"
    cached = texts - computed
    return f"{texts:,} texts ({computed:,} embedded now, {cached:,} cached or repeated)"


def confirming_text(finished: int, planned: int) -> str:
    """`confirming: 23 of 44 trained`."""
    return f"confirming: {finished} of {planned} trained"


SCORE_KINDS = {
    "confirmed": "confirmed: measured on fresh splits",
    "corrected": "corrected for selection, on the folds of the search; not confirmed",
    "search": "on the folds of the search",
}
"""What kind of estimate the score of a fitted model is; the model's `info` has the keys."""


def outer_fold_text(metric: str, fold: Mapping[str, Any]) -> str:
    """`average precision 0.512 by the ensemble, 40 trials finished`: the result of one outer fold."""
    value, winner = short(fold["scores"]["procedure"]["value"]), candidate_text(fold["winner"])
    return f"{metric_text(metric)} {value} by {winner}, {count_text(fold['trials'], 'trial')} finished"


# --- names ------------------------------------------------------------------------------------------------------------


def metric_text(metric: str) -> str:
    """A metric's name in a sentence: `average precision`."""
    return {"auroc": "AUROC", "brier": "Brier score"}.get(metric, metric.replace("_", " "))


def capitalized(sentence: str) -> str:
    """The sentence with its first letter in upper case."""
    return sentence[:1].upper() + sentence[1:]


def ensemble_text(members: Sequence[int], value: float, corrected: Mapping[str, Any] | None) -> str:
    """`ensemble of 7 trials: 0.543 on the folds of the search`, and its corrected value if it is known."""
    honest = f", corrected for selection {estimate_text(**corrected)}" if corrected else ""
    return f"ensemble of {count_text(len(set(members)), 'trial')}: {short(value)} on the folds of the search{honest}"


# --- baselines --------------------------------------------------------------------------------------------------------


def baselines_text(metric: str, baselines: Mapping[str, Any] | None) -> str:
    """`retrieval 0.5010, linear 0.4579, chance 0.2407`: the baselines' scores in the study's metric."""
    if not baselines:
        return "not measured yet"
    return ", ".join(f"{name} {number(score)}" for _, name, score in shown_baselines(metric, baselines))


def shown_baselines(metric: str, baselines: Mapping[str, Any]) -> list[tuple[str, str, float]]:
    """(key, name, score) of every baseline that was measured, in the order in which they are shown."""
    shown = [(key, name, baselines[key]) for key, name in BASELINE_NAMES.items() if key in baselines]
    if "chance" not in baselines and metric == "average_precision" and "mean_prevalence" in baselines:
        shown.append(("mean_prevalence", "prevalence (mean)", baselines["mean_prevalence"]))  # an older database
    return shown


# --- differences ------------------------------------------------------------------------------------------------------


def better_by(metric: str, difference: Mapping[str, Any]) -> tuple[float, list[float] | None]:
    """A stored difference and its interval, turned so that above 0 is better whatever the metric."""
    value, interval = difference["value"], difference["interval"]
    if METRICS[metric].higher_is_better:
        return value, None if interval is None else list(interval)
    return -value, None if interval is None else [-interval[1], -interval[0]]


def gain_text(metric: str, difference: Mapping[str, Any]) -> str:
    """`0.020 (0.007 to 0.032) above the retrieval baseline`; `better than` where lower values are better."""
    value, interval = better_by(metric, difference)
    above, below = ("above", "below") if METRICS[metric].higher_is_better else ("better than", "worse than")
    if value < 0:
        value, interval = -value, None if interval is None else [-interval[1], -interval[0]]
        above = below
    return f"{short(value)} ({interval_text(interval)}) {above} {candidate_text(difference['name'])}"
