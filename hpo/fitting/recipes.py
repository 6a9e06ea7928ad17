"""What a result says is to be trained: best.json to the recipes of an ensemble's members."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, Field, ValidationError

from sparse_evidence.core.baselines import Baselines
from sparse_evidence.core.config import BCEConfig, CandidateConfig, LinearConfig, RetrievalConfig, TrainingConfig
from sparse_evidence.core.errors import UserError
from sparse_evidence.core.fitted import Recipe

from ..database.record import candidate_text
from ..results.best import SCHEMA
from ..running.task import StudyTask
from ..study import space

WINNER = "winner"
CHOICES = (WINNER, "ensemble", "trial", "default", "retrieval", "linear")
"""What can be fitted."""


class _Trained(BaseModel):
    """What `choose` reads of a trial."""

    trial: int
    config: dict[str, Any]
    seed: int | None
    epochs: int | None


class _Member(_Trained):
    weight: float


class _Ensemble(BaseModel):
    members: Annotated[list[_Member], Field(min_length=1)]
    corrected: dict[str, Any]
    best: dict[str, Any]


class _Confirmed(BaseModel):
    scores: dict[str, dict[str, Any]]


class _CrossValidation(BaseModel):
    best_epoch: int
    seed: int | None = None
    floors: dict[str, Any] | None


class _Provenance(BaseModel):
    data_sha256: str
    folds_sha256: str
    encoders_sha256: str
    definition_sha256: str
    study_file: str | None = None


class _Result(BaseModel):
    """What fitting reads of a result; `studies/best.schema.json` describes all of it."""

    study: str
    metric: str
    trial: int
    value: float | None
    config: dict[str, Any]
    cv: _CrossValidation
    winner: str | None
    claim: str
    default: _Trained | None
    ensemble: _Ensemble | None
    confirmed: _Confirmed | None
    provenance: _Provenance


@dataclass(frozen=True)
class Chosen:
    """What is fitted."""

    name: str
    """Its key in the result's scores: `ensemble`, `default`, a baseline, or the number of a trial."""
    recipes: tuple[Recipe, ...]

    @property
    def text(self) -> str:
        """The candidate in a sentence."""
        return candidate_text(self.name)


def read_best(path: Path) -> dict[str, Any]:
    """Read a file of `hpo export`.

    Raises:
        UserError: it cannot be read, or is no such file.
    """
    try:
        best = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); give the file that `hpo export` wrote") from None
    except (ValueError, RecursionError):
        raise UserError(f"{path} is not JSON; give the file that `hpo export` wrote") from None
    return check_best(best, str(path))


def check_best(best: object, name: str) -> dict[str, Any]:
    """Check that this is a result of `hpo export`, with everything that fitting reads.

    Args:
        best: any value.
        name: what it is called in messages.

    Raises:
        UserError: it is no result, is incomplete, or is one of another version.
    """
    if not isinstance(best, Mapping) or not {"schema", "study", "config", "provenance"} <= best.keys():
        raise UserError(f"{name} is not the result of a study; give the file that `hpo export` wrote")
    if best["schema"] != SCHEMA:
        raise UserError(
            f"{name} has schema {best['schema']}, and this version reads schema {SCHEMA}; export the study again"
        )
    try:
        _Result.model_validate(best, strict=True)
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise UserError(f"{name} was altered: {where}: {first['msg'].lower()}; export the study again") from None
    return dict(best)


def choose(best: Mapping[str, Any], what: str, task: StudyTask) -> Chosen:
    """Choose what to fit.

    Args:
        best: from `read_best` or `results.best.best_result`.
        what: one of `CHOICES`.
        task: the study's data, by which a baseline's C is chosen.

    Raises:
        UserError: the result has no such candidate, or none that can be fitted.
    """
    name = (best["winner"] or "trial") if what == WINNER else what
    if name == "ensemble":
        ensemble = best["ensemble"]
        if ensemble is None:
            raise UserError("the result has no ensemble: the study was not finished when it was exported; resume it")
        return Chosen(name, tuple(_recipe(member, member["weight"]) for member in ensemble["members"]))
    if name == "trial":
        single = {"trial": best["trial"], "config": best["config"], "seed": best["cv"].get("seed")}
        return Chosen(str(best["trial"]), (_recipe({**single, "epochs": best["cv"]["best_epoch"]}),))
    if name == "default":
        if best["default"] is None:
            raise UserError("the result has no default configuration: no worker had started trial 0; resume the study")
        return Chosen(name, (_recipe(best["default"]),))
    if name in {"retrieval", "linear"}:
        return Chosen(name, (_baseline(name, task),))
    raise UserError(
        f"the winner is {candidate_text(name)}, which learns nothing that could be fitted; search more, or choose "
        f"another with --what: {', '.join(CHOICES[1:])}"
    )


def _recipe(trained: Mapping[str, Any], weight: float = 1.0) -> Recipe:
    number = trained["trial"]
    if trained["seed"] is None or trained["epochs"] is None:
        missing = "seed" if trained["seed"] is None else "number of epochs"
        raise UserError(
            f"trial {number} has no {missing} in the result, so it cannot be trained again; resume the study"
        )
    return Recipe(space.from_dict(trained["config"]), trained["seed"], trained["epochs"], weight, number)


def _baseline(name: str, task: StudyTask) -> Recipe:
    """A baseline with the C that is best in a cross-validation of the posts that the search used."""
    (encoder, window), embedded = next(iter(task.embedded.items()))
    train = (task.folds.assignment >= 0).nonzero()[0]
    strength = Baselines(embedded, task.corpus.groups, task.definition.search.metric).strength(name, train)
    kind = RetrievalConfig if name == "retrieval" else LinearConfig
    model = kind(encoder=encoder, window=window, C=strength)
    return Recipe(CandidateConfig(model, TrainingConfig(), BCEConfig()), seed=0, epochs=1)
