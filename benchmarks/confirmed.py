"""The time until a confirmed, fitted model is at hand, and what of it is confirming.

`hpo run STUDY --fit` with two workers and a new database, embeddings known: the quickstart, and IRIS as published at
the size of ReDSM5, confirmed as by default. Beside it, in one process on all cores at that size: five seeds of every
fold compared with one, and a trial of `retrieval`.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import optuna

from benchmarks import epoch
from benchmarks.service import databases
from benchmarks.timing import ratio, time_alternately
from benchmarks.variants import write_variant
from sparse_evidence.core.config import CandidateConfig, IrisConfig, RetrievalConfig
from sparse_evidence.core.training.crossval import CrossValidation
from sparse_evidence.hpo.database.connection import open_storage
from sparse_evidence.hpo.running import confirming
from sparse_evidence.hpo.running.task import load_task
from sparse_evidence.hpo.study.config import ConfirmConfig
from sparse_evidence.hpo.study.definition import load

QUICKSTART = Path(__file__).parents[1] / "studies" / "quickstart.toml"
HOME = Path(__file__).with_name("home.toml")
EPOCHS = 3
SEEDS = 5


def measure() -> dict[str, float]:
    """Seconds of whole runs, the share of confirming, and ratios at the size of ReDSM5."""
    figures: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        home = write_variant(HOME, Path(folder) / "home.toml", {"confirm": {"leaders": str(ConfirmConfig().leaders)}})
        for name, study in (("demo", QUICKSTART), ("home", home)):
            figures |= {f"confirmed.{name}_{figure}": value for figure, value in run(study).items()}
    data = epoch.case(epoch.HOME_POSTS)
    for name, model in (("published", epoch.PUBLISHED), ("default", IrisConfig())):
        one, five = (train(data, model, seeds) for seeds in (1, SEEDS))
        figures[f"confirmed.bag_of_5_{name}"] = ratio(time_alternately([one, five], 3))
    retrieval = RetrievalConfig()
    (seconds,) = time_alternately([train(data, retrieval, 1)], 3)
    return {**figures, "confirmed.retrieval_seconds": float(np.median(seconds))}


def run(path: Path) -> dict[str, float]:
    """Seconds of `hpo run --fit`, and the seconds of its confirming over those of its search."""
    definition = load(path)
    load_task(definition)  # embeddings are known from here on
    with databases() as fresh, tempfile.TemporaryDirectory() as folder:
        url = fresh("confirmed")
        command = [sys.executable, "-m", "sparse_evidence.hpo", "run", str(path), "--workers", "2"]
        command += ["--out", f"{folder}/best.json", "--fit", f"{folder}/model"]
        started = time.perf_counter()
        subprocess.run(command, check=True, env={**os.environ, "HPO_STORAGE": url}, stdout=subprocess.DEVNULL)
        seconds = time.perf_counter() - started
        study = optuna.load_study(study_name=definition.name, storage=open_storage(url))
        confirm = confirming.load_confirming(study)
        assert confirm is not None
        searched, confirmed = span(study.trials), span(confirm.child.trials)
    print(f"{definition.name}: {searched:.0f} s search, {confirmed:.0f} s confirming, {seconds:.0f} s", file=sys.stderr)
    return {"seconds": seconds, "confirm_vs_search": confirmed / searched}


def span(trials: Sequence[optuna.trial.FrozenTrial]) -> float:
    """Seconds from the first start to the last end."""
    starts = [trial.datetime_start for trial in trials if trial.datetime_start is not None]
    ends = [trial.datetime_complete for trial in trials if trial.datetime_complete is not None]
    return (max(ends) - min(starts)).total_seconds()


def train(data: epoch.Case, model: IrisConfig | RetrievalConfig, seeds: int) -> Callable[[], None]:
    """A function that trains all folds of a model for a few epochs, with so many seeds, from the start."""
    training = replace(epoch.CANDIDATE.training, seeds=seeds)
    candidate = CandidateConfig(model, training, epoch.CANDIDATE.loss)

    def run_epochs() -> None:
        cv = CrossValidation(
            data.corpus, data.folds, candidate, stages=[epoch.FOLDS], metric="average_precision",
            criteria=[str(number) for number in range(epoch.CRITERIA)], seed=0, fixed_epochs=EPOCHS,
        )  # fmt: skip
        for _ in cv.epochs():
            pass

    return run_epochs
