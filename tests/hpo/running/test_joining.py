"""A study's baselines: measured once, by whichever process is first, for everything that needs them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import optuna
import pytest
import sqlalchemy as sa
from tiny import task

from sparse_evidence.hpo.database import predictions, record
from sparse_evidence.hpo.database.connection import engine_of
from sparse_evidence.hpo.database.locks import try_baselines_lock
from sparse_evidence.hpo.results.leaderboard import leaderboard
from sparse_evidence.hpo.running import conclusions, objective
from sparse_evidence.hpo.running.artifacts import Checkpoints, open_store
from sparse_evidence.hpo.running.claims import Claim, Claims
from sparse_evidence.hpo.running.joining import join_study, measure_baselines, scored_baselines
from sparse_evidence.hpo.running.task import StudyTask

TRIALS = 3
Join = Callable[[StudyTask], optuna.Study]


@pytest.fixture
def join(database: str) -> Iterator[Join]:
    """Join the study of a task, as another process would: with a connection pool of its own."""
    opened: list[optuna.Study] = []

    def joined(data: StudyTask) -> optuna.Study:
        opened.append(join_study(data.definition, data, database, trials=TRIALS))
        return opened[-1]

    yield joined
    for study in opened:
        engine_of(study).dispose()


def search(study: optuna.Study, data: StudyTask, folder: Path) -> None:
    """Run the trials of the study."""
    claims = Claims(engine_of(study), study, budget=TRIALS, heartbeat_seconds=5, grace_seconds=60, max_attempts=3)
    checkpoints = Checkpoints(open_store(str(folder / "artifacts")), every_seconds=5)
    while isinstance(claim := claims.claim(), Claim):
        with claim:
            objective.run(claim, data, checkpoints, device="cpu", stop=lambda: False)


def blind(data: StudyTask) -> StudyTask:
    """The task without its embeddings, on which no baseline can be measured."""
    return replace(data, embedded={})


def forget_logits(study: optuna.Study) -> None:
    """Leave what an earlier version has stored: the scores alone."""
    with engine_of(study).begin() as connection:
        connection.execute(sa.text("DELETE FROM hpo_baselines"))


@pytest.mark.parametrize("metric", ["average_precision", "brier"])
def test_what_is_stored_is_what_is_measured(join: Join, tmp_path: Path, metric: str) -> None:
    data = task(tmp_path, metric=metric)
    study = join(data)
    unknown = scored_baselines(study, data)
    assert record.baselines(study) is None, "who only needs them stores nothing"
    measure_baselines(study, data)
    scores, logits = scored_baselines(join(data), blind(data))
    measured_scores, measured = data.scored_baselines()
    assert scores == measured_scores == unknown[0]
    assert list(logits) == list(measured) == list(unknown[1]) == record.baseline_names(scores)
    for name, found in logits.items():
        np.testing.assert_array_equal(found, unknown[1][name])
        np.testing.assert_allclose(found, measured[name], atol=1e-3)


def test_a_search_is_concluded_without_measuring_them_again(join: Join, tmp_path: Path) -> None:
    data = task(tmp_path)
    study = join(data)
    measure_baselines(study, data)
    search(study, data, tmp_path)
    other = join(data)
    assert conclusions.conclude_search(other, blind(data))
    concluded, board = record.ensemble(study), leaderboard(other, blind(data))
    assert concluded is not None
    forget_logits(study)
    with pytest.raises(StopIteration):  # they would be measured
        scored_baselines(other, blind(data))
    study.set_user_attr(record.ENSEMBLE, None)
    assert conclusions.conclude_search(other, data)
    assert record.ensemble(study) == concluded, "to the last bit, if an earlier version has not stored their logits"
    assert leaderboard(other, data) == board


def test_several_workers_measure_them_once(join: Join, tmp_path: Path) -> None:
    data = task(tmp_path)
    workers = [join(data) for _ in range(3)]
    measured = []

    class Counting(StudyTask):
        def scored_baselines(self):
            measured.append(threading.get_ident())
            return super().scored_baselines()

    counting = Counting(**{field.name: getattr(data, field.name) for field in fields(data) if field.init})
    with ThreadPoolExecutor(len(workers)) as threads:
        list(threads.map(lambda study: measure_baselines(study, counting), workers))
    assert len(measured) == 1
    measure_baselines(workers[0], blind(data))  # nothing is left to do
    assert [scored_baselines(study, blind(data))[0] for study in workers] == [data.baselines()] * 3


def test_who_needs_them_does_not_wait_for_who_measures_them(join: Join, tmp_path: Path) -> None:
    data = task(tmp_path)
    study = join(data)
    with try_baselines_lock(engine_of(study), study._study_id) as ours:
        assert ours
        scores, logits = scored_baselines(join(data), data)
    assert scores == data.baselines()
    assert predictions.load_baselines(study, list(logits)) is None
