"""(c) What database and sampler cost per trial: our loop against `study.optimize` with MedianPruner and 20 reports.

Both run the same eight parameters, an objective that computes nothing, and the same TPE sampler, on studies that were
filled with finished trials as each of them would have stored them.
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, cast

import numpy as np
import optuna
import sqlalchemy as sa
from optuna.distributions import BaseDistribution, distribution_to_json
from optuna.storages._rdb import models
from optuna.trial import TrialState

from benchmarks.turns import by_turns, ratio
from sparse_evidence.hpo.database.connection import engine_of, open_storage
from sparse_evidence.hpo.database.record import CONFIG, CURVES, CV
from sparse_evidence.hpo.database.studies import open_study
from sparse_evidence.hpo.running import claims, pruning
from sparse_evidence.hpo.running.sampler import make_sampler
from sparse_evidence.hpo.study import space
from sparse_evidence.hpo.study.definition import StudyDefinition, load

EPOCHS, FOLDS, REPORTS = 20, 5, 20
MEASURED = 30
DEFINITION = Path(__file__).with_name("service.toml")


@dataclass(frozen=True)
class Filled:
    """One finished trial, as it will stand in the database."""

    params: dict[str, Any]
    value: float
    curve: list[float]


def drawn(count: int, distributions: dict[str, BaseDistribution]) -> list[Filled]:
    """Random finished trials with plausible values."""
    rng = random.Random(0)
    sampler = optuna.samplers.RandomSampler(seed=0)
    found = []
    for _ in range(count):
        params = {
            name: sampler.sample_independent(cast(Any, None), cast(Any, None), name, each)
            for name, each in distributions.items()
        }
        value = _score(params)
        found.append(Filled(params, value, [value * (1 - math.exp(-e / 4)) + rng.gauss(0, 0.01) for e in range(1, 21)]))
    return found


def _score(params: dict[str, Any]) -> float:
    return 0.4 - 0.01 * math.log10(params["training.learning_rate"] / 3e-3) ** 2


def fill(engine: sa.Engine, study_id: int, trials: list[Filled], attributes: bool) -> None:
    """Write finished trials directly: `add_trial` would take longer than everything that is measured."""
    definition = load(DEFINITION)
    kinds = {name: distribution_to_json(each) for name, each in space.distributions(definition).items()}
    each = space.distributions(definition)
    started = datetime.now(UTC).replace(tzinfo=None) - timedelta(days=1)
    with sa.orm.Session(engine) as session, session.begin():
        for number, trial in enumerate(trials):
            row = models.TrialModel(
                number=number, study_id=study_id, state=TrialState.COMPLETE, datetime_start=started,
                datetime_complete=started,
            )  # fmt: skip
            session.add(row)
            session.flush()
            key = row.trial_id
            session.add(models.TrialValueModel(
                trial_id=key, objective=0, value=trial.value, value_type=models.TrialValueModel.TrialValueType.FINITE,
            ))  # fmt: skip
            session.add_all(
                models.TrialParamModel(
                    trial_id=key, param_name=name, param_value=each[name].to_internal_repr(value),
                    distribution_json=kinds[name],
                )
                for name, value in trial.params.items()
            )  # fmt: skip
            steps = {2: trial.curve[-1], FOLDS: trial.value} if attributes else dict(enumerate(trial.curve))
            finite = models.TrialIntermediateValueModel.TrialIntermediateValueType.FINITE
            session.add_all(
                models.TrialIntermediateValueModel(
                    trial_id=key, step=step, intermediate_value=value, intermediate_value_type=finite
                )
                for step, value in steps.items()
            )
            if attributes:
                session.add_all(
                    models.TrialUserAttributeModel(trial_id=key, key=name, value_json=json.dumps(value))
                    for name, value in _attributes(trial).items()
                )


def _attributes(trial: Filled) -> dict[str, Any]:
    curves = {name: [trial.curve] * FOLDS for name in ("scores", "train_loss", "validation_loss")}
    return {CONFIG: trial.params, CV: {"folds": [trial.value] * FOLDS}, CURVES: curves}


def ours(url: str, stored: int) -> Callable[[], None]:
    """A trial of our loop: claim, configuration, two stage reports, attributes, end."""
    definition = load(DEFINITION)
    study = open_study(
        open_storage(url, without=(CURVES,)), "ours", direction="maximize", identity=_identity(definition),
        sampler=make_sampler("tpe", seed=0),
    )  # fmt: skip
    fill(engine_of(study), study._study_id, drawn(stored, space.distributions(definition)), attributes=True)
    mine = claims.Claims(
        engine_of(study), study, budget=10**9, heartbeat_seconds=20, grace_seconds=120, max_attempts=3
    )  # fmt: skip
    return lambda: _one_of_ours(mine, definition)


def _one_of_ours(mine: claims.Claims, definition: StudyDefinition) -> None:
    claim = mine.claim()
    assert isinstance(claim, claims.Claim)
    with claim:
        with claim.transaction():
            candidate = space.suggest(definition, claim.trial)
            claim.trial.set_user_attr(CONFIG, space.to_dict(candidate))
        value = _score(claim.trial.params)
        stored = _attributes(Filled({}, value, [value] * EPOCHS))
        rule = pruning.SameFoldsRule(definition, claim.trial, claim.trials_when_claimed)
        for folds in (2, FOLDS):
            for stage_ended in (False, True):
                rule.should_prune(folds, value, stage_ended=stage_ended)  # asked, but every trial runs to its end
            claim.trial.report(value, folds)
        attributes = {CURVES: stored[CURVES], CV: stored[CV]}
        claim.finish(TrialState.COMPLETE, value, attributes=attributes)


def theirs(url: str, stored: int) -> Callable[[], None]:
    """A trial of `study.optimize`, one report an epoch, MedianPruner."""
    definition = load(DEFINITION)
    engine = {"pool_pre_ping": True}
    storage = optuna.storages.RDBStorage(url, engine_kwargs=engine)
    study = optuna.create_study(
        storage=storage, study_name="theirs", direction="maximize",
        sampler=optuna.samplers.TPESampler(seed=0), pruner=optuna.pruners.MedianPruner(),
    )  # fmt: skip
    fill(storage.engine, study._study_id, drawn(stored, space.distributions(definition)), attributes=False)
    distributions = space.distributions(definition)

    def evaluate(trial: optuna.Trial) -> float:
        for name, each in distributions.items():
            trial._suggest(name, each)
        value = _score(trial.params)
        for step in range(REPORTS):
            trial.report(value, step)
            trial.should_prune()  # asked as usual, but every trial runs to its end, so that all cost the same
        return value

    return lambda: study.optimize(evaluate, n_trials=1)


def _identity(definition: StudyDefinition) -> dict[str, Any]:
    return {"definition": definition.canonical(), "definition_sha256": definition.sha256(), "data_sha256": "",
            "folds_sha256": "", "code": ""}  # fmt: skip


@contextmanager
def databases() -> Iterator[Callable[[str], str]]:
    """A throw-away Postgres; yields a function that makes an empty database and returns its URL."""
    import tempfile

    from sparse_evidence.hpo.database import embedded

    with tempfile.TemporaryDirectory() as folder, embedded.serve(Path(folder)) as url:
        root = sa.create_engine(url, isolation_level="AUTOCOMMIT")

        def fresh(name: str) -> str:
            with root.connect() as connection:
                connection.execute(sa.text(f'CREATE DATABASE "{name}"'))
            return sa.make_url(url).set(database=name).render_as_string(hide_password=False)

        try:
            yield fresh
        finally:
            root.dispose()


def measure(sizes: tuple[int, ...] = (100, 1000, 5000)) -> dict[str, float]:
    """Our seconds per trial as a share of theirs, by number of stored trials."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    with databases() as fresh:
        found: dict[str, float] = {}
        for size in sizes:
            taken = by_turns([theirs(fresh(f"theirs_{size}"), size), ours(fresh(f"ours_{size}"), size)], MEASURED)
            found[f"service.vs_optuna_{size}"] = ratio(taken)
            found[f"service.optuna_seconds_{size}"], found[f"service.seconds_{size}"] = np.median(taken, axis=1)
    return found
