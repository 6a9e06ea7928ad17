"""Study files: studies/*.toml -> StudyDefinition, every mistake at once, and the hash that identifies a study.

Names, bounds and defaults are nowhere repeated: they are read off the frozen dataclasses that are to be filled
(`core.config`, `core.corpus.sources` and the three below), so a field added there can be written in a file here.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import tomllib
import typing
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from annotated_types import Interval

from sparse_evidence.core.config import LOSSES, MODELS, ChunksConfig, Count, Positive, SplitConfig, TrainingConfig

from ..errors import DefinitionError
from .fields import (
    Choices,
    Leaf,
    LeafError,
    Range,
    checked_value,
    fields_of,
    nearest,
    quoted,
    read_leaf,
    shown,
)

if TYPE_CHECKING:
    from sparse_evidence.core.corpus.sources import Source


@dataclass(frozen=True)
class PrunerConfig:
    """When a trial is given up."""

    name: Literal["same_folds", "none"] = "same_folds"
    percentile: Annotated[float, Interval(gt=0, lt=100)] = 25.0
    """After every stage but the last, a trial goes on when its mean is within this best share of the trials on the same
    folds."""
    startup_trials: Annotated[int, Interval(ge=0)] = 1
    """Nothing is pruned before this many other trials have reported at the stage."""
    within_stages: bool = True
    """Also after every epoch, by where the trial's best would be after `patience` more epochs at its pace in the last
    half of `patience`."""


@dataclass(frozen=True)
class SearchConfig:
    """What is searched for, how long, and how."""

    metric: str = "average_precision"
    """Mean over folds of the mean over criteria."""
    trials: Count = 40
    """Trials to finish, complete or pruned. May be raised later: it is no part of the study's identity."""
    seed: Annotated[int, Interval(ge=0, lt=2**32)] = 0
    """Seed of the sampler and of the training."""
    sampler: Literal["tpe", "random"] = "tpe"
    pruner: PrunerConfig = PrunerConfig()


@dataclass(frozen=True)
class ServiceConfig:
    """How a study is run; no part of its identity."""

    heartbeat_seconds: Positive = 20.0
    """A worker says this often that it lives. HPO_HEARTBEAT_SECONDS overrides."""
    grace_seconds: Positive = 120.0
    """A trial whose worker was silent for this long goes to another. HPO_GRACE_SECONDS overrides."""
    max_attempts: Count = 3
    """A trial whose worker died, failed or stalled this often is given up, as infeasible."""
    checkpoint_seconds: Annotated[float, Interval(ge=0)] = 5.0
    """A trial's state is saved after an epoch, but no more often than this; 0: after every epoch. What was not saved is
    computed again, to the same bits. HPO_CHECKPOINT_SECONDS overrides."""
    stall_seconds: Positive = 3600.0
    """A worker whose trial ended no epoch for this long ends itself, and the trial goes to another: choose it longer
    than the longest epoch. HPO_STALL_SECONDS overrides."""


@dataclass(frozen=True)
class Alternative:
    """One `[[model]]` or `[[loss]]`: its name, and every other field with its value or range."""

    name: str
    leaves: Mapping[str, Leaf]


@dataclass(frozen=True)
class StudyDefinition:
    """A study file, checked, with every default filled in."""

    name: str
    path: Path
    data: Source
    """Its paths are as written, relative to the file: `definition.data.load(definition.path.parent)`."""
    chunks: ChunksConfig
    split: SplitConfig
    search: SearchConfig
    model: tuple[Alternative, ...]
    training: Mapping[str, Leaf]
    loss: tuple[Alternative, ...]
    service: ServiceConfig

    def canonical(self) -> dict[str, Any]:
        """Return the study's identity as JSON: everything that can change a trial's result.

        Left out are where the file lies, how the study is run (`[service]`) and how long (`search.trials`).
        """
        search = asdict(self.search)
        del search["trials"]
        return {
            "name": self.name,
            "data": asdict(self.data),
            "chunks": asdict(self.chunks),
            "split": {**asdict(self.split), "stages": list(self.split.stages)},
            "search": search,
            "model": [_alternative_json(alternative) for alternative in self.model],
            "training": {key: _leaf_json(leaf) for key, leaf in self.training.items()},
            "loss": [_alternative_json(alternative) for alternative in self.loss],
        }

    def sha256(self) -> str:
        """Return the hash of `canonical()`; the same for every way of writing the same study."""
        text = json.dumps(self.canonical(), sort_keys=True, separators=(",", ":"), allow_nan=False)
        return hashlib.sha256(text.encode()).hexdigest()


