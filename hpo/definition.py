"""Study files: studies/*.toml -> StudyDefinition, every mistake at once, and the hash that identifies a study.

Names, bounds and defaults are nowhere repeated: they are read off the frozen dataclasses that are to be filled
(`core.config`, `core.sources` and the two below), so a field added there can be written in a file here.
"""

from __future__ import annotations

import ast
import difflib
import hashlib
import inspect
import json
import math
import os
import re
import textwrap
import tomllib
import typing
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, asdict, dataclass, fields, is_dataclass, replace
from fractions import Fraction
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from annotated_types import Interval
from pydantic import ConfigDict, TypeAdapter, ValidationError

from core.config import LOSSES, MODELS, ChunksConfig, Count, Positive, SplitConfig, TrainingConfig
from hpo.errors import DefinitionError

if TYPE_CHECKING:
    from core.sources import Source

Scalar = str | int | float | bool | None


@dataclass(frozen=True)
class PrunerConfig:
    """When a trial is given up between two stages."""

    name: Literal["same_folds", "none"] = "same_folds"
    percentile: Annotated[float, Interval(gt=0, lt=100)] = 50.0
    """A trial goes on when its mean is within this best share of the trials that finished the same folds."""
    startup_trials: Annotated[int, Interval(ge=0)] = 5
    """Nothing is pruned before this many trials have reported at the stage."""


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
    """A trial that was taken over this often is given up."""


@dataclass(frozen=True)
class Range:
    """A number to be searched between two ends, both included."""

    low: float
    high: float
    log: bool = False
    step: float | None = None
    integer: bool = False
    default: float | None = None
    """Trial 0 starts here; `load` always fills it in."""

    def __str__(self) -> str:
        """`2 to 6`, `0.05 to 1.0 (log)`, `8 to 64 in steps of 8`."""
        steps = f" in steps of {self.step}" if self.step is not None else ""
        return f"{self.low} to {self.high}{' (log)' if self.log else ''}{steps}"

    def middle(self) -> float:
        """Return the middle of the range, geometric where it is searched in log, to four digits."""
        value = math.sqrt(self.low * self.high) if self.log else (self.low + self.high) / 2
        return self.snap(float(f"{value:.4g}"))

    def snap(self, value: float) -> float:
        """Return the nearest value that can be drawn."""
        if self.step is not None:
            low, step = Fraction(str(self.low)), Fraction(str(self.step))
            value = float(low + round((Fraction(str(value)) - low) / step) * step)
        value = min(max(value, self.low), self.high)
        return round(value) if self.integer else float(value)


@dataclass(frozen=True)
class Choices:
    """A value to be searched among a few."""

    values: tuple[Scalar, ...]
    default: Scalar = None
    """Trial 0 takes this one; `load` always fills it in."""

    def __str__(self) -> str:
        """`one of 2, 4, 8`."""
        return f"one of {', '.join(str(value) for value in self.values)}"


Leaf = Scalar | Range | Choices


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

    `environ` may override the `[service]` table: `HPO_HEARTBEAT_SECONDS`, `HPO_GRACE_SECONDS`.

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
        problems.append(f"{where}: {_shown(table)} is not a table, write {where} on a line and its keys below")
        return {}
    known = {key: field for key, field in _fields_of(cls).items() if key not in skip}
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
            values[key] = _leaf(field, table[key]) if searchable else _value(field, table[key])
        except _LeafError as wrong:
            problems += [f"{spot}: {message}" for message in wrong.messages]
    return values


def nearest(word: str, known: Iterable[str]) -> str | None:
    """Return the known word that was probably meant."""
    return next(iter(difflib.get_close_matches(str(word), list(known), n=1)), None)


# --- the file -----------------------------------------------------------------------------------------------------


_TABLES = ("data", "chunks", "split", "search", "model", "training", "loss", "service")
_NAME = r"[A-Za-z0-9._\-]{1,100}"
_MOST_STEPS = 1_000_000
_ENVIRONMENT = {"heartbeat_seconds": "HPO_HEARTBEAT_SECONDS", "grace_seconds": "HPO_GRACE_SECONDS"}


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
        problems.append(f"[model]: missing, write [model] with name = one of {_quoted(MODELS)}")
    parts["training"] = read_table(TrainingConfig, tables.get("training", {}), "[training]", problems, searchable=True)
    parts["loss"] = _read_alternatives("loss", tables.get("loss", {"name": "bce"}), LOSSES, problems)
    return parts


