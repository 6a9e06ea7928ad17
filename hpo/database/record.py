"""Everything that hpo stores by key: user attributes of studies and trials, with typed readers.

Existing databases depend on the stored names: the constants may be renamed, the strings never.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from optuna import Study
    from optuna.trial import FrozenTrial, Trial

# --- attributes of a study --------------------------------------------------------------------------------------------

IDENTITY = "hpo:identity"
"""What the study was started with: its definition, and hashes of data, folds, encoders and code version."""
BASELINES = "hpo:floors"
"""Scores of the baselines on the study's folds."""
REQUESTED = "hpo:requested"
"""The largest number of trials ever requested."""
ENSEMBLE = "hpo:ensemble"
"""What is concluded from the finished trials: the ensemble's members and value, and the best single trial."""
CONFIRMING = "hpo:confirming"
"""Name of the study whose trials confirm the result; the latest one, if trials were added later."""
CONFIRMED = "hpo:confirmed"
"""Scores on fresh splits, and the winner."""
PLAN = "hpo:plan"
"""Of a study that confirms another one: which trials are trained again, on how many splits."""
LOOKS = "hpo:looks"
"""Every look at the hold-out, `[{id, time, model, metric, value}]`; `model` is the checksum of a fitted model."""
NESTED = "hpo:nested"
"""Scores of the whole procedure in a nested cross-validation; of the latest one, if there were several."""
OUTER_FOLD = "hpo:outer_fold"
"""Of a child study of a nested cross-validation: what its result scores on its outer fold."""

READ_BY_LIST = (IDENTITY, REQUESTED, ENSEMBLE, CONFIRMING, CONFIRMED, PLAN, NESTED)
"""What is read of every study when all are listed."""

# --- attributes of a trial --------------------------------------------------------------------------------------------

CONFIG = "hpo:config"
"""The resolved configuration: model, training and loss, without ranges."""
SEED = "hpo:seed"
"""Seed of the trial's weights, batches and dropout; its value can be rebuilt from this and the configuration."""
CV = "hpo:cv"
"""Summary of a complete trial's cross-validation, every number at its best epoch; `seed` is the trial's seed."""
CURVES = "hpo:curves"
"""Every measured curve, `{name: [folds][epochs]}`."""
OUTCOME = "hpo:outcome"
"""`INFEASIBLE` for a failed trial that counts as finished."""
INFEASIBLE = "infeasible"
REASON = "hpo:reason"
"""Why a trial is infeasible, in a sentence."""
ATTEMPTS = "hpo:attempts"
"""How many workers started the trial, if more than one."""

PRUNED = "hpo:pruned"
"""What the pruning rule compared when it pruned the trial: `folds`, `value`, `threshold`, `peers`, `stage_ended`, as in
`running.pruning.Judged`."""

FIXED = "fixed_params"
"""Optuna's own name, among the system attributes: the parameters that a queued trial is started with."""
CONFIRM = "hpo:confirm"
"""In a study that confirms another one: which of its trials (or the baselines), split, round, number of epochs."""


def identity(study: Study) -> dict[str, Any]:
    """What the study was started with. Raises `KeyError` for a study that hpo did not create."""
    stored: dict[str, Any] = study.user_attrs[IDENTITY]
    return stored


def metric(study: Study) -> str:
    """Name of the metric that the study optimizes."""
    return str(identity(study)["definition"]["search"]["metric"])


def baselines(study: Study) -> dict[str, Any] | None:
    """Scores of the baselines by name, None until they have been measured."""
    stored: dict[str, Any] | None = study.user_attrs.get(BASELINES)
    return stored


def baseline_names(scores: Mapping[str, Any]) -> list[str]:
    """The baselines that are scored on every fold, by the name of their mean: NAME beside NAME_folds."""
    return [name.removesuffix("_folds") for name in scores if name.endswith("_folds")]