def load(path: Path, *, environ: Mapping[str, str] = os.environ) -> StudyDefinition:
    """Read and check a study file.

    `environ` may override the `[service]` table: `HPO_HEARTBEAT_SECONDS`, `HPO_GRACE_SECONDS`,
    `HPO_CHECKPOINT_SECONDS`, `HPO_STALL_SECONDS`.

    Raises `DefinitionError`: one sentence where the file cannot be read, else one that lists every mistake.
    """
    path = Path(path)
    tables = _parse(path)
    problems: list[str] = []
    parts = _read_file(tables, path.stem, problems)
    service = _read_service(tables.get("service", {}), environ, problems)
    if problems:
        outside = [problem.startswith("HPO_") for problem in problems]
        if all(outside):
            raise DefinitionError.listing("the environment", problems)
        if any(outside):
            raise DefinitionError.listing(f"{path.name} and the environment", problems, verb="have")
        raise DefinitionError.listing(path.name, problems)
    return StudyDefinition(path=path, service=ServiceConfig(**service), **parts)


def differences(mine: Mapping[str, Any], theirs: Mapping[str, Any]) -> list[str]:
    """Tell what differs between two `canonical()` forms, a sentence each: mine is here, theirs in the study."""
    several = {key for form in (mine, theirs) for key, part in form.items() if isinstance(part, list) and len(part) > 1}
    here, there = _flat(mine, several), _flat(theirs, several)
    pairs = {key: (here.get(key, _LEFT_OUT), there.get(key, _LEFT_OUT)) for key in dict.fromkeys([*here, *there])}
    return [
        f"{key} is {ours} here and {others} in the study" for key, (ours, others) in pairs.items() if ours != others
    ]


def read_table(
    cls: type, table: object, where: str, problems: list[str], *, searchable: bool = False, skip: Iterable[str] = ()
) -> dict[str, Any]:
    """Check a table against the fields of a frozen dataclass and fill in its defaults.

    Mistakes are appended to `problems`; the result is only complete where none were. With `searchable` a field
    may be a range. The fields in `skip` are somebody else's.
    """
    if not isinstance(table, Mapping):
        problems.append(f"{where}: {shown(table)} is not a table, write {where} on a line and its keys below")
        return {}
    known = {key: field for key, field in fields_of(cls).items() if key not in skip}
    problems += [_unknown(where, key, known) for key in table if key not in known and key not in skip]
    values: dict[str, Any] = {}
    for key, field in known.items():
        spot = f"{where} {key}"
        if key not in table:
            if field.default is MISSING:
                problems.append(f"{spot}: missing, give {field.allowed}")
            else:
                values[key] = field.default
            continue
        try:
            values[key] = read_leaf(field, table[key]) if searchable else checked_value(field, table[key])
        except LeafError as wrong:
            problems += [f"{spot}: {message}" for message in wrong.messages]
    return values


# --- the file -----------------------------------------------------------------------------------------------------


_TABLES = ("data", "chunks", "split", "search", "model", "training", "loss", "service")
NAME = r"[A-Za-z0-9._\-]{1,100}"
_ENVIRONMENT = {
    key: f"HPO_{key.upper()}" for key in ("heartbeat_seconds", "grace_seconds", "checkpoint_seconds", "stall_seconds")
}


def _parse(path: Path) -> dict[str, Any]:
    if path.is_dir():
        raise DefinitionError(f"{path} is a folder, not a study file; give the path of a .toml file")
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except FileNotFoundError:
        meant = nearest(path.name, [sibling.name for sibling in path.parent.glob("*.toml")])
        hint = f"did you mean {path.parent / meant}?" if meant else "check the path"
        raise DefinitionError(f"{path} does not exist; {hint}") from None
    except UnicodeDecodeError as error:
        raise DefinitionError(f"{path} is not UTF-8 text (byte {error.start}); save it as UTF-8") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise DefinitionError(f"{path} cannot be read ({reason}); check its name and permissions") from None
    try:
        return tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise DefinitionError(f"{path} is not valid TOML: {error}; mend that place first") from None


def _read_file(tables: Mapping[str, Any], stem: str, problems: list[str]) -> dict[str, Any]:
    """Everything but `[service]`."""
    known = ("name", *_TABLES)
    problems += [_unknown("", key, known) for key in tables if key not in known]
    parts: dict[str, Any] = {"name": _read_name(tables, stem, problems), "data": _read_data(tables, problems)}
    for key, cls in (("chunks", ChunksConfig), ("split", SplitConfig)):
        values = read_table(cls, tables.get(key, {}), f"[{key}]", problems)
        if key == "split":
            values = _check_split(values, problems)
        parts[key] = values and _built(cls, values, problems)
    parts["search"] = _read_search(tables.get("search", {}), problems)
    if "model" in tables:
        parts["model"] = _read_alternatives("model", tables["model"], MODELS, problems)
    else:
        problems.append(f"[model]: missing, write [model] with name = one of {quoted(MODELS)}")
    parts["training"] = read_table(TrainingConfig, tables.get("training", {}), "[training]", problems, searchable=True)
    parts["loss"] = _read_alternatives("loss", tables.get("loss", {"name": "bce"}), LOSSES, problems)
    return parts


