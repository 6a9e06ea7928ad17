"""A small study in the middle of its work, with a trial of every kind, for tests of what is shown of it."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path

import optuna
from optuna.trial import TrialState
from tiny import task

from sparse_evidence.hpo.database.connection import engine_of
from sparse_evidence.hpo.database.record import PRUNED
from sparse_evidence.hpo.running import objective
from sparse_evidence.hpo.running.artifacts import Checkpoints, open_store
from sparse_evidence.hpo.running.claims import Claim, Claims
from sparse_evidence.hpo.running.conclusions import conclude_search
from sparse_evidence.hpo.running.joining import join_study, measure_baselines
from sparse_evidence.hpo.running.pruning import Judged
from sparse_evidence.hpo.running.task import StudyTask

COMPLETE = (0, 1)
PRUNED_AT_THE_END_OF_A_STAGE, PRUNED_WITHIN_A_STAGE, INFEASIBLE, RUNNING = 2, 3, 4, 5
REASON = "diverged: a *loss* of <nan> in epoch_3"
"""With characters that Markdown and HTML would take for markup."""


def make_study(folder: Path, database: str, *, concluded: bool = False) -> optuna.Study:
    """Two complete trials, two pruned ones, an infeasible one, and one that a worker has begun.

    With `concluded` there is none in work, and the ensemble is chosen.
    """
    data = _never_pruning(task(folder))
    study = join_study(data.definition, data, database, trials=5 if concluded else 40)
    measure_baselines(study, data)
    claims = Claims(engine_of(study), study, budget=40, heartbeat_seconds=60, grace_seconds=600, max_attempts=3)
    with ExitStack() as working:

        def claimed() -> Claim:
            claim = claims.claim()
            assert isinstance(claim, Claim)
            return working.enter_context(claim)

        for _ in COMPLETE:
            checkpoints = Checkpoints(open_store(str(folder / "artifacts")), every_seconds=60)
            objective.run(claimed(), data, checkpoints, device="cpu", stop=lambda: False)
        for judged in (
            Judged(folds=2, value=0.25, threshold=0.250004, peers=1, stage_ended=True),
            Judged(folds=1, value=0.375, threshold=0.5, peers=2, stage_ended=False),
        ):
            reports = {judged.folds: judged.value - (0.0 if judged.stage_ended else 0.125)}
            claimed().finish(TrialState.PRUNED, attributes={PRUNED: asdict(judged)}, reports=reports)
        claimed().finish(TrialState.FAIL, reason=REASON)
        if concluded:
            assert conclude_search(study, data)
        else:
            begun = claims.claim()  # not entered, so that no thread sends its heartbeats after the test
            assert isinstance(begun, Claim)
            begun.trial.report(0.5, 1)
    return study


def _never_pruning(data: StudyTask) -> StudyTask:
    search = data.definition.search
    pruner = replace(search.pruner, name="none")
    return replace(data, definition=replace(data.definition, search=replace(search, pruner=pruner)))