def _built(cls: type, values: dict[str, Any], problems: list[str]) -> Any:  # noqa: ANN401 - any of our dataclasses
    """Return the dataclass, unless there are mistakes: then nothing is built at all."""
    return None if problems else cls(**values)


def _read_name(tables: Mapping[str, Any], stem: str, problems: list[str]) -> str:
    name = tables.get("name", stem)
    if not (isinstance(name, str) and re.fullmatch(_NAME, name)):
        source = "" if "name" in tables else " (the file's own name)"
        problems.append(
            f"name: {_shown(name)}{source} is not allowed, give up to 100 letters, digits, dots, dashes and underscores"
        )
    return str(name)


def _read_data(tables: Mapping[str, Any], problems: list[str]) -> Source | None:
    from core.sources import SOURCES  # tables need pandas; `hpo --help` does not

    if "data" not in tables:
        problems.append(f"[data]: missing, write [data] with source = one of {_quoted(SOURCES)}")
        return None
    cls = _chosen("[data]", "source", tables["data"], SOURCES, problems)
    if cls is None:
        return None
    values = read_table(cls, tables["data"], "[data]", problems, skip=["source"])
    return typing.cast("Source | None", _built(cls, values, problems))


def _chosen(where: str, key: str, table: object, registry: Mapping[str, type], problems: list[str]) -> type[Any] | None:
    """Return the class a table names; for a misspelt name the one that was meant, so that the rest is checked too."""
    if not isinstance(table, Mapping):
        problems.append(f"{where}: {_shown(table)} is not a table, write {where} on a line and its keys below")
        return None
    if key not in table:
        problems.append(f"{where} {key}: missing, give one of {_quoted(registry)}")
        return None
    name = table[key]
    if isinstance(name, str) and name in registry:
        return registry[name]
    meant = nearest(name, registry) if isinstance(name, str) else None
    hint = f"did you mean {json.dumps(meant)}? " if meant else ""
    kind = "a range is not allowed here" if isinstance(name, Mapping) else f"{_shown(name)} is unknown"
    problems.append(f"{where} {key}: {kind}, {hint}{'A' if hint else 'a'}llowed: {_quoted(registry)}")
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
    from core.metrics import METRICS

    values = read_table(SearchConfig, table, "[search]", problems, skip=["pruner"])
    metric = values.get("metric")
    if metric is not None and metric not in METRICS:
        meant = nearest(metric, METRICS)
        hint = f"did you mean {json.dumps(meant)}? Allowed" if meant else "allowed"
        problems.append(f"[search] metric: {_shown(metric)} is unknown, {hint}: {_quoted(METRICS)}")
    pruner = table.get("pruner", {}) if isinstance(table, Mapping) else {}
    if not isinstance(pruner, Mapping):
        problems.append(f"[search] pruner: {_shown(pruner)} is not a table, write pruner = {{ name = ... }}")
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
        field = _fields_of(ServiceConfig)[key]
        try:
            values[key] = _value(field, float(environ[variable]))
        except ValueError:
            problems.append(f"{variable}: {_shown(environ[variable])} is not allowed, give {field.allowed}")
    if len(problems) == before and values["grace_seconds"] <= values["heartbeat_seconds"]:
        overridden = any(variable in environ for variable in _ENVIRONMENT.values())
        where = "HPO_GRACE_SECONDS" if overridden else "[service] grace_seconds"
        heartbeat, grace = values["heartbeat_seconds"], values["grace_seconds"]
        problems.append(
            f"{where}: {grace} seconds of grace must exceed the heartbeat of {heartbeat}, give several times it"
        )
    return values


# --- a field ------------------------------------------------------------------------------------------------------


class _LeafError(ValueError):
    """Why a value, range or choice cannot be used."""

    def __init__(self, *messages: str) -> None:
        super().__init__("; ".join(messages))
        self.messages = messages


@dataclass(frozen=True)
class _Field:
    """A field of one of our dataclasses, as the file sees it."""

    key: str
    adapter: TypeAdapter[Any]
    schema: dict[str, Any]
    allowed: str
    default: Any

    @property
    def kind(self) -> str:
        return str(self.schema["type"])