def _built(cls: type, values: dict[str, Any], problems: list[str]) -> Any:  # noqa: ANN401 - any of our dataclasses
    """Return the dataclass, unless there are mistakes: then nothing is built at all."""
    return None if problems else cls(**values)


def _read_name(tables: Mapping[str, Any], stem: str, problems: list[str]) -> str:
    name = tables.get("name", stem)
    if not (isinstance(name, str) and re.fullmatch(NAME, name)):
        source = "" if "name" in tables else " (the file's own name)"
        problems.append(
            f"name: {shown(name)}{source} is not allowed, give up to 100 letters, digits, dots, dashes and underscores"
        )
    return str(name)


def _read_data(tables: Mapping[str, Any], problems: list[str]) -> Source | None:
    from sparse_evidence.core.corpus.sources import SOURCES  # tables need pandas; `hpo --help` does not

    if "data" not in tables:
        problems.append(f"[data]: missing, write [data] with source = one of {quoted(SOURCES)}")
        return None
    cls = _chosen("[data]", "source", tables["data"], SOURCES, problems)
    if cls is None:
        return None
    values = read_table(cls, tables["data"], "[data]", problems, skip=["source"])
    return typing.cast("Source | None", _built(cls, values, problems))


def _chosen(where: str, key: str, table: object, registry: Mapping[str, type], problems: list[str]) -> type[Any] | None:
    """Return the class a table names; for a misspelt name the one that was meant, so that the rest is checked too."""
    if not isinstance(table, Mapping):
        problems.append(f"{where}: {shown(table)} is not a table, write {where} on a line and its keys below")
        return None
    if key not in table:
        problems.append(f"{where} {key}: missing, give one of {quoted(registry)}")
        return None
    name = table[key]
    if isinstance(name, str) and name in registry:
        return registry[name]
    meant = nearest(name, registry) if isinstance(name, str) else None
    hint = f"did you mean {json.dumps(meant)}? " if meant else ""
    kind = "a range is not allowed here" if isinstance(name, Mapping) else f"{shown(name)} is unknown"
    problems.append(f"{where} {key}: {kind}, {hint}{'A' if hint else 'a'}llowed: {quoted(registry)}")
    return registry[meant] if meant else None


def _check_split(values: dict[str, Any], problems: list[str]) -> dict[str, Any]:
    """Return the stages filled in, so that writing the default changes nothing."""
    if not {"folds", "stages"} <= set(values):
        return values
    split = SplitConfig(folds=values["folds"], stages=values["stages"])
    if sum(split.stage_sizes()) != split.folds:
        total = sum(split.stages)
        problems.append(
            f"[split] stages: {list(split.stages)} add up to {total}, not to folds = {split.folds}, make them agree"
        )
    return {**values, "stages": split.stage_sizes()}


def _read_search(table: object, problems: list[str]) -> SearchConfig | None:
    from sparse_evidence.core.metrics import METRICS

    values = read_table(SearchConfig, table, "[search]", problems, skip=["pruner"])
    metric = values.get("metric")
    if metric is not None and metric not in METRICS:
        meant = nearest(metric, METRICS)
        hint = f"did you mean {json.dumps(meant)}? Allowed" if meant else "allowed"
        problems.append(f"[search] metric: {shown(metric)} is unknown, {hint}: {quoted(METRICS)}")
    pruner = table.get("pruner", {}) if isinstance(table, Mapping) else {}
    if not isinstance(pruner, Mapping):
        problems.append(f"[search] pruner: {shown(pruner)} is not a table, write pruner = {{ name = ... }}")
        return None
    inner = read_table(PrunerConfig, pruner, "[search] pruner", problems)
    return None if problems else SearchConfig(**values, pruner=PrunerConfig(**inner))


