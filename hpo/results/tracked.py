"""What a tracking server is told of a study: parameters, metrics, curves and tags as plain values, no post text.

Every value comes from `best.json` or from the trials; `tracking` sends them.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from itertools import zip_longest
from typing import TYPE_CHECKING, Any

from safetensors.numpy import save

from sparse_evidence.core.selection import mean_logits

from ..database import predictions, record
from .tables import candidates, honest
from .winner import gains, winner_key
from .wording import better_by, count_text, metric_text

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from optuna import Study
    from optuna.trial import FrozenTrial

    from .best import BestResult

Curves = dict[str, list[float]]
"""By name, a value for every epoch."""

LONGEST_PARAMETER = 6000
"""Characters that MLflow stores of a parameter."""


def study_key(study: Study) -> str:
    """What identifies a study on a server: a hash of its name, of what it was started with, and of when.

    A study that is started anew is another one, even from the same file; the same study keeps its key when its
    database moves.
    """
    first = study.get_trials(deepcopy=False)[0].datetime_start
    started = None if first is None else first.astimezone(UTC).isoformat()
    parts = json.dumps([study.study_name, record.identity(study), started], sort_keys=True)
    return hashlib.sha256(parts.encode()).hexdigest()


# --- the study --------------------------------------------------------------------------------------------------------


def study_parameters(best: BestResult) -> dict[str, str]:
    """The winner; the configuration of the exported single trial; the members of the ensemble, if there is one."""
    ensemble = best["ensemble"]
    members = {} if ensemble is None else {"ensemble.members": _members_text(ensemble["members"])}
    return _texts({"winner": best["winner"], "trial": best["trial"], **_flat(best["config"]), **members})


def _members_text(members: Sequence[Mapping[str, Any]]) -> str:
    """`29 × 5, 33 × 1`: the members' trials and how often each was picked."""
    return ", ".join(f"{member['trial']} × {member['picks']}" for member in members)


def study_metrics(best: BestResult) -> dict[str, float]:
    """The winner's honest value under the metric's own name, everything that it was compared with, and the gains."""
    metric, searched = best["metric"], "confirmed" if best["confirmed"] is not None else "corrected"
    found: dict[str, Any] = {}
    for name, _, value in candidates(best):
        key = "trial" if name == str(best["trial"]) else "trial_best_in_search" if name.isdecimal() else name
        found |= {f"search/{key}": value}
        found |= _with_interval(f"{searched}/{key}", honest(best, name), intervals=name != "chance")
    found |= _with_interval(metric, winners_value(best))
    for gain in gains(best):
        value, interval = better_by(metric, gain)
        found |= _with_interval(f"gain/{gain['name']}", {"value": value, "interval": interval})
    found |= {f"trials/{state}": count for state, count in best["trials"].items()}
    return _finite(found)


def winners_value(best: BestResult) -> Mapping[str, Any] | None:
    """The value to believe: confirmed, or else corrected; of a baseline that is not confirmed, its score as it is."""
    name = winner_key(best)
    if name is None:
        return None
    floors = best["cv"]["floors"] or {}
    scored = {"value": floors[name], "interval": None} if name in floors else None
    return honest(best, name) or scored


def estimate_kind(best: BestResult) -> str:
    """How the winner's value was estimated, in words."""
    confirmed = best["confirmed"]
    if confirmed is not None:
        return f"confirmed on {count_text(confirmed['splits'], 'fresh split')}"
    return "corrected for selection, not confirmed" if winners_value(best) is not None else "none"


def study_tags(best: BestResult) -> dict[str, str]:
    """Claim, reason and provenance; `mlflow.note.content` is the description that MLflow shows."""
    provenance = best["provenance"]
    note = f"{best['claim']}\n\nWinner: {best['reason']}.\n\n{metric_text(best['metric'])}: {estimate_kind(best)}."
    return {
        "mlflow.note.content": note,
        "hpo.name": best["study"],
        "hpo.claim": best["claim"],
        "hpo.estimate": estimate_kind(best),
        **{f"hpo.{key}": str(provenance[key]) for key in ("definition_sha256", "data_sha256", "folds_sha256", "git")},
    }


