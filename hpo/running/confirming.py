"""Confirming a study: its leaders, its ensemble's members, its default configuration and the baselines on fresh splits.

The search scores every configuration on the same folds and reports the luckiest. So when its trials are finished, they
are confirmed by a *child study* in the same database, whose trials run through the same claims. One of its trials
trains one configuration on one fresh split: other folds of the same posts, other weights, and the number of epochs that
was best in the search, so that nothing is chosen on the folds that are scored. A split is the same for all
configurations, so their scores can be compared in pairs.

The splits are divided into rounds of successive halving: after each, the better half of the leaders goes on. The
ensemble's members, the default and the baselines are scored on every split. A round is queued, in one transaction under
the child study's lock, by the first worker that finds the previous one finished; it follows from that round's results
alone, whichever worker that is.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import count
from statistics import fmean as mean
from typing import TYPE_CHECKING, Any, Self

import optuna
from optuna.trial import FrozenTrial, TrialState

from ..database import record, trial_rows
from ..database.connection import engine_of
from ..database.optuna_storage import storage_of, study_id, unwrap
from ..database.record import CONFIRM, CONFIRMING, CURVES, OUTCOME, PLAN
from ..database.retry import retry
from ..database.studies import load_study, open_study
from ..database.trial_rows import QueuedTrial
from ..errors import RefusedError
from .sampler import make_sampler

if TYPE_CHECKING:
    from ..database.studies import Direction
    from ..study.config import ConfirmConfig

Entry = dict[str, Any]
"""The attribute CONFIRM of a trial: `trial` and `epochs`, or `baselines`; `split` and `round`."""


@dataclass(frozen=True)
class Plan:
    """What is confirmed; stored with the child study when it is created."""

    finished: int
    """Trials of the search that were finished."""
    leaders: tuple[int, ...]
    """The best trials, best first."""
    members: tuple[int, ...]
    """Trials whose predictions the ensemble averages; one that is listed more often weighs more."""
    default: int | None
    """The trial with the default configuration; None if it is infeasible."""
    splits: int
    epochs: Mapping[str, int]
    """By trial number, for how many epochs it is trained."""

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> Self:
        """Return the plan that `asdict` wrote."""
        return cls(**{**stored, "leaders": tuple(stored["leaders"]), "members": tuple(stored["members"])})


@dataclass(frozen=True)
class Progress:
    """How far confirming is."""

    study: optuna.Study
    """The child study."""
    finished: int
    planned: int
    """Trials of all rounds; fewer if a configuration drops out."""


@dataclass(frozen=True, eq=False)
class Confirming:
    """A study and the child study that confirms it."""

    parent: optuna.Study
    child: optuna.Study
    plan: Plan

    def advance(self) -> bool:
        """Queue the next round if all trials of the previous one are finished; False after the last round."""
        return retry(self._advance, unwrap(self.child).retry_seconds)

    def _advance(self) -> bool:
        trials = self.child.get_trials(deepcopy=False)
        if not all(trial.state.is_finished() for trial in trials):
            return True
        entries = next_round(self.plan, trials, maximize=record.higher_is_better(self.child))
        queue = list(queued(self.parent, entries))
        study = study_id(self.child)
        is_queued = trial_rows.enqueue_if_complete(engine_of(self.child), study, len(trials), queue)
        return bool(entries) or not is_queued  # or another worker has queued the round

    def progress(self) -> Progress:
        """How far confirming is."""
        trials = self.child.get_trials(deepcopy=False)
        finished = sum(trial.state.is_finished() for trial in trials)
        return Progress(self.child, finished, planned(self.plan, trials, maximize=record.higher_is_better(self.child)))


# --- the child study --------------------------------------------------------------------------------------------------


def open_confirming(parent: optuna.Study, plan: Plan) -> Confirming:
    """Create the study that confirms `parent`, with its first round, or open it.

    One that another study of the same name has left is not used; the new one then has a number in its name.
    """
    base = child_name(parent.study_name, plan.finished, len(plan.leaders), plan.splits)
    for number in count(1):
        name = base if number == 1 else f"{base}-{number}"
        try:
            child = _open_child(parent, name, plan)
            break
        except RefusedError:  # left by a study of the same name, which was deleted
            continue
    if record.confirming(parent) != name:
        parent.set_user_attr(CONFIRMING, name)
    return Confirming(parent, child, Plan.from_json(child.user_attrs[PLAN]))


def _open_child(parent: optuna.Study, name: str, plan: Plan) -> optuna.Study:
    """Create the child study, or open it if it confirms the same trials of the same study, else `RefusedError`."""
    identity = record.identity(parent)
    parameters = {trial.number: trial.params for trial in parent.get_trials(deepcopy=False)}
    confirmed = [parameters[int(number)] for number in plan.epochs]
    parts = json.dumps([identity["definition_sha256"], name, asdict(plan), confirmed], sort_keys=True)
    direction: Direction = "maximize" if record.higher_is_better(parent) else "minimize"
    return open_study(
        storage_of(parent),
        name,
        direction=direction,
        identity={**identity, "definition_sha256": hashlib.sha256(parts.encode()).hexdigest()},
        sampler=make_sampler("random", 0),  # draws nothing: all parameters are fixed
        queue=list(queued(parent, next_round(plan, [], maximize=direction == "maximize"))),
        attributes={PLAN: asdict(plan)},
    )


def load_confirming(parent: optuna.Study) -> Confirming | None:
    """Return the study that confirms `parent`, for reading; None until a worker has created it."""
    name = record.confirming(parent)
    if name is None:
        return None
    child = load_study(storage_of(parent), name)
    return Confirming(parent, child, Plan.from_json(child.user_attrs[PLAN]))


def progress(parent: optuna.Study, first: int | None = None) -> Progress | None:
    """How far confirming the finished trials (or those that were finished first) is; None until it has begun."""
    confirm = load_confirming(parent)
    is_current = confirm is not None and confirm.plan.finished == len(counted(parent, first))
    return confirm.progress() if confirm is not None and is_current else None


def child_name(parent: str, finished: int, leaders: int, splits: int) -> str:
    """Name of the study that confirms `parent`; no study file can have it, because of the slashes.

    It names everything that the plan depends on: with other settings, or when trials have been added, another study.
    """
    return f"{parent}/confirm/{finished}-trials-{leaders}-leaders-{splits}-splits"


def make_plan(parent: optuna.Study, settings: ConfirmConfig, ensemble: Mapping[str, Any]) -> Plan:
    """Plan what is confirmed.

    Args:
        parent: the study.
        settings: the table `[confirm]`.
        ensemble: what was concluded from the finished trials (`record.ENSEMBLE`).
    """
    trials = counted(parent, ensemble["finished"])
    leaders = [trial.number for trial in record.best_first(parent, trials)[: settings.leaders]]
    default = next((trial for trial in trials if trial.number == 0 and trial.state != TrialState.FAIL), None)
    trained = {*leaders, *ensemble["members"], *(() if default is None else (0,))}
    return Plan(
        finished=len(trials),
        leaders=tuple(leaders),
        members=tuple(ensemble["members"]),
        default=None if default is None else 0,
        splits=settings.splits,
        epochs={str(trial.number): best_epoch(parent, trial) for trial in trials if trial.number in trained},
    )


def counted(study: optuna.Study, first: int | None = None) -> list[FrozenTrial]:
    """The trials that count as finished (complete, pruned or infeasible) in order of number.

    With `first`, only so many of them that were finished first: a study may get more trials while it is confirmed.
    """
    finished = [
        trial
        for trial in study.get_trials(deepcopy=False)
        if trial.state.is_finished() and (trial.state != TrialState.FAIL or OUTCOME in trial.user_attrs)
    ]
    by_end = sorted(finished, key=lambda trial: (trial.datetime_complete, trial.number))
    return sorted(by_end[:first], key=lambda trial: trial.number)


def best_epoch(study: optuna.Study, trial: FrozenTrial) -> int:
    """The best epoch of a trial; of a pruned one, on the folds that it trained."""
    if (summary := record.cv(trial)) is not None:
        return int(summary["best_epoch"])
    of_folds = curves(study, trial.number)
    epochs = max(map(len, of_folds), default=0)
    furthest = [curve for curve in of_folds if len(curve) == epochs]  # the folds of the stage that trained longest
    means = [mean(curve[epoch] for curve in furthest) for epoch in range(epochs)]
    if not means:
        return 1
    return 1 + means.index(max(means) if record.higher_is_better(study) else min(means))


def curves(study: optuna.Study, number: int) -> list[list[float]]:
    """The scores of every epoch `[folds][epochs]`, which a worker's storage does not read."""
    storage = unwrap(study)
    trial_id = storage.get_trial_id_from_study_id_trial_number(study_id(study), number)

    def read() -> FrozenTrial | None:
        with storage.engine.connect() as connection:
            return trial_rows.select_trial(connection, trial_id)

    trial = retry(read, storage.retry_seconds)
    scores: list[list[float]] = trial.user_attrs.get(CURVES, {}).get("scores", []) if trial else []
    return [curve for curve in scores if curve]


