"""The benchmarks replay studies from recorded curves; a replay decides exactly as the study itself does.

What docs/performance.md says about pruning rests on such replays.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import optuna
import pytest
from optuna.trial import FixedTrial, TrialState
from tiny import task

from benchmarks.stages import Outcome, Replay, by_median
from sparse_evidence.core.training.stopping import is_stale
from sparse_evidence.hpo.database.claims_sql import count_trials
from sparse_evidence.hpo.database.connection import engine_of, open_storage
from sparse_evidence.hpo.database.record import CURVES
from sparse_evidence.hpo.database.studies import load_study
from sparse_evidence.hpo.running import objective
from sparse_evidence.hpo.running.artifacts import Checkpoints, open_store
from sparse_evidence.hpo.running.claims import Claim, Claims
from sparse_evidence.hpo.running.joining import join_study
from sparse_evidence.hpo.running.task import StudyTask
from sparse_evidence.hpo.study import space


def run_study(data: StudyTask, url: str, folder: Path, trials: int) -> optuna.Study:
    """Run the study to its end; returns it with its curves."""
    study = join_study(data.definition, data, url, trials=trials)
    claims = Claims(engine_of(study), study, budget=trials, heartbeat_seconds=5, grace_seconds=60, max_attempts=3)
    checkpoints = Checkpoints(open_store(str(folder / "artifacts")), every_seconds=0)
    while isinstance(claim := claims.claim(), Claim):
        with claim:
            objective.run(claim, data, checkpoints, device="cpu", stop=lambda: False)
    engine_of(study).dispose()
    return load_study(open_storage(url), study.study_name)


def complete_curves(data: StudyTask, trials: list[optuna.trial.FrozenTrial]) -> np.ndarray:
    """Scores `[trials, folds, epochs]` of the same trials without early stopping and without pruning."""
    curves = []
    for trial in trials:
        candidate = space.suggest(data.definition, FixedTrial(trial.params))
        training = replace(candidate.training, patience=candidate.training.epochs)
        cv = data.cross_validation(replace(candidate, training=training), trial=trial.number)
        list(cv.epochs())
        curves.append(cv.curves()["scores"])
    return np.array(curves)


@pytest.mark.parametrize("within", ["true", "false"])
def test_a_replay_prunes_and_chooses_as_the_study_did(within, database, tmp_path):
    data = task(tmp_path, epochs=8, patience=2, within_stages=within)
    study = run_study(data, database, tmp_path, trials=12)
    curves = complete_curves(data, study.trials)
    replayed = Replay((1, 1, 1), data.definition.search.pruner, patience=2).study(curves, range(12))
    assert 0 < replayed.complete == count_trials(study).complete < 12
    assert replayed.epochs == sum(len(fold) for trial in study.trials for fold in trial.user_attrs[CURVES]["scores"])
    assert (replayed.winner, replayed.value) == (study.best_trial.number, pytest.approx(study.best_value))
    engine_of(study).dispose()


def test_the_replay_of_optunas_median_pruner_decides_as_the_median_pruner():
    curves = np.random.default_rng(0).normal(size=(30, 3, 9)).cumsum(2)
    epochs = 0

    def train(trial):
        nonlocal epochs
        values = []
        for fold, scores in enumerate(curves[trial.number]):
            for epoch, value in enumerate(scores):
                epochs += 1
                trial.report(value, fold * 9 + epoch)
                if trial.should_prune():
                    raise optuna.TrialPruned
                if is_stale(scores[: epoch + 1].tolist(), 2):
                    break
            values.append(max(scores[: epoch + 1]))
        return float(np.mean(values))

    study = optuna.create_study(direction="maximize", pruner=optuna.pruners.MedianPruner())
    study.optimize(train, n_trials=30)
    complete = [trial for trial in study.trials if trial.state == TrialState.COMPLETE]
    assert 5 < len(complete) < 30
    expected = Outcome(epochs, len(complete), study.best_trial.number, study.best_value)
    assert by_median(curves, range(30), patience=2) == expected
