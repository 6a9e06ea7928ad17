"""The same-folds pruning rule as a truth table."""

import json
import math
import time

import optuna
import pytest

from sparse_evidence.hpo.running.pruning import FRESH_SECONDS, SameFoldsRule, pruning_threshold
from sparse_evidence.hpo.study.config import PrunerConfig
from sparse_evidence.hpo.study.definition import load

PEERS = [0.1, 0.2, 0.3, 0.4, 0.5]
NEVER, NEVER_LOWER_IS_BETTER = -math.inf, math.inf


@pytest.mark.parametrize(
    ("peers", "percentile", "startup", "higher", "expected"),
    [
        # the best half, quarter and three quarters are not pruned
        (PEERS, 50, 5, True, 0.3),
        (PEERS, 25, 5, True, 0.4),
        (PEERS, 75, 5, True, 0.2),
        # lower is better: the mirror image
        (PEERS, 50, 5, False, 0.3),
        (PEERS, 25, 5, False, 0.2),
        # too few peers
        (PEERS, 50, 6, True, NEVER),
        (PEERS[:4], 50, 5, False, NEVER_LOWER_IS_BETTER),
        ([], 50, 0, True, NEVER),
        ([0.5], 50, 0, True, 0.5),
        ([0.5], 50, 1, True, 0.5),
        # all peers equal
        ([0.3] * 9, 50, 5, True, 0.3),
        ([0.3] * 9, 1, 5, True, 0.3),
        # undefined values do not count as peers
        ([*PEERS[:4], math.nan], 50, 5, True, NEVER),
        ([*PEERS, math.nan], 50, 5, True, 0.3),
    ],
)
def test_the_pruning_threshold(peers, percentile, startup, higher, expected):
    pruner = PrunerConfig(percentile=percentile, startup_trials=startup)
    assert pruning_threshold(peers, pruner, higher_is_better=higher) == pytest.approx(expected)


# ---- the decisions about one trial, in a real Optuna study ----------------------------------------------------------

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


def rule(folder, study, metric="average_precision", own_reports=(), clock=time.monotonic, **pruner):
    """The rule for a new trial of a study with two folds, percentile 50 unless `pruner` says otherwise."""
    settings = {"percentile": 50} | pruner
    path = folder / "s.toml"
    path.write_text(
        STUDY.format(metric=metric, pruner=", ".join(f"{key} = {json.dumps(value)}" for key, value in settings.items()))
    )
    trial = study.ask()
    for value in own_reports:
        trial.report(value, 1)
    return SameFoldsRule(load(path, environ={}), trial, study.get_trials(), clock=clock)


def study_with(peers):
    """A study whose trials have reported these values for the first fold."""
    study = optuna.create_study()
    for value in peers:
        study.ask().report(value, 1)
    return study


@pytest.mark.parametrize(
    ("projected", "folds", "stage_ended", "settings", "expected"),
    [
        (0.2, 1, False, {}, True),
        (0.2, 1, True, {}, True),
        (0.3, 1, True, {}, False),  # equal to the threshold
        (0.4, 1, False, {}, False),
        (0.2, 2, True, {}, False),  # the last stage
        (0.2, 2, False, {}, False),
        (math.nan, 1, True, {}, False),  # undefined
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
        # the trial's own earlier report is not a peer
        (0.3, 1, True, {"own_reports": [0.9]}, False),
    ],
)
def test_the_decision_after_an_epoch(projected, folds, stage_ended, settings, expected, tmp_path):
    trial_rule = rule(tmp_path, study_with(PEERS), **settings)
    assert trial_rule.should_prune(folds, projected, stage_ended=stage_ended) is expected


@pytest.mark.parametrize(
    ("seconds", "stage_ended", "expected"),
    [(FRESH_SECONDS - 1, False, False), (FRESH_SECONDS + 1, False, True), (0.0, True, True)],
)
def test_peers_are_read_again_at_the_end_of_a_stage_and_when_they_are_no_longer_fresh(
    seconds, stage_ended, expected, tmp_path
):
    now = 100.0
    study = study_with([0.1])
    trial_rule = rule(tmp_path, study, clock=lambda: now)
    assert trial_rule.should_prune(1, 0.2, stage_ended=False) is False
    for _ in range(2):
        study.ask().report(0.9, 1)
    now += seconds
    assert trial_rule.should_prune(1, 0.2, stage_ended=stage_ended) is expected


def test_the_threshold_follows_the_number_of_folds(tmp_path):
    """Three folds, so that the second stage is not the last."""
    study = optuna.create_study()
    peer = study.ask()
    peer.report(0.1, 1)
    peer.report(0.5, 2)
    path = tmp_path / "s.toml"
    path.write_text(STUDY.format(metric="average_precision", pruner="percentile = 50").replace("= 2", "= 3"))
    trial_rule = SameFoldsRule(load(path, environ={}), study.ask(), study.get_trials())
    assert trial_rule.should_prune(1, 0.3, stage_ended=False) is False
    assert trial_rule.should_prune(2, 0.3, stage_ended=False) is True