# --- rounds -----------------------------------------------------------------------------------------------------------


def rounds(leaders: int, splits: int) -> list[tuple[int, range]]:
    """For every round, how many leaders are trained on which splits; the last two leaders get all remaining splits."""
    planned: list[tuple[int, range]] = []
    split = 0
    while leaders > 2 and split < splits - 1:
        planned.append((leaders, range(split, split + 1)))
        leaders, split = math.ceil(leaders / 2), split + 1
    return [*planned, (leaders, range(split, splits))]


def next_round(plan: Plan, trials: Sequence[FrozenTrial], *, maximize: bool) -> list[Entry]:
    """What the next round trains, given the child study's finished trials; empty after the last round."""
    schedule = rounds(len(plan.leaders), plan.splits)
    number = 1 + max((entry["round"] for entry, _ in _entries(trials)), default=-1)
    if number >= len(schedule):
        return []
    dropped = dropped_out(trials)
    survivors = leaders_left(plan, trials, number, maximize=maximize)
    default = () if plan.default is None else (plan.default,)
    chosen = [trial for trial in dict.fromkeys((*survivors, *plan.members, *default)) if trial not in dropped]
    return [
        {**what, "split": split, "round": number}
        for split in schedule[number][1]
        for what in [*({"trial": trial, "epochs": plan.epochs[str(trial)]} for trial in chosen), {"baselines": True}]
    ]


