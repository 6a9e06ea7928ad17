"""Checks the tables of a study file against the dataclasses that they fill, and collects every mistake."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import MISSING, fields, replace
from typing import Any

from sparse_evidence.core.config import LOSSES, MODELS, SOLVED, ChunksConfig, SplitConfig, TrainingConfig
from sparse_evidence.core.errors import ConfigError, nearest

from .config import ConfirmConfig, OuterFold, PrunerConfig, SearchConfig, ServiceConfig
from .defaults import LOSS_SPACES, loss_space, model_space, training_space
from .fields import (
    Alternative,
    FieldError,
    ParameterSpec,
    check_value,
    fields_of,
    hint,
    quoted,
    read_spec,
    searched_keys,
    shown,
)

SpaceOf = Callable[[str], Mapping[str, ParameterSpec]]
"""The name of a model or of a loss to the specs of keys that the file does not mention."""

NAME = r"[A-Za-z0-9._\-]{1,100}"
_KEYS = ("name", "data", "chunks", "split", "search", "model", "training", "loss", "confirm", "service")
_OVERRIDES = {
    key: f"HPO_{key.upper()}" for key in ("heartbeat_seconds", "grace_seconds", "checkpoint_seconds", "stall_seconds")
}
CONFIRM_OVERRIDES = {"leaders": "HPO_CONFIRM_LEADERS", "splits": "HPO_CONFIRM_SPLITS"}
NESTED = "HPO_NESTED"
"""Environment variable that makes a study the child study of an outer fold; `hpo nested` sets it for its workers."""


def read_study(
    document: Mapping[str, Any], stem: str, environ: Mapping[str, str], problems: list[str]
) -> dict[str, Any]:
    """Return the fields of a `StudyDefinition`, except its path. They are complete only if `problems` stays empty."""
    problems += [_unknown("", key, _KEYS) for key in document if key not in _KEYS]
    inputs = {
        "name": _read_name(document, stem, problems),
        "data": _read_data(document, problems),
        "chunks": _read(ChunksConfig, "chunks", document, problems),
        "split": _read_split(document, problems),
    }
    search = _read_search(document.get("search", {}), problems)
    return {
        **inputs,
        "search": search,
        **_read_searched(document, problems, by_default=search is None or search.space == "default"),
        "confirm": _read_confirm(document.get("confirm", {}), environ, problems),
        "service": _read_service(document.get("service", {}), environ, problems),
    }


def read_outer_fold(environ: Mapping[str, str], problems: list[str]) -> OuterFold | None:
    """Return the outer fold that the environment names, None if it names none."""
    if NESTED not in environ:
        return None
    numbers = re.fullmatch(r"([1-9][0-9]{0,3})/([1-9][0-9]{0,3})", environ[NESTED])
    if numbers is None or not int(numbers[1]) <= int(numbers[2]) >= 2:
        problems.append(f"{NESTED}: {shown(environ[NESTED])} is not allowed, give an outer fold such as 1/5")
        return None
    return OuterFold(int(numbers[1]), int(numbers[2]))


def read_table(
    cls: type,
    table: object,
    where: str,
    problems: list[str],
    *,
    searchable: bool = False,
    skip: Iterable[str] = (),
    space: Mapping[str, ParameterSpec] | None = None,
) -> dict[str, Any]:
    """Check a table against the fields of a frozen dataclass and fill in its defaults, those in `space` first.

    Mistakes are appended to `problems`; the result is complete only if there were none. With `searchable` a field
    may be a range or choices. The caller reads the fields in `skip`.
    """
    if not isinstance(table, Mapping):
        problems.append(f"{where}: {shown(table)} is not a table, write {where} on a line and its keys below")
        return {}
    known = {key: field for key, field in fields_of(cls).items() if key not in skip}
    problems += [_unknown(where, key, known) for key in table if key not in known and key not in skip]
    values: dict[str, Any] = {}
    for key, field in known.items():
        if key not in table:
            values[key] = (space or {}).get(key, field.default)
            if values[key] is MISSING:
                problems.append(f"{where} {key}: missing, give {field.allowed}")
            continue
        try:
            values[key] = read_spec(field, table[key]) if searchable else check_value(field, table[key])
        except FieldError as error:
            problems += [f"{where} {key}: {problem}" for problem in error.problems]
    return values


def read_named(
    table: object,
    where: str,
    registry: Mapping[str, type[Any]],
    problems: list[str],
    *,
    tag: str = "name",
    searchable: bool = False,
    space_of: SpaceOf | None = None,
) -> tuple[type[Any], dict[str, Any]] | None:
    """Return the dataclass that a table names, and its checked values; None if it names none (see `problems`).

    A misspelled name is taken for the nearest one, so that the other keys are checked as well.
    """
    if not isinstance(table, Mapping):
        problems.append(f"{where}: {shown(table)} is not a table, write {where} on a line and its keys below")
        return None
    if tag not in table:
        problems.append(f"{where} {tag}: missing, give one of {quoted(registry)}")
        return None
    name = table[tag]
    meant = name if isinstance(name, str) and name in registry else None
    if meant is None:
        meant = nearest(name, registry) if isinstance(name, str) else None
        problem = "a range is not allowed here" if isinstance(name, Mapping) else f"{shown(name)} is unknown"
        problems.append(f"{where} {tag}: {problem}, {_one_of(meant, registry)}")
    if meant is None:
        return None
    cls = registry[meant]
    space = space_of(meant) if space_of else None
    return cls, read_table(cls, table, where, problems, searchable=searchable, skip=[tag], space=space)


def _one_of(meant: str | None, known: Iterable[str]) -> str:
    return f"did you mean {json.dumps(meant)}? Allowed: {quoted(known)}" if meant else f"allowed: {quoted(known)}"


# --- tables -------------------------------------------------------------------------------------------------------


def _read(cls: type[Any], key: str, document: Mapping[str, Any], problems: list[str]) -> Any:  # noqa: ANN401 - cls
    """Return the dataclass filled from the table `key`; None if the table has a mistake."""
    before = len(problems)
    values = read_table(cls, document.get(key, {}), f"[{key}]", problems)
    return cls(**values) if len(problems) == before else None


def _read_name(document: Mapping[str, Any], stem: str, problems: list[str]) -> str:
    name = document.get("name", stem)
    if not (isinstance(name, str) and re.fullmatch(NAME, name)):
        source = "" if "name" in document else " (the name of the file)"
        problems.append(
            f"name: {shown(name)}{source} is not allowed, give up to 100 letters, digits, dots, dashes and underscores"
        )
    return str(name)


def _read_data(document: Mapping[str, Any], problems: list[str]) -> Any:  # noqa: ANN401 - one of the sources
    from sparse_evidence.core.corpus.sources import SOURCES  # imports numpy; `hpo --help` does not

    if "data" not in document:
        problems.append(f"[data]: missing, write [data] with source = one of {quoted(SOURCES)}")
        return None
    before = len(problems)
    named = read_named(document["data"], "[data]", SOURCES, problems, tag="source")
    if named is None or len(problems) > before:
        return None
    try:
        return named[0](**named[1])
    except ConfigError as error:
        problems.append(f"[data] {error}")
        return None


def _read_split(document: Mapping[str, Any], problems: list[str]) -> SplitConfig | None:
    """Return the split with its stages filled in: stating the default explicitly does not change the study."""
    split: SplitConfig | None = _read(SplitConfig, "split", document, problems)
    if split is None:
        return None
    if sum(split.stage_sizes()) != split.folds:
        stages, total = list(split.stages), sum(split.stages)
        problems.append(f"[split] stages: {stages} add up to {total}, not to folds = {split.folds}, make them agree")
    return replace(split, stages=split.stage_sizes())


def _read_search(table: object, problems: list[str]) -> SearchConfig | None:
    from sparse_evidence.core.metrics import METRICS

    before = len(problems)
    values = read_table(SearchConfig, table, "[search]", problems, skip=["pruner"])
    metric = values.get("metric")
    if metric is not None and metric not in METRICS:
        problems.append(f"[search] metric: {shown(metric)} is unknown, {_one_of(nearest(metric, METRICS), METRICS)}")
    pruner = table.get("pruner", {}) if isinstance(table, Mapping) else {}
    if isinstance(pruner, Mapping):
        pruner = read_table(PrunerConfig, pruner, "[search] pruner", problems)
    else:
        problems.append(f"[search] pruner: {shown(pruner)} is not a table, write pruner = {{ name = ... }}")
    return SearchConfig(**values, pruner=PrunerConfig(**pruner)) if len(problems) == before else None


def _read_alternatives(
    key: str, document: Mapping[str, Any], registry: Mapping[str, type], problems: list[str], space_of: SpaceOf
) -> tuple[Alternative, ...]:
    if key not in document:
        problems.append(f"[{key}]: missing, write [{key}] with name = one of {quoted(registry)}")
        return ()
    raw = document[key]
    if raw == []:
        problems.append(f"[[{key}]]: the list is empty, give at least one table with a name")
    alternatives: list[Alternative] = []
    for number, table in enumerate(raw if isinstance(raw, list) else [raw], 1):
        where = _place(key, table, number, registry) if isinstance(raw, list) else f"[{key}]"
        named = read_named(table, where, registry, problems, searchable=True, space_of=space_of)
        if named is None:
            continue
        if any(alternative.name == table["name"] for alternative in alternatives):
            problems.append(f"{where} name: given twice, write one table of that name with ranges in it")
        alternatives.append(Alternative(table["name"], named[1]))
    return tuple(alternatives)


def _read_searched(
    document: Mapping[str, Any], problems: list[str], *, by_default: bool
) -> dict[str, tuple[Alternative, ...]]:
    """Return the tables that may be searched; with `by_default`, keys that the file does not mention may be, too."""
    models = _read_alternatives("model", document, MODELS, problems, model_space if by_default else _nothing)
    training = _read_training(document.get("training", {}), models, problems, by_default=by_default)
    by_default = by_default and any(model.name not in SOLVED for model in models)
    losses = [{"name": name} for name in LOSS_SPACES] if by_default else {"name": "bce"}
    document = {"loss": losses, **document}
    loss = _read_alternatives("loss", document, LOSSES, problems, loss_space if by_default else _nothing)
    problems += _only_not_applying(models, training, loss)
    return {"model": models, "training": training, "loss": loss}


def _nothing(_name: str) -> Mapping[str, ParameterSpec]:
    return {}


def _read_training(
    table: object, models: tuple[Alternative, ...], problems: list[str], *, by_default: bool
) -> tuple[Alternative, ...]:
    """Return `[training]` as it is with each of the models: only their default spaces make a difference."""
    written = read_table(TrainingConfig, table, "[training]", problems, searchable=True)
    missing = written.keys() - table.keys() if isinstance(table, Mapping) else set()
    specs = dict.fromkeys((model.name for model in models), written)
    if by_default:
        for name in specs:
            specs[name] = written | {key: spec for key, spec in training_space(name).items() if key in missing}
    return tuple(Alternative(name, spec) for name, spec in specs.items())


def not_applying(
    models: tuple[Alternative, ...], training: tuple[Alternative, ...], loss: tuple[Alternative, ...]
) -> list[str]:
    """Return what the file searches of `[training]` and `[[loss]]` although every model is solved, as it writes it."""
    if any(model.name not in SOLVED for model in models):
        return []
    keys = dict.fromkeys(f"[training] {key}" for part in training for key in searched_keys(part.specs))
    keys |= dict.fromkeys(f"[[loss]] {key}" for part in loss for key in searched_keys(part.specs))
    return [*keys] or (["[[loss]]"] if len(loss) > 1 else [])


def _only_not_applying(
    models: tuple[Alternative, ...], training: tuple[Alternative, ...], loss: tuple[Alternative, ...]
) -> list[str]:
    if len(models) != 1 or searched_keys(models[0].specs):
        return []
    unapplied = not_applying(models, training, loss)
    reason = f"{models[0].name} is solved, not trained in epochs"
    return [f"{', '.join(unapplied)}: does not apply, {reason}, search settings of [model]"] if unapplied else []


def _place(key: str, table: object, number: int, registry: Mapping[str, type]) -> str:
    """Return how messages name a table of a list: `[[loss]] focal`, or `[[loss]] number 2`."""
    name = table.get("name") if isinstance(table, Mapping) else None
    return f"[[{key}]] {name}" if isinstance(name, str) and name in registry else f"[[{key}]] number {number}"


def _read_service(table: object, environ: Mapping[str, str], problems: list[str]) -> ServiceConfig | None:
    before = len(problems)
    values = read_table(ServiceConfig, table, "[service]", problems)
    overrides = _override(ServiceConfig, _OVERRIDES, float, values, environ, problems)
    if len(problems) > before:
        return None
    heartbeat, grace = values["heartbeat_seconds"], values["grace_seconds"]
    if grace <= heartbeat:
        overridden = {"heartbeat_seconds", "grace_seconds"} & overrides
        where = "HPO_GRACE_SECONDS" if overridden else "[service] grace_seconds"
        problems.append(
            f"{where}: {grace} seconds of grace must exceed the heartbeat of {heartbeat}, give several times that"
        )
    return ServiceConfig(**values)


def _read_confirm(table: object, environ: Mapping[str, str], problems: list[str]) -> ConfirmConfig | None:
    before = len(problems)
    values = read_table(ConfirmConfig, table, "[confirm]", problems)
    _override(ConfirmConfig, CONFIRM_OVERRIDES, int, values, environ, problems)
    return ConfirmConfig(**values) if len(problems) == before else None


def _override(
    cls: type,
    variables: Mapping[str, str],
    parse: Callable[[str], float],
    values: dict[str, Any],
    environ: Mapping[str, str],
    problems: list[str],
) -> set[str]:
    """Replace values of a table by those of environment variables that are set; returns the keys replaced."""
    overrides = {key: variable for key, variable in variables.items() if variable in environ}
    for key, variable in overrides.items():
        field = fields_of(cls)[key]
        try:
            values[key] = check_value(field, parse(environ[variable]))
        except ValueError:
            problems.append(f"{variable}: {shown(environ[variable])} is not allowed, give {field.allowed}")
    return set(overrides)


# --- unknown keys -------------------------------------------------------------------------------------------------


def _unknown(where: str, key: str, known: Iterable[str]) -> str:
    """Describe a key that the table does not have: it is misspelled, or belongs to another table."""
    path = f"{where} {key}".strip()
    table = where.lstrip("[").partition("]")[0]
    owners = _tables_of_key(key)
    if table in ("model", "loss") and owners.get(table):
        return f"{path}: unknown key, it belongs to the {table} {owners[table]}"
    if nearest(key, known):
        return f"{path}: unknown key, {hint(key, known)}"
    for other, names in owners.items():
        if other != table:
            return f"{path}: unknown key, it belongs in [{other}]{f' ({names})' if names else ''}"
    return f"{path}: unknown key, {hint(key, known)}"


def _tables_of_key(key: str) -> dict[str, str]:
    """Return the tables that have the key; for models and losses, with the names of those that have it."""
    tables: dict[str, type[Any]] = {
        "chunks": ChunksConfig,
        "split": SplitConfig,
        "search": SearchConfig,
        "training": TrainingConfig,
        "confirm": ConfirmConfig,
        "service": ServiceConfig,
    }
    owners = {table: "" for table, cls in tables.items() if _has_field(cls, key)}
    registries: dict[str, Mapping[str, type[Any]]] = {"model": MODELS, "loss": LOSSES}
    for table, registry in registries.items():
        names = [name for name, cls in registry.items() if _has_field(cls, key)]
        if names:
            owners[table] = " and ".join(names) if len(names) < len(registry) else ""
    return owners


def _has_field(cls: type[Any], key: str) -> bool:
    return any(field.name == key for field in fields(cls))
