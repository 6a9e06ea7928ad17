"""Nested cross-validation: what the whole procedure (search, ensemble, choice of the winner, fit) is worth.

The posts of the search are divided into outer folds. For each, a *child study* searches the other posts: the same study
file, the same loop of claims and checkpoints, its own folds. What it finds is fitted, as `hpo fit` does, and predicts
the outer fold, whose posts had no part in any of this. The default configuration and the baselines are trained on the
same posts and predict the same ones.

The result of every outer fold is stored with its child study, and the estimate with the study itself, each once. So the
same command resumes after a kill, and the same command on another machine helps.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from sparse_evidence.core import baselines, selection
from sparse_evidence.core.errors import UserError
from sparse_evidence.core.features.views import select
from sparse_evidence.core.fitted import FittedModel, fit
from sparse_evidence.core.metrics import METRICS
from sparse_evidence.core.selection import Scorer
from sparse_evidence.core.splits import Folds

from ..database import record
from ..database.connection import engine_of, open_storage
from ..database.record import NESTED, OUTER_FOLD
from ..results.best import best_result
from ..running.conclusions import as_json, make_scorer, once
from ..running.joining import join_study
from ..running.launcher import StartedStudy
from ..running.task import Progress, StudyTask, load_task
from ..study.reader import NESTED as VARIABLE
from .fit import ground_of
from .recipes import WINNER, choose

if TYPE_CHECKING:
    import optuna

    from ..study.definition import StudyDefinition

Floats = npt.NDArray[np.float64]

PROCEDURE = "procedure"
"""The key of what the search, the ensemble, the choice of the winner and the fit score together."""
POLL_SECONDS = 0.5
"""Between looks at whether another process has stored what it is computing."""


@dataclass(frozen=True, eq=False)
class Nested:
    """A study, and the outer folds of its posts."""

    url: str
    """The database, including its password."""
    task: StudyTask
    study: optuna.Study
    """It need not have any trial; the estimate is stored with it."""
    trials: int
    """The budget of every child study."""
    outer: Folds
    """The hold-out of the study is in no outer fold."""
    children: tuple[StudyTask, ...]
    """The data of the child studies, by outer fold."""

    def start(self, fold: int) -> StartedStudy:
        """Create the child study of an outer fold (counted from 0), or open it.

        Raises:
            RefusedError: it was started with other data, folds, configuration or code.
            StorageError: the database is unreachable.
        """
        task = self.children[fold]
        study = join_study(task.definition, task, self.url, trials=self.trials)
        return StartedStudy(task.definition, self.url, task, study, self.trials)

    def stored(self) -> dict[str, Any] | None:
        """The estimate, if it is stored for as many outer folds and at least as many trials."""
        stored = record.nested(self.study)
        is_current = stored is not None and stored["outer"] == self.outer.count and stored["trials"] >= self.trials
        return stored if is_current else None


def open_nested(
    definition: StudyDefinition,
    url: str,
    *,
    outer: int,
    trials: int | None = None,
    progress: Progress | None = None,
) -> Nested:
    """Load the study's data, divide it into outer folds, and create the study unless it exists.

    Args:
        definition: the study.
        url: from `storage_url`.
        outer: number of outer folds, at least 2.
        trials: trials to finish in every child study; default: the definition's.
        progress: called while texts are embedded.

    Raises:
        UserError: the data, the folds or the encoder cannot be used, or the posts cannot be divided so often.
        RefusedError: the study was started with other data, folds, configuration or code.
        StorageError: the database is unreachable.
    """
    if definition.outer_fold is not None:
        raise UserError(f"{VARIABLE} is set, so this is the child study {definition.name}; unset it")
    engine_of(open_storage(url)).dispose()  # a wrong URL is reported before minutes of embedding
    task = load_task(definition, progress=progress)
    folds = task.outer_folds(outer)
    children = tuple(task.on_outer_fold(folds, number) for number in range(1, outer + 1))
    study = join_study(definition, task, url, trials=0)
    return Nested(url, task, study, trials or definition.search.trials, folds, children)


# --- one outer fold ---------------------------------------------------------------------------------------------------


def conclude_fold(nested: Nested, started: StartedStudy, fold: int, *, device: str = "cpu") -> dict[str, Any]:
    """Fit what a child study has found, score it on its outer fold, and store the scores; or wait for who does.

    Args:
        nested: the study.
        started: the child study, whose trials are finished.
        fold: its outer fold, counted from 0.
        device: where the winner is trained.

    Raises:
        UserError: no trial of the child study is complete.
        StorageError: the database is unreachable.
    """
    ensemble = record.ensemble(started.study)
    if ensemble is None:
        reasons = [record.reason(trial) for trial in started.study.get_trials(deepcopy=False)]
        raise UserError(
            f"no trial could be trained without outer fold {fold + 1} of {nested.outer.count} "
            f"({next((reason for reason in reasons if reason), 'all failed')}), so nothing can be scored there; "
            "change what is searched, or ask for more --trials"
        )

    def is_stored() -> bool:
        stored = record.outer_fold(started.study)
        return stored is not None and stored["trials"] == ensemble["finished"]

    def store() -> None:
        scores = score_fold(nested, started.study, fold, device=device)
        started.study.set_user_attr(OUTER_FOLD, {"trials": ensemble["finished"], **scores})

    _until_stored(started.study, is_stored, store)
    return started.study.user_attrs[OUTER_FOLD]  # type: ignore[no-any-return]


def score_fold(nested: Nested, study: optuna.Study, fold: int, *, device: str = "cpu") -> dict[str, Any]:
    """What the winner of a child study, the default configuration and the baselines score on its outer fold.

    Returns:
        `winner`, its name; `posts` that all were trained on; `scores`: by name `value`, the mean over the criteria in
        the study's metric, and `left_out`, the same without each block of posts, `[blocks]`.
    """
    task, rows = nested.children[fold], nested.outer.validation(fold)
    train = np.flatnonzero(task.folds.assignment >= 0)
    best: Mapping[str, Any] = best_result(study)
    embedded, metric = next(iter(task.embedded.values())), task.definition.search.metric
    found = baselines.Baselines(embedded, task.corpus.groups, metric).predict(train, rows)
    found |= {name: _fitted(best, what, task, rows, device) for name, what in _searched(study, best).items()}
    if PROCEDURE not in found:  # the winner learns from no label
        found[PROCEDURE] = found[best["winner"]]
    labels = nested.task.corpus.labels
    scorer = Scorer(metric, labels, _only(nested.outer, fold), make_scorer(nested.task).blocks)
    scores = {}
    for name, predicted in found.items():
        logits = np.full(labels.shape, np.nan)
        logits[rows] = baselines.as_logits(best["winner"] if name == PROCEDURE else name, predicted)
        scores[name] = {"value": scorer.value(logits), "left_out": scorer.without_blocks(logits).tolist()}
    return {"winner": best["winner"], "posts": len(train), "scores": scores}


def _searched(study: optuna.Study, best: Mapping[str, Any]) -> dict[str, str]:
    """What is fitted, by the name of its score: the winner, and the default configuration unless it is infeasible."""
    fitted = {} if best["winner"] == "zero_shot" else {PROCEDURE: WINNER}
    first = study.get_trials(deepcopy=False)[0]
    is_trained = best["default"] is not None and record.reason(first) is None and first.state.is_finished()
    return fitted | ({"default": "default"} if is_trained else {})


def _fitted(best: Mapping[str, Any], what: str, task: StudyTask, rows: npt.NDArray[np.int64], device: str) -> Floats:
    """Probabilities `[rows, criteria]` of the model that `hpo fit` would write."""
    model: FittedModel = fit(choose(best, what, task).recipes, ground_of(task), device=device).model
    return model.probabilities_of(lambda config: select(task.features(config), rows))


def _only(outer: Folds, fold: int) -> Folds:
    return Folds(np.where(outer.assignment == fold, 0, -1), 1)


# --- the estimate -----------------------------------------------------------------------------------------------------


def conclude(nested: Nested, of_folds: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Estimate what the procedure is worth, and store it with the study.

    Args:
        nested: the study.
        of_folds: from `conclude_fold`, of every outer fold in order.
    """

    def is_stored() -> bool:
        stored = nested.stored()
        return stored is not None and [fold["trials"] for fold in of_folds] == stored["trials_of_folds"]

    _until_stored(nested.study, is_stored, lambda: nested.study.set_user_attr(NESTED, estimate(nested, of_folds)))
    return nested.study.user_attrs[NESTED]  # type: ignore[no-any-return]


