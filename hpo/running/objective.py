"""Runs one trial: the only module in which core's training events meet an Optuna trial."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import closing
from dataclasses import asdict
from typing import Any

import torch
from optuna.trial import TrialState

from sparse_evidence.core.config import CandidateConfig
from sparse_evidence.core.errors import NonFiniteLossError, SplitError
from sparse_evidence.core.metrics import METRICS
from sparse_evidence.core.training.crossval import CrossValidation

from ..database import predictions, record
from ..database.optuna_storage import known_trial
from ..database.record import BASELINES, CONFIG, CURVES, CV, PRUNED, SEED
from ..study import space
from .artifacts import Checkpoints
from .claims import Claim
from .pruning import Judged, SameFoldsRule
from .task import StudyTask

logger = logging.getLogger(__name__)


class TrialOutOfMemoryError(Exception):
    """The trial ran out of memory and was recorded as infeasible."""


def run(
    claim: Claim, task: StudyTask, checkpoints: Checkpoints, *, device: str, stop: Callable[[], bool]
) -> TrialState | None:
    """Cross-validate the claimed trial, from its checkpoint if it has one, and record its end.

    Args:
        claim: the trial, owned by this worker until its end is recorded.
        task: the study's data.
        checkpoints: saves and restores unfinished trials.
        device: the torch device to train on.
        stop: called after every epoch; once it returns True, the trial is checkpointed and released.

    Returns:
        COMPLETE, PRUNED or FAIL (infeasible: it diverged), or None if the trial was released.

    Raises:
        ClaimLostError: another worker took the trial over.
        TrialOutOfMemoryError: the trial was recorded as infeasible, and this process should exit to free its memory.
    """
    if (entry := record.confirm(claim.trial)) is not None and "trial" not in entry:
        return _baselines(claim, task, entry["split"])
    if (wrong := _queued_wrongly(claim, task)) is not None:
        return _infeasible(claim, wrong)
    with claim.transaction():
        candidate = space.suggest(task.definition, claim.trial)
        config = space.to_dict(candidate)
        claim.trial.set_user_attr(CONFIG, config)
        claim.trial.set_user_attr(SEED, _seed(claim, task))
    try:
        rule = SameFoldsRule(task.definition, claim.trial, claim.trials_when_claimed)
        cv = checkpoints.restore(claim, config, lambda: _cross_validation(claim, task, candidate, device))
        with closing(cv.epochs()) as events:
            for event in events:
                claim.progress(event.stage, event.epoch)
                # If a previous worker already reported this stage, do not re-evaluate the pruning rule: the trial
                # passed it, and the worker died before it could checkpoint that.
                if not claim.reported(cv.folds_begun):
                    if rule.should_prune(cv.folds_begun, cv.projected_value(), stage_ended=event.stage_ended):
                        return _prune(claim, cv, rule.judged)
                    if event.stage_ended and cv.folds_begun < cv.folds.count:
                        _report(claim, cv)
                if stop():
                    checkpoints.save(claim, config, cv)
                    claim.release()
                    return None
                checkpoints.epoch_ended(claim, config, cv)
    except NonFiniteLossError as error:
        return _infeasible(claim, f"diverged: {error}")
    except SplitError as error:
        return _infeasible(claim, f"no fresh split: {error}")
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise _out_of_memory(claim, error) from error
    return _complete(claim, cv)


def _queued_wrongly(claim: Claim, task: StudyTask) -> str | None:
    """Why a trial that somebody queued by hand cannot be trained; logs a warning for parameters that do not exist."""
    queued = known_trial(claim.trial).system_attrs.get(record.FIXED)
    if not queued or record.confirm(claim.trial) is not None:
        return None
    unknown, wrong = space.queued_mistakes(task.definition, queued)
    if unknown:
        logger.warning(
            "Trial %d was queued with unknown parameters, which are ignored: %s.", claim.trial.number,
            "; ".join(unknown),
        )  # fmt: skip
    return f"queued wrongly: {'; '.join(wrong)}" if wrong else None


def _cross_validation(claim: Claim, task: StudyTask, candidate: CandidateConfig, device: str) -> CrossValidation:
    """The trial, untrained: on the study's folds, or to confirm it on a fresh split, all folds in one stage."""
    entry = record.confirm(claim.trial)
    if entry is None:
        return task.cross_validation(candidate, trial=claim.trial.number, device=device)
    fresh = task.on_split(entry["split"])
    return fresh.confirmation(candidate, seed=_seed(claim, task), epochs=entry["epochs"], device=device)


def _seed(claim: Claim, task: StudyTask) -> int:
    entry = record.confirm(claim.trial)
    return task.seed(claim.trial.number) if entry is None else task.confirm_seed(entry["split"], entry["trial"])


def _baselines(claim: Claim, task: StudyTask, split: int) -> TrialState:
    """Score the baselines on a fresh split; the trial's value is the best of them.

    Its predictions are those of all baselines side by side, `[posts, baselines × criteria]`.
    """
    try:
        scores, logits = task.on_split(split).scored_baselines()
    except SplitError as error:
        return _infeasible(claim, f"no fresh split: {error}")
    except MemoryError as error:
        raise _out_of_memory(claim, error) from error
    best = max if METRICS[task.definition.search.metric].higher_is_better else min
    names = record.baseline_names(scores)
    value = best(scores[name] for name in names)
    together = predictions.side_by_side(logits, names)
    claim.finish(TrialState.COMPLETE, value, attributes={BASELINES: scores}, logits=together)
    return TrialState.COMPLETE


def _report(claim: Claim, cv: CrossValidation) -> None:
    """Report a stage that has just ended: the trial continues, and other trials are compared with it.

    The last stage is reported with the trial's end: no trial is pruned by it, and the last report is then the value.
    """
    claim.trial.report(cv.value_so_far(), step=cv.folds_begun)


def _prune(claim: Claim, cv: CrossValidation, judged: Judged | None) -> TrialState:
    assert judged is not None, "a trial is pruned by a comparison"
    report = {cv.folds_begun: cv.value_so_far()}
    attributes = {CURVES: cv.curves(), PRUNED: asdict(judged)}
    claim.finish(TrialState.PRUNED, attributes=attributes, reports=report, logits=cv.predictions())
    return TrialState.PRUNED


def _complete(claim: Claim, cv: CrossValidation) -> TrialState:
    summary = _summary(cv)
    # A trial that confirms is scored only once, so it has no curves.
    attributes = {CV: summary} if cv.fixed_epochs else {CURVES: cv.curves(), CV: summary}
    report = {cv.folds.count: summary["mean"]}
    claim.finish(TrialState.COMPLETE, summary["mean"], attributes=attributes, reports=report, logits=cv.predictions())
    return TrialState.COMPLETE


def _infeasible(claim: Claim, reason: str) -> TrialState:
    claim.finish(TrialState.FAIL, reason=reason)
    return TrialState.FAIL


def _out_of_memory(claim: Claim, error: BaseException) -> TrialOutOfMemoryError:
    _infeasible(claim, f"out of memory: {error}")
    return TrialOutOfMemoryError(f"Trial {claim.trial.number} ran out of memory and is infeasible.")


def _summary(cv: CrossValidation) -> dict[str, Any]:
    summary = cv.summary()
    report = asdict(summary.report)
    return {
        "seed": cv.seed,
        "mean": summary.value,
        "std": summary.std,
        "folds": list(summary.folds),
        "best_epoch": summary.best_epoch,
        "epochs": summary.epochs,
        "threshold": summary.threshold,
        "pooled": report["pooled"],
        "per_criterion": report["per_criterion"],
    }
