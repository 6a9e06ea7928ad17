"""Warm start: the best configurations of another study, as parameters that are tried first."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sparse_evidence.core.errors import ConfigError, UserError

from ..database import record
from ..study import space
from ..study.definition import StudyDefinition, load
from ..study.fields import Scalar

TRIED = 5
"""At most so many configurations are tried first: the other trials search."""
LOOKED_AT = 20
"""So many of the best configurations are looked at, until `TRIED` fit."""
NAMED = 3
"""How many things that do not fit a sentence names."""

Found = tuple[int, dict[str, Any]]
"""The number of a trial, and its configuration as nested JSON."""


@dataclass(frozen=True)
class WarmStart:
    """What another study suggests."""

    parameters: tuple[dict[str, Scalar], ...]
    """Of trials to try first, best first; what is missing in one is drawn."""
    sentence: str
    """Which trials these are, and what does not fit."""


def read_warm_start(source: Path, definition: StudyDefinition, url: str) -> WarmStart:
    """The best configurations of another study, as far as they fit this one.

    Args:
        source: a result that `hpo export` wrote, or the file of a study in the same database.
        definition: the study that is to try them.
        url: its database.

    Raises:
        UserError: the file cannot be used, or its study is not in the database.
    """
    found = _of_study(source, url) if source.suffix == ".toml" else _of_result(source)
    default = space.default_parameters(definition)
    chosen: dict[int, dict[str, Scalar]] = {}
    unfit: dict[str, None] = {}
    for number, config in found[:LOOKED_AT]:
        try:
            parameters, problems = space.fitting_parameters(definition, space.from_dict(config))
        except ConfigError as error:
            raise UserError(f"{source} cannot be started from: of trial {number}, {error}") from error
        unfit |= dict.fromkeys(problems)
        if parameters and parameters != default and parameters not in chosen.values():
            chosen[number] = parameters
        if len(chosen) == TRIED:
            break
    return WarmStart(tuple(chosen.values()), _sentence(source, list(chosen), list(unfit)))


def _sentence(source: Path, numbers: Sequence[int], unfit: Sequence[str]) -> str:
    trials = f"trial{'' if len(numbers) == 1 else 's'} {', '.join(map(str, numbers))}"
    one = "is" if len(numbers) == 1 else "are"
    tried = f"{trials} of {source} {one} tried first, once" if numbers else f"nothing of {source} is tried first"
    if not unfit:
        return tried if numbers else f"{tried}: its best trials are the default configuration of this study"
    more = f" and {len(unfit) - NAMED} more" if len(unfit) > NAMED else ""
    return f"{tried}; this study does not search {', '.join(unfit[:NAMED])}{more}"


def _of_study(path: Path, url: str) -> list[Found]:
    """The best trials of a study in the database."""
    from ..database.connection import engine_of, open_storage
    from ..database.studies import load_study

    storage = open_storage(url, create=False)
    try:
        study = load_study(storage, load(path).name)
        ranked = record.best_first(study, study.get_trials(deepcopy=False))
        if not ranked:
            raise UserError(f"{path} cannot be started from: the study {study.study_name!r} has no complete trial yet")
        return [(trial.number, record.config(trial)) for trial in ranked]
    finally:
        engine_of(storage).dispose()


def _of_result(path: Path) -> list[Found]:
    """The best single trial of an exported result, and the members of its ensemble."""
    try:
        content = json.loads(path.read_bytes())
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); check its name and permissions") from error
    except (ValueError, RecursionError):
        content = None
    try:
        return list(dict(_entries(content)).items())
    except (KeyError, TypeError, ValueError):
        raise UserError(
            f"{path} is no result of a study; give the .json file that `hpo run` or `hpo export` wrote, or the .toml "
            "file of a study in the same database"
        ) from None


def _entries(content: Mapping[str, Any]) -> Iterator[Found]:
    yield int(content["trial"]), content["config"]
    for member in (content.get("ensemble") or {"members": []})["members"]:
        yield int(member["trial"]), member["config"]