def leaders_left(plan: Plan, trials: Sequence[FrozenTrial], number: int, *, maximize: bool) -> tuple[int, ...]:
    """The leaders that round `number` trains, best first, by their means over the splits of the rounds before."""
    left = plan.leaders
    sign = -1.0 if maximize else 1.0
    for earlier, (kept, _) in enumerate(rounds(len(plan.leaders), plan.splits)[1 : number + 1]):
        so_far = [trial for entry, trial in _entries(trials) if entry["round"] <= earlier]
        scores, dropped = values_by_split(so_far), dropped_out(so_far)
        means = {leader: mean(scores[leader].values()) for leader in left if leader not in dropped}
        left = tuple(sorted(means, key=lambda leader: (sign * means[leader], plan.leaders.index(leader)))[:kept])
    return left


def values_by_split(trials: Sequence[FrozenTrial]) -> dict[int, dict[int, float]]:
    """By number of a search's trial, its value on every split on which it has been trained."""
    values: dict[int, dict[int, float]] = {}
    for entry, trial in _entries(trials):
        if "trial" in entry and trial.state == TrialState.COMPLETE and trial.value is not None:
            values.setdefault(entry["trial"], {})[entry["split"]] = trial.value
    return values


def dropped_out(trials: Sequence[FrozenTrial]) -> dict[int, str]:
    """By number, the trials of the search that could not be trained on a fresh split, and why."""
    return {
        entry["trial"]: record.reason(trial) or "failed"
        for entry, trial in _entries(trials)
        if "trial" in entry and trial.state.is_finished() and trial.state != TrialState.COMPLETE
    }


def planned(plan: Plan, trials: Sequence[FrozenTrial], *, maximize: bool) -> int:
    """How many trials the child study will have: those that are queued, and those of the rounds to come.

    Which leaders will be left is not known yet: the best so far are assumed.
    """
    schedule = rounds(len(plan.leaders), plan.splits)
    current = max((entry["round"] for entry, _ in _entries(trials)), default=-1)
    leaders = leaders_left(plan, trials, max(current, 0), maximize=maximize)
    others = {*plan.members, *(() if plan.default is None else (plan.default,))}
    dropped = dropped_out(trials)
    future = sum(
        len(splits) * (1 + len(({*leaders[:count]} | others) - set(dropped)))
        for count, splits in schedule[current + 1 :]
    )
    return len(trials) + future


def queued(parent: optuna.Study, entries: Sequence[Entry]) -> Iterator[QueuedTrial]:
    """The trials of a round, with the parameters of the search's trials."""
    parameters = {trial.number: trial.params for trial in parent.get_trials(deepcopy=False)} if entries else {}
    for entry in entries:
        yield QueuedTrial(parameters.get(entry.get("trial", -1), {}), {CONFIRM: entry})


def _entries(trials: Sequence[FrozenTrial]) -> Iterator[tuple[Entry, FrozenTrial]]:
    for trial in trials:
        if (entry := record.confirm(trial)) is not None:
            yield entry, trial