@lru_cache
def _fields_of(cls: type) -> dict[str, _Field]:
    """Return the fields that a file may give, with bounds and defaults as the dataclass has them."""
    hints = typing.get_type_hints(cls, include_extras=True)
    found = {}
    for field in fields(cls):
        if is_dataclass(hints[field.name]):
            continue
        adapter: TypeAdapter[Any] = TypeAdapter(hints[field.name], config=ConfigDict(strict=True, allow_inf_nan=False))
        schema = adapter.json_schema()
        schema = next((part for part in schema.get("anyOf", []) if part["type"] != "null"), schema)
        found[field.name] = _Field(field.name, adapter, schema, _allowed(schema), field.default)
    return found


def _allowed(schema: Mapping[str, Any]) -> str:
    """Tell what a field takes, in words."""
    if "enum" in schema or "const" in schema:
        return f"one of {_quoted(schema.get('enum', [schema.get('const')]))}"
    if schema["type"] == "array":
        return f"a list, each item {_allowed(schema['items'])}"
    words = {"integer": "a whole number", "number": "a number", "string": "text", "boolean": "true or false"}
    return words[schema["type"]] + _bounds(schema)


def _bounds(schema: Mapping[str, Any]) -> str:
    if {"minimum", "maximum"} <= set(schema):
        return f" from {schema['minimum']} to {schema['maximum']}"
    limits = {
        "minimum": "of at least",
        "exclusiveMinimum": "above",
        "maximum": "of at most",
        "exclusiveMaximum": "below",
    }
    words = [f"{word} {schema[key]}" for key, word in limits.items() if key in schema]
    return f" {' and '.join(words)}" if words else ""


def _value(field: _Field, value: object) -> Any:  # noqa: ANN401 - whatever the field holds
    """Return the value, as the field's type. Raises `_LeafError` where it is not allowed."""
    if isinstance(value, Mapping):
        searching = {"low", "high", "choices"} & set(value)
        raise _LeafError(f"a {'range' if searching else 'table'} is not allowed here, give {field.allowed}")
    if field.kind == "array" and isinstance(value, list):
        value = tuple(value)
    try:
        return field.adapter.validate_python(value)
    except ValidationError:
        raise _LeafError(f"{_why_not(field, value)}, give {field.allowed}") from None


def _why_not(field: _Field, value: object) -> str:
    shown = _shown(value)
    numeric = field.kind in ("integer", "number")
    if isinstance(value, bool):
        return f"{shown} is a truth value"
    if isinstance(value, str) and field.kind != "string":
        return f"{shown} is text" + (" (leave out the quotes)" if numeric else "")
    if isinstance(value, float) and field.kind == "integer":
        return f"{shown} is not a whole number"
    if isinstance(value, (int, float)) and field.kind == "string":
        return f"{shown} is a number, not text"
    if isinstance(value, list):
        return f"{shown} is a list (to search it, write {{ choices = {shown} }})"
    return f"{shown} is not allowed"


def _leaf(field: _Field, raw: object) -> Leaf:
    """Return a value, or what is searched. Raises `_LeafError` with every mistake in it."""
    if not isinstance(raw, Mapping):
        return typing.cast("Scalar", _value(field, raw))
    return _choices(field, raw) if "choices" in raw else _range(field, raw)


def _choices(field: _Field, raw: Mapping[str, Any]) -> Choices:
    wrong = _unknown_in(raw, ("choices", "default"), "a table of choices")
    given = raw["choices"]
    if not isinstance(given, list):
        raise _LeafError(*wrong, f"choices {_shown(given)} is not a list, write choices = [ ... ]")
    values = [_checked(field, "choice", value, wrong) for value in given]
    if wrong:
        raise _LeafError(*wrong)
    if not values:
        raise _LeafError("choices is empty, give at least two values")
    doubles = {_shown(value) for value in values if values.count(value) > 1}
    if doubles:
        raise _LeafError(f"choices has {', '.join(sorted(doubles))} more than once, give each value once")
    if len(values) == 1:
        raise _LeafError(f"choices has one value, give the value itself: {field.key} = {_shown(values[0])}")
    if "default" in raw:
        default = _checked(field, "default", raw["default"], wrong)
        if not wrong and default not in values:
            wrong.append(f"default {_shown(default)} is not among the choices, give one of {_quoted(values)}")
    else:
        default = field.default if field.default in values else values[0]
    if wrong:
        raise _LeafError(*wrong)
    return Choices(tuple(values), default)


