"""A finished study of any size whose trials were never trained: their rows are written at once."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

import numpy as np
import optuna
import sqlalchemy as sa
from optuna.distributions import CategoricalDistribution, FloatDistribution, distribution_to_json

from sparse_evidence.hpo.database import connection, studies
from sparse_evidence.hpo.database.optuna_storage import study_id
from sparse_evidence.hpo.database.record import BASELINES, CONFIG, CURVES, CV, REQUESTED
from sparse_evidence.hpo.study.definition import StudyDefinition

START = datetime(2026, 1, 2, 3, 4, 5)
EPOCHS = 8


def invent_study(
    url: str,
    definition: StudyDefinition,
    trials: int,
    *,
    criteria: Sequence[str] = ("first", "second"),
    kinds: Sequence[str] = ("plain", "fancy"),
) -> optuna.Study:
    """Write a study in which six of ten trials are complete, and the others pruned after the first stage.

    Args:
        url: of a database with all tables.
        definition: the study; its trials have nothing to do with its space.
        trials: how many; the first one is complete.
        criteria: names of the criteria.
        kinds: values of the parameter `model`; `model.rate` belongs to the second one alone.
    """
    storage = connection.open_storage(url)
    hashes = dict.fromkeys(("definition_sha256", "data_sha256", "folds_sha256", "encoders_sha256", "code"), "0" * 64)
    identity = {"definition": definition.canonical(), **hashes}
    study = studies.open_study(storage, definition.name, direction="maximize", identity=identity)
    study.set_user_attr(REQUESTED, trials)
    folds = definition.split.folds
    study.set_user_attr(BASELINES, {"linear": 0.4, "linear_folds": [0.4] * folds, "chance": 0.1})
    generator = np.random.default_rng(0)
    rows: dict[str, list[dict[str, Any]]] = {}
    with connection.engine_of(study).begin() as session:
        first = session.scalar(sa.text("SELECT coalesce(max(trial_id), 0) + 1 FROM trials"))
        for number in range(trials):
            _add(rows, first + number, number, study_id(study), definition, generator, criteria, kinds)
        for table, entries in rows.items():
            session.execute(sa.table(table, *map(sa.column, entries[0])).insert(), entries)
        session.execute(sa.text("SELECT setval('trials_trial_id_seq', :last)"), {"last": first + trials})
    return study


def _add(
    rows: dict[str, list[dict[str, Any]]],
    trial: int,
    number: int,
    study: int,
    definition: StudyDefinition,
    generator: np.random.Generator,
    criteria: Sequence[str],
    kinds: Sequence[str],
) -> None:
    stages, folds = definition.split.stage_sizes(), definition.split.folds
    values = np.clip(0.5 + 0.1 * np.tanh(number / 500) + generator.normal(0, 0.05, folds), 0, 1).round(6)
    complete, started = number % 10 < 6, START + timedelta(seconds=7 * number)
    ended = started + timedelta(seconds=20 if complete else 8)

    def add(table: str, **columns: object) -> None:
        rows.setdefault(table, []).append({"trial_id": trial, **columns})

    add("trials", number=number, study_id=study, state="COMPLETE" if complete else "PRUNED", datetime_start=started,
        datetime_complete=ended)  # fmt: skip
    kind = number % len(kinds)
    parameters = {
        "model": (kind, CategoricalDistribution(kinds)),
        "training.learning_rate": (10 ** generator.uniform(-4, -2), FloatDistribution(1e-4, 1e-2, log=True)),
    }
    if kind == 1:
        parameters["model.rate"] = (generator.uniform(), FloatDistribution(0.0, 1.0))
    for name, (value, space) in parameters.items():
        add("trial_params", param_name=name, param_value=value, distribution_json=distribution_to_json(space))
    attributes: dict[str, Any] = {CONFIG: {"model": {"name": kinds[kind]}, "training": {}, "loss": {}}}
    if complete:
        attributes[CURVES] = {"scores": (values[:, None] - 0.01 * np.arange(EPOCHS)[::-1]).round(4).tolist()}
        attributes[CV] = _cv(values, criteria)
        add("trial_values", objective=0, value=float(values.mean()), value_type="FINITE")
    add("trial_intermediate_values", step=stages[0], intermediate_value=float(values[: stages[0]].mean()),
        intermediate_value_type="FINITE")  # fmt: skip
    for key, attribute in attributes.items():
        add("trial_user_attributes", key=key, value_json=json.dumps(attribute))


def _cv(values: np.ndarray[Any, Any], criteria: Sequence[str]) -> dict[str, Any]:
    scores = dict.fromkeys(
        ("average_precision", "auroc", "f1", "precision", "sensitivity", "specificity", "brier"), 0.5
    )
    one = {**scores, "prevalence": 0.25, "positives": 15.0}
    return {
        "seed": 0, "mean": float(values.mean()), "std": float(values.std()), "folds": values.tolist(),
        "best_epoch": EPOCHS, "epochs": EPOCHS, "threshold": 0.5, "pooled": one,
        "per_criterion": dict.fromkeys(criteria, one),
    }  # fmt: skip