BASELINE_NAMES = {"retrieval": "retrieval", "linear": "linear", "zero_shot": "zero-shot", "chance": "chance"}
"""What the stored baselines are called, in the order in which they are shown."""


def candidate_text(name: str) -> str:
    """A stored candidate in a sentence: `the ensemble`, `trial 30`, `the retrieval baseline`."""
    if name.isdecimal():
        return f"trial {name}"
    kinds = {"ensemble": "the ensemble", "default": "the default configuration", "chance": "chance"}
    return kinds.get(name, f"the {BASELINE_NAMES.get(name, name)} baseline")


def higher_is_better(study: Study) -> bool:
    """Whether the study maximizes its metric."""
    from optuna.study import StudyDirection

    return study.direction == StudyDirection.MAXIMIZE


def best_first(study: Study, trials: Iterable[FrozenTrial]) -> list[FrozenTrial]:
    """The trials that were scored on all folds, best first; of equal ones the first."""
    from optuna.trial import TrialState

    complete = [trial for trial in trials if trial.state == TrialState.COMPLETE and cv(trial) is not None]
    sign = -1.0 if higher_is_better(study) else 1.0
    return sorted(complete, key=lambda trial: (sign * (trial.value or 0.0), trial.number))


def requested(study: Study) -> int | None:
    """The largest number of trials ever requested."""
    stored: int | None = study.user_attrs.get(REQUESTED)
    return stored


def ensemble(study: Study) -> dict[str, Any] | None:
    """What is concluded from the finished trials, None until the budget is spent."""
    stored: dict[str, Any] | None = study.user_attrs.get(ENSEMBLE)
    return stored


def confirming(study: Study) -> str | None:
    """Name of the study that confirms this one, None until it is created."""
    stored: str | None = study.user_attrs.get(CONFIRMING)
    return stored


def confirmed(study: Study) -> dict[str, Any] | None:
    """Scores on fresh splits, and the winner; None until they are known."""
    stored: dict[str, Any] | None = study.user_attrs.get(CONFIRMED)
    return stored


def looks(study: Study) -> list[dict[str, Any]]:
    """Every look at the study's hold-out, the first one first."""
    stored: list[dict[str, Any]] = study.user_attrs.get(LOOKS, [])
    return stored


def nested(study: Study) -> dict[str, Any] | None:
    """Scores of the whole procedure in a nested cross-validation; None until they are known."""
    stored: dict[str, Any] | None = study.user_attrs.get(NESTED)
    return stored


def outer_fold(study: Study) -> dict[str, Any] | None:
    """What the result of a child study scores on its outer fold; None until it is known."""
    stored: dict[str, Any] | None = study.user_attrs.get(OUTER_FOLD)
    return stored


def confirm(trial: FrozenTrial | Trial) -> dict[str, Any] | None:
    """What the trial of a confirming study trains again; None for a trial of a search."""
    stored: dict[str, Any] | None = trial.user_attrs.get(CONFIRM)
    return stored


def cv(trial: FrozenTrial) -> dict[str, Any] | None:
    """Summary of the trial's cross-validation, None unless the trial is complete."""
    stored: dict[str, Any] | None = trial.user_attrs.get(CV)
    return stored


def config(trial: FrozenTrial) -> dict[str, Any]:
    """The resolved configuration that the trial trained."""
    stored: dict[str, Any] = trial.user_attrs[CONFIG]
    return stored


def reason(trial: FrozenTrial) -> str | None:
    """Why the trial is infeasible, None if it is not."""
    stored: str | None = trial.user_attrs.get(REASON)
    return stored


def attempts(trial: FrozenTrial) -> int:
    """How many workers started the trial."""
    return int(trial.user_attrs.get(ATTEMPTS, 1))


def pruned(trial: FrozenTrial) -> dict[str, Any] | None:
    """What the pruning rule compared; None if the trial is not pruned, or by a version that did not store it."""
    stored: dict[str, Any] | None = trial.user_attrs.get(PRUNED)
    return stored