def estimate(nested: Nested, of_folds: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The mean scores over the outer folds, the gains of the procedure, and their 95 % intervals, as plain JSON.

    The intervals are from a jackknife over blocks of groups. They cover the choice of the posts that score, but not
    that of the folds or seeds, nor what other training posts would change.
    """
    metric, labels = nested.task.definition.search.metric, nested.task.corpus.labels
    names = [name for name in of_folds[0]["scores"] if all(name in fold["scores"] for fold in of_folds)]
    values = {name: np.array([fold["scores"][name]["value"] for fold in of_folds]) for name in names}
    left_out = {name: np.mean([fold["scores"][name]["left_out"] for fold in of_folds], axis=0) for name in names}
    scores: dict[str, Any] = {}
    gains: dict[str, Any] = {}
    for name in names:
        found = selection.estimate(values[name].mean(), left_out[name]).of_score()
        scores[name] = {**as_json(found), "folds": values[name].tolist()}
        if name != PROCEDURE:
            difference = values[PROCEDURE] - values[name]
            gain = selection.estimate(difference.mean(), left_out[PROCEDURE] - left_out[name])
            gains[name] = {**as_json(gain), "folds": difference.tolist()}
    scores["chance"] = {"value": baselines.chance(labels, nested.outer, metric), "interval": None}
    best = max if METRICS[metric].higher_is_better else min
    simple = [name for name in gains if name != "default"]
    return {
        "outer": nested.outer.count,
        "trials": nested.trials,
        "trials_of_folds": [fold["trials"] for fold in of_folds],
        "metric": metric,
        "posts": int((nested.outer.assignment >= 0).sum()),
        "training_posts": [fold["posts"] for fold in of_folds],
        "winners": [fold["winner"] for fold in of_folds],
        "scores": scores,
        "gains": gains,
        "best_baseline": best(simple, key=lambda name: scores[name]["value"]),
    }


def _until_stored(study: optuna.Study, is_stored: Callable[[], bool], store: Callable[[], None]) -> None:
    while not once(study, is_stored, store):
        time.sleep(POLL_SECONDS)