def _range(field: _Field, raw: Mapping[str, Any]) -> Range:
    if field.kind not in ("integer", "number"):
        raise _LeafError("a range is for numbers, write { choices = [ ... ] }")
    wrong = _unknown_in(raw, ("low", "high", "log", "step", "default"), "a range")
    ends = {}
    for end in ("low", "high"):
        if end not in raw:
            wrong.append(f"{end} is missing, a range is {{ low = ..., high = ... }} or {{ choices = [ ... ] }}")
            continue
        ends[end] = _checked(field, end, raw[end], wrong)
    log = raw.get("log", False)
    if not isinstance(log, bool):
        wrong.append(f"log {_shown(log)} is not allowed, give true or false")
    step = raw.get("step")
    if step is not None and not _is_step(step, whole=field.kind == "integer"):
        kind = "whole number" if field.kind == "integer" else "number"
        wrong.append(f"step {_shown(step)} is not allowed, give a {kind} above 0")
    default = _checked(field, "default", raw["default"], wrong) if "default" in raw else None
    if wrong:
        raise _LeafError(*wrong)
    step = float(step) if step is not None and field.kind == "number" else step
    found = Range(ends["low"], ends["high"], log, step, field.kind == "integer", default)
    wrong += _range_problems(field, found)
    if wrong:
        raise _LeafError(*wrong)
    return replace(found, default=_range_default(field, found))


def _range_problems(field: _Field, found: Range) -> list[str]:
    """Tell what is wrong with a range whose every part is right."""
    low, high, step, default = found.low, found.high, found.step, found.default
    if low > high:
        return [f"low {low} is above high {high} (swap them)"]
    if low == high:
        return [f"low and high are both {low}, give the value itself: {field.key} = {low}"]
    wrong = []
    if found.log and low <= 0:
        wrong.append(f"log needs low above 0, not {low}, raise low or leave out log")
    if found.log and step is not None:
        wrong.append("log and step exclude each other, leave one out")
    elif step is not None:
        first, width = Fraction(str(low)), Fraction(str(step))
        steps, rest = divmod(Fraction(str(high)) - first, width)
        if steps > _MOST_STEPS:
            wrong.append(f"step {step} makes more than {_MOST_STEPS} steps, make it larger or leave it out")
        elif rest:
            fitting = [first + count * width for count in (steps, steps + 1) if count]
            ends = " or ".join(str(int(end) if found.integer else float(end)) for end in fitting)
            wrong.append(f"steps of {step} from low {low} do not reach high {high}, make high {ends}")
    if default is not None and not low <= default <= high:
        wrong.append(f"default {default} is not between low {low} and high {high}, move it inside")
    elif default is not None and not wrong and not math.isclose(found.snap(default), default):
        wrong.append(
            f"default {default} is not on the steps of {step} from {low}, the nearest is {found.snap(default)}"
        )
    return wrong


def _range_default(field: _Field, found: Range) -> float:
    """Where trial 0 starts: as written, else the field's own default, else the middle."""
    if found.default is not None:
        return found.snap(found.default)
    own = field.default
    if isinstance(own, (int, float)) and found.low <= own <= found.high:
        return found.snap(own)
    return found.middle()


def _checked(field: _Field, what: str, value: object, wrong: list[str]) -> Any:  # noqa: ANN401 - the field's type
    """Return the value, or None with the reason appended to `wrong`."""
    try:
        return _value(field, value)
    except _LeafError as error:
        wrong += [f"{what} {message}" for message in error.messages]
        return None


def _is_step(step: object, *, whole: bool) -> bool:
    if isinstance(step, bool) or not isinstance(step, int if whole else (int, float)):
        return False
    return math.isfinite(step) and step > 0


# --- words --------------------------------------------------------------------------------------------------------


def _unknown(where: str, key: str, known: Iterable[str]) -> str:
    """Return the sentence for a key that is not known there."""
    spot = f"{where} {key}".strip()
    meant = nearest(key, known)
    if meant:
        return f"{spot}: unknown key, did you mean {meant}?"
    for table, classes in _homes().items():
        if table != where and any(key in _fields_of(cls) for cls in classes):
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


