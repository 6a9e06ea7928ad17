"""The same-folds rule as a truth table."""

import json
import math

import numpy as np
import optuna
import pytest

from benchmarks.stages import Outcome, by_median
from sparse_evidence.core.training.stopping import is_stale
from sparse_evidence.hpo.running.pruning import SameFolds, needed
from sparse_evidence.hpo.study.config import PrunerConfig
from sparse_evidence.hpo.study.definition import load

PEERS = [0.1, 0.2, 0.3, 0.4, 0.5]
NOTHING, NOTHING_LOW = -math.inf, math.inf


@pytest.mark.parametrize(
    ("peers", "percentile", "startup", "higher", "expected"),
    [
        # the median, a quarter, three quarters go on
        (PEERS, 50, 5, True, 0.3),
        (PEERS, 25, 5, True, 0.4),
        (PEERS, 75, 5, True, 0.2),
        # lower is better: the mirror image
        (PEERS, 50, 5, False, 0.3),
        (PEERS, 25, 5, False, 0.2),
        # too few peers to compare with
        (PEERS, 50, 6, True, NOTHING),
        (PEERS[:4], 50, 5, False, NOTHING_LOW),
        ([], 50, 0, True, NOTHING),
        ([0.5], 50, 0, True, 0.5),
        ([0.5], 50, 1, True, 0.5),
        # equals go on together
        ([0.3] * 9, 50, 5, True, 0.3),
        ([0.3] * 9, 1, 5, True, 0.3),
        # what is not defined is no peer
        ([*PEERS[:4], math.nan], 50, 5, True, NOTHING),
        ([*PEERS, math.nan], 50, 5, True, 0.3),
    ],
)
def test_what_is_needed(peers, percentile, startup, higher, expected):
    pruner = PrunerConfig(percentile=percentile, startup_trials=startup)
    assert needed(peers, pruner, higher_is_better=higher) == pytest.approx(expected)


# ---- one trial's decisions, on Optuna's own trials --------------------------------------------------------------


def rule(folder, peers, metric="average_precision", mine=(), **pruner):
    """The rule of the last trial of a study whose other trials reported `peers` at one fold, and two folds exist."""
    given = {"percentile": 50} | pruner
    words = ", ".join(f"{key} = {json.dumps(value)}" for key, value in given.items())
    path = folder / "s.toml"
    path.write_text(STUDY.format(metric=metric, pruner=words))
    study = optuna.create_study()
    for value in peers:
        study.ask().report(value, 1)
    trial = study.ask()
    for value in mine:
        trial.report(value, 1)
    return SameFolds(load(path, environ={}), trial, study.get_trials())


STUDY = """
[data]
source = "synthetic"
[split]
folds = 2
[search]
metric = "{metric}"
pruner = {{ {pruner} }}
[model]
name = "linear"
"""


@pytest.mark.parametrize(
    ("projected", "folds", "stage_ended", "given", "expected"),
    [
        (0.2, 1, False, {}, True),
        (0.2, 1, True, {}, True),
        (0.3, 1, True, {}, False),  # just enough
        (0.4, 1, False, {}, False),
        (0.2, 2, True, {}, False),  # the last stage
        (0.2, 2, False, {}, False),
        (math.nan, 1, True, {}, False),  # undefined: not by accident
        (math.nan, 1, False, {}, False),
        (0.2, 1, False, {"within_stages": False}, False),
        (0.2, 1, True, {"within_stages": False}, True),
        (0.2, 1, True, {"name": "none"}, False),
        (0.2, 1, True, {"startup_trials": 6}, False),
        (math.inf, 1, False, {}, False),
        # lower is better
        (0.4, 1, False, {"metric": "brier"}, True),
        (0.3, 1, True, {"metric": "brier"}, False),
        (0.2, 1, True, {"metric": "brier"}, False),
        (-math.inf, 1, False, {"metric": "brier"}, False),
        # its own earlier report is none of the others'
        (0.3, 1, True, {"mine": [0.9]}, False),
    ],
)
def test_what_a_trial_does(projected, folds, stage_ended, given, expected, tmp_path):
    assert rule(tmp_path, PEERS, **given).should_prune(folds, projected, stage_ended=stage_ended) is expected


# ---- what it is compared with -----------------------------------------------------------------------------------


def test_the_benchmarks_replay_of_medianpruner_is_medianpruner():
    curves = np.random.default_rng(0).normal(size=(30, 3, 9)).cumsum(2)
    trained = 0

    def objective(trial):
        nonlocal trained
        values = []
        for fold, scores in enumerate(curves[trial.number]):
            for epoch, value in enumerate(scores):
                trained += 1
                trial.report(value, fold * 9 + epoch)
                if trial.should_prune():
                    raise optuna.TrialPruned
                if is_stale(scores[: epoch + 1].tolist(), 2):
                    break
            values.append(max(scores[: epoch + 1]))
        return float(np.mean(values))

    study = optuna.create_study(direction="maximize", pruner=optuna.pruners.MedianPruner())
    study.optimize(objective, n_trials=30)
    complete = [trial for trial in study.trials if trial.state == optuna.trial.TrialState.COMPLETE]
    assert 5 < len(complete) < 30
    expected = Outcome(trained, len(complete), study.best_trial.number, study.best_value)
    assert by_median(curves, range(30), patience=2) == expected