def pack_predictions(study: Study, best: BestResult) -> bytes | None:
    """The out-of-fold logits of the exported trial and of the ensemble, as a safetensors file; None if none is stored.

    `trial` and `ensemble` are float32 `[posts, criteria]`, in the order of the study's posts and criteria; NaN for
    posts in no fold. There are no ids, texts or labels in it.

    Raises:
        PredictionsError: stored predictions are damaged.
        StorageError: the database is unreachable.
    """
    ensemble = best["ensemble"]
    members = (
        [] if ensemble is None else [member["trial"] for member in ensemble["members"] for _ in range(member["picks"])]
    )
    stored = predictions.load(study, {best["trial"], *members})
    found: dict[str, npt.NDArray[np.float32]] = {}
    if best["trial"] in stored:
        found["trial"] = stored[best["trial"]]
    if members and set(members) <= set(stored):
        found["ensemble"] = mean_logits(stored, members).astype("float32")
    about = {"study": best["study"], "trial": str(best["trial"]), "data_sha256": best["provenance"]["data_sha256"]}
    return (
        save(found, {**about, "content": "out-of-fold logits [posts, criteria], NaN for posts in no fold"})
        if found
        else None
    )


# --- its trials -------------------------------------------------------------------------------------------------------


def trial_parameters(trial: FrozenTrial) -> dict[str, str]:
    """The configuration that the trial trained; empty if it ended before that was stored."""
    return _texts(_flat(trial.user_attrs.get(record.CONFIG, {})))


def trial_metrics(trial: FrozenTrial, metric: str) -> dict[str, float]:
    """The value of a complete trial; of a pruned one, under another name, that on the folds that it trained."""
    if trial.value is not None:
        return _finite({metric: trial.value})
    last = max(trial.intermediate_values, default=None)
    return {} if last is None else _finite({f"pruned/{metric}": trial.intermediate_values[last]})


def trial_curves(trial: FrozenTrial, metric: str) -> Curves:
    """Mean learning curves over the folds that trained so long, and the score of every fold."""
    stored: Mapping[str, list[list[float]]] = trial.user_attrs.get(record.CURVES, {})
    names = {"scores": metric, "train_loss": "train_loss", "validation_loss": "validation_loss"}
    curves = {f"curve/{names.get(key, key)}": _mean_curve(folds) for key, folds in stored.items() if any(folds)}
    folds = {f"curve/fold_{fold}/{metric}": curve for fold, curve in enumerate(stored.get("scores", [])) if curve}
    return curves | folds


def _mean_curve(folds: Sequence[Sequence[float]]) -> list[float]:
    by_epoch = ([value for value in values if value is not None] for values in zip_longest(*folds))
    return [sum(values) / len(values) for values in by_epoch]


# --- names and numbers ------------------------------------------------------------------------------------------------


def _flat(table: Mapping[str, Any], path: str = "") -> dict[str, Any]:
    """Nested tables as one, with dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in table.items():
        flat |= _flat(value, f"{path}{key}.") if isinstance(value, Mapping) else {f"{path}{key}": value}
    return flat


def _texts(values: Mapping[str, Any]) -> dict[str, str]:
    return {key: str(value)[:LONGEST_PARAMETER] for key, value in values.items()}


def _with_interval(key: str, estimate: Mapping[str, Any] | None, *, intervals: bool = True) -> dict[str, Any]:
    if estimate is None:
        return {}
    low, high = (estimate["interval"] if intervals else None) or (None, None)
    return {key: estimate["value"], f"{key}.low": low, f"{key}.high": high}


def _finite(values: Mapping[str, Any]) -> dict[str, float]:
    """The numbers among the values, under names that MLflow allows."""
    return {
        re.sub(r"[^\w\-. :/]", "_", key, flags=re.ASCII): float(value)
        for key, value in values.items()
        if value is not None and math.isfinite(value)
    }


def milliseconds(moment: datetime | None) -> int | None:
    """A moment as tracking servers count: milliseconds since 1970."""
    return None if moment is None else round(moment.timestamp() * 1000)
