"""What is proposed depends on the study's seed and its finished trials, not on restarts or processes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import optuna
import pytest
from claim_tools import claimed, join_study
from optuna.trial import TrialState

from sparse_evidence.hpo.running.claims import Claims
from sparse_evidence.hpo.running.sampler import make_sampler, short_seed


def proposals(claims: Claims, number: int) -> list[dict[str, Any]]:
    """A conditional space, scored by a formula."""
    proposed = []
    for _ in range(number):
        claim = claimed(claims)
        params: dict[str, Any] = {
            "x": claim.trial.suggest_float("x", 0, 1),
            "l": claim.trial.suggest_categorical("l", ["a", "b"]),
        }
        if params["l"] == "a":
            params["a"] = claim.trial.suggest_float("a", 1, 10, log=True)
        claim.finish(TrialState.COMPLETE, params["x"])
        proposed.append(params)
    return proposed


@pytest.mark.parametrize("name", ["tpe", "random"])
def test_the_same_seed_makes_the_same_proposals_with_and_without_a_restart(
    name: Any, fresh_database: Callable[[], str]
) -> None:
    runs = []
    for parts in ([14], [5, 9]):  # in one go, and with a restart
        url = fresh_database()
        run = []
        for trials in parts:
            worker = join_study(url, sampler=make_sampler(name, 3))
            run += proposals(worker, trials)
            worker.engine.dispose()
        runs.append(run)
    assert runs[0] == runs[1]
    assert len({params["x"] for params in runs[0]}) == 14


def test_proposals_equal_those_of_optunas_sampler_with_the_trials_seed(claims: Any) -> None:
    mine, other = (claims(sampler=make_sampler("tpe", 3)) for _ in range(2))
    proposals(mine, 14)
    suggested(claimed(other).trial)  # running trials of other workers count, too
    for _ in range(3):
        history = mine.study.get_trials()
        claim = claimed(mine)
        expected = optuna.samplers.TPESampler(multivariate=True, seed=short_seed(3, claim.trial.number))
        plain = optuna.create_study(direction="maximize", sampler=expected)
        plain.add_trials(history)
        x, kind = suggested(plain.ask())
        assert suggested(claim.trial) == (x, kind)
        claim.finish(TrialState.PRUNED if x > 0.5 else TrialState.COMPLETE, None if x > 0.5 else x)


def suggested(trial: optuna.Trial) -> tuple[float, str]:
    return trial.suggest_float("x", 0, 1), trial.suggest_categorical("l", ["a", "b"])


def test_values_drawn_before_a_kill_do_not_change_values_drawn_after(claims: Any) -> None:
    whole, resumed = (claims(sampler=make_sampler("random", 7)) for _ in range(2))
    trial = claimed(whole).trial
    x, y = trial.suggest_float("x", 0, 1), trial.suggest_float("y", 0, 1)
    assert x != y
    study = resumed.study
    frozen = study.trials[trial.number]
    study.sampler.before_trial(study, frozen)
    distribution = optuna.distributions.FloatDistribution(0, 1)
    assert study.sampler.sample_independent(study, frozen, "y", distribution) == y