def _unknown_in(raw: Mapping[str, Any], known: tuple[str, ...], what: str) -> list[str]:
    wrong = []
    for key in raw:
        if key not in known:
            meant = nearest(key, known)
            hint = f"did you mean {meant}?" if meant else f"allowed: {', '.join(known)}"
            wrong.append(f"{key} is unknown in {what}, {hint}")
    return wrong


def _quoted(values: Iterable[object]) -> str:
    return ", ".join(_shown(value) for value in values)


def _shown(value: object) -> str:
    """Return a value as the file writes it, cut where it is long."""
    text = json.dumps(value, default=str, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:57]}..."


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


# --- for editors --------------------------------------------------------------------------------------------------


def json_schema() -> dict[str, Any]:
    """Return a JSON schema (draft 2020-12) of the study file, from which editors complete and check it."""
    from core.metrics import METRICS
    from core.sources import SOURCES

    search = _table_schema(SearchConfig)
    search["properties"]["metric"]["enum"] = list(METRICS)
    search["properties"]["pruner"] = _table_schema(PrunerConfig)
    sources = [_table_schema(cls, named=("source", name)) for name, cls in SOURCES.items()]
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Study",
        "type": "object",
        "additionalProperties": False,
        "required": ["data", "model"],
        "properties": {
            "name": {"type": "string", "pattern": f"^{_NAME}$", "description": "Left out: the file's name."},
            "data": {"oneOf": sources},
            "chunks": _table_schema(ChunksConfig),
            "split": _table_schema(SplitConfig),
            "search": search,
            "model": _alternatives_schema(MODELS),
            "training": _table_schema(TrainingConfig, searchable=True),
            "loss": _alternatives_schema(LOSSES),
            "service": _table_schema(ServiceConfig),
        },
    }


def _alternatives_schema(registry: Mapping[str, type]) -> dict[str, Any]:
    one = {"oneOf": [_table_schema(cls, searchable=True, named=("name", name)) for name, cls in registry.items()]}
    return {"anyOf": [one, {"type": "array", "minItems": 1, "items": one}]}


def _table_schema(cls: type, *, searchable: bool = False, named: tuple[str, str] | None = None) -> dict[str, Any]:
    notes = _notes(cls)
    properties: dict[str, Any] = {}
    for key, field in _fields_of(cls).items():
        entry = _searchable_schema(field) if searchable else dict(field.schema)
        if named and key == named[0]:
            entry = {"const": named[1]}
        elif field.default is not MISSING and field.default is not None:
            entry["default"] = list(field.default) if isinstance(field.default, tuple) else field.default
        if key in notes:
            entry["description"] = notes[key]
        properties[key] = entry
    required = [key for key, field in _fields_of(cls).items() if field.default is MISSING]
    required += [named[0]] if named and named[0] not in required else []
    return {
        "type": "object",
        "description": inspect.getdoc(cls) or "",
        "additionalProperties": False,
        "required": required,
        "properties": properties,
    }


def _searchable_schema(field: _Field) -> dict[str, Any]:
    """Return a value, a range (of numbers), or choices."""
    value = field.schema
    listed = {"type": "array", "items": value, "minItems": 2, "uniqueItems": True}
    options = [value, _object_schema({"choices": listed, "default": value}, ["choices"])]
    if field.kind in ("integer", "number"):
        step = {"type": field.kind, "exclusiveMinimum": 0}
        parts = {"low": value, "high": value, "log": {"type": "boolean"}, "step": step, "default": value}
        options.insert(1, _object_schema(parts, ["low", "high"]))
    return {"anyOf": options}


def _object_schema(properties: dict[str, Any], required: list[str]) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}


def _notes(cls: type) -> dict[str, str]:
    """Return the comments that stand below the fields of a dataclass."""
    try:
        body = ast.parse(textwrap.dedent(inspect.getsource(cls))).body[0]
    except (OSError, TypeError):  # installed without its source
        return {}
    assert isinstance(body, ast.ClassDef)
    notes = {}
    for field, note in zip(body.body, body.body[1:], strict=False):
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and isinstance(note, ast.Expr):
            text = note.value
            if isinstance(text, ast.Constant) and isinstance(text.value, str):
                notes[field.target.id] = inspect.cleandoc(text.value)
    return notes
