"""What is exported as a study's result, why, and what may be claimed of it, from what the study has stored."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sparse_evidence.core.metrics import METRICS

from ..database import record
from ..database.record import BASELINE_NAMES, candidate_text
from .wording import (
    better_by,
    capitalized,
    count_text,
    estimate_text,
    gain_text,
    metric_text,
    short,
)

if TYPE_CHECKING:
    from optuna import Study

NOT_CONFIRMED = "on the folds of the search, corrected for selection; not confirmed"


@dataclass(frozen=True)
class Winner:
    """What is exported as a study's result."""

    name: str | None
    """`ensemble`, `trial`, `default` or a baseline; None if nothing could be trained on fresh splits."""
    reason: str
    """Why it is the result, in a sentence."""
    claim: str
    """What may be claimed of it, in a sentence."""


def current_confirmed(study: Study) -> dict[str, Any] | None:
    """What was confirmed; None if the ensemble was chosen again since, from more trials."""
    stored, ensemble = record.confirmed(study), record.ensemble(study)
    if stored is None or (ensemble is not None and stored["finished"] < ensemble["finished"]):
        return None
    return stored


def fully_scored(confirmed: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """The scores of the candidates that were scored on all fresh splits, by name.

    Args:
        confirmed: from `current_confirmed`.
    """
    return {name: score for name, score in confirmed["scores"].items() if len(score["splits"]) == confirmed["splits"]}


def confirmed_single(metric: str, confirmed: Mapping[str, Any]) -> int | None:
    """Number of the single trial that was best on the fresh splits; None if none was scored on all of them.

    Args:
        metric: a name in `METRICS`.
        confirmed: from `current_confirmed`.
    """
    winner = confirmed["winner"]
    if winner is not None and winner.isdecimal():
        return int(winner)
    sign = 1.0 if METRICS[metric].higher_is_better else -1.0
    means = {int(name): sign * score["mean"] for name, score in fully_scored(confirmed).items() if name.isdecimal()}
    return max(means, key=lambda trial: means[trial], default=None)


def choose_winner(
    metric: str, best: float | None, ensemble: Mapping[str, Any] | None, confirmed: Mapping[str, Any] | None
) -> Winner:
    """The confirmed winner. Without one, the ensemble, or the best baseline where the ensemble is not better.

    Args:
        metric: a name in `METRICS`.
        best: the value of the best trial on the folds of the search.
        ensemble: from `record.ensemble`.
        confirmed: from `current_confirmed`.
    """
    if confirmed is not None:
        winner = confirmed["winner"]
        name = "trial" if winner is not None and winner.isdecimal() else winner
        return Winner(name, confirmed["reason"], _confirmed_claim(metric, ensemble, confirmed))
    if ensemble is None or "corrected" not in ensemble:
        claim = (
            f"Nothing can be claimed yet: {metric_text(metric)} {short(best)} is the best of all trials on the folds "
            "that chose it, neither corrected for that nor confirmed."
        )
        return Winner("trial", "the best single trial, on the folds of the search; not confirmed", claim)
    gain = ensemble["over_baseline"]
    claim = _claim(metric, "ensemble", ensemble["corrected"], gain, NOT_CONFIRMED)
    if gain is not None and better_by(metric, gain)[0] <= 0:
        reason = f"{candidate_text(gain['name'])}: the ensemble is not better, corrected for selection; not confirmed"
        return Winner(gain["name"], reason, claim)
    return Winner("ensemble", "the ensemble, the average of the trials that are best together; not confirmed", claim)


def winner_key(best: Mapping[str, Any]) -> str | None:
    """The winner of a result (`best.json`'s content) as its scores are keyed: a single trial by its number."""
    return str(best["trial"]) if best["winner"] == "trial" else best["winner"]


def gains(best: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The known gains of a result over the best baseline, the others and the default: confirmed, or the ensemble's."""
    source = best["confirmed"] or best["ensemble"] or {}
    found = [source.get("over_baseline"), *source.get("over_others", ()), source.get("over_default")]
    return [gain for gain in found if gain is not None]


def beats_baselines(metric: str, ensemble: Mapping[str, Any] | None, confirmed: Mapping[str, Any]) -> bool:
    """Whether what was confirmed may be said to beat every baseline.

    Args:
        metric: a name in `METRICS`.
        ensemble: from `record.ensemble`.
        confirmed: from `current_confirmed`.
    """
    gain = confirmed["over_baseline"]
    is_searched = confirmed["winner"] is not None and confirmed["winner"] not in BASELINE_NAMES
    return is_searched and gain is not None and _is_clear(metric, gain, doubted=_is_doubted(metric, ensemble))


def _is_clear(metric: str, gain: Mapping[str, Any], *, doubted: bool) -> bool:
    """Whether the whole interval of a gain is above 0, and nothing makes it doubtful."""
    interval = better_by(metric, gain)[1]
    return interval is not None and interval[0] > 0 and not doubted


def _confirmed_claim(metric: str, ensemble: Mapping[str, Any] | None, confirmed: Mapping[str, Any]) -> str:
    winner, where = confirmed["winner"], f"on {count_text(confirmed['splits'], 'fresh split')}"
    if winner is None:
        return f"Nothing can be claimed: {confirmed['reason']}."
    found = confirmed["scores"][winner]
    if winner in BASELINE_NAMES:
        return (
            f"Nothing beats the baselines: {candidate_text(winner)} has {metric_text(metric)} "
            f"{estimate_text(found['mean'], found['interval'])}, {where}, and nothing searched is clearly better."
        )
    score = {"value": found["mean"], "interval": found["interval"]}
    return _claim(metric, winner, score, confirmed["over_baseline"], where, doubted=_is_doubted(metric, ensemble))


def _is_doubted(metric: str, ensemble: Mapping[str, Any] | None) -> bool:
    """Whether what the search chooses without a fold is no better on that fold than the best baseline.

    Fresh splits are splits of the same posts, and the trials that are confirmed were chosen by the labels of these
    posts: what fits their noise fits it on every split. So a gain is not claimed, even if it was confirmed, if it
    vanishes when the posts that score it have no part in the choice.
    """
    gain = None if ensemble is None else ensemble.get("over_baseline")
    return gain is not None and better_by(metric, gain)[0] <= 0


def _claim(
    metric: str,
    name: str,
    score: Mapping[str, Any],
    gain: Mapping[str, Any] | None,
    where: str,
    *,
    doubted: bool = False,
) -> str:
    """The claim: the baselines are beaten only if the whole interval of the gain over the best one is above 0."""
    numbers = f"{metric_text(metric)} {estimate_text(score['value'], score['interval'])}"
    if gain is None:
        return f"Nothing can be said about baselines, none was scored: {candidate_text(name)} has {numbers}, {where}."
    numbers += f", {gain_text(metric, gain)}, {where}."
    value = better_by(metric, gain)[0]
    if _is_clear(metric, gain, doubted=doubted):
        return f"{capitalized(candidate_text(name))} beats every baseline: {numbers}"
    better = "clearly better" if value > 0 else "better"
    if doubted and value > 0:
        numbers = (
            numbers.removesuffix(".") + "; but chosen without the posts that score it, the ensemble is not better."
        )
    return f"Not {better} than every baseline: {candidate_text(name)} has {numbers}"