def _read_alternatives(
    key: str, raw: object, registry: Mapping[str, type], problems: list[str]
) -> tuple[Alternative, ...]:
    if isinstance(raw, list) and not raw:
        problems.append(f"[[{key}]]: the list is empty, give at least one table with a name")
    tables = raw if isinstance(raw, list) else [raw]
    alternatives: list[Alternative] = []
    for number, table in enumerate(tables, 1):
        where = f"[{key}]"
        if isinstance(raw, list):
            name = table.get("name") if isinstance(table, Mapping) else None
            where = f"[[{key}]] {name}" if isinstance(name, str) and name in registry else f"[[{key}]] number {number}"
        cls = _chosen(where, "name", table, registry, problems)
        if cls is None:
            continue
        leaves = read_table(cls, table, where, problems, searchable=True, skip=["name"])
        if any(alternative.name == table["name"] for alternative in alternatives):
            problems.append(f"{where} name: given twice, write one table of that name with ranges in it")
        alternatives.append(Alternative(table["name"], leaves))
    return tuple(alternatives)


def _read_service(raw: object, environ: Mapping[str, str], problems: list[str]) -> dict[str, Any]:
    before = len(problems)
    values = read_table(ServiceConfig, raw, "[service]", problems)
    for key, variable in _ENVIRONMENT.items():
        if variable not in environ:
            continue
        field = fields_of(ServiceConfig)[key]
        try:
            values[key] = checked_value(field, float(environ[variable]))
        except ValueError:
            problems.append(f"{variable}: {shown(environ[variable])} is not allowed, give {field.allowed}")
    if len(problems) == before and values["grace_seconds"] <= values["heartbeat_seconds"]:
        overridden = any(_ENVIRONMENT[key] in environ for key in ("heartbeat_seconds", "grace_seconds"))
        where = "HPO_GRACE_SECONDS" if overridden else "[service] grace_seconds"
        heartbeat, grace = values["heartbeat_seconds"], values["grace_seconds"]
        problems.append(
            f"{where}: {grace} seconds of grace must exceed the heartbeat of {heartbeat}, give several times it"
        )
    return values


# --- words --------------------------------------------------------------------------------------------------------


def _unknown(where: str, key: str, known: Iterable[str]) -> str:
    """Return the sentence for a key that is not known there."""
    spot = f"{where} {key}".strip()
    meant = nearest(key, known)
    if meant:
        return f"{spot}: unknown key, did you mean {meant}?"
    for table, classes in _homes().items():
        if table != where and any(key in fields_of(cls) for cls in classes):
            return f"{spot}: unknown key, it belongs in {table}"
    return f"{spot}: unknown key, allowed: {', '.join(known) or 'none'}"


def _homes() -> dict[str, list[type]]:
    """Each table, and the dataclasses that fill it."""
    return {
        "[chunks]": [ChunksConfig],
        "[split]": [SplitConfig],
        "[search]": [SearchConfig],
        "[training]": [TrainingConfig],
        "[model]": list(MODELS.values()),
        "[loss]": list(LOSSES.values()),
        "[service]": [ServiceConfig],
    }


# --- identity -----------------------------------------------------------------------------------------------------


_LEFT_OUT = "left out"


def _leaf_json(leaf: Leaf) -> object:
    if isinstance(leaf, Range):
        return {key: value for key, value in asdict(leaf).items() if key != "integer"}
    if isinstance(leaf, Choices):
        return {"choices": list(leaf.values), "default": leaf.default}
    return leaf


def _alternative_json(alternative: Alternative) -> dict[str, object]:
    return {"name": alternative.name, **{key: _leaf_json(leaf) for key, leaf in alternative.leaves.items()}}


def _flat(value: object, several: set[str], prefix: str = "") -> dict[str, str]:
    """Return a canonical form as dotted keys and readable values; those in `several` are named by alternative."""
    if isinstance(value, Mapping) and not {"low", "choices"} & set(value):
        dotted = f"{prefix}." if prefix else ""
        return {key: text for part in value for key, text in _flat(value[part], several, f"{dotted}{part}").items()}
    if isinstance(value, list) and value and all(isinstance(item, Mapping) for item in value):
        names = [str(item.get("name")) for item in value]
        flat = {prefix: ", ".join(names)}
        for name, item in zip(names, value, strict=True):
            rest = {key: part for key, part in item.items() if key != "name"}
            flat |= _flat(rest, several, f"{prefix}.{name}" if prefix in several else prefix)
        return flat
    return {prefix: _leaf_text(value)}


def _leaf_text(value: object) -> str:
    if isinstance(value, Mapping) and "low" in value:
        known = {key: value.get(key) for key in ("low", "high", "log", "step")}
        return f"{Range(**known)}, default {value.get('default')}"  # type: ignore[arg-type]
    if isinstance(value, Mapping):
        return f"{Choices(tuple(value['choices']))}, default {value.get('default')}"
    return _LEFT_OUT if value is None else str(value)
